"""A consumer that knows nothing but HTTP GET follows a dataset, over two servers; each client rule by itself."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import minio
import pyarrow as pa
import pytest

import broker
from broker.bell import NOTIFY_DELTAS
from broker.cli.erase import erasure_of
from broker.model.names import DatasetId
from broker.parts import STORE_FOLDER
from tests.servers import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

OFFERS = DatasetId("shop/catalog/offers")
SOURCE = Path(__file__).parents[2] / "examples" / "http_consumer.py"
MAX_CODE_LINES = 66


def readable(server: S3Server, prefix: str) -> None:
    """Let anybody read the prefix, as an operator would for consumers without keys."""
    client = minio.Minio(server.endpoint.removeprefix("http://"), ACCESS_KEY, SECRET_KEY, secure=False)
    resource = f"arn:aws:s3:::{BUCKET}/{prefix}/*"
    allowed = {"Effect": "Allow", "Principal": {"AWS": ["*"]}, "Action": ["s3:GetObject"], "Resource": [resource]}
    client.set_bucket_policy(BUCKET, json.dumps({"Version": "2012-10-17", "Statement": [allowed]}))


def load() -> Any:
    spec = importlib.util.spec_from_file_location("http_consumer", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[str]:
    """Any HTTP server over the store's folder."""
    folder = tmp_path / STORE_FOLDER
    folder.mkdir(exist_ok=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def b(redis_url: str, tmp_path: Path) -> Iterator[broker.Broker]:
    with broker.connect(redis=redis_url, home=tmp_path) as opened:
        yield opened


def published(b: broker.Broker, *rows: tuple[str, int, int], gone: tuple[tuple[str, int], ...] = ()) -> None:
    """A delta; behind it the bell has rung."""
    table = pa.table({name: [row[at] for row in rows] for at, name in enumerate(("sku", "price", "n"))})
    deletes = [{"sku": sku, "n": n} for sku, n in gone]
    b.dataset(OFFERS, key=["sku"], order=["n"]).publish_delta(table if rows else None, deletes or None)
    rung(b)


def rung(b: broker.Broker) -> None:
    b.parts.catalog.close()


def content(consumer: Any) -> dict[str, int]:
    return {row["sku"]: row["price"] for row in consumer.rows}


def direct(b: broker.Broker) -> dict[str, int]:
    return {row["sku"]: row["price"] for row in b.dataset(OFFERS).read().to_pylist()}


def told(tmp_path: Path) -> Path:
    return tmp_path / STORE_FOLDER / OFFERS / "notify" / "live.json"


def test_it_follows_snapshots_deltas_late_rows_and_deletes(b: broker.Broker, plain: str) -> None:
    consumer = example.Consumer(plain, OFFERS)
    with pytest.raises(HTTPError, match="404"):
        consumer.poll()
    published(b, ("a", 1, 5), ("b", 2, 5), ("c", 3, 5))
    assert consumer.poll() == "reset"
    published(b, ("a", 9, 6), ("b", 0, 4), gone=(("c", 7),))  # b is late
    published(b, ("c", 8, 6), ("d", 4, 1))  # c is late: it was deleted at 7
    assert consumer.poll() == "delta"
    assert content(consumer) == direct(b) == {"a": 9, "b": 2, "d": 4}
    assert consumer.poll() == "unchanged"


def test_it_follows_over_s3_by_unsigned_get(redis_url: str, s3_moto: S3Server, tmp_path: Path) -> None:
    settings = s3_moto.settings(redis=redis_url, home=tmp_path)
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    with broker.connect(**given) as b:
        prefix = settings.store.split("?")[0].removeprefix(f"s3://{BUCKET}").strip("/")
        readable(s3_moto, prefix)
        base = "/".join(part for part in (s3_moto.endpoint, BUCKET, prefix) if part)
        consumer = example.Consumer(base, OFFERS)
        for price in (1, 2, 3):
            published(b, ("a", price, price))
            assert consumer.poll() in ("reset", "delta")
            assert content(consumer) == direct(b)
        assert consumer.poll() == "unchanged"


def test_a_new_session_resets(b: broker.Broker, plain: str) -> None:
    published(b, ("a", 1, 1))
    consumer = example.Consumer(plain, OFFERS)
    consumer.poll()
    b.dataset(OFFERS).drop()
    published(b, ("z", 1, 1))
    assert consumer.poll() == "reset"
    assert content(consumer) == {"z": 1}


def test_whoever_comes_from_below_an_erased_delete_begins_anew(b: broker.Broker, plain: str) -> None:
    published(b, ("a", 1, 1), ("secret", 1, 1))
    consumer = example.Consumer(plain, OFFERS)
    consumer.poll()
    assert erasure_of(b).erase(OFFERS, "secret").done
    rung(b)
    consumer.hashes.clear()  # else it refuses: the file it had the key from is another now
    assert consumer.poll() == "reset"
    assert content(consumer) == direct(b) == {"a": 1}
    assert consumer.poll() == "unchanged"


def test_a_gap_resets(b: broker.Broker, plain: str, tmp_path: Path) -> None:
    published(b, ("a", 1, 1))
    consumer = example.Consumer(plain, OFFERS)
    consumer.poll()
    published(b, ("b", 2, 1))
    b.dataset(OFFERS).publish(pa.table({"sku": ["c"], "price": [3], "n": [1]}))
    published(b, ("d", 4, 1))
    assert consumer.poll() == "reset"
    assert content(consumer) == direct(b) == {"c": 3, "d": 4}


def test_a_changed_hash_for_a_known_version_is_refused_and_nothing_changes(
    b: broker.Broker, plain: str, tmp_path: Path
) -> None:
    published(b, ("a", 1, 1))
    consumer = example.Consumer(plain, OFFERS)
    consumer.poll()
    found = json.loads(told(tmp_path).read_text())
    edge = found["snapshot"] or found["deltas"][0]
    edge["files"][0]["sha256"] = "0" * 64
    told(tmp_path).write_text(json.dumps(found | {"seq": found["seq"] + 1}))
    with pytest.raises(example.Refused, match="known version"):
        consumer.poll()
    assert content(consumer) == {"a": 1}


def test_who_is_many_versions_behind_is_led_over_all_of_them(b: broker.Broker, plain: str) -> None:
    """More small deltas than a notification names one by one: roll-ups lead to where those begin."""
    published(b, *((f"s{n}", n, 0) for n in range(5)))
    consumer, early = example.Consumer(plain, OFFERS), example.Consumer(plain, OFFERS)
    assert early.poll() == "reset"
    for n in range(1, NOTIFY_DELTAS + 20):
        row = pa.table({"sku": [f"d{n % 30}"], "price": [n], "n": [n]})
        b.dataset(OFFERS).publish_delta(row, [{"sku": f"d{(n + 7) % 30}", "n": n}])
        if n == 12:
            rung(b)
            assert early.poll() == "delta"
    rung(b)
    assert (consumer.poll(), content(consumer)) == ("reset", direct(b))
    assert list(b.parts.compactor.compact(OFFERS))
    rung(b)
    late = example.Consumer(plain, OFFERS)
    assert [consumer.poll(), early.poll(), late.poll()] == ["unchanged", "delta", "reset"]
    assert content(consumer) == content(early) == content(late) == direct(b)


def test_it_waits_where_nothing_leads_to_the_version(b: broker.Broker, plain: str, tmp_path: Path) -> None:
    published(b, ("a", 1, 1))
    found = json.loads(told(tmp_path).read_text())
    told(tmp_path).write_text(json.dumps(found | {"snapshot": None, "version": 9, "deltas": []}))
    consumer = example.Consumer(plain, OFFERS)
    assert (consumer.poll(), consumer.rows) == ("waiting", [])
    told(tmp_path).write_text(json.dumps(found))
    assert consumer.poll() == "reset"


def test_bytes_that_are_not_what_was_told_are_refused(b: broker.Broker, plain: str, tmp_path: Path) -> None:
    published(b, ("a", 1, 1))
    file = b.dataset(OFFERS).state.edges[0].files[0]
    (tmp_path / STORE_FOLDER / file.key).write_bytes(b"something else")
    with pytest.raises(example.Refused, match="bytes"):
        example.Consumer(plain, OFFERS).poll()


def test_an_older_announcement_is_ignored(b: broker.Broker, plain: str, tmp_path: Path) -> None:
    published(b, ("a", 1, 1))
    before = told(tmp_path).read_bytes()
    published(b, ("a", 2, 2))
    consumer = example.Consumer(plain, OFFERS)
    consumer.poll()
    told(tmp_path).write_bytes(before)
    assert consumer.poll() == "ignored"
    assert content(consumer) == {"a": 2}


def test_a_channel_that_goes_back_resets_to_the_older_version(b: broker.Broker, plain: str, tmp_path: Path) -> None:
    published(b, ("a", 1, 1))
    older = json.loads(told(tmp_path).read_text())
    published(b, ("a", 2, 2))
    newer, place = json.loads(told(tmp_path).read_text()), told(tmp_path).with_name("production.json")
    place.write_text(json.dumps(newer | {"announced": 1}))
    consumer = example.Consumer(plain, OFFERS, "production")
    consumer.poll()
    place.write_text(json.dumps(older | {"announced": 2}))
    assert consumer.poll() == "reset"
    assert content(consumer) == {"a": 1}
    place.write_text(json.dumps(newer | {"announced": 1}))
    assert consumer.poll() == "ignored"


def test_it_stays_short_and_needs_nothing_of_the_broker() -> None:
    code = [line for line in SOURCE.read_text().splitlines() if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(code) <= MAX_CODE_LINES
    assert not any(word in line for line in code for word in ("import broker", "from broker", "import redis", "minio"))
