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
    "Testing/core/test_batches_of_samples.py": "slow",
    "Testing/core/test_production_resumed.py": "slow",
    "Testing/core/test_training_together.py": "slow",
}
SLOW: dict[str, tuple[str, ...]] = {
    "test_adaptation": (
        "test_a_batch_adapts_first",
        "test_a_batch_keeps_the_model_that_adapting_made_worse",
        "test_a_model_that_was_improved_is_kept",
        "test_a_resumed_run_gives_the_same_model",
        "test_the_command_adapts_and_repeats",
    ),
    "test_bad_input": (
        "test_invalid_input_in_a_separate_process",
        "test_full_disk",
        "test_full_disk_while_training",
    ),
    "test_bones": (
        "test_bone_stays_rigid_and_the_table_straight",
        "test_a_scan_without_air_is_taken_for_ct_on_request",
        "test_records_say_how_bones_moved_and_repeat_it",
    ),
    "test_banks": (
        "test_a_bank_gives_every_reader_the_same_voxels",
        "test_every_kind_of_scan_through_everything",
        "test_fields_of_different_sizes_and_old_banks",
        "test_real_scans_through_everything",
    ),
    "test_certificate": (
        "test_certified_fields_do_not_fold",
        "test_published_model_is_certified",
        "test_repair_reaches_the_certificate",
        "test_shipped_model_is_certified_and_keeps_its_strength",
        "test_deformations_are_certified",
    ),
    "test_challenge": (
        "test_bad_input",
        "test_formats",
        "test_the_pages",
        "test_the_same_case_has_the_same_bytes",
        "test_wrong_conventions_are_recognized",
    ),
    "test_cmake_lists": (
        "test_a_separate_process_imports_all_of_the_library",
        "test_the_module_loads_from_the_installed_folder",
        "test_the_source_tree_works_as_an_additional_module_path",
    ),
    "test_coarse_fields": ("test_a_large_scan_gets_the_coarse_field",),
    "test_command_line": (
        "test_progress_for_other_programs",
        "test_equal_seeds_give_equal_files",
        "test_synthesize_makes_pairs_and_their_field",
        "test_the_library_and_training_need_no_extras",
    ),
    "test_command_stopped": (
        "test_killing_leaves_no_incomplete_file_with_a_final_name",
        "test_stopping_leaves_complete_files_only",
        "test_training_can_be_stopped_and_resumed",
    ),
    "test_damaged_headers": (
        "test_a_header_that_crashes_its_reader",
        "test_crashing_files_are_left_out_by_every_command",
        "test_names_that_are_no_text",
        "test_the_reader_is_ended_with_its_process_and_starts_again",
    ),
    "test_deform_more": (
        "test_demo_of_a_scan_of_ones_own",
        "test_several_labels_and_channels_move_alike",
    ),
    "test_docs": ("test_snippets_for_slicer_run", "test_what_is_written_can_be_done"),
    "test_extension": ("test_the_module_says_the_same_as_the_extension",),
    "test_fallback": ("test_training_accumulates_gradients_when_memory_is_short",),
    "test_fields": ("test_squaring_agrees_with_the_loop", "test_coarse_noise_gives_smoother_fields_of_similar_size"),
    "test_figures": (
        "test_bounds_leave_out_no_cell_that_fails",
        "test_metrics_are_those_of_every_voxel",
    ),
    "test_fit": (
        "test_a_model_fits_what_it_knows_better_than_noise_or_another_anatomy",
        "test_a_named_model_is_used_and_its_fit_is_said",
        "test_each_case_of_a_batch_has_its_own_model",
        "test_loaders_choose_for_each_image",
        "test_of_models_that_fit_alike_the_users_own_is_preferred",
        "test_parts_of_a_head_do_not_get_the_head_model",
        "test_real_scans_get_a_model_that_suits",
        "test_the_smaller_copy_of_a_large_scan_gives_nearly_the_same_fit",
    ),
    "test_fuzz": ("test_images", "test_the_longer_run_covers_all_kinds", "test_models", "test_weights"),
    "test_geometry": (
        "test_pictures_have_the_same_orientation_for_all_stored_axes",
        "test_simpleitk_gives_the_saved_image_of_a_volume",
        "test_the_field_decreases_smoothly_to_zero_outside",
    ),
    "test_gzip_blocks": ("test_deform_and_apply_write_the_same_voxels",),
    "test_hostile_models": ("test_memory_is_not_used_for_them", "test_refused_in_one_sentence"),
    "test_hostile_objects": (
        "test_a_mesh_does_not_unpack_to_all_the_memory",
        "test_damaged_meshes_and_points",
        "test_damaged_transforms",
    ),
    "test_images": (
        "test_every_sample_of_a_run_has_its_own_seed",
        "test_simpleitk_gives_the_saved_image_of_real_images",
    ),
    "test_inverse": (
        "test_the_command_writes_the_inverse",
        "test_the_inverse_transform_is_defined_everywhere",
    ),
    "test_label_vote": (
        "test_tubes_stay_in_one_piece_in_many_fields",
        "test_warped_labels_are_nearer_to_the_truth_than_the_nearest_voxel",
    ),
    "test_left_out": (
        "test_a_run_with_such_a_case",
        "test_changed_voxels_of_a_detached_header_are_noticed",
        "test_training_leaves_a_bad_case_out",
    ),
    "test_limits_of_options": ("test_large_voxels_are_right_or_refused",),
    "test_loaders": (
        "test_a_bank_has_the_fields_of_deform",
        "test_a_bank_is_resumed_and_never_mixed",
        "test_pairs_come_with_the_field_between_them",
        "test_missing_frameworks_are_reported_with_the_command_to_install_them",
        "test_workers_and_epochs_draw_differently_in_any_dataloader",
    ),
    "test_locks_without_flock": (
        "test_a_process_with_locks_and_one_without",
        "test_the_lock_of_a_killed_process_is_broken",
        "test_the_lock_of_another_computer_or_a_running_process_is_kept",
        "test_the_owner_of_a_real_lock_is_named_too",
        "test_two_processes_without_locks",
    ),
    "test_nnunet_commands": ("test_nnunet_finds_the_trainer",),
    "test_pose": ("test_a_posed_version_is_certified",),
    "test_pose_spread": (
        "test_a_known_spread_is_found",
        "test_a_run_keeps_the_poses_of_its_scans",
        "test_stored_axes_do_not_matter",
        "test_thick_slices_tell_nothing_across",
    ),
    "test_production": (
        "test_samples_whose_label_leaves_the_image_are_rejected",
        "test_every_sample_is_regenerated_exactly_from_its_record",
        "test_samples_beyond_the_limits_are_repeated_and_counted",
        "test_splits_keep_subjects_together",
        "test_the_quality_page_needs_no_other_file_and_shows_outliers_first",
    ),
    "test_production_inputs": ("test_a_table", "test_labels_of_any_type_become_consecutive_for_nnunet"),
    "test_published": (
        "test_full_recovery",
        "test_the_first_steps_are_those_of_the_paper",
        "test_one_prediction",
        "test_recovery_starts_at_the_chosen_level",
    ),
    "test_recovery": ("test_a_batch_of_seeds_equals_single_seeds",),
    "test_reference": ("test_the_pages_are_built",),
    "test_region_runs": (
        "test_a_run_is_resumed_and_regenerated_in_the_same_region",
        "test_runs_without_a_region_are_written_as_before",
    ),
    "test_regions": (
        "test_a_margin_is_a_limit_and_scales_the_field",
        "test_a_pose_moves_the_whole_scan_after_the_field",
        "test_fields_of_overlapping_margins_are_proven",
        "test_paired_structures_get_a_box_each_and_near_ones_share_it",
        "test_the_field_of_a_region_is_proven",
    ),
    "test_reload": ("test_reload_and_test_can_be_pressed_again", "test_an_installed_extension_runs_a_smoke_test"),
    "test_resampling": ("test_threads_may_share_an_image",),
    "test_run_kept": (
        "test_a_power_cut_costs_no_finished_file",
        "test_a_power_cut_costs_no_training",
        "test_a_record_cannot_name_other_files",
        "test_altered_results_are_noticed_and_made_again",
        "test_many_terminations_do_not_stop_the_cleanup",
    ),
    "test_shipped": (
        "test_a_second_demo_does_not_change_the_first",
        "test_demo",
        "test_the_chest_is_the_output_of_its_script",
        "test_the_chest_looks_as_its_script_draws_it",
        "test_brain_model_recovers_held_out_subjects",
        "test_cardiac_model_recovers_hearts_of_another_hospital",
        "test_demo",
        "test_general_model_recovers_held_out_subjects",
        "test_hippocampus_model_recovers_held_out_subjects",
        "test_hippocampus_model_undoes_most_of_a_deformation_in_one_prediction",
    ),
    "test_serve": ("test_the_same_files_as_by_separate_processes",),
    "test_start_of_slicer": ("test_no_large_package_is_imported_before_it_is_used",),
    "test_training": (
        "test_a_short_training_makes_fields_smoother",
        "test_the_default_model_has_coarse_fields_and_deforms_crops",
        "test_a_resumed_run_keeps_its_batch",
        "test_resuming_another_network_is_refused",
        "test_resumed_training_gives_the_weights_of_uninterrupted_training",
        "test_the_command_trains_and_resumes_and_its_model_deforms",
        "test_the_published_network_trains",
    ),
    "test_training_parts": ("test_the_pool_returns_matching_fields_and_is_renewed",),
    "test_training_stopped": (
        "test_a_training_continues_after_a_power_cut",
        "test_a_training_killed_before_its_first_checkpoint_starts_again",
        "test_a_training_stopped_at_many_moments_ends_with_the_same_weights",
        "test_a_training_whose_input_ends_stops_after_a_step",
        "test_something_else_is_not_resumed",
    ),
    "test_versions_together": (
        "test_a_bank_is_made_in_batches",
        "test_a_full_gpu_leads_to_the_cpu",
        "test_poses_and_other_scans_in_a_batch",
        "test_the_command_makes_the_same_files_in_batches",
        "test_versions_of_regions",
    ),
    "test_working_folder": (
        "test_a_job_of_the_panel",
        "test_a_source_tree_runs_without_being_installed",
        "test_started_in_a_folder_with_such_files",
    ),
    "test_wrong_input": ("test_a_training_on_one_scan_that_learned_nothing_says_so",),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test."""
    for item in items:
        for place, marker in FILES.items():
            if item.path.is_relative_to(ROOT / place):
                item.add_marker(marker)
        if getattr(item, "originalname", "") in SLOW.get(item.path.stem, ()):
            item.add_marker("slow")
