"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass

from broker.model.finding import Verdict


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    verdict: Verdict
    subject: str
    text: str
