"""diff: what differs between two versions.  history: one key, version by version."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import click

from broker.cli.face import Command, Face, columns, pass_face, print_line
from broker.cli.words import time_text

SIGNS: Final = {"added": "+", "removed": "-", "changed": "~", "held": " "}


@click.command(
    "diff", cls=Command,
    examples="""
    broker diff shop/catalog/offers 810 812
    broker diff shop/catalog/offers 812 810 --limit 20
    broker diff shop/catalog/offers 810 812 --count
    """,
    answer="A line each: {change, before, after}; change is added, changed or removed, the others are rows or null. "
    "With --count: {dataset, added, changed, removed}",
)  # fmt: skip
@click.argument("name", metavar="DATASET")
@click.argument("before", type=int, metavar="V1")
@click.argument("after", type=int, metavar="V2")
@click.option("--limit", type=click.IntRange(1), default=None, help="Only so many rows.")
@click.option("--count", is_flag=True, help="Only how many.")
@pass_face
def diff(face: Face, /, name: str, before: int, after: int, *, limit: int | None, count: bool) -> None:
    """Rows added, changed and removed from version V1 to version V2, by key, in no order."""
    with face.connect() as broker:
        found = broker.dataset(name)
        key, counts = found.spec.key, Counter[str]()
        for batch in found.past.diff(before, after):
            counts.update(batch.column("change").to_pylist())
            for row in () if count else batch.slice(0, limit).to_pylist():
                print_line(json.dumps(row, default=_plain) if face.json else _line(row, key))
            if limit is not None and not count:
                limit -= min(limit, batch.num_rows)
                if not limit:
                    break
    totals = {"added": counts["added"], "changed": counts["changed"], "removed": counts["removed"]}
    told = ", ".join(f"{number} {word}" for word, number in totals.items())
    if count:
        face.emit({"dataset": name} | totals, told)
    elif limit != 0:
        face.say(told)


@click.command(
    "history", cls=Command,
    examples="""
    broker history shop/catalog/offers a1
    broker history debian/packages/main bash amd64
    """,
    answer="A list of {version, time, change, row}; row null: it was removed. change held: it is older than what is kept",
)  # fmt: skip
@click.argument("name", metavar="DATASET")
@click.argument("key", nargs=-1, required=True)
@pass_face
def history(face: Face, name: str, key: tuple[str, ...]) -> None:
    """The versions, of those that are kept, which changed one KEY (a value for each key column, in order), oldest first."""
    with face.connect() as broker:
        found = broker.dataset(name).past.history(key)
    value = [{"version": one.version, "time": one.time, "change": one.change, "row": one.row} for one in found]
    shown = [(one.version, time_text(one.time), one.change, _text(one.row) if one.row else None) for one in found]
    face.emit(json.loads(json.dumps(value, default=_plain)), columns(("version", "time", "change", "row"), shown))
    if not found:
        face.say("no version that is kept has this key")


def _line(row: dict[str, Any], key: tuple[str, ...]) -> str:
    change, before, after = row["change"], row["before"], row["after"]
    if change != "changed":
        return f"{SIGNS[change]} {_text(after or before)}"
    return f"{SIGNS[change]} {_text({name: after[name] for name in key})}  {', '.join(_moved(before, after))}"


def _moved(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    for name, value in after.items():
        if before[name] != value:
            yield f"{name}: {_text(before[name])} -> {_text(value)}"


def _text(value: object) -> str:
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: object) -> str:
    """What JSON has no type for, as text."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
