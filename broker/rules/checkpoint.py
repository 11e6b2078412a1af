"""Checkpoints: the sealed form of a state, where a rebuild starts instead of at record 1."""

from __future__ import annotations

from typing import Literal

from broker.errors import Corrupt
from broker.model.dataset import Frozen
from broker.rules.fold import State
from broker.rules.patch import TABLES


class Checkpoint(Frozen):
    """The sealed fold of all records up to the state's seq: where a rebuild starts."""

    format: Literal[1] = 1
    dataset: str
    tables: dict[str, dict[str, str]]

    @classmethod
    def of(cls, state: State) -> bytes:
        tables = {name: dict(sorted(state.tables[name].items())) for name in TABLES}
        return cls(dataset=state.dataset, tables=tables).model_dump_json().encode()

    @classmethod
    def parse(cls, data: bytes, of: str) -> Checkpoint:
        """Raises Corrupt for anything but a checkpoint of a known format."""
        try:
            found = cls.model_validate_json(data)
            found.state().seq  # noqa: B018 - raises ValueError when it is no number
        except ValueError as error:  # pydantic's ValidationError is one
            first = str(error).splitlines()[0]
            raise Corrupt(
                "not a checkpoint of format 1", of=of, why=first, hint="It was damaged: older ones and the log remain"
            ) from None
        return found

    def state(self) -> State:
        return State(self.dataset, {name: self.tables.get(name, {}) for name in TABLES})
