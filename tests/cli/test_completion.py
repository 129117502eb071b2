"""``greycheck completion``: in real shells; and that a mail server's child is never taken for a
shell.
"""

import os
import pty
import select
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import NoReturn

import pytest
from click.testing import CliRunner

from greycheck import child as module
from greycheck.cli.main import cli
from greycheck.store.schema import migrate
from greycheck.store.waiting import PROVIDERS
from tests.support import ACCEPTED, DEFERRED, ROOT, Child

PROGRAMS = Path(sys.executable).parent


def script(shell: str) -> str:
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="greycheck")
    assert result.exit_code == 0, result.output
    return result.stdout


def find(shell: str) -> str:
    path = shutil.which(shell)
    assert path, f"{shell} is missing: dev/test installs it"
    return path


def environ(programs: Path = PROGRAMS) -> dict[str, str]:
    return {
        "PATH": f"{programs}:{os.defpath}",
        "TERM": "dumb",
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
    }


# --- in real shells -------------------------------------------------------------------------------

COMMON = sorted(name for name in cli.commands if name.startswith("ex"))


def test_there_is_something_to_complete() -> None:
    assert "expire" in COMMON


def typed(
    command: Sequence[str], lines: Sequence[str], wanted: Sequence[str], variables: dict[str, str]
) -> str:
    """What a shell shows in a terminal where LINES are typed, until all of WANTED is there."""
    process, leader = pty.fork()
    if not process:
        os.execvpe(command[0], list(command), variables)
    shown = ""
    try:
        for line in lines:
            os.write(leader, line.encode())
        end = monotonic() + 60
        while monotonic() < end and not all(word in shown for word in wanted):
            if select.select([leader], [], [], 0.1)[0]:
                shown += os.read(leader, 65536).decode(errors="replace")
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(leader)
    return shown


@pytest.mark.parametrize("launcher", [False, True])
def test_bash_offers_commands_at_tab(launchers: Path, place: Path, launcher: bool) -> None:
    (place / "script").write_text(script("bash"))
    program = str(launchers / "greycheck") if launcher else "greycheck"
    lines = [f"PS1= ; . {place}/script; echo read''y\n", f"{program} ex\t\t\t"]
    shown = typed(
        [find("bash"), "--norc", "--noprofile", "-i"], lines, ["ready\r\n", *COMMON], environ()
    )
    assert all(f"{name} " in shown or f"{name}\r" in shown for name in COMMON), shown


