import numpy as np
import numpy.typing as npt

class _Mesh: ...

def grow(points: npt.NDArray[np.float32], faces: npt.NDArray[np.int32], reach: float, /) -> _Mesh: ...
def fill(
    mesh: _Mesh,
    out: npt.NDArray[np.float32],
    shape: tuple[int, int, int],
    origin: tuple[float, float, float],
    spacing: tuple[float, float, float],
    /,
) -> None: ...
