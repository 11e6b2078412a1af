"""promote, rollback, release, channels: which version of a dataset each channel names."""

from __future__ import annotations

from typing import Any, Final

import click

from broker.channels import Pointer
from broker.cli.face import Command, Face, columns, pass_face
from broker.cli.words import time_text
from broker.connect import Broker
from broker.errors import Invalid, NotFound
from broker.model.names import DatasetId

ANSWER: Final = "{dataset, channel, version, before, announced, session, time, why}"
"""`before`: versions that rollbacks lead to, the next one first; `announced`: number of the announcement."""


@click.command(
    "promote", cls=Command,
    examples="""
    broker promote shop/catalog/offers 812 --to staging
    broker promote shop/catalog/offers 812 --to production --expect 810
    """, answer=ANSWER)  # fmt: skip
@click.argument("name", metavar="DATASET")
@click.argument("version", type=click.IntRange(1))
@click.option("--to", "channel", required=True, metavar="CHANNEL", help="The channel that shall name the version.")
@click.option(
    "--expect", type=click.IntRange(0), metavar="VERSION", help="What it must name until then; 0: nothing. Else exit 4."
)
@pass_face
def promote(face: Face, name: str, version: int, channel: str, expect: int | None) -> None:
    """Let a channel name a version: one announcement, no data copied. Done already is no error."""
    with face.connect() as broker:
        broker.dataset(name).promote(version, to=channel, expect=expect)
        _show(face, broker, name, channel)


@click.command(
    "rollback", cls=Command,
    examples="""
    broker rollback shop/catalog/offers production
    broker rollback shop/catalog/offers production --expect 812
    """, answer=ANSWER)  # fmt: skip
@click.argument("name", metavar="DATASET")
@click.argument("channel")
@click.option("--expect", type=click.IntRange(1), metavar="VERSION", help="The version to leave; repeated, it is left once.")
@pass_face
def rollback(face: Face, name: str, channel: str, expect: int | None) -> None:
    """Let a channel name again what it named before; once more: what it named before that."""
    with face.connect() as broker:
        broker.dataset(name).rollback(channel, expect=expect)
        _show(face, broker, name, channel)


@click.command(
    "release", cls=Command,
    examples="""
    broker release shop/catalog offers=812 images=77 --to production
    broker release shop/catalog offers=812 images=77 --to production --expect offers=810 --expect images=76
    """, answer="{domain, channel, announced, versions}")  # fmt: skip
@click.argument("domain", metavar="TENANT/DOMAIN")
@click.argument("versions", nargs=-1, required=True, metavar="NAME=VERSION...")
@click.option("--to", "channel", required=True, metavar="CHANNEL", help="The channel that shall name the versions.")
@click.option("--expect", multiple=True, metavar="NAME=VERSION", help="What it must name until then; 0: nothing. Else exit 4.")
@pass_face
def release(face: Face, domain: str, versions: tuple[str, ...], channel: str, expect: tuple[str, ...]) -> None:
    """Let a channel name versions of several datasets at one moment, all or nothing."""
    wanted = _numbers(versions)
    with face.connect() as broker:
        number = broker.release(domain, wanted, to=channel, expect=_numbers(expect))
    value = {"domain": domain, "channel": channel, "announced": number, "versions": wanted}
    face.emit(value, [f"{channel} of {domain}/{name}: version {version}" for name, version in wanted.items()])


@click.command(
    "channels", cls=Command,
    examples="""
    broker channels
    broker channels 'shop/*' --json
    """, answer=f"A list of {ANSWER}")  # fmt: skip
@click.argument("pattern", default="*")
@pass_face
def channels(face: Face, pattern: str) -> None:
    """What channels name, of datasets that match a glob. `live`, which follows every version, is not listed."""
    with face.connect() as broker:
        found = broker.parts.channels.find(pattern)
    heads = ("dataset", "channel", "version", "since", "why", "before")
    rows = [(p.dataset, p.channel, p.named.version, time_text(p.named.time), p.named.why, _before(p)) for p in found]
    face.emit([_value(pointer) for pointer in found], columns(heads, rows))


def _show(face: Face, broker: Broker, name: str, channel: str) -> None:
    """What the channel names now: perhaps somebody has moved it on already."""
    named = broker.parts.channels.at(DatasetId(name), channel)
    if named is None:
        raise NotFound("the channel is gone", of=f"{name} in {channel}", why="the log changed", hint="Run: broker doctor")
    pointer = Pointer(DatasetId(name), channel, named)
    before = _before(pointer)
    face.emit(_value(pointer), f"{channel} of {name}: version {named.version}" + (f", before {before}" if before else ""))


def _value(pointer: Pointer) -> dict[str, Any]:
    named = pointer.named
    return {
        "dataset": str(pointer.dataset), "channel": pointer.channel, "version": named.version,
        "before": [point.version for point in named.past], "announced": named.seq, "session": named.session,
        "time": named.time, "why": named.why,
    }  # fmt: skip


def _before(pointer: Pointer) -> str:
    return ", ".join(str(point.version) for point in pointer.named.past)


def _numbers(words: tuple[str, ...]) -> dict[str, int]:
    """NAME=VERSION, each name once. Raises Invalid."""
    found = dict[str, int]()
    for word in words:
        name, separator, number = word.partition("=")
        if not separator or not number.isdecimal() or name in found:
            why = "named twice" if name in found else "it must be NAME=VERSION"
            raise Invalid("not a dataset's version", of=word, why=why, hint="Example: offers=812")
        found[name] = int(number)
    return found
