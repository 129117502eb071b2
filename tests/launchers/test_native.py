"""The launcher in C, with sanitizers and as it is installed, beside a resident that plays along or
does not.
"""

import ctypes
import errno
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greycheck import hooks
from greycheck import settings as settings_
from greycheck.doctor import finding
from greycheck.hooks import calling, delegation
from greycheck.launchers import native
from greycheck.policy import ACCEPT, DEFER
from tests.launchers.programs import CODES, NAMES, PATIENCE, PYTHON, SANITIZED, Programs, Ran
from tests.launchers.resident import ACCEPTED_LINE, Resident
from tests.support import ACCEPTED

COMPILE = {
    "sanitized": SANITIZED,
    "musl": ["musl-gcc", *native.FLAGS, *native.LINKING],
    "glibc": ["cc", *native.FLAGS, *native.LINKING],
}

# The hook that runs each program, and its code of a deferral.
HOOKS = {hook.PROGRAM: hook for hook in hooks.every()}
DEFERS = {name: hook.ANSWERS[DEFER] for name, hook in HOOKS.items()}

# Those that are told more than an exit code, and those whose addresses are arguments.
SPOKEN_TO = [name for name, hook in HOOKS.items() if hook.reply]
WITH_ARGUMENTS = [name for name, hook in HOOKS.items() if hook.ARGUMENTS]

# Variables that have a sender, whatever the hook.
SENDERS = {hook.VARIABLES["sender"]: b"a@b" for hook in hooks.every() if "sender" in hook.VARIABLES}

every_program = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session", params=COMPILE)
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    """The four programs, compiled in each way."""
    with tempfile.TemporaryDirectory(prefix="greycheck-native-") as directory:
        yield Programs(Path(directory), COMPILE[request.param])


@pytest.fixture(scope="session")
def sanitized() -> Iterator[Programs]:
    """The four programs under the sanitizers."""
    with tempfile.TemporaryDirectory(prefix="greycheck-native-") as directory:
        yield Programs(Path(directory), SANITIZED)


@pytest.fixture
def path(place: Path) -> Path:
    """Where the resident of a test listens."""
    return place / "socket"


def call(
    programs: Programs,
    path: Path,
    name: str = "greycheck",
    sender: bytes = b"alice@example.org",
    recipient: bytes = b"bob@example.net",
    *,
    more: Mapping[str, str] = MappingProxyType({}),
    before: Callable[[], object] | None = None,
    log: int = subprocess.PIPE,
    restore_signals: bool = True,
) -> Ran:
    """Runs the program NAME as its hook does, beside a resident at PATH, with MORE in its
    environment.
    """
    parts = {"client": b"192.0.2.1", "sender": sender, "recipient": recipient}
    argv, environ = calling.call(HOOKS[name], parts)
    environ |= {b"GREYCHECK_SOCKET": os.fsencode(path)}
    environ |= {os.fsencode(key): os.fsencode(value) for key, value in more.items()}
    return programs.run(
        name, *argv[1:], environ=environ, before=before, log=log, restore_signals=restore_signals
    )


# --- how it is compiled ---------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", native.COMPILERS)
def test_it_is_one_small_static_program(
    compiler: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "COMPILERS", (compiler,))
    found = settings_.read({b"GREYCHECK_CONFIG": b"/dev/null"})
    content, used = native.compile_program(place, found)
    (place / "program").write_bytes(content)
    described = subprocess.run(
        ["readelf", "-ld", place / "program"], capture_output=True, text=True, check=True
    ).stdout
    assert used == compiler
    assert "INTERP" not in described
    assert "There is no dynamic section" in described
    assert len(content) < (30_000 if compiler == "musl-gcc" else 2_000_000)


def test_its_mark_is_where_launchers_have_theirs(programs: Programs) -> None:
    for name in NAMES:
        assert native.is_ours(programs.directory / name)
        assert native.marks_of(programs.directory / name)["directory"] == str(programs.behind)
        assert finding.is_ours(programs.directory / name)


@pytest.mark.parametrize(
    "text",
    [
        "/run/greycheck/socket",
        "/a b/c",
        "/??/x",
        '/q"q',
        "/back\\slash",
        "/%s",
        "/é",
        "/\udcff",
        "/0\x011",
    ],
)
def test_any_path_can_be_compiled_in(text: str, place: Path) -> None:
    (place / "print.c").write_text(
        "#include <unistd.h>\nint main(void) { write(1, TEXT, sizeof TEXT - 1); return 0; }\n"
    )
    subprocess.run(
        [
            "cc",
            "-std=c99",
            f"-DTEXT={native.literal(text)}",
            "-w",
            "-o",
            place / "print",
            place / "print.c",
        ],
        check=True,
    )
    assert subprocess.run([place / "print"], capture_output=True, check=True).stdout == os.fsencode(
        text
    )


# --- what it asks ---------------------------------------------------------------------------------


