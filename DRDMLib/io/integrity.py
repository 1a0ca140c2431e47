"""Check that image files are complete.

ITK gives no warning when it fills missing voxels with zeros, or when it turns NaN in NIfTI files into numbers.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .detached import files_of_image, metaimage_data, nrrd_data

_CHUNK = 2**24
# Bytes that may follow the voxels in a compressed file; it may unpack to a thousand times its size.
_MOST_BEHIND = 2**28
# Deflate cannot pack data to less than a thousandth of its size; no other method of these formats does so with images.
_MOST_RATIO = 1032
# First bytes of formats whose readers print lines of their own when ITK only looks at a damaged file.
_NOISY = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFFImageIO"),
    b"\x89HDF": "HDF5ImageIO",
}
_NIFTI_FLOATS = {16: "f4", 64: "f8"}
_META_TYPES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
_VTK_TYPES = {"bit": 1, "char": 1, "short": 2, "int": 4, "long": 8, "long_long": 8, "float": 4, "double": 8}
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}


def require_whole_file(path: Path, what: str, kind: str = "", size: int | None = None) -> str:
    """Check a file for damage that ITK does not detect.

    Args:
        what: kind of file in error messages, such as ``"image"``.
        kind: ITK's name for the reader of this file, if it is known.
        size: bytes of its voxels in memory, if they are known; otherwise ITK reads the header, where this is needed.

    Returns:
        ITK's name for the reader of this file, such as ``"NiftiImageIO"``; empty if no reader knows it.

    Raises:
        ImageError: the file is incomplete or damaged, or is a NIfTI file with NaN or infinite voxels.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
        if start in _NOISY and not _CHECKS[_NOISY[start]](path, size):
            raise EOFError
        kind = kind or sitk.ImageFileReader.GetImageIOFromFileName(str(path))
        if kind == "NiftiImageIO":
            complete = _check_nifti_files(path, what)
        else:
            complete = start in _NOISY or kind not in _CHECKS or _CHECKS[kind](path, size)
    except ImageError:
        raise
    except Exception:
        # A damaged header can lead to any error.
        complete = False
    if not complete:
        raise ImageError(
            f"The {what} '{path}' cannot be read, because it is damaged, incomplete, or not an image; "
            "copy or export it again."
        )
    return kind


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


def _check_nifti_files(path: Path, what: str) -> bool:
    """Whether a NIfTI or Analyze image in one file or two (``.hdr``, ``.img``) contains all its voxels."""
    base = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if base.suffix.lower() not in (".hdr", ".img"):
        with _open(path) as stream:
            return _check_nifti(stream, stream, path, what)
    parts = {}
    for kind in (".hdr", ".img"):
        names = (kind, kind.upper(), f"{kind}.gz", f"{kind.upper()}.gz")
        parts[kind] = next(p for p in (path, *(base.with_suffix(name) for name in names)) if _is_part(p, kind))
    with _open(parts[".hdr"]) as header, _open(parts[".img"]) as voxels:
        return _check_nifti(header, voxels, path, what)


def _is_part(path: Path, kind: str) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(kind) and path.is_file()


