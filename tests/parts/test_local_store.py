"""What only a directory can get wrong: crashes between steps, full disks, several processes, odd file systems."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.errors import BrokerError, Conflict, Invalid, OutcomeUnknown, Overloaded, Terminal, Unavailable, Unsupported
from broker.stores.local import ABANDONED_SECONDS, TEMPORARY, LocalStore, to_error

SEALER = """
import sys
from pathlib import Path
from broker.stores.local import LocalStore
store = LocalStore(Path(sys.argv[1]))
sys.stdin.readline()
print("".join(str(int(store.put_if_absent(f"log/{number}", sys.argv[2].encode()))) for number in range(50)))
"""


def keys(store: LocalStore) -> list[str]:
    return [info.key for info in store.list("")]


def test_two_processes_never_create_one_key_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SEALER, str(tmp_path)]
    racers = [subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "ab"]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    first, second = (racer.communicate(timeout=60)[0].strip() for racer in racers)
    assert len(first) == 50
    assert all(int(a) + int(b) == 1 for a, b in zip(first, second, strict=True)), (first, second)
    store = LocalStore(tmp_path)
    assert [b"".join(store.get(f"log/{n}")) for n in range(50)] == [b"a" if a == "1" else b"b" for a in first]


def test_a_process_killed_while_it_writes_leaves_nothing_visible(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from broker.stores.local import LocalStore\n"
        "upload = LocalStore(Path(sys.argv[1])).upload('a/b'); upload.write(b'half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    store = LocalStore(tmp_path)
    assert (keys(store), store.stat("a/b")) == ([], None)
    assert len(list((tmp_path / TEMPORARY).iterdir())) == 1


def test_temporary_files_of_dead_processes_go_after_a_day(tmp_path: Path) -> None:
    folder = tmp_path / TEMPORARY
    folder.mkdir()
    for name, age in (("old", ABANDONED_SECONDS + 60), ("young", 60)):
        (folder / name).write_bytes(b"x")
        moment = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (moment, moment))
    LocalStore(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["young"]


def test_the_stores_own_folder_is_no_key_and_in_no_list(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(Invalid):
        store.put(f"{TEMPORARY}/x", b"x")
    with store.upload("k") as upload:
        upload.write(b"x")
        assert keys(store) == []


def test_finished_writes_leave_no_temporary_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"x")
    store.put_if_absent("b", b"x")
    store.put_if_absent("b", b"y")
    with store.upload("c") as upload:
        upload.write(b"x")
    assert list((tmp_path / TEMPORARY).iterdir()) == []
    assert keys(store) == ["a", "b"]


def test_folders_removed_by_somebody_are_made_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("t/d/1", b"x")
    (tmp_path / "t/d/1").unlink()
    (tmp_path / "t/d").rmdir()
    store.put("t/d/2", b"x")
    assert store.put_if_absent("t/d/3", b"x") is True
    assert keys(store) == ["t/d/2", "t/d/3"]


def test_a_file_where_a_folder_is_needed_is_a_conflict(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a", b"x")
    with pytest.raises(Conflict):
        store.put("a/b", b"x")


def test_every_folder_on_the_way_and_the_file_are_synced_before_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, synced = LocalStore(tmp_path), []
    real = os.fsync

    def record(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(str(tmp_path)))
        real(fd)

    monkeypatch.setattr(os, "fsync", record)
    store.put_if_absent("t/d/k", b"x")
    assert synced[0].startswith(f"/{TEMPORARY}/"), "the bytes first"
    assert synced[1:] == ["", "/t", "/t/d"], "then each entry, from the root down"
    synced.clear()
    store.put("t/d/k2", b"x")
    assert len(synced) == 2, "folders known to be durable cost nothing"


def _failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, Overloaded),
        (errno.EDQUOT, Overloaded),
        (errno.EACCES, Terminal),
        (errno.EROFS, Terminal),
        (errno.EIO, Unavailable),
        (errno.EMFILE, Unavailable),
    ],
)
def test_a_failure_before_the_object_is_visible_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[BrokerError]
) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "fsync", _failing(number))
    for write in (store.put, store.put_if_absent):
        with pytest.raises(BrokerError) as raised:
            write("k", b"x")
        assert type(raised.value) is kind
        assert raised.value.of == "k"
    monkeypatch.undo()
    assert keys(store) == []
    assert list((tmp_path / TEMPORARY).iterdir()) == []


def test_a_failure_after_it_is_visible_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr("broker.stores.local.sync_folder", _failing(errno.EIO))
    with pytest.raises(OutcomeUnknown):
        store.put_if_absent("k", b"x")
    with pytest.raises(OutcomeUnknown):
        store.put("k2", b"x")
    assert type(to_error(OSError(errno.ENOSPC, "full"), "k", wrote=True)) is OutcomeUnknown


@pytest.mark.parametrize("write", ["put", "put_if_absent"])
def test_folders_that_go_again_and_again_are_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "link", _failing(errno.ENOENT))
    monkeypatch.setattr(os, "replace", _failing(errno.ENOENT))
    with pytest.raises(Unavailable, match="folders go"):
        getattr(store, write)("k", b"x")


def test_a_file_system_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "link", _failing(errno.EPERM))
    with pytest.raises(Unsupported, match="hard links"):
        store.put_if_absent("k", b"x")


def test_a_list_never_enters_folders_that_cannot_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    for key in ("a/x", "b/1/x", "b/2/x", "b/3/x", "c/x"):
        store.put(key, b"x")
    visited: list[str] = []
    real = os.scandir

    def record(path: Path) -> object:
        visited.append(str(path).removeprefix(str(tmp_path)))
        return real(path)

    monkeypatch.setattr(os, "scandir", record)
    assert [info.key for info in store.list("b/", after="b/1/x")] == ["b/2/x", "b/3/x"]
    assert visited == ["/b", "/b/1", "/b/2", "/b/3"]
    visited.clear()
    assert [info.key for info in store.list("b/", after="b/2/x")] == ["b/3/x"]
    assert visited == ["/b", "/b/2", "/b/3"]
    visited.clear()
    next(store.list("b/"))
    assert visited == ["/b", "/b/1"], "and reads folders as it goes"
