"""The ``drdm`` command: its arguments, and how it ends.

Exit status: 0 good, 1 a fault of ours, 2 wrong usage or input (one line on standard error), 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__
from ..errors import Cancelled, DRDMError, FallbackWarning
from .progress import JsonReporter, Reporter, make_reporter


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see '{self.prog} --help')", file=sys.stderr)
        sys.exit(2)


def _whole(low: int, high: int | None = None) -> Any:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
        if value < low or (high is not None and value > high):
            limits = f"{low} to {high}" if high is not None else f"{low} or more"
            raise argparse.ArgumentTypeError(f"{value} is out of range; use {limits}")
        return value

    return convert


def _level_pair(text: str) -> tuple[int, int]:
    first, separator, second = text.partition(":")
    if not separator or not first.isdigit() or not second.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a pair of levels; write it as 40:24")
    return int(first), int(second)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is out of range; use more than 0")
    return value


def _angle(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 <= value <= 180:
        raise argparse.ArgumentTypeError(f"{text} is out of range; use 0 to 180 degrees")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range; use 0 to 1")
    return value


def _share_of(text: str) -> tuple[int, int]:
    first, separator, second = text.partition("/")
    if not separator or not first.isdigit() or not second.isdigit() or not 1 <= int(first) <= int(second):
        raise argparse.ArgumentTypeError(f"'{text}' is not a share of the work; write the second of eight as 2/8")
    return int(first), int(second)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto, the fastest there is)"
    )
    parser.add_argument(
        "--progress",
        choices=["auto", "json", "none"],
        default="auto",
        help="how progress is shown: a bar on a terminal, or one JSON object a line (default: auto)",
    )


def _add_generation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="name that 'drdm models' lists, or path of a model file")
    parser.add_argument(
        "--seed", type=_whole(0, 2**31 - 1), default=0, metavar="S", help="start of the random numbers (default: 0)"
    )
    parser.add_argument(
        "--steps",
        type=_whole(1),
        metavar="K",
        help="recovery steps (default: as many as are needed; 80: one for each level)",
    )
    parser.add_argument(
        "--pose",
        type=float,
        default=0.0,
        metavar="P",
        help="also turn, resize and shift the whole, 0 to 2; at 1 by up to 15 degrees, 15 %% and 6 %% (default: 0)",
    )
    parser.add_argument(
        "--plane",
        choices=["auto", "axial", "coronal", "sagittal"],
        default="auto",
        help="plane of the slices that a 2D model deforms in a volume (default: auto, that of the acquisition)",
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(
        prog="drdm",
        description="New, anatomically plausible versions of a medical image, with their displacement fields.",
        epilog="example:  drdm deform scan.nii.gz -o variants --count 5",
    )
    parser.add_argument("--version", action="version", version=f"drdm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    demo = command("demo", "deform the sample that comes with DRDM and draw what happens", "drdm demo -o demo")
    demo.add_argument(
        "-o", "--output", metavar="OUT", help="new folder (default: drdm-demo, or the next free drdm-demo-2, ...)"
    )
    demo.add_argument("--level", type=_whole(0), default=64, metavar="T'", help="strength, 0 to 79 (default: 64)")
    _add_generation(demo)
    _add_common(demo)

    deform = command(
        "deform",
        "make new versions of one image (Algorithm 2)",
        "drdm deform scan.nii.gz -o variants --label organs.nii.gz --level 48 --count 5",
    )
    deform.add_argument("image", metavar="IMAGE", help="2D or 3D image file, or a folder with one DICOM series")
    deform.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder for the results")
    deform.add_argument("--label", metavar="LABEL", help="label map to deform with the image")
    deform.add_argument("--level", type=_whole(0), default=48, metavar="T'", help="strength, 0 to 79 (default: 48)")
    deform.add_argument(
        "--count", type=_whole(1, 100000), default=1, metavar="N", help="how many versions (default: 1)"
    )
    deform.add_argument(
        "--inverse", action="store_true", help="also write the inverse field, from the original to the new version"
    )
    deform.add_argument(
        "--only-field",
        action="store_true",
        help="write nothing but the field, on a coarse grid that reaches past the image (for transforms in 3D Slicer)",
    )
    _add_generation(deform)
    _add_common(deform)

    augment = command(
        "augment",
        "deform every image of a dataset with its label (Algorithm 3) into an nnU-Net v2 raw dataset",
        "drdm augment Dataset001_Heart -o Dataset501_HeartPlus --levels 20 40 60 --copies 4",
    )
    augment.add_argument(
        "dataset", metavar="DATASET", help="nnU-Net v2 raw dataset, folder with images/ and labels/, or a list"
    )
    augment.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder for the dataset")
    augment.add_argument(
        "--levels", type=_whole(0), nargs="+", default=[20, 40, 60], metavar="T'", help="strengths (default: 20 40 60)"
    )
    augment.add_argument(
        "--copies", type=_whole(1, 100000), default=1, metavar="N", help="versions per image and level (default: 1)"
    )
    _add_run(augment)
    _add_generation(augment)
    _add_common(augment)

    synthesize = command(
        "synthesize",
        "make registration pairs with their exact field (Algorithm 4) as a Learn2Reg-style dataset",
        "drdm synthesize scans -o pairs --levels 40:24 56:32 --copies 10",
    )
    synthesize.add_argument(
        "dataset", metavar="DATASET", help="nnU-Net v2 raw dataset, folder with images/ (and labels/), or a list"
    )
    synthesize.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder for the dataset")
    synthesize.add_argument(
        "--levels",
        type=_level_pair,
        nargs="+",
        default=[(40, 24)],
        metavar="A:B",
        help="strength from the original to the moving and from there to the fixed image (default: 40:24)",
    )
    synthesize.add_argument(
        "--copies",
        type=_whole(1, 100000),
        default=1,
        metavar="N",
        help="pairs per image and pair of levels (default: 1)",
    )
    synthesize.add_argument(
        "--voxel-fields", action="store_true", help="also write the fields in voxels, arrays (X, Y, Z, 3) for torch"
    )
    synthesize.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=[0.8, 0.1, 0.1],
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the subjects for training, validation and test (default: 0.8 0.1 0.1)",
    )
    _add_run(synthesize)
    _add_generation(synthesize)
    _add_common(synthesize)

    regenerate = command(
        "regenerate",
        "make one sample of a run again from its record, and compare it to the bit",
        "drdm regenerate pairs/records/scan_t40-24_000.json -o again",
    )
    regenerate.add_argument("record", metavar="RECORD", help="file of the run's folder 'records'")
    regenerate.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder")
    regenerate.add_argument("--model", metavar="M", help="the model, if it is not in the catalogue")
    regenerate.add_argument("--image", metavar="IMAGE", help="where the source image is now, if it was moved")
    regenerate.add_argument("--label", metavar="LABEL", help="where its label is now")
    _add_common(regenerate)
    regenerate.set_defaults(device=None)

    _add_train(command)

    evaluate = command(
        "evaluate",
        "print the figures of saved displacement fields as JSON",
        "drdm evaluate variants/scan_000_ddf.nii.gz",
    )
    evaluate.add_argument("ddf", nargs="+", metavar="DDF", help="displacement field (vector image, millimetres)")

    models = command("models", "list, describe and download models", "drdm models fetch published-cardiac-2d")
    models.add_argument("action", nargs="?", choices=["list", "fetch", "info"], default="list")
    models.add_argument("name", nargs="?", metavar="NAME", help="model name, or path for info")
    models.add_argument("--progress", choices=["auto", "json", "none"], default="auto", help=argparse.SUPPRESS)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    """What a run over a dataset takes besides its levels."""
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same settings")
    parser.add_argument(
        "--share",
        type=_share_of,
        metavar="K/N",
        help="do the K-th of N shares of the work (default: all, or what torchrun or srun say)",
    )
    parser.add_argument(
        "--subject",
        metavar="REGEX",
        help="what in an image's name tells the subject (default: table, DICOM header, 'sub-...', or the whole name)",
    )
    parser.add_argument(
        "--max-folded", type=float, default=0.0, metavar="F", help="largest share of folded voxels (default: 0)"
    )
    parser.add_argument("--min-mm", type=float, metavar="MM", help="smallest mean displacement")
    parser.add_argument("--max-mm", type=float, metavar="MM", help="largest displacement of any voxel")
    parser.add_argument(
        "--labels-inside", type=float, metavar="F", help="smallest share of each label that must stay in the image"
    )
    parser.add_argument(
        "--draws", type=_whole(1, 1000), default=10, metavar="N", help="draws before a sample is given up (default: 10)"
    )
    parser.add_argument(
        "--quality", action=argparse.BooleanOptionalAction, default=True, help="write quality.html (default: yes)"
    )


def _add_train(command: Any) -> None:
    train = command(
        "train",
        "train a model on images without labels (Algorithm 1)",
        "drdm train scans -o run --size 64 --minutes 120\n  drdm train scans -o run --size 64 --minutes 240 --resume",
    )
    train.add_argument("dataset", metavar="DATASET", help="folder with images/, nnU-Net v2 raw dataset, or a list")
    train.add_argument("-o", "--output", required=True, metavar="RUN", help="folder of the run; gets model.safetensors")
    train.add_argument("--ndim", type=int, choices=[2, 3], default=3, help="dimension of the model (default: 3)")
    train.add_argument(
        "--size", type=_whole(16, 512), default=48, metavar="S", help="voxels a side, a multiple of 8 (default: 48)"
    )
    train.add_argument(
        "--minutes", type=_positive, default=60.0, metavar="M", help="time budget over all sessions (default: 60)"
    )
    train.add_argument(
        "--iterations", type=_whole(1), metavar="N", help="number of training steps instead of a time budget"
    )
    train.add_argument(
        "--batch",
        type=_whole(1, 1024),
        metavar="N",
        help="images per step, of all processes (default: 4, on an NVIDIA GPU 32; a resumed run's own)",
    )
    train.add_argument(
        "--accumulate",
        type=_whole(1, 1024),
        default=1,
        metavar="N",
        help="work on each process's images of a step in N portions, for less memory (default: 1)",
    )
    train.add_argument(
        "--learning-rate",
        type=_positive,
        metavar="R",
        help="peak learning rate (default: 0.0006, on an NVIDIA GPU 0.0008; a resumed run's own)",
    )
    train.add_argument(
        "--architecture", choices=["compact", "recresacnet"], default="compact", help="network (default: compact)"
    )
    train.add_argument(
        "--width", type=_whole(8, 256), default=16, metavar="C", help="channels of the compact network (default: 16)"
    )
    train.add_argument(
        "--depth", type=_whole(1, 16), default=2, metavar="N", help="its blocks on the coarsest grid (default: 2)"
    )
    train.add_argument(
        "--target",
        choices=["whole", "step"],
        default="whole",
        help="what the compact network predicts: all that is left to undo, or the last step (default: whole)",
    )
    train.add_argument(
        "--field",
        choices=["published", "coarse"],
        default="coarse",
        help="random deformations: coarse and strong, as between people, or published ones (default: coarse)",
    )
    train.add_argument(
        "--outside",
        choices=["zeros", "border"],
        default="border",
        help="what is seen outside of an image: its border continued, or zeros as published (default: border)",
    )
    train.add_argument(
        "--loss",
        choices=["energy", "published"],
        default="published",
        help="distance term of the loss of --target step (default: published)",
    )
    train.add_argument(
        "--rotation", type=_angle, default=15.0, metavar="DEG", help="largest random rotation (default: 15)"
    )
    train.add_argument(
        "--zoom",
        type=_positive,
        nargs=2,
        default=[0.85, 1.15],
        metavar=("LEAST", "MOST"),
        help="share of the image's side that is shown in training, above 1 to shrink the image (default: 0.85 1.15)",
    )
    train.add_argument(
        "--shift", type=_share, default=0.06, metavar="F", help="largest shift, in halves of the side (default: 0.06)"
    )
    train.add_argument(
        "--tones", action="store_true", help="train for any contrast: random curves of grey values and negatives"
    )
    train.add_argument(
        "--published",
        action="store_true",
        help="everything as published: network, loss, rotation by any angle, fresh fields, learning rate 0.0001",
    )
    train.add_argument(
        "--hold-out", type=_whole(2), default=8, metavar="K", help="leave every K-th image out (default: 8)"
    )
    train.add_argument(
        "--plane",
        choices=["auto", "axial", "coronal", "sagittal"],
        default="auto",
        help="slices of volumes for a 2D model",
    )
    train.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    train.add_argument(
        "--checkpoint-minutes", type=_positive, default=5.0, metavar="M", help="how often to save (default: 5)"
    )
    train.add_argument(
        "--seed", type=_whole(0, 2**31 - 1), default=0, metavar="S", help="start of the random numbers (default: 0)"
    )
    train.add_argument("--name", default="", help="name written into the model (default: the run's folder name)")
    train.add_argument(
        "--describe",
        action="append",
        default=[],
        metavar="KEY=TEXT",
        help="anatomy=..., modality=..., training_data=..., licence=... for the model's metadata",
    )
    train.add_argument(
        "--half",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="mixed precision, bfloat16 (default: on a GPU)",
    )
    _add_common(train)


def _stop(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _tell_fallbacks(reporter: Reporter) -> None:
    """What is done in another way than was asked for is a message to the user, not a line of Python."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, FallbackWarning):
            reporter.warning(str(message))
        else:
            usual(message, category, *where, **more)

    warnings.simplefilter("always", FallbackWarning)
    warnings.showwarning = show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = build_parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        # A stopped job tidies up like an interrupted one.
        signal.signal(signal.SIGTERM, _stop)
    reporter = make_reporter(getattr(options, "progress", "none"))

    def fail(status: int, text: str) -> int:
        reporter.close()
        if isinstance(reporter, JsonReporter):
            reporter.failed(text)
        print(f"drdm: {text}", file=sys.stderr)
        return status

    try:
        from . import commands

        with warnings.catch_warnings():
            _tell_fallbacks(reporter)
            getattr(commands, options.command)(options, reporter)
    except DRDMError as error:
        return fail(2, str(error))
    except (KeyboardInterrupt, Cancelled):
        return fail(130, "Stopped; what was complete is kept, nothing is half-written.")
    except MemoryError:
        return fail(2, "There is not enough memory for this image; close other programs or use a smaller image.")
    except BrokenPipeError:
        return 1
    except Exception:
        reporter.close()
        traceback.print_exc()
        return fail(1, "This is a fault in DRDM; please report it with the lines above.")
    reporter.close()
    return 0
