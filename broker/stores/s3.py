"""A store in an S3 bucket, through minio's signing client. The only module that imports minio and urllib3.

Two clients on two connection pools. `_again` repeats reads, parts and deletes, which may be sent twice without harm. `_once`
sends what makes an object visible (PUT, conditional PUT, complete): it never repeats, so an answer belongs to one request and
a lost one is OutcomeUnknown. (urllib3 by default would send a PUT again and meet its own 412.)

minio's public `put_object` pulls from a reader and cannot send If-None-Match. Its request methods underneath sign any header
(and over http the SHA-256 of the body), so those are used, with Content-MD5 always; the contract suite runs them against
real servers, and `minio<8` is pinned.

Open a store after fork, not before: two processes must not share pooled connections.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import IncompleteRead
from itertools import islice
from typing import Final
from xml.etree.ElementTree import ParseError

import minio
import urllib3
from minio.datatypes import Part
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioAdminException, MinioException, S3Error, ServerError
from minio.helpers import DictType
from urllib3 import exceptions as http
from urllib3.response import BaseHTTPResponse

from broker.errors import (
    BrokerError,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Terminal,
    Unavailable,
    Unsupported,
)
from broker.settings import Settings, s3_credentials
from broker.stores.port import ObjectInfo, Upload, check_key
from broker.stores.s3_address import S3Address, parse_address
from broker.stores.s3_answers import Answer, announced_bytes, read_body, to_error
from broker.stores.s3_upload import PartedUpload

CHUNK_BYTES: Final = 1 << 20
MAX_PRESIGNED_SECONDS: Final = 7 * 86_400  # the limit of signature version 4
CONNECT_SECONDS: Final = 5.0
BULK_DELETE: Final = 1_000  # S3's limit of one DeleteObjects request
CONNECTIONS: Final = 16  # kept open per pool; more are opened when needed

_NEVER_SENT: Final = (
    http.NewConnectionError, http.ConnectTimeoutError, http.EmptyPoolError, http.ClosedPoolError, http.LocationValueError,
)  # fmt: skip
_DRIVER_ERRORS: Final = (MinioException, MinioAdminException, http.HTTPError, ParseError, ValueError)


class S3Store:
    """ObjectStore over one bucket and prefix.

    `conditional`: whether this server honours If-None-Match, as the probe found. Without it put_if_absent reads before and
    after its PUT: right for one writer, best effort for two.
    """

    def __init__(self, url: str, settings: Settings, *, conditional: bool = True) -> None:
        self.address = parse_address(url, settings.s3_region)
        self.conditional = conditional
        self._part_bytes = settings.s3_part_bytes
        every_method = None
        retry = urllib3.Retry(
            total=3, redirect=0, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504],
            allowed_methods=every_method, raise_on_status=False,
        )  # fmt: skip
        self._requests = _Requests(self.address, _client(self.address, settings, retry), _client(self.address, settings, False))
        self._bucket_seen = False

    def upload(self, key: str) -> Upload:
        check_key(key)
        return PartedUpload(self._requests, key, self._part_bytes)

    def put(self, key: str, data: bytes) -> ObjectInfo:
        return self._requests.put_whole(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if not self.conditional:
            return self._put_if_seems_absent(key, data)
        try:
            self._requests.put_whole(key, data, {"If-None-Match": "*"})
        except Conflict:
            return False
        return True

    def get(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """A body that breaks off is asked for once more from there; one that is short twice is Corrupt."""
        if length == 0:  # HTTP has no empty range
            self._demand(key)
            return
        first = self._requests.get(key, start, length)
        position = start
        try:
            for chunk in first.chunks():
                position += len(chunk)
                yield chunk
            return
        except (Corrupt, Unavailable):
            rest = None if length is None else start + length - position
        again = self._requests.get(key, position, rest)
        if again.etag != first.etag:
            again.close()
            raise Unavailable("object was replaced while it was read", of=key, hint="Read it again")
        yield from again.chunks()

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            return self._requests.stat(key)
        except NotFound:
            self._check_bucket()
            return None

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        for info in self._requests.list(prefix, after):
            if info.key > after and not info.key.endswith("/"):  # consoles make empty objects for "folders"
                yield info

    def delete(self, keys: Iterable[str]) -> None:
        rest = iter(keys)
        while batch := list(islice(rest, BULK_DELETE)):
            try:
                self._requests.delete_bulk(batch)
            except Unsupported:
                self._requests.delete_each(batch)

    def locate(self, key: str, seconds: int) -> str:
        """A presigned GET URL; more than 7 days become 7 days, since signatures live no longer."""
        return self._requests.presign(key, min(max(seconds, 1), MAX_PRESIGNED_SECONDS))

    def refuses_wrong_checksum(self, key: str) -> bool:
        return self._requests.refuses_wrong_checksum(key)

    def _put_if_seems_absent(self, key: str, data: bytes) -> bool:
        if self.stat(key) is not None:
            return False
        self.put(key, data)
        return b"".join(self.get(key)) == data

    def _demand(self, key: str) -> None:
        if self.stat(key) is None:
            raise NotFound("no such object", of=key)

    def _check_bucket(self) -> None:
        """HEAD answers 404 for a missing bucket too. Told apart once, or a wrong name would look like an empty store."""
        if not self._bucket_seen:
            self._requests.demand_bucket()
            self._bucket_seen = True


class _Requests:
    """One method per HTTP request, errors mapped. Which client sends it decides whether it may be sent twice."""

    def __init__(self, address: S3Address, again: minio.Minio, once: minio.Minio) -> None:
        self.bucket, self.region = address.bucket, address.region
        self._base = f"{address.prefix}/" if address.prefix else ""
        self._again, self._once = again, once

    def name(self, key: str) -> str:
        """The key inside the bucket. Raises Invalid."""
        check_key(key)
        return self._base + key

    # --- writes

    def put_whole(self, key: str, data: bytes | bytearray, headers: DictType | None = None) -> ObjectInfo:
        """Raises Conflict when a condition in `headers` fails."""
        sent: DictType = {"Content-Type": "application/octet-stream", "Content-MD5": _md5(data), **(headers or {})}
        with mapped(key, wrote=True):
            result = self._once._put_object(self.bucket, self.name(key), data, sent)  # type: ignore[arg-type]
            return ObjectInfo(key, len(data), _server_time(result.http_headers.get("date")))

    def begin(self, key: str) -> str:
        with mapped(key):
            return self._again._create_multipart_upload(self.bucket, self.name(key), {})

    def put_part(self, key: str, upload_id: str, number: int, data: bytes | bytearray, headers: DictType | None = None) -> str:
        sent: DictType = {"Content-MD5": _md5(data), **(headers or {})}
        with mapped(key):
            return self._again._upload_part(self.bucket, self.name(key), data, sent, upload_id, number)  # type: ignore[arg-type]

    def complete(self, key: str, upload_id: str, etags: list[str]) -> float:
        parts = [Part(number, etag) for number, etag in enumerate(etags, start=1)]
        with mapped(key, wrote=True):
            result = self._once._complete_multipart_upload(self.bucket, self.name(key), upload_id, parts)
            if not result.etag:  # S3 may send status 200 first and then an error, which has no ETag
                raise OutcomeUnknown("object may have been written", of=key, why="an error after HTTP 200", hint="Read it back")
            return _server_time(result.http_headers.get("date"))

    def drop(self, key: str, upload_id: str) -> None:
        with mapped(key):
            self._again._abort_multipart_upload(self.bucket, self.name(key), upload_id)

    def delete_bulk(self, keys: list[str]) -> None:
        names = [DeleteObject(self.name(key)) for key in keys]
        with mapped(keys[0], wrote=True):
            failed = [each for each in self._again.remove_objects(self.bucket, names) if each.code != "NoSuchKey"]
        for each in failed[:1]:
            raise to_error(Answer(0, each.code or "", each.message or ""), each.name or "", wrote=True)

    def delete_each(self, keys: list[str]) -> None:
        for key in keys:
            with suppress(NotFound), mapped(key, wrote=True):
                self._again.remove_object(self.bucket, self.name(key))

    def refuses_wrong_checksum(self, key: str) -> bool:
        """Send a whole object and a part with the MD5 of other bytes; True: both are refused."""
        wrong: DictType = {"Content-MD5": _md5(b"other bytes")}
        return _refused(partial(self.put_whole, key, b"bytes", wrong)) and self._refuses_wrong_part(key, wrong)

    def _refuses_wrong_part(self, key: str, wrong: DictType) -> bool:
        upload_id = self.begin(key)
        try:
            return _refused(partial(self.put_part, key, upload_id, 1, b"bytes", wrong))
        finally:
            with suppress(BrokerError):  # rclone ends the whole upload with the part it refuses
                self.drop(key, upload_id)

    # --- reads

    def get(self, key: str, start: int, length: int | None) -> _Body:
        if start < 0 or (length is not None and length < 1):
            raise Invalid("bad byte range", of=key, why=f"start {start}, length {length}")
        name = self.name(key)
        try:
            with mapped(key):
                return _Body(key, self._again.get_object(self.bucket, name, start, length or 0), start, length)
        except _BeyondEnd:
            return _Body(key, None, start, length)

    def stat(self, key: str) -> ObjectInfo:
        with mapped(key):
            found = self._again.stat_object(self.bucket, self.name(key))
            return ObjectInfo(key, found.size or 0, _seconds(found.last_modified))

    def list(self, prefix: str, after: str) -> Iterator[ObjectInfo]:
        start_after = self._base + after if after else None
        with mapped(prefix):
            for found in self._again.list_objects(self.bucket, self._base + prefix, recursive=True, start_after=start_after):
                key = str(found.object_name).removeprefix(self._base)
                yield ObjectInfo(key, found.size or 0, _seconds(found.last_modified))

    def presign(self, key: str, seconds: int) -> str:
        with mapped(key):
            return self._again.presigned_get_object(self.bucket, self.name(key), timedelta(seconds=seconds))

    def demand_bucket(self) -> None:
        """Raises NotFound when there is no such bucket; a user without the right to look at it may still use it."""
        exists = True
        with suppress(Terminal), mapped(self.bucket):
            exists = self._again.bucket_exists(self.bucket)
        if not exists:
            raise to_error(Answer(404, "NoSuchBucket"), self.bucket, wrote=False)


class _Body:
    """The answer to a GET, checked against the length it announced. `response` None: the range lies beyond the end."""

    def __init__(self, key: str, response: BaseHTTPResponse | None, start: int, length: int | None) -> None:
        self._key, self._response = key, response
        self.etag = response.headers.get("etag") if response is not None else None
        try:
            self._expected = announced_bytes(key, response.headers, start, length) if response is not None else 0
        except (BrokerError, ValueError):
            self.close()
            raise

    def chunks(self) -> Iterator[bytes]:
        received = 0
        try:
            if self._response is not None:
                with mapped(self._key):
                    for chunk in self._response.stream(CHUNK_BYTES, decode_content=False):
                        received += len(chunk)
                        yield chunk
        finally:
            self.close()
        if self._expected is not None and received != self._expected:
            raise _short(self._key, f"{received} of {self._expected} bytes")

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response.release_conn()


class _BeyondEnd(Invalid):
    """416: the range begins behind the object's last byte."""


