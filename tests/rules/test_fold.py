"""State = fold(records): a pure function whose answer does not depend on where it started or on what carried it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Corrupt, NotFound
from broker.model.commit import GENESIS, Alter, Body, Create, Drop, Edge, NewVersion, Record, digest, parse_record
from broker.rules.checkpoint import Checkpoint
from broker.rules.fold import State, fold, replay
from broker.rules.patch import TABLES, Patch, Tables, apply, patch_of
from tests.rules.logs import DATASET, SPEC, file_of, logs


def as_the_script_does(tables: Tables, patch: str) -> Tables:
    """publish.lua in Python, from the patch's JSON."""
    fields = json.loads(patch)
    hashes = {name: dict(tables[name]) for name in TABLES}
    for name in fields["clear"]:
        hashes[name].clear()
    for name, gone in fields["drop"].items():
        for item in gone:
            hashes[name].pop(item, None)
    for name, values in fields["put"].items():
        hashes[name].update(values)
    return hashes


@given(logs(), st.data())
def test_a_checkpoint_and_its_tail_give_what_the_whole_log_gives(log: list[bytes], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    state = Checkpoint.model_validate_json(Checkpoint.of(replay(DATASET, log[:cut]))).state()
    for record in log[cut:]:
        state = fold(state, record)
    assert state.tables == replay(DATASET, log).tables


@given(logs())
def test_a_checkpoint_has_the_same_bytes_for_everybody(log: list[bytes]) -> None:
    state = replay(DATASET, log)
    shuffled: Tables = {name: dict(reversed(state.tables[name].items())) for name in TABLES}
    assert Checkpoint.of(State(DATASET, shuffled)) == Checkpoint.of(state)


@given(logs())
def test_the_publish_script_makes_of_each_patch_what_the_fold_makes(log: list[bytes]) -> None:
    hashes, state = State(DATASET).tables, State(DATASET)
    for data in log:
        patch = patch_of(parse_record(data, "log"), digest(data))
        hashes, state = as_the_script_does(hashes, patch.to_json()), fold(state, data)
        assert hashes == state.tables
        assert all(isinstance(text, str) for table in hashes.values() for text in table.values())


@given(logs())
def test_folding_leaves_the_earlier_state_as_it_was(log: list[bytes]) -> None:
    states = [replay(DATASET, log[:n]) for n in range(len(log) + 1)]
    before = [json.dumps(state.tables) for state in states]
    for state, data in zip(states, log, strict=False):
        fold(state, data)
    assert [json.dumps(state.tables) for state in states] == before


@given(logs())
def test_versions_only_grow_and_the_typed_view_reads_every_state(log: list[bytes]) -> None:
    states = [replay(DATASET, log[:n]) for n in range(len(log) + 1)]
    for early, late in pairwise(states):
        assert (late.seq, late.version >= early.version) == (early.seq + 1, True)
        assert all(edge.version <= late.version for edge in late.edges)
        assert [info.version for info in late.versions] == sorted(info.version for info in late.versions)


@given(logs())
def test_what_was_left_is_dated_and_what_is_forgotten_counts_as_left_long_ago(log: list[bytes]) -> None:
    """Else tombstones that guard against its late rows would lapse too soon."""
    state = replay(DATASET, log)
    known = {info.version: info.time for info in state.versions}
    assert {version: state.left_at(version) for version in range(state.version)} == {
        version: known.get(version + 1, 0.0) for version in range(state.version)
    }
    assert state.left_at(state.version) is None


@given(logs().filter(lambda log: len(log) > 1), st.data())
def test_a_log_with_a_record_missing_doubled_or_exchanged_is_corrupt(log: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(log) - 1))
    broken = data.draw(
        st.sampled_from([log[: at - 1] + log[at:], [*log[:at], log[at - 1], *log[at:]], [*log[: at - 1], log[at], log[at - 1]]])
    )
    with pytest.raises(Corrupt):
        replay(DATASET, broken)


@given(logs().filter(lambda log: len(log) > 1), st.data())
def test_a_record_changed_anywhere_breaks_the_chain(log: list[bytes], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(log) - 2))
    changed = parse_record(log[at], "log").model_copy(update={"producer": "somebody else"}).to_bytes()
    with pytest.raises(Corrupt):
        replay(DATASET, [*log[:at], changed, *log[at + 1 :]])


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"format": 2}', b"[]"])
def test_what_is_no_record_of_a_known_format_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        fold(State(DATASET), data)


def test_a_production_is_found_by_its_name_and_a_stranger_is_not() -> None:
    body = NewVersion(edge=Edge(version=1, files=(file_of("a", 5),)), production="run-1", position={"lsn": 812})
    state = replay(DATASET, _sealed(Create(session="s", spec=SPEC), body))
    assert (state.made_by("run-1"), state.made_by("run-2"), state.position) == (1, None, {"lsn": 812})


def test_a_new_session_forgets_what_the_old_one_noted_and_confirmed() -> None:
    version = NewVersion(edge=Edge(version=1, files=(file_of("a", 5),)), position=7, confirmed_at=99.0)
    for end in ([Drop(), Create(session="t", spec=SPEC)], [Alter(spec=SPEC, session="t")]):
        state = replay(DATASET, _sealed(Create(session="s", spec=SPEC), version, *end))
        assert (state.session, state.version, state.edges) == ("t", 1, ())
        assert (state.position, state.confirmed_at) == (None, 0.0)


def test_a_new_dataset_has_no_spec_to_give() -> None:
    with pytest.raises(NotFound):
        State(DATASET).spec  # noqa: B018 - the property raises


def test_an_empty_patch_changes_nothing() -> None:
    tables = replay(DATASET, _sealed(Create(session="s", spec=SPEC))).tables
    assert apply(tables, Patch()) == tables


def test_a_patch_copies_only_the_tables_it_changes() -> None:
    tables = replay(DATASET, _sealed(Create(session="s", spec=SPEC), *_versions(3))).tables
    after = apply(tables, Patch(put={"head": {"seq": "9"}}))
    assert after["head"] is not tables["head"]
    assert all(after[name] is tables[name] for name in TABLES if name != "head")


def test_an_edge_is_found_by_its_ends_and_the_newest_snapshot_without_reading_the_others() -> None:
    state = replay(DATASET, _sealed(Create(session="s", spec=SPEC), *_versions(3)))
    assert (state.edge(1, 2), state.edge(None, 2), state.snapshot) == (state.edges[1], None, state.edges[0])
    assert State(DATASET).snapshot is None


def _versions(count: int) -> list[NewVersion]:
    """A snapshot and the deltas behind it."""
    return [
        NewVersion(edge=Edge(base=number - 1 or None, version=number, files=(file_of(str(number), 5),)))
        for number in range(1, count + 1)
    ]


def _sealed(*bodies: Body) -> list[bytes]:
    previous, log = GENESIS, list[bytes]()
    for seq, body in enumerate(bodies, 1):
        log.append(Record(seq=seq, previous=previous, write_id="w", time=1.0, body=body).to_bytes())
        previous = digest(log[-1])
    return log
