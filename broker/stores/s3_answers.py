"""What an S3 server's answers mean: a refusal as a typed error, a body's announced length. Pure, no driver in sight.

Codes first, since servers agree on them more than on statuses:
https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from broker.errors import (
    BrokerError,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Terminal,
    Unavailable,
    Unsupported,
)

_CREDENTIALS: Final = "Check BROKER_S3_ACCESS_KEY, BROKER_S3_SECRET_KEY and the rights of that user"
_BUCKET: Final = "Create the bucket, or correct its name in BROKER_STORE"
_CLOCK: Final = "Set this machine's clock: S3 refuses a difference of 15 minutes"
_REGION: Final = "Set BROKER_S3_REGION and the endpoint to where the bucket is"
_DAMAGED: Final = "The bytes changed on the way: send them again, and check memory and network"
_FULL: Final = "Free space in the store or raise its quota"

_CODES: Final[dict[str, tuple[type[BrokerError], str]]] = {
    "NoSuchKey": (NotFound, ""),
    "NoSuchBucket": (NotFound, _BUCKET),
    "NoSuchUpload": (Unavailable, "The unfinished upload was removed: upload again"),
    "AccessDenied": (Terminal, _CREDENTIALS),
    "InvalidAccessKeyId": (Terminal, _CREDENTIALS),
    "SignatureDoesNotMatch": (Terminal, _CREDENTIALS),
    "ExpiredToken": (Terminal, "Renew BROKER_S3_SESSION_TOKEN"),
    "InvalidToken": (Terminal, "Renew BROKER_S3_SESSION_TOKEN"),
    "RequestTimeTooSkewed": (Terminal, _CLOCK),
    "PermanentRedirect": (Terminal, _REGION),
    "AuthorizationHeaderMalformed": (Terminal, _REGION),
    "BadDigest": (Corrupt, _DAMAGED),
    "XAmzContentSHA256Mismatch": (Corrupt, _DAMAGED),
    "XAmzContentChecksumMismatch": (Corrupt, _DAMAGED),
    "IncompleteBody": (Unavailable, ""),
    "RequestTimeout": (Unavailable, ""),
    "EntityTooLarge": (Invalid, "Raise s3_part_bytes, or cut the object"),
    "PreconditionFailed": (Conflict, ""),
    "QuotaExceeded": (Overloaded, _FULL),
    "XMinioStorageFull": (Overloaded, _FULL),
    "XMinioAdminBucketQuotaExceeded": (Overloaded, _FULL),
    "NotImplemented": (Unsupported, ""),
    "MethodNotAllowed": (Unsupported, ""),
}

_STATUSES: Final[dict[int, tuple[type[BrokerError], str]]] = {
    401: (Terminal, _CREDENTIALS),
    403: (Terminal, _CREDENTIALS),
    404: (NotFound, ""),
    405: (Unsupported, ""),
    408: (Unavailable, ""),
    412: (Conflict, ""),
    413: (Invalid, "Raise s3_part_bytes, or cut the object"),
    429: (Unavailable, ""),
    501: (Unsupported, ""),
    507: (Overloaded, _FULL),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """An error answer as far as it could be read: `code` is S3's word, empty when the body gave none."""

    status: int
    code: str = ""
    message: str = ""


def read_body(status: int, body: str) -> Answer:
    """Find code and message in a body of any content type. By pattern: what an untrusted server sends meets no XML parser."""
    found = {tag: re.search(rf"<{tag}>\s*([^<]*?)\s*</{tag}>", body) for tag in ("Code", "Message")}
    code, message = (match[1] if match else "" for match in (found["Code"], found["Message"]))
    return Answer(status, code, message or body[:200].strip())


def to_error(answer: Answer, key: str, *, wrote: bool) -> BrokerError:
    """The typed form of a refusal; `wrote`: an object would have become visible.

    A 5xx or a 409 to a write says nothing about whether it happened: a proxy may have lost the server's answer, and AWS
    answers 409 ConditionalRequestConflict while another writer's fate is open.
    """
    why = " ".join(part for part in (f"HTTP {answer.status}" if answer.status else "", answer.code, answer.message) if part)
    kind, hint = _CODES.get(answer.code) or _STATUSES.get(answer.status) or _by_class(answer.status)
    if wrote and kind in {Unavailable, OutcomeUnknown} and (answer.status >= 500 or answer.status == 409):
        return OutcomeUnknown("object may have been written", of=key, why=why, hint="Read it back")
    what = {"NoSuchBucket": "no such bucket"}.get(
        answer.code, "no such object" if kind is NotFound else "the object store refused"
    )
    return kind(what, of=key, why=why, hint=hint)


def _by_class(status: int) -> tuple[type[BrokerError], str]:
    if 300 <= status < 400:
        return Terminal, _REGION
    return (Unavailable, "") if status >= 500 or status in {0, 409} else (Terminal, "")


def announced_bytes(key: str, headers: Mapping[str, str], start: int, length: int | None) -> int | None:
    """Bytes the body of a GET must have; None when the server does not say. Header names in lower case.

    Raises Corrupt when the server answers another range than [start, start+length), Unsupported when it ignores ranges.
    """
    size, served = headers.get("content-length"), headers.get("content-range")
    if not start and length is None:
        return int(size) if size is not None else None
    if served is None:  # the header decides, not the status: rclone answers a range with 200
        raise Unsupported("the store ignores byte ranges", of=key, why="no Content-Range in its answer")
    given, _, total = served.removeprefix("bytes ").partition("/")
    first, _, last = given.partition("-")
    end = int(total) if total.isdigit() else None
    if end is not None and length is not None:
        end = min(end, start + length)
    if first != str(start) or (end is not None and last != str(end - 1)):
        raise Corrupt("the store answered another range", of=key, why=f"asked {start}+{length}, got {given}/{total}")
    return int(last) + 1 - start
