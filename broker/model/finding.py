"""What a check found: a verdict and a sentence."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "note", "broken"]
"""`note`: it works, and promises less than it could."""


class Finding(NamedTuple):
    """One line of a check, for people."""

    verdict: Verdict
    text: str
