"""What a campaign does beyond a run of the suite, by the environment.

How often a law is tried: a few times in every run of the suite, BROKER_TEST_EXAMPLES times in `make laws`. Which steps are
killed where: some of them, or with BROKER_FAULT_MATRIX=whole (`make eager-schedules`) each step on each kind of store.
"""

from __future__ import annotations

import os

ASKED = int(os.environ.get("BROKER_TEST_EXAMPLES", "0"))
WHOLE_MATRIX = os.environ.get("BROKER_FAULT_MATRIX") == "whole"


def examples(few: int) -> int:
    """For `max_examples`; a campaign never tries less than the suite does."""
    return max(few, ASKED)
