"""What a check notes of its verdict for ``greycheck stats``, and that it costs nothing else."""

import os
import stat
from pathlib import Path

import pytest

from greycheck import history
from greycheck.envelope import Envelope
from greycheck.policy import Verdict
from greycheck.settings import Settings, read
from tests.support import ACCEPTED, DEFERRED, RECIPIENT, Child, both_ways, on_every_database

NOW = 1_800_000_000


def settings(place: Path, **more: str) -> Settings:
    given = {"CONFIG": "/dev/null", "DATABASE": str(place / "greycheck.db")} | more
    return read({f"GREYCHECK_{name}".encode(): os.fsencode(value) for name, value in given.items()})


def envelope(sender: bytes = b"ann@example.org", recipient: bytes = RECIPIENT) -> Envelope:
    return Envelope("smtpextfork", "192.0.2.1", sender, recipient, first=True)


def spooled(directory: Path) -> list[list[str]]:
    """The lines of the spool in DIRECTORY without their time."""
    path = directory / history.SPOOL
    return [line.split()[1:] for line in path.read_text().splitlines()] if path.exists() else []


@on_every_database
def test_a_check_appends_one_line(any_child: Child) -> None:
    assert any_child.smtpextfork().code == DEFERRED
    any_child.age(600)
    assert any_child.smtpextfork().code == ACCEPTED
    assert any_child.smtpextfork(recipient=b"x@Sub.Example.net").code == ACCEPTED
    new, retry, known = spooled(any_child.store.directory)
    assert new == ["defer", "new", "0", "example.net", "-", "-", "1"]
    assert retry[:2] == ["accept", "retry"]
    assert 600 <= int(retry[2]) < 660
    assert known == ["accept", "client", "0", "sub.example.net", "-", "-", "1"]


def test_senders_and_networks_are_in_it_where_a_setting_says_so(any_child: Child) -> None:
    any_child.smtpextfork(sender=b"Ann@Example.ORG", GREYCHECK_HISTORY_SENDERS="yes")
    any_child.smtpextfork(sender=b"", GREYCHECK_HISTORY_SENDERS="yes")
    found = [line[4:6] for line in spooled(any_child.store.directory)]
    assert found == [["example.org", "192.0.2.0/24"], ["-", "192.0.2.0/24"]]


def test_what_is_only_observed_is_told_apart(any_child: Child) -> None:
    any_child.smtpextfork(GREYCHECK_MODE="observe")
    assert spooled(any_child.store.directory)[0][:2] == ["observe", "new"]


def test_nothing_is_written_without_a_history_or_of_who_is_exempt(any_child: Child) -> None:
    any_child.make_store()
    any_child.smtpextfork(GREYCHECK_HISTORY="0")
    any_child.smtpextfork(RELAYCLIENT="")
    any_child.smtpextfork(GREYCHECK="off")
    assert not (any_child.database.parent / history.SPOOL).exists()


def test_a_fault_is_counted_too(any_child: Child) -> None:
    any_child.database.write_bytes(b"this is no database" * 100)
    any_child.smtpextfork()
    found = spooled(any_child.database.parent)
    expected = [["accept", "error", "0", "example.net", "-", "-", "1"]]
    assert found == expected


@pytest.mark.parametrize("what", ["directory", "pipe", "link"])
def test_what_stands_in_its_place_is_left_alone(any_child: Child, what: str) -> None:
    any_child.make_store()
    path = any_child.database.parent / history.SPOOL
    other = path.with_name("other")
    if what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(other)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if what == "pipe" else -1
    assert any_child.smtpextfork().verdict == (DEFERRED, "new")
    if reader >= 0:
        assert os.read(reader, 100) == b""
        os.close(reader)
    assert not other.exists()


@both_ways
def test_without_a_store_nothing_is_written(child: Child) -> None:
    """Where no setting says which store, no file is made in the root directory."""
    child.smtpextfork(GREYCHECK_DATABASE="nonsense://")
    assert not Path("/", history.SPOOL).exists()


def test_it_has_the_mode_of_the_store_whatever_the_umask_is(place: Path) -> None:
    before = os.umask(0o077)
    try:
        history.append(settings(place, DATABASE_MODE="0660"), b"x\n")
    finally:
        os.umask(before)
    assert stat.S_IMODE((place / history.SPOOL).stat().st_mode) == 0o660


def test_who_may_not_change_its_mode_writes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has made it at the same moment."""

    def refuse(_descriptor: int, _mode: int) -> None:
        raise PermissionError

    monkeypatch.setattr(history.posix, "fchmod", refuse)
    history.append(settings(place), b"x\n")
    assert (place / history.SPOOL).read_bytes() == b"x\n"


def test_it_grows_no_further_than_its_limit(place: Path) -> None:
    path = place / history.SPOOL
    with path.open("wb") as file:
        file.truncate(history.LARGEST)
    history.append(settings(place), b"x\n")
    assert path.stat().st_size == history.LARGEST
    assert os.stat(path).st_blocks == 0


def test_no_line_is_written_of_what_is_not_counted_nor_where_none_can_be(place: Path) -> None:
    accepted = Verdict("accept", "client")
    history.note(settings(place, HISTORY="0"), envelope(), accepted, NOW)
    history.note(settings(place), envelope(), Verdict("accept", "exempt"), NOW)
    assert not spooled(place)
    history.note(settings(place / "gone"), envelope(), accepted, NOW)
    assert not (place / "gone").exists()


def test_the_longest_line_is_short() -> None:
    long = b"\xff" * 1000
    verdict = Verdict("accept", "retry", delayed=10**8)
    kind = history.kind(
        settings(Path("/nowhere"), HISTORY_SENDERS="yes"),
        envelope(b"a@" + long, b"b@" + long),
        verdict,
        NOW,
    )
    assert kind[3] == 10**8
    assert len(history.line(kind, 10**8)) < 2200


def test_only_the_wait_of_a_triplet_that_passes_is_told(place: Path) -> None:
    told = settings(place)
    kinds = [
        history.kind(told, envelope(), Verdict("accept", reason, delayed=400), NOW)
        for reason in ("retry", "pool", "client", "domain")
    ]
    assert [kind[3] for kind in kinds] == [400, 400, 0, 0]


def test_who_has_no_address_has_no_domain_or_network(place: Path) -> None:
    nobody = Envelope("smtpextfork", None, b"", b"postmaster", first=True)
    kind = history.kind(settings(place, HISTORY_SENDERS="yes"), nobody, Verdict("accept", "x"), NOW)
    assert history.line(kind).split()[4:] == [b"-", b"-", b"-", b"1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to misuse")
def test_root_writes_nothing_where_another_may(place: Path) -> None:
    os.chown(place, 65534, -1)
    history.append(settings(place), b"x\n")
    assert list(place.iterdir()) == []
