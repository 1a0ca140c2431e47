"""Draws the chest that comes with DRDM: a phantom of a CT with contrast agent, and its segmentation.

Nothing in it is from a scan. ``python Resources/Sample/make_chest.py`` writes chest.nii.gz and chest.seg.nrrd beside
itself. Coordinates are millimeters from the middle of the chest: x to the left, y to the back, z to the head.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

SIZE, SPACING = (144, 112, 100), (2.6, 2.6, 3.0)
LABELS = {"left lung": 1, "right lung": 2, "heart": 3, "aorta": 4, "liver": 5, "spine": 6, "trachea": 7, "spleen": 8}
COLORS = {
    "left lung": (197, 165, 145),
    "right lung": (172, 138, 115),
    "heart": (206, 110, 84),
    "aorta": (224, 97, 76),
    "liver": (221, 130, 101),
    "spine": (226, 202, 134),
    "trachea": (182, 228, 255),
    "spleen": (157, 108, 162),
}
AIR, FAT, MUSCLE, BLOOD, HEART, LIVER, SPLEEN, CORTEX, MARROW = -1000, -95, 55, 210, 105, 110, 125, 520, 230
SEED = 7
_FIRST_RIB, _RIBS, _BETWEEN_RIBS = 118.0, 10, 25.0
_BETWEEN_VERTEBRAE, _DISC = 25.0, 6.0
# Directions of the vessels of the right lung at its hilum.
_BRANCHES = [
    (1, 0, 0.9),
    (1, 0.6, 0.1),
    (1, -0.6, 0.3),
    (0.8, 0.3, -0.9),
    (0.9, -0.3, -0.6),
    (0.8, 0.9, -0.5),
    (0.6, -0.3, 1.2),
    (1.0, 0.2, -0.2),
]

Array = np.ndarray


def grid() -> tuple[Array, Array, Array]:
    """Return the coordinates of the voxels: x, y, z, (Z, Y, X) each."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SIZE, SPACING, strict=True)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij")
    return x, y - 2, z


def ellipsoid(x: Array, y: Array, z: Array, center: tuple[float, ...], radii: tuple[float, ...]) -> Array:
    """Return the relative distance from an ellipsoid's center; 1 on its surface."""
    parts = [(a - c) / r for a, c, r in zip((x, y, z), center, radii, strict=True)]
    return np.sqrt(sum(part**2 for part in parts))


class Tubes:
    """The distance of voxels to curves, relative to the radius of each curve."""

    def __init__(self) -> None:
        self._points: list[Array] = []

    def add(self, points: list[tuple[float, float, float]], radii: list[float]) -> None:
        """Add a curve through points, smoothed, with a radius at each."""
        at = np.linspace(0, 1, len(points))
        fine = np.linspace(0, 1, 40 * len(points))
        curve = np.stack([np.interp(fine, at, [p[k] for p in points]) for k in range(3)] + [np.interp(fine, at, radii)])
        for k in range(4):
            curve[k] = ndimage.gaussian_filter1d(curve[k], 14, mode="nearest")
        self._points.append(curve.T)

    def inside(self, x: Array, y: Array, z: Array, wall: float = 0.0) -> Array:
        """Return the mask of the tubes, widened by ``wall`` mm."""
        mask = np.zeros(x.shape, bool)
        corner = np.array([x[0, 0, 0], y[0, 0, 0], z[0, 0, 0]])
        for px, py, pz, r in np.concatenate(self._points):
            reach = r + wall
            low = np.floor((np.array([px, py, pz]) - reach - corner) / SPACING).astype(int)
            high = np.ceil((np.array([px, py, pz]) + reach - corner) / SPACING).astype(int) + 1
            low, high = np.clip(low, 0, SIZE), np.clip(high, 0, SIZE)
            part = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
            mask[part] |= (x[part] - px) ** 2 + (y[part] - py) ** 2 + (z[part] - pz) ** 2 < reach**2
        return mask


