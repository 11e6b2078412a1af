"""dataset …: create, list, show, alter, drop."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from broker.cli.face import Face, Group, columns, fields_of, joined, names, pairs, pass_face
from broker.cli.words import bytes_text, span_text
from broker.connect import Dataset
from broker.errors import Invalid, InvalidRequest
from broker.model.dataset import GUARDS, Column, DatasetSpec, Schema

F = TypeVar("F", bound=Callable[..., Any])
NO_LIMIT: Final = -1.0
NEVER_NULL: Final = re.compile(r"\s+NOT\s+NULL\s*$", re.IGNORECASE)


def limit(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """A callback: a number, or `none`, which is NO_LIMIT."""

    def parsed(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
        del ctx
        try:
            return None if value is None else NO_LIMIT if value == "none" else kind(value)
        except ValueError:
            raise Invalid("not a limit", of=f"--{param.name}", why=value or "", hint="Write a number, or none") from None

    return parsed


def guard_options(command: F) -> F:
    """--min-rows, --max-rows, --max-delete-ratio."""
    helps = {
        "min_rows": (int, "ROWS", "Refuse versions with fewer rows."),
        "max_rows": (int, "ROWS", "Refuse versions with more rows."),
        "max_delete_ratio": (float, "RATIO", "Refuse versions that lack more of the rows before: 0.2 is a fifth."),
    }
    for name, (kind, metavar, text) in reversed(helps.items()):
        ending = " none: as the settings say."
        option = click.option(f"--{name.replace('_', '-')}", name, metavar=metavar, callback=limit(kind), help=text + ending)
        command = option(command)
    return command


def guards_given(**limits: float | None) -> dict[str, Any]:
    """Those that were given; `none` is None."""
    return {name: None if value == NO_LIMIT else value for name, value in limits.items() if value is not None}


@click.group("dataset", cls=Group, examples="broker dataset create shop/catalog/offers --key sku\nbroker dataset list --json")
def dataset() -> None:
    """Create, list, show, alter and drop datasets."""


@dataset.command(
    "create",
    examples="""
    broker dataset create shop/catalog/offers --key sku --order updated_at
    broker dataset create shop/pricing/prices --key sku,store --column "sku VARCHAR" --column "store VARCHAR"
    """,
    answer="{dataset, version, key, versions, bytes, session, spec}",
)
@click.argument("name", metavar="DATASET")
@click.option("--key", multiple=True, required=True, help="Key column; several: repeat it, or a,b.")
@click.option("--order", multiple=True, help="Columns that say which of two rows with one key is newer.")
@click.option(
    "--column",
    "column_texts",
    multiple=True,
    help='Column and DuckDB type, as "price DOUBLE [NOT NULL]"; else the first data says.',
)
@click.option(
    "--tombstone-seconds",
    type=click.IntRange(0),
    metavar="SECONDS",
    help="With --order: how long a delete is remembered against older rows that come late. Default: 7 days.",
)
@click.option("--attribute", "attributes", multiple=True, metavar="K=V", help="Free text for people; kept with the dataset.")
@guard_options
@pass_face
def create(
    face: Face,
    /,
    name: str,
    key: tuple[str, ...],
    order: tuple[str, ...],
    column_texts: tuple[str, ...],
    tombstone_seconds: int | None,
    attributes: tuple[str, ...],
    **limits: float | None,
) -> None:
    """Create a dataset; an equal one that exists is no error."""
    columns_given = tuple(parse_column(text) for text in column_texts)
    schema = Schema(columns=columns_given) if columns_given else None
    with face.connect() as broker:
        made = broker.dataset(
            name,
            key=names(key) or (),
            order=names(order) or (),
            schema=schema,
            tombstone_seconds=tombstone_seconds,
            attributes=pairs(attributes),
            **guards_given(**limits),
        )
        _emit_dataset(face, made)


@dataset.command(
    "list", examples="broker dataset list 'shop/*'", answer="A list of {dataset, version, key, versions, bytes, session}"
)
@click.argument("pattern", default="*")
@pass_face
def list_(face: Face, pattern: str) -> None:
    """Datasets whose id matches a glob."""
    with face.connect() as broker:
        found = [_summary(broker.dataset(name)) for name in broker.datasets(pattern)]
    heads = ("dataset", "version", "key", "versions", "bytes")
    face.emit(found, columns(heads, ([_cell(item[head]) for head in heads] for item in found)))


@dataset.command(
    "show", examples="broker dataset show shop/catalog/offers", answer="{dataset, version, key, versions, bytes, session, spec}"
)
@click.argument("name", metavar="DATASET")
@pass_face
def show(face: Face, name: str) -> None:
    """The spec, columns and newest version of a dataset."""
    with face.connect() as broker:
        _emit_dataset(face, broker.dataset(name))


@dataset.command(
    "alter",
    examples="""
    broker dataset alter shop/catalog/offers --column "colour VARCHAR"
    broker dataset alter shop/catalog/offers --min-rows 1000 --max-delete-ratio 0.2
    """,
    answer="{dataset, version, key, versions, bytes, session, spec}",
)
@click.argument("name", metavar="DATASET")
@click.option("--column", "column_texts", multiple=True, help='A new column or another type: "price DOUBLE".')
@click.option("--force", is_flag=True, help="Also a change with loss: it begins a new session, and replicas reset.")
@guard_options
@pass_face
def alter(face: Face, /, name: str, column_texts: tuple[str, ...], force: bool, **limits: float | None) -> None:
    """Add columns or change their types; set the guards that refuse a version."""
    guards = guards_given(**limits)
    if not column_texts and not guards:
        raise InvalidRequest("nothing to alter", of=name, hint='Give --column "price DOUBLE", or a guard: --min-rows 1000')
    with face.connect() as broker:
        found = broker.dataset(name)
        if column_texts:
            found.alter(altered(found.spec, [parse_column(text) for text in column_texts]), force)
        if guards:
            found.guard(**guards)
        _emit_dataset(face, found)


@dataset.command("drop", examples="broker dataset drop shop/catalog/offers --yes", answer="{dataset, dropped}")
@click.argument("name", metavar="DATASET")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_face
def drop(face: Face, name: str, yes: bool) -> None:
    """Offer a dataset no longer. Its log stays; created again, it has a new session."""
    with face.connect() as broker:
        found = broker.dataset(name)
        if not yes and not sys.stdin.isatty():
            raise InvalidRequest("nobody is there to confirm", of=name, hint="Add --yes")
        if not yes:
            click.confirm(f"Drop {name}?", abort=True, err=True)
        found.drop()
    face.emit({"dataset": name, "dropped": True}, f"dropped {name}")


def parse_column(text: str) -> Column:
    """`price DOUBLE`, `sku VARCHAR NOT NULL`. Raises Invalid."""
    name, _, kind = text.strip().partition(" ")
    declared = NEVER_NULL.sub("", kind)
    if not declared.strip():
        raise Invalid("not a column", of=text[:100], hint='Write --column "price DOUBLE"')
    return Column(name=name, type=declared.strip(), nullable=declared == kind)


def altered(spec: DatasetSpec, changes: list[Column]) -> Schema:
    """The spec's columns with the changed ones in place and new ones behind. Raises Invalid when nothing is known yet."""
    if spec.columns is None:
        raise Invalid("the dataset has no columns yet", of=spec.dataset, hint="Its first version brings them")
    change = {column.name: column for column in changes}
    kept = [change.pop(column.name, column) for column in spec.columns.columns]
    return Schema(columns=(*kept, *change.values()))


def _summary(found: Dataset) -> dict[str, Any]:
    state = found.state
    return {
        "dataset": str(found.id), "version": state.version, "key": list(state.spec.key), "versions": len(state.versions),
        "bytes": sum(edge.bytes for edge in state.edges), "session": state.session,
    }  # fmt: skip


def _emit_dataset(face: Face, found: Dataset) -> None:
    spec = found.spec
    value = _summary(found) | {"spec": spec.model_dump(mode="json")}
    lines = fields_of(
        {
            "dataset": spec.dataset,
            "version": str(value["version"]),
            "key": ", ".join(spec.key),
            "order": ", ".join(spec.order),
            "tombstones": span_text(spec.tombstone_seconds) if spec.order else None,
            "bytes": bytes_text(value["bytes"]),
            "session": value["session"],
            "guards": joined({name: f"{getattr(spec, name)}" for name in GUARDS if getattr(spec, name) is not None}),
            "attributes": joined(spec.attributes),
        }
    )
    described = spec.columns.columns if spec.columns else ()
    lines += [f"column  {column.name} {column.type}{'' if column.nullable else ' NOT NULL'}" for column in described]
    face.emit(value, lines)


def _cell(value: object) -> object:
    return ", ".join(value) if isinstance(value, list) else value
