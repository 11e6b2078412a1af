"""Schedules: requests that are made again and again, by the clock of Redis. The only writer of their keys.

A due one is submitted under `schedule id + due time` as idempotency key, so whatever crashes or runs twice asks once. What
was missed while no worker ran is made up for once. Schedules live in Redis; they are lost with it, as requests are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from broker.backend.client import RedisClient
from broker.backend.index import Index
from broker.backend.keys import Slot, duty_lease
from broker.backend.leases import Leases
from broker.backend.registry import Registry
from broker.errors import BrokerError, Busy, Conflict, Invalid, InvalidRequest, NotFound, Transient
from broker.model.dataset import Frozen
from broker.model.event import rfc3339
from broker.model.names import check_name
from broker.model.request import Request
from broker.rules.cron import parse_cron

log = logging.getLogger("broker.schedules")
OWN: Final = ("deadline", "idempotency_key", "since")
"""Fields of a request that a schedule cannot have: the first would differ at each try, the second is its own."""


class Schedule(Frozen):
    """What is asked for, and when: a cron expression in UTC."""

    id: str
    cron: str
    request: Request


class Course(Frozen):
    """How it goes. Times are seconds since the epoch. `next` None: never. `error`: why the last one was refused, else ''."""

    next: float | None = None
    last: float | None = None
    submitted: str | None = None
    error: str = ""


@dataclass
class ScheduleReport:
    """What one pass did: schedule ids. `waiting`: could not be submitted now; the next pass tries again."""

    submitted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)


Submit = Callable[[Mapping[str, Any]], str]
"""Fields of a request -> its id. Raises as `Broker.request`."""


class Schedules:
    """Safe for threads and processes."""

    def __init__(self, redis: RedisClient, index: Index, leases: Leases) -> None:
        self._redis, self._index, self._leases = redis, index, leases
        self._registry = Registry(redis)

    def add(self, id: str, cron: str, fields: Mapping[str, Any]) -> Schedule:
        """Begin a schedule; the same again changes nothing. Raises Conflict (the name is taken), Invalid, InvalidRequest."""
        if refused := sorted(set(OWN) & set(fields)):
            raise InvalidRequest("a schedule has no such fields", of=id, why=", ".join(refused))
        found = Schedule(id=check_name(id, "schedule"), cron=parse_cron(cron).text, request=Request.of(fields))
        first = parse_cron(cron).after(self._registry.now())
        if first is None:
            raise Invalid("the schedule is never due", of=cron, hint="Is there such a day?")
        slot = self._index.slot(found.request.dataset)
        known = next((other for other, _ in self.all() if other.id == id), None)
        if known is None:
            if self._redis.run("HSETNX", _schedules(slot), id, found.model_dump_json(exclude_defaults=True)):
                self._redis.run("HSET", _courses(slot), id, Course(next=first).model_dump_json(exclude_defaults=True))
            known = self.get(id)[0]
        if known != found:
            why = f"{known.cron} for {known.request.dataset}"
            raise Conflict("a schedule of this name exists", of=id, why=why, hint=f"broker schedule remove {id}")
        return found

    def all(self) -> Iterator[tuple[Schedule, Course]]:
        """Every schedule by slot and name, with how it goes."""
        now = self._registry.now()
        for slot in self._index.slots():
            yield from self._of(slot, now)

    def get(self, id: str) -> tuple[Schedule, Course]:
        """Raises NotFound."""
        found = next((one for one in self.all() if one[0].id == id), None)
        if found is None:
            raise NotFound("no such schedule", of=id, hint="See: broker schedule list")
        return found

    def remove(self, id: str) -> None:
        """Requests made already stay. Raises NotFound."""
        slot = self._index.slot(self.get(id)[0].request.dataset)
        self._redis.replies([("HDEL", _schedules(slot), id), ("HDEL", _courses(slot), id)], slot.name)

    def run_once(self, owner: str, submit: Submit) -> ScheduleReport:
        """Submit what is due in every slot whose lease is free."""
        report = ScheduleReport()
        for slot in self._index.slots():
            if not self._redis.run("EXISTS", _schedules(slot), writes=False):
                continue
            try:
                with self._leases.held(slot, duty_lease("schedule"), owner):
                    self._pass(slot, submit, report)
            except Busy:
                continue
        return report

    def _pass(self, slot: Slot, submit: Submit, report: ScheduleReport) -> None:
        now = self._registry.now()
        for schedule, course in self._of(slot, now):
            if course.next is not None and course.next <= now:
                behind = self._submitted(schedule, course, now, (submit, report))
                self._redis.run("HSET", _courses(slot), schedule.id, behind.model_dump_json(exclude_defaults=True))

    def _submitted(self, schedule: Schedule, course: Course, now: float, to: tuple[Submit, ScheduleReport]) -> Course:
        """The course behind the due time; unchanged while it must be tried again."""
        submit, report = to
        cron = parse_cron(schedule.cron)
        due = cron.latest(course.next or now, now)
        key, following = f"{schedule.id}@{rfc3339(due)}", cron.after(now)
        fields = schedule.request.model_dump(exclude_defaults=True) | {"idempotency_key": key}
        try:
            id = submit(fields)
        except Transient as error:
            report.waiting[schedule.id] = str(error)
            return course.model_copy(update={"error": str(error)})
        except BrokerError as error:  # one schedule's harm must not end the care for the others
            report.refused[schedule.id] = str(error)
            log.warning("schedule %s: %s", schedule.id, error, extra={"correlation": key})
            return Course(next=following, last=due, error=str(error))
        report.submitted.append(schedule.id)
        log.info("schedule %s asks for %s", schedule.id, schedule.request.dataset, extra={"correlation": id})
        return Course(next=following, last=due, submitted=id)

    def _of(self, slot: Slot, now: float) -> Iterator[tuple[Schedule, Course]]:
        """By name. One whose course was lost, or never written, is due from now on, which is noted."""
        commands = [("HGETALL", _schedules(slot)), ("HGETALL", _courses(slot))]
        schedules, courses = (_texts(flat) for flat in self._redis.replies(commands, slot.name, writes=False))
        for id, text in sorted(schedules.items()):
            schedule = Schedule.model_validate_json(text)
            known = courses.get(id)
            course = Course.model_validate_json(known) if known else Course(next=parse_cron(schedule.cron).after(now))
            if not known:
                self._redis.run("HSETNX", _courses(slot), id, course.model_dump_json(exclude_defaults=True))
            yield schedule, course


def value_of(schedule: Schedule, course: Course) -> dict[str, Any]:
    """As documented JSON."""
    body = json.loads(schedule.request.model_dump_json(exclude_defaults=True))
    return {"schedule": schedule.id, "cron": schedule.cron, "body": body, **course.model_dump(mode="json")}


def _schedules(slot: Slot) -> bytes:
    return slot.key("schedules")


def _courses(slot: Slot) -> bytes:
    return slot.key("courses")


def _texts(flat: list[bytes]) -> dict[str, str]:
    return {name.decode(): text.decode() for name, text in zip(flat[::2], flat[1::2], strict=True)}
