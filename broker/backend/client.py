"""The low-level Redis client: two pools, scripts by name, and every failure as a `broker.errors` type.

    commands    short calls; the driver's retries are off, because a repeated XADD is a second record
    blocking    XREADGROUP … BLOCK, with a socket time-out longer than the block

Both speak RESP2: the replies of scripts are RESP2, and a connection is then ready without a handshake.
Replies are bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, Self, TypeAlias, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.connection import parse_url
from redis.exceptions import ClusterCrossSlotError, NoScriptError, ResponseError
from redis.retry import Retry

from broker.backend.driver_errors import ROOTS, broker_error, mapped
from broker.backend.lanes import Argument, Lanes, Pool
from broker.errors import InvalidSettings, NotFound, OutcomeUnknown, Transient

SOCKET_SECONDS: Final = 5.0
BLOCK_MAX_MS: Final = 2_000  # so that a stopping worker waits no longer, and a dead peer shows
CONSUMER_IDLE_MS: Final = (
    3_600_000  # who is alive reads every few seconds, though Redis 6 counts only reads that found something
)
MAX_CONNECTIONS: Final = 1_000
CLUSTER_SCHEMES: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_OURS: Final = {"decode_responses", "protocol", "retry", "retry_on_timeout", "retry_on_error", "encoding", "legacy_responses"}

Key: TypeAlias = bytes | str
Call: TypeAlias = tuple[Sequence[Key], Sequence[Argument]]


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua file with the shared prelude before it. `writes=False`: a lost reply means that nothing happened."""

    name: str
    text: str
    sha: str
    writes: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream."""

    stream: bytes
    id: bytes
    fields: dict[bytes, bytes]


@lru_cache(maxsize=256)
def load_script(name: str, writes: bool = True) -> Script:
    """Read `scripts/<name>.lua`, with `scripts/prelude.lua` before it if there is one. Raises NotFound."""
    folder = files("broker.backend") / "scripts"
    prelude, body = folder / "prelude.lua", folder / f"{name}.lua"
    if not body.is_file():
        raise NotFound("no such script", of=name)
    text = (prelude.read_text() + "\n" if prelude.is_file() else "") + body.read_text()
    return make_script(name, text, writes)


def make_script(name: str, text: str, writes: bool = True) -> Script:
    """A script from its text."""
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), writes)


class RedisClient:
    """One Redis (or cluster) as this process sees it; safe for threads and after a fork.

    `commands` and `blocking` are redis-py clients for direct use inside `with mapped(...)`.
    """

    def __init__(self, commands: redis.Redis, blocking: redis.Redis, url: str, cluster: bool) -> None:
        self.commands, self.blocking, self.url, self.cluster = commands, blocking, url, cluster
        self._lanes = None if cluster else Lanes(cast(Pool, commands.connection_pool))

    @classmethod
    def open(cls, url: str, timeout_seconds: float = SOCKET_SECONDS) -> Self:
        """From redis://, rediss://, unix:// or redis+cluster:// (rediss+cluster://); connects at the first call.

        A CA is named in the URL: rediss://host?ssl_ca_certs=/path. Raises InvalidSettings; a cluster is asked for its slots
        at once, so that may raise Unavailable.
        """
        scheme, cluster = urlsplit(url).scheme, False
        if scheme in CLUSTER_SCHEMES:
            url, cluster = CLUSTER_SCHEMES[scheme] + url[len(scheme) :], True
        options = _options(url, timeout_seconds)
        slow = options | {"socket_timeout": max(float(options["socket_timeout"]), BLOCK_MAX_MS / 1000 + SOCKET_SECONDS)}
        make = _cluster if cluster else _single
        return cls(make(options, url), make(slow, url), public_url(url), cluster)

    def close(self) -> None:
        """Close every connection, also those in use by other threads."""
        for client in (self.commands, self.blocking):
            client.close()
            if not self.cluster:
                client.connection_pool.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- scripts

    def script(self, name: str, writes: bool = True) -> Script:
        """The script of that name. Raises NotFound."""
        return load_script(name, writes)

    def call(self, script: Script, keys: Sequence[Key], args: Sequence[Argument] = ()) -> Any:
        """Run a script in one round trip; its reply in bytes, ints and lists. Loaded on demand.

        Raises OutcomeUnknown when a writing script's reply was lost,
        Unavailable when it surely did not run, Overloaded when Redis is full.
        """
        reply = self._run(script, [(keys, args)])[0]
        if isinstance(reply, Exception):
            raise broker_error(reply, script.name, unknown=False) from reply
        return reply

    def call_many(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script for each (keys, args) in one round trip, without MULTI: replies or BrokerErrors, in order.

        Others' commands may run in between. When Redis has forgotten the script, calls that met that run after the others.
        Raises OutcomeUnknown when any of them may have run, Unavailable when surely none did. On a cluster: one by one.
        """
        replies = self._run(script, calls) if calls else []
        return [broker_error(reply, script.name, unknown=False) if isinstance(reply, Exception) else reply for reply in replies]

    def _run(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        replies = self.pipeline(
            [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls], script.name, script.writes
        )
        forgotten = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if forgotten:
            # EVAL loads the script in the same step, so no flush and no fail-over can come in between.
            again = [("EVAL", script.text, len(calls[index][0]), *calls[index][0], *calls[index][1]) for index in forgotten]
            with _behind(len(forgotten) < len(calls) and script.writes, script.name):
                repeated = self.pipeline(again, script.name, script.writes)
            for index, reply in zip(forgotten, repeated, strict=True):
                replies[index] = reply
        return replies

    def pipeline(self, commands: Sequence[Sequence[Argument]], of: str, writes: bool = True) -> list[Any]:
        """Raw replies of raw commands in one round trip; refusals are the driver's ResponseError, as values."""
        if self._lanes is None:
            replies = list[Any]()
            for command in commands:
                with _behind(bool(replies) and writes, of):
                    replies.append(self._on_cluster(command, of, writes))
            return replies
        try:
            connection = self._lanes.take()
        except ROOTS as error:
            raise broker_error(error, of, unknown=False) from error
        try:
            return self._lanes.exchange(connection, commands)
        except ROOTS as error:
            raise broker_error(error, of, unknown=writes) from error

    def replies(self, commands: Sequence[Sequence[Argument]], of: str, writes: bool = True) -> list[Any]:
        """As `pipeline`, for commands of which none may be refused: raises as `call` does. Those beside a refused one ran."""
        return _accepted(self.pipeline(commands, of, writes) if commands else [], of)

    def at_once(self, commands: Sequence[Sequence[Argument]], of: str) -> list[Any]:
        """As `replies`, for commands that read, at one moment, for half of a script's price; not on a cluster."""
        *_, found = self.replies([("MULTI",), *commands, ("EXEC",)], of, writes=False)
        return _accepted(cast(list[Any], found), of)

    def run(self, *command: Argument, writes: bool = True) -> Any:
        """One command, its raw reply. Raises as `call` does, naming the command's first argument."""
        return self.replies([command], to_text(command[min(1, len(command) - 1)]), writes)[0]

    def _on_cluster(self, command: Sequence[Argument], of: str, writes: bool) -> Any:
        cluster = cast(Any, self.commands)
        keys = command[3 : 3 + int(command[2])] if command[0] in ("EVALSHA", "EVAL") else ()
        try:
            if len({cluster.keyslot(key) for key in keys}) > 1:
                raise ClusterCrossSlotError  # the driver would say it in a class that may mean anything
            return cluster.execute_command(*command)
        except ResponseError as refusal:
            return refusal
        except ROOTS as error:
            raise broker_error(error, of, unknown=writes) from error

    # --- streams

    def create_group(self, stream: Key, group: Key, start: Key = b"0") -> bool:
        """Make a group (and its stream). False: it existed. Idempotent, so a lost reply may be answered by calling again.

        Consumers of it that died without leaving, CONSUMER_IDLE_MS ago, are taken out; one that is alive after all comes back
        with its next read.
        """
        return bool(self.call(load_script("create_group"), [stream], [group, start, CONSUMER_IDLE_MS]))

    def wait_entries(self, streams: Mapping[bytes, bytes], group: Key, consumer: Key, count: int, block_ms: int) -> list[Entry]:
        """XREADGROUP on the blocking pool from the ids given (b">": new ones). Empty when nothing came within `block_ms`.

        A lost reply may leave entries pending: `GroupReader` sees to that, use it instead where possible.
        """
        of = ", ".join(to_text(stream) for stream in streams)
        with mapped(of, writes=False):
            pool = self.blocking_pool(next(iter(streams)))
            connection = pool.get_connection()
            try:
                connection.send_command(*xreadgroup(streams, group, consumer, count, block_ms))
                return [entry for entry, alive in parse_entries(connection.read_response()) if alive]
            finally:
                pool.release(connection)

    def blocking_pool(self, key: bytes) -> Pool:
        """The pool whose server holds `key`. Raises the driver's errors."""
        if not self.cluster:
            return cast(Pool, self.blocking.connection_pool)
        cluster = cast(Any, self.blocking)
        return cast(Pool, cluster.get_redis_connection(cluster.get_node_from_key(key)).connection_pool)

    def servers(self) -> list[redis.Redis]:
        """A client for each primary: one, unless this is a cluster."""
        if not self.cluster:
            return [self.commands]
        cluster = cast(Any, self.commands)
        return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]


