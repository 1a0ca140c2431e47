"""Marks the tests by file and by name; pyproject.toml explains the markers.

``SLOW`` has the functions that take more than about two seconds of CPU time ('pytest --durations=50' shows them);
Testing/core/test_extension.py fails when one of them is no longer there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
FILES = {
    "Testing/mrml": "slicer",
    "Testing/panel": "slicer",
    "DRDMDeform/Testing": "slicer",
    "Testing/core/test_gpu.py": "gpu",
    "Testing/core/test_batches.py": "slow",
    "Testing/core/test_production_resumed.py": "slow",
    "Testing/core/test_training_together.py": "slow",
}
SLOW: dict[str, tuple[str, ...]] = {
    "test_bad_input": (
        "test_as_a_process",
        "test_full_disk",
        "test_full_disk_while_training",
    ),
    "test_certificate": (
        "test_certified_fields_fold_nowhere",
        "test_published_model_is_certified",
        "test_repair_reaches_the_certificate",
        "test_shipped_model_is_certified_and_keeps_its_strength",
        "test_what_is_made_is_certified",
    ),
    "test_cmake_lists": (
        "test_a_separate_process_imports_all_of_the_library",
        "test_the_module_loads_from_the_installed_folder",
        "test_the_source_tree_works_as_an_additional_module_path",
    ),
    "test_command_line": (
        "test_killing_leaves_no_broken_file_under_a_final_name",
        "test_progress_for_other_programs",
        "test_same_seed_same_bytes",
        "test_stopping_leaves_whole_files_only",
        "test_synthesize_makes_pairs_and_the_field_between_them",
        "test_the_library_and_training_need_no_extras",
        "test_training_can_be_stopped_and_resumed",
    ),
    "test_docs": ("test_snippets_for_slicer_run", "test_what_is_written_can_be_done"),
    "test_fallback": ("test_training_accumulates_when_memory_is_short",),
    "test_fields": ("test_squaring_agrees_with_the_loop", "test_without_fine_noise_a_field_is_as_large_and_smoother"),
    "test_geometry": (
        "test_a_picture_shows_the_patient_the_same_way_round",
        "test_simpleitk_makes_the_saved_image_of_a_volume",
        "test_the_field_falls_smoothly_to_zero_outside",
    ),
    "test_images": (
        "test_every_sample_of_a_run_has_its_own_seed",
        "test_real_images_with_the_real_judge",
    ),
    "test_inverse": (
        "test_the_command_writes_it",
        "test_the_inverse_is_a_transform_for_everything",
    ),
    "test_loaders": (
        "test_a_bank_holds_what_deform_gives",
        "test_a_bank_is_gone_on_with_and_never_mixed",
        "test_pairs_come_with_the_field_between_them",
        "test_without_the_frameworks_one_sentence_says_what_to_install",
    ),
    "test_pose": ("test_a_posed_version_is_one_deformation_that_is_certified",),
    "test_production": (
        "test_a_label_that_leaves_the_image_is_not_taken",
        "test_every_sample_is_made_again_to_the_bit_from_its_record",
        "test_samples_beyond_the_limits_are_drawn_again_and_counted",
        "test_splits_keep_subjects_together",
        "test_the_quality_page_needs_no_other_file_and_shows_outliers_first",
    ),
    "test_production_inputs": ("test_a_table", "test_labels_of_any_type_with_gaps_count_up_for_nnunet"),
    "test_published": ("test_full_recovery", "test_one_prediction", "test_recovery_starts_where_it_is_told"),
    "test_recovery": ("test_seeds_together_are_the_seeds_alone",),
    "test_reference": ("test_the_pages_are_built",),
    "test_resampling": ("test_threads_may_share_an_image",),
    "test_shipped": (
        "test_a_second_demo_leaves_the_first_alone",
        "test_brain_recovers_heads_it_has_not_seen",
        "test_cardiac_recovers_hearts_of_another_hospital",
        "test_demo",
        "test_general_recovers_what_it_has_not_seen",
        "test_hippocampus_recovers_subjects_it_has_not_seen",
        "test_hippocampus_undoes_most_of_a_deformation_at_one_look",
    ),
    "test_training": (
        "test_a_few_minutes_of_training_already_help",
        "test_a_model_with_coarse_fields_is_trained_and_deforms_crops",
        "test_a_resumed_run_keeps_its_batch",
        "test_resuming_another_network_is_refused",
        "test_resuming_gives_the_same_weights_as_never_stopping",
        "test_the_bank_hands_out_matching_pairs_and_renews_itself",
        "test_the_command_trains_resumes_and_its_model_deforms",
        "test_the_published_network_trains",
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test."""
    for item in items:
        for place, marker in FILES.items():
            if item.path.is_relative_to(ROOT / place):
                item.add_marker(marker)
        if getattr(item, "originalname", "") in SLOW.get(item.path.stem, ()):
            item.add_marker("slow")
