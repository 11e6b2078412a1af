"""What `broker doctor` finds of change logs, consumers, channels, compaction, retention and schedules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from broker.audits import expiring
from broker.channels import check_offered
from broker.cli.finding import Finding
from broker.cli.schedule import schedules_of
from broker.cli.words import span_text
from broker.compactor import MERGES
from broker.connect import Broker
from broker.errors import NotFound
from broker.gauges import CursorGauge, DatasetGauge, SlotGauge
from broker.metrics import watcher
from broker.model.finding import Verdict
from broker.rules.fold import State
from broker.rules.patch import Named
from broker.settings import Settings


def care(broker: Broker) -> Iterator[Finding]:
    """Everything, from one look at Redis. Raises Unavailable and the like."""
    parts, gauges = broker.parts, watcher(broker.parts).read()
    for slot in gauges.slots:
        yield from of_slot(slot, parts.settings)
    for one in gauges.datasets:
        yield from of_dataset(one, parts.settings)
        named = parts.channels.named(one.dataset)
        yield from of_channels(parts.catalog.state(one.dataset), named)
        if (due := len(parts.compactor.owed(one.dataset))) > MERGES:
            text = f"{due} merge(s) are due: no worker compacts, or it does not keep up; broker worker --role compact"
            yield Finding("note", one.dataset, text)
    for schedule, course in schedules_of(broker).all():
        if course.error:
            yield Finding("note", f"schedule {schedule.id}", f"its last request was refused: {course.error}")


def of_slot(slot: SlotGauge, settings: Settings) -> Iterator[Finding]:
    """Micro-batchers, log slots that nobody serves or that wait for too long, and what retention waits for."""
    subject = f"slot {slot.slot}"
    yield Finding("ok", subject, f"{slot.batchers} micro-batcher(s), {slot.schedules} schedule(s), {slot.events} event(s) kept")
    waiting = [log for log in slot.log_slots if log.waiting]
    if unserved := [log for log in waiting if not log.owner]:
        names, age = ", ".join(str(log.number) for log in unserved), max(log.oldest_seconds for log in unserved)
        text = f"changes wait for {span_text(age)} in log slot(s) {names}, and nobody makes micro-batches of them"
        yield Finding("note", subject, f"{text}: broker worker --role microbatch")
    patience = 10 * settings.max_age_seconds + settings.lease_seconds
    for log in waiting:
        if log.owner and log.oldest_seconds > patience:
            text = f"log slot {log.number}: changes wait for {span_text(log.oldest_seconds)}, {log.owner} does not keep up"
            yield Finding("note", subject, text)
    if (left := settings.cursor_seconds - slot.known_seconds) > 0:
        text = f"retention gives nothing up for {span_text(left)}: until then not every consumer has had the time to be known"
        yield Finding("ok", subject, text)


def of_dataset(one: DatasetGauge, settings: Settings) -> Iterator[Finding]:
    """Consumers whose lease ends or has ended, and those that are behind for too long."""
    live, see = one.live, f"see broker subs list {one.dataset}"
    if lapsed := [cursor for cursor in one.cursors if not cursor.live]:
        yield Finding("note", one.dataset, f"no road is kept for {_names(lapsed)}, whose lease has ended: {see}")
    if ending := [cursor for cursor in live if expiring(cursor.left_seconds, settings.cursor_seconds)]:
        yield Finding("note", one.dataset, f"the lease of {_names(ending)} ends soon, and nobody came to renew it: {see}")
    for cursor in live:
        if cursor.behind and cursor.lag_seconds > settings.lag_seconds:
            text = f"{cursor.name} is {cursor.behind} version(s) behind {cursor.channel} for {span_text(cursor.lag_seconds)}"
            yield Finding("note", one.dataset, f"{text}: {see}")


def of_channels(state: State, named: Mapping[str, Named]) -> Iterator[Finding]:
    """Channels whose version cannot be read."""
    for channel, at in named.items():
        try:
            check_offered(state, at.point)
        except NotFound as error:
            over: Verdict = "note" if at.session != state.session else "broken"
            yield Finding(over, state.dataset, f"channel {channel}: {error}")


def _names(cursors: Iterable[CursorGauge]) -> str:
    return ", ".join(cursor.name for cursor in cursors)
