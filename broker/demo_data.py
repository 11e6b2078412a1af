"""Feeds for the demonstration: the Debian package index where it lies beside the checkout, else one made up like it."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REAL: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "debian-packages"
HEADER: Final = ("package", "version", "section", "priority", "maintainer", "installed_size", "description")
SECTIONS: Final = ("utils", "libs", "games", "doc", "python", "admin", "net", "science")
ROWS, CHANGES, ADDED, LATE = 20_000, 900, 200, 40

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Feeds:
    """Three CSV files (gzip) with the same header: all rows, then two rounds of changed and new ones."""

    first: Path
    second: Path
    third: Path
    origin: str


def real_feeds() -> Feeds | None:
    """The package index of Debian 12; None where it is absent."""
    first, second, third = (REAL / name for name in ("main.csv.gz", "security.csv.gz", "updates.csv.gz"))
    if not all(path.exists() for path in (first, second, third)):
        return None
    return Feeds(first, second, third, "the package index of Debian 12")


def generated_feeds(folder: Path) -> Feeds:
    """A catalogue of its own making in `folder`, the same on every run."""
    folder.mkdir(parents=True)
    chance = random.Random(12)
    rows = {f"package-{number:05d}": _row(chance, number) for number in range(ROWS)}
    changed = [_changed(chance, rows[name]) for name in chance.sample(sorted(rows), CHANGES)]
    added = [_row(chance, number) for number in range(ROWS, ROWS + ADDED)]
    late = [_changed(chance, row) for row in chance.sample(changed, LATE)]
    first, second, third = folder / "main.csv.gz", folder / "changes.csv.gz", folder / "late.csv.gz"
    for path, content in ((first, rows.values()), (second, [*changed, *added]), (third, late)):
        _write(path, content)
    return Feeds(first, second, third, f"made up: {ROWS} packages")


def _row(chance: random.Random, number: int) -> Row:
    version = f"{chance.randrange(9)}.{chance.randrange(30)}-{chance.randrange(1, 6)}"
    size = str(chance.randrange(10, 90_000)) if chance.random() > 0.05 else ""
    maintainer = f'Jérôme "jj" Müller, team {chance.randrange(50)}'
    return (
        f"package-{number:05d}",
        version,
        chance.choice(SECTIONS),
        "optional",
        maintainer,
        size,
        f"Does the job of number {number}",
    )


def _changed(chance: random.Random, row: Row) -> Row:
    name, version, section, *rest = row
    moved = chance.choice(SECTIONS) if chance.random() < 0.3 else section
    return (name, f"{version}+deb12u{chance.randrange(1, 9)}", moved, *rest)


def _write(path: Path, rows: Iterable[Row]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(HEADER)
        writer.writerows(rows)
