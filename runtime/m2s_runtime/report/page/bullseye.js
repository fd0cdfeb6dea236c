// Wall thickness in the 17 segments of the American Heart Association (2002): base outside, apex in the middle.
const RINGS = [[1, 6, 100, 74, 60], [7, 6, 74, 47, 60], [13, 4, 47, 20, 45]]; // first, count, radii, start in degrees

function bullseye(values, withheld) {
  const parts = RINGS.flatMap(([first, count, outer, inner, start]) => Array.from({ length: count }, (_, k) => {
    const from = start + (k * 360) / count, to = from + 360 / count;
    return segment(first + k, values[first + k - 1], withheld, sector(outer, inner, from, to), at((outer + inner) / 2, (from + to) / 2));
  }));
  parts.push(segment(17, values[16], withheld, circle(20), [0, 0]));
  return el("figure", { class: "bullseye" },
    svg("svg", { viewBox: "-104 -104 208 208", role: "img", "aria-label": "Mean wall thickness of the 17 segments in mm: "
      + values.map((value, k) => `${k + 1}: ${value === null ? "none" : value.toFixed(1)}`).join(", ") }, parts),
    el("figcaption", {}, "Wall thickness of the AHA segments, mm"));
}

function segment(number, value, withheld, path, [x, y]) {
  const known = value !== null && value !== undefined, colour = known ? colourOf(value, FIELDS.thickness_mm) : null;
  const dark = known && 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 120;
  return svg("g", { class: known ? (dark ? "segment dark" : "segment light") : "segment" },
    svg("path", { d: path, fill: known ? hex(colour) : "none" }, svg("title", {}, `Segment ${number}${known ? "" : `: ${withheld[`segments_mm.${number}`] || "none"}`}`)),
    svg("text", { x, y, "text-anchor": "middle", "dominant-baseline": "central" }, known ? value.toFixed(1) : "–"));
}

// Degrees run counter-clockwise from the right, as in the figure of the recommendation.
const at = (radius, degrees) => [radius * Math.cos((degrees * Math.PI) / 180), -radius * Math.sin((degrees * Math.PI) / 180)];
const circle = (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0Z`;

function sector(outer, inner, from, to) {
  const [a, b, c, d] = [at(outer, from), at(outer, to), at(inner, to), at(inner, from)];
  return `M${a}A${outer} ${outer} 0 0 0 ${b}L${c}A${inner} ${inner} 0 0 1 ${d}Z`;
}
