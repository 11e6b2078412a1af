"""What a check found: a verdict and a sentence."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "note", "broken"]
"""`note`: it works, and promises less than it could."""


class Finding(NamedTuple):
    """One line of a check, for people."""

    verdict: Verdict
    text: str


class Objection(NamedTuple):
    """Why a version is refused: `rule` is the guard's name, or the validator's; `text` is for people."""

    rule: str
    text: str
