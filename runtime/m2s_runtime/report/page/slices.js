// The slices from base to apex: how far and which way each was moved, and how well the surface agrees with it.
function sliceTable(body, chosen) {
  const moves = body.slices.map((slice) => [0, 1].map((axis) => body.common[axis] - slice.shift[axis]));
  const longest = Math.max(5, ...moves.map(([x, y]) => Math.hypot(x, y)));
  const rows = body.slices.map((slice, k) => {
    const screen = ["right", "up"].map((name) => body.frame[name].sign * moves[k][body.frame[name].axis]);
    const length = Math.hypot(...moves[k]);
    return el("tr", { class: k === cut.slice ? "current" : null },
      el("th", { scope: "row" }, el("button", { type: "button", onclick: () => chosen(k),
        "aria-label": `Show slice ${k + 1}`, "aria-pressed": k === cut.slice ? "true" : "false" }, String(k + 1))),
      el("td", {}, arrow(screen, longest)),
      el("td", { class: "number" }, length.toFixed(1)),
      el("td", {}, meter(length / longest)),
      el("td", { class: "number" }, slice.agreement === null ? "–" : slice.agreement.toFixed(2)),
      el("td", {}, slice.agreement === null ? null : meter(slice.agreement, slice.agreement < 0.6 ? "bad" : slice.agreement < 0.85 ? "poor" : "good")));
  });
  return el("table", { class: "slices" },
    el("caption", {}, "Slices, base to apex"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Slice"),
      el("th", { scope: "colgroup", colspan: 3 }, "Moved by, mm"), el("th", { scope: "colgroup", colspan: 2 }, "Dice with surface"))),
    el("tbody", {}, rows));
}

const meter = (part, kind) => svg("svg", { viewBox: "0 0 60 8", class: "meter", "aria-hidden": "true" },
  svg("rect", { width: 60, height: 8, class: "trough" }),
  svg("rect", { width: (60 * Math.min(Math.max(part, 0), 1)).toFixed(1), height: 8, class: kind || "amount" }));

function arrow([x, y], longest) {
  const scale = 15 / longest, u = x * scale, v = -y * scale, size = Math.hypot(u, v);
  const head = size > 2 ? [-0.5, 0.5].map((turn) => {
    const angle = Math.atan2(v, u) + Math.PI + turn;
    return `M${u.toFixed(2)} ${v.toFixed(2)}l${(3.5 * Math.cos(angle)).toFixed(2)} ${(3.5 * Math.sin(angle)).toFixed(2)}`;
  }).join("") : "";
  return svg("svg", { viewBox: "-16 -16 32 32", class: "arrow", role: "img",
    "aria-label": `moved ${x.toFixed(1)} mm to the right and ${y.toFixed(1)} mm up, as seen in the short-axis cut` },
  svg("circle", { r: 1.2 }), svg("path", { d: `M0 0L${u.toFixed(2)} ${v.toFixed(2)}${head}` }));
}
