// The pane of the selected case.
const pane = byId("case");
const parts = ["div", "div", "div", "div"].map((tag) => el(tag));
const [headPart, cinePart, remarkPart, picturePart] = parts;
pane.append(...parts);
let showing = 0;

const fill = (part, ...children) => part.replaceChildren(...children.filter(Boolean));

async function showCase(item, steps) {
  const turn = ++showing;
  const found = item.status === "ok" ? await pictureOf(item) : { reason: null };
  if (turn !== showing) return; // another case was chosen meanwhile
  const keep = document.activeElement && pane.contains(document.activeElement) ? document.activeElement : null;
  fill(headPart, heading(item, steps));
  const panel = cinePanel(item, steps.choose);
  if (panel !== cinePart.firstChild) fill(cinePart, panel);
  fill(remarkPart, remarks(item));
  showPicture(item, found, steps.choose);
  refocus(keep);
}

function showPicture(item, { body, reason }, choose) {
  try {
    if (body) {
      fill(picturePart, picturePanel(item, body, choose));
      setStage(body);
      return;
    }
  } catch (error) {
    reason = unreadable(error); // it holds something else than it should
  }
  fill(picturePart, reason ? el("p", { class: "none", id: "reason" }, reason, elsewhere(item)) : null,
    item.status === "ok" ? el("div", { class: "facts" }, numberTable(item, null)) : null);
}

function heading(item, { before, after, place }) {
  const state = stateOf(item);
  const step = (key, text, go) => el("button", { type: "button", disabled: !go, onclick: go, title: `key ${key}` }, text);
  const links = (item.files || []).map((path) => el("a", { href: linkOf(path) }, path.split("/").pop()));
  return el("div", { class: "heading" },
    el("div", { class: "steps no-print" }, step("p", "‹ Previous", before), step("n", "Next ›", after), el("span", {}, place)),
    el("h2", {}, item.case || item.input, " ", el("span", { class: `state ${state}` }, STATES[state])),
    el("p", { class: "origin" }, item.input, item.frame === undefined ? null : `, frame ${item.frame}`),
    links.length ? el("p", { class: "files no-print" }, "Files: ", links.flatMap((link) => [link, " "])) : null);
}

function remarks(item) {
  const notes = [];
  if (item.message) notes.push(el("li", { class: stateOf(item) }, item.message));
  for (const flag of (item.flags || "").split(" ").filter(Boolean)) {
    notes.push(el("li", { class: "flagged" }, el("code", {}, flag), FLAGS[flag] ? ` ${FLAGS[flag]}` : ""));
  }
  if (item.labels) notes.push(el("li", {}, `Labels: ${item.labels}`));
  return notes.length ? el("ul", { class: "remarks" }, notes) : null;
}

function elsewhere(item) {
  if (item.page === report.page) return null;
  return [" ", el("a", { id: "elsewhere", href: `${pageName(item.page)}#${encodeURIComponent(item.case)}` }, `Open it on page ${item.page}`)];
}

function picturePanel(item, body, choose) {
  if (cut.group !== item.group) Object.assign(cut, { group: item.group, slice: null, up: 0, right: 0 });
  const fields = fieldsOf(body);
  if (!fields.includes(look.field)) look.field = fields[0];
  const cuts = el("div", { class: "cuts" }), side = el("div", { class: "side" });
  const redraw = () => {
    cuts.replaceChildren(...drawCuts(body, moved));
    side.replaceChildren(sliceTable(body, (k) => { cut.slice = k; redraw(); }));
  };
  // The slider under the hand stays; only what it moves is drawn again.
  const moved = (of) => {
    const fresh = drawCuts(body, moved);
    [...cuts.children].forEach((figure, k) => {
      figure.replaceChild(fresh[k].firstChild, figure.firstChild);
    });
    if (of === "slice") side.replaceChildren(sliceTable(body, (k) => { cut.slice = k; redraw(); }));
  };
  redraw();
  const bar = el("div", { class: "scale" });
  const rescale = () => bar.replaceChildren(colourBar(FIELDS[look.field]),
    ...(fieldOf(body, look.field).some(Number.isNaN) ? [el("span", {}, "grey: not measured there")] : []));
  rescale();
  const again = () => { rescale(); setStage(body); redraw(); };
  return el("div", { class: "picture" },
    el("figure", { class: "stage" },
      el("div", { class: "controls no-print" },
        select("Colour", fields.map((name) => [name, FIELDS[name].name]), look.field, (name) => { look.field = name; again(); }),
        select("Slices", [["both", "both"], ["corrected", "re-aligned"], ["acquired", "as acquired"], ["none", "none"]],
          look.slices, (name) => { look.slices = name; again(); }),
        el("label", { class: "field" }, el("input", { type: "checkbox", checked: look.clear,
          onchange: (event) => { look.clear = event.target.checked; again(); } }), el("span", {}, "see through")),
        el("button", { type: "button", onclick: () => stage && goHome(stage) }, "Reset view")),
      stage ? canvas : el("p", { class: "none" }, "No 3-D view: WebGL is off in this browser."), bar,
      el("p", { class: "legend" }, el("span", { class: "key corrected" }), "re-aligned", el("span", { class: "key acquired" }), "as acquired",
        el("span", { class: "key outline" }), "surface")),
    cuts, el("div", { class: "facts" }, side, numberTable(item, body.measurements),
      el("div", { class: "pair" }, studyTable(item, choose), bullseyeOrReason(body.measurements))));
}

// What had the focus is made anew with each case: its successor gets it.
function refocus(kept) {
  if (!kept || pane.contains(kept)) {
    if (kept && kept !== document.activeElement) kept.focus();
    return;
  }
  const same = kept.id ? byId(kept.id) : [...pane.querySelectorAll(kept.tagName)].find((node) =>
    node.textContent === kept.textContent && node.getAttribute("aria-label") === kept.getAttribute("aria-label"));
  if (same) same.focus();
}