@every_program
def test_it_asks_for_its_hook(programs: Programs, path: Path, name: str) -> None:
    began = int(time.time())
    with Resident(path) as resident:
        variable = HOOKS[name].VARIABLES["name"].decode()
        assert call(programs, path, name, more={variable: "mail.example.org"}).code == ACCEPTED
    asked = resident.asked
    assert began - 1 <= int(asked.pop("greycheck_time")) <= time.time()
    assert (asked.pop("GREYCHECK_SOCKET"), asked.pop("GREYCHECK_SOCKET_PATIENCE")) == (
        str(path),
        "60s",
    )
    assert asked == {
        "request": "smtpd_access_policy",
        "protocol_state": "RCPT",
        "greycheck_hook": HOOKS[name].NAME,
        "client_address": "192.0.2.1",
        "reverse_client_name": "mail.example.org",
        "sender": "alice@example.org",
        "recipient": "bob@example.net",
    }
    assert resident.later == b""


@pytest.mark.parametrize("name", [name for name, hook in HOOKS.items() if "helo" in hook.VARIABLES])
@pytest.mark.parametrize(("length", "told"), [(0, True), (255, True), (256, False), (70000, False)])
def test_what_a_client_calls_itself_is_told_unless_it_is_no_name(
    sanitized: Programs, path: Path, name: str, length: int, told: bool
) -> None:
    with Resident(path) as resident:
        call(sanitized, path, name, more={HOOKS[name].VARIABLES["helo"].decode(): "h" * length})
    assert resident.asked.get("helo_name") == ("h" * length if told else None)


def test_settings_and_what_exempts_go_along(sanitized: Programs, path: Path) -> None:
    more = {
        "GREYCHECK": "off",
        "GREYCHECK_DELAY": "1m",
        "GREYCHECKED": "=",
        "RELAYCLIENT": "",
        "SMTPAUTHUSER": "joe",
    }
    with Resident(path) as resident:
        call(sanitized, path, more={"REMOTEMF_": "x", "SMTPRCPTCOUNT": "1", "PATH": "/bin"} | more)
    assert {name: resident.asked[name] for name in more} == more
    assert not {"REMOTEMF_", "PATH", "SMTPRCPTCOUNT"} & resident.asked.keys()


def test_qmail_spp_tells_of_the_message(sanitized: Programs, path: Path) -> None:
    more = {
        "SMTPRCPTCOUNT": "1",
        "SMTPRCPTCOUNTALL": "2",
        "TCPREMOTEPORT": "34567",
        "SMTPRCPTHOSTSOK": "0",
    }
    with Resident(path) as resident:
        call(sanitized, path, "greycheck-spp", more=more)
    assert {name: resident.asked[name] for name in more} == more


ANY_BYTE = bytes(byte for byte in range(1, 256) if byte != 10)


@every_program
def test_every_byte_of_an_address_arrives(programs: Programs, path: Path, name: str) -> None:
    with Resident(path) as resident:
        assert (
            call(programs, path, name, ANY_BYTE * 3 + b"@" + b"x" * 137, ANY_BYTE[::-1]).code
            == ACCEPTED
        )
    assert resident.asked["sender"].encode("latin-1") == ANY_BYTE * 3 + b"@" + b"x" * 137
    assert resident.asked["recipient"].encode("latin-1") == ANY_BYTE[::-1]


@every_program
def test_the_null_sender_is_empty(sanitized: Programs, path: Path, name: str) -> None:
    with Resident(path) as resident:
        call(sanitized, path, name, b"", b"")
    assert (resident.asked["sender"], resident.asked["recipient"]) == ("", "")


@pytest.mark.parametrize("which", [0, 1])
def test_one_address_that_is_unset_is_empty(sanitized: Programs, path: Path, which: int) -> None:
    environ = {b"TCPREMOTEIP": b"192.0.2.1", b"GREYCHECK_SOCKET": os.fsencode(path)}
    with Resident(path) as resident:
        sanitized.run("greycheck", environ=environ | {(b"REMOTEMF", b"REMOTERCPT")[which]: b"x"})
    assert (resident.asked["sender"], resident.asked["recipient"]) == (
        ("x", "") if which == 0 else ("", "x")
    )


def test_addresses_of_checkenv_are_its_arguments(sanitized: Programs, path: Path) -> None:
    stale = dict.fromkeys(("REMOTEMF", "REMOTERCPT", "REMOTEHELO"), "stale")
    with Resident(path) as resident:
        call(sanitized, path, "qmail-checkenv", b"--help", b"", more=stale)
    assert (resident.asked["sender"], resident.asked["recipient"]) == ("--help", "")
    assert "helo_name" not in resident.asked


