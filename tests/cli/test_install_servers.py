"""``greycheck install`` for a server database: what it looks at, as the user that qmail runs, and
what it leaves behind.
"""

import os
import pwd
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from greycheck import settings
from greycheck.cli import install
from greycheck.cli.main import cli
from greycheck.launchers import database, python
from greycheck.store.schema import migrate
from greycheck.store.url import parse_url
from tests import servers
from tests.servers import Postgres, free_port
from tests.support import ROOT, ServerDatabase, on_every_server, only_settings

ME = pwd.getpwuid(os.geteuid()).pw_name
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NOBODY = pwd.getpwnam("nobody")

on_both = pytest.mark.parametrize("database", ["postgresql", "mariadb"], indirect=True)


@pytest.fixture
def qmail(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty bin directory; the state directory is to be made beside it."""
    only_settings(monkeypatch)
    monkeypatch.setenv("GREYCHECK_STATE_DIRECTORY", str(place / "lib" / "state"))
    (place / "bin").mkdir()
    return place / "bin"


@pytest.fixture
def used(database: ServerDatabase, qmail: Path, monkeypatch: pytest.MonkeyPatch) -> ServerDatabase:
    """A server database in the settings, with tables."""
    monkeypatch.setenv("GREYCHECK_DATABASE", database.url)
    monkeypatch.setenv("GREYCHECK_DEADLINE", "60s")
    return database


def put(qmail: Path, user: str = ME, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["install", str(qmail), "--user", user], prog_name="greycheck")
    assert result.exit_code == code, result.output
    assert servers.PASSWORD not in result.output
    assert "s3cr" not in result.output
    assert sorted(path.name for path in qmail.iterdir()) == sorted(python.PROGRAMS)
    return result


@as_root
@on_every_server
def test_it_tries_the_server_as_qmails_user_and_leaves_no_row(
    used: ServerDatabase, qmail: Path
) -> None:
    output = put(qmail, "nobody").stdout
    state = qmail.parent / "lib" / "state"
    assert (state.stat().st_mode & 0o7777, state.stat().st_uid) == (0o700, NOBODY.pw_uid)
    assert list(state.iterdir()) == []
    assert used.rows("SELECT count(*) FROM triplet") == [(0,)]
    assert used.rows("SELECT count(*) FROM client") == [(0,)]
    assert (
        "from the crontab of qmail's user, on one host that uses the database or on each:" in output
    )
    assert ":***@" in output
    assert "set GREYCHECK_DATABASE_FILE to its path" in output


@on_both
def test_the_trial_is_a_mail_through_the_launcher(used: ServerDatabase, qmail: Path) -> None:
    put(qmail)
    found = settings.read(dict(os.environb))
    assert database.try_server(qmail / "greycheck", None, found) == ""
    (qmail / "greycheck").write_text(
        "#!/bin/sh\necho greycheck: accept reason=new unrecorded=x >&2\n"
    )
    assert "cannot use" in database.try_server(qmail / "greycheck", None, found)
    (qmail / "greycheck").write_text("")
    (qmail / "greycheck").chmod(0)
    account = None if os.geteuid() else NOBODY
    assert "does not run" in database.try_server(qmail / "greycheck", account, found)


@pytest.mark.parametrize("name", ["postgres", "mariadb"])
def test_it_makes_no_schema_and_says_who_does(
    name: str, qmail: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: servers.Server = request.getfixturevalue(name)
    asked.start()
    asked.drop("none")
    asked.create("none")
    monkeypatch.setenv("GREYCHECK_DATABASE", asked.url("none"))
    try:
        assert "not ready:\n" in (stderr := put(qmail, code=1).stderr)
        assert stderr.endswith("/none: there is no schema yet: run greycheck db upgrade\n")
        assert migrate.current(asked.url("none")) is None
    finally:
        asked.drop("none")


def test_a_server_that_cannot_be_reached_is_named(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("GREYCHECK_DATABASE", f"mariadb://user:s3cret@127.0.0.1:{port}/db")
    stderr = put(qmail, code=1).stderr
    assert f"not ready:\n127.0.0.1:{port}: " in stderr


def test_a_server_that_takes_no_writes_is_not_ready(
    on_postgresql: ServerDatabase, standby: Postgres, qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", standby.url(on_postgresql.name))
    assert f"127.0.0.1:{standby.port}: takes no writes" in put(qmail, code=1).stderr


def test_a_user_who_may_not_write_is_not_ready(
    on_postgresql: ServerDatabase, qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", on_postgresql.url)
    on_postgresql.execute(text("REVOKE INSERT ON triplet FROM CURRENT_USER"))
    try:
        stderr = put(qmail, code=1).stderr
    finally:
        on_postgresql.execute(text("GRANT INSERT ON triplet TO CURRENT_USER"))
    assert f"{qmail}/greycheck: cannot use postgresql" in stderr
    assert "permission denied" in stderr


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("postgresql://h/d", "psycopg2"),
        ("mysql://h/d", "mysqlclient"),
        ("mysql+pymysql://h/d", "pymysql"),
    ],
)
def test_without_a_driver_that_launchers_find_it_is_not_ready(
    qmail: Path, monkeypatch: pytest.MonkeyPatch, url: str, package: str
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", url)
    monkeypatch.setattr(python, "driver_directories", list)
    said = put(qmail, code=1).stderr
    assert f": {sys.executable} -m pip install '{package}>=" in said
    assert re.search(rf"' && greycheck install (--user \S+ )?{qmail}$", said, re.MULTILINE)


def test_a_driver_that_this_command_alone_lacks_is_named(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREYCHECK_DATABASE", "postgresql://h/d")
    monkeypatch.setattr(
        database, "find_driver", lambda _asked, _account: database.Found("psycopg2", "")
    )
    monkeypatch.setitem(sys.modules, "greycheck.store.drivers.psycopg2", None)
    assert "no driver for postgresql" in put(qmail, code=1).stderr


def test_an_interpreter_that_does_not_run_finds_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "interpreter", lambda: "/nonexistent/python")
    found = database.find_driver(parse_url("postgresql://h/d"), None)
    assert (found.name, "No such file" in found.why) == ("", True)


# --- files ----------------------------------------------------------------------------------------


@as_root
@on_both
def test_a_file_that_qmails_user_cannot_read_is_named(
    used: ServerDatabase, qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, conf = qmail.parent / "database", qmail.parent / "conf"
    secret.write_text(used.url + "\n")
    secret.chmod(0o600)
    conf.write_text(f"database_file = {secret}\n")
    conf.chmod(0o600)
    monkeypatch.delenv("GREYCHECK_DATABASE")
    monkeypatch.setenv("GREYCHECK_CONFIG", str(conf))
    stderr = put(qmail, "nobody", code=1).stderr
    assert f"nobody cannot read {conf} (mode 0600, owner root)" in stderr
    assert f"nobody cannot read {secret} (mode 0600, owner root)" in stderr
    os.chown(secret, NOBODY.pw_uid, NOBODY.pw_gid)
    os.chown(conf, 0, NOBODY.pw_gid)
    conf.chmod(0o640)
    assert "***" not in put(qmail, "nobody").stdout
    secret.chmod(0o644)
    assert (
        f"any user can read the password in {secret} (mode 0644"
        in put(qmail, "nobody", code=1).stderr
    )


def test_files_that_the_url_names_must_be_readable(
    qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "GREYCHECK_DATABASE",
        f"postgresql://u@127.0.0.1:{free_port()}/d?sslrootcert=/nonexistent/ca.pem",
    )
    assert f"{ME} may not enter /nonexistent" in put(qmail, code=1).stderr
    monkeypatch.setenv(
        "GREYCHECK_DATABASE", f"mysql://u@127.0.0.1:{free_port()}/d?ssl_ca=/nonexistent.pem"
    )
    assert (
        f"{ME} cannot read /nonexistent.pem (No such file or directory)"
        in put(qmail, code=1).stderr
    )


@as_root
@on_both
def test_a_state_directory_that_qmails_user_cannot_write_is_named(
    used: ServerDatabase, qmail: Path
) -> None:
    state = qmail.parent / "lib" / "state"
    state.mkdir(parents=True)
    stderr = put(qmail, "nobody", code=1).stderr
    assert (
        f"nobody cannot write {state} (mode 0755, owner root): each check finds out by itself"
        in stderr
    )
    state.chmod(0o777)
    assert "any user can make checks leave hosts out" in put(qmail, "nobody", code=1).stderr


@as_root
def test_the_systems_directory_is_the_state_directory_by_default(
    on_mariadb: ServerDatabase, qmail: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = qmail.parent / "lib" / "greycheck"
    monkeypatch.setattr(settings, "SYSTEM_DIRECTORY", str(system))
    monkeypatch.delenv("GREYCHECK_STATE_DIRECTORY")
    monkeypatch.setenv("GREYCHECK_DATABASE", on_mariadb.url)
    put(qmail, "nobody")
    assert (system.stat().st_mode & 0o7777, system.stat().st_uid) == (0o700, NOBODY.pw_uid)
    assert list(system.iterdir()) == []


def test_what_a_driver_loads_is_compiled_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = place / "driver.py"
    module.write_text("x = 1\n")
    assert install.compile_files([module, place / "driver.so"]) == []
    assert list((place / "__pycache__").glob("driver.*.pyc"))
    (place / "broken.py").write_text("x = (\n")
    assert install.compile_files([place / "broken.py"]) == [str(place)]


# --- the launcher ---------------------------------------------------------------------------------


def test_a_launcher_looks_for_drivers_last_and_in_each_place_once(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    package = str(python.package().parent)
    (place / "link").symlink_to(place)
    monkeypatch.setattr(
        python.site,
        "getsitepackages",
        lambda: [str(place), package, f"{place}/link", "/nonexistent/site"],
    )
    assert python.driver_directories() == [str(place.resolve())]
    lines = python.launcher().splitlines()
    first = lines.index(f"    sys.path.insert(0, {package!r})")
    assert lines[first + 1] == f"    sys.path.extend([{str(place.resolve())!r}])"


def test_the_package_is_not_looked_for_among_drivers() -> None:
    assert str(ROOT) not in python.driver_directories()
