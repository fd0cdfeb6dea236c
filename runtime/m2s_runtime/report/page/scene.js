// The 3-D stage: one for the whole page; it draws when something changed and rests otherwise.
const canvas = el("canvas", { tabindex: 0, role: "img",
  "aria-label": "Surface in three dimensions. Arrow keys turn it, plus and minus zoom, Home goes back.",
  title: "Drag to turn, wheel to zoom; arrow keys, + and -, Home" });
const stage = openStage();

function openStage() {
  const quiet = console.error; // a browser without WebGL is told of below, not in the console
  console.error = () => {};
  try {
    const renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true, preserveDrawingBuffer: true });
    return furnished(renderer);
  } catch {
    return null;
  } finally {
    console.error = quiet;
  }
}

function furnished(renderer) {
  const scene = new THREE.Scene(), heart = new THREE.Group();
  const camera = new THREE.PerspectiveCamera(28, 1, 10, 2000);
  const lamp = new THREE.DirectionalLight(0xffffff, 2.2);
  camera.add(lamp);
  lamp.position.set(-0.6, 0.8, 1);
  scene.add(new THREE.HemisphereLight(0xffffff, 0x8890a0, 1.5), camera, heart);
  const controls = new THREE.OrbitControls(camera, canvas);
  Object.assign(controls, { enableDamping: false, minDistance: 80, maxDistance: 900 });
  const draw = () => renderer.render(scene, camera);
  controls.addEventListener("change", draw);
  new ResizeObserver(() => {
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    draw();
  }).observe(canvas);
  window.addEventListener("beforeprint", draw);
  canvas.addEventListener("keydown", (event) => turn(event, camera, controls));
  const found = { renderer, heart, camera, controls, draw };
  goHome(found);
  return found;
}

// From the front, a little from the left and from above the base, so that the cavity shows.
function goHome({ camera, controls }) {
  camera.position.set(62, 125, 205);
  controls.target.set(0, 6, 0);
  controls.update();
}

const TURNS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const ZOOMS = { "+": 0.9, "=": 0.9, "-": 1 / 0.9 };

function turn(event, camera, controls) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Home") goHome(stage);
  else if (TURNS[event.key] || ZOOMS[event.key]) {
    const [around, over] = TURNS[event.key] || [0, 0];
    const place = new THREE.Spherical().setFromVector3(camera.position.clone().sub(controls.target));
    place.theta += around * 0.12;
    place.phi = Math.min(Math.max(place.phi + over * 0.12, 0.02), Math.PI - 0.02);
    place.radius = Math.min(Math.max(place.radius * (ZOOMS[event.key] || 1), controls.minDistance), controls.maxDistance);
    camera.position.setFromSpherical(place).add(controls.target);
    controls.update();
  } else return;
  event.preventDefault();
  event.stopPropagation();
}
