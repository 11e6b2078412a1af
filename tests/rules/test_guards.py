"""Guards decide by bounds where those suffice, and never otherwise than the exact numbers would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Invalid
from broker.model.commit import Edge, File, Role
from broker.model.dataset import DatasetSpec
from broker.model.names import DatasetId
from broker.rules.contract import guarded
from broker.rules.fold import State
from broker.rules.guards import MAX_DELETE_RATIO, MAX_ROWS, MIN_ROWS, Effect, Guards, Span, effect, objections, standing

SPEC = DatasetSpec(dataset=DatasetId("shop/catalog/offers"), key=("sku",))


def edge(base: int | None, version: int, **rows: int) -> Edge:
    files = tuple(
        File(role=role, key=f"{version}-{role}", sha256="0" * 64, bytes=1, rows=rows[role]) for role in ROLES if role in rows
    )
    return Edge(base=base, version=version, files=files)


ROLES: tuple[Role, ...] = ("rows", "upserts", "deletes")
KEYS = st.frozensets(st.integers(0, 8))


@given(first=KEYS, changes=st.lists(st.tuples(KEYS, KEYS), max_size=4), fresh=st.none() | KEYS)
def test_the_bounds_hold_what_really_happens(
    first: frozenset[int], changes: list[tuple[frozenset[int], frozenset[int]]], fresh: frozenset[int] | None
) -> None:
    road, held = [edge(None, 1, rows=len(first))], first
    for version, (upserts, others) in enumerate(changes, 2):
        deletes = others - upserts
        road.append(edge(version - 1, version, upserts=len(upserts), deletes=len(deletes)))
        before, held = held, (held | upserts) - deletes
    last = road.pop() if changes else None
    if fresh is not None or last is None:
        if last is not None:
            road.append(last)
        before, held = held, fresh or frozenset()
        last = edge(None, len(road) + 1, rows=len(held))
    found = effect(road, last)
    for span, exact in ((found.before, len(before)), (found.after, len(held)), (found.gone, len(before - held))):
        assert span.low <= exact <= span.high


SPANS = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda pair: Span(min(pair), max(pair)))


@given(
    found=st.builds(Effect, before=SPANS, after=SPANS, gone=SPANS),
    guards=st.builds(
        Guards, min_rows=st.integers(0, 6), max_rows=st.none() | st.integers(3, 12),
        max_delete_ratio=st.sampled_from([0, 0.2, 0.5, 1]),
    ),
    data=st.data(),
)  # fmt: skip
def test_where_bounds_decide_the_exact_numbers_say_the_same(found: Effect, guards: Guards, data: st.DataObject) -> None:
    verdict = objections(guards, found)
    numbers = [data.draw(st.integers(span.low, span.high)) for span in (found.before, found.after, found.gone)]
    exact = objections(guards, Effect.exact(*numbers))
    assert exact is not None
    if verdict is not None:
        assert {objection.rule for objection in verdict} == {objection.rule for objection in exact}


def test_each_limit_says_what_breaks_it() -> None:
    few = objections(Guards(min_rows=10), Effect.exact(20, 9, 11))
    many = objections(Guards(max_rows=10), Effect.exact(5, 11, 0))
    gone = objections(Guards(max_delete_ratio=0.2), Effect.exact(100, 79, 21))
    assert few is not None
    assert many is not None
    assert gone is not None
    assert [rule for rule, _ in (*few, *many, *gone)] == [MIN_ROWS, MAX_ROWS, MAX_DELETE_RATIO]
    assert few[0].text == "9 rows, at least 10 are wanted"
    assert gone[0].text == "21 of 100 rows are gone, at most 0.2 of them may be"
    assert objections(Guards(10, 10, 0.2), Effect.exact(10, 10, 2)) == ()


def test_the_first_version_takes_nothing_away() -> None:
    assert objections(Guards(max_delete_ratio=0), effect([], edge(None, 1, rows=3))) == ()
    assert standing([]) == Span(0, 0)


def test_bounds_that_touch_a_limit_do_not_decide() -> None:
    assert objections(Guards(min_rows=5), Effect(Span(4, 6), Span(4, 6), Span(0, 2))) is None
    assert objections(Guards(max_delete_ratio=0.5), Effect(Span(4, 4), Span(4, 4), Span(0, 3))) is None


def test_a_dataset_s_own_limits_win_over_the_settings() -> None:
    own = SPEC.model_copy(update={"min_rows": 0, "max_delete_ratio": 0.1})
    assert Guards(5, 10, 0.5).of(own) == Guards(0, 10, 0.1)
    assert Guards(5, 10, 0.5).of(SPEC) == Guards(5, 10, 0.5)


def test_guards_change_in_the_same_session_and_only_where_they_differ() -> None:
    head = {"session": "s", "spec": SPEC.model_dump_json()}
    state = State(SPEC.dataset, {"head": head, "versions": {}, "edges": {}, "productions": {}, "holds": {}})
    changed = guarded(state, {"min_rows": 3})
    assert changed is not None
    assert (changed.session, changed.spec.min_rows, changed.spec.max_rows) == (None, 3, None)
    assert guarded(state, {"min_rows": None}) is None
    with pytest.raises(Invalid, match="no such guard"):
        guarded(state, {"min_row": 3})
    with pytest.raises(Invalid, match="max_delete_ratio"):
        guarded(state, {"max_delete_ratio": 2.0})
