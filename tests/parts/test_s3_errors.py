"""Every way an S3 server, a proxy or the network can fail leaves the store as one typed error, and writes are sent once."""

from __future__ import annotations

import base64
import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import IncompleteRead
from unittest.mock import Mock
from xml.etree.ElementTree import ParseError

import minio.error
import pytest
import urllib3.exceptions
from minio.error import InvalidResponseError, MinioAdminException, MinioException, S3Error, ServerError

from broker.errors import (
    BrokerError,
    Conflict,
    Corrupt,
    InvalidSettings,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Terminal,
    Transient,
    Unavailable,
    Unsupported,
)
from broker.settings import Settings, load
from broker.stores.s3 import S3Store, map_error
from broker.stores.s3_address import parse_address
from broker.stores.s3_answers import Answer, announced_bytes, read_body, to_error
from tests.scripted_s3 import Reply, Request, ScriptedServer, scripted_server
from tests.servers import S3Server, free_port

PART = 5 << 20


def xml(code: str, status: int, content_type: str = "application/xml") -> Reply:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>because</Message></Error>"
    return Reply(status, body.encode(), {"Content-Type": content_type})


def settings(port: int, **more: object) -> Settings:
    given: dict[str, object] = {"s3_access_key": "k", "s3_secret_key": "s", "s3_part_bytes": PART, "s3_timeout_seconds": 2.0}
    return load(store=f"s3://bucket/p?endpoint=http://127.0.0.1:{port}", **(given | more))


@contextmanager
def scripted(script: Callable[[Request], Reply], **more: object) -> Iterator[tuple[S3Store, ScriptedServer]]:
    with scripted_server(script) as server:
        given = settings(server.port, **more)
        yield S3Store(given.store, given), server


# --- the table


@pytest.mark.parametrize(
    ("status", "code", "read", "write"),
    [
        (404, "NoSuchKey", NotFound, NotFound),
        (404, "NoSuchBucket", NotFound, NotFound),
        (404, "", NotFound, NotFound),
        (404, "NoSuchUpload", Unavailable, Unavailable),
        (403, "AccessDenied", Terminal, Terminal),
        (403, "SignatureDoesNotMatch", Terminal, Terminal),
        (403, "RequestTimeTooSkewed", Terminal, Terminal),
        (403, "SomethingNew", Terminal, Terminal),
        (301, "PermanentRedirect", Terminal, Terminal),
        (307, "", Terminal, Terminal),
        (400, "BadDigest", Corrupt, Corrupt),
        (400, "SomethingNew", Terminal, Terminal),
        (400, "RequestTimeout", Unavailable, Unavailable),
        (412, "PreconditionFailed", Conflict, Conflict),
        (412, "", Conflict, Conflict),
        (409, "ConditionalRequestConflict", Unavailable, OutcomeUnknown),
        (409, "OperationAborted", Unavailable, OutcomeUnknown),
        (429, "", Unavailable, Unavailable),
        (500, "InternalError", Unavailable, OutcomeUnknown),
        (502, "", Unavailable, OutcomeUnknown),
        (503, "SlowDown", Unavailable, OutcomeUnknown),
        (501, "NotImplemented", Unsupported, Unsupported),
        (405, "", Unsupported, Unsupported),
        (507, "", Overloaded, Overloaded),
        (507, "XMinioStorageFull", Overloaded, Overloaded),
    ],
)
def test_an_answer_has_one_meaning(status: int, code: str, read: type[BrokerError], write: type[BrokerError]) -> None:
    answer = Answer(status, code, "because")
    assert type(to_error(answer, "k", wrote=False)) is read
    assert type(to_error(answer, "k", wrote=True)) is write
    assert "because" in str(to_error(answer, "k", wrote=True))


def test_a_body_is_read_whatever_it_calls_itself() -> None:
    assert read_body(403, "<Error><Code> AccessDenied </Code><Message>no</Message>") == Answer(403, "AccessDenied", "no")
    assert read_body(502, "<html>Bad Gateway</html>") == Answer(502, "", "<html>Bad Gateway</html>")
    assert read_body(500, "") == Answer(500)


def test_refusals_a_person_can_mend_say_how() -> None:
    for code in ("NoSuchBucket", "AccessDenied", "RequestTimeTooSkewed", "PermanentRedirect", "BadDigest", "EntityTooLarge"):
        assert to_error(Answer(400, code), "k", wrote=True).hint


