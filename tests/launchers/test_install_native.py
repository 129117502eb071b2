"""``greycheck install --native``: launchers in C, with those in Python behind them."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result

from greycheck.cli import install as module
from greycheck.hooks import calling
from greycheck.launchers import native, python, trial
from tests.cli.test_install import ME, NOBODY, as_root, install, qmail  # noqa: F401
from tests.launchers.resident import ACCEPTED_LINE, Resident
from tests.support import ACCEPTED, DEFERRED, Child

Compilers = Callable[..., None]


@pytest.fixture(autouse=True)
def own_socket(place: Path, qmail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that no resident of this machine listens on."""
    monkeypatch.setenv("GREYCHECK_SOCKET", str(place / "socket"))


@pytest.fixture
def compilers(place: Path, monkeypatch: pytest.MonkeyPatch) -> Compilers:
    """Lets only scripts be found as compilers: what each does is a line of the shell."""

    def make(**scripts: str) -> None:
        monkeypatch.setenv("PATH", str(place / "compilers"))
        (place / "compilers").mkdir()
        for name, line in scripts.items():
            program = place / "compilers" / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\nPATH={os.defpath}\n{line}\n")
            program.chmod(0o755)

    return make


def install_native(qmail: Path, code: int = 0) -> Result:
    return install("--native", qmail, "--user", ME, code=code)


@pytest.fixture
def child(qmail: Path) -> Child:
    """What a mail server would run; the socket is the one that was compiled in."""
    install_native(qmail)
    return Child(qmail, qmail.parent / "store" / "greycheck.db", socket=None)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_it_puts_programs_in_c_before_those_in_python(qmail: Path) -> None:
    output = install_native(qmail).stdout
    compiled = "compiled by musl-gcc; they ask the resident, greycheck serve, at\n"
    assert f"{compiled}  {qmail.parent}/socket\n" in output
    assert f"\n{qmail}/greycheck-spp\n" in output
    assert names(qmail) == sorted([*python.PROGRAMS, "greycheck.d"])
    assert names(qmail / "greycheck.d") == sorted(python.PROGRAMS)
    for name in python.PROGRAMS:
        assert (qmail / name).read_bytes().startswith(b"\x7fELF")
        assert (qmail / "greycheck.d" / name).read_text() == python.launcher(name)
        assert (qmail / name).stat().st_mode & 0o777 == 0o755


def test_without_a_resident_they_check_in_python(child: Child) -> None:
    warning = (
        f"greycheck: warning {child.programs.parent}/socket: not there: checking without the"
        " resident"
    )
    for ran in (child.smtpextfork(), child.checkenv(), child.rcptcheck(), child.spp()):
        assert ran.lines[0] == warning
        assert ran.code == (
            111 if "hook=rcptcheck" in ran.log else 0 if "hook=spp" in ran.log else DEFERRED
        )
    child.age(300)
    assert child.smtpextfork().verdict == (ACCEPTED, "retry")


def test_a_resident_is_asked(child: Child) -> None:
    with Resident(child.programs.parent / "socket") as resident:
        ran = child.smtpextfork(GREYCHECK_SOCKET_PATIENCE="60s")
    assert (ran.code, ran.log.encode()) == (ACCEPTED, ACCEPTED_LINE)
    assert resident.asked["GREYCHECK_DATABASE"] == child.store.url


