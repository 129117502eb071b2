"""Reading settings: sources, types, and what cannot be read."""

import ast
import inspect
import os
from pathlib import Path
from time import monotonic

import pytest

from greycheck import settings
from greycheck.settings import TABLE, Settings, read

NO_FILE = {b"GREYCHECK_CONFIG": b"/dev/null"}


def with_file(path: Path, text: str | bytes, **environ: str) -> Settings:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(
        {
            b"GREYCHECK_CONFIG": os.fsencode(path),
            **{f"GREYCHECK_{k}".encode(): v.encode() for k, v in environ.items()},
        }
    )


def with_environ(**environ: str) -> Settings:
    return read(
        NO_FILE | {f"GREYCHECK_{name}".encode(): value.encode() for name, value in environ.items()}
    )


def test_the_defaults_are_those_of_the_table() -> None:
    found = read(NO_FILE)
    assert (found.delay, found.retry_window, found.lifetime) == (300, 2 * 86400, 36 * 86400)
    assert (found.ipv4_prefix, found.ipv6_prefix, found.client_passes) == (24, 64, 1)
    assert (found.null_sender, found.deadline, found.on_error, found.database_mode) == (
        "greylist",
        5,
        "accept",
        0o600,
    )
    assert set(found.sources.values()) == {"default"}
    assert found.problems == []
    assert not found.off


def test_every_setting_has_an_attribute_and_a_meaning() -> None:
    source = ast.parse(inspect.getsource(Settings))
    annotated = [node.target for node in ast.walk(source) if isinstance(node, ast.AnnAssign)]
    names = {target.id for target in annotated if isinstance(target, ast.Name)}
    assert {setting.name for setting in TABLE} == names
    assert all(setting.meaning.endswith(".") for setting in TABLE)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("24h", 86400), ("36d", 3110400), ("0", 0)],
)
def test_durations(text: str, seconds: int) -> None:
    assert settings.duration(text) == seconds


@pytest.mark.parametrize("text", ["0s", "90s", "5m", "24h", "36d", "61m"])
def test_durations_are_written_as_they_are_read(text: str) -> None:
    assert settings.duration_text(settings.duration(text)) in (text, "1d")


@pytest.mark.parametrize(
    "text", ["", "m", "-5", "5 m", "1.5h", "5w", "٣", "1e3", "5mm", "99999999999"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        settings.duration(text)


def test_the_environment_counts_before_the_file(tmp_path: Path) -> None:
    found = with_file(tmp_path / "conf", "# ours\n\ndelay = 1m\nlifetime=40d\n", DELAY="2m")
    assert (found.delay, found.sources["delay"]) == (120, "GREYCHECK_DELAY")
    assert (found.lifetime, found.sources["lifetime"]) == (40 * 86400, f"{tmp_path}/conf:4")
    assert found.problems == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("delay = soon", "delay = soon: not a duration (as 90, 90s, 5m, 24h or 36d); using 5m"),
        ("delay", "not a line of the form name = value"),
        (
            "database = /var/x?y.db",
            "database: an SQLite file with ? or % in its path cannot be named in a URL; there is"
            " no store, and on_error answers",
        ),
        ("dealy = 5m", "dealy: no such setting: did you mean delay?"),
        ("ipv4_prefix = 33", "ipv4_prefix = 33: not a whole number from 1 to 32; using 24"),
        ("ipv6_prefix = x", "ipv6_prefix = x: not a whole number from 1 to 128; using 64"),
        ("on_error = reject", "on_error = reject: not one of accept, defer; using accept"),
        ("deadline = 0", "deadline = 0: not from 1s to 10m; using 5s"),
        ("database_mode = 0777", "database_mode = 0777: not 0600 or 0660; using 0600"),
        (
            "database = greycheck.db",
            "database: not an SQLAlchemy URL or an absolute path (as"
            " sqlite:////var/lib/greycheck/greycheck.db);"
            " there is no store, and on_error answers",
        ),
    ],
)
def test_a_wrong_line_is_named_and_the_default_used(
    tmp_path: Path, line: str, problem: str
) -> None:
    found = with_file(tmp_path / "conf", f"# first\n{line}\n")
    assert found.problems == [f"{tmp_path}/conf:2: {problem}"]
    assert (found.delay, found.ipv4_prefix, found.deadline, found.on_error) == (
        300,
        24,
        5,
        "accept",
    )


def test_a_wrong_variable_is_named() -> None:
    assert with_environ(DELAY="5 parsecs").problems == [
        "GREYCHECK_DELAY: delay = 5 parsecs: not a duration (as 90, 90s, 5m, 24h or 36d); using 5m"
    ]
    assert with_environ(DEALY="5m").problems == [
        "GREYCHECK_DEALY: dealy: no such setting: did you mean delay?"
    ]