def test_bash_offers_options_and_what_they_take() -> None:
    ask = (
        "COMP_WORDS=(greycheck {}); COMP_CWORD={}; _greycheck_completion greycheck; echo"
        " ${{COMPREPLY[*]}}"
    )
    for words, position, offered in (
        ("doctor --j", 2, "--json"),
        ("completion ''", 2, "bash zsh fish"),
    ):
        text = script("bash") + "\n" + ask.format(words, position)
        command = [find("bash"), "--norc", "-c", text]
        ran = subprocess.run(
            command,
            env=environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == offered, ran.stderr


# --- what the store has ---------------------------------------------------------------------------


@pytest.fixture
def filled(place: Path, launchers: Path) -> dict[str, str]:
    """The environment of a shell whose store has a triplet, a client, rules and providers."""
    child = Child(launchers, place / "greycheck.db")
    child.smtpextfork()
    with closing(sqlite3.connect(child.database)) as store, store:
        store.execute("INSERT INTO client VALUES ('2001:db8::7', 1, 1, 1, 1, 0, 0)")
        store.execute("UPDATE triplet SET triplet_key = ?", (b"\xab\xcd" * 8,))
        for number, pattern in enumerate(
            (
                "from:.example.com",
                "from:$(touch x)@a",
                "from:`touch x`",
                "from:a;x",
                "from:<>",
                "from:a\x1b[2J",
                "from:a b",
                "helo:b.example to:.example.net",
            )
        ):
            store.execute(
                "INSERT INTO rule VALUES (?, 'sender', ?, 'allow', NULL, '', 1, NULL)",
                (b"%016d" % number, pattern),
            )
        for name in ("icloud.com", "mail.example", "x.$(touch x)", ""):
            # The last is the row that only locks.
            key = name.encode().ljust(16) if name else PROVIDERS
            store.execute(
                "INSERT INTO provider VALUES (?, ?, '', '', 1, 1, 1, '', NULL)", (key, name)
            )
    return environ() | {"GREYCHECK_DATABASE": str(child.database), "GREYCHECK_CONFIG": "/dev/null"}


def offered(line: str, variables: dict[str, str]) -> list[str]:
    """What bash would offer at the end of LINE."""
    asking = {
        "_GREYCHECK_COMPLETE": "bash_complete",
        "COMP_LINE": line,
        "COMP_WORDS": line,
        "COMP_CWORD": "1",
    }
    ran = subprocess.run(
        [PROGRAMS / "greycheck"],
        env=variables | asking,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == ""
    return [each.removeprefix("plain,") for each in ran.stdout.splitlines() if each]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("greycheck show ab", ["abcdabcdabcd"]),
        ("greycheck show 2001:d", ["db8::7"]),
        ("greycheck show ", ["domain"]),
        ("greycheck release ab", ["abcdabcdabcd"]),
        ("greycheck forget dom", ["domains", "domain"]),
        ("greycheck show abcd ", []),
        ("greycheck forget p", ["pending", "passed"]),
        ("greycheck forget pending --older 1d --domain ", []),
        ("greycheck rules remove from:", [".example.com"]),
        ("greycheck defer ", ["helo:b.example", "to:.example.net", "from:.example.com"]),
        ("greycheck allow from:x@x ", ["to:.example.net"]),
        ("greycheck rules list helo:", ["b.example"]),
        ("greycheck rules remove ", ["from:.example.com"]),
        ("greycheck rules list f", ["from:.example.com"]),
        ("greycheck reject name", []),
        ("greycheck config retry", ["retry_window"]),
        ("greycheck providers add mailc", ["mailchimp"]),
        ("greycheck providers add mailchimp mailg", ["mailgun"]),
        ("greycheck providers add google goo", []),
        ("greycheck providers remove ", ["apple", "icloud.com", "mail.example"]),
        ("greycheck providers list m", ["mail.example"]),
        ("greycheck providers refresh apple i", ["icloud.com"]),
        ("greycheck providers known ", []),
        ("greycheck config delay dead", ["deadline"]),
    ],
)
def test_keys_patterns_and_settings_are_offered_and_nothing_that_a_shell_would_run(
    filled: dict[str, str], line: str, words: list[str]
) -> None:
    assert offered(line, filled) == words


def test_where_the_store_cannot_be_asked_nothing_is_said(
    filled: dict[str, str], tmp_path: Path
) -> None:
    for database in (str(tmp_path / "none" / "greycheck.db"), "/dev/null", "nonsense"):
        assert offered("greycheck show ab", filled | {"GREYCHECK_DATABASE": database}) == []


def test_bash_completes_a_pattern_behind_its_colon(place: Path, filled: dict[str, str]) -> None:
    (place / "script").write_text(script("bash"))
    lines = [
        f"PS1= ; . {place}/script; echo read''y\n",
        "echo greycheck; greycheck rules remove from:.ex\t",
    ]
    shown = typed(
        [find("bash"), "--norc", "--noprofile", "-i"],
        lines,
        ["ready\r\n", "from:.example.com "],
        filled,
    )
    assert "remove from:.example.com " in shown


def test_zsh_offers_commands_at_tab(place: Path) -> None:
    (place / "script").write_text(script("zsh"))
    lines = [
        f"PS1= ; autoload -Uz compinit; compinit -D -u; . {place}/script; echo read''y\n",
        "greycheck ex\t\t\t",
    ]
    shown = typed([find("zsh"), "-f", "-i"], lines, ["ready\r\n", *COMMON, "--"], environ())
    assert all(name in shown for name in COMMON), shown


