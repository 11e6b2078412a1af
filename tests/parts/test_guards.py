"""Guards and validators between upload and seal: what they refuse leaves the old version, an event and a dead letter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import broker
from broker.errors import AttemptFailed, Conflict, Invalid, RequestFailed, Vetoed, from_dict
from broker.model.names import DatasetId
from broker.producers import Producers
from broker.producers_validators import Proposed
from tests.cli import Cli
from tests.ledger import OFFERS as SERVED
from tests.ledger import Hand, Source, refusals

OFFERS = DatasetId("shop/catalog/offers")


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store")) as opened:
        yield opened


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"sku": f"s{number}", "price": number} for number in range(first, first + count)]


def guarded(b: broker.Broker, order: str = "", **guards: Any) -> broker.Dataset:
    """Ten rows, and the guards."""
    offers = b.dataset(OFFERS, key=["sku"], order=[order] if order else [], **guards)
    offers.publish(rows(10))
    return offers


@pytest.mark.parametrize("way", ["snapshot", "difference", "delta"])
def test_a_version_that_takes_too_much_away_is_refused_and_the_old_one_stays(b: broker.Broker, way: str) -> None:
    offers = guarded(b, max_delete_ratio=0.5)
    seq = offers.state.seq
    gone = [{"sku": f"s{number}"} for number in range(6)]
    publish = {
        "delta": lambda: offers.publish_delta(deletes=gone), "difference": lambda: offers.publish(rows(4), delta=True),
        "snapshot": lambda: offers.publish(rows(4)),
    }  # fmt: skip
    with pytest.raises(Vetoed, match=r"6 of 10 rows are gone") as refused:
        publish[way]()
    assert refused.value.findings == ("6 of 10 rows are gone, at most 0.5 of them may be",)
    assert (offers.state.seq, offers.state.version) == (seq, 1)
    assert offers.read().num_rows == 10
    offers.publish(rows(5), delta=way == "difference")
    assert offers.read().num_rows == 5


def test_deletes_of_keys_that_are_not_there_take_nothing_away(b: broker.Broker) -> None:
    offers = guarded(b, max_delete_ratio=0.1)
    offers.publish_delta(deletes=[{"sku": f"x{number}"} for number in range(50)])
    offers.publish_delta(upserts=rows(10), deletes=[{"sku": "s0-not"}])
    assert offers.read().num_rows == 10


def test_a_snapshot_of_as_many_other_rows_takes_all_of_them_away(b: broker.Broker) -> None:
    offers = guarded(b, max_delete_ratio=0.5)
    with pytest.raises(Vetoed, match="10 of 10 rows"):
        offers.publish(rows(10, first=100))


@pytest.mark.parametrize("order", ["", "price"], ids=["without order", "with order"])
def test_row_limits_count_what_really_stands(b: broker.Broker, order: str) -> None:
    offers = guarded(b, order, min_rows=8, max_rows=12)
    offers.publish_delta(upserts=rows(10))  # none of them is new: ten stay
    with pytest.raises(Vetoed, match="13 rows, at most 12"):
        offers.publish_delta(upserts=rows(3, first=10))
    gone = [{"sku": f"s{number}"} | ({"price": 99} if order else {}) for number in range(3)]
    with pytest.raises(Vetoed, match="7 rows, at least 8"):
        offers.publish_delta(deletes=gone)
    offers.publish_delta(deletes=gone[:2])
    assert offers.read().num_rows == 8


def test_the_first_version_is_guarded_too_and_leaves_no_schema_behind(b: broker.Broker) -> None:
    offers = b.dataset(OFFERS, key=["sku"], min_rows=5)
    with pytest.raises(Vetoed):
        offers.publish(rows(4))
    assert (offers.state.seq, offers.spec.columns) == (1, None)


def test_a_refusal_is_an_event_with_its_findings(b: broker.Broker) -> None:
    offers = guarded(b, min_rows=5, max_delete_ratio=0.3)
    with pytest.raises(Vetoed) as refused:
        offers.publish(rows(4), delta=True)
    (event,) = refusals(b, OFFERS)
    assert event.subject == OFFERS
    assert [finding["rule"] for finding in event.data["findings"]] == ["min_rows", "max_delete_ratio"]
    assert tuple(finding["text"] for finding in event.data["findings"]) == refused.value.findings
    assert (event.data["version"], event.data["stays"], event.data["kind"]) == (2, 1, "delta")
    again = from_dict(refused.value.to_dict())
    assert isinstance(again, Vetoed)
    assert again.findings == refused.value.findings


def test_guards_are_altered_without_a_new_session(b: broker.Broker) -> None:
    offers = guarded(b, max_delete_ratio=0.1)
    session = offers.state.session
    offers.guard(max_delete_ratio=None, min_rows=2)
    offers.publish(rows(2))
    assert offers.state.session == session
    with pytest.raises(Vetoed):
        offers.publish(rows(1))
    with pytest.raises(Conflict, match="min_rows"):
        b.dataset(OFFERS, key=["sku"], min_rows=3)
    with pytest.raises(Invalid, match="no such guard"):
        offers.guard(min_row=1)


def test_the_settings_hold_where_a_dataset_says_nothing(redis_url: str, tmp_path: Path) -> None:
    with broker.connect(redis=redis_url, store=str(tmp_path / "store"), max_delete_ratio=0.2) as b:
        offers = guarded(b)
        with pytest.raises(Vetoed):
            offers.publish(rows(5))
        offers.guard(max_delete_ratio=1)
        offers.publish(rows(5))


def test_the_command_line_sets_guards_and_takes_them_back(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(capsys, "--redis", redis_url, "--store", str(tmp_path / "store"))
    made = cli.json("dataset", "create", OFFERS, "--key", "sku", "--min-rows", 2)
    assert made["spec"]["min_rows"] == 2
    (tmp_path / "one.csv").write_text("sku,price\na,1\n")
    refused = cli("publish", OFFERS, tmp_path / "one.csv", "--json")
    assert refused.code == 1
    assert json.loads(refused.err)["error"]["code"] == "vetoed"
    altered = cli.json("dataset", "alter", OFFERS, "--min-rows", "none", "--max-delete-ratio", 0.25)
    assert (altered["spec"]["min_rows"], altered["spec"]["max_delete_ratio"]) == (None, 0.25)
    assert "guards   max_delete_ratio=0.25" in cli.ok("dataset", "show", OFFERS).out
    cli.ok("publish", OFFERS, tmp_path / "one.csv")
    assert cli("dataset", "alter", OFFERS).code == 2
    assert cli("dataset", "alter", OFFERS, "--min-rows", "few").code == 2


# --- validators


def with_validator(b: broker.Broker, judge: Any) -> Hand:
    hand = Hand(b.parts, Source())
    app = Producers()
    app.validator("*/catalog/*")(judge)
    b.dataset(SERVED, key=["sku"])
    hand.maker._publication = b.parts.publication.with_validators(app.validators)
    return hand


def test_a_validator_sees_what_is_about_to_be_sealed(b: broker.Broker) -> None:
    seen = list[Proposed]()
    hand = with_validator(b, seen.append)
    hand.source.rows = [{"sku": "a", "price": 1}, {"sku": "b", "price": 2}]
    for _ in range(2):
        b.request(SERVED, target="search")
        flight = hand.lead()
        hand.answer(flight, hand.produce(flight))
        hand.source.rows = [{"sku": "b", "price": 3}]
    first, second = seen
    assert (first.kind, first.version, first.rows, first.dataset) == ("snapshot", 1, 2, SERVED)
    assert sorted(first.changes["sku"].to_pylist()) == ["a", "b"]
    assert first.deleted.num_rows == 0
    assert (second.kind, second.rows, second.upserts, second.deletes) == ("delta", 2, 1, 1)
    assert second.changes.to_pylist() == [{"sku": "b", "price": 3}]
    assert second.deleted.to_pylist() == [{"sku": "a"}]


def test_a_request_whose_version_is_refused_goes_to_the_dead_letters_at_once(b: broker.Broker) -> None:
    hand = with_validator(b, lambda proposed: [f"{proposed.rows} rows are not enough", "and none is red"])
    handle = b.request(SERVED, target="search")
    flight = hand.lead()
    with pytest.raises(Vetoed) as refused:
        hand.produce(flight)
    assert refused.value.findings == ("2 rows are not enough", "and none is red")
    hand.clerk.fail(flight, hand.clerk.close(flight), refused.value)
    with pytest.raises(RequestFailed) as failed:
        handle.wait(30)
    assert "2 rows are not enough" in str(failed.value)
    assert b.parts.redis.run("XLEN", b.parts.index.slot(SERVED).dead, writes=False) == 1
    assert b.dataset(SERVED).state.version == 0
    assert len(refusals(b, SERVED)) == 1


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ("not good", Vetoed, "not good"),
        (iter(["one; two"]), Vetoed, "one, two"),
        (True, Invalid, "bool"),
        (ValueError("a bug"), AttemptFailed, "a bug"),
        (Vetoed("by hand", why="this; that"), Vetoed, "this; that"),
    ],
)
def test_an_answer_refuses_and_a_bug_in_a_validator_refuses_nothing_for_good(
    b: broker.Broker, answer: Any, error: type[Exception], says: str
) -> None:
    def judge(proposed: Proposed) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    hand = with_validator(b, judge)
    b.request(SERVED, target="search")
    with pytest.raises(error, match=says):
        hand.produce(hand.lead())


def test_a_validator_needs_one_parameter_and_a_pattern() -> None:
    app = Producers()
    with pytest.raises(Invalid, match="proposed"):
        app.validator("*/*/*")(lambda: None)
    with pytest.raises(Invalid, match="pattern"):
        app.validator("offers")(print)
    assert app.validators == ()
