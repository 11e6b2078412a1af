"""Every error a caller can meet.

    BrokerError
    ├── Transient                  the same call may succeed later: wait and repeat it
    │   ├── Unavailable            Redis, the store or a sink does not answer
    │   ├── OutcomeUnknown         a write timed out: it may or may not have happened
    │   ├── Busy                   somebody else holds the lease, lock or file
    │   ├── StaleBase              the head moved: work again from the new one
    │   ├── Overloaded             a limit (memory, quota, unread responses) refuses more
    │   ├── Reconciling            Redis is a new incarnation: its index is being checked against the log
    │   ├── AttemptFailed          a producer's attempt raised, hung, crashed or outgrew its memory
    │   └── TimedOut               nothing arrived within the time the caller gave
    └── Terminal                   repeating the same call gives the same answer
        ├── Invalid                malformed input
        │   ├── InvalidName
        │   ├── InvalidPredicate
        │   ├── InvalidRequest
        │   ├── InvalidSettings
        │   └── Gap                a block of the change log is missing before this one
        ├── NotFound               no such dataset, version, request or object
        ├── Conflict               it exists already and is different
        ├── BadData                rows that break the dataset's contract
        │   ├── NullKey
        │   ├── DuplicateKey
        │   ├── SchemaConflict
        │   └── Vetoed             a guard or a validator refused the version: the old one stays
        ├── Fenced                 the lease went to somebody else: stop, write nothing
        ├── Corrupt                bytes differ from their recorded length or SHA-256, or the log is broken
        ├── Unsupported            this server, store or platform cannot do it
        │   └── NotDurable         this Redis cannot prove that a write is on its disk
        ├── ResetRequired          a delta was demanded and only a snapshot can answer
        ├── RequestLost            Redis lost its memory of the request: submit it again
        ├── RequestFailed          the request ended in the dead letters
        ├── RequestCancelled
        └── RequestExpired         its deadline passed first

Whether to retry is a type, never an `if` on a message. Drivers' errors (redis, minio, duckdb, psycopg, OS) are mapped in
the one module that imports the driver.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

_AND: Final = "; "


class BrokerError(Exception):
    """Root of all errors. Says what failed, for which object, why, and the next step.

    `code` is the stable name used in JSON, dead letters and `--json` output.
    """

    code: ClassVar[str] = "error"

    def __init__(self, what: str, *, of: str = "", why: str = "", hint: str = "") -> None:
        super().__init__(what, of, why, hint)
        self.what, self.of, self.why, self.hint = what, of, why, hint

    @property
    def sentence(self) -> str:
        """What failed, for which object and why, without the next step."""
        return self.what + (f" [{self.of}]" if self.of else "") + (f": {self.why}" if self.why else "")

    def __str__(self) -> str:
        return self.sentence + (f". {self.hint}" if self.hint else "")

    def to_dict(self) -> dict[str, str]:
        """The error as JSON-ready fields; `from_dict` is the inverse."""
        return {"code": self.code, "what": self.what, "of": self.of, "why": self.why, "hint": self.hint}


class Transient(BrokerError):
    code = "transient"


class Unavailable(Transient):
    code = "unavailable"


class OutcomeUnknown(Transient):
    code = "outcome-unknown"


class Busy(Transient):
    code = "busy"


class StaleBase(Transient):
    code = "stale-base"


class Overloaded(Transient):
    code = "overloaded"


class Reconciling(Transient):
    code = "reconciling"


class AttemptFailed(Transient):
    code = "attempt-failed"


class TimedOut(Transient):
    code = "timed-out"


class Terminal(BrokerError):
    code = "terminal"


class Invalid(Terminal, ValueError):
    code = "invalid"


class InvalidName(Invalid):
    code = "invalid-name"


class InvalidPredicate(Invalid):
    code = "invalid-predicate"


class InvalidRequest(Invalid):
    code = "invalid-request"


class InvalidSettings(Invalid):
    code = "invalid-settings"


class Gap(Invalid):
    """`of` is the producer; `expected` the number of the block to send next."""

    code = "gap"

    @classmethod
    def between(cls, producer: str, sent: int, expected: int) -> Gap:
        """Block `sent` came where `expected` was due."""
        return cls(
            "a block is missing", of=producer, why=f"block {sent} came, expected {expected}",
            hint="Append from the block expected on; what Redis lost before it was sealed is to be sent again",
        )  # fmt: skip

    @property
    def expected(self) -> int:
        """Number of the block to send next. Read off the text, so that it survives `to_dict` and `from_dict`."""
        return int(self.why.rpartition(" ")[2])


class NotFound(Terminal, LookupError):
    code = "not-found"


class Conflict(Terminal):
    code = "conflict"


class BadData(Terminal, ValueError):
    code = "bad-data"


class NullKey(BadData):
    code = "null-key"


class DuplicateKey(BadData):
    code = "duplicate-key"


class SchemaConflict(BadData):
    code = "schema-conflict"


class Vetoed(BadData):
    """`findings`: each a sentence, which `why` joins."""

    code = "vetoed"

    @classmethod
    def by(cls, of: str, findings: Iterable[str]) -> Vetoed:
        """With all that speaks against the version."""
        return cls(
            "the version is refused", of=of, why=_AND.join(text.replace(_AND, ", ") for text in findings),
            hint="The old version stays. Correct the data, or alter the dataset's guards",
        )  # fmt: skip

    @property
    def findings(self) -> tuple[str, ...]:
        """Read off the text, so that they survive `to_dict` and `from_dict`."""
        return tuple(self.why.split(_AND))


class Fenced(Terminal):
    code = "fenced"


class Corrupt(Terminal):
    code = "corrupt"


class Unsupported(Terminal):
    code = "unsupported"


class NotDurable(Unsupported):
    code = "not-durable"


class ResetRequired(Terminal):
    code = "reset-required"


class RequestLost(Terminal):
    code = "request-lost"


class RequestFailed(Terminal):
    code = "request-failed"


class RequestCancelled(Terminal):
    code = "request-cancelled"


class RequestExpired(Terminal):
    code = "request-expired"


def _tree(root: type[BrokerError]) -> list[type[BrokerError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: Final[dict[str, type[BrokerError]]] = {kind.code: kind for kind in _tree(BrokerError)}


def from_dict(fields: dict[str, str]) -> BrokerError:
    """Rebuild an error that crossed a process boundary; an unknown code becomes the root type."""
    kind = BY_CODE.get(fields.get("code", ""), BrokerError)
    return kind(fields.get("what", "failed"), of=fields.get("of", ""), why=fields.get("why", ""), hint=fields.get("hint", ""))
