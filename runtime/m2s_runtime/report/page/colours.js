// Colours of what the surface carries. Scales are the same for all cases, so that cases can be compared.
const STOPS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
  [92, 200, 99], [170, 220, 50], [253, 231, 37]]; // viridis
const FIELDS = {
  spread_mm: { name: "Spread of the samples", low: 0, high: 2 },
  thickness_mm: { name: "Wall thickness", low: 2, high: 18 },
  distance_mm: { name: "Distance to the slices", low: 0, high: 6 },
};
const UNKNOWN = [150, 150, 150];

function colourOf(value, { low, high }) {
  if (Number.isNaN(value)) return UNKNOWN;
  const place = Math.min(Math.max((value - low) / (high - low), 0), 1) * (STOPS.length - 1);
  const k = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[k].map((part, channel) => part + (place - k) * (STOPS[k + 1][channel] - part));
}
const hex = (colour) => `#${colour.map((part) => Math.round(part).toString(16).padStart(2, "0")).join("")}`;

function colourBar(field) {
  const stops = STOPS.map((colour, k) =>
    svg("stop", { offset: k / (STOPS.length - 1), "stop-color": hex(colour) }));
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => svg("text",
    { x: 4 + part * 192, y: 23, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" },
    `${part === 1 ? "≥ " : ""}${(field.low + part * (field.high - field.low)).toFixed(field.high > 8 ? 0 : 1)}${part === 1 ? " mm" : ""}`));
  return svg("svg", { viewBox: "0 0 200 26", class: "bar", role: "img",
    "aria-label": `Colours of ${field.name.toLowerCase()}: from ${field.low} mm, dark, to ${field.high} mm and more, bright` },
  svg("defs", {}, svg("linearGradient", { id: "scale" }, stops)),
  svg("rect", { x: 4, y: 2, width: 192, height: 12, fill: "url(#scale)" }), ticks);
}
