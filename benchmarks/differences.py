"""publish(delta=True) of a 12,000,000-row Parquet feed with 1 % changed: memory and rate, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.common import ROOT, Row, offers, peak_bytes, redis_pid

ROWS = 12_000_000
DATASET = "goodstuff_01/catalog/offers"


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as folder:
        home, feed = Path(folder) / ".broker", Path(folder) / "feed.parquet"
        _first_version(home, feed)
        pq.write_table(offers(ROWS, changed_every=100), feed, compression="zstd")
        out = subprocess.run(
            [sys.executable, "-m", "benchmarks.differences", str(home), str(feed)],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
        ).stdout.split()
        spent, peak, redis = float(out[0]), int(out[1]), int(out[2])
        subprocess.run(
            [sys.executable, "-m", "broker.cli", "--home", str(home), "down"], check=True, capture_output=True, cwd=ROOT
        )
    rate = ROWS / spent
    return [
        Row(
            "difference of 12,000,000 rows, 1 % changed", f"{rate:,.0f} rows/s", "", rate / 1e6, "1,000,000 rows/s", rate >= 1e6
        ),
        Row(
            "the same, memory of all processes",
            f"{(peak + redis) / (1 << 30):.2f} GiB",
            "",
            None,
            "1.5 GiB",
            peak + redis < 1.5 * (1 << 30),
        ),
    ]


def _first_version(home: Path, feed: Path) -> None:
    """In a process of its own, so that its memory is not counted."""
    pq.write_table(offers(ROWS), feed, compression="zstd")
    code = f"import broker; broker.connect(home={str(home)!r}).dataset({DATASET!r}, key=['sku']).publish({str(feed)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def main(home: str, feed: str) -> None:
    """One difference: prints seconds, this process' peak and Redis' peak in bytes."""
    import broker

    with broker.connect(home=home) as b:
        begun = time.perf_counter()
        published = b.dataset(DATASET).publish(Path(feed), delta=True)
        spent = time.perf_counter() - begun
        assert published.edge is not None
        assert published.edge.rows == ROWS // 100, published.edge.rows
        print(spent, peak_bytes(), peak_bytes(redis_pid(b)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
