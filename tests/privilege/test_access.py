"""What the user that runs checks may do, found out for him by root, or by himself."""

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from greycheck.privilege import access
from greycheck.privilege.access import Barrier, barrier, barriers, exposure

IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
NOBODY = pwd.getpwnam("nobody")
# Whom tests ask about: root may everything.
USER = NOBODY if IS_ROOT else pwd.getpwuid(os.geteuid())
NO_NUMBER = 2**31 - 3


def test_a_number_without_an_account_has_its_number_for_a_name() -> None:
    found = access.account_of(NO_NUMBER)
    assert (found.pw_name, found.pw_uid, found.pw_gid) == (str(NO_NUMBER), NO_NUMBER, NO_NUMBER)
    assert access.account_of(NOBODY.pw_uid) == NOBODY
    assert access.group_name(NO_NUMBER) == str(NO_NUMBER)


def test_only_root_can_act_as_another() -> None:
    assert access.can_act_as(pwd.getpwuid(os.geteuid()))
    assert access.can_act_as(access.account_of(NO_NUMBER)) == IS_ROOT


# --- acting as another ----------------------------------------------------------------------------


def identity() -> tuple[int, int, list[int]]:
    return os.geteuid(), os.getegid(), sorted(os.getgroups())


@pytest.fixture
def same() -> Iterator[None]:
    """Whoever this process is before the test, it is afterwards."""
    before = identity()
    yield
    assert identity() == before


@pytest.mark.usefixtures("same")
def test_nobody_becomes_another_without_an_account() -> None:
    before = identity()
    with access.acting_as(None):
        assert identity() == before


@as_root
@pytest.mark.usefixtures("same")
def test_acting_as_another_is_with_his_groups_alone() -> None:
    with access.acting_as(NOBODY):
        assert identity() == (NOBODY.pw_uid, NOBODY.pw_gid, [])


def fail_as(account: pwd.struct_passwd) -> None:
    with access.acting_as(account):
        raise ZeroDivisionError(os.geteuid())


@as_root
@pytest.mark.usefixtures("same")
def test_acting_as_another_ends_with_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError, match=str(NOBODY.pw_uid)):
        fail_as(NOBODY)


@pytest.mark.parametrize("account", [None, NOBODY])
def test_a_program_that_is_run_as_another_reads_nothing_and_has_no_terminal(
    account: pwd.struct_passwd | None,
) -> None:
    shown = "id -u; id -G; wc -c; cut -d' ' -f6 </proc/self/stat"
    ran = subprocess.run(  # type: ignore[call-overload]
        ["sh", "-c", shown], stdout=subprocess.PIPE, text=True, check=True, **access.run_as(account)
    )
    user, groups, read, session = ran.stdout.split("\n")[:4]
    if account and IS_ROOT:
        assert (user, groups) == (str(account.pw_uid), str(account.pw_gid))
    else:
        assert user == str(os.geteuid())
    assert read == "0"
    assert int(session) != os.getsid(0)


def test_a_message_says_as_whom_where_it_is_another() -> None:
    assert (access.as_account(None), access.as_account(NOBODY)) == ("", " as nobody")


# --- what is closed -------------------------------------------------------------------------------


def test_each_closed_place_is_named_once_with_what_is_behind_it(place: Path) -> None:
    closed = place / "closed"
    (closed / "deep").mkdir(parents=True)
    files = [closed / "deep" / "one", closed / "two"]
    for path in (*files, place / "open"):
        path.touch()
    closed.chmod(0o600)
    needed = [(path, os.R_OK) for path in (*files, place / "open")]
    found = barriers(needed, USER)
    assert found == [Barrier(closed, tuple(needed[:2]))]
    assert found[0].wanted == 0
    assert found[0].message("him") == (
        f"him may not enter {closed} (mode 0600, owner {pwd.getpwuid(os.geteuid()).pw_name})"
        f" on the way to {files[0]} and 1 more"
    )
    assert barriers(needed[2:], USER) == []


def test_a_file_that_is_closed_is_named_with_what_was_wanted(place: Path) -> None:
    path = place / "file"
    path.touch(mode=0o600 if IS_ROOT else 0o000)
    [found] = barriers([(path, os.R_OK)], USER)
    assert found.message("him").startswith(f"him cannot read {path} (mode ")
    [found] = barriers([(path, os.R_OK | os.W_OK)], USER)
    assert found.message("him").startswith(f"him cannot write {path} (mode ")


def test_of_a_directory_that_cannot_be_written_the_files_in_it_are_not_named(place: Path) -> None:
    directory = place / "store"
    directory.mkdir()
    path = directory / "greycheck.db"
    path.touch(mode=0o444)
    directory.chmod(0o555)
    wanted = os.R_OK | os.W_OK
    needed = [(directory, wanted | os.X_OK), (path, wanted)]
    assert [one.place for one in barriers(needed, USER)] == [directory]
    assert [one.place for one in barriers(needed[1:], USER)] == [path]


def test_what_keeps_the_user_himself_from_a_path_is_told_in_words(place: Path) -> None:
    path = place / "file"
    assert barrier(place, os.R_OK, "he") == ""
    assert barrier(path, os.R_OK, "he") == f"he cannot read {path} (No such file or directory)"
    path.touch()
    assert barrier(path, os.R_OK, "he") == ""


# --- who reads a password -------------------------------------------------------------------------


def test_a_password_that_any_user_can_read_is_told(place: Path) -> None:
    path = place / "password"
    path.touch()
    path.chmod(0o644)
    assert exposure(path, USER).startswith(f"any user can read the password in {path} (mode 0644")
    path.chmod(0o600)
    assert exposure(path, USER) == ""
    assert exposure(place / "nothing", USER) == ""


def test_behind_a_closed_directory_nobody_reads_it(place: Path) -> None:
    path = place / "closed" / "password"
    path.parent.mkdir(mode=0o700)
    path.touch()
    path.chmod(0o644)
    link = place / "link"
    link.symlink_to(path)
    assert (exposure(path, USER), exposure(link, USER)) == ("", "")


@as_root
def test_the_group_of_the_checks_may_read_it_and_no_other(place: Path) -> None:
    path = place / "password"
    path.touch()
    path.chmod(0o640)
    for group in (0, NOBODY.pw_gid):
        os.chown(path, 0, group)
        assert exposure(path, NOBODY) == ""
    told = f"the group {access.group_name(NOBODY.pw_gid)} can read the password in {path}"
    assert exposure(path, None).startswith(told)
    os.chown(path, 0, NO_NUMBER)
    assert exposure(path, NOBODY).startswith(f"the group {NO_NUMBER} can read")
