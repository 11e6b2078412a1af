"""Requests, completions and dead letters as documented JSON and as lines for people."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from broker.cli.face import fields_of
from broker.cli.words import bytes_text, span_text, time_text
from broker.errors import from_dict
from broker.flights import Status
from broker.inquiry import DeadLetter
from broker.model.request import Completion, State

REQUEST: Final = "{request, state, dataset, target, attempts, causes, created, waits, flight, progress, body, completion}"
COMPLETION: Final = (
    "{request, dataset, target, state, version, cursor, mode, reset_reason, format, columns, edges, files, rows, bytes, "
    "expires_at, error, attempts, attributes}"
)
"""What the documented JSON holds."""


def status_value(status: Status, unserved: bool = False) -> dict[str, Any]:
    """The documented JSON of a request. `waits`: backlog, no-producer, or null."""
    return {
        "request": status.id,
        "state": str(status.state),
        "dataset": str(status.request.dataset),
        "target": status.request.target,
        "attempts": status.attempts,
        "causes": list(status.causes),
        "created": status.created,
        "waits": "no-producer" if unserved else status.waits,
        "flight": status.flight,
        "progress": status.progress,
        "body": status.request.model_dump(mode="json", exclude_defaults=True),
        "completion": completion_value(status.completion) if status.completion else None,
    }


def status_lines(status: Status, unserved: bool = False) -> list[str]:
    asked = status.request
    lines = fields_of(
        {
            "request": status.id,
            "state": str(status.state),
            "waits for": "a worker (no-producer)" if unserved else status.waits,
            "dataset": asked.dataset,
            "target": asked.target,
            "since": asked.since,
            "where": asked.where,
            "columns": ", ".join(asked.columns or ()),
            "attempts": str(status.attempts),
            "created": time_text(status.created),
            "age": span_text(time.time() - status.created),
            "flight": status.flight,
            "progress": " ".join(f"{name}={value}" for name, value in status.progress.items()),
        }
    )
    if status.causes:
        lines += ["", "attempts that failed", *cause_lines(status.causes)]
    return lines + (["", *completion_lines(status.completion)] if status.completion else [])


def completion_value(done: Completion) -> dict[str, Any]:
    """The documented JSON of a completion."""
    return done.model_dump(mode="json") | {
        "files": [file.model_dump(mode="json") for file in done.files], "rows": done.rows, "bytes": done.bytes,
    }  # fmt: skip


def completion_text(done: Completion) -> str:
    """A completion in one line."""
    if done.state is not State.COMPLETED:
        return f"{done.request}  {done.state}  {done.dataset}  {(done.error or {}).get('what', '')}".rstrip()
    reset = f" (reset: {done.reset_reason})" if done.reset_reason else ""
    return (
        f"{done.request}  {done.mode}{reset}  {done.dataset} version {done.version}  {done.rows} rows, {bytes_text(done.bytes)}"
    )


def completion_lines(done: Completion) -> list[str]:
    lines = fields_of(
        {
            "state": str(done.state),
            "mode": done.mode,
            "reset reason": done.reset_reason,
            "version": done.version,
            "cursor": done.cursor,
            "rows": done.rows,
            "bytes": bytes_text(done.bytes),
            "expires": time_text(done.expires_at),
            "error": error_text(done.error),
        }
    )
    return lines + [f"file    {file.role}  {file.key}  {file.rows} rows" for file in done.files]


def dead_value(letter: DeadLetter) -> dict[str, Any]:
    done = letter.completion
    body = letter.request.model_dump(mode="json", exclude_defaults=True) if letter.request else None
    return {
        "request": done.request,
        "dataset": str(done.dataset),
        "target": done.target,
        "attempts": done.attempts,
        "causes": list(letter.causes),
        "body": body,
    }


def dead_lines(letter: DeadLetter) -> Iterator[str]:
    done = letter.completion
    yield f"{done.request}  {done.dataset}  {done.target}  {done.attempts} attempt(s)"
    yield from cause_lines(letter.causes)


def cause_lines(causes: Sequence[dict[str, str]]) -> list[str]:
    return [f"  {number}. {error_text(cause)}" for number, cause in enumerate(causes, 1)]


def error_text(fields: dict[str, str] | None) -> str:
    if not fields:
        return ""
    return f"{fields.get('code', '?')}: {from_dict(fields).sentence}"
