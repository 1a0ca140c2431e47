"""Draw a slice of an image as an RGB picture: gray values, contours of labels, and a grid bent by a field.

Thumbnails of the quality page and figures both come from here. This module does not need PyTorch or matplotlib.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .spatial.coordinates import direction_matrix
from .spatial.resampling import field_on_grid

# RGB, 0..255.
BACKGROUND = np.full(3, 16, np.uint8)
GRID_COLOR = np.asarray([79, 195, 247], np.uint8)
LABEL_COLORS = np.asarray(
    [[255, 202, 40], [239, 83, 80], [102, 187, 106], [171, 71, 188], [255, 112, 67], [38, 198, 218], [236, 64, 122]],
    np.uint8,
)
# Parts of the image and of the grid's color where a line lies over the image.
_IMAGE_PART, GRID_PART = 0.45, 0.55
# These percentiles of the gray values become black and white.
CONTRAST_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Style:
    """Size and fineness of pictures.

    Attributes:
        side: pixels along the longest side of the slice.
        lines: grid lines along the longest side of the slice.
        line_width, contour_width: of grid lines and of contours, pixels.
        smooth: enlarge gray values with cubic splines and round the corners of labels; otherwise gray values are
            interpolated linearly and labels are enlarged voxel by voxel.
    """

    side: int
    lines: int
    line_width: int = 1
    contour_width: int = 1
    smooth: bool = False


THUMBNAIL = Style(side=144, lines=12)
# About twice as many pixels as a figure shows, so that its lines come out smooth.
FIGURE = Style(side=640, lines=24, line_width=2, contour_width=4, smooth=True)

# For a picture that is written beside each result.
RESULT = Style(side=384, lines=20, contour_width=2, smooth=True)


@dataclass(frozen=True)
class Plane:
    """A slice of a volume. A 2D image has one slice only, and every plane stands for it.

    Attributes:
        axis: the image axis that counts the layers, in SimpleITK's order.
        layer: number of the layer.
    """

    axis: int = 2
    layer: int = 0

    @property
    def in_plane(self) -> list[int]:
        """The image axes across and down the slice's array, in SimpleITK's order."""
        return [axis for axis in range(3) if axis != self.axis]

    def cut(self, image: sitk.Image) -> np.ndarray:
        """Copy the slice out of an image: (rows, columns), for vector images (rows, columns, channels)."""
        view = sitk.GetArrayViewFromImage(image)
        return np.array(view) if image.GetDimension() == 2 else np.take(view, self.layer, axis=2 - self.axis)

    def field(self, field: sitk.Image, image: sitk.Image) -> np.ndarray:
        """Sample a displacement field on the slice of ``image``: (rows, columns, d), LPS millimeters."""
        if image.GetDimension() == 2:
            return field_on_grid(field, image, 0, image.GetSize()[1])
        size, start = list(image.GetSize()), [0, 0, 0]
        size[self.axis], start[self.axis] = 1, self.layer
        slab = sitk.RegionOfInterest(image, size, start)
        return field_on_grid(field, slab, 0, size[2]).squeeze(2 - self.axis)

    def upright(self, picture: np.ndarray, image: sitk.Image) -> np.ndarray:
        """Flip a picture of the slice of ``image`` the way radiologists look at it; 2D images stay as they are.

        Head or front up, the patient's right or front on the left. Rows and columns are not exchanged.

        Args:
            picture: (rows, columns) or (rows, columns, 3).
        """
        if image.GetDimension() == 2:
            return picture
        # Each axis by itself: DICOMOrient never names two axes alike. Its names for images that are turned by more
        # than 45 degrees would flip some thumbnails, whose digests are in records.
        columns = direction_matrix(image)[:, self.in_plane].T
        (across, right), (down, low) = ((int(np.abs(c).argmax()), c[np.abs(c).argmax()]) for c in columns)
        # LPS: the third axis points to the head, the others to the left and to the back.
        picture = picture[::-1] if (low > 0) == (down == 2) else picture
        return picture[:, ::-1] if right < 0 and across != 2 else picture


def fullest_plane(image: sitk.Image, label: sitk.Image | None, axis: int = 2) -> Plane:
    """Choose the layer along ``axis`` that shows most of the label, or the middle one where there is none."""
    if image.GetDimension() == 2:
        return Plane()
    if label is not None:
        others = tuple(a for a in range(3) if a != 2 - axis)
        counts = np.count_nonzero(sitk.GetArrayViewFromImage(label), axis=others)
        if counts.any():
            return Plane(axis, int(counts.argmax()))
    return Plane(axis, image.GetSize()[axis] // 2)


def joined_if_many(label: sitk.Image) -> sitk.Image:
    """Join the structures of a label with more values than there are colors: their contours would hide the image."""
    values = np.unique(sitk.GetArrayViewFromImage(label))
    return label if np.count_nonzero(values) <= len(LABEL_COLORS) else label != 0


def upright_slice(image: sitk.Image, plane: Plane) -> sitk.Image:
    """Cut one slice out of a volume, as a volume with its axes in the order of the patient's (LPS)."""
    size, start = list(image.GetSize()), [0, 0, 0]
    size[plane.axis], start[plane.axis] = 1, plane.layer
    turned: sitk.Image = sitk.DICOMOrient(sitk.RegionOfInterest(image, size, start), "LPS")
    return turned


