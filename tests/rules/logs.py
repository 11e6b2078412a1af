"""Random logs that a catalog could have written, for the tests of rules."""

from __future__ import annotations

from hypothesis import strategies as st

from broker.model.commit import (
    Alter,
    Announce,
    Barrier,
    Body,
    Create,
    Drop,
    Edge,
    File,
    Hold,
    Mark,
    Move,
    NewEdge,
    NewVersion,
    Point,
    Record,
    Retire,
    SourceRange,
)
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.rules.fold import State, fold
from broker.rules.retention import Wanted, forgotten, pair

DATASET = "t/d/folded"
SPEC = DatasetSpec(dataset=DatasetId(DATASET), key=("id",))
TEXT = st.text(max_size=8)
MARKS = st.builds(Mark, st.integers(0, 1 << 50), st.floats(0, 2e9))
SOURCES = st.builds(
    SourceRange, slot=st.integers(0, 3), after=st.just("0-0"), until=st.integers(1, 1 << 50).map("{}-0".format),
    marks=st.dictionaries(TEXT, MARKS, max_size=2), rows=st.integers(0, 9), closed=st.sampled_from(["rows", "age", "idle"]),
)  # fmt: skip


def file_of(name: str, size: int) -> File:
    return File(role="rows", key=f"{DATASET}/data/{name}", sha256="0" * 64, bytes=size, rows=1)


@st.composite
def bodies(draw: st.DrawFn, state: State) -> Body:
    """A body that may follow on `state`."""
    if not state.exists:
        return Create(session=draw(TEXT.filter(bool)), spec=SPEC)
    kinds = (
        ["version"] * 4
        + ["alter", "alter-session", "drop", "hold", "barrier", "retire", "announce"]
        + ["edge"] * 2 * bool(state.version)
    )
    size = draw(st.integers(0, 1 << 40))
    match draw(st.sampled_from(kinds)):
        case "version":
            base = draw(st.sampled_from([state.version or None, None]))
            edge = Edge(base=base, version=state.version + 1, files=(file_of(str(state.seq), size),))
            return NewVersion(
                edge=edge, position=draw(st.none() | st.integers() | st.dictionaries(TEXT, TEXT, max_size=2)),
                production=draw(st.none() | st.just(f"p{state.seq}")), custom=draw(st.dictionaries(TEXT, TEXT, max_size=2)),
                confirmed_at=draw(st.none() | st.floats(0, 2e9)), rows_total=draw(st.none() | st.integers(0, 9)),
                sources=draw(st.lists(SOURCES, max_size=2)),
            )  # fmt: skip
        case "edge":
            version = draw(st.integers(1, state.version))
            base = draw(st.none() | st.integers(0, version - 1))
            settled = base is not None and draw(st.booleans())
            edge = Edge(base=base, version=version, files=(file_of(f"e{state.seq}", size),), settled=settled)
            return NewEdge(edge=edge, erased_until=draw(st.sampled_from([0, version])))
        case "hold":
            return Hold(name=draw(TEXT), version=draw(st.integers(0, 9)), why=draw(TEXT))
        case "retire":
            gone = draw(st.lists(st.sampled_from([(e.base, e.version) for e in state.edges] or [(None, 1)]), max_size=3))
            _, ranges = forgotten(state, [edge for edge in state.edges if pair(edge) in gone], Wanted(), 2e9)
            until = st.integers(0, state.version)
            marks = {"versions_until": draw(until), "rolled_until": draw(until), "settled_until": draw(until)}
            return Retire(edges=tuple(gone), versions=tuple(ranges), **marks)
        case "announce":
            past = draw(st.lists(st.builds(Point, st.integers(1, 9), TEXT), max_size=3))
            move = Move(version=draw(st.integers(1, 9)), session=draw(TEXT), past=tuple(past))
            names = draw(st.sets(st.sampled_from(["offers", "images"]), min_size=1))
            return Announce(channel=draw(st.sampled_from(["staging", "production"])), moves=dict.fromkeys(names, move))
        case "barrier":
            return Barrier(run_id=draw(TEXT), epoch=draw(st.integers(1, 9)))
        case "drop":
            return Drop()
        case kind:
            return Alter(spec=SPEC, session=draw(TEXT.filter(bool)) if kind == "alter-session" else None)


@st.composite
def logs(draw: st.DrawFn, longest: int = 14) -> list[bytes]:
    """A whole commit log, record by record."""
    state, log = State(DATASET), list[bytes]()
    for _ in range(draw(st.integers(0, longest))):
        record = Record(
            seq=state.seq + 1,
            previous=state.sha,
            write_id=f"w{state.seq}",
            time=draw(st.floats(0, 2e9)),
            body=draw(bodies(state)),
        )
        log.append(record.to_bytes())
        state = fold(state, log[-1])
    return log
