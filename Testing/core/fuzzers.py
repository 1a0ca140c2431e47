"""Damage images, models, JSON, banks, transforms, meshes and points at random, with a seed.

Each must be read or refused in one sentence.

``test_fuzz.py`` runs a few hundred of these with fixed seeds. A longer run, which prints each file that was not handled
and keeps it::

    python Testing/core/fuzzers.py --minutes 10 --seed 7

Reading runs in processes of its own: a crash of a reader ends only one of them, and is found by its exit status.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_helpers import run_process

# Values that break assumptions: of sizes, counts, types and offsets.
_INTEGERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**62)
_WORDS = ("", "0", "-1", "1", "nan", "inf", "-inf", "1e400", "99999999999", "-99999999999", "x", "%s%n", "0 0 0", "\0")
_WORDS += ("1 1", "2 2 2 2", "99999 99999 99999", "LIST", "LOCAL", "None", "../../etc/passwd", "\xff\xfe", "A" * 5000)
# Values in JSON that are not expected.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    10**9,
    10**30,
    -(10**30),
    0.5,
    float("nan"),
    float("inf"),
)
ODD_VALUES += ("", "x", "../../x", "/etc/passwd", "nan", "\ud800", "A" * 5000, [], {}, [[]], [1], {"a": 1}, {"a": {}})
RECORD: dict[str, Any] = {
    "name": "a_t40_000",
    "status": "done",
    "command": "augment",
    "case": "a",
    "subject": "a",
    "levels": [40],
    "copy": 0,
    "run_seed": 0,
    "seed": 5,
    "attempt": 0,
    "redrawn": [],
    "steps": None,
    "pose": 0.0,
    "plane": "auto",
    "border": "auto",
    "model": {"name": "m", "digest": "sha256:0"},
    "fit": {"model": "m", "undone": 0.4, "still": 0.01, "ndim": 3, "word": "fair"},
    "configuration": "sha256:0",
    "device": {"type": "cpu", "name": "x"},
    "software": {"drdm": "1"},
    "label_values": {"0": 0, "7": 1},
    "source": {"files": {"image": "a.nii.gz"}, "series": "", "digests": {"image": "sha256:0"}},
    "files": {"image": "imagesTr/a.nii.gz"},
    "digests": {"image": "sha256:0"},
}
RUN: dict[str, Any] = {
    "settings": {"command": "augment", "copies": 1, "seed": 0, "levels": [40]},
    "cases": [{"name": "a", "subject": "a"}],
    "model": {"name": "m", "digest": "sha256:0"},
    "candidates": [{"name": "m", "digest": "sha256:0"}],
    "dimension": 3,
    "device": {"type": "cpu", "name": "x"},
    "software": {"drdm": "1"},
    "label_values": {"0": 0},
    "labels": {"background": 0, "organs": [1, 2]},
    "source_description": {},
    "parts": {"a": "train"},
}
DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "organs": [1, 2], "ignore": 3},
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "training_paired_images": [{"fixed": "a.nii.gz", "moving": "b.nii.gz", "displacement": "c.nii.gz"}],
}
_HOW = {"type": "int16", "shape": [3, 4, 4, 4], "scale": 0.1, "axes": [None, None, None]}
_EYE = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]
BANK: dict[str, Any] = {
    "fields": [{"start": 0, "bytes": 384, "affine": _EYE, "how": _HOW}],
    "geometry": {"size": [4, 4, 4], "affine": _EYE, "others": []},
}
_TEXT = (".mha", ".mhd", ".nrrd", ".nhdr", ".vtk", ".spr")


def damaged_bytes(data: bytes, chance: random.Random, header: int = 512) -> bytes:
    """Change a few bytes of the beginning of a file, or cut it off."""
    result = bytearray(data)
    end = min(len(result), header)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        at = chance.randrange(end)
        how = chance.randrange(4)
        if how == 0:
            result[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            result[at] = chance.randrange(256)
        else:
            width = chance.choice((2, 4, 8))
            at -= at % width if how == 2 else 0
            value = chance.choice(_INTEGERS) % 2 ** (8 * width)
            result[at : at + width] = value.to_bytes(width, chance.choice(("little", "big")))
    if chance.random() < 0.15:
        del result[chance.randrange(len(result)) :]
    return bytes(result)


def damaged_text(data: bytes, chance: random.Random, lines: int = 24) -> bytes:
    """Change a few of the first lines of a header of text: delete one, repeat one, or change its value."""
    parts = data.split(b"\n", lines)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(max(1, len(parts) - 1))
        how = chance.randrange(5)
        if how == 0:
            del parts[at]
        elif how == 1:
            parts.insert(at, chance.choice(parts[:-1] or parts))
        elif how == 2:
            parts[at] = damaged_bytes(parts[at] or b"x", chance)
        else:
            mark = b"=" if b"=" in parts[at] else b":" if b":" in parts[at] else b" "
            key, mark, value = parts[at].partition(mark)
            words = value.split() or [b""]
            words[chance.randrange(len(words))] = chance.choice(_WORDS).encode("latin-1")
            parts[at] = key + mark + b" " + b" ".join(words)
        if not parts:
            return b""
    result = b"\n".join(parts)
    return result[: chance.randrange(1, len(result) + 1)] if chance.random() < 0.1 and result else result


def damaged_images(folder: Path, samples: list[Path], seed: int, count: int) -> Iterator[Path]:
    """Write ``count`` damaged copies of image files, one folder each for those with voxels in another file."""
    chance = random.Random(seed)
    for number in range(count):
        path = chance.choice(samples)
        place = folder / f"{seed}-{number:06d}"
        shutil.copytree(path.parent, place)
        others = [other for other in sorted(place.iterdir()) if other.name != path.name]
        if others and chance.random() < 0.3:
            # The voxels of a detached header.
            other = chance.choice(others)
            other.write_bytes(damaged_bytes(other.read_bytes(), chance, 2**20))
            yield place / path.name
            continue
        data = path.read_bytes()
        text = path.suffix in _TEXT and chance.random() < 0.8
        (place / path.name).write_bytes(damaged_text(data, chance) if text else damaged_bytes(data, chance))
        yield place / path.name


def damaged_json(value: Any, chance: random.Random) -> Any:
    """Replace, remove or add one value somewhere in plain values of JSON."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        changed = dict(value)
        how = chance.random()
        if how < 0.15:
            del changed[key]
        elif how < 0.2:
            changed[chance.choice(_WORDS)] = chance.choice(ODD_VALUES)
        else:
            changed[key] = damaged_json(value[key], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], damaged_json(value[at], chance), *value[at + 1 :]]
    return chance.choice(ODD_VALUES)