@pytest.mark.parametrize(
    ("headers", "start", "length", "expected"),
    [
        ({"content-length": "10"}, 0, None, 10),
        ({}, 0, None, None),
        ({"content-range": "bytes 2-5/10", "content-length": "4"}, 2, 4, 4),
        ({"content-range": "bytes 8-9/10"}, 8, 99, 2),
        ({"content-range": "bytes 2-5/*"}, 2, 4, 4),
        ({"content-range": "bytes 2-4/10"}, 2, 4, Corrupt),
        ({"content-range": "bytes 0-3/10"}, 2, 4, Corrupt),
        ({"content-range": "bytes 2-8/10"}, 2, None, Corrupt),
        ({"content-length": "10"}, 2, 4, Unsupported),
    ],
)
def test_a_body_must_be_the_range_that_was_asked(
    headers: dict[str, str], start: int, length: int | None, expected: int | type[BrokerError] | None
) -> None:
    if isinstance(expected, type):
        with pytest.raises(expected):
            announced_bytes("k", headers, start, length)
    else:
        assert announced_bytes("k", headers, start, length) == expected


# --- the map over drivers' errors is complete


def _s3(status: int, code: str) -> S3Error:
    return S3Error(Mock(status=status), code, "because", "r", "i", "h")


POOL = Mock()
SAMPLES: list[tuple[Exception, type[BrokerError], type[BrokerError]]] = [
    (_s3(404, "NoSuchKey"), NotFound, NotFound),
    (InvalidResponseError(403, "text/xml", "<Code>AccessDenied</Code>"), Terminal, Terminal),
    (ServerError("x", 503), Unavailable, OutcomeUnknown),
    (MinioAdminException("500", "x"), Unavailable, OutcomeUnknown),
    (MinioException("x"), Unavailable, OutcomeUnknown),
    (ParseError("x"), Unavailable, OutcomeUnknown),
    (ValueError("x"), Unavailable, OutcomeUnknown),
    (urllib3.exceptions.NewConnectionError(POOL, "refused"), Unavailable, Unavailable),
    (urllib3.exceptions.NameResolutionError("host", POOL, Mock()), Unavailable, Unavailable),
    (urllib3.exceptions.ConnectTimeoutError("x"), Unavailable, Unavailable),
    (urllib3.exceptions.EmptyPoolError(POOL, "x"), Unavailable, Unavailable),
    (urllib3.exceptions.ReadTimeoutError(POOL, "u", "x"), Unavailable, OutcomeUnknown),
    (urllib3.exceptions.ProtocolError("reset", ConnectionResetError()), Unavailable, OutcomeUnknown),
    (urllib3.exceptions.ProtocolError("short", IncompleteRead(b"", 5)), Corrupt, OutcomeUnknown),
    (urllib3.exceptions.IncompleteRead(0, 5), Corrupt, OutcomeUnknown),
    (urllib3.exceptions.InvalidChunkLength(Mock(tell=lambda: 0, length_remaining=5), b"z"), Corrupt, OutcomeUnknown),
    (urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("x")), Terminal, Terminal),
    (urllib3.exceptions.SSLError("eof"), Unavailable, OutcomeUnknown),
    (urllib3.exceptions.MaxRetryError(POOL, "u", urllib3.exceptions.ConnectTimeoutError("x")), Unavailable, OutcomeUnknown),
]


@pytest.mark.parametrize(("error", "read", "write"), SAMPLES, ids=lambda each: type(each).__name__)
def test_a_drivers_error_has_one_meaning(error: Exception, read: type[BrokerError], write: type[BrokerError]) -> None:
    assert type(map_error(error, "k", wrote=False)) is read
    assert type(map_error(error, "k", wrote=True)) is write


def _family(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(_family(child) for child in root.__subclasses__()))


def test_every_error_of_minio_is_in_the_table() -> None:
    own = {each for each in vars(minio.error).values() if isinstance(each, type) and issubclass(each, Exception)}
    assert own == {type(error) for error, _, _ in SAMPLES if type(error).__module__ == "minio.error"}


def test_every_error_of_urllib3_becomes_a_typed_one() -> None:
    """Also those no sample names: built without their constructors, which differ."""
    for kind in _family(urllib3.exceptions.HTTPError) - {type(error) for error, _, _ in SAMPLES}:
        error = kind.__new__(kind, "x")
        for wrote in (False, True):
            mapped = map_error(error, "k", wrote=wrote)
            assert isinstance(mapped, Transient), kind
            assert mapped.of == "k"


# --- a server that misbehaves


def test_a_put_that_is_not_answered_is_sent_once_and_unknown() -> None:
    release = threading.Event()
    try:
        with scripted(lambda _: Reply(silent=release), s3_timeout_seconds=0.3) as (store, server):
            with pytest.raises(OutcomeUnknown) as raised:
                store.put("k", b"x")
            assert raised.value.of == "k"
            assert server.sent("PUT") == 1
            release.set()
    finally:
        release.set()


