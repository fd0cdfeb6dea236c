// Which case is shown, and the keys that lead to the next.
let current = null;

async function choose(item) {
  current = item;
  drawList(current, choose);
  const row = listBody.querySelector("tr.current");
  if (row) row.scrollIntoView({ block: "nearest" });
  const place = listed.indexOf(item), to = (k) => (listed[k] ? () => { stop(); choose(listed[k]); } : null);
  await showCase(item, { before: place > 0 ? to(place - 1) : null, after: to(place + 1), choose,
    place: place < 0 ? "" : `${place + 1} of ${listed.length}` });
}

function go(step) {
  stop();
  const place = listed.indexOf(current), next = listed[place < 0 ? 0 : place + step];
  if (next) choose(next);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search], select")) return;
  if (event.key === "n" || event.key === "j") go(1);
  else if (event.key === "p" || event.key === "k") go(-1);
  else if (event.key === "/") byId("find").focus();
  else return;
  event.preventDefault();
});

function named() {
  let name = "";
  try { name = decodeURIComponent(location.hash.slice(1)); } catch { /* not one of our links */ }
  return name && report.cases.find((item) => item.case === name);
}

fillSummary();
openList(() => drawList(current, choose));
drawList(null, choose);
const first = named() || report.cases[0];
if (first) choose(first);
else fill(picturePart, el("p", { class: "none" }, "There is no case in this folder."));
window.addEventListener("hashchange", () => named() && choose(named()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => current && choose(current));
byId("foot").append("Research use only: not a medical device. Made by mask2surface; nothing in this page comes from or goes to a network.");
