"""`broker worker [module:app]`: a pool of children that run producers, and the duties that keep a deployment tidy."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Final

import click

from broker.cli.face import Command, Face, pass_face
from broker.errors import Invalid, InvalidRequest, NotFound, Terminal
from broker.hands import insisted
from broker.model.duration import seconds_of
from broker.model.names import check_name
from broker.parts import Parts, insisted_parts
from broker.producers import Producers
from broker.settings import CONFIG_FILE, find_upwards
from workers.batching import serve_batches
from workers.child import producers_of
from workers.loop import DRAIN_SECONDS, Loop
from workers.maintenance import add_maintenance, serve_maintenance
from workers.producing import Producing
from workers.roles import RQ_SECONDS, Drained, Presence, add_janitor, add_producing, serve_parts
from workers.rq_pool import RqPool, pool_for
from workers.supervisor import Supervisor

log = logging.getLogger("broker.worker")


@click.command(
    "worker", cls=Command,
    examples="""
    broker worker my_module:app --processes 4
    broker worker --burst
    broker worker my_module:app --role parts --processes 8
    broker worker --role microbatch --max-age 100ms
    broker worker --role compact
    broker worker sources/broker.toml
    """,
    answer="Nothing on stdout; the log on stderr, a line for each event: {time, level, event, counts, patterns, "
    "correlation, dataset, version, flight, requests, blocks, replica, rows, failure, error}; "
    "correlation is one id from a request or block to the receipt",
)  # fmt: skip
@click.argument("app", required=False)
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Attempts that run at once, each in a child process.",
)
@click.option(
    "--role", type=click.Choice(["all", "lead", "parts", "microbatch", "compact"]), default="all", show_default=True,
    help="lead: requests only; parts: only RQ workers, --processes for parts of heavy productions and one that joins them; "
    "microbatch: versions from change logs, start one a core; compact: compaction and retention. Both without an APP.",
)  # fmt: skip
@click.option(
    "--max-age", metavar="TIME",
    help="Of the role microbatch: a change is visible so long after it was appended, 100ms or 1s. Default: max_age_seconds.",
)  # fmt: skip
@click.option("--burst", is_flag=True, help="Stop when nothing is left to do for these producers.")
@click.option("--name", help="Name in status and logs. Default: host, pid and a random part.")
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0),
    default=DRAIN_SECONDS,
    show_default=True,
    help="Time for running attempts at TERM or INT.",
)
@pass_face
def worker(
    face: Face, app: str | None, *, processes: int, role: str, max_age: str | None, burst: bool, name: str | None,
    drain_seconds: float,
) -> None:  # fmt: skip
    """Serve the producers of APP (module:attribute, or a .toml file; default: the sources of broker.toml).

    TERM or INT: takes no more, finishes what runs, ends. A second one ends at once.
    """
    log_to_stderr(face.json)
    if max_age is not None and role != "microbatch":
        raise InvalidRequest("only micro-batches have an age", of="--max-age", hint="Add --role microbatch")
    if role == "microbatch":
        age = None if max_age is None else seconds_of(max_age, "--max-age")
        serve_batches(face.settings(max_age_seconds=age), check_name(name, "worker") if name else None, burst)
        return
    if role == "compact":
        serve_maintenance(face.settings(), check_name(name, "worker") if name else None, burst)
        return
    target = app or config_here()
    producers = checked_app(target)
    if role == "parts":
        serve_parts(face.settings(), target, processes, burst)
        return
    parts = insisted_parts(face.settings())
    try:
        pool = pool_for(parts.settings, target, producers, processes) if role == "all" else None
        options = Options(name, processes, burst, drain_seconds, leads=role == "lead")
        run(parts, producers, Supervisor(parts.settings, target, processes), options, pool)
    finally:
        parts.close()


class Options:
    """What the command line says about one run."""

    def __init__(self, name: str | None, processes: int, burst: bool, drain_seconds: float, leads: bool = False) -> None:
        self.name = check_name(name, "worker") if name else None
        self.processes, self.burst, self.drain_seconds, self.leads = processes, burst, drain_seconds, leads


def run(parts: Parts, producers: Producers, supervisor: Supervisor, options: Options, pool: RqPool | None = None) -> None:
    """Until a signal, a failure, or the end of a burst. Raises the failure, SystemExit at a second signal."""
    for line in insisted(parts.caveats):  # before a signal means to drain: there is nothing yet
        log.warning("cannot be promised: %s", line)
    role, loop = Producing(parts, producers, supervisor), Loop()
    role.name = options.name or role.name
    patterns = tuple(producer.pattern for producer in producers)
    presence = Presence(parts, role, patterns, options.processes)
    loop.handle_signals()
    add_producing(loop, role, parts.settings.lease_seconds)
    add_janitor(loop, parts, role.name, sweeps=not options.burst)
    if not options.burst:
        add_maintenance(loop, parts, elsewhere=options.leads)
    loop.every("presence", parts.settings.lease_seconds / 3, presence.renew, drains=True)
    if pool is not None:
        loop.every("rq", RQ_SECONDS, pool.inspect, drains=True)
    log.info("%s serves %s", role.name, ", ".join(patterns), extra={"patterns": patterns})
    finished = Drained(parts, producers) if options.burst else None
    try:
        loop.run(finished, drained=lambda: not role.busy, drain_seconds=options.drain_seconds)
    except SystemExit as stopped:
        for child in list(supervisor.children):
            child.kill("ended by a second signal")
        presence.leave()
        parts.engine.close()
        # At once: other threads may be in the middle of anything, and the flights lapse to other workers.
        os._exit(int(stopped.code or 1))
    finally:
        supervisor.stop()
        if pool is not None:
            pool.stop()
        presence.tell()
        presence.leave()
        log.info("%s ended", role.name)
    role.close()


def config_here() -> str:
    """The nearest broker.toml. Raises NotFound."""
    found = find_upwards(CONFIG_FILE)
    if found is None:
        raise NotFound(
            "nothing to serve",
            of=CONFIG_FILE,
            why="no application was named and there is no such file here or above",
            hint="broker worker my_module:app",
        )
    return str(found)


def checked_app(target: str) -> Producers:
    """The registry the children will load as well. Raises Terminal, whose exit code is 1, for any fault in it."""
    try:
        producers = producers_of(str(Path(target).absolute()) if target.endswith(".toml") else target)
    except (Invalid, NotFound) as error:
        raise Terminal(
            f"the application cannot be used: {error.what}", of=error.of or target, why=error.why, hint=error.hint
        ) from error
    if not len(producers):
        raise Terminal(
            "the application serves nothing",
            of=target,
            hint="Register with @app.producer(pattern), or add [[sources]] to broker.toml",
        )
    return producers


KNOWN: Final = (
    "counts", "patterns", "correlation", "dataset", "version", "flight", "requests", "blocks", "replica", "rows", "failure",
)  # fmt: skip
"""What a line may say beside time, level and event. `correlation`: see rules/correlation.py."""


class JsonLine(logging.Formatter):
    """One event, one JSON object: time, level, event and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        known = {name: getattr(record, name) for name in KNOWN if hasattr(record, name)}
        error = {"error": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps(
            {"time": record.created, "level": record.levelname.lower(), "event": record.getMessage(), **known, **error}
        )


def log_to_stderr(as_json: bool) -> None:
    """One line per event."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    text.converter = time.localtime
    handler.setFormatter(JsonLine() if as_json else text)
    root = logging.getLogger("broker")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if as_json else logging.INFO)  # a line for each flight and batch is for machines
    root.propagate = False


if __name__ == "__main__":
    from broker.cli.__main__ import main

    sys.exit(main(["worker", *sys.argv[1:]]))
