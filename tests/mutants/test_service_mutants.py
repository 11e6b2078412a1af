"""Safeguards around the protocol: with each one off, the test named for it turns red.

Each mutant is a pytest plugin in this folder; the named test runs under it in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
TESTS_FAILED: Final = 1
"""pytest's exit code; a test that is not found, or a plugin that breaks, has another one."""
NAMED: Final = (
    ("janitor_off", "parts/test_janitor.py::test_a_commit_that_was_left_behind_its_reservation_is_finished[seal]"),
    ("sink_compare_off", "contracts/test_sinks.py::test_the_same_apply_twice_is_refused_and_changes_nothing[memory]"),
    ("tombstones_off", "contracts/test_sinks.py::test_a_late_older_upsert_does_not_bring_a_deleted_row_back[sqlite]"),
    (
        "tombstone_age_off",
        "parts/test_columnar_merge.py"
        "::test_a_tombstone_lives_its_seconds_from_the_commit_of_its_delete_however_many_snapshots_carry_it",
    ),
    ("tombstone_age_in_sinks_off", "contracts/test_sinks.py::test_a_tombstone_ends_after_its_time[sqlite]"),
    ("tombstone_age_in_sinks_off", "contracts/test_sinks.py::test_a_tombstone_ends_after_its_time[memory]"),
    (
        "channel_leftovers_off",
        "parts/test_channels.py::test_a_version_whose_promotion_was_left_behind_its_reservation_keeps_its_road",
    ),
    (
        "channel_leftovers_off",
        "parts/test_channels.py::test_a_version_whose_retirement_was_left_behind_its_reservation_is_not_promoted",
    ),
    (
        "brought_back_off",
        "faults/test_changelog_faults.py::test_a_block_of_a_long_call_that_redis_lost_on_the_way_is_brought_again",
    ),
    (
        "log_look_off",
        "faults/test_changelog_faults.py::test_a_log_is_not_opened_from_a_state_that_was_read_before_redis_was_lost_again",
    ),
    ("channel_compare_off", "parts/test_channels.py::test_of_two_promoters_at_once_one_is_told_of_the_other"),
    ("notify_reread_off", "parts/test_channels.py::test_a_file_is_written_again_when_its_channel_moved_under_the_pen"),
    ("order_tie_off", "parts/test_columnar_merge.py::test_the_rows_that_stand_are_those_of_the_merge_rule_at_every_version"),
    (
        "producer_marks_off",
        "parts/test_changelog.py::test_the_same_block_again_is_dropped_and_a_gap_is_refused_with_the_number_expected",
    ),
    ("sealed_marks_off", "faults/test_changelog_faults.py::test_after_a_total_loss_the_sealed_marks_count"),
    (
        "retention_cursors_off",
        "parts/test_retention_consumers.py::test_nobody_who_lives_loses_a_road_and_the_store_stays_small[in-turn]",
    ),
    ("settled_off", "parts/test_compactor.py::test_where_readers_keep_too_much_an_edge_is_settled_that_holds_nothing_late[0]"),
    ("sweep_wait_off", "parts/test_sweep.py::test_a_retired_file_goes_when_no_answer_can_name_it_and_not_before"),
    ("gate_off", "parts/test_guards.py::test_a_version_that_takes_too_much_away_is_refused_and_the_old_one_stays[snapshot]"),
    (
        "source_compare_off",
        "rules/test_batching.py::test_whatever_waits_and_whoever_commits_ranges_have_neither_gap_nor_overlap",
    ),
    ("batch_epoch_off", "rules/test_batching.py::test_a_batch_of_another_session_or_of_a_redis_that_restarted_fits_no_more"),
    (
        "coalescing_order_off",
        "parts/test_coalesce.py::test_any_order_duplication_and_split_of_the_same_changes_gives_one_state",
    ),
    ("log_floor_off", "faults/test_changelog_faults.py::test_ids_outgrow_those_of_a_server_whose_clock_was_ahead"),
)


@pytest.mark.parametrize(("mutant", "named"), NAMED)
def test_without_this_safeguard_the_named_test_turns_red(mutant: str, named: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", f"tests.mutants.{mutant}", "-x", "--tb=line", f"tests/{named}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == TESTS_FAILED, done.stdout + done.stderr
