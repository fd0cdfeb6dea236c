// A picture as typed arrays: points in mm along the grid's axes, triangles, values at the points, slices.
function bodyOf(picture) {
  if (picture.schema !== 1) throw new Error(`schema ${picture.schema}`);
  const surface = picture.surface;
  const points = pointsOf(words16(surface.points), surface.unit_mm, surface.origin_mm);
  const body = {
    points,
    faces: facesOf(words16(surface.faces)),
    fields: {},
    slices: picture.slices.map(sliceOf),
    common: picture.common_mm,
    step: picture.step_mm,
    measurements: picture.measurements,
    frame: frameOf(picture.axes),
  };
  for (const [name, field] of Object.entries(surface.fields)) {
    body.fields[name] = Float32Array.from(bytesOf(field.values), (value) => (value === 255 ? NaN : value * field.unit_mm));
  }
  return body;
}

function pointsOf(steps, unit, origin) {
  const count = steps.length / 3;
  const points = new Float32Array(steps.length);
  for (let axis = 0; axis < 3; axis++) {
    let sum = 0;
    for (let k = 0; k < count; k++) {
      sum = (sum + steps[axis * count + k]) & 0xffff;
      points[3 * k + axis] = sum * unit + origin[axis];
    }
  }
  return points;
}

function facesOf(words) {
  const count = words.length / 3;
  const faces = new Uint16Array(words.length);
  let first = 0;
  for (let k = 0; k < count; k++) {
    first = (first + words[k]) & 0xffff;
    faces[3 * k] = first;
    faces[3 * k + 1] = first + words[count + k];
    faces[3 * k + 2] = first + words[2 * count + k];
  }
  return faces;
}

function sliceOf(slice) {
  return { ...slice, z: slice.z_mm, shift: slice.shift_mm, loops: loopsOf(slice) };
}

// Distance in mm from each point of the surface to the nearest outline of a re-aligned slice.
function distanceToSlices(body) {
  const found = new Float32Array(body.points.length / 3);
  for (let k = 0; k < found.length; k++) {
    const [x, y, z] = body.points.subarray(3 * k, 3 * k + 3);
    let best = Infinity;
    const near = body.slices.map((slice) => [Math.abs(slice.z - z), slice]).sort((a, b) => a[0] - b[0]);
    for (const [away, slice] of near) {
      if (away * away >= best) break;
      for (const loop of slice.loops) {
        for (let p = 0; p < loop.length; p += 2) {
          const u = loop[p] - slice.shift[0] - x, v = loop[p + 1] - slice.shift[1] - y;
          best = Math.min(best, u * u + v * v + away * away);
        }
      }
    }
    found[k] = Math.sqrt(best);
  }
  return found;
}

// Which way is what on the screen: slices are seen from the apex, what is most anterior and superior on top.
function frameOf(axes) {
  const base = axes[2].map((part) => -part);
  const choices = [0, 1].flatMap((axis) => [1, -1].map((sign) => ({ axis, sign, to: axes[axis].map((p) => sign * p) })));
  const up = choices.reduce((best, one) => (one.to[1] + one.to[2] > best.to[1] + best.to[2] + 1e-6 ? one : best));
  const across = cross(base, up.to);
  const right = choices.reduce((best, one) => (dot(one.to, across) > dot(best.to, across) ? one : best));
  // Slices across a heart are oblique: where they lie along the scanner's axes, the header lost how the patient lay.
  const told = axes.some((axis) => axis.every((part) => Math.abs(part) < 0.9999));
  return { up, right, base: { axis: 2, sign: -1, to: base }, told };
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

// The letters of a direction in the patient, the strongest first: "LP" is left and rather less posterior.
function lettersOf(direction) {
  return direction
    .map((part, axis) => [Math.abs(part), (part > 0 ? "RAS" : "LPI")[axis]])
    .filter(([size]) => size > 0.35)
    .sort((a, b) => b[0] - a[0])
    .map(([, letter]) => letter)
    .join("");
}
