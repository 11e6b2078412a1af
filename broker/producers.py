"""The registry of producers: which function serves which datasets, and where an application keeps it.

    app = Producers()

    @app.producer("*/catalog/offers")
    def offers_of(request, since):                   # ProductionRequest, Since | None
        return Snapshot(table, position={"lsn": 812})

What a producer may answer is in `outcomes`, whose names this module offers too.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from broker.errors import BrokerError, Conflict, Invalid, NotFound, Terminal
from broker.model.names import check_pattern
from broker.outcomes import (
    Delta,
    Outcome,
    ProductionRequest,
    Since,
    Snapshot,
    Unchanged,
    attempt_failed,
    close,
    failure_of,
    outcome_of,
    resolve_position,
)
from broker.producers_validators import Proposed, Validator
from broker.rules.patterns import pattern_matches, patterns_overlap

__all__ = [
    "Delta",
    "Outcome",
    "Producer",
    "Producers",
    "ProductionRequest",
    "Proposed",
    "Since",
    "Snapshot",
    "Unchanged",
    "close",
    "failure_of",
    "load_app",
    "outcome_of",
    "patterns_overlap",
    "resolve_position",
]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Producer:
    """One registered function. `part_count` or (`partition_by`, `values`) cut a heavy production into parts."""

    pattern: str
    function: Callable[..., Any]
    name: str
    partition_by: str | None = None
    values: Callable[[ProductionRequest], Iterable[str]] | None = None
    partitions: int | None = None

    @property
    def partitioned(self) -> bool:
        return self.partition_by is not None or self.partitions is not None

    def parts(self, request: ProductionRequest) -> tuple[str, ...]:
        """Names of the parts of one production; () when it is not cut. Raises Invalid, or AttemptFailed from `values`."""
        if self.partitions is not None:
            return tuple(str(index) for index in range(self.partitions))
        if self.values is None:
            return ()
        try:
            found = tuple(self.values(request))
        except Exception as error:
            raise attempt_failed(error, self.name) from error
        if not all(isinstance(value, str) for value in found) or len(set(found)) != len(found):
            raise Invalid("partition values must be different strings", of=self.name, why=repr(found)[:200])
        return found

    def run(self, request: ProductionRequest, since: Since | None, part: str | None = None) -> Outcome:
        """One call of the function. Raises its typed errors, AttemptFailed for others, Invalid for a wrong answer.

        `part` is a name of `parts()`; a function registered with `partitions=N` gets it as an int.
        """
        given = () if part is None else (part if self.partitions is None else int(part),)
        try:
            value = self.function(request, since, *given)
        except Exception as error:
            raise attempt_failed(error, self.name) from error
        return outcome_of(value, self.name, request.spec)


class Producers:
    """Patterns and the functions that serve them. No two patterns may match one dataset, whatever datasets exist."""

    def __init__(self) -> None:
        self._producers: list[Producer] = []
        self._validators: list[Validator] = []

    def __iter__(self) -> Iterator[Producer]:
        return iter(self._producers)

    def __len__(self) -> int:
        return len(self._producers)

    def producer(
        self,
        pattern: str,
        *,
        partition_by: str | None = None,
        values: Callable[[ProductionRequest], Iterable[str]] | None = None,
        partitions: int | None = None,
    ) -> Callable[[F], F]:
        """Decorator: serve datasets that match `pattern` (an id whose parts may hold `*`) by `f(request, since)`.

        With `partition_by` and `values`, or `partitions=N`, it is `f(request, since, part)`, called once a part; parts are
        not one moment of the source. Raises InvalidName, Invalid (signature, arguments), Conflict (overlap).
        """

        def register(function: F) -> F:
            self._register(Producer(pattern, function, name_of(function), partition_by, values, partitions))
            return function

        return register

    def validator(self, pattern: str) -> Callable[[F], F]:
        """Decorator: ask `f(proposed)` about every version of datasets that match `pattern` that producers here make.

        What it returns or yields, a sentence each, refuses the version: see `Proposed`. Patterns may overlap: all are asked.
        Raises InvalidName, Invalid (signature).
        """

        def register(function: F) -> F:
            self._validators.append(Validator(pattern, function, name_of(function)))
            return function

        return register

    @property
    def validators(self) -> tuple[Validator, ...]:
        return tuple(self._validators)

    def add(self, pattern: str, source: Callable[[ProductionRequest, Since | None], object]) -> None:
        """Serve datasets that match `pattern` by a ready-made source. Raises as `producer` does."""
        self._register(Producer(pattern, source, name_of(source)))

    def match(self, dataset: str) -> Producer:
        """The producer of a dataset. Raises NotFound."""
        for producer in self._producers:
            if pattern_matches(producer.pattern, dataset):
                return producer
        served = ", ".join(producer.pattern for producer in self._producers)
        raise NotFound(
            "no producer for this dataset", of=dataset, why=f"only {served or 'nothing'} is served",
            hint="Register one with @app.producer(pattern)",
        )  # fmt: skip

    def _register(self, producer: Producer) -> None:
        check_pattern(producer.pattern)
        _check_partitioning(producer)
        _check_signature(producer)
        for other in self._producers:
            if patterns_overlap(producer.pattern, other.pattern):
                raise Conflict(
                    "two patterns match one dataset", of=producer.pattern, why=f"{other.pattern} is served by {other.name}",
                    hint="Narrow one of them, or serve both by one function",
                )  # fmt: skip
        self._producers.append(producer)


def name_of(function: Callable[..., Any]) -> str:
    """`module.function`, or `module.Class` of a callable object: how errors and dead letters name a producer."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _check_partitioning(producer: Producer) -> None:
    if producer.partitions is not None and (producer.partitions < 1 or producer.partition_by or producer.values):
        raise Invalid("partitions is a count of at least 1, without partition_by and values", of=producer.name)
    if (producer.partition_by is None) != (producer.values is None):
        raise Invalid("partition_by and values belong together", of=producer.name, hint="values(request) lists the parts")


def _check_signature(producer: Producer) -> None:
    wanted = ("request", "since", "part")[: 3 if producer.partitioned else 2]
    try:
        inspect.signature(producer.function).bind(*wanted)
    except (TypeError, ValueError) as error:
        raise Invalid(
            "a producer has the wrong parameters", of=producer.name, why=str(error), hint=f"def f({', '.join(wanted)})"
        ) from None


def load_app(target: str) -> Producers:
    """The registry that `module:attribute` names; the current folder is importable, as with `python -m`.

    Raises Invalid (malformed, or not a Producers), NotFound (module or attribute), Terminal (the module itself fails).
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise Invalid("not an application", of=target, why="module:attribute is wanted", hint="Example: my_module:app")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    found = getattr(_module(module_name, target), attribute, None)
    if found is None:
        raise NotFound("the module has no such attribute", of=target, hint=f"Define {attribute} = broker.Producers() in it")
    if not isinstance(found, Producers):
        raise Invalid(
            "not a registry of producers", of=target, why=f"it is a {type(found).__name__}", hint="Name a broker.Producers()"
        )
    return found


def _module(name: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise NotFound("no such module", of=target, why=str(error), hint="Run in its folder, or install it") from None
        if isinstance(error, BrokerError):
            raise
        raise Terminal("the module failed while it was imported", of=target, why=f"{type(error).__name__}: {error}") from error
