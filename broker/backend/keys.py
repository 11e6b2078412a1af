"""Every Redis key name. `{domain.shard}` is the hash tag, so one script touches one slot of a cluster.

Inside one slot:

    meta                        hash   run_id, epoch, born, counter of fences; submits, full, inflight_cap (submit), parked_at
    datasets                    set    dataset ids
    announced                   set    ids of logs of announcements: <tenant>/<domain>/=channels
    head|versions|edges|productions|holds|channels:<tenant>/<name>   hashes: the projection (rules/patch.py) of a log
    lease:<name>                hash   owner, epoch, counter, until; names: writer:<tenant>/<dataset>, janitor, replica:...
    requests:<name>:<priority>  stream of request ids, group `producers`: a bell, the promise is the request's hash
    request:<id>                hash   body, state, attempts, flight, done, entry (its id in the response stream), ...
    responses:<target>          stream of terminal events, group `readers`
    retries:<target>            zset   events to be shown again, by due time
    dead                        stream of failed events;  events: stream of all events
    idem:<target>:<key>         hash   request id, body hash
    derived:<tenant>/<name>:<fingerprint>:<version>   string: JSON of derived files, with their expiry
    awaited                     hash   target -> requests without a terminal event
    inflight                    hash   tenant -> requests in work
    backlog:<tenant>:<priority> list   ids waiting for their turn
    flights                     hash   flown -> its open flight; flown: <dataset>|produce or <dataset>|derive|<fingerprint>
    waiting:<flown>             set    request ids for the next such flight
    flight:<id>                 hash   a lease with dataset, kind, state, progress;  members:<id>: set of request ids
    lapse                       zset   flight ids by end of lease, or by when a tick showed them last
    delayed, deadlines          zset   request ids by time
    parked                      hash   request id -> dataset that no reader of its stream could serve
    unindexed                   set    datasets with news for the index of attributes;  indexed: hash, dataset -> version known
    find:<name>=<value>         set    <tenant>/<name> or <tenant>/<name>@<version> with that attribute;  findable: all of them
    schedules, courses          hash   schedule id -> JSON of what is asked for and when; of how it goes
    workers                     hash   worker id -> JSON (patterns, host, pid, until)
    cursors:<tenant>/<name>     hash   consumer -> end of its lease (ms) and JSON of where it stands
    batches:<tenant>/<name>     hash   log slot -> JSON of its closed micro-batch, until the next commit takes it
    once:<what>                 string that an event told once a time leaves behind
    asked                       hash   <dataset>|<replica> -> JSON of what the replica must know to repair itself
    heeded                      string that is there while some worker answers what is asked
    content:<tenant>/<name>:<id> string: JSON of a content digest by key bucket, for an hour; id: columnar/buckets.py
    parts:<flight>              hash   plan, total, left, rows, bytes; attempt:, done:, error:<number of part | finalise>

Inside a log slot, `{domain.shard.pN}`:

    log:<tenant>/<name>         stream of blocks: p producer, b number, k kind (u, d), n rows, d data; c, r: bytes, rows so far
    meta                        hash   run_id, epoch, counter of fences; appends, full (memory check), fsyncs
    logged:<tenant>/<name>      hash   run (identity of the incarnation), appended, rows, released, released_rows, marks_seen
    marks:<tenant>/<name>       hash   producer -> block, time (ms), who numbered it (-: the producer), entry id
    ready                       zset   dataset ids by the time of their oldest unbatched entry (ms)
    lease:batch                 hash   who makes this slot's micro-batches

Of a listener's durable cursor, `{=events.<name>}`:

    lease:listener              hash   who listens under this name
    heard                       hash   slot -> what was asked for, born of that slot's memory, id of the last event acknowledged
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from zlib import crc32

from broker.model.names import ChannelsId, DatasetId
from broker.rules.patch import TABLES

LOG_SLOT: Final = "p"
SLOTS: Final = b"broker:slots"
"""Set of all slots in use, outside any slot. A hint for workers and readers; rebuilt by use."""
DEPLOYMENT: Final = b"broker:deployment"
"""Hash outside any slot: shards; promise:<hash of a store's URL>."""
BATCH_LEASE: Final = "lease:batch"
"""Name of the lease under which one process at a time makes a log slot's micro-batches, in the log slot."""
LISTENER: Final = "lease:listener"
"""Name of the lease under which one process at a time listens with a durable cursor, in the cursor's own slot."""
PRODUCERS: Final = b"producers"
READERS: Final = b"readers"


@lru_cache(maxsize=100_000)
def slot_for(dataset: DatasetId, shards: int) -> str:
    """`domain.shard`: a tenant's hash picks one of the domain's shards."""
    return f"{dataset.domain}.{crc32(dataset.tenant.encode()) % shards}"