# --- driver


def _client(address: S3Address, settings: Settings, retries: urllib3.Retry | bool) -> minio.Minio:
    access, secret, token = s3_credentials(settings)
    timeout = settings.s3_timeout_seconds
    pool = urllib3.PoolManager(
        maxsize=CONNECTIONS,
        timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, timeout), read=timeout),
        retries=retries,
        cert_reqs="CERT_REQUIRED",
        ca_certs=str(settings.s3_ca) if settings.s3_ca else None,
    )
    return minio.Minio(
        address.host, access_key=access, secret_key=secret, session_token=token,
        secure=address.secure, region=address.region, http_client=pool,
    )  # fmt: skip


@contextmanager
def mapped(key: str, *, wrote: bool = False) -> Iterator[None]:
    """The seam: whatever minio or urllib3 raises inside leaves as a typed error. `wrote`: an object may have become visible."""
    try:
        yield
    except BrokerError:
        raise
    except _DRIVER_ERRORS as error:
        raise map_error(error, key, wrote=wrote) from error


def map_error(error: Exception, key: str, *, wrote: bool) -> BrokerError:
    """The typed form of any error of minio, urllib3 or of reading their answers."""
    answer = _answer(error)
    if answer is not None:
        beyond = answer.status == 416 or answer.code == "InvalidRange"
        return _BeyondEnd("range beyond the end", of=key) if beyond else to_error(answer, key, wrote=wrote)
    reason = error.reason if isinstance(error, http.MaxRetryError) and error.reason else error
    if isinstance(reason, http.SSLError) and any(isinstance(each, ssl.SSLCertVerificationError) for each in reason.args):
        return Terminal("the store's certificate is not trusted", of=key, why=str(reason), hint="Set BROKER_S3_CA")
    if wrote and not isinstance(error, _NEVER_SENT):  # repeated requests too: the last failure says nothing of the first
        return OutcomeUnknown("object may have been written", of=key, why=str(reason), hint="Read it back")
    if any(isinstance(each, IncompleteRead) for each in (reason, *reason.args)):
        return _short(key, str(reason))
    return Unavailable("the object store does not answer", of=key, why=str(reason), hint="Check its endpoint and network")


def _answer(error: Exception) -> Answer | None:
    """What the server said; None when it said nothing legible."""
    if isinstance(error, S3Error):
        return Answer(getattr(error.response, "status", 0), error.code or "", error.message or "")
    if isinstance(error, InvalidResponseError):
        return read_body(error._code, error._body or "")
    if isinstance(error, ServerError):
        return Answer(error.status_code)
    if isinstance(error, MinioAdminException):
        return Answer(int(error._code) if error._code.isdigit() else 0, "", error._body)
    return None


def _refused(write: Callable[[], object]) -> bool:
    try:
        write()
    except (Corrupt, Terminal):  # BadDigest by its code, or some other 4xx
        return True
    return False


def _md5(data: bytes | bytearray) -> str:
    """S3's oldest checksum and the one most servers verify; minio adds SHA-256 over plain http."""
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _short(key: str, why: str) -> Corrupt:
    return Corrupt(
        "the store sent fewer bytes than it announced", of=key, why=why, hint="Check the object with `broker versions verify`"
    )


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else time.time()


def _server_time(date: str | None) -> float:
    """HTTP's Date header, the store's clock to the second."""
    return parsedate_to_datetime(date).timestamp() if date else time.time()
