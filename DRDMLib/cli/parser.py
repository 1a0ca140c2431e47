"""The parser of the ``drdm`` command.

The modules that do the work, and PyTorch, are imported only when a command runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import NoReturn, Protocol

from .. import __version__
from ..levels import DEFAULT_LEVEL, DEFAULT_PAIR, LADDER
from ..runtime.reporter import Reporter
from .arguments import (
    add_changes,
    add_device_and_progress,
    add_format,
    add_generation,
    add_gray_values,
    add_label_geometry,
    add_levels,
    add_levels_and_copies,
    add_run,
    add_toward,
    add_train,
    positive_number,
    strength,
    strength_pair,
    whole_number,
)
from .mirror import add_mirror
from .nnunet_parser import add_actions
from .region import add_region


class Parser(argparse.ArgumentParser):
    """A parser with error messages of one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        print(f"{self.prog}: {message} (see '{self.prog} --help')", file=sys.stderr)
        sys.exit(2)


class AddCommand(Protocol):
    """A function that adds the parser of one command."""

    def __call__(self, name: str, text: str, example: str) -> argparse.ArgumentParser: ...


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; ``func`` of the parsed options runs the chosen command."""
    parser = Parser(
        prog="drdm",
        description="Make new, anatomically plausible versions of a medical image, with their displacement fields.",
        epilog="example:\n  drdm deform scan.nii.gz -o variants --count 5\n\n"
        "exit status: 0 success, 1 error in DRDM, 2 wrong input or use, 130 stopped (what is finished is kept)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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

    _add_demo(command)
    _add_deform(command)
    _add_apply(command)
    _add_augment(command)
    _add_synthesize(command)
    _add_regenerate(command)
    _add_verify(command)
    _add_gallery(command)
    _add_challenge(command)
    _add_score(command)
    _add_train(command)
    _add_evaluate(command)
    _add_models(command)
    _add_fit(command)
    _add_nnunet(command)
    _add_preview(command)
    _add_serve(command)
    return parser


def _add_demo(command: AddCommand) -> None:
    parser = command("demo", "deform the sample of DRDM or a scan of yours, and draw what happens", "drdm demo -o demo")
    parser.add_argument("image", nargs="?", metavar="SCAN", help="scan to deform in place of the sample")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="new folder (default: drdm-demo, or the next free drdm-demo-2, ...)"
    )
    parser.add_argument(
        "--level", type=strength, default="strong", metavar="T'", help="strength, a word or 0 to 79 (default: strong)"
    )
    parser.add_argument("--label", action="append", default=[], metavar="LABEL", help="label map of the scan")
    add_label_geometry(parser)
    add_generation(parser)
    add_device_and_progress(parser)
    parser.set_defaults(func=_runs("commands", "demo"))


def _add_deform(command: AddCommand) -> None:
    parser = command(
        "deform",
        "make new versions of one image (Algorithm 2)",
        "drdm deform scan.nii.gz -o variants --label organs.nii.gz --level strong --count 5",
    )
    parser.add_argument("image", metavar="IMAGE", help="2D or 3D image file, or a folder with one DICOM series")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder for the results")
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="LABEL",
        help="label map to deform with the image; may be given several times, --around and --keep use the first one",
    )
    parser.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="IMAGE",
        help="another channel of the scan to deform in the same way; may be given several times",
    )
    add_label_geometry(parser)
    parser.add_argument(
        "--level",
        type=strength,
        default=DEFAULT_LEVEL,
        metavar="T'",
        help="subtle, medium or strong, or a level of the model, 0 to 79 (default: medium)",
    )
    parser.add_argument(
        "--count", type=whole_number(1, 100000), default=1, metavar="N", help="number of versions (default: 1)"
    )
    parser.add_argument(
        "--inverse", action="store_true", help="also write the inverse field, from the original to the new version"
    )
    parser.add_argument(
        "--only-field",
        action="store_true",
        help="write only the field, on a coarse grid larger than the image (for transforms in 3D Slicer)",
    )
    parser.add_argument(
        "--uncompressed",
        action="store_true",
        help="do not compress the .nii.gz file of the field on its coarse grid, for a program that reads it at once",
    )
    parser.add_argument(
        "--full-field",
        action=argparse.BooleanOptionalAction,
        help="write the field with a vector for each voxel (_ddf); without it, it is written on its coarse grid "
        "(_field), which is the same map (default: yes, and no for scans of more than 32 million voxels)",
    )
    add_format(parser)
    parser.add_argument(
        "--picture",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw each version beside the original, with contours and the bent grid (default: yes)",
    )
    add_generation(parser)
    add_toward(parser, batch=False)
    add_region(parser)
    add_device_and_progress(parser)
    parser.set_defaults(func=_runs("commands", "deform"))


def _add_apply(command: AddCommand) -> None:
    parser = command(
        "apply",
        "apply a saved deformation to other channels, label maps, points and meshes",
        "drdm apply variants/scan_000_ddf.nii.gz t2.nii.gz organs/*.nii.gz points.mrk.json liver.stl -o deformed",
    )
    parser.add_argument(
        "field", metavar="FIELD", help="displacement field (_ddf or _field of 'drdm deform'), or a transform of ITK"
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="images and label maps; points (.csv, .fcsv, .mrk.json); meshes (.vtk, .vtp, .stl, .ply)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder for the results")
    parser.add_argument(
        "--inverse", action="store_true", help="the files belong to the new version, and go back to the original"
    )
    parser.add_argument(
        "--label", nargs="+", default=[], metavar="FILE", help="files that are label maps, whatever their values are"
    )
    parser.add_argument(
        "--image", nargs="+", default=[], metavar="FILE", help="files that are images, whatever their values are"
    )
    parser.add_argument("--progress", choices=["auto", "json", "none"], default="auto", help=argparse.SUPPRESS)
    parser.set_defaults(func=_runs("apply", "apply"))


def _add_augment(command: AddCommand) -> None:
    parser = command(
        "augment",
        "deform every image of a dataset and its label (Algorithm 3), and write an nnU-Net v2 raw dataset",
        "drdm augment Dataset001_Heart -o Dataset501_HeartPlus --levels medium strong --copies 4",
    )
    parser.add_argument(
        "dataset", metavar="DATASET", help="nnU-Net v2 raw dataset, folder with images/ and labels/, or a list"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder for the dataset")
    add_levels_and_copies(parser, 1, "versions per image and level")
    add_run(parser)
    add_generation(parser, auto_pose=True)
    add_toward(parser, batch=True, unlabeled=True)
    add_gray_values(parser)
    add_mirror(parser)
    add_region(parser)
    add_device_and_progress(parser)
    parser.set_defaults(func=_runs("batch", "augment"))


def _add_synthesize(command: AddCommand) -> None:
    parser = command(
        "synthesize",
        "make registration pairs with their exact field (Algorithm 4), and write a Learn2Reg-style dataset",
        "drdm synthesize scans -o pairs --levels strong:medium --copies 10",
    )
    parser.add_argument(
        "dataset", metavar="DATASET", help="nnU-Net v2 raw dataset, folder with images/ (and labels/), or a list"
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder for the dataset")
    parser.add_argument(
        "--levels",
        type=strength_pair,
        nargs="+",
        default=[DEFAULT_PAIR],
        metavar="A:B",
        help="strengths from the original to the moving and from the moving to the fixed image, words or levels such "
        "as 40:24 (default: strong:medium)",
    )
    parser.add_argument(
        "--copies",
        type=whole_number(1, 100000),
        default=1,
        metavar="N",
        help="pairs per image and pair of levels (default: 1)",
    )
    parser.add_argument(
        "--voxel-fields",
        action="store_true",
        help="also write the fields in voxels, as arrays (X, Y, Z, 3) for PyTorch",
    )
    parser.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=[0.8, 0.1, 0.1],
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the subjects for training, validation and test (default: 0.8 0.1 0.1)",
    )
    add_run(parser)
    add_generation(parser)
    add_toward(parser, batch=True)
    add_region(parser)
    add_device_and_progress(parser)
    parser.set_defaults(func=_runs("batch", "synthesize"))


def _add_regenerate(command: AddCommand) -> None:
    parser = command(
        "regenerate",
        "make one sample of a run again from its record, and check that it is identical",
        "drdm regenerate pairs/records/scan_strong-medium_000.json -o again",
    )
    parser.add_argument("record", metavar="RECORD", help="file in the folder 'records' of the run")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder")
    parser.add_argument("--model", metavar="M", help="file of the model, if it is not in the list of 'drdm models'")
    parser.add_argument("--image", metavar="IMAGE", help="new path of the source image, if it was moved")
    parser.add_argument("--label", metavar="LABEL", help="new path of its label, if it was moved")
    parser.add_argument(
        "--images", metavar="FOLDER", help="folder with the images and labels, at any depth, if they were moved"
    )
    add_device_and_progress(parser)
    parser.set_defaults(device=None, func=_runs("batch", "regenerate"))


def _add_verify(command: AddCommand) -> None:
    parser = command(
        "verify",
        "check that all files of a finished run of augment or synthesize are as they were written",
        "drdm verify pairs",
    )
    parser.add_argument("folder", metavar="OUT", help="folder of the run")
    parser.add_argument("--progress", choices=["auto", "json", "none"], default="auto", help=argparse.SUPPRESS)
    parser.set_defaults(func=_runs("batch", "verify"))


def _add_gallery(command: AddCommand) -> None:
    parser = command(
        "gallery",
        "draw scans beside new versions of them on one page, to judge by eye",
        "drdm gallery scans -o gallery.html --blind real-or-made.html",
    )
    parser.add_argument("dataset", metavar="SCANS", help="an image, a folder of scans, or a dataset as for augment")
    parser.add_argument("-o", "--output", required=True, metavar="PAGE", help="new file, for example gallery.html")
    add_levels(parser)
    parser.add_argument(
        "--versions", type=whole_number(1, 1000), default=4, metavar="N", help="versions of each level (default: 4)"
    )
    parser.add_argument("--blind", metavar="PAGE", help="also write a blinded test: is a picture real or made?")
    add_generation(parser)
    add_device_and_progress(parser)
    parser.set_defaults(func=_runs("gallery", "gallery"))


def _add_challenge(command: AddCommand) -> None:
    parser = command(
        "challenge",
        "make test cases for registration programs: pairs of images, and the true transform between them",
        "drdm challenge scan.nii.gz -o cases --label organs.nii.gz --count 10 --recipe medium",
    )
    parser.add_argument(
        "scan",
        metavar="SCAN",
        help="2D or 3D image file, a folder with one DICOM series, 'phantom' for the drawn sample that is shipped, or "
        "'reference' for a shipped case that is the same for everybody",
    )
    parser.add_argument("-o", "--output", required=True, metavar="CASES", help="new or empty folder for the cases")
    parser.add_argument("--label", metavar="LABEL", help="label map of the scan")
    add_label_geometry(parser)
    parser.add_argument(
        "--points", metavar="FILE", help="landmarks of the scan: .csv with x, y, z (LPS, mm), .fcsv or .mrk.json"
    )
    parser.add_argument(
        "--count", type=whole_number(1, 100000), default=1, metavar="N", help="number of cases (default: 1)"
    )
    parser.add_argument(
        "--recipe", choices=["mild", "medium", "hard"], default="medium", help="how hard they are (default: medium)"
    )
    parser.add_argument(
        "--levels",
        type=whole_number(0),
        nargs="+",
        metavar="T'",
        help="strengths, which the cases take in turn (default: those of the recipe)",
    )
    add_changes(parser)
    add_generation(parser, recipe=True)
    add_device_and_progress(parser)
    parser.set_defaults(func=_runs("challenge", "challenge"))


def _add_score(command: AddCommand) -> None:
    parser = command(
        "score",
        "measure the result of a registration program against the truth of a case",
        "drdm score warp.nii.gz affine.mat --truth cases/truth/scan_000 -o score",
    )
    parser.add_argument(
        "result",
        nargs="+",
        metavar="RESULT",
        help="transform from points of the fixed to points of the moving image; several files in the order in which "
        "they are applied to a point (with ANTs: the warp, then the affine)",
    )
    parser.add_argument("--truth", required=True, metavar="CASE", help="folder of the case in CASES/truth")
    parser.add_argument("-o", "--output", metavar="OUT", help="new or empty folder for the page and the tables")
    parser.add_argument(
        "--convention",
        choices=["mm", "voxels"],
        default="mm",
        help="displacements of arrays and fields: millimeters, LPS, or voxels along the array's axes (default: mm)",
    )
    parser.add_argument(
        "--backward",
        nargs="+",
        metavar="FILE",
        help="the transform from the moving to the fixed image, to measure inverse consistency",
    )
    parser.add_argument("--progress", choices=["auto", "json", "none"], default="auto", help=argparse.SUPPRESS)
    parser.set_defaults(func=_runs("challenge", "score"))


def _add_train(command: AddCommand) -> None:
    parser = command(
        "train",
        "train a model on images without labels (Algorithm 1)",
        "drdm train scans -o run --size 64 --minutes 120\n  drdm train scans -o run --size 64 --minutes 240 --resume",
    )
    add_train(parser)
    add_device_and_progress(parser)
    parser.set_defaults(func=_runs("train", "train"))


def _add_evaluate(command: AddCommand) -> None:
    parser = command(
        "evaluate",
        "print the metrics of saved displacement fields as JSON",
        "drdm evaluate variants/scan_000_ddf.nii.gz",
    )
    parser.add_argument("ddf", nargs="+", metavar="DDF", help="displacement field (vector image, millimeters)")
    parser.add_argument(
        "--on",
        metavar="SCAN",
        help="measure at the voxels of this scan, as the report does, and not on the grid of the field",
    )
    parser.set_defaults(func=_runs("commands", "evaluate"))


def _add_models(command: AddCommand) -> None:
    parser = command("models", "list, describe, download and remove models", "drdm models fetch published-cardiac-2d")
    parser.add_argument("action", nargs="?", choices=["list", "fetch", "info", "remove"], default="list")
    parser.add_argument("name", nargs="?", metavar="NAME", help="model name, or path for info")
    parser.add_argument("--progress", choices=["auto", "json", "none"], default="auto", help=argparse.SUPPRESS)
    parser.set_defaults(func=_runs("commands", "models"))


def _add_fit(command: AddCommand) -> None:
    parser = command("fit", "say how well the models fit scans, and which one is chosen", "drdm fit scan.nii.gz")
    parser.add_argument("scans", nargs="+", metavar="SCAN", help="2D or 3D image file, or a folder with a DICOM series")
    parser.add_argument(
        "--model", nargs="+", metavar="M", help="only these models: names, or paths of model files (default: all)"
    )
    parser.add_argument(
        "--plane",
        choices=["auto", "axial", "coronal", "sagittal"],
        default="auto",
        help="plane of the slices for 2D models on a volume (default: auto, the acquisition plane)",
    )
    parser.add_argument("--progress", choices=["auto", "json", "none"], default="auto", help=argparse.SUPPRESS)
    parser.set_defaults(func=_runs("fit", "fit"))


def _add_nnunet(command: AddCommand) -> None:
    parser = command(
        "nnunet",
        "train nnU-Net v2 with deformed cases",
        "drdm nnunet install\n  drdm nnunet prepare 27\n  nnUNetv2_train 27 3d_fullres 0 -tr nnUNetTrainerDRDM",
    )
    add_actions(parser, _runs)


def _add_preview(command: AddCommand) -> None:
    parser = command(
        "preview",
        "write coarse fields of one seed at several levels, which are not proven, for programs that show a preview",
        "drdm preview scan.nii.gz -o fields --levels 20 40 60",
    )
    parser.add_argument("image", metavar="IMAGE", help="2D or 3D image file, or a folder with one DICOM series")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="new or empty folder for the fields")
    parser.add_argument(
        "--levels",
        nargs="+",
        type=whole_number(1, 79),
        default=list(LADDER),
        metavar="T'",
        help="levels of the model, in the order in which the fields are wanted (default: eight levels)",
    )
    parser.add_argument("--label", metavar="LABEL", help="label map for --around and --keep")
    add_generation(parser)
    add_region(parser)
    add_device_and_progress(parser)
    parser.set_defaults(func=_runs("preview", "preview"))


def _add_serve(command: AddCommand) -> None:
    parser = command(
        "serve",
        "run commands that other programs send, one JSON object per line, in one process that keeps the models loaded",
        'echo \'{"id": 1, "arguments": ["deform", "scan.nii.gz", "-o", "variants"]}\' | drdm serve',
    )
    parser.add_argument(
        "--idle-minutes",
        type=positive_number,
        metavar="N",
        help="end after this time without a command, which frees the memory (default: never)",
    )


def _runs(module: str, name: str) -> Callable[[argparse.Namespace, Reporter], None]:
    """Return a function that imports a command and runs it, since most of them need PyTorch."""

    def run(options: argparse.Namespace, reporter: Reporter) -> None:
        getattr(importlib.import_module(f".{module}", __package__), name)(options, reporter)

    return run
