"""Marks of hosts: what they say, who may ask in spite of them, and that no kill can spoil them."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from greycheck.store.breaker import DOWN, STUCK, Breaker
from greycheck.store.url import parse_url
from tests.support import ROOT

SERVER = parse_url("mysql://user:secret@/g?host=db1:1&host=db2:2&host=/run/x.sock")
ONE, OTHER, SOCKET = SERVER.hosts


def age(path: str, since: float, asked: float) -> None:
    """Moves a mark into the past: made SINCE seconds ago, its host last ASKED so many seconds
    ago.
    """
    now = time.time()
    Path(path).write_text(f"{int(now - since)}\n")
    os.utime(path, (now - asked, now - asked))


def test_a_mark_is_of_one_host_and_one_kind(tmp_path: Path) -> None:
    marks = Breaker(str(tmp_path), SERVER)
    assert marks.set(ONE, DOWN)
    assert not marks.set(ONE, DOWN)
    assert not marks.is_due(ONE, DOWN)
    assert not marks.claim(ONE, DOWN)
    assert marks.since(ONE, DOWN) is not None
    for host, kind in ((ONE, STUCK), (OTHER, DOWN), (SOCKET, DOWN)):
        assert marks.is_due(host, kind)
        assert marks.claim(host, kind)
        assert marks.since(host, kind) is None
        assert marks.clear(host, kind) is None
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]


def test_databases_do_not_share_their_marks(tmp_path: Path) -> None:
    other = parse_url("mysql://user:secret@/other?host=db1:1")
    Breaker(str(tmp_path), SERVER).set(ONE, DOWN)
    assert Breaker(str(tmp_path), other).is_due(other.hosts[0], DOWN)
    assert not Breaker(str(tmp_path), parse_url("mysql://user:changed@db1:1/g")).is_due(ONE, DOWN)


@pytest.mark.parametrize(
    ("since", "asked", "due"),
    [
        (0, 0, False),
        (1.5, 1.5, True),
        (10, 4, False),
        (10, 6, True),
        (9999, 29, False),
        (9999, 31, True),
        (-60, -60, True),
    ],
)
def test_a_host_is_asked_again_ever_more_seldom(
    tmp_path: Path, since: float, asked: float, due: bool
) -> None:
    marks = Breaker(str(tmp_path), SERVER)
    marks.set(ONE, DOWN)
    age(marks.path(ONE, DOWN), since, asked)
    assert marks.is_due(ONE, DOWN) == due
    assert marks.claim(ONE, DOWN) == due


def test_one_asks_at_a_time(tmp_path: Path) -> None:
    first, second = Breaker(str(tmp_path), SERVER), Breaker(str(tmp_path), SERVER)
    first.set(ONE, DOWN)
    age(first.path(ONE, DOWN), 60, 60)
    assert first.claim(ONE, DOWN)
    assert first.claim(ONE, DOWN)
    assert not second.claim(ONE, DOWN)
    assert not first.set(ONE, DOWN)
    assert not second.claim(ONE, DOWN), "it was asked just now"
    age(first.path(ONE, DOWN), 60, 60)
    assert second.claim(ONE, DOWN)
    assert second.clear(ONE, DOWN) == pytest.approx(60, abs=5)
    assert first.is_due(ONE, DOWN)
    assert list(tmp_path.iterdir()) == []


def test_whoever_asks_and_is_killed_leaves_his_turn_to_others(tmp_path: Path) -> None:
    marks = Breaker(str(tmp_path), SERVER)
    marks.set(ONE, DOWN)
    age(marks.path(ONE, DOWN), 60, 60)
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from greycheck.store import breaker
from greycheck.store.url import parse_url
found = parse_url("mysql://user:secret@db1:1/g")
print(breaker.Breaker({str(tmp_path)!r}, found).claim(found.hosts[0], "down"), flush=True)
time.sleep(60)
"""
    asking = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert asking.stdout
    assert asking.stdout.readline() == b"True\n"
    assert not marks.claim(ONE, DOWN)
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    asking.stdout.close()
    assert marks.claim(ONE, DOWN)


@pytest.mark.parametrize("content", [b"", b"no number", b"\xff" * 100, b"99999999999999999999"])
def test_whatever_stands_in_a_mark_it_is_one(tmp_path: Path, content: bytes) -> None:
    marks = Breaker(str(tmp_path), SERVER)
    Path(marks.path(ONE, DOWN)).write_bytes(content)
    assert marks.since(ONE, DOWN) == pytest.approx(0, abs=60)
    assert not marks.is_due(ONE, DOWN)


