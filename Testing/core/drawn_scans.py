"""Drawn scans with the size and the gray values of real ones, for the tests of models' fits."""

import numpy as np
import SimpleITK as sitk


def scan(values, spacing):
    """An image of these values (z, y, x); spacing in mm, one number or one for each axis (x, y, z)."""
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing([spacing] * values.ndim if np.isscalar(spacing) else spacing)
    return image


def axes(side):
    return np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij")


def head(side=64, millimeters=230.0):
    """Skin, skull, brain of two tissues and ventricles, bright as in T1."""
    z, y, x = axes(side)
    radius = np.sqrt((x / 0.62) ** 2 + (y / 0.78) ** 2 + (z / 0.7) ** 2)
    values = np.zeros(radius.shape)
    for inside, gray in ((1.0, 200), (0.93, 30), (0.86, 60), (0.8, 110)):
        values[radius < inside] = gray
    white = np.sqrt((x / 0.45) ** 2 + (y / 0.6) ** 2 + (z / 0.5) ** 2)
    values[white + 0.08 * np.sin(9 * x) * np.sin(8 * y) * np.sin(9 * z) < 0.9] = 160
    values[((np.abs(x) - 0.13) / 0.07) ** 2 + (y / 0.25) ** 2 + ((z - 0.05) / 0.2) ** 2 < 1] = 45
    return scan(values + np.random.default_rng(0).normal(0, 3, values.shape), millimeters / side)


def body(side=64, millimeters=320.0):
    """A trunk with lungs, spine and liver in Hounsfield units."""
    z, y, x = axes(side)
    values = np.full(x.shape, -1000.0)
    values[(x / 0.85) ** 2 + (y / 0.6) ** 2 < 1] = 40
    for side_of_body in (-1, 1):
        values[((x - side_of_body * 0.4) / 0.28) ** 2 + (y / 0.4) ** 2 + ((z + 0.2) / 0.7) ** 2 < 1] = -800
    values[(x / 0.12) ** 2 + ((y - 0.4) / 0.12) ** 2 < 1] = 500
    values[((x - 0.05) / 0.3) ** 2 + ((y + 0.05) / 0.25) ** 2 + ((z + 0.5) / 0.3) ** 2 < 1] = 60
    return scan(values + np.random.default_rng(0).normal(0, 8, values.shape), millimeters / side)


def thick_slices(slices=8):
    """A stack of slices of the head, 10 mm apart, with pixels of 2 mm."""
    values = sitk.GetArrayFromImage(head(112))[20:100]
    return scan(values[:: 80 // slices], (2.0, 2.0, 10.0))


def noise(millimeters=230.0):
    return scan(np.random.default_rng(0).normal(100, 20, (48, 48, 48)), millimeters / 48)
