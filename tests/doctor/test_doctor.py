"""What the doctor finds: each fault simulated, on real launchers, a real store and a /proc of its
own.
"""

import importlib.util
import os
import pwd
import resource
import shutil
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from greycheck import __version__, doctor, settings
from greycheck.cli import install
from greycheck.doctor import (
    contents,
    finding,
    host,
    launchers,
    processes,
    service,
    store,
    supervisor,
    writers,
)
from greycheck.doctor.finding import Finding, Installation
from greycheck.history import LARGEST
from greycheck.hooks import every
from greycheck.hooks.record import Hook
from greycheck.launchers import native, python, trial
from greycheck.metrics.counted import spooled
from greycheck.privilege import access, apart
from greycheck.store.schema import migrate
from tests.doctor.name_server import name_server
from tests.launchers.resident import Resident, Script
from tests.support import ROOT
from tests.test_imports import OF_THE_STORE, OF_UNKNOWN, OURS

ME = pwd.getpwuid(os.geteuid())

# What installs launchers for who this is, but for where.
AGAIN = "greycheck install " + f"--user {ME.pw_name} " * (os.geteuid() == 0)
NOBODY = pwd.getpwnam("nobody")
DAY = 86400

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

Look = Callable[[Installation], Iterator[Finding]]


@pytest.fixture
def installed(
    place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Installation:
    """A sound installation: launchers and a store in a place of its own, and no service."""
    monkeypatch.setenv("GREYCHECK_CONFIG", "/dev/null")
    programs: Path = request.getfixturevalue("launchers")
    (place / "bin").mkdir()
    (place / "proc").mkdir()
    for name in python.PROGRAMS:
        shutil.copy2(programs / name, place / "bin" / name)
    database = place / "greycheck.db"
    migrate.upgrade(f"sqlite:///{database}")
    return Installation(place / "bin", ME, read(database), time.time(), place / "proc")


def read(database: Path | str, **variables: str) -> settings.Settings:
    """The settings of an environment."""
    environ = {
        b"GREYCHECK_CONFIG": b"/dev/null",
        b"GREYCHECK_DATABASE": os.fsencode(database),
        b"GREYCHECK_RESOLVER": name_server().encode(),
    }
    return settings.read(
        environ
        | {f"GREYCHECK_{name}".encode(): value.encode() for name, value in variables.items()}
    )


def database(installed: Installation) -> Path:
    path = migrate.sqlite_path(installed.settings.database)
    assert path
    return path


def execute(installed: Installation, *statements: str) -> None:
    connection = sqlite3.connect(database(installed))
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def only(look: Look, installed: Installation, level: str, about: str = "") -> Finding:
    """The one finding of LEVEL, in what LOOK finds."""
    found = [one for one in look(installed) if one.level == level and about in one.about]
    assert len(found) == 1, found
    return found[0]


# --- the whole ------------------------------------------------------------------------------------


def test_a_sound_installation_has_no_fault_and_no_warning(installed: Installation) -> None:
    findings = doctor.examine(installed)
    assert doctor.is_sound(findings)
    assert [one for one in findings if one.level not in ("ok", "note")] == []
    assert {one.about for one in findings} >= {about for about, _look in doctor.EXAMINATIONS} | {
        "latency",
        "cron",
    }


def test_every_finding_that_is_wrong_says_what_to_do(installed: Installation) -> None:
    for broken in (replace(installed, directory=Path("/nonexistent")), replace(installed, now=0.0)):
        for one in doctor.examine(broken):
            assert one.advice or one.level in ("ok", "note"), one


def test_it_changes_nothing(installed: Installation) -> None:
    execute(installed, "INSERT INTO client VALUES ('192.0.2.1', 1, 1, 1, 1, 0, 0)")
    before = database(installed).read_bytes()
    doctor.examine(installed)
    assert database(installed).read_bytes() == before


def test_what_the_system_refuses_becomes_a_note(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> os.statvfs_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(host.os, "statvfs", refuse)
    assert (
        "could not be looked at: [Errno 13] Permission denied"
        in {
            one.found
            for one in doctor.examine(installed)
            if (one.level, one.about) == ("note", "disk")
        }.pop()
    )


# --- launchers ------------------------------------------------------------------------------------


def test_launchers_are_this_programs_and_run(installed: Installation) -> None:
    found = list(launchers.check_launchers(installed))
    assert [one.level for one in found] == ["ok"] * 4
    assert str(installed.directory / "greycheck") in found[0].found


def test_no_directory_is_a_fault(installed: Installation) -> None:
    found = only(
        launchers.check_launchers, replace(installed, directory=Path("/nonexistent/bin")), "fault"
    )
    assert "/nonexistent/bin: no such directory" in found.found
    assert "--dir" in found.found
    assert found.advice == f"Run: mkdir -p /nonexistent/bin && {AGAIN}/nonexistent/bin"


def test_no_launchers_are_a_fault(installed: Installation) -> None:
    for path in installed.programs:
        path.unlink()
    assert "no launcher here" in only(launchers.check_launchers, installed, "fault").found


@pytest.mark.parametrize("hook", every(), ids=lambda hook: hook.NAME)
def test_one_launcher_that_is_missing_costs_its_hook(installed: Installation, hook: Hook) -> None:
    path = installed.directory / hook.PROGRAM
    path.unlink()
    found = only(launchers.check_launchers, installed, "fault").found
    assert found == f"{path}: not there: where {hook.TITLE} runs it, {hook.IF_MISSING}"


def test_a_link_to_a_launcher_that_is_gone_is_a_fault(installed: Installation) -> None:
    path = installed.programs[1]
    path.rename(path.with_name("gone"))
    path.symlink_to("gone")
    assert [one.level for one in launchers.check_launchers(installed)].count("fault") == 0
    path.with_name("gone").unlink()
    found = only(launchers.check_launchers, installed, "fault")
    assert found.found == f"{path}: a link to gone, which is not there"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (f"greycheck {__version__},", "greycheck 0.0.1,", "its version is 0.0.1"),
        ("try:\n", "try:\n    # mine\n", "it was edited"),
        ("    main(('", "    main(('/old", "its commands' interpreter is /old"),
        ("extend([", "extend(['/old', ", "its place of drivers is '/old', "),
    ],
)
def test_a_launcher_that_differs_is_told_how(
    installed: Installation, old: str, new: str, says: str
) -> None:
    path = installed.programs[0]
    path.write_text(path.read_text().replace(old, new, 1))
    found = only(launchers.check_launchers, installed, "warning")
    assert says in found.found
    assert found.advice == f"Run: {AGAIN}{installed.directory}"


def test_a_launcher_of_another_package_is_named(installed: Installation, place: Path) -> None:
    (place / "other").symlink_to(python.package().parent)
    path = installed.programs[0]
    path.write_text(
        path.read_text().replace(repr(str(python.package().parent)), repr(f"{place}/other"))
    )
    assert (
        f"its package is {place}/other"
        in only(launchers.check_launchers, installed, "warning").found
    )


def test_a_launcher_of_another_interpreter_is_named(installed: Installation, place: Path) -> None:
    (place / "python").symlink_to(python.interpreter())
    path = installed.programs[0]
    path.write_text(path.read_text().replace(python.interpreter(), f"{place}/python", 1))
    assert (
        f"its interpreter is {place}/python"
        in only(launchers.check_launchers, installed, "warning").found
    )


def test_the_interpreter_behind_sh_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "interpreter", lambda: "/with spaces/python")
    assert launchers.named_interpreter(python.launcher()) == "'/with spaces/python'"
    assert launchers.differences(python.launcher()) == []


def test_a_launcher_whose_interpreter_is_gone_is_a_fault(installed: Installation) -> None:
    path = installed.programs[0]
    path.write_text(path.read_text().replace(python.interpreter(), "/nonexistent/python", 1))
    found = only(launchers.check_launchers, installed, "fault")
    assert found.found == f"{path}: does not run as {ME.pw_name}: No such file or directory"
    assert not doctor.is_sound([found])