def deep(levels: int = 3000) -> str:
    """Return JSON that is nested so deeply that a parser may run out of stack."""
    return "[" * levels + "]" * levels


def damaged_models(folder: Path, good: Path, seed: int, count: int) -> Iterator[Path]:
    """Write ``count`` damaged copies of a ``.safetensors`` model: bytes of it, its header, or its description."""
    chance, data = random.Random(seed), good.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for number in range(count):
        path = folder / f"{seed}-{number:06d}.safetensors"
        how = chance.randrange(4)
        if how == 0:
            path.write_bytes(damaged_bytes(data, chance, 8 + length))
            yield path
            continue
        changed = json.loads(json.dumps(header))
        if how == 1:
            described = json.loads(changed["__metadata__"]["drdm"])
            text = deep() if chance.random() < 0.05 else json.dumps(damaged_json(described, chance))
            changed["__metadata__"]["drdm"] = text
        else:
            changed = damaged_json(changed, chance)
        text = json.dumps(changed).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        yield path


def damaged_weights(folder: Path, good: Path, seed: int, count: int) -> Iterator[Path]:
    """Write ``count`` damaged copies of a file that PyTorch has saved: bytes of it, or of the pickle inside."""
    chance, data = random.Random(seed), good.read_bytes()
    with zipfile.ZipFile(good) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    for number in range(count):
        path = folder / f"{seed}-{number:06d}.pth"
        if chance.random() < 0.2:
            path.write_bytes(damaged_bytes(data, chance, len(data)))
        else:
            with zipfile.ZipFile(path, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
                for name, content in members.items():
                    changed = name == pickled or chance.random() < 0.01
                    archive.writestr(name, damaged_bytes(content, chance, len(content)) if changed else content)
        yield path


def damaged_descriptions(folder: Path, seed: int, count: int) -> Iterator[Path]:
    """Write ``count`` damaged records, ``run.json`` and ``dataset.json``, one folder each."""
    chance = random.Random(seed)
    kinds = (("records/a.json", RECORD), ("run.json", RUN), ("dataset.json", DATASET))
    for number in range(count):
        name, value = chance.choice(kinds)
        path = folder / f"{seed}-{number:06d}" / name
        path.parent.mkdir(parents=True)
        data = json.dumps(damaged_json(value, chance)).encode()
        path.write_bytes(damaged_bytes(data, chance, len(data)) if chance.random() < 0.2 else data)
        yield path


def damaged_banks(folder: Path, seed: int, count: int) -> Iterator[Path]:
    """Write ``count`` damaged banks, one folder each."""
    import torch
    from safetensors.torch import save

    chance = random.Random(seed)
    for number in range(count):
        path = folder / f"{seed}-{number:06d}" / "bank" / "a.safetensors"
        path.parent.mkdir(parents=True)
        text = json.dumps(damaged_json(BANK, chance))
        data = save({"fields": torch.zeros(384, dtype=torch.uint8)}, {"drdm": text})
        path.write_bytes(damaged_bytes(data, chance, len(data)) if chance.random() < 0.3 else data)
        yield path


def damaged_objects(folder: Path, samples: list[Path], seed: int, count: int) -> Iterator[Path]:
    """Write ``count`` damaged transforms, meshes and lists of points."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        sample = chance.choice(samples)
        path = folder / f"{seed}-{number:06d}-{sample.name}"
        damage = chance.choice((damaged_bytes, damaged_text))
        path.write_bytes(damage(sample.read_bytes(), chance))
        yield path


_LOOP = """
import json, sys, traceback, warnings
from pathlib import Path
import numpy as np
warnings.simplefilter("ignore")
from DRDMLib.errors import DRDMError
{imports}
for line in sys.stdin.buffer:
    path = Path(line.decode().rstrip("\\n"))
    try:
        {use}
        outcome = "read"
    except DRDMError as error:
        outcome = "refused" if len(str(error).splitlines()) == 1 else "refused in several lines"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[::-1][:4]
        outcome = type(error).__name__ + " " + " < ".join(f"{{Path(f.filename).name}}:{{f.lineno}}" for f in frames)
    # Readers print lines of their own.
    sys.stdout.write("\\n@" + outcome + "\\n")
    sys.stdout.flush()
"""
READER = _LOOP.format(
    imports="from DRDMLib.io.images import read_image, image_files", use="read_image(path), image_files(path)"
)
MODELS = _LOOP.format(
    imports="from DRDMLib.models.model import load_model_file, read_metadata\n"
    "from DRDMLib.models.metadata import read_header\n"
    "if sys.platform != 'win32':\n"
    "    import resource\n"
    "    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))",
    use="read_header(path) if path.suffix != '.pth' else read_metadata(path); load_model_file(path, 'cpu')",
)


DESCRIBED = _LOOP.format(
    imports="""
from DRDMLib.io.nnunet import declared_labels, read_description
from DRDMLib.loaders import FieldBank, PairDataset, bank_making
from DRDMLib.models.fit import Fit
from DRDMLib.production import records
from DRDMLib.production.run_folder import read_run

def use(path):
    if path.name == "run.json":
        read_run(path.parent)
    elif path.name == "dataset.json":
        declared_labels(read_description(path.parent))
        PairDataset(path.parent)
    elif path.suffix == ".safetensors":
        bank_making._model_in(path)
        FieldBank(path.parent).field(path.stem, 0)
    else:
        record = records.read_record(path)
        Fit.from_dict(record["fit"]) if "fit" in record else None
        records.completed(path.parents[1], path.stem)
""",
    use="use(path)",
)
OBJECTS = _LOOP.format(
    imports="""
import SimpleITK as sitk
from DRDMLib.application import apply_field, read_deformation
from DRDMLib.io.transforms import EITHER_SUFFIXES, TRANSFORM_SUFFIXES
field = sitk.Image([8, 7, 6], sitk.sitkVectorFloat64)

def use(path):
    if path.suffix in (*TRANSFORM_SUFFIXES, *EITHER_SUFFIXES):
        read_deformation(path)
    else:
        apply_field(field, [path], path.with_name(path.name + ".out"))
""",
    use="use(path)",
)


def outcomes(paths: list[Path], code: str = READER, timeout: float = 600) -> list[str]:
    """Pass files to ``code`` in a process, which prints a line for each; a crash is an outcome of its own."""
    found: list[str] = []
    while len(found) < len(paths):
        left = paths[len(found) :]
        given = "".join(f"{path}\n" for path in left)
        try:
            done = run_process(code=code, given=given, timeout=timeout)
            output, status = done.stdout, f"crash (status {done.returncode})"
        except subprocess.TimeoutExpired as error:
            output, status = error.stdout or "", "no answer in time"
        lines = [line[1:] for line in output.splitlines() if line.startswith("@")]
        found += lines
        if len(lines) < len(left):
            found.append(status)
    return found


def bad(found: dict[Path, str]) -> dict[Path, str]:
    """Return the files that were neither read nor refused in one sentence."""
    return {path: outcome for path, outcome in found.items() if outcome not in ("read", "refused")}


def written_samples(folder: Path) -> list[Path]:
    """Write a small image of each format, each in a folder of its own."""
    import SimpleITK as sitk
    from command_helpers import scene, write

    found = []
    names = ("a.nii", "a.nii.gz", "a.hdr", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.tif", "a.gipl", "a.vtk", "a.mrc")
    for name in (*names, "a.h5", "a.spr", "a.dcm", "b.png", "b.jpg", "b.jp2", "b.bmp"):
        flat = name.startswith("b")
        pixel = sitk.sitkUInt8 if flat else sitk.sitkUInt16 if name.endswith(".dcm") else sitk.sitkInt16
        found.append(write(scene((24, 20) if flat else (10, 9, 8), pixel), folder / name.replace(".", "-") / name))
    for name in ("c.nrrd", "c.mha", "c.mhd", "c.tif"):
        path = folder / name.replace(".", "-") / name
        path.parent.mkdir()
        sitk.WriteImage(scene((10, 9, 8)), str(path), True)
        found.append(path)
    # The path of its voxels would make other samples of it in another folder.
    stimulate = folder / "a-spr" / "a.spr"
    stimulate.write_text(stimulate.read_text(encoding="utf-8").replace(str(stimulate.parent), "."), encoding="utf-8")
    return found


def written_objects(folder: Path) -> list[Path]:
    """Write a small transform, mesh and list of points of each format."""
    import numpy as np
    import SimpleITK as sitk
    from test_application import meshes

    folder.mkdir(parents=True)
    vertices = np.array([[2.0, 3, 3], [4.0, 3, 4], [3.0, 5, 5]])
    made = meshes(vertices, np.repeat([[0.0, 0, 1]], 3, axis=0))
    made["a.csv"] = b"name,x,y,z\np,3,3,4\nq,4,4,5\n"
    made["a.fcsv"] = b"# CoordinateSystem = 0\n# columns = id,x,y,z\n1,-3,-3,4\n"
    control = {"id": "1", "label": "a", "position": [3.0, 3.0, 4.0]}
    markup = {"type": "Curve", "coordinateSystem": "LPS", "controlPoints": [control], "measurements": [{"value": 3.0}]}
    made["a.mrk.json"] = json.dumps({"markups": [markup]}).encode()
    for name, data in made.items():
        (folder / name).write_bytes(data)
    for name in ("a.tfm", "a.txt", "a.mat", "a.xfm", "a.h5"):
        sitk.WriteTransform(sitk.AffineTransform(3), str(folder / name))
    return sorted(folder.iterdir())


def main() -> None:
    """Damage files until the time is over, and print and keep each that was not handled."""
    import torch
    from support import write_tiny_model

    from DRDMLib.networks import RecResACNet

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"))
    options = parser.parse_args()
    end, counts, seed = time.monotonic() + 60 * options.minutes, Counter[str](), options.seed
    with tempfile.TemporaryDirectory() as place:
        samples = written_samples(Path(place) / "samples")
        objects = written_objects(Path(place) / "objects")
        model = write_tiny_model(Path(place) / "tiny.safetensors", ndim=2)
        weights = Path(place) / "weights.pth"
        torch.save(RecResACNet(2, 80).state_dict(), weights)
        while time.monotonic() < end:
            folder = Path(place) / f"seed-{seed}"
            folder.mkdir()
            for paths, code in (
                (list(damaged_images(folder, samples, seed, 100)), READER),
                (list(damaged_models(folder, model, seed, 50)), MODELS),
                (list(damaged_weights(folder, weights, seed, 10)), MODELS),
                (list(damaged_descriptions(folder / "json", seed, 200)), DESCRIBED),
                (list(damaged_banks(folder / "banks", seed, 100)), DESCRIBED),
                (list(damaged_objects(folder / "objects", objects, seed, 100)), OBJECTS),
            ):
                found = dict(zip(paths, outcomes(paths, code), strict=True))
                counts.update("not handled" if path in bad(found) else outcome for path, outcome in found.items())
                for path, outcome in bad(found).items():
                    print(f"{path.relative_to(folder)}, seed {seed}: {outcome}", flush=True)
                    target = options.keep / path.relative_to(place)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path, target)
            shutil.rmtree(folder)
            seed += 1
    print(f"Seeds {options.seed} to {seed - 1}: {dict(counts)}")


if __name__ == "__main__":
    main()
