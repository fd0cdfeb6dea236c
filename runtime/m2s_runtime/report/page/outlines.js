// Outlines of a slice's mask: closed loops through the middles between neighbouring pixels (marching squares).
const SIDES = [[1, 0], [2, 1], [1, 2], [0, 1]]; // in half pixels from the corner: below, right, above, left
const STEPS = { 1: [0, 3], 2: [1, 0], 3: [1, 3], 4: [2, 1], 5: [0, 3, 2, 1], 6: [2, 0], 7: [2, 3], 8: [3, 2],
  9: [0, 2], 10: [1, 0, 3, 2], 11: [1, 2], 12: [3, 1], 13: [0, 1], 14: [3, 0] };

function loopsOf(slice) {
  const [width, height] = slice.shape;
  const bits = bytesOf(slice.mask);
  const at = (i, j) => {
    if (i < 0 || j < 0 || i >= width || j >= height) return 0;
    const place = i * height + j;
    return (bits[place >> 3] >> (7 - (place & 7))) & 1;
  };
  const next = new Map();
  const code = (i, j, side) => (2 * i + SIDES[side][0] + 2) * 4096 + 2 * j + SIDES[side][1] + 2;
  for (let i = -1; i < width; i++) {
    for (let j = -1; j < height; j++) {
      const steps = STEPS[at(i, j) + 2 * at(i + 1, j) + 4 * at(i + 1, j + 1) + 8 * at(i, j + 1)] || [];
      for (let k = 0; k < steps.length; k += 2) next.set(code(i, j, steps[k]), code(i, j, steps[k + 1]));
    }
  }
  return chained(next).map((loop) => loop.flatMap((mark) => [
    (Math.floor(mark / 4096) - 2) / 2 + slice.corner[0], ((mark % 4096) - 2) / 2 + slice.corner[1]]));
}

function chained(next) {
  const loops = [];
  for (const start of next.keys()) {
    const loop = [];
    for (let mark = start; next.has(mark);) {
      loop.push(mark);
      const following = next.get(mark);
      next.delete(mark);
      mark = following;
    }
    if (loop.length) loops.push(loop);
  }
  return loops;
}