def vessels(tubes: Tubes, random: np.random.Generator, start: Array, direction: Array, radius: float) -> None:
    """Add a branching vessel of the lung."""
    if radius < 1.05:
        return
    length = 6 * radius + random.uniform(2, 8)
    middle = start + direction * length / 2 + random.normal(0, 2, 3)
    end = start + direction * length
    tubes.add([tuple(start), tuple(middle), tuple(end)], [radius, radius * 0.92, radius * 0.85])
    for _ in range(2):
        turned = direction + random.normal(0, 0.6, 3)
        vessels(tubes, random, end, turned / np.linalg.norm(turned), radius * random.uniform(0.7, 0.88))


def draw() -> tuple[Array, Array]:
    """Return the image in Hounsfield units, and the label map."""
    random = np.random.default_rng(SEED)
    x, y, z = grid()
    label = np.zeros(x.shape, np.uint8)
    image = np.full(x.shape, float(AIR))

    # The outline of the body, wider at the shoulders; skin, fat and muscle.
    shoulders = 1 / (1 + np.exp(-(z - 95) / 14))
    side = 163 + 14 * np.cos(z / 90) + 6 * shoulders
    depth = 112 + 6 * np.cos((z + 40) / 70) - 18 * shoulders
    angle = np.arctan2(y, x)
    outline = (np.abs(x / side) ** 2.5 + np.abs(y / depth) ** 2.5) ** (1 / 2.5) + 0.015 * np.cos(3 * angle + 1)
    under_skin = (1 - outline) * (depth + side) / 2
    body = outline < 1
    image[body] = FAT
    image[body & (under_skin < 2.5)] = 10
    fat = 13 + 6 * np.abs(np.cos(angle)) ** 2 + 3 * np.cos(5 * angle)
    image[body & (under_skin > fat)] = MUSCLE
    # Layers of fat between the muscles of the back and of the chest.
    streaks = ndimage.gaussian_filter(random.normal(size=x.shape), (6, 1.2, 3))
    image[body & (under_skin > fat) & (streaks > 1.6 * streaks.std())] = FAT / 2

    # The cage of the ribs, narrow at the top.
    narrow = np.sqrt(np.clip(1 - ((z + 75) / 232) ** 2, 0.02, 1))
    cage_x, cage_y = 130 * narrow, 84 * narrow**0.7
    cage = np.sqrt((x / cage_x) ** 2 + ((y + 2) / cage_y) ** 2)
    inside = cage < 0.96

    # The diaphragm: a dome on each side, the right one higher.
    dome = np.maximum(
        -62 - ((x + 58) ** 2 / 95 + (y + 5) ** 2 / 120) * 0.9, -74 - ((x - 62) ** 2 / 90 + (y + 5) ** 2 / 120) * 0.9
    )
    dome = np.maximum(dome, -135.0)
    chest = inside & (z > dome)

    # Large vessels and airways.
    aorta, others = Tubes(), Tubes()
    aorta.add(
        [
            (12, -8, -12),
            (-2, -22, 20),
            (0, -18, 48),
            (12, 4, 62),
            (22, 32, 52),
            (24, 42, 20),
            (22, 43, -50),
            (14, 40, -160),
        ],
        [14, 15, 14, 13, 12, 11.5, 11, 10.5],
    )
    others.add([(-27, -14, 120), (-26, -14, 50), (-24, -10, -10)], [8, 9, 9])
    others.add([(22, -22, -8), (20, -14, 14), (26, 2, 20), (38, 8, 14)], [13, 13, 11, 8])
    others.add([(20, -10, 16), (-8, 0, 14), (-38, 8, 10)], [11, 9, 8])
    others.add([(4, -18, 64), (18, -14, 110), (20, -8, 150)], [5, 4.5, 4])
    others.add([(16, 0, 62), (30, 2, 110), (34, 4, 150)], [5, 4.5, 4])
    airway, gullet = Tubes(), Tubes()
    airway.add([(0, 2, 160), (0, 8, 90), (0, 13, 42)], [8.5, 8.5, 8.5])
    airway.add([(0, 13, 44), (-16, 14, 28), (-40, 12, 12)], [7, 6.5, 5])
    airway.add([(0, 13, 44), (18, 14, 24), (42, 14, 10)], [7, 6, 5])
    gullet.add([(4, 24, 150), (6, 30, 40), (10, 34, -60), (20, 20, -120)], [6, 6, 6, 7])
    # Heart and mediastinum between the lungs.
    turned_x, turned_y = 0.8 * x - 0.6 * y, 0.6 * x + 0.8 * y
    heart = ellipsoid(turned_x, turned_y, z, (32, -8, -42), (56, 40, 46))
    between = (heart < 1.02) | aorta.inside(x, y, z, 4) | others.inside(x, y, z, 6) | gullet.inside(x, y, z, 4)
    between |= airway.inside(x, y, z, 3) & (np.abs(x) < 26) | (np.sqrt(x**2 + (y - 54) ** 2) < 21)
    between |= (np.abs(x - 2) < 5) & (y < -20) | (np.abs(x - 2) < 11) & (y > -30) & (y < 60)
    mediastinum = ndimage.gaussian_filter(between.astype(float), (1.5, 2.2, 2.2)) > 0.42
    lungs = chest & ~mediastinum
    lungs = ndimage.binary_opening(lungs, iterations=1)
    lung_values = -865 + 0.55 * (y + 80) + 22 * ndimage.gaussian_filter(random.normal(size=x.shape), 1.5) / 0.1
    image[inside] = FAT
    image[lungs] = lung_values[lungs]
    label[lungs & (x > 0)], label[lungs & (x < 0)] = LABELS["left lung"], LABELS["right lung"]

    # Vessels from both hila.
    tree = Tubes()
    for sign in (-1, 1):
        for direction in _BRANCHES:
            towards = np.array([sign * direction[0], direction[1], direction[2]], float)
            hilum = np.array([sign * 34.0, 8.0, 5.0])
            vessels(tree, random, hilum, towards / np.linalg.norm(towards), random.uniform(4.2, 5.6))
    in_lungs = ndimage.binary_erosion(lungs, iterations=2)
    near = ndimage.binary_dilation(lungs, iterations=3) & inside & (z > dome)
    blood = tree.inside(x, y, z)
    image[blood & (in_lungs | (near & mediastinum))] = 120

    # The heart: muscle, four chambers with contrast agent.
    image[heart < 1.08] = FAT
    image[heart < 1.0] = HEART
    label[heart < 1.0] = LABELS["heart"]
    for center, radii, value in [
        ((46, 6, -50), (30, 20, 27), BLOOD),
        ((30, -24, -48), (38, 14, 30), BLOOD - 40),
        ((4, 14, -32), (22, 15, 20), BLOOD),
        ((-6, -12, -38), (20, 17, 24), BLOOD - 50),
    ]:
        image[ellipsoid(turned_x, turned_y, z, center, radii) < 1] = value

    # Large vessels.
    image[others.inside(x, y, z)] = BLOOD - 20
    in_aorta = aorta.inside(x, y, z)
    image[aorta.inside(x, y, z, 1.8)] = MUSCLE
    image[in_aorta] = BLOOD
    label[in_aorta] = LABELS["aorta"]

    # Trachea, bronchi, esophagus.
    image[gullet.inside(x, y, z)] = 45
    hollow = airway.inside(x, y, z)
    image[airway.inside(x, y, z, 2.2)] = 60
    image[hollow] = AIR
    label[hollow] = LABELS["trachea"]

    # Below the diaphragm: liver, spleen, stomach, fat.
    below = inside & (z <= dome - 2)
    texture = 4 * ndimage.gaussian_filter(random.normal(size=x.shape), 1.2) / 0.15
    liver = below & (x < 42 - 0.35 * (y + 60) - 0.3 * (z + 100)) & (cage < 0.93) & (y < 60)
    image[liver] = (LIVER + texture)[liver]
    portal = Tubes()
    vessels(portal, random, np.array([-5.0, 5.0, -125.0]), np.array([-0.85, -0.2, 0.45]), 6.0)
    vessels(portal, random, np.array([-15.0, 20.0, -115.0]), np.array([-0.75, 0.5, 0.25]), 5.0)
    image[portal.inside(x, y, z) & liver] = 165
    spleen = below & (ellipsoid(x, y, z, (88, 36, -118), (26, 36, 44)) < 1) & (cage < 0.93)
    image[spleen] = (SPLEEN + texture)[spleen]
    stomach = below & (ellipsoid(x, y, z, (56, -22, -122), (40, 32, 36)) < 1) & ~liver
    image[stomach] = 60
    image[stomach & (ellipsoid(x, y, z, (56, -22, -122), (36, 28, 32)) < 1)] = 25
    image[stomach & (y < -28) & (ellipsoid(x, y, z, (56, -22, -122), (36, 28, 32)) < 1)] = AIR
    label[liver], label[spleen] = LABELS["liver"], LABELS["spleen"]
    legs = Tubes()
    legs.add([(14, 34, -95), (16, 44, -160)], [9, 11])
    legs.add([(-16, 34, -95), (-16, 44, -160)], [9, 11])
    image[legs.inside(x, y, z) & below & ~in_aorta] = MUSCLE

    bone, marrow, cartilage = _skeleton(x, y, z, cage_x, cage_y)
    image[cartilage & body] = 95
    image[bone & body & (under_skin > 4)] = CORTEX
    image[marrow & body] = (MARROW + 3 * texture)[marrow & body]
    spine = (bone | marrow) & (np.abs(x) < 32) & (y > 25)
    label[spine] = LABELS["spine"]

    # The table under the patient.
    table = 128 - (x / 230) ** 2 * 60
    image[(np.abs(y - table) < 2.5) & ~body & (np.abs(x) < 175)] = -150
    image[(y - table > 2.5) & (y - table < 14) & (np.abs(x) < 170)] = -930

    image = ndimage.gaussian_filter(image, (0.45, 0.55, 0.55))
    noise = ndimage.gaussian_filter(random.normal(size=x.shape), (0.3, 0.7, 0.7))
    image += 13 * noise / noise.std() * np.clip(0.7 + (image + 1000) / 2500, 0.5, 1.2)
    image[image < -960] = AIR
    return np.round(np.clip(image, AIR, 1400) / 8) * 8, label


