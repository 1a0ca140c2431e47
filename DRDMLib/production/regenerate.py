"""Make one sample of a run again, from its record alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from ..diffusion.seeds import SAMPLES
from ..errors import ImageError, ModelError, OutputError
from ..generation import Progress
from ..io.datasets import Case
from ..io.files import digest_of_files, file_name, output_error
from ..io.images import image_files
from ..io.volumes import FORMATS
from ..levels import OTHERS_GRAY, OWN_GRAY
from ..models.catalogue import digest_of, find, load_model, resolve
from ..runtime.threads import one_thread_each
from ..settings import DeformationSettings, RegionSettings, pose_of
from . import records
from .adapted import FILE
from .batches import FieldBatches
from .mirroring import Mirroring
from .plan import AUGMENT, OTHERS, PHASES, Plan, RunSettings, Task
from .run_folder import locked_folder
from .sampling import Product, SampleMaker
from .sources import Source, read_source

# Types of the values in every record, and of those that only new samples have.
_VALUES: dict[str, type] = {
    **dict.fromkeys(("name", "command", "case", "subject", "configuration", "plane"), str),
    **dict.fromkeys(("model", "device", "software", "label_values", "source", "files", "digests"), dict),
    **dict.fromkeys(("copy", "run_seed"), int),
    "levels": list,
}
_VALUES_OF_SAMPLES: dict[str, type] = {"attempt": int, "redrawn": list}


@dataclass(frozen=True)
class Regenerated:
    """A sample that was made again.

    Attributes:
        files: kind -> path.
        compared: kinds of files that were compared with a digest of the record.
        differences: kinds of files that are not identical.
        environment_differences: versions and device that differ from those of the record, one text each.
    """

    files: dict[str, Path]
    compared: list[str]
    differences: list[str]
    environment_differences: list[str]


def regenerate(
    record_file: str | Path,
    folder: str | Path,
    *,
    model: str | None = None,
    image: str | None = None,
    label: str | None = None,
    images: str | Path | None = None,
    device: str | None = None,
    on_step: Progress | None = None,
) -> Regenerated:
    """Make the sample of a record again and compare it with the digests in the record.

    Args:
        record_file: a file in the folder ``records`` of a run.
        folder: new or empty folder; the files get the names that they have in the run.
        model: file or name of the model, if the list of models does not have it.
        image, label: new paths of the source files, if they were moved.
        images: folder in which to look for the source files, if they were moved; at any depth, by name and content.
        device: by default the type of device in the record.
        on_step: called with (done, total) after each recovery step; may raise an exception to cancel.

    Raises:
        OutputError: the file is not a record, or its sample was not made.
        ImageError: a source file is missing or has changed.
        ModelError: the model is missing or is another one.
    """
    record = _read_complete_record(Path(record_file))
    run = Path(record_file).absolute().parent.parent
    case = _case(record, run, image, label, images)
    settings = RunSettings(
        command=record["command"],
        levels=(tuple(record["levels"]),) if record["levels"] else (),
        seed=record["run_seed"],
        # Old records have no pose, border, region or bones.
        deformation=DeformationSettings(
            steps=record["steps"],
            pose=pose_of(record.get("pose", 0.0)),
            plane=record["plane"],
            border=record.get("border", "open"),
            region=RegionSettings.of(record.get("region")),
            bones=record.get("bones", "free"),
        ),
        voxel_fields=True,
        # Old records have none.
        seed_scheme=_seed_scheme(record, record_file),
        toward=_goes_toward(record),
        gray_values=OTHERS_GRAY if "gray" in (record.get("toward") or {}) else OWN_GRAY,
        # The reflections of a sample that are drawn with its seed are these again.
        mirroring=Mirroring.of(record.get("mirror")),
        file_format=next((end for end in FORMATS if record["files"]["image"].endswith(f".{end}")), "nii.gz"),
    )
    source = _source(record, case)
    context = {key: record[key] for key in ("model", "configuration", "device", "software", "label_values")}
    context |= {"fit": record["fit"]} if "fit" in record else {}
    # The names of all files follow from this one; a record must not write outside of the folder.
    task = Task(0, 0, file_name(record["name"]), tuple(record["levels"]), record["copy"])
    others = _others(record, run, images)
    # Scans that are not turned have none in their records, nor do those of older versions, which turned no scans.
    turn = float((record.get("toward") or {}).get("turn", 0.0))
    maker = SampleMaker(Plan(settings, [case], [task]), context, Path(folder), _levels(record), others, turn)
    environment_differences = _differences(record["software"], records.software())
    if task.original:
        product = maker.original(task, source)
    else:
        loaded = load_model(_model(record, model, run), device or record["device"]["type"])
        environment_differences += _differences(record["device"], records.device_described(loaded.device))
        if "batch" in record and loaded.device.type == record["device"]["type"]:
            # The last bits depend on what was drawn together; not on another type of device, which draws other fields.
            maker = replace(maker, batches=FieldBatches(maker.plan, [task], record["batch"]))
        part = "test" if record["files"]["image"].startswith("imagesTs") else "train"
        attempt = record["attempt"]
        with one_thread_each(loaded.device):
            product = maker.make(task, source, loaded, part=part, attempt=attempt, on_step=on_step)
        product.record["redrawn"] = record["redrawn"]
        then, now = (one.get("batch", {}).get("at_once") for one in (record, product.record))
        if None not in (then, now) and then != now:
            environment_differences.append(f"images computed at a time were {then}, are now {now}")
    # The version that made the record may have written fewer kinds of files.
    for kind in product.record["files"].keys() - record["files"].keys():
        del product.record["files"][kind], product.writers[kind]
    with locked_folder(Path(folder)) as made:
        return _write_and_compare(product, record, made, environment_differences)


def _levels(record: dict[str, Any]) -> tuple[int, ...]:
    """Return the levels that the strengths of a sample meant when it was made."""
    item = record.get("item") or {}
    return tuple(item.get("levels") or [item["level"]]) if "level" in item else ()


def _read_complete_record(path: Path) -> dict[str, Any]:
    """Read the record of a sample that was made.

    Raises:
        OutputError: it is not such a record, or values are missing.
    """
    record = records.read_record(path)
    if record["status"] != records.DONE:
        raise OutputError(f"The sample '{record['name']}' was not made: {record.get('reason', 'unknown')}")
    needed = _VALUES | (_VALUES_OF_SAMPLES if record.get("levels") else {})
    wrong = next((key for key, kind in needed.items() if not isinstance(record.get(key), kind)), None)
    wrong = wrong or _inconsistent_key(record)
    if wrong is not None:
        raise OutputError(f"The record '{path}' has no valid '{wrong}'; choose the unchanged file of a run.")
    return record


def _inconsistent_key(record: dict[str, Any]) -> str | None:
    """Return a key whose value does not fit the command of a record; ``None`` if there is none."""
    augments = record["command"] == AUGMENT
    if len(record["levels"]) not in ((0, 1) if augments else (2,)):
        return "levels"
    if not {"image", *(["label"] if augments else [])} <= set(record["source"]["files"]):
        return "source"
    if record["copy"] not in record.get("batch", {"copies": [record["copy"]]})["copies"]:
        return "batch"
    return None if "image" in record["files"] else "files"


def _seed_scheme(record: dict[str, Any], path: str | Path) -> str:
    scheme = record.get("seed_scheme", "")
    if scheme not in ("", SAMPLES):
        raise OutputError(f"The record '{path}' was made by a newer version; update DRDM to make its sample again.")
    return str(scheme)


def _write_and_compare(
    product: Product, record: dict[str, Any], folder: Path, environment_differences: list[str]
) -> Regenerated:
    files = {kind: folder / path for kind, path in product.record["files"].items()}
    try:
        for path in [*files.values(), records.record_path(folder, product.record["name"])]:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    product.write(folder)
    compared = [kind for kind in files if kind in record["digests"]]
    differences = [k for k, digest in record["digests"].items() if product.record["digests"].get(k) != digest]
    return Regenerated(files, compared, differences, environment_differences)


def _case(record: dict[str, Any], run: Path, image: str | None, label: str | None, images: str | Path | None) -> Case:
    """Find the source files of a record.

    Args:
        run: folder of the run that the record is from.
        image, label, images: see :func:`regenerate`.
    """
    given = {"image": image, "label": label}
    files, digests = {}, record["source"]["digests"]
    for kind, name in record["source"]["files"].items():
        chosen = given.get(kind)
        if chosen is not None:
            files[kind] = Path(chosen)
            continue
        series = record["source"]["series"] if kind == "image" else ""
        places = _places(name, record["source"].get("relative", {}).get(kind), run, images)
        # No devices, which a record could name as well.
        there = [path for path in dict.fromkeys(places) if path.is_file() or path.is_dir()]
        if not there:
            where = "no longer exists" if images is None else f"is not in '{images}'"
            raise ImageError(
                f"The source '{name}' {where}; give the folder with the images with --images, or its new path with "
                "--image or --label."
            )
        # Another file of this name may lie in one of the places.
        files[kind] = next((path for path in there if _digest(path, series) == digests.get(kind)), there[0])
    channels = tuple(files[kind] for kind in sorted(files) if kind.startswith("channel_"))
    series = record["source"]["series"]
    return Case(record["case"], files["image"], files.get("label"), channels, series, record["subject"])


def _goes_toward(record: dict[str, Any]) -> str:
    """Return what the sample of a record goes toward, as in :class:`RunSettings`."""
    if "toward" not in record:
        return ""
    return PHASES if (record["toward"] or {}).get("in_place") else OTHERS


def _others(record: dict[str, Any], run: Path, images: str | Path | None) -> list[Case]:
    """Find the scan that the sample of a record goes toward.

    Raises:
        ImageError: it is missing, or has changed.
    """
    entry = record.get("toward")
    if entry is None:
        return []
    name, series = entry["files"]["image"], entry.get("series", "")
    for path in _places(name, entry.get("relative", {}).get("image"), run, images):
        if (path.is_file() or path.is_dir()) and _digest(path, series) == entry["digests"]["image"]:
            return [Case(entry.get("case", "other"), path, series=series)]
    raise ImageError(
        f"The scan '{name}', toward which the sample goes, is not there any more or has changed; give the folder that "
        "has it with --images."
    )


def _places(name: str, relative: str | None, run: Path, images: str | Path | None) -> Iterator[Path]:
    """Yield the paths at which a source file may be.

    Args:
        name: path in the record: absolute, or relative to the folder in which an older version was started.
        relative: path from the folder of the run.
        run: folder of the run now.
        images: folder in which to look.
    """
    # A record of Windows names its parts with other separators.
    parts = PureWindowsPath(name).parts if "\\" in name else Path(name).parts
    if images is not None:
        for start in range(len(parts)):
            yield Path(images, *parts[start:])
        yield from sorted(path for path in Path(images).rglob("*") if parts and path.name == parts[-1])
        return
    yield Path(name)
    if relative is not None:
        yield Path(os.path.normpath(run / relative))
    for folder in run.parents if not Path(name).is_absolute() else ():
        yield folder / name


def _digest(path: Path, series: str) -> str:
    try:
        return digest_of_files(image_files(path, series))
    except (OSError, ImageError):
        return ""


def _source(record: dict[str, Any], case: Case) -> Source:
    label_mapping = {int(old): new for old, new in record["label_values"].items()}
    geometry = record["source"].get("label_geometry", "file")
    source = read_source(case, need_label=False, values=label_mapping, label_geometry=geometry)
    for kind, digest in record["source"]["digests"].items():
        if source.digests.get(kind) != digest:
            raise ImageError(
                f"The {kind} '{source.files.get(kind)}' is not the file that '{record['name']}' was made from; "
                "give the right file with --image or --label, or the folder with the images with --images."
            )
    return source


def _model(record: dict[str, Any], name: str | None, run: Path) -> str:
    """Return the name or the file of the model; one that was adapted by the run lies in the run's folder."""
    written = record["model"]
    if name is None and "file" in written and (run / FILE).is_file():
        name = str(run / FILE)
    if name is None and find(written["name"]) is None:
        raise ModelError(f"The model '{written['name']}' is not in the list of models; give its file with --model.")
    name = name or written["name"]
    if digest_of(resolve(name)[0], "sha256") != written["digest"]:
        raise ModelError(
            f"The model '{name}' is not the one in the record ({written['digest'][:19]}...); "
            "give that one with --model."
        )
    return name


def _differences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    return [f"{key} was {then[key]}, is now {now.get(key)}" for key in then if then[key] != now.get(key)]


__all__ = ["Regenerated", "regenerate"]