def test_a_launcher_that_hangs_is_a_fault(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TRIAL_TIME", 0.2)
    installed.programs[0].write_text(f"#!/bin/sh\n{python.MARK} 1, \nexec sleep 5\n")
    assert (
        f"does not end as {ME.pw_name} within 0.2s"
        in only(launchers.check_launchers, installed, "fault").found
    )


def test_a_foreign_program_is_named_and_not_run(installed: Installation, place: Path) -> None:
    installed.programs[1].write_text(f"#!/bin/sh\ntouch {place}/ran\n")
    assert (
        "not written by greycheck install"
        in only(launchers.check_launchers, installed, "warning").found
    )
    assert not (place / "ran").exists()


def test_the_script_that_lifts_limits_is_known(installed: Installation) -> None:
    installed.programs[1].write_text("#!/bin/sh\n# qmail-checkenv.sh: for those who cannot link\n")
    assert (
        "the script qmail-checkenv.sh" in only(launchers.check_launchers, installed, "note").found
    )


def test_a_launcher_that_cannot_be_read_is_told(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    def refuse_marks(_path: Path) -> dict[str, str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(native, "marks_of", refuse_marks)
    assert not launchers.is_compiled(installed.programs[0])
    monkeypatch.setattr(python, "is_ours", refuse)
    monkeypatch.setattr(launchers.os, "access", lambda _path, _mode: False)
    found = launchers.check_launcher(installed.programs[0], "again", installed)
    assert (found.level, found.advice) == ("warning", "again")
    assert f"cannot be read by {ME.pw_name}" in found.found


# --- launchers in C -------------------------------------------------------------------------------


@pytest.fixture
def compiled(installed: Installation, place: Path) -> Installation:
    """A sound installation of launchers in C; the resident's socket is theirs alone."""
    found = read(database(installed), SOCKET=f"{place}/socket")
    install.put_native(
        installed.programs, native.compile_program(installed.directory / native.BEHIND, found)[0]
    )
    return replace(installed, settings=found)


def test_launchers_in_c_and_in_python_are_both_looked_at(
    compiled: Installation, place: Path
) -> None:
    with Resident(place / "socket", b"action=DUNNO\n\n") as resident:
        found = list(launchers.check_launchers(compiled))
    assert [(one.level, one.about) for one in found] == [("ok", "launchers")] * 8 + [
        ("ok", "resident")
    ]
    assert (
        found[0].found == f"{compiled.directory}/greycheck: version {__version__}, compiled, runs"
    )
    assert (
        found[len(python.PROGRAMS)].found
        == f"{compiled.directory}/greycheck.d/greycheck: version {__version__}, runs"
    )
    assert f"{place}/socket: answers after " in found[-1].found
    assert resident.asked["protocol_state"] == "CONNECT", "a resident must have nothing to decide"


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"", "no answer"),
        (None, ""),
        (b"HTTP/1.1 400\n\n", "no answer"),
        (Resident.hang, "no answer"),
    ],
)
def test_a_resident_that_gives_no_answer_costs_time(
    compiled: Installation, place: Path, said: bytes | Script | None, complaint: str
) -> None:
    with Resident(place / "socket", said):
        found = only(launchers.check_launchers, compiled, "warning")
    assert found.about == "resident"
    assert f"{place}/socket: {complaint}" in found.found
    assert found.found.endswith(": every check takes as long as Python takes to start")
    assert found.advice == supervisor.start(compiled)


@as_root
@pytest.mark.parametrize(("mode", "level"), [(0o666, "ok"), (0o600, "warning")])
def test_the_resident_is_asked_as_the_user_of_checks(
    compiled: Installation, place: Path, mode: int, level: str
) -> None:
    with Resident(place / "socket", b"action=DUNNO\n\n"):
        (place / "socket").chmod(mode)
        found = launchers.check_resident(f"{place}/socket", replace(compiled, account=NOBODY))
    assert found.level == level
    if level != "ok":
        assert f"socket_owner = :{access.group_name(NOBODY.pw_gid)}" in found.advice
    place.chmod(0o700)
    assert launchers.check_resident(
        f"{place}/socket", replace(compiled, account=NOBODY)
    ).advice == (f"Run: chmod o+x {place}")


def test_a_launcher_in_c_that_differs_is_told_how(compiled: Installation, place: Path) -> None:
    other = read(database(compiled), SOCKET="/other", SOCKET_PATIENCE="2s")
    found = [
        one
        for one in launchers.check_launchers(replace(compiled, settings=other))
        if one.level == "warning"
    ]
    assert found[0].found == (
        f"{compiled.directory}/greycheck: compiled, runs, but its socket is {place}/socket, and"
        " would be /other now;"
        f" its patience is 1, and would be 2 now (and so {', '.join(python.PROGRAMS[1:])})"
    )
    assert len(found) == 2, "the resident besides"
    assert (
        found[0].advice
        == f"Run: {AGAIN.replace('install', 'install --native')}{compiled.directory}"
    )


def test_a_launcher_in_c_from_another_source_is_told(compiled: Installation, place: Path) -> None:
    path = compiled.programs[0]
    content = path.read_bytes()
    digest = native.marks_of(path)["source"]
    path.write_bytes(content.replace(digest.encode(), b"0" * len(digest)))
    assert native.differences(path, compiled.settings) == [
        f"its source is {'0' * 16}, and would be {digest} now"
    ]
    path.write_bytes(
        content.replace(f"\nversion {__version__}\n".encode(), b"\n" * (len(__version__) + 10))
    )
    assert native.differences(path, compiled.settings) == [
        f"its version is unknown, and would be {__version__} now"
    ]


def test_a_launcher_in_c_without_the_one_in_python_is_a_fault(compiled: Installation) -> None:
    behind = compiled.directory / native.BEHIND / "greycheck-spp"
    behind.unlink()
    faults = [one.found for one in launchers.check_launchers(compiled) if one.level == "fault"]
    assert faults[0] == f"{behind}: not there; no check is made where the resident fails"
    assert faults[1].startswith(
        f"{compiled.directory}/greycheck-spp: does not run as {ME.pw_name}: exit code 0: "
    )
    assert len(faults) == 2


@as_root
def test_permissions_of_launchers_in_python_count_too(compiled: Installation) -> None:
    (compiled.directory / native.BEHIND).chmod(0o700)
    found = [one.found for one in launchers.check_permissions(replace(compiled, account=NOBODY))]
    assert any(f"nobody may not enter {compiled.directory}/greycheck.d " in one for one in found), (
        found
    )


# --- modules --------------------------------------------------------------------------------------


def test_it_knows_every_module_that_a_check_loads() -> None:
    known = set(launchers.modules())
    named = {f"greycheck.hooks.{hook.NAME}" for hook in every()}
    assert known >= OURS | OF_THE_STORE | OF_UNKNOWN | named
    assert not any(
        name.startswith(("greycheck.cli", "greycheck.doctor", "greycheck.store.schema.migrate"))
        for name in known
    )


@pytest.fixture
def source(place: Path) -> Path:
    """A module that is compiled."""
    path = place / "module.py"
    path.write_text("x = 1\n")
    compile_module(path)
    assert launchers.staleness(path) == ""
    return path


def compile_module(path: Path, mode: str = "TIMESTAMP") -> None:
    import py_compile

    invalidation = py_compile.PycInvalidationMode[mode]
    py_compile.compile(
        str(path), cfile=str(launchers.compiled_path(path)), invalidation_mode=invalidation
    )


def test_a_module_that_is_not_compiled_is_seen(source: Path) -> None:
    launchers.compiled_path(source).unlink()
    assert launchers.staleness(source) == "not compiled"


@pytest.mark.parametrize("change", ["mtime", "size"])
def test_a_module_that_changed_is_seen(source: Path, change: str) -> None:
    status = source.stat()
    if change == "size":
        source.write_text("x = 100\n")
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        os.utime(source, (1, 1))
    assert launchers.staleness(source) == "older than its source"


def test_a_module_of_another_python_is_seen(source: Path) -> None:
    path = launchers.compiled_path(source)
    path.write_bytes(b"\0\0\r\n" + path.read_bytes()[4:])
    assert launchers.staleness(source) == "for another Python"
    path.write_bytes(importlib.util.MAGIC_NUMBER)
    assert launchers.staleness(source) == "cut short"


def test_a_module_compiled_by_hash_is_as_good(source: Path) -> None:
    compile_module(source, "CHECKED_HASH")
    os.utime(source, (1, 1))
    assert launchers.staleness(source) == ""
    source.write_text("x = 2\n")
    assert launchers.staleness(source) == "older than its source"
    compile_module(source, "UNCHECKED_HASH")
    assert launchers.staleness(source) == ""


def test_what_is_no_file_is_told(source: Path) -> None:
    launchers.compiled_path(source).unlink()
    launchers.compiled_path(source).mkdir()
    assert "Is a directory" in launchers.staleness(source)


def test_stale_modules_are_a_warning(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        launchers, "staleness", lambda source: "not compiled" if source.stem != "child" else ""
    )
    found = only(launchers.check_modules, installed, "warning")
    assert (
        f"of {len(launchers.modules())} must be compiled at every mail: greycheck (not compiled)"
        in found.found
    )
    assert " more" in found.found
    assert found.advice.endswith(f"{AGAIN}{installed.directory}")


def test_compiled_modules_are_well(installed: Installation) -> None:
    subprocess.run(
        [python.interpreter(), "-m", "compileall", "-q", str(python.package())], check=False
    )
    assert "compiled and up to date" in only(launchers.check_modules, installed, "ok").found


# --- permissions ----------------------------------------------------------------------------------


