import numpy as np
import numpy.typing as npt

def contour(
    field: npt.NDArray[np.float32],
    shape: tuple[int, int, int],
    level: float,
    lewiner: bool,
    origin: tuple[float, float, float],
    /,
) -> tuple[bytes, bytes]: ...
def labels(faces: npt.NDArray[np.int32], vertex_count: int, /) -> bytearray: ...
def topology(faces: npt.NDArray[np.int32], vertex_count: int, /) -> tuple[bool, int, int]: ...
