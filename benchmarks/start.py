"""`broker --version` over a bare Python start."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import ROOT, Row, median_seconds

TIMES = 15


def run() -> list[Row]:
    bare = median_seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True, cwd=ROOT), TIMES)
    ours = median_seconds(
        lambda: subprocess.run(
            [sys.executable, "-m", "broker.cli", "--version"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL
        ),
        TIMES,
    )
    extra = (ours - bare) * 1000
    return [
        Row(
            "broker --version", f"{extra:.0f} ms over Python", f"python {bare * 1000:.0f} ms", None, "100 ms over", extra <= 100
        )
    ]