def test_without_an_account_permissions_are_not_looked_at(installed: Installation) -> None:
    assert (
        "--user"
        in only(launchers.check_permissions, replace(installed, account=None), "note").advice
    )


def test_who_is_not_root_is_told(installed: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.os, "geteuid", lambda: 12345)
    found = only(launchers.check_permissions, replace(installed, account=NOBODY), "note")
    assert "user 12345 cannot tell what nobody may do" in found.found


@as_root
def test_what_the_user_cannot_write_is_a_fault(installed: Installation) -> None:
    found = list(launchers.check_permissions(replace(installed, account=NOBODY)))
    assert {one.level for one in found} == {"fault"}
    assert [one.found.partition(" (mode")[0] for one in found] == [
        f"nobody cannot write {database(installed).parent}"
    ]


@as_root
def test_a_log_of_the_store_that_the_user_cannot_write_is_a_fault(installed: Installation) -> None:
    path = database(installed)
    os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    os.chown(path.parent, NOBODY.pw_uid, NOBODY.pw_gid)
    path.with_name(path.name + "-wal").touch(0o600)
    found = only(launchers.check_permissions, replace(installed, account=NOBODY), "fault")
    assert f"nobody cannot write {path}-wal" in found.found


@as_root
def test_compiled_modules_that_the_user_cannot_read_are_a_warning(
    installed: Installation, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "modules", lambda: {"module": source})
    launchers.compiled_path(source).chmod(0o600)
    for path in (database(installed), database(installed).parent):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    found = only(launchers.check_permissions, replace(installed, account=NOBODY), "warning")
    assert f"nobody cannot read {launchers.compiled_path(source)}" in found.found


# --- settings -------------------------------------------------------------------------------------


def look_at(**variables: str) -> list[Finding]:
    installation = Installation(Path("/"), None, read("/tmp/x.db", **variables), 0)
    return list(doctor.check_settings(installation))


def test_every_setting_that_cannot_be_used_is_a_warning() -> None:
    found = [one.found for one in look_at(DELAY="soon", NOSUCH="1") if one.level == "warning"]
    assert found[0].startswith("GREYCHECK_DELAY: delay = soon: not a duration")
    assert found[1] == "GREYCHECK_NOSUCH: nosuch: no such setting"


@pytest.mark.parametrize(
    ("variables", "level", "says"),
    [
        ({"MODE": "observe"}, "note", "mode = observe: verdicts are only logged"),
        (
            {"OBSERVE_DOMAINS": "a.example, b.example"},
            "note",
            "mail to a.example, b.example are only logged",
        ),
        ({"OBSERVE_PERCENT": "25"}, "note", "25% of client networks"),
        ({"RETRY_WINDOW": "1h"}, "warning", "retry_window 1h"),
        ({"LIFETIME": "2d"}, "warning", "lifetime 2d: steady senders"),
        ({"DEADLINE": "5m"}, "warning", "deadline 5m: SMTP clients wait 5m"),
    ],
)
def test_settings_worth_a_word_are_told(variables: dict[str, str], level: str, says: str) -> None:
    assert any(one.level == level and says in one.found for one in look_at(**variables))


