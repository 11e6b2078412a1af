"""The service itself: up, down, doctor, rebuild."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from broker.backend import embedded
from broker.cli.checks import examined
from broker.cli.exits import Exit
from broker.cli.face import Command, Face, columns, pass_face
from broker.cli.finding import Finding
from broker.errors import BrokerError, Unsupported
from broker.rules.fold import State
from broker.settings import home_folder


@click.command(
    "up", cls=Command, examples="broker up\nbroker up --home /srv/broker", answer="{url, version, run_id, pid, home}"
)
@pass_face
def up(face: Face) -> None:
    """Start the embedded Redis and let it run without clients too."""
    settings = face.settings()
    if settings.redis:
        raise Unsupported(
            "a Redis is configured",
            of="redis",
            why="the embedded one is for where none is",
            hint="Unset BROKER_REDIS, or start yours",
        )
    home = home_folder(settings)
    endpoint = embedded.ensure(home, settings)
    embedded.keep(home)
    face.emit(asdict(endpoint) | {"home": str(home)}, f"running at {endpoint.url}\nstop it with: broker down")


@click.command("down", cls=Command, examples="broker down", answer="{home, stopped}")
@pass_face
def down(face: Face) -> None:
    """Stop the embedded Redis; what it accepted is on disk. Nothing running is no error."""
    home = home_folder(face.settings())
    stopped = embedded.stop(home)
    face.emit({"home": str(home), "stopped": stopped}, "stopped" if stopped else f"none was running under {home}")


@click.command(
    "doctor", cls=Command, examples="broker doctor\nbroker doctor --json", answer="A list of {verdict, subject, text}"
)
@pass_face
def doctor(face: Face) -> int:
    """Check settings, Redis, store, logs, workers and RQ; exit 1 when something is broken."""
    found: list[Finding] = []
    with face.progress("doctor", unit="checks") as advance:
        for finding in examined(face.settings()):
            found.append(finding)
            advance(1)
    broken = [finding for finding in found if finding.verdict == "broken"]
    lines = [f"{finding.verdict:<6}  {finding.subject}: {finding.text}" for finding in found]
    face.emit([asdict(finding) for finding in found], [*lines, f"{len(broken)} broken" if broken else "nothing is broken"])
    return Exit.FAILED if broken else Exit.OK


@click.command(
    "rebuild",
    cls=Command,
    examples="broker rebuild\nbroker rebuild --prefix shop/",
    answer="A list of {dataset, version, records, error}",
)
@click.option("--prefix", default="", help="Only datasets whose id begins so.")
@pass_face
def rebuild(face: Face, prefix: str) -> int:
    """Restore the index of every dataset in Redis from the store alone; exit 1 when one is not restored.

    Requests and cursors are not in the store.
    """
    with face.connect() as broker, face.progress("rebuild", unit="datasets") as advance:
        found = broker.parts.catalog.rebuild(prefix, advance)
    failed = {dataset: error for dataset, error in found.items() if isinstance(error, BrokerError)}
    states = {dataset: state for dataset, state in found.items() if isinstance(state, State) and state.exists}
    value: list[dict[str, Any]] = [
        {"dataset": name, "version": state.version, "records": state.seq, "error": None} for name, state in states.items()
    ]
    value += [{"dataset": name, "version": None, "records": None, "error": error.to_dict()} for name, error in failed.items()]
    rows = [(name, state.version, state.seq, None) for name, state in states.items()]
    face.emit(
        value, columns(("dataset", "version", "records", "error"), rows + [(n, None, None, e) for n, e in failed.items()])
    )
    return Exit.FAILED if failed else Exit.OK


__all__ = ["doctor", "down", "rebuild", "up"]
