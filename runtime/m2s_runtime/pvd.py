"""ParaView's series file: the frames of a cine as one animation."""

from collections.abc import Iterable
from xml.sax.saxutils import quoteattr


def series(frames: Iterable[tuple[float, str]]) -> str:
    """A `.pvd` file, which can only hold files of VTK's XML kind.

    Args:
        frames: time, and the path of a VTP file relative to the `.pvd`.
    """
    entries = "".join(
        f'<DataSet timestep="{time:g}" group="" part="0" file={quoteattr(path)}/>\n' for time, path in frames
    )
    return f"""<?xml version="1.0"?>
<VTKFile type="Collection" version="0.1" byte_order="LittleEndian">
<Collection>
{entries}</Collection>
</VTKFile>
"""
