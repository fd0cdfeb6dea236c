import numpy as np
import numpy.typing as npt

def signed_distances(
    masks: npt.NDArray[np.bool_], out: npt.NDArray[np.float32], shape: tuple[int, int, int], clip: float, /
) -> None: ...
def crumbs(
    mask: npt.NDArray[np.bool_], out: npt.NDArray[np.bool_], shape: tuple[int, int, int], kind: bool, most: int, /
) -> None: ...
def carve(
    block: npt.NDArray[np.bool_], distance: npt.NDArray[np.float32], shape: tuple[int, int, int], level: float, /
) -> None: ...