def test_checking_switched_off_is_told() -> None:
    found = settings.read({b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK": b"off"})
    assert (
        "GREYCHECK=off"
        in next(doctor.check_settings(Installation(Path("/"), None, found, 0))).found
    )


def test_default_settings_are_well() -> None:
    assert [one.level for one in look_at()] == ["ok"]


# --- disk and clock -------------------------------------------------------------------------------


@pytest.mark.parametrize(("megabytes", "level"), [(101, "ok"), (50, "warning"), (4, "fault")])
def test_a_full_disk_is_seen_coming(
    installed: Installation, monkeypatch: pytest.MonkeyPatch, megabytes: int, level: str
) -> None:
    status = os.statvfs_result((1000, 1000, 0, 0, megabytes * 1000, 0, 0, 0, 0, 255))
    monkeypatch.setattr(host.os, "statvfs", lambda _path: status)
    found = list(host.check_space(installed))
    assert [one.level for one in found] == [level]
    assert f"{megabytes} MB free" in found[0].found


@pytest.mark.parametrize(("inodes", "level"), [(1000, "ok"), (999, "warning"), (9, "fault")])
def test_a_disk_without_inodes_is_seen_coming(
    installed: Installation, monkeypatch: pytest.MonkeyPatch, inodes: int, level: str
) -> None:
    status = os.statvfs_result((1000, 1000, 0, 0, 10**6, 10**6, 0, inodes, 0, 255))
    monkeypatch.setattr(host.os, "statvfs", lambda _path: status)
    assert [one.level for one in host.check_space(installed)] == ["ok", level]


def test_a_server_has_its_own_disk(installed: Installation) -> None:
    assert list(host.check_space(replace(installed, settings=read("postgresql://host/db")))) == []


def test_a_clock_that_was_never_set_is_a_fault(installed: Installation) -> None:
    assert "1970-01-02" in only(host.check_clock, replace(installed, now=DAY), "fault").found


# --- the store ------------------------------------------------------------------------------------


def test_a_store_without_a_directory_is_a_fault(installed: Installation) -> None:
    broken = replace(installed, settings=read("/nonexistent/greycheck.db"))
    assert only(store.check_store, broken, "fault").found == "/nonexistent: no such directory"


def test_a_store_that_the_first_mail_makes_is_no_fault(
    installed: Installation, place: Path
) -> None:
    waiting = replace(installed, settings=read(place / "none.db"))
    assert "the first mail makes it" in only(store.check_store, waiting, "note").found
    (place / "none.db").touch(0o600)
    assert "the first mail makes the tables" in only(store.check_store, waiting, "note").found


def test_a_store_that_this_user_cannot_open_is_a_note(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.os, "access", lambda _path, _mode: False)
    found = only(store.check_store, installed, "note")
    assert f"{ME.pw_name} cannot look into it" in found.found


def test_a_store_behind_a_closed_directory_is_a_note(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path == database(installed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    assert "cannot see it: Permission denied" in only(store.check_store, installed, "note").found


def test_a_file_that_is_no_database_is_a_fault(installed: Installation) -> None:
    database(installed).write_bytes(b"nonsense" * 1000)
    found = [one for one in doctor.examine(installed) if one.level == "fault"]
    assert len(found) == 1
    assert found[0].found.startswith(f"sqlite:///{database(installed)}: file is not a database")


@pytest.mark.parametrize(
    ("revision", "says"),
    [
        ("0000", "older than this program's {}: "),
        ("9999", "newer than this program's {}: install"),
    ],
)
def test_a_schema_of_another_version_is_a_fault(
    installed: Installation, revision: str, says: str
) -> None:
    execute(installed, f"UPDATE alembic_version SET version_num = '{revision}'")
    found = only(store.check_store, installed, "fault")
    assert f"the schema is at {revision}, {says.format(migrate.head())}" in found.found
    assert found.found.endswith(": every check answers by on_error until then")
    assert found.advice == ("Run: greycheck db upgrade" if revision == "0000" else "")


def test_a_newer_schema_that_this_program_can_use_is_a_note(installed: Installation) -> None:
    execute(installed, f"UPDATE alembic_version SET version_num = '9999_{migrate.head()[:4]}'")
    assert "which can use it" in only(store.check_store, installed, "note").found
    assert "latency" in {one.about for one in store.check_store(installed)}


def test_a_table_that_is_gone_is_a_fault(installed: Installation) -> None:
    execute(installed, "DROP TABLE client")
    assert "no such table: client" in {
        one.found for one in doctor.examine(installed) if one.level == "fault"
    }


def test_a_database_that_no_check_can_use_is_a_fault(installed: Installation) -> None:
    unusable = replace(installed, settings=read("nosuch://user:secret@host/db"))
    found = only(store.check_store, unusable, "fault")
    assert found.found == "there is no store: every check answers by on_error (accept)"
    everything = doctor.examine(unusable)
    assert [one.about for one in everything if one.level == "fault"] == ["store"]
    assert any(
        "nosuch: no such database here" in one.found
        for one in everything
        if one.about == "settings"
    )
    assert not any("secret" in one.found + one.advice for one in everything)


def test_another_journal_mode_is_a_warning(installed: Installation) -> None:
    execute(installed, "PRAGMA journal_mode = DELETE")
    assert "journal mode delete" in only(store.check_store, installed, "warning").found
    migrate.upgrade(installed.settings.database)
    assert "journal mode WAL" in {one.found for one in store.check_store(installed)}


def test_a_store_that_anybody_can_read_is_a_warning(installed: Installation) -> None:
    database(installed).chmod(0o644)
    found = only(store.check_store, installed, "warning")
    assert "(mode 0644" in found.found
    assert found.advice == f"Run: chmod 0600 {database(installed)}"


def test_a_mode_that_is_not_the_settings_is_a_note(installed: Installation) -> None:
    database(installed).chmod(0o660)
    assert "database_mode is 0600" in only(store.check_store, installed, "note").found


def test_rows_of_the_future_are_a_warning(installed: Installation) -> None:
    ahead = int(installed.now) + 3600
    execute(
        installed,
        f"INSERT INTO triplet VALUES"
        f" (x'00', 'n', 's', 'r', {ahead}, {ahead}, 0, 0, NULL, {ahead}, NULL, 0)",
        f"INSERT INTO client VALUES ('192.0.2.1', 1, {ahead}, {ahead - 60}, {ahead}, 0, 0)",
    )
    found = only(store.check_store, installed, "warning", "clock")
    assert found.found.startswith("2 rows are of the future, by 3600s at most")
    assert found.advice == "Run: timedatectl set-ntp true"


def test_rows_of_the_future_are_looked_for_within_bounds(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "LOOKED", 10)
    ahead = int(installed.now) + 3600
    rows = [f"('192.0.2.{n}', 1, {n}, {ahead if n > 5 else 1}, {ahead}, 0, 0)" for n in range(9)]
    execute(installed, f"INSERT INTO client VALUES {', '.join(rows)}")
    assert only(store.check_store, installed, "warning", "clock").found.startswith(
        "3 rows are of the future, by 36"
    )
    more = [f"('198.51.100.{n}', 1, {n}, 1, {ahead}, 0, 0)" for n in range(9)]
    execute(installed, f"INSERT INTO client VALUES {', '.join(more)}")
    found = only(store.check_store, installed, "warning", "clock").found
    assert found.startswith("at least 3 rows are of the future, by 3600s:")
    execute(installed, "UPDATE client SET last_seen = 1")
    found = only(store.check_store, installed, "ok", "clock").found
    assert found == "no row of 10 that were looked at is of the future"


@pytest.mark.parametrize(
    "client", ["172.18.0.1", "10.0.0.9", "127.0.0.1", "100.64.0.1", "fd00::7", "fe80::1", "::1"]
)
def test_clients_at_an_address_that_many_share_are_a_warning(
    installed: Installation, client: str
) -> None:
    there = (
        "192.0.2.1",
        "172.32.0.1",
        "100.128.0.1",
        "fc::1",
        "fd::1",
        "::10:1",
        "2001:db8::1",
        client,
    )
    execute(
        installed, *(f"INSERT INTO client VALUES ('{each}', 1, 1, 1, 1, 0, 0)" for each in there)
    )
    found = only(store.check_store, installed, "warning", "clients")
    assert found.found.startswith(
        f"clients come from {client}: behind NAT or a container's network"
    )
    assert "tcpserver" in found.advice
    execute(installed, f"DELETE FROM client WHERE address = '{client}'")
    assert [one for one in store.check_store(installed) if one.about == "clients"] == []


def test_of_many_clients_that_share_addresses_some_are_named(installed: Installation) -> None:
    rows = (f"('10.0.{n >> 8}.{n & 255}', 1, 1, 1, 1, 0, 0)" for n in range(2000))
    execute(installed, f"INSERT INTO client VALUES {', '.join(rows)}")
    assert (
        only(store.check_store, installed, "warning", "clients").found.count("10.0.")
        == contents.SHARED
    )


def test_a_host_a_second_ahead_is_none(installed: Installation) -> None:
    ahead = int(installed.now) + 2
    execute(
        installed, f"INSERT INTO client VALUES ('192.0.2.1', 1, {ahead}, {ahead}, {ahead}, 0, 0)"
    )
    assert only(store.check_store, installed, "ok", "clock").found == "no row is of the future"


@pytest.mark.parametrize(("age", "level"), [(DAY - 60, "ok"), (DAY + 60, "warning")])
def test_rows_that_expired_long_ago_tell_that_cron_does_not_run(
    installed: Installation, age: int, level: str
) -> None:
    execute(
        installed,
        f"INSERT INTO client VALUES ('192.0.2.1', 1, 1, 1, {int(installed.now) - age}, 0, 0)",
    )
    found = only(store.check_store, installed, level, "cron")
    if level == "warning":
        assert "(client: 1)" in found.found
        assert (
            found.advice
            == f"Run: (crontab -u {ME.pw_name} -l; echo '7 * * * * {installed.directory}/greycheck"
            " expire')"
            f" | crontab -u {ME.pw_name} -"
        )


def test_the_stores_latency_is_told_and_nothing_is_written(installed: Installation) -> None:
    found = only(store.check_store, installed, "ok", "latency")
    assert found.found.count(" ms") == 3
    assert "of a deadline of 5s" in found.found
    connection = sqlite3.connect(database(installed))
    assert connection.execute("SELECT count(*) FROM triplet").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize(("seconds", "level"), [(0.9, "ok"), (2.0, "warning"), (4.5, "fault")])
def test_a_slow_store_is_held_against_the_deadline(
    installed: Installation, monkeypatch: pytest.MonkeyPatch, seconds: float, level: str
) -> None:
    monkeypatch.setattr(store, "time_write", lambda _engine, _patience: seconds)
    assert (
        f"a write {seconds * 1000:.1f} ms"
        in only(store.check_store, installed, level, "latency").found
    )


def test_a_store_that_somebody_holds_is_a_fault(installed: Installation) -> None:
    holder = sqlite3.connect(database(installed), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    short = replace(installed, settings=read(database(installed), DEADLINE="1s"))
    found = only(store.check_store, short, "fault")
    holder.close()
    assert found.found.startswith("no write within 0.8s: database is locked")
    assert "fuser" in found.advice


# --- the running service --------------------------------------------------------------------------

LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units\nMax address space  "
    "       {} unlimited bytes\n"
)


def run(
    installed: Installation,
    pid: int,
    arguments: str,
    memory: str = "20000000",
    environ: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """A process in the /proc of this test."""
    directory = installed.proc / str(pid)
    directory.mkdir()
    (directory / "cmdline").write_bytes(
        b"".join(word.encode() + b"\0" for word in arguments.split())
    )
    (directory / "limits").write_text(LIMITS.format(memory))
    pairs = {"PATH": "/bin", "PASSWORD": "secret"} | (
        {"CHECKENV": ""} if environ is None else environ
    )
    pairs.setdefault("GREYCHECK_CONFIG", "/dev/null")
    pairs.setdefault("GREYCHECK_DATABASE", str(database(installed)))
    (directory / "environ").write_text(
        "".join(f"{name}={value}\0" for name, value in pairs.items())
    )
    (directory / "cwd").symlink_to(cwd or "/")


TCPSERVER = "/usr/bin/tcpserver -v -R 0 smtp /var/qmail/bin/qmail-smtpd"


def levels(installed: Installation) -> set[str]:
    return {one.level for one in service.check_services(installed)}


def test_no_service_is_a_note(installed: Installation) -> None:
    run(installed, 10, "/usr/bin/tcpserver 0 pop3 qmail-popup")
    run(installed, 11, "vi qmail-smtpd")
    run(installed, 12, "")
    (installed.proc / "13").mkdir()
    (installed.proc / "self").mkdir()
    assert "is running" in only(service.check_services, installed, "note").found


@pytest.mark.parametrize("name", ["/usr/bin/tcpserver 0 smtp fixcrio", "sslserver -e", ""])
def test_a_service_that_is_well_is_found(installed: Installation, name: str) -> None:
    run(installed, 10, f"{name} /var/qmail/bin/qmail-smtpd".strip())
    found = list(service.check_services(installed))
    assert {one.level for one in found} == {"ok"}
    assert any("(10): CHECKENV switched on" in one.found for one in found)


def test_many_sessions_are_one_finding(installed: Installation) -> None:
    run(installed, 10, TCPSERVER)
    alone = len(list(service.check_services(installed)))
    run(installed, 11, TCPSERVER)
    assert len(list(service.check_services(installed))) == alone


@pytest.mark.parametrize(
    ("memory", "level"),
    [
        ("unlimited", "ok"),
        ("18000000", "ok"),
        ("17999999", "warning"),
        ("17300000", "warning"),
        ("17299999", "fault"),
    ],
)
def test_a_soft_limit_is_held_against_what_a_check_needs(
    installed: Installation, memory: str, level: str
) -> None:
    run(installed, 10, TCPSERVER, memory)
    found = only(service.check_services, installed, level, "memory")
    assert level == "ok" or "softlimit -m 20000000" in found.advice


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_script_makes_a_small_limit_harmless_for_checkenv_alone(
    installed: Installation, place: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    (place / "qmail" / "bin").mkdir(parents=True)
    monkeypatch.setattr(service, "QMAIL_HOME", place / "qmail")
    script = place / "qmail" / "bin" / "qmail-checkenv" if elsewhere else installed.programs[1]
    shutil.copy(ROOT / "contrib" / "qmail-checkenv.sh", script)
    run(installed, 10, TCPSERVER, "5000000")
    assert (
        "which qmail-checkenv.sh lifts"
        in only(service.check_services, installed, "note", "memory").found
    )
    run(installed, 11, TCPSERVER, "5000000", {"SMTPEXTFORK": str(installed.programs[0])})
    assert only(service.check_services, installed, "fault", "memory")


def test_an_environment_that_cannot_be_read_is_a_note(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(installed, 10, TCPSERVER)
    real = processes.read

    def refuse(path: Path, most: int) -> bytes:
        if path.name == "environ":
            raise PermissionError(13, "Permission denied")
        return real(path, most)

    monkeypatch.setattr(processes, "read", refuse)
    assert "its environment cannot be read" in only(service.check_services, installed, "note").found


@as_root
def test_a_service_of_another_user_is_a_warning(installed: Installation) -> None:
    run(installed, 10, TCPSERVER)
    os.chown(installed.proc / "10", NOBODY.pw_uid, -1)
    found = only(service.check_services, installed, "warning")
    assert f"runs as nobody, permissions were looked at for {ME.pw_name}" in found.found
    assert found.advice == "If it serves mail, run: greycheck doctor --user nobody"


def test_a_service_without_a_hook_is_a_warning_and_a_session_is_not(
    installed: Installation,
) -> None:
    run(installed, 10, TCPSERVER, environ={})
    run(installed, 11, "qmail-smtpd", environ={})
    assert "no hook's variable" in only(service.check_services, installed, "warning").found


def test_a_plugin_of_qmail_spp_is_a_hook(
    installed: Installation, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QMAIL_HOME", place)
    (place / "control").mkdir()
    (place / "control" / "smtpplugins").write_text("[rcpt]\n/var/qmail/bin/greycheck-spp\n")
    run(installed, 10, TCPSERVER, environ={})
    assert any("qmail-spp switched on" in one.found for one in service.check_services(installed))


def test_a_program_of_rcptcheck_that_is_not_there_is_a_fault(installed: Installation) -> None:
    run(installed, 10, TCPSERVER, environ={"RCPTCHECK": "/nonexistent"})
    found = only(service.check_services, installed, "fault").found
    assert "RCPTCHECK: /nonexistent: no such program: all mail is deferred" in found


def compiled_rules(everybody: bytes = b"", others: bytes = b"") -> bytes:
    """Rules as tcprules compiles them: for EVERYBODY, and for OTHERS at one address."""
    records = b""
    for key, data in ((b"192.0.2.1", others), (b"", everybody)):
        place, records = (
            2048 + len(records),
            records + struct.pack("<II", len(key), len(data)) + key + data,
        )
    # Of the other table of a cdb nothing is read.
    end = 2048 + len(records)
    header = b"".join(struct.pack("<II", end, 2 * (number == 5381 % 256)) for number in range(256))
    return header + records + struct.pack("<IIII", 5381, 0, 5381, place)


def with_rules(
    installed: Installation, rules: bytes, environ: dict[str, str] | None = None
) -> list[Finding]:
    """What is found of a server with RULES and ENVIRON."""
    (installed.proc / "tcp.cdb").write_bytes(rules)
    run(
        installed,
        10,
        "tcpserver -x tcp.cdb 0 smtp qmail-smtpd",
        environ=environ or {},
        cwd=installed.proc,
    )
    return list(service.check_services(installed))


def faults(found: list[Finding]) -> list[str]:
    return [one.found.partition(": ")[2] for one in found if one.level == "fault"]


@pytest.mark.parametrize("which", ["everybody", "others"])
@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            b"+SMTPEXTFORK=/bin/true,/gone/x\0",
            "SMTPEXTFORK: /gone/x: no such program: all mail is accepted",
        ),
        (
            b"+SMTPEXTFORKR=/gone/x\0",
            "SMTPEXTFORKR: /gone/x: no such program: all mail is accepted",
        ),
        (b"+RCPTCHECK=/gone/x\0", "RCPTCHECK: /gone/x: no such program: all mail is deferred"),
    ],
)
def test_a_program_of_the_rules_that_is_not_there_is_a_fault(
    installed: Installation, which: str, rule: bytes, says: str
) -> None:
    assert faults(with_rules(installed, compiled_rules(**{which: rule}))) == [says]
    assert not doctor.is_sound(doctor.examine(installed))


def test_a_program_that_is_gone_is_installed_or_another_is_named(
    installed: Installation, place: Path
) -> None:
    (place / "other").mkdir()
    programs = f"/gone/x,/gone/greycheck,{place}/other/greycheck"
    run(installed, 10, TCPSERVER, environ={"SMTPEXTFORK": programs, "RCPTCHECK": "/gone/x"})
    assert [one.advice for one in service.check_services(installed) if one.level == "fault"] == [
        f"Let RCPTCHECK name {installed.directory}/greycheck-rcptcheck",
        f"Let SMTPEXTFORK name {installed.directory}/greycheck",
        f"Run: mkdir -p /gone && {AGAIN}/gone",
        f"Run: {AGAIN}{place}/other",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's commands are root's")
def test_root_makes_no_directory_where_another_user_may_put_a_link(
    installed: Installation, place: Path
) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY.pw_uid, NOBODY.pw_gid)
    (theirs / "link").symlink_to("/root")
    for directory in (theirs / "new", theirs / "link/new"):
        missing = service.Missing(every()[0], "SMTPEXTFORK", f"{directory}/greycheck", "")
        assert missing.advice(installed).startswith("Let SMTPEXTFORK name ")


def test_no_command_is_advised_that_others_made_up(installed: Installation) -> None:
    run(installed, 10, TCPSERVER, environ={"SMTPEXTFORK": f"/gone';id;'/{python.PROGRAMS[0]}"})
    assert [one.advice for one in service.check_services(installed) if one.level == "fault"] == [
        f"Let SMTPEXTFORK name {installed.directory}/greycheck"
    ]
    assert finding.run("rm /x\x1b[2J") == ""


def test_checkenv_of_the_rules_without_its_program_is_a_fault(installed: Installation) -> None:
    path = installed.programs[1]
    path.unlink()
    found = with_rules(installed, compiled_rules(others=b"+CHECKENV=\0"))
    assert faults(found) == [f"CHECKENV: {path}: no such program: all mail is stopped"]


def test_a_plugin_that_is_not_there_is_a_fault(
    installed: Installation, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QMAIL_HOME", place)
    (place / "control").mkdir()
    (place / "control" / "smtpplugins").write_text(
        "# mine\n[rcpt]\n:true\n/bin/true\n/gone/greycheck-spp\n"
    )
    run(installed, 10, TCPSERVER, environ={})
    assert faults(list(service.check_services(installed))) == [
        "qmail-spp: /gone/greycheck-spp: no such program: all mail is deferred"
    ]


@pytest.mark.parametrize("by", ["script", "variable"])
def test_the_launcher_that_the_script_runs_must_be_there(installed: Installation, by: str) -> None:
    named = "/gone/qmail-checkenv"
    script = (ROOT / "contrib" / "qmail-checkenv.sh").read_text()
    if by == "script":
        script = script.replace("/usr/local/lib/greycheck/qmail-checkenv", named)
    installed.programs[1].write_text(script)
    run(
        installed,
        10,
        TCPSERVER,
        environ={"CHECKENV": "", "CHECKENV_PROGRAM": named if by == "variable" else ""},
    )
    assert faults(list(service.check_services(installed))) == [
        f"CHECKENV: {named}: no such program: nothing is checked"
    ]


def test_settings_of_the_rule_for_everybody_count(installed: Installation) -> None:
    assert faults(with_rules(installed, compiled_rules(b"+CHECKENV=\0+GREYCHECK=off\0"))) == [
        "GREYCHECK=off: nothing is checked"
    ]


def test_settings_of_the_rule_for_others_do_not(installed: Installation) -> None:
    assert (
        faults(
            with_rules(
                installed, compiled_rules(b"+CHECKENV=\0", b"+GREYCHECK=off\0+RELAYCLIENT=\0")
            )
        )
        == []
    )


def test_a_server_for_which_everybody_is_a_relay_client_is_a_fault(installed: Installation) -> None:
    [said] = faults(with_rules(installed, compiled_rules(b"+CHECKENV=\0+RELAYCLIENT=\0")))
    assert said.startswith(
        "the rule for everybody sets RELAYCLIENT: nothing is checked, and anybody may send"
    )
    run(installed, 11, TCPSERVER, environ={"CHECKENV": "", "RELAYCLIENT": ""})
    said = faults(list(service.check_services(installed)))[1]
    assert said.startswith("its environment has RELAYCLIENT: nothing is checked")
    assert not doctor.is_sound(doctor.examine(installed))


def test_a_relay_clients_session_and_a_server_of_this_host_alone_are_well(
    installed: Installation,
) -> None:
    run(installed, 10, "qmail-smtpd", environ={"CHECKENV": "", "RELAYCLIENT": ""})
    run(
        installed,
        11,
        "tcpserver 127.0.0.1 smtp qmail-smtpd",
        environ={"CHECKENV": "", "RELAYCLIENT": ""},
    )
    assert levels(installed) == {"ok"}


@pytest.mark.parametrize("length", [0, 5, 2047, 2090, 2100])
def test_rules_that_are_cut_short_are_none(length: int) -> None:
    whole = compiled_rules(b"+RELAYCLIENT=\0")
    assert processes.rule_for_everybody(whole) == b"RELAYCLIENT="
    assert processes.rule_for_everybody(whole[:length]) == b""


TCPRULES = ROOT / ".deps" / "ucspi-tcp" / "usr" / "bin" / "tcprules"


@pytest.mark.skipif(not TCPRULES.exists(), reason="tcprules is not here")
def test_rules_are_read_as_tcprules_compiles_them(place: Path) -> None:
    lines = (
        '127.:allow,RELAYCLIENT="@x"\n1.2.3-40.:allow,CHECKENV=""\n'
        ':allow,SMTPEXTFORK="/x",GREYCHECK="off"\n'
    )
    subprocess.run([TCPRULES, place / "cdb", place / "draft"], input=lines, text=True, check=True)
    rules = (place / "cdb").read_bytes()
    assert processes.rule_for_everybody(rules) == b"SMTPEXTFORK=/x\0GREYCHECK=off"
    assert processes.rules_variables(rules) == ((b"CHECKENV", b""), (b"SMTPEXTFORK", b"/x"))


@pytest.mark.parametrize("options", ["-x tcp.cdb", "-vRx tcp.cdb"])
def test_a_hook_that_the_rules_switch_on_is_seen(
    installed: Installation, place: Path, options: str
) -> None:
    (place / "tcp.cdb").write_bytes(
        compiled_rules(others=b"+RELAYCLIENT=\0+SMTPEXTFORK=/bin/true\0")
    )
    run(installed, 10, f"tcpserver {options} 0 smtp qmail-smtpd", environ={}, cwd=place)
    assert any("SMTPEXTFORK switched on" in one.found for one in service.check_services(installed))
    (place / "tcp.cdb").unlink()
    assert "warning" in levels(installed)


def test_a_list_that_names_this_launcher_is_well(installed: Installation) -> None:
    run(installed, 10, TCPSERVER, environ={"SMTPEXTFORK": f"/bin/true,{installed.programs[0]}"})
    assert levels(installed) == {"ok"}


def test_a_list_that_does_not_name_it_is_a_warning(installed: Installation) -> None:
    run(installed, 10, TCPSERVER, environ={"SMTPEXTFORK": "/bin/true"})
    assert "SMTPEXTFORK names /bin/true" in only(service.check_services, installed, "warning").found


def test_a_program_of_the_list_that_is_not_there_is_a_fault(installed: Installation) -> None:
    run(installed, 10, TCPSERVER, environ={"SMTPEXTFORK": f"{installed.programs[0]},/nonexistent"})
    assert "/nonexistent: no such program" in only(service.check_services, installed, "fault").found


def test_checkenv_without_its_program_is_a_fault(installed: Installation) -> None:
    installed.programs[1].unlink()
    run(installed, 10, TCPSERVER)
    assert "all mail is stopped" in only(service.check_services, installed, "fault").found


def test_a_service_with_another_store_is_a_warning(installed: Installation) -> None:
    run(installed, 10, TCPSERVER, environ={"CHECKENV": "", "GREYCHECK_DATABASE": "/other/place.db"})
    found = only(service.check_services, installed, "warning")
    assert (
        f"uses sqlite:////other/place.db, this command sqlite:///{database(installed)}"
        in found.found
    )
    assert "envdir" in found.advice


def test_settings_of_the_service_are_looked_at_too(installed: Installation) -> None:
    environ = {
        "CHECKENV": "",
        "GREYCHECK_DELAY": "soon",
        "GREYCHECK": "off",
        "GREYCHECK_MODE": "observe",
    }
    run(installed, 10, TCPSERVER, environ=environ)
    found = {one.level: one.found for one in service.check_services(installed)}
    assert "delay = soon" in found["warning"]
    assert "GREYCHECK=off: nothing is checked" in found["fault"]
    assert "mode = observe, here it is enforce" in found["note"]


def test_what_is_wrong_here_too_is_told_once(installed: Installation) -> None:
    run(installed, 10, TCPSERVER, environ={"CHECKENV": "", "GREYCHECK_DELAY": "soon"})
    wrong = replace(installed, settings=read(database(installed), DELAY="soon"))
    assert "warning" not in levels(wrong)


def test_no_password_of_the_service_is_kept(installed: Installation) -> None:
    run(installed, 10, TCPSERVER)
    assert "secret" not in repr(processes.services(installed.proc, {os.geteuid()}, ME))


def test_what_processes_tell_is_bounded(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs checks starts as many as he likes, with any environment; root's are not hidden
    by that.
    """
    monkeypatch.setattr(
        processes, "user", lambda directory: 0 if directory.name == "199" else ME.pw_uid + 1
    )
    other = replace(
        installed, account=pwd.struct_passwd(("other", "x", ME.pw_uid + 1, ME.pw_gid, "", "/", ""))
    )
    for pid in range(100, 200):
        run(
            installed,
            pid,
            TCPSERVER,
            environ={"SMTPEXTFORK": "/nonexistent," * 5000, "GREYCHECK_DELAY": f"{pid}x"},
        )
    pids = [one.pid for one in processes.services(installed.proc, {0, ME.pw_uid + 1}, None)]
    assert pids == [*range(100, 100 + processes.MOST), 199]
    monkeypatch.setattr(os, "geteuid", lambda: ME.pw_uid + 1)
    assert len(list(service.check_services(other))) < len(pids) * (service.PROGRAMS + 10)


def test_a_real_process_under_a_real_limit_is_read(place: Path) -> None:
    program = place / "qmail-smtpd"
    shutil.copy("/bin/sleep", program)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (17_000_000, resource.RLIM_INFINITY))

    process = subprocess.Popen(
        [program, "60"], preexec_fn=limit, env={"SMTPEXTFORK": "/x", "HOME": "/"}
    )
    try:
        found = processes.read_service(Path("/proc") / str(process.pid), {os.geteuid()}, ME)
        assert found
        assert (found.name, found.uid, found.memory) == ("qmail-smtpd", os.geteuid(), 17_000_000)
        assert found.environ == ((b"SMTPEXTFORK", b"/x"),)
    finally:
        process.kill()
        process.wait()


def test_text_of_others_is_made_fit_for_a_terminal() -> None:
    assert finding.safe("a\x1b[2J b") == "a\\x1b[2J b"


@pytest.mark.parametrize("kind", ["fifo", "zero"])
def test_rules_that_are_no_regular_file_are_not_waited_for(place: Path, kind: str) -> None:
    rules = place / "rules"
    os.mkfifo(rules) if kind == "fifo" else rules.symlink_to("/dev/zero")
    (place / "cwd").symlink_to(place)
    assert (
        processes.rules_file(place, [b"tcpserver", b"-x", os.fsencode(rules), b"qmail-smtpd"], ME)
        == b""
    )


def test_of_a_strangers_process_nothing_but_its_user_is_told(place: Path) -> None:
    directory = place / "99"
    directory.mkdir()
    (directory / "cmdline").write_bytes(b"tcpserver\0-x\0/rules\0qmail-smtpd\0")
    (directory / "environ").write_bytes(b"GREYCHECK_CONFIG=/fifo\0")
    (directory / "status").write_text(f"Name:\ttcpserver\nUid:\t{NOBODY.pw_uid}\t0\t0\t0\n")
    found = processes.read_service(directory, {0}, ME)
    assert found == processes.Service(99, "tcpserver", NOBODY.pw_uid, None, None)


@as_root
def test_launchers_run_as_the_user_of_checks(installed: Installation) -> None:
    path = installed.programs[0]
    path.write_text(f"#!/bin/sh\n{python.MARK} 1, \nid -un >&2\n")
    found = only(launchers.check_launchers, replace(installed, account=NOBODY), "fault")
    assert found.found == f"{path}: does not run as nobody: exit code 0: nobody"


@as_root
def test_without_a_user_root_runs_no_launcher_and_reads_nothing_that_a_process_names(
    installed: Installation, place: Path
) -> None:
    installed.programs[0].write_text(f"#!/bin/sh\n{python.MARK} 1, \ntouch {place}/ran\n")
    alone = replace(installed, account=None)
    found = list(launchers.check_launchers(alone))
    assert [(one.level, one.advice) for one in found] == [
        ("note", "Say which user qmail-smtpd runs as: --user NAME")
    ]
    assert not (place / "ran").exists()
    (place / "secret").write_text("delay = not to be shown\n")
    run(installed, 10, TCPSERVER, environ={"CHECKENV": "", "GREYCHECK_CONFIG": f"{place}/secret"})
    assert "not to be shown" not in repr(list(service.check_services(alone)))
    assert "what it names is not looked at" in only(service.check_services, alone, "note").found


@as_root
def test_a_launcher_that_the_user_cannot_reach_is_one_fault(installed: Installation) -> None:
    (installed.directory / "greycheck").chmod(0o700)
    found = doctor.examine(replace(installed, account=NOBODY))
    told = [one for one in found if f"{installed.directory}/greycheck " in one.found]
    assert [(one.about, one.advice) for one in told] == [
        ("permissions", f"Run: chmod go+rx {installed.directory}/greycheck")
    ]


@as_root
@pytest.mark.parametrize("what", ["all", "launchers", "store"])
def test_a_directory_that_the_user_cannot_pass_is_one_finding(
    installed: Installation, place: Path, what: str
) -> None:
    (place / "state").mkdir()
    moved = replace(installed, settings=read(place / "state" / "greycheck.db"), account=NOBODY)
    migrate.upgrade(moved.settings.database)
    for path in (place / "state", *(place / "state").iterdir()):
        os.chown(path, NOBODY.pw_uid, -1)
    assert [one for one in doctor.examine(moved) if one.level == "fault"] == []
    closed = {"all": place, "launchers": place / "bin", "store": place / "state"}[what]
    if what == "store":
        os.chown(closed, 0, 0)
    closed.chmod(0o700)
    try:
        found = [
            one
            for one in doctor.examine(moved)
            if one.level != "ok" and one.about not in ("settings", "service")
        ]
    finally:
        closed.chmod(0o755)
    command = f"chown -R nobody {closed}" if what == "store" else f"chmod o+x {closed}"
    assert [(one.level, one.about, one.advice) for one in found] == [
        ("fault", "permissions", f"Run: {command}")
    ]
    assert (
        what == "store"
        or f"nobody may not enter {closed} (mode 0700, owner root) on the way to" in found[0].found
    )


@as_root
def test_a_store_among_other_files_is_to_be_elsewhere(installed: Installation, place: Path) -> None:
    [found] = [
        one for one in doctor.examine(replace(installed, account=NOBODY)) if one.level == "fault"
    ]
    assert found.advice.startswith(
        "Run: install -d -o nobody -m 0700 /var/lib/greycheck && export GREYCHECK_DATABASE=/"
    )


def test_a_store_that_is_a_directory_is_told_so(installed: Installation, place: Path) -> None:
    (place / "state").mkdir()
    [found] = [
        one
        for one in doctor.examine(replace(installed, settings=read(place / "state")))
        if one.level == "fault"
    ]
    assert found.found == f"{place}/state: is a directory: database names no file"
    assert found.advice == f"Run: export GREYCHECK_DATABASE={place}/state/greycheck.db"


def test_a_store_in_a_directory_that_is_not_there_is_one_command(
    installed: Installation, place: Path
) -> None:
    found = [
        one
        for one in doctor.examine(replace(installed, settings=read(place / "no" / "x.db")))
        if one.level == "fault"
    ]
    assert [one.advice for one in found] == [f"Run: install -d -m 0700 -o {ME.pw_name} {place}/no"]


@pytest.mark.parametrize(
    ("full", "says"),
    [(True, "the disk is full: df -h "), (False, "is mounted read-only: mount -o rem")],
)
def test_a_disk_that_takes_nothing_is_the_cause(
    installed: Installation, monkeypatch: pytest.MonkeyPatch, full: bool, says: str
) -> None:
    real = os.statvfs(installed.directory)
    fields = list(real)
    fields[4], fields[8] = (0, fields[8]) if full else (fields[4], fields[8] | os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result(fields))
    assert says in str(migrate.trouble(database(installed)))
    found = [one for one in doctor.examine(installed) if one.level == "fault"]
    assert [one.about for one in found] == ["disk"]
    assert ("df -h" if full else "Run: mount -o remount,rw /") in found[0].advice


def test_a_file_that_is_no_database_is_told_with_a_command(installed: Installation) -> None:
    path = database(installed)
    path.write_text("no database" * 100)
    [found] = [one for one in doctor.examine(installed) if one.level == "fault"]
    assert found.advice == f"Run: mv {path} {path}.broken"


def test_a_program_that_is_gone_is_told_once(installed: Installation) -> None:
    path = installed.programs[0]
    path.unlink()
    run(installed, 10, TCPSERVER, environ={"SMTPEXTFORK": str(path)})
    assert [one.found for one in doctor.examine(installed) if one.level == "fault"] == [
        f"{path}: not there: where SMTPEXTFORK runs it, all mail is accepted"
    ]


def test_what_is_wrong_with_all_launchers_is_told_once(installed: Installation) -> None:
    for path in installed.programs:
        path.write_text(path.read_text().replace(python.interpreter(), "/nonexistent/python", 1))
    found = only(launchers.check_launchers, installed, "fault").found
    assert found.endswith(
        "No such file or directory (and so qmail-checkenv, greycheck-rcptcheck, greycheck-spp)"
    )


@as_root
@pytest.mark.parametrize("variable", ["GREYCHECK_CONFIG", "GREYCHECK_DATABASE_FILE", "-x"])
def test_a_link_to_roots_file_shows_nothing(
    installed: Installation, place: Path, variable: str
) -> None:
    secret = place / "secret"
    secret.write_text("delay = not to be shown\nsqlite:////not/to/be/shown\n+SMTPEXTFORK=\n")
    secret.chmod(0o600)
    (place / "link").symlink_to(secret)
    environ = {"CHECKENV": "", "GREYCHECK_DATABASE": ""} | {variable: f"{place}/link"}
    run(installed, 10, f"tcpserver -x {place}/link 0 smtp qmail-smtpd", environ=environ)
    told = repr(list(service.check_services(replace(installed, account=NOBODY))))
    assert "to be shown" not in told
    assert "to/be/shown" not in told
    assert "SMTPEXTFORK" not in told
    assert "CHECKENV switched on" in told
    assert variable == "-x" or "Permission denied" in told


@pytest.mark.parametrize("variable", ["GREYCHECK_CONFIG", "GREYCHECK_DATABASE_FILE", "SMTPEXTFORK"])
@pytest.mark.parametrize("kind", ["fifo", "zero", "loop", "directory"])
def test_what_a_process_names_is_not_waited_for(
    installed: Installation, place: Path, variable: str, kind: str
) -> None:
    path = place / "named"
    hostile(path, kind)
    run(installed, 10, TCPSERVER, environ={"CHECKENV": "", variable: str(path)})
    assert any("CHECKENV switched on" in one.found for one in service.check_services(installed))


def hostile(path: Path, kind: str) -> None:
    """Makes PATH something that does not end, or of which there is nothing to read."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to({"zero": "/dev/zero", "loop": path.name}[kind])


@pytest.mark.parametrize("kind", ["fifo", "zero", "loop", "directory"])
def test_a_launcher_that_is_no_file_is_named(
    installed: Installation, place: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = installed.programs[1]
    path.unlink()
    hostile(path, kind)
    (place / "control").mkdir()
    hostile(place / "control" / "smtpplugins", kind)
    monkeypatch.setattr(service, "QMAIL_HOME", place)
    run(installed, 10, TCPSERVER, "5000000", environ={"SMTPEXTFORK": str(installed.programs[0])})
    found = doctor.examine(installed)
    assert [one.level for one in found if str(path) in one.found and one.about == "launchers"] == [
        "warning"
    ]
    assert not any("qmail-spp" in one.found for one in found)


@as_root
def test_a_strangers_server_is_not_believed(installed: Installation, place: Path) -> None:
    """A real process of nobody's that calls itself tcpserver, and names what would hang, or be
    shown.
    """
    os.mkfifo(place / "fifo")
    environ = {"GREYCHECK_CONFIG": f"{place}/fifo", "SMTPEXTFORK": "/x\x1b[2J", "GREYCHECK": "off"}
    arguments = [
        "\x1b]0;mine\x07/tcpserver",
        "-c",
        "read line",
        "-x",
        f"{place}/fifo",
        "\n\x1b[2Jfault\n",
        "qmail-smtpd",
    ]
    process = subprocess.Popen(
        arguments,
        executable="/bin/sh",
        stdin=subprocess.PIPE,
        env=environ,
        user="nobody",
        extra_groups=[],
        cwd=place,
    )
    try:
        found = list(service.check_services(replace(installed, proc=Path("/proc"))))
        told = [one for one in found if f"({process.pid})" in one.found]
        assert [(one.level, one.found) for one in told] == [
            (
                "warning",
                f"tcpserver ({process.pid}) runs as nobody, permissions were looked at for"
                f" {ME.pw_name}",
            )
        ]
        assert "\x1b" not in "".join(one.found + one.advice for one in told)
    finally:
        process.kill()
        process.communicate()


def test_a_users_own_links_are_followed_for_him_and_what_they_stand_in_counts(
    place: Path,
) -> None:
    """As those of a virtual environment, which name one another and then the system's Python."""
    user = NOBODY if os.geteuid() == 0 else ME
    own = place / "own"
    (own / "bin").mkdir(parents=True)
    (own / "lib").symlink_to("bin")
    (own / "bin" / "python3").symlink_to("python")
    (own / "bin" / "python").symlink_to(python.interpreter())
    for path in (own, *own.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    asked = str(own / "lib" / "python3")

    def said() -> str:
        found = apart.as_user(user.pw_uid, lambda: str(writers.writer_of(asked, 0) or ""))
        assert isinstance(found, str)
        return found

    assert said() == ""
    (own / "bin").chmod(0o775)
    assert said().startswith(f"{own}/bin: a group may write there")
    (own / "bin").chmod(0o755)
    (own / "bin" / "python").unlink()
    (own / "bin" / "python").symlink_to("python3")
    os.chown(own / "bin" / "python", user.pw_uid, user.pw_gid, follow_symlinks=False)
    assert "is a symbolic link" in said(), "one that leads back to itself ends"


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root follows his own links")
def test_root_follows_no_users_link(place: Path) -> None:
    (place / "python3").symlink_to(python.interpreter())
    os.chown(place / "python3", NOBODY.pw_uid, -1, follow_symlinks=False)
    found = writers.writer_of(str(place / "python3"), NOBODY.pw_uid)
    assert "which root does not follow" in str(found)


@as_root
@pytest.mark.parametrize("mode", [0o775, 0o757])
@pytest.mark.parametrize("what", ["launcher", "directory", "settings", "interpreter"])
def test_what_others_may_write_is_a_warning(
    installed: Installation, place: Path, monkeypatch: pytest.MonkeyPatch, what: str, mode: int
) -> None:
    (place / "conf").write_text("delay = 5m\n")
    monkeypatch.setenv("GREYCHECK_CONFIG", str(place / "conf"))
    shutil.copy(python.interpreter(), place / "python")
    path = installed.programs[0]
    path.write_text(path.read_text().replace(python.interpreter(), f"{place}/python", 1))
    assert only(writers.check_writers, installed, "ok")
    names = {
        "launcher": path,
        "directory": path.parent,
        "settings": place / "conf",
        "interpreter": place / "python",
    }
    names[what].chmod(mode)
    found = only(writers.check_writers, installed, "warning")
    assert found.advice == f"Run: chmod {'g' if mode == 0o775 else 'o'}-w {names[what]}"


@as_root
@pytest.mark.parametrize("what", ["launcher", "settings"])
def test_what_the_user_of_checks_owns_is_a_warning(
    installed: Installation, place: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (place / "conf").touch()
    path = installed.programs[0] if what == "launcher" else place / "conf"
    os.chown(path, NOBODY.pw_uid, -1)
    run(installed, 10, TCPSERVER, environ={"CHECKENV": "", "GREYCHECK_CONFIG": f"{place}/conf"})
    found = only(writers.check_writers, replace(installed, account=NOBODY), "warning")
    assert found.advice == f"Run: chown -h root {path}"


HOSTILE = "x: rm -rf y"


@as_root
def test_a_directorys_name_is_no_command_for_root(
    installed: Installation, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = place / HOSTILE
    directory.mkdir()
    (directory / "conf").touch()
    directory.chmod(0o775)
    monkeypatch.setenv("GREYCHECK_CONFIG", str(directory / "conf"))
    found = only(writers.check_writers, installed, "warning")
    assert found.found == f"{directory}: a group may write there"
    assert found.advice == f"Run: chmod g-w '{directory}'"
    directory.chmod(0o755)
    os.chown(directory / "conf", NOBODY.pw_uid, -1)
    found = only(writers.check_writers, installed, "warning")
    assert found.advice == f"Run: chown -h root '{directory}/conf'"


@as_root
def test_a_file_of_the_user_of_checks_is_quoted_in_the_advice(place: Path) -> None:
    (place / HOSTILE).touch()
    os.chown(place / HOSTILE, NOBODY.pw_uid, -1)
    found = writers.writer_of(str(place / HOSTILE), ME.pw_uid + 1)
    assert found is not None
    assert found.command == f"chown -h root '{place}/{HOSTILE}'"


def test_a_stores_name_is_no_command(installed: Installation, place: Path) -> None:
    path = place / f"{HOSTILE}.db"
    path.write_text("no database" * 100)
    [found] = [
        one
        for one in doctor.examine(replace(installed, settings=read(path)))
        if one.level == "fault"
    ]
    assert found.advice == f"Run: mv '{path}' '{path}.broken'"


def test_a_revision_in_the_store_is_no_command(installed: Installation) -> None:
    found = contents.check_schema("9999: run rm -rf x", installed.settings)
    assert (found.level, found.advice) == ("fault", "")
    assert contents.check_schema("0000", installed.settings).advice == "Run: greycheck db upgrade"


@pytest.mark.parametrize("value", ["/a/b.db", "/a|e;id #/b.db", "/a&b.db", "/a\\1b.db"])
def test_a_value_is_set_as_it_is_whatever_sed_would_do_with_it(
    installed: Installation, place: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    conf = place / "conf"
    conf.write_text("delay = 5m\ndatabase = /old\n")
    monkeypatch.setenv("GREYCHECK_CONFIG", str(conf))
    found = settings.read({b"GREYCHECK_CONFIG": os.fsencode(conf)})
    subprocess.run(["sh", "-c", finding.set_to("database", value, found)], check=True)
    assert conf.read_text() == f"delay = 5m\ndatabase = {value}\n"


def test_where_there_is_no_command_nothing_is_advised() -> None:
    assert finding.run("") == ""


def test_counts_that_nobody_adds_up_are_a_warning(installed: Installation, place: Path) -> None:
    now = int(installed.now)
    spool = place / "greycheck.counts"
    spool.write_text(f"{now - DAY + 60} defer new 0 example.net - - 1\n")
    assert only(store.check_store, installed, "ok", "history")
    spool.write_text(f"{now - 3 * DAY} defer new 0 example.net - - 1\n")
    found = only(store.check_store, installed, "warning", "history")
    assert "wait for 3d (0.0 MB)" in found.found
    assert "(it never did)" in found.found
    assert "greycheck expire'" in found.advice
    execute(
        installed,
        "INSERT INTO history (total_key, day, kind, verdict, name, recipient, number, expires_at)"
        f" VALUES (x'00', 0, 'expire', '', '{os.uname().nodename}', '', {now - 2 * DAY},"
        f" {now * 2})",
    )
    os.truncate(spool, LARGEST)
    found = only(store.check_store, installed, "warning", "history")
    assert "(it last did 2d ago); nothing more is counted until then" in found.found
    without = replace(installed, settings=read(database(installed), HISTORY="0"))
    assert [one for one in store.check_store(without) if one.about == "history"] == []


@as_root
def test_of_a_spool_of_another_root_reads_nothing(installed: Installation, place: Path) -> None:
    (place / "greycheck.counts").write_text("1000000000 defer new 0 example.net - - 1\n")
    assert spooled(installed.settings).oldest == 1000000000
    os.chown(place, NOBODY.pw_uid, -1)
    assert spooled(installed.settings) == (0, None)


@pytest.mark.parametrize("address", ["172.18.0.1", "10.0.0.1", "100.64.0.1", "fd00::1", "::1"])
def test_clients_behind_nat_are_a_warning(installed: Installation, address: str) -> None:
    later = int(installed.now) + DAY
    execute(installed, f"INSERT INTO client VALUES ('192.0.2.1', 1, 1, 1, {later}, 0, 0)")
    assert "clients" not in {one.about for one in store.check_store(installed)}
    execute(installed, f"INSERT INTO client VALUES ('{address}', 1, 1, 1, {later}, 0, 0)")
    assert (
        f"clients come from {address}: behind NAT"
        in only(store.check_store, installed, "warning").found
    )


@as_root
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_sockets_directory_that_others_may_write_is_a_warning(
    installed: Installation, place: Path, mode: int
) -> None:
    (place / "run").mkdir()
    found = replace(installed, settings=read(database(installed), SOCKET=f"{place}/run/socket"))
    os.chown(place / "run", NOBODY.pw_uid, -1)
    assert only(writers.check_writers, found, "ok")
    os.chown(place / "run", 0, -1)
    (place / "run").chmod(mode)
    assert f"{place}/run: " in only(writers.check_writers, found, "warning").found
