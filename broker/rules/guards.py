"""Guards: whether a version may be, by how many rows it has and how many it takes away. No I/O.

What a version does to the rows is known within bounds from its files' counts alone: a snapshot's rows are exact, an upsert may
be a new row or not, a delete may name a row or not. Only where the bounds do not decide must the keys be compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from broker.model.commit import Edge
from broker.model.dataset import DatasetSpec
from broker.model.finding import Objection

MIN_ROWS: Final = "min_rows"
MAX_ROWS: Final = "max_rows"
MAX_DELETE_RATIO: Final = "max_delete_ratio"


@dataclass(frozen=True, slots=True)
class Guards:
    """Limits of one dataset; these let everything pass. `max_delete_ratio`: of the rows before, how many may be gone."""

    min_rows: int = 0
    max_rows: int | None = None
    max_delete_ratio: float = 1.0

    def of(self, spec: DatasetSpec) -> Guards:
        """The dataset's own limits, these where it has none."""
        return Guards(
            self.min_rows if spec.min_rows is None else spec.min_rows,
            self.max_rows if spec.max_rows is None else spec.max_rows,
            self.max_delete_ratio if spec.max_delete_ratio is None else spec.max_delete_ratio,
        )


@dataclass(frozen=True, slots=True)
class Span:
    """A number that is at least `low` and at most `high`."""

    low: int
    high: int

    @classmethod
    def exact(cls, number: int) -> Span:
        return cls(number, number)


@dataclass(frozen=True, slots=True)
class Effect:
    """What a version does: rows before, rows after, and how many of those before are there no more."""

    before: Span
    after: Span
    gone: Span

    @classmethod
    def exact(cls, before: int, after: int, gone: int) -> Effect:
        return cls(Span.exact(before), Span.exact(after), Span.exact(gone))


def standing(road: Iterable[Edge]) -> Span:
    """Rows at the end of a road from nothing."""
    span = Span(0, 0)
    for edge in road:
        span = _after(span, edge)
    return span


def effect(road: Iterable[Edge], edge: Edge) -> Effect:
    """What `edge` does behind a road from nothing, within bounds."""
    before = standing(road)
    after = _after(before, edge)
    most = before.high if edge.base is None else min(before.high, _rows(edge, "deletes"))
    return Effect(before, after, Span(max(0, before.low - after.high) if edge.base is None else 0, most))


def objections(guards: Guards, found: Effect) -> tuple[Objection, ...] | None:
    """Every limit that the version breaks; None: the bounds do not decide, and exact numbers are needed."""
    verdicts = (_too_few(guards, found), _too_many(guards, found), _too_much_gone(guards, found))
    if any(verdict is None for verdict in verdicts):
        return None
    return tuple(objection for verdict in verdicts for objection in verdict or ())


Verdict = tuple[Objection, ...] | None


def _too_few(guards: Guards, found: Effect) -> Verdict:
    if found.after.low >= guards.min_rows:
        return ()
    text = f"{found.after.high} rows, at least {guards.min_rows} are wanted"
    return (Objection(MIN_ROWS, text),) if found.after.high < guards.min_rows else None


def _too_many(guards: Guards, found: Effect) -> Verdict:
    if guards.max_rows is None or found.after.high <= guards.max_rows:
        return ()
    text = f"{found.after.low} rows, at most {guards.max_rows} are wanted"
    return (Objection(MAX_ROWS, text),) if found.after.low > guards.max_rows else None


def _too_much_gone(guards: Guards, found: Effect) -> Verdict:
    ratio = guards.max_delete_ratio
    if ratio >= 1 or found.gone.high <= ratio * found.before.low:
        return ()
    if found.gone.low <= ratio * found.before.high:
        return None
    text = f"{found.gone.low} of {found.before.high} rows are gone, at most {ratio:.4g} of them may be"
    return (Objection(MAX_DELETE_RATIO, text),)


def _after(before: Span, edge: Edge) -> Span:
    if edge.base is None:
        return Span.exact(_rows(edge, "rows"))
    return Span(max(0, before.low - _rows(edge, "deletes")), before.high + _rows(edge, "upserts"))


def _rows(edge: Edge, role: str) -> int:
    return sum(file.rows for file in edge.files if file.role == role)