@pytest.mark.parametrize("reply", [Reply(hang_up=True), xml("InternalError", 500), Reply(502, b"<html>proxy</html>")])
def test_a_write_that_failed_half_way_is_sent_once_and_unknown(reply: Reply) -> None:
    with scripted(lambda _: reply) as (store, server):
        with pytest.raises(OutcomeUnknown):
            store.put("k", b"x")
        with pytest.raises(OutcomeUnknown):
            store.put_if_absent("k", b"x")
        assert server.sent("PUT") == 2


def test_a_server_that_is_not_there_is_unavailable_for_reads_and_writes() -> None:
    given = settings(free_port())
    store = S3Store(given.store, given)
    with pytest.raises(Unavailable):
        store.put("k", b"x")
    with pytest.raises(Unavailable):
        store.stat("k")


def test_put_if_absent_sends_the_condition_signed_and_with_checksums() -> None:
    with scripted(lambda _: Reply()) as (store, server):
        assert store.put_if_absent("k", b"x") is True
        headers = server.requests[0].headers
    assert headers["if-none-match"] == "*"
    assert "if-none-match" in headers["authorization"]
    assert headers["content-md5"] == base64.b64encode(hashlib.md5(b"x").digest()).decode()
    assert headers["x-amz-content-sha256"] == hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize("content_type", ["application/xml", "text/xml; charset=utf-8", "text/plain"])
def test_a_failed_condition_means_exists_in_any_content_type(content_type: str) -> None:
    with scripted(lambda _: xml("PreconditionFailed", 412, content_type)) as (store, _):
        assert store.put_if_absent("k", b"x") is False


def test_a_conflict_of_racing_conditions_is_unknown() -> None:
    with scripted(lambda _: xml("ConditionalRequestConflict", 409)) as (store, _), pytest.raises(OutcomeUnknown):
        store.put_if_absent("k", b"x")


def test_reads_are_asked_again() -> None:
    answers = iter([xml("InternalError", 500), Reply(hang_up=True), Reply(body=b"whole")])
    with scripted(lambda _: next(answers)) as (store, server):
        assert b"".join(store.get("k")) == b"whole"
        assert server.sent("GET") == 3


def test_a_read_refused_for_good_is_not_asked_again() -> None:
    with scripted(lambda _: xml("AccessDenied", 403, "text/xml")) as (store, server):
        with pytest.raises(Terminal, match="BROKER_S3_ACCESS_KEY"):
            b"".join(store.get("k"))
        assert server.sent("GET") == 1


def test_a_body_cut_once_is_completed_from_there() -> None:
    whole = b"0123456789"

    def script(request: Request) -> Reply:
        asked = request.headers.get("range")
        if asked is None:
            return Reply(body=whole[:4], announce=10, headers={"ETag": '"1"'})
        return Reply(206, whole[4:], {"Content-Range": "bytes 4-9/10", "ETag": '"1"'})

    with scripted(script) as (store, server):
        assert b"".join(store.get("k")) == whole
        assert [request.headers.get("range") for request in server.requests] == [None, "bytes=4-"]


def test_a_body_cut_twice_is_corrupt() -> None:
    def script(request: Request) -> Reply:
        ranged = "range" in request.headers
        return Reply(
            206 if ranged else 200, b"x", {"Content-Range": "bytes 1-9/10"} if ranged else {}, announce=9 if ranged else 10
        )

    with scripted(script) as (store, _), pytest.raises(Corrupt):
        b"".join(store.get("k"))


def test_a_body_shorter_than_its_range_is_corrupt() -> None:
    with scripted(lambda _: Reply(206, b"45", {"Content-Range": "bytes 4-9/10"})) as (store, _), pytest.raises(Corrupt):
        b"".join(store.get("k", 4, 6))


def test_an_object_replaced_between_the_halves_is_not_glued_together() -> None:
    def script(request: Request) -> Reply:
        if "range" in request.headers:
            return Reply(206, b"yyyyyy", {"Content-Range": "bytes 4-9/10", "ETag": '"2"'})
        return Reply(body=b"xxxx", announce=10, headers={"ETag": '"1"'})

    with scripted(script) as (store, _), pytest.raises(Unavailable, match="replaced"):
        b"".join(store.get("k"))


# --- uploads in parts


