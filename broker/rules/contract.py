"""Decisions about a dataset's spec: what opening or altering it means over the state there is, as a record or None."""

from __future__ import annotations

from collections.abc import Mapping

from broker.errors import Conflict, Invalid, SchemaConflict, Unsupported
from broker.model.attributes import check_attributes
from broker.model.commit import Alter, Create
from broker.model.dataset import GUARDS, DatasetSpec, Schema
from broker.rules.fold import State


def opened(state: State, spec: DatasetSpec, session: str) -> Create | None:
    """The record that creates the dataset (as `session`), or None where it exists and `spec` opens it.

    Raises Conflict that names what differs, Unsupported, Invalid.
    """
    if not state.exists:
        check_attributes(spec.attributes, spec.dataset)
        if spec.partitions > 1:
            raise Unsupported(
                "a dataset in several partitions", of=spec.dataset, why="its files are not partitioned yet",
                hint="Leave partitions out; a producer can cut its work: @app.producer(..., partitions=N)",
            )  # fmt: skip
        return Create(session=session, spec=spec)
    asked = spec.model_copy(update={"columns": keyed(state.spec, spec.columns)}) if spec.columns else spec
    if differing := state.spec.differences(asked):
        raise Conflict(
            "the dataset exists with another spec", of=spec.dataset, why="; ".join(differing),
            hint="Open it as it is, alter its schema, or drop it first",
        )  # fmt: skip
    return None


def altered(state: State, schema: Schema, session: str | None) -> Alter | None:
    """The record that makes `schema` the dataset's; None where it is. With loss only by force, into a new `session`.

    Raises NotFound, SchemaConflict.
    """
    spec, wanted = state.spec, keyed(state.spec, schema)
    if spec.columns == wanted:
        return None
    spec.check(wanted)
    grown = spec.model_copy(update={"columns": wanted})
    try:
        if spec.columns is None or spec.columns.merged(wanted, spec.order) == wanted:
            return Alter(spec=grown)
    except SchemaConflict:
        if session is None:
            raise
    if session is None:
        raise SchemaConflict(
            "not a lossless change", of=state.dataset, why="columns are missing or in another order",
            hint="Force it: that begins a new session, and replicas reset",
        )  # fmt: skip
    return Alter(spec=grown, session=session)


def guarded(state: State, limits: Mapping[str, float | None]) -> Alter | None:
    """The record that gives the dataset other guards, in the same session; None where they are so already.

    `limits`: those of GUARDS that change; None takes the settings' one. Raises NotFound, Invalid that names the field.
    """
    if unknown := limits.keys() - set(GUARDS):
        raise Invalid("no such guard", of=", ".join(sorted(unknown)), hint=f"There are {', '.join(GUARDS)}")
    spec = DatasetSpec.of(**dict(state.spec) | dict(limits))
    return None if spec == state.spec else Alter(spec=spec)


def keyed(spec: DatasetSpec, schema: Schema) -> Schema:
    """The schema with key columns as the dataset has them: never null, which a caller's Arrow schema hardly ever says."""
    known = {column.name: column.nullable for column in spec.columns.columns} if spec.columns else {}
    return Schema(
        columns=tuple(
            column.model_copy(update={"nullable": known.get(column.name, False)}) if column.name in spec.key else column
            for column in schema.columns
        )
    )
