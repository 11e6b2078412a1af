"""How often a law is tried: a few times in every run of the suite, BROKER_TEST_EXAMPLES times in a campaign (`make laws`)."""

from __future__ import annotations

import os

ASKED = int(os.environ.get("BROKER_TEST_EXAMPLES", "0"))


def examples(few: int) -> int:
    """For `max_examples`; a campaign never tries less than the suite does."""
    return max(few, ASKED)