def _accepted(replies: list[Any], of: str) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise broker_error(reply, of, unknown=False) from reply
    return replies


@contextmanager
def _behind(ran: bool, of: str) -> Iterator[None]:
    """Where a part of a batch `ran`, what fails behind it leaves the outcome of the batch unknown."""
    try:
        yield
    except Transient as error:
        if not ran or isinstance(error, OutcomeUnknown):
            raise
        raise OutcomeUnknown("a part of the batch ran", of=of, why=str(error), hint="Read back what happened") from error


def xreadgroup(streams: Mapping[bytes, bytes], group: Key, consumer: Key, count: int, block_ms: int) -> list[Argument]:
    """The command. Block 0 would mean for ever to Redis; here it means not at all."""
    block: list[Argument] = ["BLOCK", min(block_ms, BLOCK_MAX_MS)] if block_ms > 0 else []
    return ["XREADGROUP", "GROUP", group, consumer, "COUNT", count, *block, "STREAMS", *streams.keys(), *streams.values()]


def parse_entries(reply: Any) -> Iterator[tuple[Entry, bool]]:
    """Entries of an XREADGROUP reply, each with False when it is pending but deleted (it has no fields then)."""
    for stream, entries in reply or ():
        for entry_id, flat in entries:
            yield Entry(stream, entry_id, dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}), flat is not None


