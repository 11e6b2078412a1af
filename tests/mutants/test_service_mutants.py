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
    ("channel_compare_off", "parts/test_channels.py::test_of_two_promoters_at_once_one_is_told_of_the_other"),
    ("notify_reread_off", "parts/test_channels.py::test_a_file_is_written_again_when_its_channel_moved_under_the_pen"),
    ("order_tie_off", "parts/test_columnar_merge.py::test_the_rows_that_stand_are_those_of_the_merge_rule_at_every_version"),
)


@pytest.mark.parametrize(("mutant", "named"), NAMED)
def test_without_this_safeguard_the_named_test_turns_red(mutant: str, named: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", f"tests.mutants.{mutant}", "-x", "--tb=line", f"tests/{named}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == TESTS_FAILED, done.stdout + done.stderr
