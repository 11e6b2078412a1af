"""Which files a commit log names: those offered now, and those it gave up, by the record that did.

The sweep asks it about the objects it found. It remembers no others, so its memory is bounded by what is offered and what was
asked about, however long the log is.
"""

from __future__ import annotations

from collections.abc import Container

from broker.errors import Corrupt
from broker.model.commit import Edge, digest, parse_record
from broker.rules.fold import State
from broker.rules.patch import edge_field, patch_of


class Naming:
    """Follows a log record by record, from a state on. `gone`: key of `asked` -> number of the record that gave it up last.

    Edges end in many ways (retired, dropped, left behind by a new session): what counts is what the fold drops.
    """

    def __init__(self, start: State, asked: Container[str]) -> None:
        self._dataset, self.seq, self._sha, self._asked = start.dataset, start.seq, start.sha, asked
        self._offered = {edge_field(edge.base, edge.version): keys_of(edge) for edge in start.edges}
        self._gone = dict[str, int]()

    def follow(self, data: bytes) -> None:
        """Take the next record. Raises Corrupt when it does not follow on the one before."""
        record = parse_record(data, f"{self._dataset} log {self.seq + 1}")
        if record.seq != self.seq + 1 or record.previous != self._sha:
            raise Corrupt("the commit log is broken", of=f"{self._dataset} log {self.seq + 1}", hint="Nothing is swept")
        self.seq, self._sha = record.seq, digest(data)
        patch = patch_of(record, self._sha)
        for field in [*self._offered] if "edges" in patch.clear else patch.drop.get("edges", ()):
            self._give_up(field)
        for field, text in patch.put.get("edges", {}).items():
            self._give_up(field)
            self._offered[field] = keys_of(Edge.model_validate_json(text))

    @property
    def offered(self) -> set[str]:
        """Every key that an edge offered names."""
        return {key for keys in self._offered.values() for key in keys}

    @property
    def gone(self) -> dict[str, int]:
        """A key that another edge still names is not gone."""
        offered = self.offered
        return {key: seq for key, seq in self._gone.items() if key not in offered}

    def _give_up(self, field: str) -> None:
        self._gone |= {key: self.seq for key in self._offered.pop(field, ()) if key in self._asked}


def keys_of(edge: Edge) -> tuple[str, ...]:
    return tuple(file.key for file in edge.files)