def _check_nifti(head: BinaryIO, stream: BinaryIO, path: Path, what: str) -> bool:
    """Whether a NIfTI file contains all its voxels; it is read once, in pieces.

    Args:
        head: the file with the header.
        stream: the file with the voxels, which may be the same.
    """
    start = head.read(4)
    order = next((o for o in "<>" if struct.unpack(o + "i", start)[0] in (348, 540)), None)
    if order is None:
        return False
    if struct.unpack(order + "i", start)[0] == 348:
        header = start + head.read(344 + 4 * (head is stream))
        dims = struct.unpack_from(order + "8h", header, 40)
        kind, bits = struct.unpack_from(order + "2h", header, 70)
        offset = int(struct.unpack_from(order + "f", header, 108)[0])
    else:
        header = start + head.read(540)
        kind, bits = struct.unpack_from(order + "2h", header, 12)
        dims = struct.unpack_from(order + "8q", header, 16)
        (offset,) = struct.unpack_from(order + "q", header, 168)
    missing = math.prod(max(1, n) for n in dims[1 : 1 + max(0, min(7, dims[0]))]) * bits // 8
    stream.seek(max(offset, len(header)) if head is stream else max(offset, 0))
    bad = 0
    while missing > 0 and (chunk := stream.read(min(missing, _CHUNK))):
        missing -= len(chunk)
        if kind in _NIFTI_FLOATS:
            complete = len(chunk) // (bits // 8) * (bits // 8)
            values = np.frombuffer(chunk[:complete], order + _NIFTI_FLOATS[kind])
            bad += int(np.count_nonzero(~np.isfinite(values)))
    # Read to the end, so that the checksum of compressed data is verified; no more than that is behind the voxels.
    for _ in range(_MOST_BEHIND // _CHUNK):
        if not stream.read(_CHUNK):
            break
    if bad:
        raise ImageError(f"The {what} '{path}' has {bad} NaN or infinite voxels; replace them with numbers first.")
    return bool(missing == 0)


def _check_metaimage(path: Path, size: int | None = None) -> bool:
    """Whether a MetaImage file contains all its voxels, or the files that it names do."""
    header = metaimage_data(path)
    fields, files, start = header.fields, header.files, header.end
    if "ElementDataFile" not in fields:
        return False
    if "%" in fields["ElementDataFile"] and not files:
        return True
    skipped = max(0, int(fields.get("HeaderSize", 0)))
    whole = [file.stat().st_size for file in files] or [path.stat().st_size - start]
    present = sum(size - skipped for size in whole)
    bytes_each = _META_TYPES.get(fields["ElementType"].replace("MET_", "").removeprefix("U").removesuffix("_ARRAY"), 1)
    channels = int(fields.get("ElementNumberOfChannels", 1))
    needed = math.prod(int(n) for n in fields["DimSize"].split()) * bytes_each * channels
    if fields.get("CompressedData", "False").lower() == "true":
        stored = int(fields.get("CompressedDataSize", 0))
        if needed > _MOST_RATIO * present + _CHUNK or present < stored or (not stored and not files):
            return False
        # ITK unpacks as many bytes as the header says, and gives zeros for what it cannot unpack.
        return len(files) > 1 or _inflates_to(files[0] if files else path, 0 if files else start, stored, needed)
    if fields.get("BinaryData", "True").lower() == "false":
        return True
    return present >= needed


def _inflates_to(path: Path, start: int, stored: int, size: int) -> bool:
    """Whether compressed data (zlib or gzip) at ``start`` unpacks to ``size`` bytes, with a right checksum.

    Args:
        stored: number of packed bytes; 0 for the rest of the file.
    """
    return _inflated_bytes(path, start, stored, size) == size


def _inflated_bytes(path: Path, start: int, stored: int, most: int, *, several: bool = False) -> int:
    """Count the bytes of compressed data (zlib or gzip) up to their end, and verify their checksum.

    Args:
        stored: number of packed bytes; 0 for the rest of the file.
        several: whether gzip data may follow, which continue the first.

    Raises:
        EOFError: the data have no end, or are larger than ``most`` bytes.
        zlib.error: they are damaged.
    """
    unpacker, present = zlib.decompressobj(zlib.MAX_WBITS | 32), 0
    with path.open("rb") as stream:
        stream.seek(start)
        end, packed = start + (stored or path.stat().st_size), b""
        while packed or (packed := stream.read(max(0, min(_CHUNK // 16, end - stream.tell())))):
            present += len(unpacker.decompress(packed, _CHUNK))
            packed = unpacker.unconsumed_tail
            if present > most:
                raise EOFError
            if unpacker.eof:
                packed = unpacker.unused_data
                packed += stream.read(2) if len(packed) < 2 else b""
                if not several or packed[:2] != b"\x1f\x8b":
                    return present
                unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    raise EOFError


def most_values(path: Path) -> int:
    """Return the largest number of values that an image of this file's size can have, however it is compressed."""
    return _MOST_RATIO * sum(file.stat().st_size for file in files_of_image(path)) + _CHUNK


def require_room(reader: sitk.ImageFileReader, path: Path, what: str) -> None:
    """Check that an image has no more voxels than its file can hold, before memory is used for them.

    Args:
        reader: has read the header.
        what: kind of file in error messages, such as ``"image"``.

    Raises:
        ImageError: it has, so the header is damaged.
    """
    if math.prod(reader.GetSize()) * int(reader.GetNumberOfComponents()) > most_values(path):
        raise too_large(path, what)


def too_large(path: Path, what: str) -> ImageError:
    """Return the error for a file that asks for more values than it can hold.

    Args:
        what: kind of file in the message, such as ``"image"``.
    """
    return ImageError(
        f"The {what} '{path}' cannot be read, because it asks for more values than it can hold; copy or export it "
        "again."
    )


def _voxel_bytes(path: Path) -> int:
    """Size of an image in memory according to its header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    # Of one value of this type; a voxel with all its values may itself be too large.
    kind = reader.GetPixelID()
    is_vector = "vector" in sitk.GetPixelIDValueAsString(kind)
    value = sitk.Image([1, 1], kind, 2) if is_vector else sitk.Image([1, 1], kind)
    return int(math.prod(reader.GetSize())) * int(reader.GetNumberOfComponents()) * int(value.GetSizeOfPixelComponent())


def _check_nrrd(path: Path, size: int | None = None) -> bool:
    """Whether the compressed voxels of an NRRD file are whole; ITK itself checks files without compression."""
    header = nrrd_data(path)
    fields, files, start = header.fields, header.files, header.end
    if any(not file.is_file() for file in files):
        return False
    if fields.get("encoding", "").lower() not in ("gzip", "gz"):
        return True
    size = _voxel_bytes(path) if size is None else size
    # More may lie before the voxels or behind them.
    parts = [(file, 0) for file in files] or [(path, start)]
    return sum(_inflated_bytes(file, at, 0, size + _MOST_BEHIND, several=True) for file, at in parts) >= size


def _check_gipl(path: Path, size: int | None = None) -> bool:
    """Whether a GIPL file contains all its voxels after its header of 256 bytes."""
    present, needed = 0, 256 + (_voxel_bytes(path) if size is None else size)
    with _open(path) as stream:
        while present < needed + _MOST_BEHIND and (chunk := stream.read(_CHUNK)):
            present += len(chunk)
    return present >= needed


def _check_mrc(path: Path, size: int | None = None) -> bool:
    """Whether an MRC file contains all its voxels after its header of 1024 bytes and the extended one."""
    with path.open("rb") as stream:
        header = stream.read(1024)
    order = ">" if header[212:213] == b"\x11" else "<"
    size = _voxel_bytes(path) if size is None else size
    return path.stat().st_size >= 1024 + int(struct.unpack_from(f"{order}i", header, 92)[0]) + size


def _check_vtk(path: Path, size: int | None = None) -> bool:
    """Whether a legacy VTK file contains all its voxels."""
    text, count = False, -1
    with path.open("rb") as stream:
        for line in stream:
            words = line.decode("latin-1").lower().split()
            if not words:
                continue
            if words[0] in ("ascii", "binary"):
                text = words[0] == "ascii"
            elif words[0] == "point_data":
                count = int(words[1])
            elif words[0] == "scalars":
                each = _VTK_TYPES[words[2].removeprefix("unsigned_")]
                channels = int(words[3]) if len(words) > 3 else 1
                start = stream.tell()
                if not stream.readline().lower().startswith(b"lookup_table"):
                    stream.seek(start)
                break
            elif words[0] in ("vectors", "tensors"):
                each, channels = _VTK_TYPES[words[2].removeprefix("unsigned_")], 3 if words[0] == "vectors" else 9
                break
            elif words[0] == "color_scalars":
                each, channels = 1, int(words[2])
                break
        else:
            return False
        if count < 0:
            return False
        if text:
            return len(stream.read().split()) >= count * channels
        return path.stat().st_size - stream.tell() >= count * channels * each


def _check_bmp(path: Path, size: int | None = None) -> bool:
    """Whether a BMP file contains all its pixels."""
    with path.open("rb") as stream:
        header = stream.read(54)
    start, width, height, bits, compression = struct.unpack("<10xI4xii2xHI20x", header)
    size = path.stat().st_size
    if compression in (0, 3):
        return bool(size >= start + (width * bits + 31) // 32 * 4 * abs(height))
    return bool(size >= struct.unpack_from("<I", header, 2)[0])


def _check_jpeg(path: Path, size: int | None = None) -> bool:
    """Whether a JPEG or JPEG 2000 file has its end marker."""
    return path.read_bytes().rstrip(b"\0").endswith(b"\xff\xd9")


def _check_png(path: Path, size: int | None = None) -> bool:
    """Whether a PNG file has all its chunks up to the last one."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(8)
        while len(start := stream.read(8)) == 8:
            length = min(int.from_bytes(start[:4], "big"), size)
            chunk = stream.read(length)
            if len(chunk) < length or stream.read(4) != zlib.crc32(start[4:] + chunk).to_bytes(4, "big"):
                return False
            if start[4:] == b"IEND":
                return True
    return False


def _check_tiff(path: Path, size: int | None = None) -> bool:
    """Whether a TIFF file contains all strips or tiles of all its pages."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(16)
        order = "<" if start[:2] == b"II" else ">"
        big = struct.unpack_from(order + "H", start, 2)[0] == 43
        # Types of counts and of places in the file, and the length of an entry of a directory.
        counter, place, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
        width = struct.calcsize(place)
        (at,) = struct.unpack_from(order + place, start, 8 if big else 4)
        seen = set()
        while at:
            if at in seen:
                return False
            seen.add(at)
            stream.seek(at)
            (count,) = struct.unpack(order + counter, stream.read(struct.calcsize(counter)))
            entries = stream.read(count * entry)
            tags: dict[int, tuple[int, ...]] = {}
            (following,) = struct.unpack(order + place, stream.read(width))
            for k in range(count):
                tag, kind = struct.unpack_from(order + "HH", entries, k * entry)
                (number,) = struct.unpack_from(order + place, entries, k * entry + 4)
                bytes_all = _TIFF_BYTES.get(kind, 1) * number
                inside = entries[k * entry + 4 + width :][: min(width, bytes_all)]
                if bytes_all > width:
                    (there,) = struct.unpack(order + place, inside)
                    if there + bytes_all > size:
                        return False
                    stream.seek(there)
                    inside = stream.read(bytes_all)
                if kind in _TIFF_INTEGERS:
                    tags[tag] = struct.unpack(f"{order}{number}{_TIFF_INTEGERS[kind]}", inside)
            # Strips (273, 279) or tiles (324, 325): their places and lengths.
            for places, lengths in ((273, 279), (324, 325)):
                ends = zip(tags.get(places, ()), tags.get(lengths, ()), strict=True)
                if any(first + length > size for first, length in ends):
                    return False
            at = following
    return bool(seen)


def _check_hdf5(path: Path, size: int | None = None) -> bool:
    """Whether an HDF5 file is as long as its superblock says."""
    with path.open("rb") as stream:
        block = stream.read(48)
    if block[:8] != b"\x89HDF\r\n\x1a\n" or block[13 if block[8] < 2 else 9] != 8:
        return True
    (end,) = struct.unpack_from("<Q", block, 28 if block[8] >= 2 else 40 + 4 * (block[8] == 1))
    return path.stat().st_size >= int(end)


_CHECKS: dict[str, Callable[[Path, int | None], bool]] = {
    "MetaImageIO": _check_metaimage,
    "NrrdImageIO": _check_nrrd,
    "GiplImageIO": _check_gipl,
    "MRCImageIO": _check_mrc,
    "VTKImageIO": _check_vtk,
    "BMPImageIO": _check_bmp,
    "JPEGImageIO": _check_jpeg,
    "JPEG2000ImageIO": _check_jpeg,
    "PNGImageIO": _check_png,
    "TIFFImageIO": _check_tiff,
    "LSMImageIO": _check_tiff,
    "HDF5ImageIO": _check_hdf5,
}
