// Three cuts across the axes of the stack: along a slice, and two along the heart. Millimetres, all at one scale.
const MIDDLE = 63.5;
const cut = { group: null, slice: null, up: 0, right: 0 }; // slice null: the middle one
const CUTS = [
  { name: "Short axis", of: "slice" }, { name: "Long axis, left to right", of: "up" },
  { name: "Long axis, front to back", of: "right" },
];

function drawCuts(body, moved) {
  const { right, up } = body.frame;
  cut.slice = Math.min(cut.slice ?? body.slices.length >> 1, body.slices.length - 1);
  const slice = body.slices[cut.slice];
  const planes = [
    { ...CUTS[0], x: right, y: up, axis: 2, at: slice.z, sheets: (name) => sheetOf(body, slice, name) },
    { ...CUTS[1], x: right, y: body.frame.base, axis: up.axis, at: MIDDLE + up.sign * cut.up },
    { ...CUTS[2], x: up, y: body.frame.base, axis: right.axis, at: MIDDLE + right.sign * cut.right },
  ];
  return planes.map((plane) => el("figure", { class: "cut" }, cutPicture(body, plane, planes),
    el("figcaption", {}, el("span", {}, plane.name), cutSlider(body, plane.of, moved))));
}

function cutSlider(body, of, moved) {
  const note = el("output", {});
  const tell = () => { note.textContent = of === "slice" ? `${cut.slice + 1} of ${body.slices.length}` : `${cut[of]} mm`; };
  tell();
  const [low, high] = of === "slice" ? [0, body.slices.length - 1] : [-45, 45];
  const label = { slice: "Slice, base to apex", up: "Position of this cut, back to front", right: "Position of this cut, right to left" }[of];
  return [range(label, low, high, 1, cut[of], (value) => { cut[of] = value; tell(); moved(of); }), note];
}

const flip = (direction, value) => direction.sign * (value - (direction.axis === 2 ? 63 : MIDDLE));

// The mask in a slice where it was acquired or where it belongs, as one path.
function sheetOf(body, slice, name) {
  const { right, up } = body.frame, move = MOVES[name](body, slice);
  const path = slice.loops.map((loop) => {
    let text = "";
    for (let p = 0; p < loop.length; p += 2) {
      const place = [loop[p] - move[0], loop[p + 1] - move[1]];
      text += `${p ? "L" : "M"}${flip(right, place[right.axis]).toFixed(2)} ${(-flip(up, place[up.axis])).toFixed(2)}`;
    }
    return `${text}Z`;
  });
  return path.join("");
}

// The same across the stack: a box as high as the slices lie apart for each stretch of wall.
function boxesOf(body, plane, name) {
  let path = "";
  for (const slice of body.slices) {
    const move = MOVES[name](body, slice);
    const top = -flip(plane.y, slice.z) - body.step / 2;
    for (const ends of intervalsOf(slice, plane.x.axis, plane.at + move[plane.axis])) {
      const [a, b] = ends.map((mark) => flip(plane.x, mark - move[plane.x.axis])).sort((p, q) => p - q);
      path += `M${a.toFixed(2)} ${top.toFixed(2)}h${(b - a).toFixed(2)}v${body.step}H${a.toFixed(2)}Z`;
    }
  }
  return path;
}

function cutPicture(body, plane, planes) {
  const half = halfOf(body), layers = [];
  for (const name of shownMoves().reverse()) {
    const path = plane.sheets ? plane.sheets(name) : boxesOf(body, plane, name);
    layers.push(svg("path", { d: path, class: `mask ${name}`, "fill-rule": "evenodd" }));
  }
  const line = sectionOf(body, plane.axis, plane.at, plane.x.axis, plane.y.axis).map(([a, b, c, d]) =>
    `M${flip(plane.x, a).toFixed(2)} ${(-flip(plane.y, b)).toFixed(2)}L${flip(plane.x, c).toFixed(2)} ${(-flip(plane.y, d)).toFixed(2)}`);
  layers.push(svg("path", { d: line.join(""), class: "outline" }));
  const others = planes.filter((other) => other !== plane).map((other) => {
    const level = other.axis === plane.x.axis;
    const place = level ? flip(plane.x, other.at) : -flip(plane.y, other.at);
    return svg("path", { class: "cross", d: level ? `M${place} ${-half}V${half}` : `M${-half} ${place}H${half}` });
  });
  return svg("svg", { viewBox: `${-half} ${-half} ${2 * half} ${2 * half}`, role: "img",
    "aria-label": `${plane.name}: mask and surface` }, others, layers,
  body.frame.told ? compass(plane, half) : [], rule(half));
}

const halfOf = (body) => {
  let far = 46;
  for (let k = 0; k < body.points.length; k++) far = Math.max(far, Math.abs(body.points[k] - (k % 3 === 2 ? 63 : MIDDLE)));
  return far + 6;
};

function compass({ x, y }, half) {
  const edge = half - 2, minus = (direction) => direction.to.map((part) => -part);
  const letter = (place, direction, anchor, shift) => svg("text",
    { x: place[0], y: place[1], "text-anchor": anchor, "dominant-baseline": shift, class: "letter" }, lettersOf(direction));
  return [letter([-edge, 0], minus(x), "start", "middle"), letter([edge, 0], x.to, "end", "middle"),
    letter([0, -edge], y.to, "middle", "hanging"), letter([0, edge], minus(y), "middle", "auto")];
}

// A ruler of 20 mm.
const rule = (half) => [svg("path", { class: "rule", d: `M${-half + 3} ${half - 3}h20m0 -1v2m-20 -2v2` }),
  svg("text", { x: -half + 13, y: half - 5, "text-anchor": "middle", class: "letter" }, "20 mm")];
