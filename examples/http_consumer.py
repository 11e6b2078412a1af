"""Follow a dataset with HTTP GET alone, without Redis or the broker: `http_consumer.py BASE-URL tenant/domain/name [channel]`.

A new session, a gap or an older version resets; a changed hash for what is known is refused; an older announcement is ignored.
"""

import hashlib
import io
import json
import sys
import time
import urllib.error
import urllib.request

import pyarrow.parquet as pq


class Refused(Exception):
    """What is told contradicts what was told, or the bytes are not what was told."""


class Consumer:
    def __init__(self, base: str, dataset: str, channel: str = "live") -> None:
        self.base, self.notify = base.rstrip("/"), f"{dataset}/notify/{channel}.json"
        self.rows, self.dead, self.hashes = {}, {}, {}  # row and order, and deletes' order, by key; SHA-256s
        self.session, self.version, self.told, self.etag = "", 0, (0, 0), ""

    def get(self, key: str, **headers: str) -> tuple[bytes, str]:
        with urllib.request.urlopen(urllib.request.Request(f"{self.base}/{key}", headers=headers), timeout=30) as answer:
            return answer.read(), answer.headers.get("ETag", "")

    def poll(self) -> str:
        """Look once. -> unchanged | ignored | delta | reset"""
        try:
            text, etag = self.get(self.notify, **({"If-None-Match": self.etag} if self.etag else {}))
        except urllib.error.HTTPError as error:
            if error.code in (304, 404):  # as it was; or there is no version yet
                return "unchanged"
            raise
        told = json.loads(text)
        at = (told.get("announced", 0), told["seq"])
        if at < self.told:
            return "ignored"
        edges = [edge for edge in (told["snapshot"], *told["deltas"]) if edge]
        same = self.session == told["session"]
        hashes = {(edge["base"], edge["version"]): [file["sha256"] for file in edge["files"]] for edge in edges}
        if same and any(self.hashes.get(edge, known) != known for edge, known in hashes.items()):
            raise Refused(f"{self.notify}: a known version has other files now")
        road = [edge for edge in told["deltas"] if edge["version"] > self.version]
        fits = same and told["version"] >= self.version and [edge["base"] for edge in road] == [
            *range(self.version, told["version"])]  # fmt: skip
        if not fits and told["version"] and told["snapshot"] is None:
            raise Refused(f"{self.notify}: it leads nowhere from version {self.version}")
        rows, dead = (dict(self.rows), dict(self.dead)) if fits else ({}, {})
        for edge in road if fits else edges:
            self.apply(edge, told, rows, dead)
        moved = not fits or self.version != told["version"]
        self.rows, self.dead, self.hashes, self.etag = rows, dead, hashes, etag
        self.session, self.version, self.told = told["session"], told["version"], at
        return ("delta" if fits else "reset") if moved else "unchanged"

    def apply(self, edge: dict, told: dict, rows: dict, dead: dict) -> None:
        for file in edge["files"]:
            data, _ = self.get(file["key"])
            if hashlib.sha256(data).hexdigest() != file["sha256"]:
                raise Refused(f"{file['key']}: not the bytes that were sealed")
            for row in pq.read_table(io.BytesIO(data)).to_pylist():
                key = tuple(row[name] for name in told["key"])
                order = [(row[name] is not None, row[name]) for name in told["order"]]
                if order < rows.get(key, (None, []))[1] or order < dead.get(key, []):
                    continue  # late: what is held is newer
                rows.pop(key, None)
                dead.pop(key, None)
                if file["role"] in ("rows", "upserts"):
                    rows[key] = row, order
                else:
                    dead[key] = order


if __name__ == "__main__":
    consumer = Consumer(*sys.argv[1:])
    while True:
        if (what := consumer.poll()) in ("delta", "reset"):
            print(what, consumer.version, len(consumer.rows), "rows", flush=True)
        time.sleep(1)
