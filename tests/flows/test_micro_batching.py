"""Micro-batching: single changes are appended, and small versions of them are visible within `max_age`."""

from __future__ import annotations

from broker import Broker


def test_single_changes_are_in_a_version_soon_and_each_once(b: Broker, batches: None) -> None:
    # README: append
    reviews = b.dataset("goodstuff_01/catalog/reviews", key=["id"], order=["at"])
    ack = reviews.changelog.append([{"id": 1, "stars": 5, "at": 1}, {"id": 2, "stars": 3, "at": 1}])
    assert (ack.level, ack.rows) == ("accepted", 2)

    reviews.changelog.append([{"id": 1, "stars": 4, "at": 2}], producer="pim-1", block=1)
    reviews.changelog.append([{"id": 1, "stars": 4, "at": 2}], producer="pim-1", block=1)  # the same block again is dropped
    reviews.changelog.delete([{"id": 2, "at": 2}], level="sealed", timeout=30)  # returns when a version holds it
    assert reviews.read().to_pylist() == [{"id": 1, "stars": 4, "at": 2}]

    # README ends here: the log's four rows landed once each, and nothing waits
    assert sum(slot.unbatched_rows for slot in reviews.changelog.status()) == 0
    assert sum(slot.appended_rows for slot in reviews.changelog.status()) == 4
    assert reviews.changelog.resume("pim-1") == 2
    late = reviews.changelog.append(
        [{"id": 1, "stars": 1, "at": 1}, {"id": 3, "stars": 2, "at": 1}], level="sealed", timeout=30
    )
    assert late.level == "sealed"
    assert reviews.read().sort_by("id").to_pylist() == [{"id": 1, "stars": 4, "at": 2}, {"id": 3, "stars": 2, "at": 1}]
