"""A completion with its data: verified while it is read."""

from __future__ import annotations

import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from broker.catalog import Catalog
from broker.columnar.engine import Engine
from broker.columnar.scratch import appearing, disk_errors
from broker.columnar.types import schema_of
from broker.errors import Conflict, StaleBase
from broker.model.commit import File
from broker.model.request import Completion, Cursor, Selection
from broker.requests import Requests
from broker.sinks.port import Applied, Batch, Sink, SinkCursor
from broker.stores.port import ObjectStore

COPY_BYTES: Final = 1 << 20
_DOWNLOADED: Final = re.compile(r"\d{2,}-(rows|upserts|deletes|tombstones)\.(parquet|arrow|csv|jsonl)")


class Received:
    """What came back. The completion's fields are attributes: version, cursor, mode, reset_reason, files, rows, bytes, ..."""

    def __init__(
        self, catalog: Catalog, engine: Engine, store: ObjectStore, requests: Requests, completion: Completion
    ) -> None:
        self._catalog, self._engine, self._store, self._requests = catalog, engine, store, requests
        self.completion = completion

    def __getattr__(self, name: str) -> Any:
        return getattr(self.completion, name)

    def __repr__(self) -> str:
        done = self.completion
        what = f"{done.mode} of {done.dataset} version {done.version}"
        return f"<completion {done.request}: {what}, {done.rows} rows, {done.bytes} bytes>"

    def ack(self) -> bool:
        """Done: take this answer, and no other, from the target's response stream. False: it was taken already."""
        return self._requests.ack(self.completion.request)

    def table(self) -> pa.Table:
        """The rows of a snapshot. Raises Conflict for a delta or an unchanged answer."""
        self._expect("snapshot")
        return self._engine.read(self._spec, self.completion.edges, self._selection).read_all()

    def upserts(self) -> pa.Table:
        """Whole rows to insert or replace, the last per key, once `deletes` are removed. Raises Conflict for a snapshot.

        None of them is late: where the dataset has an order, what is older than the row it would replace was left out.
        """
        return self._changes[0]

    def deletes(self) -> pa.Table:
        """Keys (and order) of rows to remove; some may name keys you never held. Raises Conflict for a snapshot."""
        return self._changes[1]

    def apply(self, sink: Sink, name: str = "requests") -> Applied:
        """Rows and cursor in one transaction of the sink; applied before, it does nothing.

        Raises StaleBase when a delta begins behind where the sink stands, or what is given is older than what it holds.
        """
        done, held = self.completion, sink.cursor(name)
        cursor = Cursor.parse(done.cursor)
        assert isinstance(cursor, Cursor)
        to = SinkCursor(done.dataset, cursor.version, cursor.session or "", cursor.selection or "", _next_fence(held))
        if held is not None and _place(held) == _place(to):
            return Applied()
        self._check_base(held, to)
        sink.take(name, held, to.fence)
        return sink.apply(name, self._batch(), expect=sink.cursor(name), to=to)

    def _check_base(self, held: SinkCursor | None, to: SinkCursor) -> None:
        """Whether this answer leads from where the sink stands: without order columns also where it began before."""
        base = self.completion.edges[0].base if self.completion.edges else to.version
        begun = held is not None and base is not None and base < held.version and not self._spec.order
        wanted = (to.dataset, to.session, to.selection, held.version if held and begun else base)
        if self.completion.mode != "snapshot" and (held is None or _place(held) != wanted):
            raise StaleBase(
                "the sink does not stand where this begins", of=self.completion.request,
                why=f"it begins at version {base}, the sink is at {held.version if held else 0}", hint="Ask since its cursor",
            )  # fmt: skip
        if held is not None and held.version > to.version and _place(held)[:3] == _place(to)[:3]:
            raise StaleBase(
                "the sink is further", of=self.completion.request, why=f"version {held.version}, this is {to.version}",
                hint="Drop this answer",
            )  # fmt: skip

    def download(self, folder: str | Path) -> list[Path]:
        """Copy the files, verified, into `folder` (made if needed), as they apply: 01-rows.parquet, 02-tombstones.parquet.

        Files of an earlier download into it go in the end. Raises Corrupt, NotFound; Overloaded (disk full) and Unavailable.
        """
        target = Path(folder)
        with disk_errors(target):
            target.mkdir(parents=True, exist_ok=True)
        paths = [
            self._copy(file, target / f"{number:02d}-{file.role}.{file.format}")
            for number, file in enumerate(self.completion.files, 1)
        ]
        with disk_errors(target):
            for old in {path for path in target.iterdir() if _DOWNLOADED.fullmatch(path.name)} - set(paths):
                old.unlink()
        return paths

    def locations(self, seconds: int = 3600) -> list[str]:
        """Where the files are: paths, or presigned URLs good for `seconds`."""
        return [str(self._store.locate(file.key, seconds)) for file in self.completion.files]

    def _copy(self, file: File, path: Path) -> Path:
        source = self._engine.fetch(file)
        with appearing(path) as copy, disk_errors(path), source.open("rb") as data:
            shutil.copyfileobj(data, copy, COPY_BYTES)
        return path

    @property
    def _spec(self) -> Any:
        return self._catalog.state(self.completion.dataset).spec

    @property
    def _selection(self) -> Selection:
        """What the files hold: rows were chosen when they were made."""
        return Selection(columns=self.completion.columns)

    @cached_property
    def _changes(self) -> tuple[pa.Table, pa.Table]:
        self._expect("delta")
        upserts, deletes = self._engine.changes(self._spec, self.completion.edges, self._selection)
        return upserts.read_all(), deletes.read_all()

    def _batch(self) -> Batch:
        spec = self._spec
        if self.completion.mode == "snapshot":
            rows = self._engine.read(spec, self.completion.edges, self._selection)
            dead = self._engine.tombstones(spec, self.completion.edges, self._selection)
            return Batch(spec=spec, schema=schema_of(rows.schema), replace=True, rows=rows, tombstones=dead)
        upserts, deletes = self._engine.changes(spec, self.completion.edges, self._selection)
        return Batch(spec=spec, schema=schema_of(upserts.schema), replace=False, upserts=upserts, deletes=deletes)

    def _expect(self, mode: str) -> None:
        if self.completion.mode != mode:
            raise Conflict(
                f"not a {mode}", of=self.completion.request, why=f"the answer is {self.completion.mode}", hint="Look at .mode"
            )


def _place(cursor: SinkCursor) -> tuple[str, str, str, int]:
    return cursor.dataset, cursor.session, cursor.selection, cursor.version


def _next_fence(held: SinkCursor | None) -> tuple[int, int]:
    return (held.fence[0], held.fence[1] + 1) if held else (0, 1)