# What is said of a settings file that is not read to its end: what is not may name a database.
NO_STORE = "; there is no store, and on_error answers"
TOO_LONG = "{}/conf: longer than 65536 bytes: line {} and what follows is not read" + NO_STORE


def test_a_file_that_is_too_long_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    found = with_file(tmp_path / "conf", "Delay = 7m\n" + "# filler\n" * 8000)
    assert found.delay == 420
    assert found.problems == [TOO_LONG.format(tmp_path, 7282)]


@pytest.mark.parametrize("filler", ["x", "\u00e4", "\u20ac", "\U0001f4ec"])
@pytest.mark.parametrize("missing", range(-3, 12))
def test_a_line_counts_whole_or_not_at_all(tmp_path: Path, filler: str, missing: int) -> None:
    """Whatever its bytes are: `retry_window = 48h` that is cut would be 48 seconds, or 4."""
    last = "retry_window = 48h"
    comment = "# " + filler * ((65536 - len(last) - 3) // len(filler.encode()) + missing)
    found = with_file(tmp_path / "conf", f"{comment}\n{last}")
    size = len(f"{comment}\n{last}".encode())
    if size <= 65536:
        assert (found.retry_window, found.problems) == (48 * 3600, [])
    else:
        cut = 1 if len(comment.encode()) >= 65536 else 2
        default = next(each.default for each in settings.TABLE if each.name == "retry_window")
        assert (found.retry_window, found.problems) == (default, [TOO_LONG.format(tmp_path, cut)])


def test_a_byte_order_mark_and_lines_that_end_as_on_windows_are_no_part_of_a_setting(
    tmp_path: Path,
) -> None:
    found = with_file(tmp_path / "conf", "\ufeffdelay = 7m\r\nlifetime = 40d\r\n")
    assert (found.delay, found.lifetime, found.problems) == (420, 40 * 86400, [])


@pytest.mark.parametrize("value", ["/run/a\nb", "/run/\x1b[2J", "/run/\udcff", "/run/a\x7f"])
def test_a_value_is_a_line_of_printable_characters(value: str) -> None:
    found = read(NO_FILE | {b"GREYCHECK_SOCKET": value.encode("utf-8", "surrogateescape")})
    assert found.socket == "/run/greycheck/socket"
    assert len(found.problems) == 1
    assert "not a line of printable characters" in found.problems[0]


def test_an_empty_name_of_a_file_is_named() -> None:
    assert read({b"GREYCHECK_CONFIG": b""}).problems == [
        f"GREYCHECK_CONFIG, which is empty: No such file or directory{NO_STORE}"
    ]


def test_a_password_is_not_repeated(tmp_path: Path) -> None:
    found = with_file(tmp_path / "conf", "database = user:secret@host/db\n")
    assert "secret" not in found.problems[0]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("/var/x/y.db", "sqlite:////var/x/y.db"),
        ("sqlite:////var/x/y.db", "sqlite:////var/x/y.db"),
        ("sqlite+pysqlite:////var/x/y.db", "sqlite:////var/x/y.db"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_a_database_is_a_url_or_a_path(text: str, url: str) -> None:
    found = with_environ(DATABASE=text)
    assert (found.database.url, found.problems) == (url, [])
    setting = next(each for each in settings.TABLE if each.name == "database")
    assert setting.parse(setting.show(found.database)) == found.database
    assert bool(found.database.path) != bool(found.database.server)


@pytest.mark.parametrize(
    ("text", "off"), [("off", True), ("OFF", True), ("on", False), ("", False)]
)
def test_checking_can_be_off_for_a_client(text: str, off: bool) -> None:
    found = read(NO_FILE | {b"GREYCHECK": text.encode()})
    assert (found.off, found.problems) == (off, [])


def test_checking_stays_on_where_the_variable_makes_no_sense() -> None:
    found = read(NO_FILE | {b"GREYCHECK": b"maybe"})
    assert (found.off, found.problems) == (
        False,
        ["GREYCHECK: maybe: neither on nor off; using on"],
    )


def test_other_variables_that_begin_alike_are_not_ours() -> None:
    assert read(NO_FILE | {b"GREYCHECKER": b"x", b"PATH": b"/bin"}).problems == []


@pytest.mark.parametrize(
    ("environ", "window", "delay", "used"),
    [
        ({"RETRY_WINDOW": "5m"}, 172800, 300, "retry_window = 48h"),
        ({"DELAY": "2d"}, 172800, 300, "retry_window = 48h, delay = 5m"),
        ({"DELAY": "2h", "RETRY_WINDOW": "1h"}, 172800, 7200, "retry_window = 48h"),
    ],
)
def test_a_window_that_no_retry_could_meet_is_not_used(
    environ: dict[str, str], window: int, delay: int, used: str
) -> None:
    found = with_environ(**environ)
    assert (found.retry_window, found.delay) == (window, delay)
    [problem] = found.problems
    assert problem.endswith(f"no retry could pass; using {used}")


def test_a_missing_file_is_only_missed_where_it_was_named(tmp_path: Path) -> None:
    assert with_environ().problems == []
    found = read({b"GREYCHECK_CONFIG": os.fsencode(tmp_path / "none")})
    assert found.problems == [f"{tmp_path}/none: No such file or directory{NO_STORE}"]
    assert read({b"GREYCHECK_CONFIG": os.fsencode(tmp_path)}).problems == [
        f"{tmp_path}: Is a directory{NO_STORE}"
    ]


@pytest.mark.parametrize("name", [b"DATABASE", b"DATABASE_FILE"])
def test_a_file_that_cannot_be_read_costs_no_store_that_the_environment_names(
    tmp_path: Path, name: bytes
) -> None:
    (tmp_path / "url").write_text(f"sqlite:///{tmp_path}/greycheck.db\n")
    value = {b"DATABASE": f"{tmp_path}/greycheck.db", b"DATABASE_FILE": f"{tmp_path}/url"}[name]
    named = {b"GREYCHECK_" + name: value.encode()}
    found = read({b"GREYCHECK_CONFIG": os.fsencode(tmp_path / "none")} | named)
    assert found.problems == [f"{tmp_path}/none: No such file or directory"]
    assert found.has_store
    assert found.database.path == f"{tmp_path}/greycheck.db"


def test_an_empty_name_in_the_environment_names_no_store(tmp_path: Path) -> None:
    config = {b"GREYCHECK_CONFIG": os.fsencode(tmp_path / "none")}
    assert not read(
        config | {b"GREYCHECK_DATABASE": b"", b"GREYCHECK_DATABASE_FILE": b""}
    ).has_store


def test_what_is_cut_off_from_a_file_may_name_a_database(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("#" * 70_000 + f"\ndatabase = {tmp_path}/greycheck.db\n")
    assert not read({b"GREYCHECK_CONFIG": os.fsencode(tmp_path / "conf")}).has_store


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert read({b"GREYCHECK_CONFIG": os.fsencode(loop)}).problems == [
        f"{loop}: Too many levels of symbolic links{NO_STORE}"
    ]


def test_the_file_in_etc_is_read_where_no_other_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "CONFIG_FILE", str(tmp_path / "etc"))
    assert read({}).problems == []
    (tmp_path / "etc").write_text("delay = 7m\n")
    assert read({}).delay == 420


def test_bytes_that_are_no_text_are_no_obstacle(tmp_path: Path) -> None:
    found = with_file(tmp_path / "conf", b"database = /var/\xff.db\nd\xff = 1\n")
    assert sorted(os.fsencode(problem).partition(b"conf:")[2] for problem in found.problems) == [
        b"1: database: an SQLite file whose path is no UTF-8 cannot be named in a URL; there is no"
        b" store, and on_error answers",
        b"2: d\xff: no such setting",
    ]


def test_the_store_is_in_the_systems_directory_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "SYSTEM_DIRECTORY", str(tmp_path))
    assert read(NO_FILE).database.url == f"sqlite:///{tmp_path}/greycheck.db"


@pytest.mark.parametrize(
    ("user", "environ", "directory"),
    [
        (1000, {"HOME": "{home}"}, "{home}/.local/state/greycheck"),
        (1000, {"HOME": "{home}", "XDG_STATE_HOME": "/state"}, "/state/greycheck"),
        (1000, {"HOME": "{home}", "XDG_STATE_HOME": "relative"}, "{home}/.local/state/greycheck"),
        (1001, {"HOME": "{home}"}, "{system}"),
        (1000, {"HOME": "{home}/none"}, "{system}"),
        (1000, {}, "{system}"),
        (0, {"HOME": "{home}"}, "{system}"),
    ],
)
def test_without_it_an_ordinary_user_has_his_own(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    user: int,
    environ: dict[str, str],
    directory: str,
) -> None:
    system = f"{tmp_path}/none/system"
    monkeypatch.setattr(settings, "SYSTEM_DIRECTORY", system)
    monkeypatch.setattr(settings.posix, "geteuid", lambda: user)
    monkeypatch.setattr(
        settings.posix,
        "stat",
        lambda path, stat=os.stat: owned_by(1000 if user != 0 else 0, stat(path)),
    )
    given = {name.encode(): value.format(home=tmp_path).encode() for name, value in environ.items()}
    assert settings.default_directory(given) == directory.format(home=tmp_path, system=system)


def owned_by(user: int, status: os.stat_result) -> os.stat_result:
    fields = list(status)
    fields[4] = user
    return os.stat_result(fields)


# --- where the store is ---------------------------------------------------------------------------


def read_with(**given: str) -> Settings:
    environ = {b"GREYCHECK_CONFIG": b"/dev/null"}
    return read(
        environ
        | {f"GREYCHECK_{name.upper()}".encode(): value.encode() for name, value in given.items()}
    )


def test_a_file_may_say_where_the_store_is(tmp_path: Path) -> None:
    path = tmp_path / "database"
    path.write_text("postgresql://user:secret@db/greycheck\nwhatever follows\n")
    found = read_with(database_file=str(path))
    assert found.database.url == "postgresql://user:secret@db/greycheck"
    assert found.sources["database"] == str(path)
    assert found.problems == []
    path.write_text("/var/x/greycheck.db\n")
    assert read_with(database_file=str(path)).database.url == "sqlite:////var/x/greycheck.db"


def test_a_database_that_is_named_counts_before_the_file(tmp_path: Path) -> None:
    assert (
        read_with(database="/var/x/y.db", database_file=f"{tmp_path}/none").database.url
        == "sqlite:////var/x/y.db"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "GREYCHECK_DATABASE_FILE: database_file: {}: No such file or directory"),
        ("", "{}: not an SQLAlchemy URL or an absolute path"),
        ("oracle://user:secret@db/x", "{}: oracle: no such database here"),
        (
            "postgresql://user:sec@ret@db/x",
            "{}: an @ in a user's name or a password is written %40",
        ),
    ],
)
def test_a_file_that_does_not_say_it_leaves_no_store(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "database"
    if content is not None:
        path.write_text(content)
    found = read_with(database_file=str(path))
    assert (found.database.url, found.has_store) == ("", False)
    assert found.problems[0].startswith(said.format(path))
    assert found.problems[0].endswith("; there is no store, and on_error answers")
    assert "ret" not in found.problems[0].replace("directory", "")


@pytest.mark.parametrize("name", ["database_file", "state_directory"])
def test_a_path_is_absolute(name: str) -> None:
    found = read_with(**{name: "somewhere/else"})
    assert f"GREYCHECK_{name.upper()}: {name}" in found.problems[0]
    assert "not an absolute path" in found.problems[0]


def test_hosts_of_this_mx_replace_those_of_the_url() -> None:
    found = read_with(
        database="mysql://user:p%40w@a,b/greycheck?host=c&ssl_ca=/ca",
        database_hosts="[2001:db8::1]:3307, db2",
    )
    assert (
        found.database.url
        == "mysql://user:p%40w@/greycheck?ssl_ca=/ca&host=[2001:db8::1]:3307&host=db2"
    )
    assert (
        read_with(database="/var/x.db", database_hosts="db1").database.url == "sqlite:////var/x.db"
    )
    assert (
        read_with(database_hosts="db1:x")
        .problems[0]
        .startswith("GREYCHECK_DATABASE_HOSTS: database_hosts: x: not a port")
    )


def test_marks_are_kept_where_a_file_would_be() -> None:
    url = "mysql://user@db/greycheck"
    assert (
        read_with(database=url, state_directory="/run/greycheck").state_directory
        == "/run/greycheck"
    )
    assert read_with(database=url).state_directory == settings.default_directory({})
    assert read_with(database="/var/x.db").state_directory == ""


# --- what the resident and its peers need ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("127.0.0.1:10023", (("127.0.0.1", 10023),)),
        ("0.0.0.0:1, [::]:65535", (("0.0.0.0", 1), ("::", 65535))),
        ("[::1]:10023", (("::1", 10023),)),
        ("2001:DB8:0::1:10023", (("2001:db8::1", 10023),)),
        (" 192.0.2.1:0 ", (("192.0.2.1", 0),)),
    ],
)
def test_the_resident_listens_on_addresses_and_ports(
    text: str, found: tuple[tuple[str, int], ...]
) -> None:
    assert with_environ(LISTEN=text).listen == found
    assert with_environ(LISTEN=text).problems == []


