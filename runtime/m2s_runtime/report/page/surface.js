// One case on the stage: its surface in colours, its slices as lines.
const look = { field: null, slices: "both", clear: false };
const MOVES = { corrected: (body, slice) => slice.shift, acquired: (body) => body.common };
const shownMoves = () => (look.slices === "none" ? [] : Object.keys(MOVES).filter((name) => ["both", name].includes(look.slices)));

function setStage(body) {
  if (!stage) return;
  for (const child of [...stage.heart.children]) {
    child.geometry.dispose();
    child.material.dispose();
    stage.heart.remove(child);
  }
  stage.heart.add(meshOf(body), ...shownMoves().map((name) => linesOf(body, name)));
  place3d(body);
  stage.draw();
}

// The fields that this case has; the distance is found when it is first looked at.
function fieldsOf(body) {
  return Object.keys(FIELDS).filter((name) => name === "distance_mm" || body.fields[name]);
}

function fieldOf(body, name) {
  if (name === "distance_mm" && !body.fields[name]) body.fields[name] = distanceToSlices(body);
  return body.fields[name];
}

function meshOf(body) {
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute("position", new THREE.BufferAttribute(body.points, 3));
  geometry.setIndex(new THREE.BufferAttribute(body.faces, 1));
  geometry.computeVertexNormals();
  const values = fieldOf(body, look.field), colours = new Float32Array(body.points.length), mixed = new THREE.Color();
  for (let k = 0; k < values.length; k++) {
    const [r, g, b] = colourOf(values[k], FIELDS[look.field]);
    mixed.setRGB(r / 255, g / 255, b / 255, "srgb").toArray(colours, 3 * k);
  }
  geometry.setAttribute("color", new THREE.BufferAttribute(colours, 3));
  return new THREE.Mesh(geometry, new THREE.MeshStandardMaterial({
    vertexColors: true, roughness: 0.75, metalness: 0, side: THREE.DoubleSide, transparent: look.clear,
    opacity: look.clear ? 0.35 : 1, depthWrite: !look.clear,
    polygonOffset: true, polygonOffsetFactor: 2, polygonOffsetUnits: 2 }));
}

function linesOf(body, name) {
  const ends = [];
  for (const slice of body.slices) {
    const [dx, dy] = MOVES[name](body, slice);
    for (const loop of slice.loops) {
      for (let p = 0; p < loop.length; p += 2) {
        const q = (p + 2) % loop.length;
        ends.push(loop[p] - dx, loop[p + 1] - dy, slice.z, loop[q] - dx, loop[q + 1] - dy, slice.z);
      }
    }
  }
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array(ends), 3));
  const colour = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return new THREE.LineSegments(geometry, new THREE.LineBasicMaterial({ color: colour }));
}

// The base on top, the patient's front towards the viewer: a turn, or a mirror where the grid itself is mirrored.
function place3d(body) {
  const { right, up, base } = body.frame, rows = [right, base, up].map(({ axis, sign }) => {
    const row = [0, 0, 0];
    row[axis] = sign;
    return row;
  });
  const middle = [63.5, 63.5, 63];
  const away = rows.map((row) => -dot(row, middle));
  stage.heart.matrixAutoUpdate = false;
  stage.heart.matrix.set(...rows[0], away[0], ...rows[1], away[1], ...rows[2], away[2], 0, 0, 0, 1);
  stage.heart.matrixWorldNeedsUpdate = true;
}