def test_fish_offers_commands(place: Path) -> None:
    text = script("fish") + "\ncomplete -C 'greycheck ex'\n"
    variables = environ() | {"HOME": str(place)}
    command = [find("fish"), "--no-config", "-c", text]
    ran = subprocess.run(
        command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert sorted(line.partition("\t")[0] for line in ran.stdout.splitlines()) == COMMON


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_by_the_variable_that_the_program_knows(shell: str) -> None:
    assert f"{module.COMPLETION.decode()}={shell}_complete" in script(shell)


def test_another_shell_is_refused() -> None:
    assert CliRunner().invoke(cli, ["completion", "tcsh"], prog_name="greycheck").exit_code == 2


# --- a hook's child is no shell's -----------------------------------------------------------------

ASKING = {"_GREYCHECK_COMPLETE": "bash_complete", "COMP_WORDS": "greycheck ", "COMP_CWORD": "1"}
PIP = (
    f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom greycheck.__main__"
    " import main\nmain()\n"
)


@pytest.fixture(params=["launcher", "measured", "pip"])
def asked(request: pytest.FixtureRequest, place: Path) -> Child:
    """The child with the variable of a shell's completion in its environment: as installed, under
    coverage, and as pip installs it.
    """
    if request.param == "pip":
        programs = place / "bin"
        programs.mkdir()
        for name in ("greycheck", "qmail-checkenv"):
            (programs / name).write_text(PIP)
            (programs / name).chmod(0o755)
    else:
        programs = request.getfixturevalue(
            "launchers" if request.param == "launcher" else "measured_launchers"
        )
    child = Child(programs, place / "greycheck.db")
    child.settings |= ASKING
    return child


def test_the_variable_changes_no_verdict(asked: Child) -> None:
    """The first check makes the store too, by a command that has the variable in its
    environment.
    """
    for instruction in ("bash_complete", "zsh_source", "nonsense"):
        asked.settings["_GREYCHECK_COMPLETE"] = instruction
        asked.database.unlink(missing_ok=True)
        assert asked.smtpextfork().verdict == (DEFERRED, "new")
        assert asked.checkenv().verdict == (DEFERRED, "early")
        asked.age(300)
        assert asked.smtpextfork().verdict == (ACCEPTED, "retry")


def test_the_variable_prints_nothing_to_a_client_though_no_hooks_variable_is_there(
    asked: Child,
) -> None:
    """``run`` has a pipe on 0, as some servers do, and fails where anything is printed."""
    ran = asked.run([asked.programs / "greycheck"], asked.environ(client=None))
    assert ran.verdict == (ACCEPTED, "incomplete")


@pytest.mark.parametrize("name", ["REMOTEMF", "REMOTERCPT", "TCPREMOTEIP"])
def test_one_variable_of_a_hook_is_enough_to_make_it_a_hooks(asked: Child, name: str) -> None:
    ran = subprocess.run(
        [asked.programs / "greycheck"],
        env=asked.environ(client=None) | {name.encode(): b""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (ACCEPTED, b"")
    assert b" reason=incomplete " in ran.stderr


def test_a_shell_gets_its_answer(asked: Child) -> None:
    ran = subprocess.run(
        [asked.programs / "greycheck"],
        env=asked.environ(client=None),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "plain,doctor" in ran.stdout.splitlines(), ran.stderr
    assert ran.returncode == 0


def test_a_person_who_types_the_bare_name_gets_help(asked: Child) -> None:
    leader, terminal = pty.openpty()
    asked.settings.pop("_GREYCHECK_COMPLETE")
    command = [asked.programs / "greycheck"]
    ran = subprocess.run(
        command,
        env=asked.environ(client=None),
        stdin=terminal,
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(leader)
    os.close(terminal)
    assert ran.stdout.startswith("Usage: greycheck [OPTIONS] COMMAND"), ran.stderr


def test_a_command_does_its_work_whatever_the_variable_says(asked: Child) -> None:
    command = [sys.executable, "-m", "greycheck", "db", "upgrade"]
    subprocess.run(
        command, env=asked.environ(client=None), cwd=ROOT, check=True, capture_output=True
    )
    assert migrate.current(f"sqlite:///{asked.database}") == migrate.head()


@pytest.mark.parametrize(
    ("argv", "asks", "reached"),
    [
        (["greycheck"], True, "cli"),
        (["greycheck"], False, "child"),
        (["greycheck", "db"], False, "cli"),
    ],
)
def test_pips_program_tells_a_shell_from_a_hook(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], asks: bool, reached: str
) -> None:
    from greycheck import __main__

    def reach(name: str) -> Callable[..., NoReturn]:
        def stop(*_arguments: object, **_options: object) -> NoReturn:
            raise SystemExit(f"{name} {'_GREYCHECK_COMPLETE' in os.environ}")

        return stop

    monkeypatch.setenv("_GREYCHECK_COMPLETE", "bash_complete")
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(module, "asks_completion", lambda _argv: asks)
    monkeypatch.setattr(module, "main", reach("child"))
    monkeypatch.setattr("greycheck.cli.main.cli", reach("cli"))
    with pytest.raises(SystemExit, match=f"^{reached} {len(argv) == 1}$"):
        __main__.main()


def test_a_closed_descriptor_is_no_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_descriptor: int) -> os.stat_result:
        raise OSError(9, "Bad file descriptor")

    assert module._is_character_device(os.open("/dev/null", os.O_RDONLY))
    assert not stat.S_ISCHR(Path(__file__).stat().st_mode)
    monkeypatch.setattr(module.posix, "fstat", refuse)
    assert not module._is_character_device(0)