def public_url(url: str) -> str:
    """The URL without user, password and options: fit for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def to_text(value: Argument) -> str:
    """For messages: bytes that are no UTF-8 are replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _options(url: str, timeout_seconds: float) -> dict[str, Any]:
    """Keyword arguments of a connection: what the URL says, under what this client depends on."""
    try:
        given: dict[str, Any] = cast(Any, parse_url)(url)
    except ValueError as error:
        hint = "Use redis://, rediss://, unix:// or redis+cluster://"
        raise InvalidSettings("BROKER_REDIS is not a Redis URL", of=public_url(url), why=str(error), hint=hint) from None
    if refused := _OURS & set(given):
        raise InvalidSettings("the Redis URL sets what the broker decides", of=public_url(url), why=", ".join(sorted(refused)))
    defaults = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "max_connections": MAX_CONNECTIONS,
    }
    return defaults | given | {"protocol": 2, "decode_responses": False, "driver_info": None}


def _single(options: dict[str, Any], url: str) -> redis.Redis:
    pool = redis.ConnectionPool(**options, retry=Retry(NoBackoff(), 0))
    try:
        pool.connection_class(**pool.connection_kwargs)
    except (TypeError, redis.RedisError) as error:
        raise InvalidSettings("the Redis URL has an unknown option", of=public_url(url), why=str(error)) from None
    return redis.Redis(connection_pool=pool)


def _cluster(options: dict[str, Any], url: str) -> redis.Redis:
    if options.pop("db", 0):
        raise InvalidSettings("a Redis cluster has only database 0", of=public_url(url))
    options.pop("connection_class", None)
    try:
        cluster = RedisCluster(**options, ssl=url.startswith("rediss"), retry=Retry(NoBackoff(), 0))
    except TypeError as error:
        raise InvalidSettings("the Redis URL has an unknown option", of=public_url(url), why=str(error)) from None
    except ROOTS as error:
        raise broker_error(error, public_url(url), unknown=False) from error
    nodes = cast(Any, cluster.nodes_manager)
    create = nodes.create_redis_node
    nodes.create_redis_node = lambda *args, **kwargs: _raw(create(*args, **kwargs))
    for node in cast(Any, cluster).get_nodes():
        if node.redis_connection is not None:
            _raw(node.redis_connection)
    # It has the commands of redis.Redis by the same mixins, though not by type.
    return cast(redis.Redis, cluster)


def _raw(node: redis.Redis) -> redis.Redis:
    """Let a node's replies through as they are, but for those that the driver and `health` read themselves."""
    callbacks = cast(Any, node).response_callbacks
    for name in [name for name in callbacks if not name.startswith(("CLUSTER", "COMMAND", "CONFIG", "INFO"))]:
        del callbacks[name]
    return node
