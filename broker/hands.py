"""The two jobs of a cut production, each in a process of its own: make one part; put all parts together as one version.

A part's files are sealed objects that nobody names until the finaliser commits them, all in one edge: a snapshot where no
version stands, the difference of the parts' union to what stands, or the parts' deltas side by side.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, Final, Literal, TypeVar

from broker.catalog import Catalog
from broker.columnar.engine import EVERYTHING, Engine, Written
from broker.cuts import FINALISE, Cut, CutPlan, Cuts, PartMade
from broker.errors import BrokerError, Invalid, Transient
from broker.flights import Flight
from broker.fulfilment import Produced
from broker.model.commit import Edge, File
from broker.model.dataset import DatasetSpec, Schema
from broker.outcomes import (
    MAX_POSITION_BYTES,
    Delta,
    Outcome,
    ProductionRequest,
    Since,
    Snapshot,
    Unchanged,
    attributes_of,
    close,
    failure_of,
    resolve_position,
)
from broker.producers import Producers
from broker.publication import Note, Publication
from broker.rules.steps import OnStep, nothing

T = TypeVar("T")
log = logging.getLogger("broker.hands")
STEPS: Final = ("part-written", "part-recorded", "gathered", "finalised")
"""The named steps of the jobs, in order: tests crash at each. Those of publishing lie between the last two."""
OWN_POSITIONS: Final = "parts"
PAUSES_SECONDS: Final = (0.1, 0.5, 2.0, 5.0, 10.0, 20.0)
"""Work that is done waits for a Redis that restarts, rather than be done again."""


class Hands:
    """Does one task and ends. `producers_of` loads the application that a plan names."""

    def __init__(
        self, cuts: Cuts, catalog: Catalog, engine: Engine, publication: Publication, on_step: OnStep = nothing
    ) -> None:
        self._cuts, self._catalog, self._engine, self._publication = cuts, catalog, engine, publication
        self._on_step = on_step

    def make(self, flight: str, task: str, attempt: int, producers_of: Callable[[str], Producers]) -> bool:
        """Run one part and record its files, or its error, which is raised too. True: the finaliser is due."""
        plan = self._cuts.plan_of(flight)
        if plan is None:
            return False
        try:
            made = self._made(plan, plan.parts[int(task)], producers_of(plan.app))
        except BrokerError as error:
            self._cuts.failed(flight, task, attempt, error)
            raise
        self._on_step("part-written")
        result, size = made.model_dump_json(exclude_defaults=True), (made.rows, made.bytes)
        last = insisted(lambda: self._cuts.done(flight, task, attempt, result, size))
        self._on_step("part-recorded")
        return last

    def _made(self, plan: CutPlan, part: str, producers: Producers) -> PartMade:
        spec = self._catalog.state(plan.dataset).spec
        since = None if plan.first else Since(plan.version, position_of(plan.position, part))
        outcome = producers.match(plan.dataset).run(ProductionRequest(plan.dataset, spec), since, part)
        try:
            made = self._written(spec, outcome, first=plan.first)
            return made.model_copy(update={"position": resolve_position(outcome), "attributes": attributes_of(outcome)})
        except Exception as error:
            raise failure_of(outcome, error) from error
        finally:
            close(outcome)

    def _written(self, spec: DatasetSpec, outcome: Outcome, first: bool) -> PartMade:
        kind: Literal["snapshot", "delta"]
        match outcome:
            case Snapshot(data=data):
                kind, written = "snapshot", self._engine.write_snapshot(spec, data)
            case Delta(upserts=upserts) if first:
                kind, written = "delta", self._engine.write_snapshot(spec, [] if upserts is None else upserts)
            case Delta(upserts=upserts, deletes=deletes):
                kind, written = "delta", self._engine.write_delta(spec, upserts, deletes)
            case Unchanged():
                if first:
                    raise Invalid(
                        "the producer said Unchanged", of=str(spec.dataset), why="no version exists yet", hint="Give a Snapshot"
                    )
                return PartMade(kind="unchanged")
        self._publication.verify(written)
        return PartMade(kind=kind, files=written.files, schema_after=written.schema)

    def finalise(self, flight: str, attempt: int, producers_of: Callable[[str], Producers]) -> None:
        """Put the parts together as one version, under the present fence of the flight. Idempotent by the production id.

        Raises DuplicateKey across parts, Vetoed, Invalid (parts of different kinds), SchemaConflict, Fenced, StaleBase.
        """
        cut, held = self._cuts.load(flight), self._cuts.flight(flight)
        if cut is None or held is None:
            return
        try:
            produced = self._published(held, cut, self._publication.with_validators(producers_of(cut.plan.app).validators))
        except BrokerError as error:
            self._cuts.failed(flight, FINALISE, attempt, error)
            raise
        insisted(lambda: self._cuts.done(flight, FINALISE, attempt, produced.model_dump_json()))
        self._on_step("finalised")

    def _published(self, held: Flight, cut: Cut, publication: Publication) -> Produced:
        plan, made = cut.plan, dict(cut.made())
        state = self._catalog.state(plan.dataset)
        if (version := state.made_by(held.id)) is not None:
            return Produced(version=version, changed=True, confirmed_at=plan.started, session=state.session)
        kind, position, files = kind_of(made), positions(plan.position, made), gathered(made.values())
        if not files:
            return Produced(
                version=plan.version, changed=False, confirmed_at=plan.started, position=noted(position), session=state.session
            )
        schema = merged_schema(state.spec, made.values())
        note = Note(
            production=held.id, started=plan.started, lease=held.lease, position=lambda: position, kind="producer",
            attributes={name: text for part in made.values() for name, text in part.attributes.items()},
        )  # fmt: skip
        self._on_step("gathered")
        spec = state.spec.model_copy(update={"columns": schema})
        edge = Edge(base=None if plan.first or kind == "snapshot" else plan.version, version=plan.version + 1, files=files)
        if kind == "snapshot" and state.edges:
            published = publication.difference(plan.dataset, Union(self._engine, spec, edge), note)
        else:
            self._engine.check_keys(spec, edge)
            written = Written(files, schema, edge.rows)
            published = publication.assembled(plan.dataset, written, note, edge.base, plan.version)
        changed = published.edge is not None
        return Produced(
            version=published.version, changed=changed, confirmed_at=plan.started,
            position=None if changed else noted(position), session=state.session,
        )  # fmt: skip


class Union:
    """The rows of all parts as data that can be read again and again: an Arrow stream, made anew for each reader."""

    def __init__(self, engine: Engine, spec: DatasetSpec, edge: Edge) -> None:
        self._engine, self._spec, self._edge = engine, spec, edge

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return self._engine.read(self._spec, [self._edge], EVERYTHING).__arrow_c_stream__(requested_schema)


def insisted(record: Callable[[], T]) -> T:
    """What an idempotent call answers, repeated while its errors are transient, for about 40 seconds."""
    for pause in PAUSES_SECONDS:
        try:
            return record()
        except Transient as error:
            log.warning("again in %.1f s: %s", pause, error)
            time.sleep(pause)
    return record()


# --- decisions


def kind_of(made: dict[str, PartMade]) -> str:
    """snapshot or delta; a part that is unchanged goes with deltas. Raises Invalid for parts of both kinds."""
    kinds = {part.kind for part in made.values()}
    if "snapshot" in kinds and len(kinds) > 1:
        named = {part.kind: name for name, part in made.items()}
        raise Invalid(
            "the parts are of different kinds", of=", ".join(f"part {name!r} a {kind}" for kind, name in sorted(named.items())),
            why="a version is made of snapshots only, or of deltas only", hint="Let the producer decide by `since` alone",
        )  # fmt: skip
    return "snapshot" if "snapshot" in kinds else "delta"


def gathered(made: Iterable[PartMade]) -> tuple[File, ...]:
    """All parts' files; empty ones only where there is nothing else, since a snapshot without a row is one too."""
    files = tuple(file for part in made for file in part.files)
    return tuple(file for file in files if file.rows) or files[:1]


