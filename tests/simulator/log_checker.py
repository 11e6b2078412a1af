"""P5, compared with all that happens to a change log.

A *token* names what one block holds for one log slot. Files hold tokens; a version's source ranges say which entries it took.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.model.commit import Mark, NewVersion, SourceRange
from broker.rules.patch import MARK_SECONDS, NOTHING_CONSUMED
from tests.simulator.checker import Checker, Violation
from tests.simulator.log_model import id_of


class Token(NamedTuple):
    """`order` grows with each block of `who`."""

    who: str
    order: int
    slot: int

    def __str__(self) -> str:
        return f"{self.who}/{self.order}/{self.slot}"

    @classmethod
    def of(cls, text: str) -> Token:
        who, order, slot = text.split("/")
        return cls(who, int(order), int(slot))


@dataclass(slots=True)
class LogChecker(Checker):
    """`files`: what each file holds. `logged`: per slot, id -> tokens of the newest entry that had it.

    `accepted`: acknowledged and not yet in a version; `excused`: what Redis lost of
    its log, perhaps before its acknowledgement arrived.
    """

    files: dict[str, tuple[Token, ...]] = field(default_factory=dict)
    logged: dict[int, dict[str, tuple[Token, ...]]] = field(default_factory=dict)
    until: dict[int, str] = field(default_factory=dict)
    marks: dict[int, dict[str, Mark]] = field(default_factory=dict)
    holds: set[Token] = field(default_factory=set)
    newest: dict[tuple[str, int], int] = field(default_factory=dict)
    accepted: set[Token] = field(default_factory=set)
    excused: set[Token] = field(default_factory=set)

    # --- the log in Redis

    def added(self, slot: int, id: str, tokens: Iterable[Token]) -> None:
        """An entry came to stand in the log."""
        if id_of(id) <= id_of(self.consumed(slot)):
            raise Violation("P5", f"entry {id} of slot {slot} has an id that is consumed")
        self.logged.setdefault(slot, {})[id] = tuple(tokens)

    def trimmed(self, slot: int, until: str) -> None:
        """Everything up to an id was forgotten."""
        if id_of(until) > id_of(self.consumed(slot)):
            raise Violation("P5", f"slot {slot} was trimmed to {until}, versions hold it to {self.consumed(slot)}")

    def consumed(self, slot: int) -> str:
        return self.until.get(slot, NOTHING_CONSUMED)

    # --- the store

    def landed(self, seq: int, data: bytes) -> None:
        known = len(self.chain)
        # The dataclass decorator makes this class anew, so that super() would not find it.
        Checker.landed(self, seq, data)
        body = self.chain[-1].record.body
        if len(self.chain) > known and isinstance(body, NewVersion):
            for source in body.sources:
                self._took(source, [file.key for file in body.edge.files if file.partition == source.slot])
                self._marked(source, self.chain[-1].record.time)

    def _took(self, source: SourceRange, files: list[str]) -> None:
        slot, after = source.slot, self.consumed(source.slot)
        if source.after != after or id_of(source.until) <= id_of(after):
            raise Violation("P5", f"slot {slot}: a version took ({source.after}, {source.until}] behind {after}")
        self.until[slot] = source.until
        for token in (token for key in files for token in self.files[key]):
            if token in self.holds:
                raise Violation("P5", f"{token} is in two versions")
            if self.newest.get((token.who, slot), 0) >= token.order:
                raise Violation("P5", f"{token} came behind {self.newest[token.who, slot]} of its producer")
            self.newest[token.who, slot] = token.order
            self.holds.add(token)
            self.counters["record sealed"] += 1

    def _marked(self, source: SourceRange, time: float) -> None:
        for name, mark in self.marks.get(source.slot, {}).items():
            lives = not name.startswith("~") and mark.at > time - MARK_SECONDS
            if lives and (name not in source.marks or source.marks[name].block < mark.block):
                raise Violation("P5", f"slot {source.slot}: the mark of {name} fell from {mark.block}")
        self.marks[source.slot] = source.marks

    def skipped(self, standing: dict[int, Iterable[str]]) -> None:
        """Of entries that stand in the log none is behind what is consumed unless a version holds it."""
        for slot, ids in standing.items():
            for id in ids:
                lost = set(self.logged[slot][id]) - self.holds
                if lost and id_of(id) <= id_of(self.consumed(slot)):
                    raise Violation("P5", f"{sorted(map(str, lost))} of entry {id} are passed over")

    # --- producers

    def acked(self, tokens: Iterable[Token], sealed: bool) -> None:
        """A producer was told that this is accepted, or sealed."""
        for token in tokens:
            if token in self.holds:
                continue
            if sealed:
                raise Violation("P5", f"{token} was acknowledged as sealed and is in no version")
            self.accepted.add(token)
        self.counters["acknowledged sealed" if sealed else "acknowledged accepted"] += 1

    def lost(self, standing: set[Token]) -> None:
        """Redis came back with these in its log."""
        known = {token for entries in self.logged.values() for tokens in entries.values() for token in tokens}
        gone = known - self.holds - standing
        self.counters["accepted and lost"] += len((gone & self.accepted) - self.excused)
        self.excused |= gone

    def settled(self, sure: Iterable[Token]) -> None:
        """Nobody does anything any more. `sure`: what producers insisted on."""
        for token in sorted((self.accepted - self.excused) | set(sure)):
            if token not in self.holds:
                raise Violation("P5", f"{token} was accepted and is in no version")
