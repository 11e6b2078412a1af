"""The Redis client against real servers: outcomes after broken connections, scripts, group reading, forks."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from inspect import getmembers, isclass

import pytest
import redis
from redis import exceptions as driver

from broker.backend.client import (
    BLOCK_MAX_MS,
    Call,
    Entry,
    RedisClient,
    Script,
    load_script,
    make_script,
    public_url,
    xreadgroup,
)
from broker.backend.driver_errors import DRIVER_ERRORS, ROOTS, broker_error, mapped
from broker.backend.group_reader import GroupReader
from broker.backend.health import check, describe, findings
from broker.errors import (
    BrokerError,
    Conflict,
    Invalid,
    InvalidSettings,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Terminal,
    Transient,
    Unavailable,
    Unsupported,
)
from tests.servers import free_port, temporary_folder, wait_until
from tests.servers import redis_server as running_redis

SET = make_script("set", "return redis.call('set', KEYS[1], ARGV[1])")
GET = make_script("get", "return redis.call('get', KEYS[1])", writes=False)
COUNT = make_script("count", "return redis.call('incr', KEYS[1])")


@pytest.fixture
def client(redis_url: str) -> Iterator[RedisClient]:
    with RedisClient.open(redis_url) as opened:
        yield opened


def clients_in(client: RedisClient, *commands: str) -> list[str]:
    """Ids of the connections whose latest command was one of these."""
    return [one["id"] for one in client.commands.client_list() if one["cmd"] in commands]


# --- the error table


def driver_classes() -> list[type[BaseException]]:
    return [kind for _, kind in getmembers(driver, isclass) if issubclass(kind, BaseException)]


@pytest.mark.parametrize("kind", driver_classes(), ids=lambda kind: kind.__name__)
def test_every_error_class_of_the_driver_has_a_meaning_of_its_own(kind: type[BaseException]) -> None:
    assert kind in DRIVER_ERRORS
    assert issubclass(kind, ROOTS), "mapped() would let it pass"


def test_no_meaning_turns_an_unknown_outcome_into_one_that_surely_did_not_happen() -> None:
    for kind in (
        driver.ConnectionError,
        driver.TimeoutError,
        driver.RedisError,
        driver.InvalidResponse,
        driver.RedisClusterException,
    ):
        assert isinstance(broker_error(kind("lost"), "key", unknown=True), OutcomeUnknown)
        assert not isinstance(broker_error(kind("lost"), "key", unknown=False), OutcomeUnknown)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (driver.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), Unavailable),
        (driver.ResponseError("NOGROUP No such key 'a' or consumer group 'b'"), NotFound),
        (driver.ResponseError("BUSYGROUP Consumer Group name already exists"), Conflict),
        (driver.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), Terminal),
        (driver.ResponseError("unknown command 'LMPOP', with args beginning with: "), Unsupported),
        (
            driver.ResponseError(
                "Error running script (call to f_0): @user_script:1: @user_script: 1: -OOM command not allowed"
            ),
            Overloaded,
        ),
        (driver.ResponseError("@user_script: 34: -OOM command not allowed when used memory > 'maxmemory'."), Overloaded),
        (driver.ResponseError("@user_script: 34: -READONLY You can't write against a read only replica."), Unavailable),
        (driver.ResponseError("something new"), Terminal),
        (driver.DataError("Invalid input of type: 'NoneType'"), Invalid),
        (driver.NoPermissionError("this user has no permissions"), Terminal),
    ],
)
def test_a_refusal_is_told_by_its_code(error: Exception, kind: type[BrokerError]) -> None:
    found = broker_error(error, "a key", unknown=True)
    assert type(found) is kind
    assert found.of == "a key"
    assert found.why == str(error)


def test_mapped_lets_no_driver_error_out_and_tells_reads_from_writes() -> None:
    with pytest.raises(OutcomeUnknown), mapped("a"):
        raise driver.TimeoutError("slow")
    with pytest.raises(Unavailable), mapped("a", writes=False):
        raise driver.TimeoutError("slow")
    with pytest.raises(KeyError), mapped("a"):
        raise KeyError("not the driver's")


# --- scripts


def test_a_script_runs_and_replies_in_bytes(client: RedisClient) -> None:
    assert client.call(SET, [b"k"], ["v"]) == b"OK"
    assert client.call(GET, [b"k"]) == b"v"


def test_a_script_the_server_forgot_is_loaded_and_runs_once(client: RedisClient) -> None:
    assert client.call(COUNT, [b"n"]) == 1
    client.commands.script_flush()
    assert client.call(COUNT, [b"n"]) == 2
    assert client.commands.script_exists(COUNT.sha) == [True]


def test_many_calls_answer_in_order_also_when_the_script_was_forgotten(client: RedisClient) -> None:
    client.commands.script_flush()
    calls: list[Call] = [([f"n{index % 2}"], []) for index in range(6)]
    assert client.call_many(COUNT, calls) == [1, 1, 2, 2, 3, 3]
    assert client.call_many(COUNT, calls) == [4, 4, 5, 5, 6, 6]
    assert client.call_many(COUNT, []) == []


def test_one_refused_call_of_many_leaves_the_others(client: RedisClient) -> None:
    client.call(SET, [b"text"], ["no number"])
    first, second, third = client.call_many(COUNT, [([b"a"], []), ([b"text"], []), ([b"b"], [])])
    assert (first, third) == (1, 1)
    assert isinstance(second, Terminal)


def test_a_single_command_replies_raw_and_its_refusal_is_typed(client: RedisClient) -> None:
    assert client.run("PING") == b"PONG"
    assert client.run("HSET", b"h", "f", 1) == 1
    assert client.run("HGETALL", b"h", writes=False) == [b"f", b"1"]
    with pytest.raises(Terminal, match=r"another type \[h\]"):
        client.run("INCR", b"h")


def test_many_commands_reply_raw_and_the_refusal_of_any_is_typed(client: RedisClient) -> None:
    assert client.replies([], "nothing") == []
    assert client.replies([("HSET", "h", "f", 1), ("HLEN", "h")], "h") == [1, 1]
    with pytest.raises(Terminal, match=r"another type \[both\]"):
        client.replies([("INCR", "h"), ("HSET", "h", "g", 2)], "both")
    assert client.run("HLEN", "h") == 2


def test_a_script_that_does_not_exist_is_not_found(client: RedisClient) -> None:
    with pytest.raises(NotFound, match="no-such-script"):
        client.script("no-such-script")


def test_the_prelude_stands_before_every_script_and_belongs_to_its_name(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporary_folder("scripts") as folder:
        (folder / "scripts").mkdir()
        (folder / "scripts" / "one.lua").write_text("return 1")
        monkeypatch.setattr("broker.backend.client.files", lambda _: folder)
        load_script.cache_clear()
        bare = load_script("one")
        (folder / "scripts" / "prelude.lua").write_text("local shared = 1")
        load_script.cache_clear()
        whole = load_script("one")
    load_script.cache_clear()
    assert (bare.text, whole.text) == ("return 1", "local shared = 1\nreturn 1")
    assert bare.sha != whole.sha


# --- outcomes


def blocker(key: str) -> Script:
    """Adds one, then keeps the server busy for 0.4 s: longer than the client waits, too short to be refused as BUSY."""
    busy = """redis.call('incr', KEYS[1])
