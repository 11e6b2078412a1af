"""On demand: a target asks for data, a worker's producer answers, and many targets are served by one production.

The producer is the README's first block, shop.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker import Broker
from tests.cli import Shell
from tests.readme import titled

OFFERS = "goodstuff_01/catalog/offers"


@pytest.fixture
def shop(shell: Shell, b: Broker) -> Iterator[None]:
    """A worker serves shop.py, and was asked twice already: version 2 is there."""
    (shell.folder / "shop.py").write_text(titled("shop.py"))
    b.dataset(OFFERS, key=["sku"])
    with shell.working("shop:app"):
        for since in (None, 1):
            b.request(OFFERS, target="tools", since=since).wait(timeout=30)
        yield


def test_a_target_asks_and_is_answered_with_just_what_it_lacks(b: Broker, shop: None) -> None:
    # README: request
    request = b.request("goodstuff_01/catalog/offers", target="search", where="price < 50", columns=["sku", "price"])
    done = request.wait(timeout=30)
    assert done.mode == "snapshot"
    held = {row["sku"]: row["price"] for row in done.table().to_pylist()}
    assert held == {"a": 10.0, "b": 20.0, "d": 5.0}

    again = b.request(
        "goodstuff_01/catalog/offers", target="search", since=done.cursor, where="price < 50", columns=["sku", "price"]
    )
    unchanged = again.wait(timeout=30)
    assert unchanged.mode == "unchanged"
    assert unchanged.ack()

    soon = b.request("goodstuff_01/catalog/offers", target="search", since=1, max_staleness=60, idempotency_key="job-17")
    delta = soon.wait(timeout=30)  # fresh enough: answered at submit, the producer was not asked
    assert delta.mode == "delta"
    assert [row["sku"] for row in delta.upserts().sort_by("sku").to_pylist()] == ["b", "d"]
    assert delta.deletes().to_pylist() == [{"sku": "c"}]

    # README: responses
    for event in b.responses("search").listen(timeout=1):
        assert event.completion.target == "search"
        event.ack()  # or event.retry(in_seconds=60)

    # README ends here: each request had one answer, and nothing is left to read
    assert list(b.responses("search").peek()) == []
    assert [info.version for info in b.dataset(OFFERS).versions()] == [1, 2]
