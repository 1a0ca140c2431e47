"""nnU-Net trained on a few subjects, with its own augmentation only, and with deformed cases besides.

    python -m benchmarks.nnunet DATASET -o OUT --subjects 5 20 --draws 3 --iterations 1000

A small 2D network of nnU-Net (spacing 3 mm in the plane, 4 resolutions, 4 slices of 64 x 64 in a batch, deep
supervision, nnU-Net's loss, schedule and augmentation) is trained for a fixed number of iterations by nnU-Net's own
trainer and by the same trainer with :class:`DRDMLib.loaders.nnunet_trainer.DRDMDeformations`. Both have the same
subjects, initial weights and seed. Every k-th subject of the dataset is for testing, and each draw of the training
subjects is spread over the rest, since patients may be sorted by disease.

``OUT/results.json`` is written after each training; what is there already is not trained again. nnU-Net must be
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from DRDMLib.io.datasets import Case, find_cases
from DRDMLib.loaders import make_bank
from DRDMLib.settings import RegionSettings

NAME, IDENTIFIER = "Dataset900_Benchmark", "nnUNetPlans_2d"
BATCH, EPOCHS = 4, 10
# Every k-th subject is for testing.
TEST = 5


def folders(out: Path) -> tuple[Path, Path]:
    """Set nnU-Net's variables and return the folders of the raw and the preprocessed dataset."""
    made = []
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(out / variable)
        made.append(out / variable / NAME)
    # Batches are made in this process, so that they can be repeated.
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112
    return made[0], made[1]


def plans() -> dict[str, Any]:
    """Return plans of nnU-Net for the small network."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    architecture = {
        "n_stages": 4,
        "features_per_stage": [16, 32, 64, 128],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 4,
        "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "n_conv_per_stage": [2, 2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": IDENTIFIER,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": BATCH,
        "patch_size": [64, 64],
        "median_image_size_in_voxels": [64.0, 64.0],
        "spacing": [3.0, 3.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = {**resampling, "is_seg": what == "seg", "order": order}
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [10.0, 1.5, 1.5],
        "original_median_shape_after_transp": [10, 128, 128],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def draws(cases: list[Case], subjects: int, count: int) -> list[list[Case]]:
    """Draw training subjects, spread over the list."""
    step = len(cases) // subjects
    return [cases[(draw * step) // count :: step][:subjects] for draw in range(count)]


def description(cases: list[Case]) -> dict[str, Any]:
    """Return the content of dataset.json."""
    values = {int(v) for case in cases[:5] for v in np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(case.label))))}
    labels = {"background": 0, **{f"label {v}": v for v in sorted(values - {0})}}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}


def prepare(cases: list[Case], raw: Path, preprocessed: Path, copies: int) -> dict[str, Any]:
    """Write the raw dataset, preprocess it as nnU-Net does, and make the bank; returns the content of dataset.json."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed / IDENTIFIER):
        folder.mkdir(parents=True, exist_ok=True)
    described = description(cases)
    for path, content in (
        (raw / "dataset.json", described),
        (preprocessed / "dataset.json", described),
        (preprocessed / "dataset_fingerprint.json", {}),
        (preprocessed / "nnUNetPlans.json", plans()),
    ):
        path.write_text(json.dumps(content))
    manager = PlansManager(plans())
    for case in cases:
        image, label = raw / "imagesTr" / f"{case.name}_0000.nii.gz", raw / "labelsTr" / f"{case.name}.nii.gz"
        if not label.is_file():
            sitk.WriteImage(sitk.ReadImage(str(case.image)), str(image))
            sitk.WriteImage(sitk.ReadImage(str(case.label)), str(label))
        target = preprocessed / IDENTIFIER / case.name
        if not target.with_name(f"{case.name}.pkl").is_file():
            DefaultPreprocessor(verbose=False).run_case_save(
                str(target), [str(image)], str(label), manager, manager.get_configuration("2d"), described
            )
    make_bank(
        raw,
        preprocessed / "drdm_bank",
        copies=copies,
        region=RegionSettings(around=()),
        device="cpu",
        on_case=lambda done, total: print(f"fields: {done} of {total}", flush=True),
    )
    return described


def trained(deformed: bool, fold: int, described: dict[str, Any], options: argparse.Namespace, seed: int) -> Any:
    """Train, and return the trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from DRDMLib.loaders.nnunet_trainer import DRDMDeformations

    bases = (DRDMDeformations, nnUNetTrainer) if deformed else (nnUNetTrainer,)
    kind = type(f"Benchmark{'DRDM' if deformed else ''}", bases, {})
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    trainer = kind({**plans(), "continue_training": False}, "2d", fold, described, torch.device(options.device))
    trainer.num_epochs = EPOCHS
    trainer.num_iterations_per_epoch = max(1, options.iterations // trainer.num_epochs)
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    trainer.logger.plot_progress_png = lambda folder: None
    trainer.initialize()
    trainer.run_training()
    return trainer


def tested(trainer: Any, cases: list[Case], described: dict[str, Any]) -> dict[str, float]:
    """Return the mean Dice of the labels of each test case, on its own grid."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    manager, configuration = trainer.plans_manager, trainer.configuration_manager
    axes = trainer.inference_allowed_mirroring_axes
    parameters = [trainer.network.state_dict()]
    predictor.manual_initialization(trainer.network, manager, configuration, parameters, described, "", axes)
    values = [v for v in described["labels"].values() if v > 0]
    dice = {}
    for case in cases:
        data, _, properties = DefaultPreprocessor(verbose=False).run_case(
            [str(case.image)], None, manager, configuration, described
        )
        with torch.no_grad():
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        found = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, manager, configuration, trainer.label_manager, properties
        )
        truth = sitk.GetArrayFromImage(sitk.ReadImage(str(case.label)))
        each = [
            2 * ((found == v) & (truth == v)).sum() / max(1, (found == v).sum() + (truth == v).sum()) for v in values
        ]
        dice[case.name] = float(np.mean(each))
    return dice


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", default="_ED", help="part of the names of the cases to use")
    parser.add_argument("--subjects", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=8, help="fields of each of three strengths for each case")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    raw, preprocessed = folders(options.output.resolve())
    cases = [case for case in find_cases(options.dataset) if options.only in case.name]
    test, rest = cases[::TEST], [case for k, case in enumerate(cases) if k % TEST]
    sets = [(n, draw, found) for n in options.subjects for draw, found in enumerate(draws(rest, n, options.draws))]
    used = sorted({case.name for _, _, found in sets for case in found})
    described = prepare([case for case in rest if case.name in used], raw, preprocessed, options.copies)
    splits = [{"train": [case.name for case in found], "val": [case.name for case in found]} for _, _, found in sets]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    path = options.output / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else []
    for fold, (n, draw, found) in enumerate(sets):
        for deformed in (False, True):
            key = {"subjects": n, "draw": draw, "deformed": deformed, "iterations": options.iterations}
            if any(key.items() <= row.items() for row in results):
                continue
            start = time.perf_counter()
            trainer = trained(deformed, fold, described, options, seed=draw)
            dice = tested(trainer, test, described)
            row = {**key, "mean": float(np.mean(list(dice.values()))), "dice": dice}
            results.append(row | {"train": [case.name for case in found], "seconds": time.perf_counter() - start})
            path.write_text(json.dumps(results, indent=1))
            print(f"RESULT {n} subjects, draw {draw}, deformed {deformed}: {row['mean']:.4f}", flush=True)


if __name__ == "__main__":
    main()
