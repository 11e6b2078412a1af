"""The bell: what lies in notify/<channel>.json, and that it rings whatever becomes of the process or of one ring."""

from __future__ import annotations

import json

from broker.bell import NOTIFY_DELTAS, notification
from broker.model.commit import GENESIS, Create, Edge, NewVersion, Record, digest
from broker.rules.fold import State, replay
from tests.rules.logs import DATASET, SPEC, file_of


def test_a_notification_names_the_snapshot_and_every_delta_behind_it() -> None:
    told = json.loads(notification(versions(5)))
    assert (told["version"], told["snapshot"]["version"]) == (5, 1)
    assert [(edge["base"], edge["version"]) for edge in told["deltas"]] == [(1, 2), (2, 3), (3, 4), (4, 5)]


def test_a_notification_does_not_grow_with_the_number_of_versions() -> None:
    told = json.loads(notification(versions(NOTIFY_DELTAS + 50)))
    chain = [edge["version"] for edge in told["deltas"]]
    assert chain == list(range(51, NOTIFY_DELTAS + 51))
    assert told["snapshot"]["version"] == 1


def versions(count: int) -> State:
    """A dataset of one snapshot and the deltas behind it."""
    previous, log = GENESIS, list[bytes]()
    bodies = [NewVersion(edge=Edge(base=n - 1 or None, version=n, files=(file_of(str(n), 5),))) for n in range(1, count + 1)]
    for seq, body in enumerate([Create(session="s", spec=SPEC), *bodies], 1):
        log.append(Record(seq=seq, previous=previous, write_id="w", time=1.0, body=body).to_bytes())
        previous = digest(log[-1])
    return replay(DATASET, log)
