"""Registration programs with the settings that ``registration_programs`` compares.

Each function registers a moving to a fixed image and returns the transform from points of the fixed to points of the
moving image. Files of ANTs and elastix are written into a folder and read as ``drdm score`` reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from DRDMLib.challenge.transforms import read_result

Program = Callable[[sitk.Image, sitk.Image, Path], sitk.Transform]


def nothing(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Leave the images as they are."""
    return sitk.Transform(fixed.GetDimension(), sitk.sitkIdentity)


def affine(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with SimpleITK's affine transform and mutual information."""
    method = _method()
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200, 0.5)
    method.SetOptimizerScalesFromPhysicalShift()
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)


def _method() -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.3, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1.0, 0.0])
    return method


def demons(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with SimpleITK's fast symmetric demons: 50 iterations, without a pose."""
    return sitk.DisplacementFieldTransform(_demons(fixed, _matched(fixed, moving, None), 50, 1.5, None))


def demons_better(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with an affine transform, then with demons on two grids."""
    first = affine(fixed, moving, folder)
    placed = _matched(fixed, moving, first)
    coarse = sitk.Shrink(sitk.SmoothingRecursiveGaussian(fixed, 1.0), [2] * 3)
    field = _demons(coarse, sitk.Resample(placed, coarse), 100, 1.5, None)
    field = _demons(fixed, placed, 100, 1.5, sitk.Resample(field, fixed, sitk.Transform(), sitk.sitkLinear, 0.0))
    return sitk.CompositeTransform([first, sitk.DisplacementFieldTransform(field)])


def _matched(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform | None) -> sitk.Image:
    """Resample the moving image on the fixed grid, with the gray values of the fixed image."""
    placed = sitk.Resample(moving, fixed, transform or sitk.Transform(), sitk.sitkLinear, 0.0)
    return sitk.HistogramMatching(placed, fixed, 256, 15)


def _demons(fixed: sitk.Image, moving: sitk.Image, steps: int, width: float, start: sitk.Image | None) -> sitk.Image:
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetNumberOfIterations(steps)
    method.SetStandardDeviations(width)
    field = method.Execute(fixed, moving) if start is None else method.Execute(fixed, moving, start)
    return sitk.Cast(field, sitk.sitkVectorFloat64)


def b_splines(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with SimpleITK's B-splines, 5 x 5 x 5 cells and mutual information, without a pose."""
    return _b_splines(fixed, moving, 5, _method())


def b_splines_better(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with an affine transform, then with B-splines as before."""
    first = affine(fixed, moving, folder)
    placed = sitk.Resample(moving, fixed, first, sitk.sitkLinear, 0.0)
    return sitk.CompositeTransform([first, _b_splines(fixed, placed, 5, _method())])


def _b_splines(fixed: sitk.Image, moving: sitk.Image, cells: int, method: sitk.ImageRegistrationMethod) -> Any:
    method.SetShrinkFactorsPerLevel([2])
    method.SetSmoothingSigmasPerLevel([1.0])
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetOptimizerAsLBFGSB(numberOfIterations=15, maximumNumberOfFunctionEvaluations=20)
    method.SetInitialTransform(sitk.BSplineTransformInitializer(fixed, [cells] * 3), inPlace=False)
    return method.Execute(fixed, moving)


def _ants(fixed: sitk.Image, moving: sitk.Image, folder: Path, **how: Any) -> sitk.Transform:
    import ants

    images = [folder / f"{name}.nii.gz" for name in ("fixed", "moving")]
    for path, image in zip(images, (fixed, moving), strict=True):
        sitk.WriteImage(image, str(path))
    found = ants.registration(
        *(ants.image_read(str(path)) for path in images), outprefix=str(folder / "ants_"), random_seed=1, **how
    )
    # A point goes through the warp first, then through the affine, as ANTs lists them.
    return read_result([Path(path) for path in found["fwdtransforms"]], fixed)


def syn(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with ANTs: affine, then SyN, all defaults (mutual information)."""
    return _ants(fixed, moving, folder, type_of_transform="SyN")


def syn_better(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with ANTs: affine, then SyN with more iterations, also on the finest grid, which the default omits."""
    return _ants(fixed, moving, folder, type_of_transform="SyN", reg_iterations=(60, 40, 20))


# Its defaults also penalize bending, have four resolutions and 256 iterations; that takes minutes of CPU time for each
# crop of 50 mm.
_FASTER = {
    "Registration": "MultiResolutionRegistration",
    "Metric": "AdvancedMattesMutualInformation",
    "NumberOfResolutions": "3",
    "GridSpacingSchedule": "4 2 1",
    "MaximumNumberOfIterations": "100",
}


def _elastix(fixed: sitk.Image, moving: sitk.Image, folder: Path, **how: str) -> sitk.Transform:
    import itk

    parameters = itk.ParameterObject.New()
    for kind in ("affine", "bspline"):
        chosen = parameters.GetDefaultParameterMap(kind)
        for key, value in (_FASTER | how).items() if kind == "bspline" else ():
            chosen[key] = value.split()
        parameters.AddParameterMap(chosen)
    pictures = [_for_itk(image) for image in (fixed, moving)]
    where = {"output_directory": str(folder), "log_to_console": False}
    itk.elastix_registration_method(*pictures, parameter_object=parameters, **where)
    return read_result([folder / "TransformParameters.1.txt"], fixed)


def _for_itk(image: sitk.Image) -> Any:
    import itk

    made = itk.image_from_array(sitk.GetArrayFromImage(image))
    made.SetSpacing(image.GetSpacing())
    made.SetOrigin(image.GetOrigin())
    made.SetDirection(itk.matrix_from_array(np.asarray(image.GetDirection()).reshape(3, 3)))
    return made


def elastix(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with elastix: affine, then B-splines every 10 mm; faster than its defaults."""
    return _elastix(fixed, moving, folder)


def elastix_better(fixed: sitk.Image, moving: sitk.Image, folder: Path) -> sitk.Transform:
    """Register with elastix: affine, then B-splines every 7 mm, correlation."""
    size = np.asarray(fixed.GetSize()) * np.asarray(fixed.GetSpacing())
    # Of a whole trunk, spacings of 7 mm would be half a million parameters.
    spacing = max(7.0, float(size.max()) / 40)
    how = {"Metric": "AdvancedNormalizedCorrelation", "FinalGridSpacingInPhysicalUnits": f"{spacing:g}"}
    return _elastix(fixed, moving, folder, **how)


PROGRAMS: dict[str, Program] = {
    "nothing": nothing,
    "affine": affine,
    "demons": demons,
    "demons, better": demons_better,
    "B-splines": b_splines,
    "B-splines, better": b_splines_better,
    "ANTs SyN": syn,
    "ANTs SyN, better": syn_better,
    "elastix": elastix,
    "elastix, better": elastix_better,
}
