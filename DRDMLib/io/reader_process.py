"""Read files for another process; run as a script by :mod:`DRDMLib.io.apart`, and never imported.

The only argument is a list of the folders with libraries, in JSON. Each line of the standard input is a request, see
:func:`main`. Each answer is a line of JSON, followed by the voxels of an image. The first line of the output says that
the libraries are loaded.
"""

import json
import math
import os
import sys
from typing import Any

# Characters of all entries of a header; more would be data.
_MOST_METADATA = 2**20


def limit_memory(most: int) -> None:
    """Limit the memory of this process to a number of bytes, where the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass


def metadata_of(image: Any) -> dict[str, str]:
    """Return the entries of an image's header that are text."""
    entries, left = {}, _MOST_METADATA
    for key in image.GetMetaDataKeys():
        value = image.GetMetaData(key)
        left -= len(key) + len(value)
        if left >= 0 and (key + value).isprintable():
            entries[key] = value
    return entries


def read_image(path: str, most: int) -> tuple[dict[str, Any], Any]:
    """Read an image, unless its header asks for more than ``most`` values; return its description and its voxels."""
    import SimpleITK as sitk

    kind = sitk.ImageFileReader.GetImageIOFromFileName(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.ReadImageInformation()
    if math.prod(reader.GetSize()) * reader.GetNumberOfComponents() > most:
        return {"kind": kind, "too_large": True}, b""
    image = reader.Execute()
    if kind == "GDCMImageIO":
        return {"kind": kind}, b""
    # A copy: a view would not keep the memory of the image.
    voxels = sitk.GetArrayFromImage(image)
    described = {"kind": kind, "shape": voxels.shape, "type": voxels.dtype.str, "bytes": voxels.nbytes}
    described |= {"components": image.GetNumberOfComponentsPerPixel(), "dimension": image.GetDimension()}
    described |= {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    return described | {"metadata": metadata_of(image)}, voxels


def read_transform(path: str) -> tuple[dict[str, Any], Any]:
    """Read a transform; only whether this is possible is of interest."""
    import SimpleITK as sitk

    sitk.ReadTransform(path)
    return {"kind": "transform"}, b""


def main() -> None:
    """Answer requests until the standard input ends.

    A request is a list: ``"image"`` or ``"transform"``, the path, the largest number of values of an image, the bytes
    of memory that may be used, and the name and value of an environment variable (``null`` to remove it).
    """
    sys.path[:] = json.loads(sys.argv[1])
    # The reader's own lines, and those of libraries, must not get between the answers.
    answers, quiet = os.fdopen(os.dup(1), "wb"), os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    answers.write(b'{"ready": true}\n')
    answers.flush()
    os.dup2(quiet, 2)
    for line in sys.stdin.buffer:
        try:
            what, path, most, memory, variable, value = json.loads(line)
            limit_memory(memory)
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value
            described, voxels = read_transform(path) if what == "transform" else read_image(path, most)
            answer = json.dumps(described).encode()
        except Exception:
            answer, voxels = b'{"kind": "", "failed": true}', b""
        answers.write(answer + b"\n")
        answers.write(memoryview(voxels).cast("B") if len(voxels) else b"")
        answers.flush()


if __name__ == "__main__":
    main()
