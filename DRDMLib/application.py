"""Apply a saved deformation to files: other channels, label maps, points and meshes."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import FallbackWarning, ImageError, SettingError
from .invertibility.saved_field import SavedField
from .io.files import SUFFIXES, file_names, listed, path_problem, shown, write_bytes, write_text
from .io.images import LEAST_OVERLAP, fit_label, read_field, read_voxels, reading, require_scalar_image
from .io.label_maps import looks_like_label
from .io.meshes import MESH_SUFFIXES, read_mesh
from .io.points import POINT_SUFFIXES, read_point_file
from .io.transforms import EITHER_SUFFIXES, TRANSFORM_SUFFIXES, NoTransformError, read_transform
from .io.volumes import write_itk
from .output import make_output_folder, write_image
from .spatial.coordinates import inside
from .spatial.model_grid import overlap
from .spatial.resampling import warp_image, warp_label

IMAGE, LABEL, POINTS, MESH = "image", "label", "points", "mesh"
# Image formats in one file that results are written in; results of all others are .nii.gz.
_WRITTEN = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".png", ".tif", ".tiff")
_FLOAT_VECTORS = (sitk.sitkVectorFloat32, sitk.sitkVectorFloat64)
# Step with which a direction is carried along with a surface, as a part of a millimeter.
_STEP = 0.1


@dataclass(frozen=True)
class Applied:
    """One file that was deformed.

    Attributes:
        source, path: the file, and its deformed version.
        kind: ``"image"``, ``"label"``, ``"points"`` or ``"mesh"``.
        not_exact: number of points where the field cannot be inverted.
    """

    source: Path
    path: Path
    kind: str
    not_exact: int = 0


def read_deformation(path: str | os.PathLike[str]) -> SavedField:
    """Read a saved deformation.

    Args:
        path: a displacement field of ``drdm`` (``_ddf``, ``_field``) or of another program (vector image, millimeters,
            LPS), or a transform of ITK or 3D Slicer (``.h5``, ``.tfm``, ``.txt``, ``.mat``, ``.xfm``). It takes points
            of the new version to points of the original.

    Raises:
        ImageError: it is missing, damaged, or neither a field nor a transform.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    with reading(path, "field"):
        if suffix in TRANSFORM_SUFFIXES:
            return SavedField([read_transform(path)])
        if suffix in EITHER_SUFFIXES:
            with contextlib.suppress(NoTransformError):
                return SavedField([read_transform(path)])
        return SavedField([sitk.DisplacementFieldTransform(sitk.Cast(read_field(path), sitk.sitkVectorFloat64))])


def kind_of(path: Path) -> str:
    """Return the kind of a file by its name: points, a mesh, or an image, which may be a label map."""
    name = path.name.lower()
    if name.endswith(POINT_SUFFIXES):
        return POINTS
    if name.endswith(MESH_SUFFIXES) and not (name.endswith(".vtk") and _is_vtk_image(path)):
        return MESH
    return IMAGE


