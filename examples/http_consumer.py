"""Follow a dataset with HTTP GET alone, without Redis or the broker: `http_consumer.py URL tenant/domain/name [channel]`."""

import hashlib
import io
import json
import sys
import time
from urllib.request import urlopen

import pyarrow.parquet as pq


class Refused(Exception):
    """What is told contradicts what was told before, or the bytes are not what was told."""


class Consumer:
    def __init__(self, base: str, dataset: str, channel: str = "live") -> None:
        self.base, self.notify = base.rstrip("/"), f"{dataset}/notify/{channel}.json"
        self.session, self.version, self.told = "", 0, (0, 0)
        self.held, self.hashes = {}, {}  # key -> order and row, None where deleted; edge -> its files' SHA-256

    @property
    def rows(self) -> list[dict]:
        return [row for _, row in self.held.values() if row is not None]

    def get(self, key: str) -> bytes:
        with urlopen(f"{self.base}/{key}", timeout=30) as answer:
            return answer.read()

    def poll(self) -> str:
        """Look once. -> unchanged | ignored | waiting | delta | reset"""
        told = json.loads(self.get(self.notify))
        announced, session = (told.get("announced", 0), told["seq"]), told["session"]
        if announced < self.told:
            return "ignored"
        whole = [edge for edge in (told["snapshot"], *told["deltas"]) if edge]
        hashes = {(edge["base"], edge["version"]): [file["sha256"] for file in edge["files"]] for edge in whole}
        if session == self.session and any(self.hashes.get(edge, known) != known for edge, known in hashes.items()):
            raise Refused(f"{self.notify}: a known version has other files now")
        road = [edge for edge in told["deltas"] if edge["version"] > self.version]
        erased = self.version < told.get("erased_until", 0) <= told["version"]  # with it the delete of a key held here, perhaps
        goes_on = session == self.session and not erased and leads(road, self.version, told["version"])
        if not goes_on:  # a new session, a gap, an erasure, or a channel that went back
            road = whole
            if not leads(road, 0, told["version"]):
                return "waiting"  # for a snapshot: compaction makes one
        held = dict(self.held) if goes_on else {}
        for edge in road:
            self.apply(edge, told, held)
        self.held, self.session, self.version, self.hashes, self.told = held, session, told["version"], hashes, announced
        return ("delta" if road else "unchanged") if goes_on else "reset"

    def apply(self, edge: dict, told: dict, held: dict) -> None:
        for file in edge["files"]:
            data = self.get(file["key"])
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                raise Refused(f"{file['key']}: not the bytes that were sealed")
            for row in pq.read_table(io.BytesIO(data)).to_pylist():
                key = tuple(row[name] for name in told["key"])
                order = [(row[name] is not None, row[name]) for name in told["order"]]
                if key not in held or order >= held[key][0]:  # else late: what is held is newer
                    held[key] = order, row if file["role"] in ("rows", "upserts") else None


def leads(road: list[dict], at: int, to: int) -> bool:
    """Whether edges lead from a version (0: nothing) to another: each begins at or before the one reached."""
    for edge in road:
        if (edge["base"] or 0) > at:
            return False
        at = edge["version"]
    return at == to


if __name__ == "__main__":
    consumer = Consumer(*sys.argv[1:])
    while True:
        try:
            if (what := consumer.poll()) in ("delta", "reset"):
                print(what, consumer.version, len(consumer.rows), "rows", flush=True)
        except OSError as error:  # nothing was published yet, or the server is away
            print(error, file=sys.stderr)
        time.sleep(1)
