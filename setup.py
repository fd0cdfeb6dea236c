"""What pyproject.toml cannot say: the compiled kernels, and the bundles that travel inside the wheel."""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

GCC_LIKE = [
    "-O3",
    "-fopenmp-simd",
    # What the vectoriser needs of -ffast-math, which itself would change the rounding of the whole process.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffinite-math-only",
    "-fno-signed-zeros",
]

# Only distances may be rounded as is quickest: surfaces are scikit-image's to the last bit.
MSVC = {"_mesh_distance": ["/O2", "/fp:fast"], "_surface": ["/O2"], "_voxels": ["/O2"]}
FLAGS = MSVC if sys.platform == "win32" else dict.fromkeys(MSVC, GCC_LIKE)

KERNELS = [
    Extension(
        f"m2s_runtime.{name}",
        [f"runtime/m2s_runtime/{name}.c"],
        extra_compile_args=flags,
        py_limited_api=True,
        optional=True,  # without a compiler the runtime falls back to SciPy and scikit-image
    )
    for name, flags in FLAGS.items()
]


class BuildWithBundles(build_py):
    """Copies models/ into the package, where an installed runtime looks for its bundles."""

    def run(self):
        super().run()
        models = Path(__file__).parent / "models"
        if models.is_dir() and not self.editable_mode:
            shutil.copytree(models, Path(self.build_lib) / "m2s_runtime" / "models", dirs_exist_ok=True)


setup(
    ext_modules=KERNELS,
    cmdclass={"build_py": BuildWithBundles},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
