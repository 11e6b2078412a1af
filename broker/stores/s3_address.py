"""Where a bucket is, taken from its URL. Pure; keys, CA and the default region come from the settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from broker.errors import Invalid, InvalidSettings
from broker.stores.port import check_key

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html"""


@dataclass(frozen=True, slots=True)
class S3Address:
    """Where a bucket is: `s3://bucket/prefix?endpoint=http://host:9000&region=…`."""

    bucket: str
    prefix: str
    host: str
    secure: bool
    region: str


def parse_address(url: str, default_region: str) -> S3Address:
    """Take an s3:// URL apart. Raises InvalidSettings, whose message never repeats the URL: it may hold a secret."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    endpoint = urlsplit(options.get("endpoint", "https://s3.amazonaws.com"))
    if "@" in parts.netloc or "@" in endpoint.netloc:
        raise _bad_address("it carries credentials", "URLs end in logs: set BROKER_S3_ACCESS_KEY and BROKER_S3_SECRET_KEY")
    if set(options) - {"endpoint", "region"}:
        raise _bad_address("its only options are endpoint and region", "Set keys, region and CA as BROKER_S3_*")
    if endpoint.scheme not in {"http", "https"} or not endpoint.netloc or endpoint.path.strip("/"):
        raise _bad_address("the endpoint is not http(s)://host[:port]")
    if not _BUCKET.fullmatch(parts.netloc):
        raise _bad_address("the bucket's name is not 3 to 63 of a-z 0-9 . -")
    prefix = parts.path.strip("/")
    try:
        check_key(prefix or "none")
    except Invalid as error:
        raise _bad_address(f"prefix: {error.why}") from error
    return S3Address(parts.netloc, prefix, endpoint.netloc, endpoint.scheme == "https", options.get("region") or default_region)


def _bad_address(why: str, hint: str = "Write s3://bucket/prefix?endpoint=http://host:9000") -> InvalidSettings:
    return InvalidSettings("bad S3 address", of="store", why=why, hint=hint)
