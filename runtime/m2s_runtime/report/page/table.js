// The list of cases: sorted by any column, failures first unless asked otherwise, filtered by state, flag and words.
const WORDS = ["case", "state"]; // the other columns hold numbers
const COLUMNS = [
  ["case", "Case"], ["state", "State"], ["agreement_mean", "Dice"], ["expected_dice", "Exp. Dice"], ["mean_shift_mm", "Shift, mm"], ["spread_p95_mm", "Spread, mm"],
  ["volume_ml", "Wall, ml"], ["cavity_ml", "Cavity, ml"],
].filter(([name]) => WORDS.includes(name) || report.cases.some((item) => item[name] !== undefined));
const wanted = { words: "", state: "", flag: "", column: null, down: false };
const STRETCH = 300;
let listed = [], most = STRETCH;

function chosenCases() {
  const words = wanted.words.toLowerCase().split(/\s+/).filter(Boolean);
  const found = report.cases.filter((item) => {
    const text = `${item.case} ${item.input} ${item.flags || ""} ${item.message || ""} ${item.error || ""}`.toLowerCase();
    return (!wanted.state || stateOf(item) === wanted.state) && words.every((word) => text.includes(word))
      && (!wanted.flag || (item.flags || "").split(" ").includes(wanted.flag));
  });
  return wanted.column ? found.sort(compared(wanted.column, wanted.down ? -1 : 1)) : found;
}

function compared(column, way) {
  const key = (item) => (column === "state" ? ORDER.indexOf(stateOf(item)) : item[column]);
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // what is unknown stays last
    return way * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  };
}

const listBody = el("tbody", {}), listHead = el("tr", {}), listMore = el("p", { class: "more no-print" }), listCount = el("p", { class: "count", role: "status" });

function drawList(current, choose) {
  listed = chosenCases();
  listHead.replaceChildren(...COLUMNS.map(([name, label]) => {
    const sorted = wanted.column === name;
    return el("th", { scope: "col", class: WORDS.includes(name) ? null : "number", "aria-sort": sorted ? (wanted.down ? "descending" : "ascending") : "none" },
      el("button", { type: "button", "data-column": name, onclick: () => {
        Object.assign(wanted, sorted && wanted.down ? { column: null, down: false } : { column: name, down: sorted });
        drawList(current, choose);
        listHead.querySelector(`[data-column=${name}]`).focus();
      } }, label, sorted ? (wanted.down ? " ▾" : " ▴") : ""));
  }));
  listBody.replaceChildren(...listed.slice(0, most).map((item) => rowOf(item, current, choose)));
  const all = `${report.cases.length} ${report.cases.length === 1 ? "case" : "cases"}`;
  listCount.textContent = listed.length === report.cases.length ? all : `${listed.length} of ${all}`;
  listMore.replaceChildren(...(listed.length > most ? [el("button", { type: "button", onclick: () => {
    most += STRETCH;
    drawList(current, choose);
  } }, `Show more (${listed.length - most} left)`)] : []));
}

function rowOf(item, current, choose) {
  const state = stateOf(item), here = item === current;
  const cells = COLUMNS.map(([name]) => {
    if (name === "case") {
      return el("th", { scope: "row" }, el("button", { type: "button", class: "case-name", "aria-current": here ? "true" : null,
        onclick: () => choose(item) }, breakable(item.case || item.input)), notesOf(item));
    }
    if (name === "state") return el("td", {}, el("span", { class: `state ${state}` }, STATES[state]));
    return el("td", { class: "number" }, item[name] === undefined ? "" : shown(item[name]));
  });
  return el("tr", { class: here ? "current" : null, onclick: (event) => event.target.closest("button") || choose(item) }, cells);
}

// Flags and messages stand below the name: in a column of their own they would push the numbers out of sight.
function notesOf(item) {
  const notes = [item.flags, item.message].filter(Boolean).join("; ");
  return notes && el("div", { class: "notes" }, notes);
}

// A long name may break where its parts meet.
const breakable = (name) => name.split(/(?<=[_.-])/).flatMap((part, k) => (k ? [el("wbr"), part] : [part]));

function openList(redraw) {
  const flags = [...new Set(report.cases.flatMap((item) => (item.flags || "").split(" ").filter(Boolean)))].sort();
  const states = ORDER.filter((state) => report.cases.some((item) => stateOf(item) === state));
  const change = (part) => { Object.assign(wanted, part); most = STRETCH; redraw(); };
  byId("list").append(
    el("div", { class: "filters no-print" },
      el("label", { class: "field grow" }, el("span", {}, "Find"), el("input", { type: "search", id: "find", autocomplete: "off",
        placeholder: "name, flag, message", oninput: (event) => change({ words: event.target.value }) })),
      select("State", [["", "all"], ...states.map((state) => [state, STATES[state].toLowerCase()])], "", (state) => change({ state })),
      flags.length ? select("Flag", [["", "any"], ...flags.map((flag) => [flag, flag])], "", (flag) => change({ flag })) : null),
    listCount, el("div", { class: "scroll" }, el("table", { class: "cases" }, el("thead", {}, listHead), listBody)), listMore,
    el("p", { class: "keys no-print" }, "Keys: ", el("kbd", {}, "n"), " next, ", el("kbd", {}, "p"), " previous, ", el("kbd", {}, "/"), " find"));
}