@pytest.mark.parametrize(
    "text",
    [
        "10023",
        ":10023",
        "127.0.0.1",
        "localhost:10023",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:٣",
        "::1",
    ],
)
def test_what_nobody_can_listen_on(text: str) -> None:
    found = with_environ(LISTEN=f"127.0.0.1:1, {text}")
    said = (
        f"{text}: not an address and a port (as 127.0.0.1:10023 or [::1]:10023); using the default"
    )
    assert found.problems == [f"GREYCHECK_LISTEN: listen = 127.0.0.1:1, {text}: {said}"]
    assert found.listen == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("127.0.0.0/8, ::1", ("127.0.0.0/8", "::1/128")),
        ("192.0.2.77/24", ("192.0.2.0/24",)),
        ("192.0.2.1", ("192.0.2.1/32",)),
        ("2001:DB8:0::5/32,0.0.0.0/0,::/0", ("2001:db8::/32", "0.0.0.0/0", "::/0")),
    ],
)
def test_networks_that_may_ask(text: str, found: tuple[str, ...]) -> None:
    assert tuple(map(str, with_environ(LISTEN_CLIENTS=text).listen_clients)) == found
    assert with_environ(LISTEN_CLIENTS=text).problems == []


@pytest.mark.parametrize(
    "text",
    ["localhost", "192.0.2.0/33", "::/129", "192.0.2.0/x", "192.0.2.0/-1", "192.0.2.0/٣", "/8"],
)
def test_what_is_no_network(text: str) -> None:
    found = with_environ(LISTEN_CLIENTS=text)
    said = f"{text}: not a network (as 192.0.2.0/24 or 2001:db8::/32); using 127.0.0.0/8, ::1"
    assert found.problems == [f"GREYCHECK_LISTEN_CLIENTS: listen_clients = {text}: {said}"]
    assert tuple(map(str, found.listen_clients)) == ("127.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("", ("", "")),
        ("qmaild", ("qmaild", "")),
        (":nofiles", ("", "nofiles")),
        ("a:b", ("a", "b")),
    ],
)
def test_a_socket_has_an_owner(text: str, owner: tuple[str, str]) -> None:
    found = with_environ(SOCKET_OWNER=text)
    assert (found.socket_owner, found.problems) == (owner, [])


