export {
  WebGLRenderer, Scene, PerspectiveCamera, Group, Mesh, BufferGeometry, BufferAttribute, MeshStandardMaterial,
  DirectionalLight, HemisphereLight, LineSegments, LineBasicMaterial, Color, DoubleSide, Vector3, Matrix4, Spherical,
} from "three";
export { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