def test_of_two_variables_with_one_name_the_first_counts_as_it_does_in_python(
    sanitized: Programs, path: Path
) -> None:
    twice = [
        b"TCPREMOTEIP=192.0.2.1",
        b"TCPREMOTEIP=192.0.2.2",
        b"REMOTEMF=a",
        b"REMOTEMF=b",
        b"REMOTERCPT=c",
    ]
    twice += [
        b"GREYCHECK_DELAY=1m",
        b"GREYCHECK_DELAY=2m",
        b"GREYCHECK_NOTHING",
        b"GREYCHECK_SOCKET=" + os.fsencode(path),
    ]
    program = os.fsencode(sanitized.directory / "greycheck")

    def execute() -> None:
        array = (ctypes.c_char_p * (len(twice) + 1))(*twice, None)
        ctypes.CDLL(None).execve(program, (ctypes.c_char_p * 2)(program, None), array)

    with Resident(path) as resident:
        subprocess.run(["false"], preexec_fn=execute, check=True, capture_output=True)
    attributes = delegation.attributes(resident.requests[0].removesuffix(b"\n\n"))
    assert attributes[b"client_address"] == b"192.0.2.1"
    assert attributes[b"sender"] == b"a"
    assert attributes[b"GREYCHECK_DELAY"] == b"1m"


# --- what it does as it is told -------------------------------------------------------------------


def answer(code: int, *lines: str) -> bytes:
    """An answer with an exit CODE and further LINES."""
    return "".join(f"{line}\n" for line in ("action=DUNNO", f"exit={code}", *lines, "")).encode()


@every_program
def test_it_ends_as_the_answer_says(programs: Programs, path: Path, name: str) -> None:
    for code in set(HOOKS[name].ANSWERS.values()):
        path.unlink(missing_ok=True)
        with Resident(path, answer(code)):
            ran = call(programs, path, name)
        assert (ran.code, ran.said, ran.log, ran.python) == (code, b"", b"", None)


def test_what_qmail_spp_reads_is_said_as_it_stands(programs: Programs, path: Path) -> None:
    with Resident(path, answer(0, "say=E451 greylisted (#4.3.0)", "log=one")):
        ran = call(programs, path, "greycheck-spp")
    assert (ran.code, ran.said, ran.log) == (0, b"E451 greylisted (#4.3.0)\n", b"one\n")


def test_lines_go_to_the_log(programs: Programs, path: Path) -> None:
    with Resident(
        path, answer(101, "log=greycheck: warning x", "log=", "log=greycheck: defer reason=new")
    ):
        ran = call(programs, path)
    assert (ran.code, ran.log) == (101, b"greycheck: warning x\n\ngreycheck: defer reason=new\n")


