// Cuts across the grid's axes: of the surface, segments; of the mask in a slice, intervals.
function sectionOf(body, axis, position, across, along) {
  const { points, faces } = body, segments = [];
  for (let f = 0; f < faces.length; f += 3) {
    const ends = [];
    for (let side = 0; side < 3; side++) {
      const a = 3 * faces[f + side], b = 3 * faces[f + ((side + 1) % 3)];
      const above = points[a + axis] - position, below = points[b + axis] - position;
      if (above < 0 === below < 0) continue;
      const part = above / (above - below);
      ends.push(points[a + across] + part * (points[b + across] - points[a + across]),
        points[a + along] + part * (points[b + along] - points[a + along]));
    }
    if (ends.length === 4) segments.push(ends);
  }
  return segments;
}

// Where a line across a slice, `other` coordinate fixed at `position`, runs through the mask: pairs along `across`.
function intervalsOf(slice, across, position) {
  const other = 1 - across, marks = [];
  for (const loop of slice.loops) {
    for (let p = 0; p < loop.length; p += 2) {
      const q = (p + 2) % loop.length;
      const here = loop[p + other] - position, there = loop[q + other] - position;
      if (here < 0 === there < 0) continue;
      marks.push(loop[p + across] + (here / (here - there)) * (loop[q + across] - loop[p + across]));
    }
  }
  marks.sort((a, b) => a - b);
  return Array.from({ length: marks.length >> 1 }, (_, k) => [marks[2 * k], marks[2 * k + 1]]);
}