def contrast_window(values: np.ndarray) -> tuple[float, float]:
    """Return the gray values to be shown as black and as white."""
    low, high = np.percentile(values, CONTRAST_PERCENTILES)
    return low, high


class SlicePicture:
    """The picture of one slice in true proportions, drawn on in steps.

    Args:
        image: 2D or 3D, one value per voxel.
        plane: the slice.
        window: gray values for black and white; by default those of the slice itself.

    Attributes:
        rgb: (rows, columns, 3) uint8, rows and columns as the voxels are stored.
    """

    def __init__(
        self, image: sitk.Image, plane: Plane, style: Style = THUMBNAIL, window: tuple[float, float] | None = None
    ) -> None:
        self._image, self._plane, self._style = image, plane, style
        across, down = plane.in_plane
        self._spacing = image.GetSpacing()[down], image.GetSpacing()[across]
        gray = plane.cut(image).astype(np.float32)
        self._longest = max(n * s for n, s in zip(gray.shape, self._spacing, strict=True))
        pixels = style.side / self._longest
        self._scale = pixels * self._spacing[0], pixels * self._spacing[1]
        low, high = contrast_window(gray) if window is None else window
        gray = ((gray - low) / max(float(high - low), 1e-6)).clip(0, 1)
        shown = ndimage.zoom(gray, self._scale, order=3 if style.smooth else 1)
        self.rgb = np.repeat((shown.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)

    def draw_grid(self, field: sitk.Image, *, alone: bool = False) -> None:
        """Draw the lines of a regular grid where the deformation takes them.

        Args:
            field: displacement field, LPS millimeters, pointing to where the image was read.
            alone: on the background, in place of the image.
        """
        rows, columns = self._plane.cut(self._image).shape
        across, down = self._plane.in_plane
        along = self._plane.field(field, self._image).astype(np.float64) @ direction_matrix(self._image)
        step = self._longest / self._style.lines
        y = (np.arange(rows)[:, None] * self._spacing[0] + along[..., down]) / step
        x = (np.arange(columns)[None] * self._spacing[1] + along[..., across]) / step
        on = np.zeros(self.rgb.shape[:2], bool)
        for position in (y, x):
            # A line passes where the number of the grid's cell changes.
            cell = np.floor(ndimage.zoom(position, self._scale, order=1))
            on[:, 1:] |= cell[:, 1:] != cell[:, :-1]
            on[1:] |= cell[1:] != cell[:-1]
        on = ndimage.maximum_filter(on, size=self._style.line_width)
        if alone:
            self.rgb[:] = BACKGROUND
            self.rgb[on] = GRID_COLOR
        else:
            self.rgb[on] = (_IMAGE_PART * self.rgb[on] + GRID_PART * GRID_COLOR).astype(np.uint8)

    def draw_contours(self, label: sitk.Image) -> None:
        """Draw the outline of each value of ``label``, integers on the grid of the image, in a color of its own."""
        enlarge = _enlarge_smoothly if self._style.smooth else _enlarge_voxels
        values = sitk.GetImageFromArray(enlarge(self._plane.cut(label), self._scale))
        contours = sitk.GetArrayFromImage(sitk.LabelContour(values))
        contours = ndimage.maximum_filter(contours, size=self._style.contour_width)
        edge = contours != 0
        self.rgb[edge] = LABEL_COLORS[(contours[edge].astype(np.int64) - 1) % len(LABEL_COLORS)]

    def upright(self) -> np.ndarray:
        """Return the picture the way radiologists look at it: (rows, columns, 3) uint8."""
        return self._plane.upright(self.rgb, self._image)

    def upright_square(self) -> np.ndarray:
        """Return the upright picture in the middle of a square: (side, side, 3) uint8."""
        side = self._style.side
        square = np.full((side, side, 3), BACKGROUND, np.uint8)
        rows, columns = (min(side, n) for n in self.rgb.shape[:2])
        top, left = (side - rows) // 2, (side - columns) // 2
        square[top : top + rows, left : left + columns] = self.rgb[:rows, :columns]
        return self._plane.upright(square, self._image)


def _enlarge_voxels(names: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    enlarged: np.ndarray = ndimage.zoom(names, scale, order=0)
    return enlarged


def _enlarge_smoothly(names: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Give each pixel the value that has the largest share of it."""
    values = np.unique(names)
    shares = [ndimage.zoom((names == value).astype(np.float32), scale, order=3) for value in values]
    winners: np.ndarray = values[np.argmax(shares, axis=0)]
    return winners