@pytest.mark.parametrize("length", [1, 100, 4090, 4096, 4097, 12000])
def test_many_and_long_lines_arrive_whole(programs: Programs, path: Path, length: int) -> None:
    lines = [
        chr(97 + number % 26) * (length + number % 3) for number in range(48000 // (length + 6))
    ]
    with Resident(path, answer(0, *(f"log={line}" for line in lines))):
        ran = call(programs, path)
    assert (ran.code, ran.lines) == (0, lines)


@pytest.mark.parametrize("size", [1, 3])
def test_an_answer_may_come_in_pieces(programs: Programs, path: Path, size: int) -> None:
    def dribble(_resident: Resident, connection: socket.socket) -> None:
        whole = answer(101, "log=in pieces")
        for start in range(0, len(whole), size):
            connection.sendall(whole[start : start + size])

    with Resident(path, dribble):
        ran = call(programs, path)
    assert (ran.code, ran.log) == (101, b"in pieces\n")


def test_the_largest_answer_is_taken(programs: Programs, path: Path) -> None:
    small = answer(0, "log=")
    whole = answer(0, "log=" + "x" * (65536 - len(small)))
    assert len(whole) == 65536
    with Resident(path, whole):
        ran = call(programs, path)
    assert (ran.code, len(ran.log)) == (0, 65536 - len(small) + 1)


# --- Python instead -------------------------------------------------------------------------------


def fell_back(ran: Ran, path: Path | str, reason: str) -> bool:
    """Whether Python was told to check, and the log why."""
    return (ran.code, ran.said, ran.log.decode()) == (
        PYTHON,
        b"",
        f"greycheck: warning {path}: {reason}: checking without the resident\n",
    )


@every_program
def test_without_a_resident_it_becomes_python(programs: Programs, path: Path, name: str) -> None:
    earliest = int(time.monotonic() * 1000)
    ran = call(programs, path, name, b"\xff sender", b"recipient", more={"RELAYCLIENT": ""})
    assert fell_back(ran, path, "not there")
    assert ran.python
    arguments, environ = ran.python.arguments, ran.python.environ
    assert arguments[0] == os.fsencode(programs.behind / name)
    parts = {"sender": b"\xff sender", "recipient": b"recipient"}
    argv, variables = calling.call(HOOKS[name], parts)
    assert arguments[1:] == argv[1:]
    assert variables.items() <= environ.items()
    assert environ[b"RELAYCLIENT"] == b""
    assert earliest <= int(environ[b"_GREYCHECK_STARTED"]) <= time.monotonic() * 1000


def test_nobody_listens(programs: Programs, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unused:
        unused.bind(str(path))
        assert fell_back(call(programs, path), path, "nobody listens there")


def test_a_file_is_no_socket(programs: Programs, path: Path) -> None:
    path.write_text("")
    assert fell_back(call(programs, path), path, "nobody listens there")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_socket_may_be_closed_to_it(programs: Programs, path: Path) -> None:
    programs.directory.chmod(0o755)
    with Resident(path):
        path.chmod(0o600)
        assert fell_back(
            call(programs, path, before=lambda: os.setuid(65534)), path, "permission denied"
        )


def test_too_many_wait(programs: Programs, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        waiting = []
        while True:
            one = socket.socket(socket.AF_UNIX)
            waiting.append(one)
            one.setblocking(False)
            try:
                one.connect(str(path))
            except BlockingIOError:
                break
        ran = call(programs, path)
        for one in waiting:
            one.close()
    assert fell_back(ran, path, "too many wait there")


@pytest.mark.parametrize("begun", [b"", b"action=DUNNO\nexit=0\n"])
def test_a_resident_that_hangs_is_waited_for_and_left(
    programs: Programs, path: Path, begun: bytes
) -> None:
    def hang(resident: Resident, connection: socket.socket) -> None:
        connection.sendall(begun)
        resident.hang(connection)

    with Resident(path, hang):
        ran = call(programs, path, more={"GREYCHECK_SOCKET_PATIENCE": "1"})
    assert fell_back(ran, path, "no answer in time")
    assert waited(ran) >= 1000, "Python's deadline must count from the beginning"


def waited(ran: Ran) -> int:
    """How long ago Python was told that RAN began, in milliseconds: at least as long as it had run
    for.
    """
    assert ran.python
    return int(time.monotonic() * 1000) - int(ran.python.environ[b"_GREYCHECK_STARTED"])


def test_a_resident_that_reads_nothing_is_left(programs: Programs, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        ran = call(programs, path, more={"GREYCHECK_SOCKET_PATIENCE": "1"})
        assert fell_back(ran, path, "no answer in time")


@pytest.mark.parametrize("text", ["2", "2s"])
def test_patience_is_a_setting(sanitized: Programs, path: Path, text: str) -> None:
    with Resident(path, Resident.hang):
        assert waited(call(sanitized, path, more={"GREYCHECK_SOCKET_PATIENCE": text})) >= 2000


@pytest.mark.parametrize("text", ["", "0", "61", "1h", "-1", "9" * 40])
def test_patience_that_is_none_is_the_default(sanitized: Programs, path: Path, text: str) -> None:
    """One that took such a text for longer would not end in the time that a test has."""
    with Resident(path, Resident.hang):
        assert fell_back(
            call(sanitized, path, more={"GREYCHECK_SOCKET_PATIENCE": text}),
            path,
            "no answer in time",
        )


GARBAGE = [
    b"\n",
    b"\n\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"action=DUNNO\n\n",
    b"action=DUNNO\nexit=0\n",
    b"action=DUNNO\nexit=0",
    b"action=DUNNO\nexit=\n\n",
    b"action=DUNNO\nexit=1\n\n",
    b"action=DUNNO\nexit=00\n\n",
    b"action=DUNNO\nexit=+0\n\n",
    b"action=DUNNO\nexit= 0\n\n",
    b"action=DUNNO\nexit=0 \n\n",
    b"action=DUNNO\nexit=120\n\n",
    b"action=DUNNO\nexit=1000\n\n",
    b"action=DUNNO\nexit=-1\n\n",
    b"action=DUNNO\nexit=4294967296\n\n",
    b"action=DUNNO\nexit=0\nexit=0\n\n",
    b"action=DUNNO\nexit=7\nexit=0\n\n",
    b"action=DUNNO\nEXIT=0\n\n",
    b"action=DUNNO\nexit=0\nlog\n\n",
    b"action=DUNNO\nexit=0\nlogs=x\n\n",
    b"action=DUNNO\nexit=0\nlog=x\0\n\n",
    b"\0action=DUNNO\nexit=0\n\n",
    b"action=DUNNO\nexit=0\n\nlog=x\n\n",
    b"exit=0\r\n\r\n",
    b"x" * 65536,
    b"x" * 70000 + b"\n\n",
    b"exit=0\n" + b"log=x\n" * 20000 + b"\n",
]


@pytest.mark.parametrize("said", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_no_answer(programs: Programs, path: Path, said: bytes) -> None:
    with Resident(path, said):
        assert fell_back(call(programs, path), path, "its answer makes no sense")


@every_program
def test_another_hooks_answer_is_none(programs: Programs, path: Path, name: str) -> None:
    for said in [answer(code) for code in {2, *CODES} - set(HOOKS[name].ANSWERS.values())]:
        path.unlink(missing_ok=True)
        with Resident(path, said):
            assert fell_back(call(programs, path, name), path, "its answer makes no sense")


@every_program
def test_only_qmail_spp_is_spoken_to_and_once(programs: Programs, path: Path, name: str) -> None:
    twice = answer(0, "say=E451 no", "say=E451 no")
    for said in (
        twice,
        answer(0, "log=x", "say=E451 no"),
        *([] if name in SPOKEN_TO else [answer(0, "say=E")]),
    ):
        path.unlink(missing_ok=True)
        with Resident(path, said):
            assert fell_back(call(programs, path, name), path, "its answer makes no sense")


def test_an_answer_without_end_is_none(programs: Programs, path: Path) -> None:
    def babble(_resident: Resident, connection: socket.socket) -> None:
        while True:
            connection.sendall(b"log=x\n" * 1000)

    with Resident(path, babble):
        assert fell_back(call(programs, path), path, "its answer makes no sense")


@pytest.mark.parametrize("said", [b"", None])
def test_a_resident_that_will_not_decide_closes(
    programs: Programs, path: Path, said: bytes | None
) -> None:
    with Resident(path, said):
        assert fell_back(call(programs, path), path, "closed without an answer")


@pytest.mark.parametrize("text", ["relative", "/" + "x" * 107, "/" + "x" * 300])
def test_what_is_no_path_of_a_socket_is_told(programs: Programs, text: str) -> None:
    assert fell_back(call(programs, Path(text)), text[:200], "no absolute path, or too long")


def test_a_path_forges_no_line(programs: Programs) -> None:
    assert fell_back(call(programs, Path("/\x1b[2J\x7f\r\t")), "/?[2J???", "not there")


def test_an_error_that_is_rare_has_its_number(programs: Programs, place: Path) -> None:
    (place / "loop").symlink_to(place / "loop")
    assert fell_back(call(programs, place / "loop"), place / "loop", f"error {errno.ELOOP}")


# What is Python's at once: no line is logged, and nobody asked.


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("greycheck", ["expire"]),
        ("greycheck", ["a", "b"]),
        ("greycheck-spp", ["--help"]),
        ("greycheck-rcptcheck", [""]),
    ]
    + [("qmail-checkenv", ["a"] * count) for count in (0, 1, 3)],
)
def test_arguments_that_no_hook_gives_are_pythons(
    programs: Programs, path: Path, name: str, arguments: list[str]
) -> None:
    environ = {b"TCPREMOTEIP": b"192.0.2.1", b"GREYCHECK_SOCKET": os.fsencode(path)}
    environ |= SENDERS
    with Resident(path) as resident:
        ran = programs.run(name, *arguments, environ=environ)
    assert resident.requests == []
    assert (ran.code, ran.log) == (PYTHON, b"")
    assert ran.python
    assert ran.python.arguments[1:] == [argument.encode() for argument in arguments]


@every_program
@pytest.mark.parametrize("missing", ["client", "addresses"])
def test_without_client_or_addresses_it_is_pythons(
    programs: Programs, path: Path, name: str, missing: str
) -> None:
    environ = {b"GREYCHECK_SOCKET": os.fsencode(path), b"_GREYCHECK_COMPLETE": b"bash_complete"}
    hook = HOOKS[name]
    argv, variables = calling.call(
        hook, {"client": b"192.0.2.1", "sender": b"a", "recipient": b"b"}
    )
    without = ["client"] if missing == "client" else ["sender", "recipient"]
    for part in without:
        variables.pop(hook.VARIABLES.get(part, b""), None)
    arguments = argv[1:] if missing == "client" else []
    with Resident(path) as resident:
        ran = programs.run(name, *arguments, environ=environ | variables)
    assert resident.requests == []
    assert (ran.code, ran.log) == (PYTHON, b"")


def test_the_variable_of_completion_is_no_way_around_the_check(
    programs: Programs, path: Path
) -> None:
    with Resident(path, answer(101)):
        assert call(programs, path, more={"_GREYCHECK_COMPLETE": "bash_complete"}).code == 101


@every_program
@pytest.mark.parametrize(
    "more",
    [
        {"GREYCHECK_DELAY": "1m\nrecipient=x"},
        {"GREYCHECK_A\nB": "x"},
        {"name": "a\n\n"},
        {"RELAYCLIENT": "\n"},
    ],
)
def test_a_line_feed_is_pythons(
    sanitized: Programs, path: Path, name: str, more: dict[str, str]
) -> None:
    variables = HOOKS[name].VARIABLES
    more = {variables.get(key, key.encode()).decode(): value for key, value in more.items()}
    with Resident(path) as resident:
        ran = call(sanitized, path, name, more=more)
    assert resident.requests == []
    assert (ran.code, ran.log) == (PYTHON, b"")


@every_program
def test_an_address_with_a_line_feed_is_pythons(sanitized: Programs, path: Path, name: str) -> None:
    with Resident(path) as resident:
        assert call(sanitized, path, name, b"a\nrecipient=x").code == PYTHON
        assert call(sanitized, path, name, b"a", b"\n").code == PYTHON
    assert resident.requests == []


@pytest.mark.parametrize(("extra", "asks"), [(0, True), (1, False), (100000, False)])
def test_what_is_too_long_is_pythons(
    programs: Programs, path: Path, extra: int, asks: bool
) -> None:
    with Resident(path) as resident:
        call(programs, path)
        room = 16384 - len(resident.requests.pop()) - len("GREYCHECK_X=\n")
        ran = call(programs, path, more={"GREYCHECK_X": "x" * (room + extra)})
    assert [len(request) for request in resident.requests] == [16384] * asks
    assert ran.code == (ACCEPTED if asks else PYTHON)
    assert ran.log == (ACCEPTED_LINE if asks else b"")


def test_a_huge_environment_is_no_matter(programs: Programs, path: Path) -> None:
    more = {f"VARIABLE_{number}": "x" * 1000 for number in range(1000)}
    with Resident(path) as resident:
        assert call(programs, path, more=more).code == ACCEPTED
    assert len(resident.requests[0]) < 1000
    ran = call(programs, path.with_name("other"), more=more)
    assert ran.python
    assert more.keys() <= {name.decode() for name in ran.python.environ}


def test_no_socket_is_nobody_to_ask(programs: Programs, path: Path) -> None:
    assert call(programs, Path(), more={"GREYCHECK_SOCKET": ""}).log == b""


def test_python_is_told_once_when_it_began(programs: Programs, path: Path) -> None:
    ran = call(programs, path, more={"_GREYCHECK_STARTED": "1"})
    assert waited(ran) < 2**31


def test_another_name_is_the_first_programs(programs: Programs, path: Path, place: Path) -> None:
    (place / "check").symlink_to(programs.directory / "greycheck")
    with Resident(path) as resident:
        call(programs, path, name="greycheck")
    environ = {
        b"TCPREMOTEIP": b"192.0.2.1",
        b"REMOTEMF": b"",
        b"GREYCHECK_SOCKET": os.fsencode(path),
    }
    for argv in ([b"/x/check"], [b"check"], [b""], [b"/"], []):
        ran = programs.run("greycheck", environ=environ, argv=argv)
        assert ran.python
        assert ran.python.arguments == [os.fsencode(programs.behind / "greycheck")]
    assert resident.asked["greycheck_hook"] == "smtpextfork"


# --- not even Python ------------------------------------------------------------------------------


@pytest.fixture(params=["not there", "permission denied"])
def bare(request: pytest.FixtureRequest, programs: Programs) -> Iterator[tuple[Programs, str]]:
    """The programs without those in Python, and why."""
    if request.param == "not there":
        programs.behind.rename(programs.directory / "away")
        yield programs, request.param
        (programs.directory / "away").rename(programs.behind)
    else:
        for name in NAMES:
            (programs.behind / name).chmod(0o644)
        yield programs, request.param
        for name in NAMES:
            (programs.behind / name).chmod(0o755)


@every_program
@pytest.mark.parametrize("on_error", [None, "accept", "defer", " DEFER "])
def test_the_last_resort_is_a_verdict_and_a_line(
    bare: tuple[Programs, str], path: Path, name: str, on_error: str | None
) -> None:
    programs, reason = bare
    ran = call(
        programs, path, name, more={} if on_error is None else {"GREYCHECK_ON_ERROR": on_error}
    )
    defers = on_error not in (None, "accept")
    assert ran.lines[1:] == [
        f"greycheck: {'defer' if defers else 'accept'} reason=error"
        f' error="{programs.behind}/{name}: {reason}"'
    ]
    assert (ran.code, ran.said) == calling.last_resort(HOOKS[name], DEFER if defers else ACCEPT)


def test_the_last_resort_waits_for_no_log_either(bare: tuple[Programs, str], path: Path) -> None:
    """The log has room for the first of two lines."""
    programs, _reason = bare
    reader, log = os.pipe()
    first = f"greycheck: warning {path}: not there: checking without the resident\n"
    os.write(log, b"x" * (65536 - len(first) - 1))
    ran = call(programs, path, log=log, more={"GREYCHECK_ON_ERROR": "defer"})
    os.close(log)
    with open(reader) as logged:
        assert logged.read().lstrip("x") == first
    assert ran.code == 101


# --- descriptors and signals ----------------------------------------------------------------------


def closing(*descriptors: int) -> Callable[[], None]:
    """What closes DESCRIPTORS."""

    def close() -> None:
        for each in descriptors:
            os.close(each)

    return close


@every_program
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_nothing_reaches_the_resident_by_a_descriptor_that_was_closed(
    programs: Programs, path: Path, name: str, closed: tuple[int, ...]
) -> None:
    said = ["say=E451 no"] if name in SPOKEN_TO else []
    with Resident(path, answer(DEFERS[name], *said, "log=a line")) as resident:
        ran = call(programs, path, name, before=closing(*closed))
    assert ran.code == DEFERS[name]
    assert resident.later == b""
    assert ran.log == (b"" if 2 in closed else b"a line\n")
    assert ran.said == (b"E451 no\n" if said and 1 not in closed else b"")


@pytest.mark.parametrize("closed", [(), (2,), (0, 1, 2)])
def test_python_inherits_descriptors_as_they_were(
    programs: Programs, path: Path, closed: tuple[int, ...]
) -> None:
    with Resident(path, b"no sense") as resident:
        ran = call(programs, path, before=closing(*closed))
    assert (ran.code, resident.later, ran.log == b"") == (PYTHON, b"", closed != ())
    assert ran.python
    assert ran.python.sockets == []


def test_no_line_is_mixed_with_those_of_others(programs: Programs, path: Path) -> None:
    """In a pipe of packets each write stays by itself."""
    reader, log = os.pipe2(os.O_DIRECT)
    lines = [f"{number} {'x' * 15 * number}" for number in range(60)]
    with Resident(path, answer(0, *(f"log={line}" for line in lines))):
        assert call(programs, path, log=log).code == ACCEPTED
    os.close(log)
    packets = list(iter(lambda: os.read(reader, 65536).decode(), ""))
    os.close(reader)
    assert "".join(packets).splitlines() == lines
    assert all(packet.endswith("\n") for packet in packets)
    assert len(packets) < 10, "lines go together where they can"


@pytest.mark.parametrize("restore_signals", [True, False])
@every_program
def test_a_dead_log_costs_its_lines(
    programs: Programs, path: Path, name: str, restore_signals: bool
) -> None:
    reader, log = os.pipe()
    os.close(reader)
    with Resident(path, answer(DEFERS[name], "log=a line", "log=another")):
        ran = call(programs, path, name, log=log, restore_signals=restore_signals)
    assert ran.code == DEFERS[name]
    assert (
        call(programs, path.with_name("other"), name, log=log, restore_signals=restore_signals).code
        == PYTHON
    )
    os.close(log)


@pytest.fixture
def stuck() -> Iterator[int]:
    """A log that takes nothing any more."""
    reader, log = os.pipe()
    os.set_blocking(log, False)
    os.write(log, b"x" * 65536)
    os.set_blocking(log, True)
    yield log
    os.close(reader)
    os.close(log)


def block_alarm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})


@every_program
@pytest.mark.parametrize("before", [None, block_alarm])
def test_a_stuck_log_costs_its_lines(
    programs: Programs, path: Path, name: str, stuck: int, before: Callable[[], None] | None
) -> None:
    with Resident(path, answer(DEFERS[name], "log=a line", "log=" + "x" * 9000)):
        assert call(programs, path, name, log=stuck, before=before).code == DEFERS[name]
    assert call(programs, path.with_name("other"), name, log=stuck, before=before).code == PYTHON


def test_qmail_spp_is_spoken_to_before_the_log_is_tried(
    programs: Programs, path: Path, stuck: int
) -> None:
    with Resident(path, answer(0, "say=E451 no", "log=a line")):
        ran = call(programs, path, "greycheck-spp", log=stuck)
    assert (ran.code, ran.said) == (0, b"E451 no\n")


@pytest.mark.parametrize("blocked", [set(), {signal.SIGALRM, signal.SIGUSR1}])
def test_python_finds_signals_blocked_as_they_were(
    programs: Programs, path: Path, blocked: set[signal.Signals]
) -> None:
    ran = call(programs, path, before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, blocked))
    assert ran.python
    assert set(ran.python.blocked) == blocked
    assert ran.python.alarm == (0.0, 0.0)