def _skeleton(x: Array, y: Array, z: Array, cage_x: Array, cage_y: Array) -> tuple[Array, Array, Array]:
    """Return masks of cortical bone, marrow and cartilage."""
    outer, inner = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    cartilage = np.zeros(x.shape, bool)

    # Vertebrae with discs between them, arches and processes around the canal.
    center_y = 50 + 8 * np.cos(z / 110)
    at = (z + 1000) % _BETWEEN_VERTEBRAE
    is_bone = at > _DISC
    waist = 1 - 0.10 * np.cos(2 * np.pi * (at - _DISC) / (_BETWEEN_VERTEBRAE - _DISC))
    width = 17 - z / 60
    round_ = np.sqrt((x / width) ** 2 + ((y - center_y) / (width * 0.88)) ** 2)
    vertebra = round_ < 1.0 / np.where(is_bone, 2 - waist, 1.0)
    cartilage |= vertebra & ~is_bone
    outer |= vertebra & is_bone
    inner |= (round_ < 0.86) & is_bone & (at > _DISC + 2) & (at < _BETWEEN_VERTEBRAE - 2)
    canal = np.sqrt(x**2 + (y - center_y - 25) ** 2)
    arch = (canal < 13.5) & (canal > 8.5) & (at > 9) & (at < 23)
    spinous = (np.abs(x) < 3.5) & (y > center_y + 34) & (y < center_y + 52 - 0.3 * at) & (at > 4) & (at < 18)
    across = (np.abs(x) < 30) & (np.abs(y - center_y - 24) < 5) & (canal > 9) & (at > 12) & (at < 20)
    outer |= arch | spinous | across
    cartilage |= canal < 8

    # Ribs, from the spine down to the front; their ends are cartilage.
    turn = np.arctan2(np.abs(x) / cage_x, y / cage_y + 0.05)
    out = (np.sqrt((x / cage_x) ** 2 + ((y + 2) / cage_y) ** 2) - 1.02) * np.sqrt(cage_x * cage_y)
    for number in range(_RIBS):
        height = _FIRST_RIB - number * _BETWEEN_RIBS - 34 * (1 - np.cos(turn)) / (1 + 0.12 * (4 - number) ** 2 / 4)
        shape = np.sqrt((out / 4.0) ** 2 + ((z - height) / 6.5) ** 2)
        where = (turn > 0.22) & (turn < (2.95 if number < 7 else 2.2))
        front = turn > 2.25
        outer |= (shape < 1) & where & ~front
        inner |= (shape < 0.62) & where & ~front
        cartilage |= (shape < 1) & where & front
    # Breastbone, collarbones, shoulder blades.
    chest_wall = -(cage_y + 5)
    breastbone = (np.abs(x) < 13 + z / 25) & (np.abs(y - chest_wall) < 5.5) & (z > -45) & (z < 88)
    outer |= breastbone
    inner |= breastbone & (np.abs(x) < 11 + z / 25) & (np.abs(y - chest_wall) < 3) & (z > -42) & (z < 85)
    bones, cores = Tubes(), Tubes()
    for sign in (-1, 1):
        path = [(sign * 16, -58, 96), (sign * 60, -62, 112), (sign * 110, -20, 126), (sign * 140, 10, 122)]
        bones.add(path, [7, 6, 6, 6])
        cores.add(path, [4.5, 3.5, 3.5, 3.5])
        plate = 92 - 0.42 * (np.abs(x) - 75) - 0.05 * (z - 60)
        blade = (np.abs(y - plate) < 2.8) & (np.sign(x) == sign) & (z > 8) & (z < 118)
        outer |= blade & (np.abs(x) > 68 + 0.15 * (118 - z)) & (np.abs(x) < 78 + 0.55 * (z - 8))
        path = [(sign * 72, 92, 96), (sign * 105, 86, 108), (sign * 138, 40, 118)]
        bones.add(path, [4, 5, 8])
    outer |= bones.inside(x, y, z)
    inner |= cores.inside(x, y, z)
    return outer, inner & outer, cartilage & ~outer


def write_segmentation(label: sitk.Image, path: Path) -> None:
    """Write a label map as a segmentation of 3D Slicer, with names and colors."""
    for number, (name, value) in enumerate(LABELS.items()):
        entries = {
            "ID": f"Segment_{value}",
            "Name": name,
            "LabelValue": str(value),
            "Layer": "0",
            "Color": " ".join(f"{part / 255:.3f}" for part in COLORS[name]),
            "Extent": " ".join(f"0 {n - 1}" for n in SIZE),
        }
        for key, text in entries.items():
            label.SetMetaData(f"Segment{number}_{key}", text)
    sitk.WriteImage(label, str(path), useCompression=True)


def main(folder: Path) -> None:
    """Write the image and the segmentation."""
    made = []
    for array, kind in zip(draw(), (np.int16, np.uint8), strict=True):
        image = sitk.GetImageFromArray(array.astype(kind))
        image.SetSpacing(SPACING)
        image.SetOrigin([-(n - 1) / 2 * s for n, s in zip(SIZE, SPACING, strict=True)])
        made.append(image)
    sitk.WriteImage(made[0], str(folder / "chest.nii.gz"), useCompression=True)
    write_segmentation(made[1], folder / "chest.seg.nrrd")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