def _is_vtk_image(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return b"STRUCTURED_POINTS" in stream.read(1024).upper()
    except (OSError, ValueError):
        return False


def apply_field(
    field: SavedField | sitk.Image | str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    inverse: bool = False,
    labels: Sequence[str | os.PathLike[str]] = (),
    images: Sequence[str | os.PathLike[str]] = (),
    besides: tuple[str, ...] = (),
    on_file: Callable[[int, int], None] | None = None,
) -> list[Applied]:
    """Apply a saved deformation to files of the original, so that they fit to the new version.

    Images and label maps keep their own grid of voxels, points (``.csv``, ``.fcsv``, ``.mrk.json``) and meshes
    (``.vtk``, ``.vtp``, ``.stl``, ``.ply``) all that is in their file besides the positions and the normals. The
    results have the names of the files.

    Args:
        field: the deformation: a path (see :func:`read_deformation`), or a displacement field (vector image,
            millimeters, LPS) such as ``Deformation.field``.
        files: images, label maps, points and meshes. Of the images, those with few whole numbers as values in areas
            of equal ones are taken for label maps.
        output: new or empty folder.
        inverse: the files belong to the new version, and go back to the original.
        labels, images: more files, which are label maps and images whatever their values are.
        besides: files in ``output`` whose names start with one of these are ignored.
        on_file: called with (done, total) after each file.

    Returns:
        What was written, in the order of ``files``, ``labels`` and ``images``.

    Raises:
        ImageError: the field cannot be used, or none of the files can.
        OutputError: the folder is not empty or cannot be written to.
        SettingError: there is no file.

    Warns:
        FallbackWarning: a file was left out, or has points where the field cannot be inverted.
    """
    asked = [(Path(f), "") for f in files] + [(Path(f), LABEL) for f in labels] + [(Path(f), IMAGE) for f in images]
    if not asked:
        raise SettingError("There is no file to deform; name images, label maps, points or meshes.")
    if isinstance(field, sitk.Image):
        field = SavedField([sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))])
    elif not isinstance(field, SavedField):
        field = read_deformation(field)
    folder = make_output_folder(output, besides)
    names = _names(asked)
    done: list[Applied] = []
    problems: list[tuple[Path, ImageError]] = []
    for number, ((path, kind), name) in enumerate(zip(asked, names, strict=True)):
        try:
            done.append(_apply(field, path, kind, folder / name, inverse))
        except ImageError as error:
            problems.append((path, error))
        if on_file is not None:
            on_file(number + 1, len(asked))
    if not done and len(asked) == 1:
        raise problems[0][1]
    if not done:
        raise ImageError(f"None of the {len(asked)} files can be used; the first problem: {problems[0][1]}")
    for path, problem in problems:
        warnings.warn(f"Left out: '{shown(path.name)}': {problem}", FallbackWarning, stacklevel=2)
    unsure = [one for one in done if one.not_exact]
    if unsure:
        warnings.warn(
            f"{sum(one.not_exact for one in unsure)} point(s) of {listed([one.source.name for one in unsure])} lie "
            "where the field folds and has no inverse; they are placed as near as possible.",
            FallbackWarning,
            stacklevel=2,
        )
    return done


def _split(path: Path, kind: str) -> tuple[str, str]:
    """Return the stem of a file's name, and the suffix of its result."""
    name = path.name.lower()
    known = sorted((*POINT_SUFFIXES, ".seg.nrrd", *SUFFIXES, *MESH_SUFFIXES), key=len, reverse=True)
    length = (
        0
        if not path_problem(path) and path.is_dir()
        else next((len(suffix) for suffix in known if name.endswith(suffix)), 0)
    )
    stem, suffix = path.name[: len(name) - length] or "file", path.name[len(name) - length :]
    return stem, suffix if kind in (POINTS, MESH) or suffix.lower() in _WRITTEN else ".nii.gz"


def _names(asked: Sequence[tuple[Path, str]]) -> list[str]:
    """Return a different name for the result of each file, and that of the file where possible."""
    pairs = [_split(path, kind or kind_of(path)) for path, kind in asked]
    stems = [file_names([stem])[0] for stem, _ in pairs]
    if len({(stem + suffix).lower() for stem, (_, suffix) in zip(stems, pairs, strict=True)}) < len(pairs):
        stems = file_names(stems)
    return [stem + suffix for stem, (_, suffix) in zip(stems, pairs, strict=True)]


def _apply(field: SavedField, path: Path, asked: str, out: Path, inverse: bool) -> Applied:
    kind = asked or kind_of(path)
    if kind == POINTS:
        found = read_point_file(path, field.dimension)
        d = field.dimension
        moved, wrong = _carried(field, found.points[:, :d], path, inverse)
        with reading(path, kind):
            text = found.rewritten(np.concatenate([moved, found.points[:, d:]], axis=1))
        write_text(out, text)
        return Applied(path, out, kind, wrong)
    if kind == MESH:
        if field.dimension != 3:
            raise ImageError("A mesh needs a 3D field; choose another field.")
        mesh = read_mesh(path)
        moved, wrong = _carried(field, mesh.vertices, path, inverse)
        normals = None if mesh.normals is None else _turned(field, mesh.vertices, mesh.normals, inverse)
        with reading(path, kind):
            data = mesh.rewritten(moved, normals)
        write_bytes(out, data)
        return Applied(path, out, kind, wrong)
    image = read_voxels(path)
    return Applied(path, out, _apply_to_image(field, image, path, asked, out, inverse))