def merged_schema(spec: DatasetSpec, made: Iterable[PartMade]) -> Schema:
    """The dataset's schema after all parts. Raises SchemaConflict when two parts disagree."""
    found = [schema for schema in (spec.columns, *(part.schema_after for part in made)) if schema is not None]
    return reduce(lambda one, other: one.merged(other, spec.order), found)


def positions(before: Any, made: dict[str, PartMade]) -> Any:
    """What is noted with the version: each part's own position by its name; None when no part has one. Raises Invalid.

    A part that is unchanged and says no position keeps the one it had.
    """
    given = {
        name: position_of(before, name) if part.kind == "unchanged" and part.position is None else part.position
        for name, part in made.items()
    }
    kept = {name: position for name, position in given.items() if position is not None}
    position = {OWN_POSITIONS: kept} if kept else None
    if (size := len(json.dumps(position))) > MAX_POSITION_BYTES:
        raise Invalid(
            "the positions of all parts are too long together", of=f"{size} bytes", why=f"at most {MAX_POSITION_BYTES}",
            hint="Note less per part, or cut into fewer parts",
        )  # fmt: skip
    return position


def noted(position: Any) -> str | None:
    """For a production without a version: JSON, or None, which leaves what was noted before."""
    return None if position is None else json.dumps(position)


def position_of(position: Any, part: str) -> Any:
    """What a part noted itself the last time; a position noted by a producer without parts is told to all."""
    if isinstance(position, dict) and position.keys() == {OWN_POSITIONS}:
        return position[OWN_POSITIONS].get(part)
    return position
