"""Validators: the user's own say on a version before it is sealed.

    @app.validator("*/catalog/offers")
    def priced(proposed):                            # Proposed
        if proposed.kind == "snapshot" and proposed.rows < 1_000:
            yield f"only {proposed.rows} offers"

What it returns or yields speaks against the version, each a sentence; nothing: it passes. Raising `errors.Vetoed` refuses, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from broker.errors import AttemptFailed, BrokerError, Invalid, Vetoed
from broker.model.commit import EdgeKind
from broker.model.dataset import DatasetSpec
from broker.model.finding import Objection
from broker.model.names import check_pattern
from broker.rules.patterns import pattern_matches


@dataclass(frozen=True)
class Proposed:
    """What is about to be sealed: files that are complete, and that nobody sees yet.

    `rows`: of a snapshot, all it has; of a delta, `upserts` and `deletes` together. Tables are read when they are asked for.
    """

    spec: DatasetSpec
    version: int
    kind: EdgeKind
    rows: int
    upserts: int
    deletes: int
    open: Callable[[], tuple[pa.RecordBatchReader, pa.RecordBatchReader]] = field(repr=False)
    """The changes as streams, for what does not fit into memory: rows or upserts; keys of deletes."""

    @property
    def dataset(self) -> str:
        return str(self.spec.dataset)

    @cached_property
    def changes(self) -> pa.Table:
        """All rows of a snapshot, or a delta's upserts."""
        return self.open()[0].read_all()

    @cached_property
    def deleted(self) -> pa.Table:
        """Keys (with the order columns, where there are some) of a delta's deletes."""
        return self.open()[1].read_all()


@dataclass(frozen=True, slots=True)
class Validator:
    """One registered function. Several may look at one dataset: all that they find counts."""

    pattern: str
    function: Callable[[Proposed], object]
    name: str

    def __post_init__(self) -> None:
        check_pattern(self.pattern)
        try:
            inspect.signature(self.function).bind("proposed")
        except (TypeError, ValueError) as error:
            raise Invalid(
                "a validator has the wrong parameters", of=self.name, why=str(error), hint="def f(proposed)"
            ) from None

    def concerns(self, dataset: str) -> bool:
        return pattern_matches(self.pattern, dataset)

    def objections(self, proposed: Proposed) -> tuple[Objection, ...]:
        """What it finds. Raises its typed errors, AttemptFailed for others, Invalid for an answer of another kind."""
        try:
            found = self.function(proposed)
            texts = _texts(found)
        except Vetoed as veto:
            texts = veto.findings if veto.why else (veto.what,)
        except BrokerError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:1000]
            raise AttemptFailed("a validator failed", of=self.name, why=why) from error
        if texts is None:
            raise Invalid(
                "a validator answers with sentences", of=self.name, why=f"{type(found).__name__}: {found!r}"[:200],
                hint="Return or yield what speaks against the version, each a str; nothing when all is well",
            )  # fmt: skip
        return tuple(Objection(self.name, text) for text in texts)


def _texts(found: Any) -> tuple[str, ...] | None:
    """Sentences; None when it is something else. A bool says nothing that a person could act on."""
    if found is None:
        return ()
    if isinstance(found, str):
        return (found,)
    if not isinstance(found, Iterable):
        return None
    texts = tuple(found)
    return texts if all(isinstance(text, str) for text in texts) else None