# --- whatever comes -------------------------------------------------------------------------------

fuzz = settings(max_examples=150)

# A byte of each kind.
BYTES = st.sampled_from(
    [
        b"a",
        b"=",
        b"\n",
        b"\r",
        b" ",
        b"\xff",
        b"\xc3\xa9",
        b"@",
        b"-",
        b"\x01",
        b"x" * 300,
        b"y" * 9000,
    ]
)
VALUES = st.lists(BYTES, max_size=6).map(b"".join)
KNOWN = [b"RELAYCLIENT", b"SMTPAUTHUSER", b"GREYCHECK", b"GREYCHECK_DELAY", b"GREYCHECK_X"]
KNOWN += dict.fromkeys(each for hook in HOOKS.values() for each in hook.VARIABLES.values())
KNOWN += [each for hook in HOOKS.values() for each in hook.FURTHER] + [b"_GREYCHECK_STARTED"]
ENVIRONS = st.dictionaries(st.sampled_from(KNOWN), VALUES)
REMOTE = st.sampled_from([{}, {b"TCPREMOTEIP": b"192.0.2.1"}, {b"TCPREMOTEIP": b"2001:db8::1"}])
ADDRESSES = st.sampled_from([{}, SENDERS])


@fuzz
@given(
    name=st.sampled_from(NAMES),
    arguments=st.lists(VALUES.map(lambda value: value.replace(b"\0", b"")), max_size=3),
    environ=st.builds(
        lambda *parts: {k: v for part in parts for k, v in part.items()},
        ENVIRONS,
        REMOTE,
        ADDRESSES,
    ),
)
def test_the_resident_is_told_what_python_would_see(
    sanitized: Programs, name: str, arguments: list[bytes], environ: dict[bytes, bytes]
) -> None:
    """Or else Python is asked itself."""
    path = sanitized.directory / "fuzzed"
    path.unlink(missing_ok=True)
    environ = environ | {b"GREYCHECK_SOCKET": os.fsencode(path)}
    if name not in WITH_ARGUMENTS:
        arguments = arguments[:0] if len(arguments) < 3 else arguments
    with Resident(path) as resident:
        ran = sanitized.run(name, *arguments, environ=environ)
    if not resident.requests:
        assert ran.code == PYTHON
        assert ran.python
        assert ran.python.arguments[1:] == arguments
        assert (
            environ.items() - {(b"_GREYCHECK_STARTED", environ.get(b"_GREYCHECK_STARTED"))}
            <= ran.python.environ.items()
        )
        return
    assert ran.code == ACCEPTED
    attributes = delegation.attributes(resident.requests[0].removesuffix(b"\n\n"))
    hook = hooks.called_by([name.encode(), *arguments])
    assert hook
    seen, told = (
        hook.envelope([name.encode(), *arguments], environ),
        delegation.envelope(attributes, hook.NAME),
    )
    assert attributes[b"greycheck_hook"].decode() == hook.NAME
    assert (told.client, told.sender, told.recipient, told.name) == (
        seen.client,
        seen.sender,
        seen.recipient,
        seen.name,
    )
    assert told.helo == (seen.helo if len(seen.helo) <= 255 else b"")
    given = PATIENCE | {
        key: value for key, value in environ.items() if key.startswith(b"GREYCHECK")
    }
    assert {
        key: value for key, value in attributes.items() if key.startswith(b"GREYCHECK")
    } == given