class Parts:
    """Plays the server's half of a multipart upload; `spoil` may answer instead."""

    def __init__(self, spoil: Callable[[Request], Reply | None] = lambda _: None) -> None:
        self.spoil = spoil
        self.parts: dict[str, bytes] = {}

    def __call__(self, request: Request) -> Reply:
        spoilt = self.spoil(request)
        if spoilt is not None:
            return spoilt
        kind = {"Content-Type": "application/xml"}
        if request.path.endswith("?uploads="):
            return Reply(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>", kind)
        if request.method == "PUT":
            self.parts[request.path.partition("partNumber=")[2].partition("&")[0]] = request.body
            return Reply(headers={"ETag": '"e"'})
        if request.method == "POST":
            return Reply(200, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>", kind)
        return Reply(204)


def _upload(store: S3Store, size: int) -> None:
    with store.upload("k") as upload:
        upload.write(bytes(size))
        upload.commit()


def test_a_part_that_fails_is_sent_again() -> None:
    failures = iter([xml("SlowDown", 503)])
    server = Parts(lambda request: next(failures, None) if request.method == "PUT" else None)
    with scripted(server) as (store, seen):
        _upload(store, 2 * PART + 1)
        assert seen.sent("PUT") == 4
    assert [len(server.parts[number]) for number in "123"] == [PART, PART, 1]


def test_a_part_that_fails_for_good_ends_the_upload_and_frees_its_parts() -> None:
    server = Parts(lambda request: xml("AccessDenied", 403) if "partNumber=2" in request.path else None)
    with scripted(server) as (store, seen):
        with pytest.raises(Terminal):
            _upload(store, 3 * PART)
        assert seen.requests[-1].method == "DELETE"


def test_an_error_behind_a_status_of_200_is_unknown_and_nothing_is_deleted() -> None:
    error = Reply(200, b"<Error><Code>InternalError</Code></Error>", {"Content-Type": "application/xml"})
    server = Parts(lambda request: error if request.method == "POST" and "uploadId" in request.path else None)
    with scripted(server) as (store, seen):
        with pytest.raises(OutcomeUnknown):
            _upload(store, 2 * PART)
        assert seen.sent("DELETE") == 0, "the object may exist"
        assert seen.sent("POST") == 2, "complete is sent once"


def test_a_small_upload_is_one_request() -> None:
    with scripted(Parts()) as (store, seen):
        _upload(store, PART)
        assert [request.method for request in seen.requests] == ["PUT"]


# --- deletes and lists


def test_a_server_without_bulk_delete_gets_single_ones() -> None:
    def script(request: Request) -> Reply:
        return xml("NotImplemented", 501) if request.method == "POST" else Reply(204)

    with scripted(script) as (store, seen):
        store.delete(["a", "b"])
        assert [request.path for request in seen.requests if request.method == "DELETE"] == ["/bucket/p/a", "/bucket/p/b"]


def test_a_key_the_bulk_delete_kept_is_an_error() -> None:
    body = b"<DeleteResult><Error><Key>p/b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    with scripted(lambda _: Reply(200, body, {"Content-Type": "application/xml"})) as (store, _):
        with pytest.raises(Terminal) as raised:
            store.delete(["a", "b"])
        assert raised.value.of == "p/b"


def test_a_list_that_is_no_xml_is_unavailable() -> None:
    with scripted(lambda _: Reply(200, b"<html>log in")) as (store, _), pytest.raises(Unavailable):
        list(store.list(""))


# --- addresses


def test_an_address_is_taken_apart() -> None:
    address = parse_address("s3://bucket/a/b/?endpoint=http://host:9000", "us-east-1")
    assert (address.bucket, address.prefix, address.host, address.secure) == ("bucket", "a/b", "host:9000", False)
    assert parse_address("s3://bucket?region=eu-west-1", "us-east-1").region == "eu-west-1"
    assert parse_address("s3://bucket", "us-east-1").secure is True


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/p", "s3://bucket?endpoint=http://key:hunter2@host", "s3://bucket?secret_key=hunter2",
        "s3://bucket?endpoint=ftp://host", "s3://bucket?endpoint=http://host/path", "s3://", "s3://B_ad", "s3://bucket/a/../b",
    ],
)  # fmt: skip
def test_a_bad_address_is_refused_without_printing_secrets(url: str) -> None:
    with pytest.raises(InvalidSettings) as raised:
        parse_address(url, "us-east-1")
    assert "hunter2" not in str(raised.value)


def test_a_missing_bucket_is_told_from_a_missing_object(s3_moto: S3Server, s3_rclone: S3Server) -> None:
    for server in (s3_moto, s3_rclone):
        given = server.settings()
        store = S3Store(given.store.replace("s3://broker", "s3://no-such-bucket"), given)
        for ask in (lambda s=store: s.stat("k"), lambda s=store: s.put("k", b"x"), lambda s=store: list(s.list(""))):
            with pytest.raises(NotFound, match="bucket"):
                ask()


def test_wrong_keys_are_terminal_and_say_where_to_look(s3_rclone: S3Server) -> None:
    given = s3_rclone.settings(s3_secret_key="wrong")
    store = S3Store(given.store, given)
    with pytest.raises(Terminal, match="BROKER_S3_SECRET_KEY"):
        store.put("k", b"x")
    with pytest.raises(Terminal):
        list(store.get("k"))