def _carried(field: SavedField, points: np.ndarray, path: Path, inverse: bool) -> tuple[np.ndarray, int]:
    """Carry points along with the anatomy: with the inverse, or back with the field itself."""
    if field.place is not None and not inside(points, field.place).any():
        raise ImageError(
            f"None of the {len(points)} points of '{path}' lies where the field is; choose points of the scan that was "
            "deformed, and check whether they are LPS."
        )
    return (field.to_original(points), 0) if inverse else field.to_new(points)


def _turned(field: SavedField, vertices: np.ndarray, normals: np.ndarray, inverse: bool) -> np.ndarray:
    """Carry normals along: two directions in the surface are carried, and the new normal is at right angles to both."""
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    unit = normals / np.where(length > 0, length, 1)
    helper = np.eye(3)[np.abs(unit).argmin(axis=1)]
    first = np.cross(unit, helper)
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    second = np.cross(unit, first)

    def carried(points: np.ndarray) -> np.ndarray:
        return field.to_original(points) if inverse else field.to_new(points)[0]

    a, b = (carried(vertices + _STEP * t) - carried(vertices - _STEP * t) for t in (first, second))
    new = np.cross(a, b)
    size = np.linalg.norm(new, axis=1, keepdims=True)
    # A determinant below zero would turn the normal inside out; such places are folded.
    return np.where(size > 0, new / np.where(size > 0, size, 1), unit) * np.where(length > 0, length, 0)


def _apply_to_image(field: SavedField, image: sitk.Image, path: Path, kind: str, out: Path, inverse: bool) -> str:
    """Deform an image or label map on its own grid and write it; return which of the two it is."""
    channels = image.GetNumberOfComponentsPerPixel()
    if channels > 1 and channels == image.GetDimension() and image.GetPixelID() in _FLOAT_VECTORS:
        raise ImageError(f"'{path}' is a displacement field, and no image; choose images, labels, points or meshes.")
    parts = [sitk.VectorIndexSelectionCast(image, k) for k in range(channels)] if channels > 1 else [image]
    parts = [require_scalar_image(part, str(path), need_contrast=False) for part in parts]
    grid = parts[0]
    if grid.GetDimension() != field.dimension:
        raise ImageError(
            f"'{path}' is {grid.GetDimension()}D but the field is {field.dimension}D; choose files of the scan that "
            "was deformed."
        )
    shared = 1.0 if field.place is None else overlap(grid, field.place)
    if shared == 0 or (shared < LEAST_OVERLAP and not field.is_local):
        raise ImageError(
            f"'{path}' does not lie where the field is (they overlap by {shared:.0%} of the smaller one); choose files "
            "of the scan that was deformed."
        )
    kind = kind or (LABEL if all(map(looks_like_label, parts)) else IMAGE)
    transform = field.transform(grid, inverse)
    if kind == LABEL:
        warped = [warp_label(fit_label(part, grid, str(path)), grid, transform) for part in parts]
    else:
        warped = [warp_image(part, grid, transform) for part in parts]
    _write(warped[0] if channels == 1 else sitk.Compose(warped), image, out)
    return kind


def _write(result: sitk.Image, like: sitk.Image, out: Path) -> None:
    """Write an image in the format of its name."""
    if out.name.lower().endswith(".nii.gz") and result.GetNumberOfComponentsPerPixel() == 1:
        write_image(out, result, fast=True)
        return
    if out.suffix.lower() == ".nrrd":
        # Names and colors of segments. Their extents have changed; that of the image covers them all.
        whole = " ".join(f"0 {n - 1}" for n in result.GetSize())
        for key in like.GetMetaDataKeys():
            if not key.startswith(("ITK_", "NRRD_")):
                segment = key.startswith("Segment") and key.endswith("_Extent")
                result.SetMetaData(key, whole if segment else like.GetMetaData(key))
    failure = ImageError(f"'{out.name}' cannot hold the deformed image; convert the original to .nii.gz first.")
    write_itk(out, result, failure)