local function now() local at = redis.call('TIME') return at[1] * 1000 + at[2] / 1000 end
local begun = now()
while now() - begun < 400 do end
return 1"""
    return make_script(f"busy {key}", busy)


def test_a_write_whose_answer_comes_too_late_is_unknown_and_is_not_sent_again(redis_url: str) -> None:
    with RedisClient.open(redis_url, timeout_seconds=0.05) as hasty, RedisClient.open(redis_url, timeout_seconds=60) as patient:
        patient.call(SET, [b"warm"], ["1"])
        with pytest.raises(OutcomeUnknown):
            hasty.call(blocker("n"), [b"n"])
        assert patient.call(GET, [b"n"]) == b"1"


def test_a_read_whose_answer_comes_too_late_is_merely_unavailable(redis_url: str) -> None:
    slow = make_script("slow", "local n = 0 for i = 1, 60000000 do n = n + i % 7 end return n", writes=False)
    with RedisClient.open(redis_url, timeout_seconds=0.05) as hasty, pytest.raises(Unavailable):
        hasty.call(slow, [])


def test_a_write_that_could_not_connect_surely_did_not_happen() -> None:
    with RedisClient.open(f"redis://127.0.0.1:{free_port()}") as client, pytest.raises(Unavailable):
        client.call(SET, [b"k"], ["v"])


@pytest.mark.parametrize(("forgotten", "kind"), [(1, OutcomeUnknown), (2, Unavailable)])
def test_what_fails_behind_calls_that_ran_leaves_their_outcome_unknown(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch, forgotten: int, kind: type[BrokerError]
) -> None:
    sent = list[int]()

    def forgetting(commands: Sequence[object], of: str, writes: bool = True) -> list[object]:
        sent.append(len(commands))
        if len(sent) == 2:
            raise Unavailable("Redis is gone", of=of)
        return [driver.NoScriptError("no matching script")] * forgotten + [1] * (len(commands) - forgotten)

    monkeypatch.setattr(client, "pipeline", forgetting)
    with pytest.raises(kind):
        client.call_many(COUNT, [([b"a"], []), ([b"b"], [])])
    assert sent == [2, forgotten]


def test_a_connection_killed_while_a_write_waits_leaves_the_outcome_unknown(client: RedisClient) -> None:
    held: list[BrokerError] = []
    started = threading.Event()

    def wait_for_a_value() -> None:
        started.set()
        try:
            client.pipeline([("BLPOP", "never", 4)], "never")
        except BrokerError as error:
            held.append(error)

    thread = threading.Thread(target=wait_for_a_value)
    thread.start()
    started.wait()
    wait_until(lambda: bool(clients_in(client, "blpop")), "the blocked call")
    client.commands.client_kill_filter(_id=clients_in(client, "blpop")[0])
    thread.join()
    assert [type(error) for error in held] == [OutcomeUnknown]


def test_after_a_restart_the_next_call_meets_the_new_server() -> None:
    with running_redis() as server, RedisClient.open(server.url) as client:
        assert client.call(SET, [b"k"], ["v"]) == b"OK"
        server.restart()
        with pytest.raises(Transient):
            client.call(SET, [b"k"], ["w"])
        assert client.call(SET, [b"k"], ["w"]) == b"OK"
        assert client.call(GET, [b"k"]) == b"w"


def test_a_connection_that_rested_is_looked_at_before_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.backend.lanes.FRESH_SECONDS", 0.0)
    with running_redis() as server, RedisClient.open(server.url) as client:
        client.call(SET, [b"k"], ["v"])
        server.restart()
        assert client.call(SET, [b"k"], ["w"]) == b"OK"


def test_a_full_redis_refuses_writers_and_changes_nothing() -> None:
    with running_redis("--maxmemory", "3mb") as server, RedisClient.open(server.url) as client:
        push = make_script("push", "return redis.call('rpush', KEYS[1], ARGV[1])")
        while not isinstance(client.call_many(push, [([b"list"], ["x" * 100_000])])[0], Overloaded):
            pass
        length = client.commands.llen("list")
        with pytest.raises(Overloaded):
            client.call(push, [b"list"], ["x"])
        assert client.commands.llen("list") == length


def test_a_wrong_password_and_a_forbidden_command_are_terminal_and_print_no_password() -> None:
    with running_redis() as server, RedisClient.open(server.url) as admin:
        admin.commands.acl_setuser(
            "reader", enabled=True, passwords=["+right-secret"], keys=["*"], commands=["+get", "+evalsha", "+eval"]
        )
        with RedisClient.open(server.tcp_url.replace("//", "//reader:wrong-secret@")) as stranger:
            with pytest.raises(Terminal, match="login") as caught:
                stranger.call(GET, [b"k"])
            assert "wrong-secret" not in str(caught.value)
        with RedisClient.open(server.tcp_url.replace("//", "//reader:right-secret@")) as reader:
            assert reader.call(GET, [b"k"]) is None
            with pytest.raises(Terminal):
                reader.call(SET, [b"k"], ["v"])


# --- URLs


@pytest.mark.parametrize(
    "url",
    ["http://host", "redis://:secret@host/0?decode_responses=true", "redis://:secret@host?no_such_option=1", "redis://h?db=x"],
)
def test_a_url_this_client_cannot_serve_is_named_without_its_password(url: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        RedisClient.open(url)
    assert "secret" not in str(caught.value)


def test_messages_name_a_server_without_its_password() -> None:
    assert public_url("rediss://user:secret@host:6380/2?ssl_ca_certs=/ca.pem") == "rediss://host:6380/2"


def test_a_certificate_authority_is_named_in_the_url() -> None:
    client = RedisClient.open("rediss://host:6380/0?ssl_ca_certs=/etc/ca.pem")
    assert client.commands.get_connection_kwargs()["ssl_ca_certs"] == "/etc/ca.pem"


def test_two_pools_differ_in_patience(client: RedisClient) -> None:
    waits = client.blocking.get_connection_kwargs()["socket_timeout"]
    assert waits > BLOCK_MAX_MS / 1000
    assert client.commands.get_connection_kwargs()["socket_timeout"] < waits
    assert client.commands.get_retry().get_retries() == 0  # type: ignore[union-attr]


# --- reading groups


@pytest.fixture
def reader(client: RedisClient) -> Iterator[GroupReader]:
    assert client.create_group(b"s", b"g")
    with closing(GroupReader(client, [b"s"], b"g", b"me")) as opened:
        yield opened


def add(client: RedisClient, *values: str) -> None:
    for value in values:
        client.commands.xadd("s", {"v": value})


def values(entries: list[Entry]) -> list[str]:
    return [entry.fields[b"v"].decode() for entry in entries]


def kill_readers(client: RedisClient) -> None:
    for one in clients_in(client, "xreadgroup", "xack"):
        client.commands.client_kill_filter(_id=one)


def test_making_a_group_twice_is_no_error(client: RedisClient) -> None:
    assert client.create_group(b"s", b"g") is True
    assert client.create_group(b"s", b"g") is False


def test_a_group_is_no_other_key(client: RedisClient) -> None:
    client.run("SET", "s", "text")
    with pytest.raises(Terminal, match="another type"):
        client.create_group(b"s", b"g")


def test_consumers_that_died_long_ago_leave_the_group_unless_they_hold_something(
    client: RedisClient, reader: GroupReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.run("XGROUP", "CREATECONSUMER", "s", "g", "idle")
    add(client, "a")
    client.wait_entries({b"s": b">"}, b"g", b"holder", 1, 0)
    assert reader.read(1, 0) == []

    def consumers() -> set[bytes]:
        return {flat[1] for flat in client.run("XINFO", "CONSUMERS", "s", "g")}

    client.create_group(b"s", b"g")
    assert consumers() == {b"idle", b"holder", b"me"}
    monkeypatch.setattr("broker.backend.client.CONSUMER_IDLE_MS", 0)
    client.create_group(b"s", b"g")
    assert consumers() == {b"holder"}
    add(client, "b")
    assert values(reader.read(1, 0)) == ["b"]


def test_a_reader_gets_new_entries_once(client: RedisClient, reader: GroupReader) -> None:
    add(client, "a", "b", "c")
    assert values(reader.read(2, 0)) == ["a", "b"]
    assert values(reader.read(2, 0)) == ["c"]
    assert reader.read(2, 10) == []


def test_a_reader_waits_for_an_entry(client: RedisClient, reader: GroupReader) -> None:
    assert reader.read(1, 0) == []
    timer = threading.Timer(0.05, add, (client, "late"))
    timer.start()
    assert values(reader.read(1, 2_000)) == ["late"]
    timer.join()


def test_after_its_connection_was_killed_a_reader_gets_its_pending_entries_before_new_ones(
    client: RedisClient, reader: GroupReader
) -> None:
    add(client, "a", "b", "c")
    assert values(reader.read(3, 0)) == ["a", "b", "c"]
    kill_readers(client)
    add(client, "d")
    assert values(reader.read(2, 0)) == ["a", "b"]
    assert values(reader.read(2, 0)) == ["c"]
    assert values(reader.read(2, 0)) == ["d"]


def test_entries_whose_reply_was_lost_on_the_way_come_with_the_next_read(client: RedisClient, reader: GroupReader) -> None:
    reader.read(1, 0)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(values(reader.read(5, 2_000))))
    thread.start()
    wait_until(lambda: any("b" in one["flags"] for one in client.commands.client_list()), "the blocked reader")
    # In one step: the server gives the entries to the waiting reader and closes its connection before it can answer.
    with client.commands.pipeline(transaction=True) as step:
        step.xadd("s", {"v": "a"})
        step.client_kill_filter(_type="normal", skipme=True)
        step.execute()
    thread.join()
    assert found == ["a"]


def test_a_reader_goes_on_after_a_restart_of_the_server() -> None:
    with running_redis("--appendfsync", "always") as server, RedisClient.open(server.url) as client:
        client.create_group(b"s", b"g")
        with closing(GroupReader(client, [b"s"], b"g", b"me")) as reader:
            add(client, "a", "b")
            assert values(reader.read(1, 0)) == ["a"]
            server.stop()
            with pytest.raises(Unavailable):
                reader.read(1, 0)
            server.start()
            assert values(reader.read(1, 0)) == ["a"]
            assert values(reader.read(1, 0)) == ["b"]


def test_pending_entries_that_were_deleted_are_acknowledged_not_delivered(client: RedisClient, reader: GroupReader) -> None:
    add(client, "a", "b")
    first, _ = reader.read(2, 0)
    client.commands.xdel("s", first.id)
    kill_readers(client)
    assert values(reader.read(2, 0)) == ["b"]
    assert client.commands.xpending("s", "g")["pending"] == 1


def test_a_reader_of_two_streams_replays_each(client: RedisClient) -> None:
    for stream in (b"{x}1", b"{x}2"):
        client.create_group(stream, b"g")
        client.commands.xadd(stream, {"v": stream})
    with closing(GroupReader(client, [b"{x}1", b"{x}2"], b"g", b"me")) as reader:
        assert sorted(values(reader.read(5, 0))) == ["{x}1", "{x}2"]
        kill_readers(client)
        client.commands.xadd(b"{x}2", {"v": "new"})
        assert sorted(values(reader.read(5, 0))) == ["{x}1", "{x}2"]
        assert values(reader.read(5, 0)) == ["new"]


def test_a_missing_stream_is_not_found_and_leaves_the_reader_usable(client: RedisClient, reader: GroupReader) -> None:
    client.commands.flushall()
    with pytest.raises(NotFound):
        reader.read(1, 10)
    client.create_group(b"s", b"g")
    add(client, "a")
    assert values(reader.read(1, 0)) == ["a"]


def test_waiting_for_entries_ends_by_itself(client: RedisClient) -> None:
    client.create_group(b"s", b"g")
    assert client.wait_entries({b"s": b">"}, b"g", b"me", 1, 10) == []
    add(client, "a")
    assert values(client.wait_entries({b"s": b">"}, b"g", b"me", 1, 2_000)) == ["a"]


def test_a_block_is_never_for_ever() -> None:
    assert "BLOCK" not in xreadgroup({b"s": b">"}, b"g", b"me", 1, 0)
    command = xreadgroup({b"s": b">"}, b"g", b"me", 1, 3_600_000)
    assert command[command.index("BLOCK") + 1] == BLOCK_MAX_MS


# --- forks and threads


def in_a_child(body: Callable[[], None]) -> int:
    """Exit code of a forked child that runs `body`; 0 when that returns."""
    child = multiprocessing.get_context("fork").Process(target=body)
    child.start()
    child.join(30)
    assert child.exitcode is not None
    return child.exitcode


def test_a_forked_child_opens_connections_of_its_own(client: RedisClient, reader: GroupReader) -> None:
    add(client, "a", "b")
    ids = make_script("id", "return 1")
    client.call(ids, [])
    mine = client.pipeline([("CLIENT", "ID")], "id")
    assert values(reader.read(1, 0)) == ["a"]

    def child() -> None:
        assert client.pipeline([("CLIENT", "ID")], "id") != mine
        assert client.call(SET, [b"from"], ["child"]) == b"OK"
        assert values(reader.read(1, 0)) == ["a"], "a new connection begins with what is pending"

    assert in_a_child(child) == 0
    assert client.call(GET, [b"from"]) == b"child"
    assert client.pipeline([("CLIENT", "ID")], "id") == mine, "the child closed the parent's connection"
    assert values(reader.read(1, 0)) == ["b"], "the parent's reader lost its place"


def test_threads_share_a_client(client: RedisClient) -> None:
    def work() -> None:
        for _ in range(200):
            client.call(COUNT, [b"n"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.call(GET, [b"n"]) == b"1600"
    assert len(client.commands.client_list()) <= 12


# --- the check at start


def test_a_sound_server_has_nothing_to_say() -> None:
    with running_redis("--maxmemory", "64mb") as server, RedisClient.open(server.url) as client:
        assert check(client) == []
        assert describe(client.commands.info()).startswith("redis ")


def test_the_check_says_what_cannot_be_promised() -> None:
    options = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    with running_redis(*options) as server, RedisClient.open(server.url) as client:
        found = check(client)
    assert [text.rpartition(": ")[2] for _, text in found] == [
        "maxmemory-policy is allkeys-lru, not noeviction",
        "appendonly is no",
        "maxmemory is 0",
    ]


def test_a_forbidden_config_is_said_and_no_error() -> None:
    with (
        running_redis("--maxmemory", "64mb", "--rename-command", "CONFIG", "") as server,
        RedisClient.open(server.url) as client,
    ):
        assert check(client) == [("note", "appendfsync could not be read: CONFIG is forbidden here, so ask your provider")]


def test_old_versions_and_lazy_disks_are_found() -> None:
    info = {"redis_version": "6.0.16", "aof_enabled": 1, "maxmemory": 1, "maxmemory_policy": "noeviction"}
    assert findings(info, {"appendfsync": "no"}) == [
        ("broken", "unsupported: Redis 6.0.16 is older than 6.2"),
        ("note", "accepted requests of the last 30 seconds may die with the machine: appendfsync is no"),
    ]
    assert describe({"redis_version": "7.2.4", "valkey_version": "8.0.1", "cluster_enabled": 1}) == "valkey 8.0.1, cluster"


# --- a cluster


@pytest.fixture
def cluster_url() -> Iterator[str]:
    """One node that holds every slot."""
    with running_redis("--cluster-enabled", "yes", "--maxmemory", "64mb") as server:
        with redis.Redis.from_url(server.url) as node:
            node.execute_command("CLUSTER ADDSLOTS", *range(16_384))
            wait_until(lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "the cluster")
        yield server.tcp_url.replace("redis://", "redis+cluster://")


def test_scripts_and_group_readers_work_on_a_cluster(cluster_url: str) -> None:
    with RedisClient.open(cluster_url) as client:
        assert client.call(COUNT, [b"{a}n"]) == 1
        assert client.call_many(COUNT, [([b"{a}n"], []), ([b"{b}n"], [])]) == [2, 1]
        assert client.create_group(b"s", b"g") is True
        add(client, "a")
        with closing(GroupReader(client, [b"s"], b"g", b"me")) as reader:
            assert values(reader.read(1, 100)) == ["a"]
        assert check(client) == []
        with pytest.raises(Terminal, match="called wrongly"):
            client.call(make_script("two", "return 1"), [b"a", b"b"])


def test_replies_of_a_cluster_are_as_raw_as_those_of_one_server(cluster_url: str, redis_url: str) -> None:
    commands: list[tuple[str, ...]] = [
        ("HSET", "h", "a", "1"), ("HGETALL", "h"),
        ("XGROUP", "CREATE", "x", "g", "0", "MKSTREAM"), ("XADD", "x", "1-1", "e", ""),
        ("XRANGE", "x", "-", "+"), ("XPENDING", "x", "g", "-", "+", "1", "me"), ("SADD", "set", "1"), ("SMEMBERS", "set"),
        ("XAUTOCLAIM", "x", "g", "me", "0", "0"), ("ZADD", "z", "1", "m"), ("ZRANGE", "z", "0", "-1", "WITHSCORES"),
    ]  # fmt: skip
    with RedisClient.open(cluster_url) as several, RedisClient.open(redis_url) as one:
        assert [several.run(*command) for command in commands] == [one.run(*command) for command in commands]


def test_a_cluster_nobody_serves_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        RedisClient.open(f"redis+cluster://127.0.0.1:{free_port()}")


def test_a_server_that_speaks_no_redis_is_unavailable_for_reads_and_unknown_for_writes() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", free_port()))
        listening.listen()

        def answer() -> None:
            for _ in range(2):
                peer, _ = listening.accept()
                with peer:
                    peer.recv(4096)
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with RedisClient.open(f"redis://127.0.0.1:{listening.getsockname()[1]}") as client:
            with pytest.raises(Unavailable):
                client.call(GET, [b"k"])
            with pytest.raises(OutcomeUnknown):
                client.call(SET, [b"k"], ["v"])
        thread.join()
