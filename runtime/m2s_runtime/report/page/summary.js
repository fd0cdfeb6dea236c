// What ran, how long, on what.
function fillSummary() {
  const run = report.summary, counts = run.counts;
  byId("summary").append(el("ul", { class: "counts" }, Object.entries(counts).map(([state, count]) =>
    el("li", {}, el("span", { class: `state ${state}` }, `${count} ${STATES[state].toLowerCase()}`)))));
  const facts = [
    ["Run", run.started ? `${when(run.started)}, took ${lasted(run)}${ending(run.exit_code)}` : "not finished: what is shown was on disk"],
    ["Bundle", run.bundle.name && `${run.bundle.name} (${(run.bundle.sha256 || "").slice(0, 12)})`],
    ["Engine", run.engine.name && `${run.engine.name} on ${run.engine.device}, ${run.engine.threads} thread(s)`],
    ["Version", run.version && `mask2surface ${run.version}`],
    ["Shards", run.shards > 1 && String(run.shards)],
  ].filter(([, text]) => text);
  byId("summary").append(el("dl", {}, facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
    ...[particulars(run), pagesNote()].filter(Boolean));
}

const when = (time) => time.replace("T", " ").replace("+00:00", " UTC");

function lasted(run) {
  const seconds = (Date.parse(run.finished) - Date.parse(run.started)) / 1000;
  if (!(seconds >= 0)) return "an unknown time";
  if (seconds < 120) return `${seconds} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const ending = (code) => ({ 0: "", 8: ", some cases failed", 130: ", interrupted", 143: ", terminated" }[code] ?? `, ended with exit code ${code}`);

function particulars(run) {
  const rows = [["Engine", run.engine.description], ["Distance kernel", run.distance_kernel], ["Python", run.python],
    ["Platform", run.platform], ...Object.entries(run.packages), ...Object.entries(run.options).map(([name, value]) => [`--${name.replaceAll("_", "-")}`, value]),
    ...Object.entries(run.seconds).map(([name, value]) => [`${name}, all cases`, `${value} s`])].filter(([, value]) => value !== undefined);
  if (!rows.length) return null;
  return el("details", {}, el("summary", {}, "Particulars"), el("dl", {}, rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])));
}

function pagesNote() {
  if (report.pages < 2) return null;
  return el("nav", { class: "pages", "aria-label": "Pages" }, Array.from({ length: report.pages }, (_, k) => k + 1).flatMap((number) => [
    number === report.page ? el("strong", {}, String(number)) : el("a", { href: pageName(number) }, String(number)), " "]));
}
