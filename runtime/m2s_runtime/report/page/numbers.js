// The numbers of a case: measured ones, those of the table, and why others are withheld.
const NO_NUMBERS = new Set(["case", "input", "frame", "status", "error", "message", "labels", "flags", "page", "group",
  "files", "picture", "study", "time_ms", "common_shift_x_mm", "common_shift_y_mm", "schema", "withheld", "segments_mm", "shift_ras_mm"]);

function numberTable(item, measured) {
  const found = { ...item, ...known(measured) }, withheld = (measured && measured.withheld) || {};
  const names = [...Object.keys(NUMBERS), ...Object.keys(found).filter((name) => !NUMBERS[name])]
    .filter((name) => !NO_NUMBERS.has(name) && (found[name] !== undefined || withheld[name]));
  const rows = names.map((name) => {
    const [label, unit] = nameOf(name), value = found[name];
    return el("tr", {}, el("th", { scope: "row" }, label), value === undefined
      ? el("td", { class: "withheld" }, `withheld: ${withheld[name]}`)
      : el("td", { class: "number" }, `${shown(value)}${unit ? ` ${unit}` : ""}`));
  });
  return el("table", { class: "numbers" }, el("caption", {}, "Measurements"), el("tbody", {}, rows));
}

// What takes two phases of a heart, and which cases these are.
const PHASES = {
  ef_percent: ["Ejection fraction", "%"], stroke_ml: ["Stroke volume", "ml"], ed_cavity_ml: ["Cavity, end-diastole", "ml"],
  es_cavity_ml: ["Cavity, end-systole", "ml"], ed_volume_ml: ["Wall, end-diastole", "ml"], es_volume_ml: ["Wall, end-systole", "ml"],
  volume_change_percent: ["Change of the wall's volume", "%"], ed_mass_g: ["Wall mass, end-diastole", "g"],
};

function studyTable(item, choose) {
  const study = item.study;
  if (!study) return null;
  const row = (name, value) => el("tr", {}, el("th", { scope: "row" }, name), value);
  const rows = Object.entries(PHASES).filter(([name]) => study[name] !== undefined).map(([name, [label, unit]]) =>
    row(label, el("td", { class: "number" }, `${shown(study[name])} ${unit}`)));
  for (const [name, label] of [["ed_case", "End-diastole"], ["es_case", "End-systole"]]) {
    const other = report.cases.find((one) => one.case === study[name]);
    if (other) rows.push(row(label, el("td", {}, other === item ? "this case" : el("button", { type: "button", onclick: () => choose(other) }, other.case))));
  }
  if (study.withheld) rows.push(row("Ejection fraction", el("td", { class: "withheld" }, `withheld: ${study.withheld}`)));
  return el("table", { class: "study" }, el("caption", {}, "Two phases"), el("tbody", {}, rows, row("Told by", el("td", {}, study.decided))));
}

function known(measured) {
  return Object.fromEntries(Object.entries(measured || {}).filter(([name, value]) =>
    !NO_NUMBERS.has(name) && ["number", "boolean", "string"].includes(typeof value)));
}

function bullseyeOrReason(measured) {
  if (!measured) return null;
  if (measured.segments_mm) return bullseye(measured.segments_mm, measured.withheld || {});
  const reason = measured.withheld && measured.withheld.segments_mm;
  return reason ? el("p", { class: "withheld" }, `No bull's-eye: ${reason}`) : null;
}