@pytest.mark.parametrize("text", ["a:b:c", "a b", ":b c"])
def test_what_is_no_owner(text: str) -> None:
    found = with_environ(SOCKET_OWNER=text)
    assert found.socket_owner == ("", "")
    assert found.problems[0].endswith("not a user, a :group or user:group; using the default")


@pytest.mark.parametrize(("text", "mode"), [("0600", 0o600), ("0660", 0o660), ("0666", 0o666)])
def test_a_socket_has_one_of_three_modes(text: str, mode: int) -> None:
    assert with_environ(SOCKET_MODE=text).socket_mode == mode


@pytest.mark.parametrize("text", ["0777", "666", "0o666", "rw"])
def test_what_is_no_mode_of_a_socket(text: str) -> None:
    found = with_environ(SOCKET_MODE=text)
    assert found.socket_mode == 0o660
    assert found.problems[0].endswith(": not 0600, 0660 or 0666; using 0660")


def test_texts_are_printable() -> None:
    found = with_environ(DEFER_TEXT="gräu gelistet, {wait} s", REJECT_TEXT="nein\r\n250 ok")
    assert found.defer_text == "gräu gelistet, {wait} s"
    assert found.reject_text == "refused by local policy"
    [problem] = found.problems
    assert problem.endswith(": not a line of printable characters; using refused by local policy")
    assert with_environ(DEFER_TEXT="").defer_text == ""


def test_the_socket_is_a_path() -> None:
    assert with_environ().socket == "/run/greycheck/socket"
    assert (
        with_environ(SOCKET="run/socket")
        .problems[0]
        .endswith(": not an absolute path; using /run/greycheck/socket")
    )


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("socket_patience", "0s", "61s"),
        ("max_connections", "0", "100001"),
        ("max_request", "1023", "1048577"),
        ("request_time", "0", "11m"),
        ("idle_time", "0", "3651d"),
        ("max_queue", "0", "1000001"),
        ("pool_size", "0", "1001"),
    ],
)
def test_limits_of_the_resident_have_limits(name: str, low: str, high: str) -> None:
    default = getattr(with_environ(), name)
    for text in (low, high):
        found = with_environ(**{name.upper(): text})
        assert getattr(found, name) == default
        assert "; using " in found.problems[0]


def test_a_file_of_nothing_but_names_that_do_not_exist_is_read_soon(tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("".join(f"retry_windo{number} = 1\n" for number in range(3000)))
    began = monotonic()
    problems = read({b"GREYCHECK_CONFIG": os.fsencode(tmp_path / "conf")}).problems
    assert monotonic() - began < 1
    assert len(problems) == 3000
