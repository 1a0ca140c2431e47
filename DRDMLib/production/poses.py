"""The poses of a run: estimated from its own scans, if there are enough of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import SimpleITK as sitk

from ..diffusion.poses import PoseSpread
from ..errors import DRDMError
from ..io.datasets import Case
from ..io.images import read_image
from ..levels import AUTO_POSE
from ..poses import FEWEST, MOST, estimate_poses
from ..runtime.reporter import Reporter
from ..settings import Pose, pose_of
from ..spatial.bones import is_ct
from .plan import Plan, RunSettings


def poses_of_cases(cases: Sequence[Case], reporter: Reporter | None = None) -> PoseSpread | None:
    """Estimate the spread of poses among the subjects of a dataset, without their labels.

    Args:
        cases: of each subject, the first one counts; of many, some are chosen evenly.
        reporter: receives the progress.

    Returns:
        ``None`` if there are too few subjects.
    """
    subjects: dict[str, Case] = {}
    for case in cases:
        subjects.setdefault(case.subject, case)
    first = list(subjects.values())
    if len(first) < FEWEST:
        return None
    used = min(len(first), MOST)
    chosen = [first[number * len(first) // used] for number in range(used)]

    def images() -> Iterator[sitk.Image]:
        for case in chosen:
            # A case that cannot be read is reported when its samples are made.
            with contextlib.suppress(DRDMError, OSError, RuntimeError):
                yield read_image(case.image, case.series)

    return estimate_poses(
        images(), on_scan=lambda done, total: reporter.progress("poses", done, total) if reporter else None
    )


def with_poses(plan: Plan, reporter: Reporter, *, any_pose: bool = False) -> Plan:
    """Return the plan of a new run with the poses of its scans, if it is to have them and there are enough scans.

    Otherwise, the pose remains ``"auto"``, and each case has those that its model knows, or none.

    Args:
        any_pose: nobody has chosen them. CT has none then, because they would scale bone, which is to stay rigid.
    """
    if plan.settings.deformation.pose != AUTO_POSE:
        return plan
    if any_pose and _begins_with_ct(plan.cases):
        reporter.message("These scans are CT, where a pose would scale bone, so there is none; --pose auto adds it.")
        return _with_pose(plan, 0.0)
    plan = _with_pose(plan, poses_of_cases(plan.scans, reporter) or AUTO_POSE)
    # Who has not asked for poses need not hear, before anything else, that little is known of them.
    if not any_pose or isinstance(plan.settings.deformation.pose, PoseSpread):
        for text in poses_sentence(plan):
            reporter.message(text)
    return plan


def with_begun_pose(settings: RunSettings, run: dict[str, Any]) -> RunSettings:
    """Return the settings with the pose of an earlier run: ``"auto"``, or a number.

    Args:
        run: content of ``run.json``.
    """
    return replace(settings, deformation=replace(settings.deformation, pose=run["settings"]["pose"]))


def with_earlier_poses(plan: Plan, run: dict[str, Any]) -> Plan:
    """Return the plan with the poses of an earlier run, which its scans would not give again if they change.

    Args:
        run: content of ``run.json``. If its pose is a number, the plan stays as it is.

    Raises:
        SettingError: its poses are not valid.
    """
    if plan.settings.deformation.pose != AUTO_POSE:
        return plan
    return _with_pose(plan, pose_of(run["settings"].get("poses", AUTO_POSE)))


def poses_sentence(plan: Plan) -> list[str]:
    """Describe the poses that were estimated from the scans of a run, in a sentence; none for a pose that was given."""
    pose = plan.settings.deformation.pose
    if isinstance(pose, PoseSpread):
        return [f"Poses of these scans: {pose.words()}. Versions differ {math.sqrt(pose.drawn):.1f} times as much."]
    if pose == AUTO_POSE:
        return [f"Fewer than {FEWEST} scans can be compared, so the poses are those that the model knows, or none."]
    return []


def _begins_with_ct(cases: Sequence[Case]) -> bool:
    """Whether the first case that can be read is a CT."""
    for case in cases:
        with contextlib.suppress(DRDMError, OSError, RuntimeError):
            return is_ct(read_image(case.image, case.series))
    return False


def _with_pose(plan: Plan, pose: Pose) -> Plan:
    return replace(plan, settings=replace(plan.settings, deformation=replace(plan.settings.deformation, pose=pose)))