# Lines of which an answer that makes sense may be made, and others.
SENSE = [f"exit={code}".encode() for code in sorted(CODES)]
SENSE += [b"log=one", b"log=", b"log=" + b"x" * 5000, b"say=E451 no"]
LINES = [*SENSE, b"action=DUNNO", b"action=", b"exit=2", b"", b"say=", b"s", b"log=\xff", b"\0"]
LINES += [b"exit=", b"log=" + b"y" * 20000]
ANSWERS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(LINES), max_size=12).map(
        lambda lines: b"".join(line + b"\n" for line in lines)
    ),
    st.lists(st.sampled_from(SENSE), max_size=6).map(
        lambda lines: b"action=x\n" + b"".join(line + b"\n" for line in lines) + b"\n"
    ),
)


def understood(name: str, said: bytes) -> tuple[int, bytes, bytes] | None:
    """What the program NAME must do about what was SAID to it: its exit code, what it says and what
    it logs. None: ask Python.
    """
    if not said.endswith(b"\n\n") or b"\0" in said or len(said) > 65536:
        return None
    told: dict[bytes, list[bytes]] = {b"action": [], b"exit": [], b"say": [], b"log": []}
    for line in said[:-2].split(b"\n"):
        key, equals, value = line.partition(b"=")
        if not equals or key not in told or (key == b"say" and told[b"log"]):
            return None
        told[key].append(value)
    allowed = {str(code).encode(): code for code in HOOKS[name].ANSWERS.values()}
    codes, spoken, log = told[b"exit"], told[b"say"], told[b"log"]
    if len(codes) != 1 or codes[0] not in allowed or len(spoken) > (name in SPOKEN_TO):
        return None
    return (
        allowed[codes[0]],
        b"".join(each + b"\n" for each in spoken),
        b"".join(each + b"\n" for each in log),
    )


@fuzz
@given(name=st.sampled_from(NAMES), said=ANSWERS, sizes=st.lists(st.integers(1, 50), max_size=5))
def test_only_what_is_understood_is_done(
    sanitized: Programs, name: str, said: bytes, sizes: list[int]
) -> None:
    path = sanitized.directory / "fuzzed"
    path.unlink(missing_ok=True)

    def speak(_resident: Resident, connection: socket.socket) -> None:
        rest = said
        for size in sizes:
            connection.sendall(rest[:size])
            rest = rest[size:]
        connection.sendall(rest)

    with Resident(path, speak):
        ran = call(sanitized, path, name)
    expected = understood(name, said)
    if expected is None:
        assert ran.said == b""
        assert ran.code == PYTHON
    else:
        assert (ran.code, ran.said, ran.log) == expected