def test_a_mark_that_cannot_be_opened_counts_until_it_is_due(tmp_path: Path) -> None:
    """A link is never followed, wherever it leads."""
    marks = Breaker(str(tmp_path), SERVER)
    path = marks.path(ONE, DOWN)
    Path(path).symlink_to("/dev/null")
    assert marks.since(ONE, DOWN) is not None
    assert not marks.claim(ONE, DOWN)
    assert not marks.set(ONE, DOWN)
    os.utime(path, (time.time() - 60,) * 2, follow_symlinks=False)
    assert marks.claim(ONE, DOWN)
    assert marks.since(ONE, DOWN) is None


def test_a_mark_belongs_to_whom_its_directory_belongs_to(tmp_path: Path) -> None:
    """An operator who asks as root does not stand in the way of the checker's user."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
    marks = Breaker(str(tmp_path), SERVER)
    marks.set(ONE, DOWN)
    assert Path(marks.path(ONE, DOWN)).stat().st_uid == tmp_path.stat().st_uid


def test_an_ordinary_users_mark_is_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posix.geteuid", lambda: 1000)
    monkeypatch.setattr("posix.fchown", None)
    assert Breaker(str(tmp_path), SERVER).set(ONE, DOWN)


def test_a_mark_that_nobody_can_take_away_keeps_nobody_from_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = Breaker(str(tmp_path), SERVER)
    Path(marks.path(ONE, DOWN)).symlink_to("/dev/null")
    os.utime(marks.path(ONE, DOWN), (time.time() - 60,) * 2, follow_symlinks=False)

    def refuse(_path: str) -> None:
        raise PermissionError

    monkeypatch.setattr("posix.unlink", refuse)
    assert marks.claim(ONE, DOWN)
    assert marks.clear(ONE, DOWN) is None


def test_where_nothing_can_be_locked_more_than_one_may_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    Breaker(str(tmp_path), SERVER).set(ONE, DOWN)
    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        marks = Breaker(str(tmp_path), SERVER)
        age(marks.path(ONE, DOWN), 60, 60)
        assert marks.claim(ONE, DOWN)


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_mark_that_went_between_two_looks_is_not_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_anew: bool
) -> None:
    marks = Breaker(str(tmp_path), SERVER)
    path = Path(marks.path(ONE, DOWN))

    def meanwhile(_descriptor: int, _how: int) -> None:
        path.rename(tmp_path / "gone")
        if made_anew:
            path.write_text(f"{int(time.time())}\n")

    marks.set(ONE, DOWN)
    age(str(path), 60, 60)
    monkeypatch.setattr("fcntl.flock", meanwhile)
    assert marks.claim(ONE, DOWN) == (not made_anew)
    assert marks.clear(ONE, DOWN) is None
    assert path.exists() == made_anew


def test_only_the_mark_that_was_claimed_is_cleared(tmp_path: Path) -> None:
    marks = Breaker(str(tmp_path), SERVER)
    path = Path(marks.path(ONE, DOWN))
    marks.set(ONE, DOWN)
    age(str(path), 60, 60)
    assert marks.claim(ONE, DOWN)
    path.rename(tmp_path / "gone")
    marks.set(OTHER, DOWN)
    path.write_text("")
    assert marks.clear(ONE, DOWN) is None
    assert path.exists()


def test_a_mark_that_somebody_else_took_away_is_gone(tmp_path: Path) -> None:
    marks = Breaker(str(tmp_path), SERVER)
    marks.set(ONE, DOWN)
    age(marks.path(ONE, DOWN), 60, 60)
    assert marks.claim(ONE, DOWN)
    Path(marks.path(ONE, DOWN)).unlink()
    assert marks.clear(ONE, DOWN) is None


def test_without_a_directory_there_are_no_marks(tmp_path: Path) -> None:
    marks = Breaker(str(tmp_path / "none"), SERVER)
    with pytest.raises(FileNotFoundError):
        marks.set(ONE, DOWN)
    assert marks.is_due(ONE, DOWN)
    assert marks.claim(ONE, DOWN)


def test_a_directory_that_is_none_keeps_nobody_from_asking(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    marks = Breaker(str(tmp_path / "file"), SERVER)
    with pytest.raises(NotADirectoryError):
        marks.set(ONE, DOWN)
    assert marks.claim(ONE, DOWN)


def test_names_of_marks_are_safe_and_short(tmp_path: Path) -> None:
    long = parse_url("mysql://u@/g?unix_socket=/" + "x/" * 400 + "s")
    name = Path(Breaker(str(tmp_path), long).path(long.hosts[0], DOWN)).name
    assert len(name) < 120
    assert "/" not in name


def test_a_mark_is_made_by_one_of_many(tmp_path: Path) -> None:
    made = [Breaker(str(tmp_path), SERVER).set(ONE, DOWN) for _ in range(50)]
    assert made.count(True) == 1
