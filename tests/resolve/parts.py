"""What the tests of ``greycheck resolve`` share: a name server with zones, and runs of it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from greycheck.resolve import work
from greycheck.settings import Settings, read
from greycheck.store.admin.engine import open_engine
from tests.support import ROOT, Database

# What senders publish in these tests.
ZONES = {
    "pool.example.": (
        '@ 600 TXT "v=spf1 ip4:192.0.2.0/24 ip4:198.51.100.0/24 ip6:2001:db8::/32 -all"'
    ),
    "all.example.": '@ TXT "v=spf1 +all"',
    "none.example.": '@ TXT "hello"',
    "wrong.example.": '@ TXT "v=spf1 ip4:192.0.2.300 -all"',
    "evil.example.": '@ TXT "v=spf1 ip4:\\027[31m\\010 -all"',
    "each.example.": (
        '@ TXT "v=spf1 ip4:203.0.113.0/28 exists:%{i}.ok.each.example -all"\n'
        "192.0.2.7.ok A 127.0.0.2\n"
    ),
}


def settings_of(database: Database, resolver: str, **more: str) -> Settings:
    environ = {"GREYCHECK_CONFIG": "/dev/null", "GREYCHECK_RESOLVER": resolver, **database.environ}
    environ |= {f"GREYCHECK_{name.upper()}": value for name, value in more.items()}
    found = read({os.fsencode(name): os.fsencode(value) for name, value in environ.items()})
    assert not found.problems
    return found


@contextmanager
def engine_of(database: Database) -> Iterator[Engine]:
    engine = open_engine(database.url)
    yield engine
    engine.dispose()


def resolved(
    database: Database, resolver: str, ahead: int = 0, interval: int = 60, **more: str
) -> work.Report:
    """What a run does AHEAD seconds from now."""
    with engine_of(database) as engine:
        now = int(time.time()) + ahead
        return work.run(engine, settings_of(database, resolver, **more), now, interval)


def command(
    database: Database, resolver: str, *arguments: str, identity: str = "yes"
) -> "subprocess.Popen[str]":
    """``greycheck resolve`` with ARGUMENTS, begun."""
    return subprocess.Popen(
        [sys.executable, "-m", "greycheck", "resolve", *arguments],
        env={
            "PATH": os.defpath,
            "GREYCHECK_CONFIG": "/dev/null",
            "GREYCHECK_RESOLVER": resolver,
            "GREYCHECK_IDENTITY": identity,
            **database.environ,
        },
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ran(
    database: Database, resolver: str, *arguments: str, identity: str = "yes"
) -> tuple[int, str, str]:
    """The exit code of ``greycheck resolve`` with ARGUMENTS, and what it says."""
    with command(database, resolver, *arguments, identity=identity) as process:
        said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained
