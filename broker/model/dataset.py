"""What a dataset is: its key, order, columns and limits. Column types are DuckDB SQL type names, readable in JSON."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from broker.errors import BrokerError, Invalid, SchemaConflict
from broker.model.names import DatasetId, check_column

ColumnName = Annotated[str, AfterValidator(check_column)]

_INTEGERS: Final = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_UNSIGNED: Final = ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_WIDER: Final[dict[str, frozenset[str]]] = {
    **{name: frozenset(_INTEGERS[i + 1 :]) for i, name in enumerate(_INTEGERS)},
    **{name: frozenset((*_UNSIGNED[i + 1 :], *_INTEGERS[i + 1 :])) for i, name in enumerate(_UNSIGNED)},
    "FLOAT": frozenset({"DOUBLE"}),
    "DATE": frozenset({"TIMESTAMP"}),
    "TIMESTAMP_S": frozenset({"TIMESTAMP_MS", "TIMESTAMP"}),
    "TIMESTAMP_MS": frozenset({"TIMESTAMP"}),
}
_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),(\d+)\)")


class Frozen(BaseModel):
    """Base of all values that cross a boundary: immutable, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(Frozen):
    """A column's name and DuckDB type (`DOUBLE`, `DECIMAL(18,2)`, `VARCHAR`, ...)."""

    name: ColumnName
    type: str
    nullable: bool = True


def widens(old: str, new: str) -> bool:
    """Whether every value of type `old` is exactly a value of type `new`."""
    if old == new or new in _WIDER.get(old, ()):
        return True
    before, after = _DECIMAL.fullmatch(old), _DECIMAL.fullmatch(new)
    if not before or not after:
        return False
    (p1, s1), (p2, s2) = map(int, before.groups()), map(int, after.groups())
    return s2 >= s1 and p2 - s2 >= p1 - s1


class Schema(Frozen):
    """The columns of a dataset, in order. Fixed by the first version; changed by `alter` records only."""

    columns: tuple[Column, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        # DuckDB, SQLite and Postgres sinks do not tell columns apart by case.
        names = [column.name.casefold() for column in self.columns]
        if len(set(names)) != len(names):
            raise Invalid("column names repeat (case is ignored)", of=", ".join(sorted(n for n in names if names.count(n) > 1)))
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def types(self) -> dict[str, str]:
        """Column name -> SQL type."""
        return {column.name: column.type for column in self.columns}

    @property
    def id(self) -> str:
        """16 hex digits that name this schema."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def merged(self, arriving: Schema, order: tuple[str, ...] = ()) -> Schema:
        """The schema after `arriving` data: new nullable columns go behind, types widen. Raises SchemaConflict.

        A missing column reads as NULL, so it must be nullable. The type of an order column never changes (design, section 5).
        """
        incoming = {column.name: column for column in arriving.columns}
        result = [self._column(column, incoming.pop(column.name, None), order) for column in self.columns]
        return Schema(columns=(*result, *(column.model_copy(update={"nullable": True}) for column in incoming.values())))

    def grew_from(self, old: Schema, order: tuple[str, ...] = ()) -> bool:
        """Whether lossless alterations lead from `old` to this one."""
        try:
            return old == self or old.merged(self, order) == self
        except SchemaConflict:
            return False

    def __str__(self) -> str:
        """As SQL would declare it."""
        return ", ".join(f"{column.name} {column.type}{'' if column.nullable else ' NOT NULL'}" for column in self.columns)

    @staticmethod
    def _column(mine: Column, theirs: Column | None, order: tuple[str, ...]) -> Column:
        if theirs is None:
            if mine.nullable:
                return mine
            raise SchemaConflict("a column is missing", of=mine.name, why="the dataset says it is never null")
        if theirs.type in (mine.type, '"NULL"') or widens(theirs.type, mine.type):
            return mine
        if widens(mine.type, theirs.type) and mine.name not in order:
            return mine.model_copy(update={"type": theirs.type})
        raise SchemaConflict(
            "a column changed its type", of=mine.name, why=f"{theirs.type} does not fit {mine.type} without loss",
            hint="Cast it at the source, or alter the dataset with force, which begins a new session",
        )  # fmt: skip


GUARDS: Final = ("min_rows", "max_rows", "max_delete_ratio")
"""Fields of a spec that say which versions are refused; None: as the settings say."""


class DatasetSpec(Frozen):
    """The contract of one dataset. Two specs are the same dataset only if they are equal."""

    dataset: DatasetId
    key: tuple[ColumnName, ...] = Field(min_length=1)
    order: tuple[ColumnName, ...] = ()
    columns: Schema | None = None
    partitions: int = Field(1, ge=1, le=1024)
    tombstone_seconds: int = Field(7 * 86400, ge=0)
    min_rows: int | None = Field(None, ge=0)
    max_rows: int | None = Field(None, ge=0)
    max_delete_ratio: float | None = Field(None, ge=0, le=1)
    attributes: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, **fields: object) -> Self:
        """Raises InvalidName, SchemaConflict, or Invalid that names the field."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, BrokerError):
                raise cause from None
            field = ".".join(map(str, first["loc"]))
            raise Invalid("not a dataset spec", of=f"{fields.get('dataset')}: {field}", why=first["msg"]) from None

    @model_validator(mode="after")
    def _columns_exist(self) -> Self:
        if len(set(self.key)) != len(self.key) or set(self.key) & set(self.order):
            raise Invalid("key and order columns repeat", of=str(self.dataset), why=f"key={self.key} order={self.order}")
        if self.columns:
            self.check(self.columns)
        return self

    def check(self, schema: Schema) -> None:
        """Raises SchemaConflict when a key or order column is not among the schema's columns."""
        missing = [name for name in (*self.key, *self.order) if name not in schema.names]
        if missing:
            raise SchemaConflict(
                "key or order columns are missing", of=str(self.dataset), why=f"no {', '.join(missing)} in {schema.names}",
                hint="Name columns that the data has; they are compared with case",
            )  # fmt: skip

    @property
    def shape(self) -> dict[str, object]:
        """What never changes in a dataset's life. The schema grows by itself and is not part of it."""
        return {"key": self.key, "order": self.order, "partitions": self.partitions}

    def differences(self, asked: DatasetSpec) -> list[str]:
        """In words, what keeps `asked` from opening this dataset: nothing when it is equal, or was before the schema grew.

        Attributes do not count; `tombstone_seconds` and guards do where they were given.
        """
        mine, theirs = dict(self.shape), dict(asked.shape)
        for name in ("tombstone_seconds", *GUARDS):
            if name in asked.model_fields_set:
                mine[name], theirs[name] = getattr(self, name), getattr(asked, name)
        if self.columns and asked.columns and not self.columns.grew_from(asked.columns, self.order):
            mine["columns"], theirs["columns"] = str(self.columns), str(asked.columns)
        return [f"its {name} is {mine[name]}, asked for {theirs[name]}" for name in mine if mine[name] != theirs[name]]