def test_what_a_resident_took_counts_for_the_deadline(child: Child) -> None:
    """Nothing is left of it then: a store that has to be waited for is not."""
    child.make_store()
    with closing(sqlite3.connect(child.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with Resident(child.programs.parent / "socket", Resident.hang):
            ran = child.smtpextfork(GREYCHECK_DEADLINE="1s", GREYCHECK_SOCKET_PATIENCE="2s")
    assert "no answer in time" in ran.lines[0]
    assert ran.verdict == (ACCEPTED, "error"), ran.log
    assert 'error="no answer within 1s"' in ran.log


def test_commands_go_to_python(child: Child) -> None:
    ran = child.run([child.programs / "greycheck", "--version"], child.environ(), speaks=True)
    assert (ran.code, ran.log) == (0, "")
    assert "greycheck" in ran.said


def test_socket_and_patience_are_compiled_in(qmail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREYCHECK_SOCKET_PATIENCE", "3s")
    install_native(qmail)
    marks = native.marks_of(qmail / "greycheck")
    assert (marks["socket"], marks["patience"]) == (f"{qmail.parent}/socket", "3")
    assert marks["directory"] == f"{qmail}/greycheck.d"


def test_installing_again_is_harmless(qmail: Path) -> None:
    install_native(qmail)
    before = {path: path.read_bytes() for path in qmail.rglob("*") if path.is_file()}
    install_native(qmail)
    assert {path: path.read_bytes() for path in qmail.rglob("*") if path.is_file()} == before


def test_those_in_python_take_the_place_of_those_in_c_again(qmail: Path) -> None:
    install_native(qmail)
    output = install(qmail, "--user", ME).stdout
    assert "compiled" not in output
    for name in python.PROGRAMS:
        assert (qmail / name).read_text() == python.launcher(name)


def test_those_behind_stay_and_are_kept_up_to_date(qmail: Path) -> None:
    install_native(qmail)
    old = qmail / "greycheck.d" / "qmail-checkenv"
    old.write_text(old.read_text().replace(str(python.package().parent), "/usr/lib/older"))
    install(qmail, "--user", ME)
    for name in python.PROGRAMS:
        assert (qmail / "greycheck.d" / name).read_text() == python.launcher(name)
    install(qmail, "--uninstall")
    assert names(qmail) == []


def test_an_interpreter_that_began_before_them_finds_its_launcher(child: Child) -> None:
    bare = [python.interpreter(), "-IS"]
    environ = child.environ(
        REMOTEMF="a@example.org", REMOTERCPT="b@example.net", SENDER="a@example.org"
    )
    environ |= {
        b"RECIPIENT": b"b@example.net",
        b"SMTPMAILFROM": b"a@example.org",
        b"SMTPRCPTTO": b"b@example.net",
    }
    ran = child.run([*bare, child.programs / "greycheck"], environ)
    assert ran.verdict == (DEFERRED, "new")
    ran = child.run(
        [*bare, child.programs / "qmail-checkenv", "a@example.org", "b@example.net"], environ
    )
    assert ran.verdict == (DEFERRED, "early")
    assert child.run([*bare, child.programs / "greycheck-rcptcheck"], environ).verdict == (
        111,
        "early",
    )
    assert child.run(
        [*bare, child.programs / "greycheck-spp"], environ, speaks=True
    ).said.startswith("E451 ")


def test_uninstalling_takes_both(qmail: Path) -> None:
    install_native(qmail)
    removed = [qmail / name for name in python.PROGRAMS]
    removed += [*trial.behind(removed), qmail / "greycheck.d"]
    assert install(qmail, "--uninstall").stdout == "".join(f"{path}: removed\n" for path in removed)
    assert names(qmail) == []


@pytest.mark.parametrize("action", [["--native"], [], ["--uninstall"]])
@pytest.mark.parametrize("name", ["greycheck-spp", "greycheck.d/qmail-checkenv"])
@pytest.mark.parametrize("content", [b"#!/bin/sh\n# the site's own\n", b"\x7fELF the site's own"])
def test_what_is_not_its_own_is_left_alone(
    qmail: Path, name: str, action: list[str], content: bytes
) -> None:
    (qmail / name).parent.mkdir(exist_ok=True)
    (qmail / name).write_bytes(content)
    assert (
        f"{qmail}/{name}: not written by greycheck install: left alone"
        in install(qmail, *action, code=1).stderr
    )
    assert (qmail / name).read_bytes() == content
    assert [path for path in qmail.rglob("*") if path.is_file()] == [qmail / name]


def test_what_else_is_in_the_directory_stays(qmail: Path) -> None:
    install_native(qmail)
    (qmail / "greycheck.d" / "README").write_text("the site's own")
    install(qmail, "--uninstall")
    assert names(qmail / "greycheck.d") == ["README"]


def test_a_program_that_cannot_be_written_leaves_no_draft(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target.parent == qmail:
            raise PermissionError(13, "Permission denied", str(qmail))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert install_native(qmail, code=1).stderr == f"Error: {qmail}: Permission denied\n"
    assert names(qmail) == ["greycheck.d"]


@as_root
def test_they_run_as_the_other_user_whatever_the_umask(qmail: Path) -> None:
    os.chown(qmail.parent / "store", NOBODY.pw_uid, NOBODY.pw_gid)
    umask = os.umask(0o077)
    try:
        install("--native", qmail, "--user", "nobody")
    finally:
        os.umask(umask)


@as_root
def test_a_directory_behind_that_the_user_cannot_pass_is_named(
    qmail: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    os.chown(qmail.parent / "store", NOBODY.pw_uid, NOBODY.pw_gid)
    put = module.put_native

    def close(paths: list[Path], program: bytes) -> None:
        put(paths, program)
        (qmail / "greycheck.d").chmod(0o700)

    monkeypatch.setattr(module, "put_native", close)
    stderr = install("--native", qmail, "--user", "nobody", code=1).stderr
    assert f"nobody may not enter {qmail}/greycheck.d (mode 0700, owner root)" in stderr


# --- compilers ------------------------------------------------------------------------------------


def test_where_there_is_no_musl_it_is_cc(qmail: Path, compilers: Compilers) -> None:
    compilers(cc='exec cc "$@"')
    assert "compiled by cc; " in install_native(qmail).stdout


def test_where_musl_fails_it_is_cc(qmail: Path, compilers: Compilers) -> None:
    compilers(musl_gcc="echo oops >&2; exit 1", cc='exec cc "$@"')
    assert "compiled by cc; " in install_native(qmail).stdout


def test_without_a_compiler_it_says_what_to_install(qmail: Path, compilers: Compilers) -> None:
    compilers()
    stderr = install_native(qmail, code=1).stderr
    assert stderr.startswith(
        "Error: no C compiler: neither musl-gcc nor cc is there: apt-get install gcc musl-tools "
    )
    assert names(qmail) == []


def test_without_a_static_libc_it_says_what_to_install(qmail: Path, compilers: Compilers) -> None:
    compilers(cc="echo '/usr/bin/ld: cannot find -lc: No such file or directory' >&2; exit 1")
    stderr = install_native(qmail, code=1).stderr
    assert "Error: cc makes no static program of" in stderr
    assert "cannot find -lc" in stderr
    assert "libc6-dev" in stderr
    assert names(qmail) == []


@pytest.mark.parametrize("line", ["exec sleep 60", "exit 1", "kill -9 $$"])
def test_a_compiler_that_hangs_or_dies_is_told(
    qmail: Path,
    compilers: Compilers,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "COMPILING_TIME", 0.2)
    compilers(cc=line)
    assert "Error: cc makes no static program of" in install_native(qmail, code=1).stderr


@pytest.mark.parametrize(
    ("value", "told"), [("", "socket is empty"), ("/" + "x" * 107, "longer than 107 bytes")]
)
def test_a_socket_that_cannot_be_asked_is_told(
    qmail: Path,
    value: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GREYCHECK_SOCKET", value)
    assert told in install_native(qmail, code=1).stderr
    assert names(qmail) == []


def test_the_source_is_in_the_package() -> None:
    assert native.source().is_file()
    assert native.source().is_relative_to(python.package())


# --- under traffic --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", python.PROGRAMS)
def test_what_stands_there_meanwhile_opens_the_one_behind_alone_and_is_one_itself(
    qmail: Path, name: str
) -> None:
    install_native(qmail)
    path = qmail / name
    text = python.passing(name, qmail / "greycheck.d" / name)
    assert text
    path.write_text(text)
    parts = {"client": b"192.0.2.1", "sender": b"", "recipient": b"bob@example.net"}
    argv, variables = calling.call(calling.of_program(name), parts)
    environ, arguments = os.environb | variables, argv[1:]
    said = []
    for command in ([path], [python.interpreter(), "-IS", path], [qmail / "greycheck.d" / name]):
        ran = subprocess.run(
            [*command, *arguments], env=environ, capture_output=True, text=True, check=False
        )
        assert " client=192.0.2.1 sender=<> recipient=<bob@example.net> " in ran.stderr
        said.append((ran.returncode, ran.stdout))
    assert said[0] == said[1] == said[2]


def test_no_check_fails_while_they_change(qmail: Path) -> None:
    """Each check is a program of its own, as under a mail server; so is each install, as an
    operator's.
    """
    install(qmail, "--user", ME)
    environ = {
        **os.environ,
        "TCPREMOTEIP": "192.0.2.1",
        "REMOTEMF": "",
        "REMOTERCPT": "bob@example.net",
    }
    commands = [[str(qmail / "qmail-checkenv"), "", "bob@example.net"], [str(qmail / "greycheck")]]
    log = qmail.parent / "log"
    quiet = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    quiet += [(os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)]
    changed = threading.Event()

    def check(command: list[str]) -> Counter[int]:
        codes: Counter[int] = Counter()
        while not changed.is_set():
            child = os.posix_spawn(command[0], command, environ, file_actions=quiet)
            codes[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] += 1
        return codes

    with ThreadPoolExecutor() as pool:
        checking = [pool.submit(check, command) for command in commands]
        try:
            for _time in range(2):
                for more in (["--native"], []):
                    command = [
                        sys.executable,
                        "-m",
                        "greycheck",
                        "install",
                        *more,
                        str(qmail),
                        "--user",
                        ME,
                    ]
                    subprocess.run(command, check=True, capture_output=True)
        finally:
            changed.set()
    codes = sum((one.result() for one in checking), Counter[int]())
    assert set(codes) <= {ACCEPTED, DEFERRED}, (codes, log.read_text()[-2000:])