def log_slot(slot: str, number: int) -> str:
    """`domain.shard.p<number>`: change logs have hash tags of their own, so that a cluster spreads them."""
    return f"{slot}.{LOG_SLOT}{number}"


def listener_slot(cursor: str) -> Slot:
    """Where a listener's durable cursor lives: a hash tag of its own, which no domain can have."""
    return Slot(f"=events.{cursor}")


class Slot:
    """The keys of one slot."""

    __slots__ = ("name", "prefix")

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefix = f"{{{name}}}:"

    def key(self, tail: str) -> bytes:
        return (self.prefix + tail).encode()

    @property
    def meta(self) -> bytes:
        return self.key("meta")

    @property
    def datasets(self) -> bytes:
        return self.key("datasets")

    @property
    def announced(self) -> bytes:
        return self.key("announced")

    def listed(self, log: DatasetId) -> bytes:
        """The set that a log's id is a member of."""
        return self.announced if isinstance(log, ChannelsId) else self.datasets

    @property
    def events(self) -> bytes:
        return self.key("events")

    @property
    def dead(self) -> bytes:
        return self.key("dead")

    @property
    def workers(self) -> bytes:
        return self.key("workers")

    @property
    def asked(self) -> bytes:
        return self.key("asked")

    @property
    def heeded(self) -> bytes:
        return self.key("heeded")

    def content(self, dataset: DatasetId, id: str) -> bytes:
        return self.key(f"content:{dataset.tenant}/{dataset.name}:{id}")

    def tables(self, dataset: DatasetId) -> list[bytes]:
        """The projection's hashes, in the order of TABLES."""
        return [self.key(f"{table}:{dataset.tenant}/{dataset.name}") for table in TABLES]

    def head(self, dataset: DatasetId) -> bytes:
        return self.key(f"head:{dataset.tenant}/{dataset.name}")

    def derived(self, dataset: DatasetId, fingerprint: str, version: int) -> bytes:
        return self.key(f"derived:{dataset.tenant}/{dataset.name}:{fingerprint}:{version}")

    def lease(self, name: str) -> bytes:
        return self.key(name)

    def requests(self, name: str, priority: str) -> bytes:
        return self.key(f"requests:{name}:{priority}")

    def request(self, id: str) -> bytes:
        return self.key(f"request:{id}")

    def responses(self, target: str) -> bytes:
        return self.key(f"responses:{target}")

    def retries(self, target: str) -> bytes:
        return self.key(f"retries:{target}")

    def flight(self, id: str) -> bytes:
        return self.key(f"flight:{id}")

    def log(self, dataset: DatasetId) -> bytes:
        """In a log slot."""
        return self.key(f"log:{dataset.tenant}/{dataset.name}")

    def logged(self, dataset: DatasetId) -> bytes:
        """In a log slot."""
        return self.key(f"logged:{dataset.tenant}/{dataset.name}")

    def marks(self, dataset: DatasetId) -> bytes:
        """In a log slot."""
        return self.key(f"marks:{dataset.tenant}/{dataset.name}")

    @property
    def ready(self) -> bytes:
        """In a log slot."""
        return self.key("ready")

    def cursors(self, dataset: DatasetId) -> bytes:
        return self.key(f"cursors:{dataset.tenant}/{dataset.name}")

    def batches(self, dataset: DatasetId) -> bytes:
        """In the dataset's own slot."""
        return self.key(f"batches:{dataset.tenant}/{dataset.name}")

    @property
    def heard(self) -> bytes:
        """In a listener's slot."""
        return self.key("heard")

    def members(self, id: str) -> bytes:
        return self.key(f"members:{id}")

    def parts(self, id: str) -> bytes:
        return self.key(f"parts:{id}")


def writer_lease(dataset: DatasetId) -> str:
    """Name of the lease under which diffs and snapshots of a dataset are made outside of productions."""
    return f"lease:writer:{dataset.tenant}/{dataset.name}"


def replica_lease(dataset: DatasetId, name: str) -> str:
    """Name of the lease under which one process at a time brings a replica up."""
    return f"lease:replica:{dataset.tenant}/{dataset.name}:{name}"


def compact_lease(dataset: DatasetId) -> str:
    """Name of the lease under which one process at a time compacts a dataset."""
    return f"lease:compact:{dataset.tenant}/{dataset.name}"


def retention_lease(dataset: DatasetId) -> str:
    """Name of the lease under which one process at a time says which versions of a tenant's domain stay: who retires edges
    and who makes a channel name a version exclude each other, though they write two logs."""
    return f"lease:retention:{dataset.tenant}"


def duty_lease(duty: str) -> str:
    """Name of the lease of a duty that one worker a slot does at a time: janitor, sweep."""
    return f"lease:{duty}"


def flight_lease(flight: str) -> str:
    """A flight's hash is its own lease."""
    return f"flight:{flight}"
