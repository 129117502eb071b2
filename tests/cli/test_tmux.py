"""A person at a terminal of 80 columns, by tmux: what is typed, and what is then on the screen."""

import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from greycheck.store.base import domain_key
from greycheck.store.waiting import packed_range
from tests import databases
from tests.simulation.test_replay import NEW, RETRY, line
from tests.support import Child

ME = pwd.getpwuid(os.geteuid()).pw_name
WIDTH, HEIGHT = 80, 40

HOSTILE = b"\x1b[31mred\x07\xe2\x80\xae@example.org"
LONG_DOMAIN = "mail." + "a-long-name." * 5 + "example.net"
LONG = "bounces-20261129-7f3a9c@announcements.of-a-list-with-a-long-name.example.org"
PATTERN = "from:newsletter-of-the-week@mail.a-provider-with-a-long-name.example"

# A command to be copied stands on one line, however long; on a screen it goes on in the next.
TO_COPY = re.compile(
    r" *([0-9*/ ]{9,}"
    r"|\(crontab|(greycheck|chmod|chown|cp|echo|install|mkdir|sed|sudo|systemctl|/\S+) )"
)

PROMPT = "$"


class Screen:
    """A terminal in which USER works in HOME."""

    def __init__(self, user: str, home: Path, environ: dict[str, str]) -> None:
        self.user = user
        self.environ = environ | {"TMUX_TMPDIR": str(home), "HOME": str(home)}
        self.tmux(
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            str(WIDTH),
            "-y",
            str(HEIGHT),
            "-c",
            str(home),
            "sh",
        )
        self.wait_for_prompt((PROMPT, "#"))
        self.tmux("send-keys", f"PS1='{PROMPT} '", "Enter")
        time.sleep(0.2)
        self.wait_for_prompt()

    def tmux(self, *arguments: str) -> str:
        options = (
            {} if self.user == ME else {"user": self.user, "group": "nogroup", "extra_groups": []}
        )
        ran = subprocess.run(  # type: ignore[call-overload]
            ["tmux", "-u", "-L", "greycheck", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
            **options,
        )
        return str(ran.stdout)

    def wait_for(self, text: str) -> None:
        """Waits until TEXT is on the screen."""
        end = time.monotonic() + 60
        while text not in (shown := self.tmux("capture-pane", "-p")):
            assert time.monotonic() < end, shown
            time.sleep(0.05)

    def wait_for_prompt(self, prompts: tuple[str, ...] = (PROMPT,)) -> None:
        end = time.monotonic() + 60
        while (shown := self.tmux("capture-pane", "-p").rstrip()).rpartition("\n")[
            2
        ] not in prompts:
            assert time.monotonic() < end, shown
            time.sleep(0.05)

    def type(self, command: str) -> list[str]:
        """The lines that COMMAND printed.

        Those that the terminal broke are whole again: nobody but it may break lines.
        """
        self.tmux("send-keys", "clear; tmux -L greycheck clear-history", "Enter")
        time.sleep(0.2)
        self.wait_for_prompt()
        self.tmux("send-keys", "-l", command)
        self.tmux("send-keys", "Enter")
        time.sleep(0.2)
        self.wait_for_prompt()
        first, *lines, last = self.tmux("capture-pane", "-p", "-J", "-S", "-").rstrip().split("\n")
        assert (first.rstrip(), last) == (f"{PROMPT} {command}", PROMPT)
        lines = [line.rstrip() for line in lines]
        assert [line for line in lines if len(line) > WIDTH and not TO_COPY.match(line)] == [], (
            command
        )
        assert all(line.isprintable() for line in lines), command
        assert "[31m" not in " ".join(lines).replace("\\x1b[31m", ""), command
        return lines


def fill_domains(url: str) -> None:
    """A domain that is known and has an SPF, one that was learnt, and one with a long name."""
    now = int(time.time())
    for name in ("example.com", LONG_DOMAIN):
        row = (domain_key(name.encode()), name, 3, now - 9999, now - 60, now + 99999)
        databases.fill_url(url, "domain", [row])
        why = "two records: v=spf1 -all, v=spf1 include:_spf.provider.example ~all"
        told = (domain_key(name.encode()), name, "error", why, 1, now - 60, now - 60, 2, now + 60)
        databases.fill_url(url, "spf", [(*told, now + 99999)])
    for number, source in enumerate(("spf", "client", "refused", "pool")):
        for name in ("example.com", "pool.example"):
            first, last = packed_range(f"2001:db8:{number}:1111:2222:3333:4444:0/{112 + number}")
            network = (domain_key(name.encode()) + first, last, source, name, now - 60, now + 99999)
            databases.fill_url(url, "authorised", [network])


@pytest.fixture(params=[ME, *(["nobody"] if ME == "root" else [])])
def screen(request: pytest.FixtureRequest, place: Path, launchers: Path) -> Iterator[Screen]:
    """The terminal of somebody whose store has a triplet of each kind."""
    assert shutil.which("tmux"), "tmux is missing: dev/test installs it"
    store = Child(launchers, place / "store" / "greycheck.db")
    store.database.parent.mkdir(mode=0o700)
    store.make_store()
    for sender in (b"alice@example.org", HOSTILE, LONG.encode()):
        store.smtpextfork(sender=sender)
    store.age(400)
    store.smtpextfork(client="198.51.100.7")
    fill_domains(f"sqlite:///{store.database}")
    for path in (place, store.database.parent, *store.database.parent.iterdir()):
        shutil.chown(path, request.param)
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "GREYCHECK_DATABASE": str(store.database),
        "GREYCHECK_CONFIG": "/dev/null",
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm-256color",
        "TZ": "UTC",
        "SHELL": "/bin/sh",
    }
    found = Screen(request.param, place, environ)
    yield found
    found.tmux("kill-server")


def test_what_a_person_types_fits_the_screen_and_no_word_is_broken(
    screen: Screen, place: Path
) -> None:
    listed = screen.type("greycheck list")
    assert listed[0].split() == ["client", "network", "sender", "age", "early", "state"]
    assert any("\\x1b[31mred\\x07\\xe2\\x80\\xae@example.org" in line for line in listed)
    assert any(line.startswith("198.51.100.0/24") and line.endswith("waits") for line in listed)
    assert "waits" in screen.tmux("capture-pane", "-p", "-e").replace("\x1b[33m", "")
    assert "\x1b[33m" in screen.tmux("capture-pane", "-p", "-e"), "colours are colours there"

    told = screen.type("greycheck explain 198.51.100.7 alice@example.org bob@example.net")
    assert "defer reason=early" in " ".join(told)
    assert any("greycheck allow 198.51.100.7" in line for line in told)
    told = screen.type(f"greycheck explain 192.0.2.1 {LONG} bob@example.net")
    assert f"sender      <{LONG}>" in told or f"  <{LONG}>" in told

    added = screen.type(f"greycheck allow {PATTERN} --comment '{'why ' * 5}'")
    assert added[0].startswith("added: allow")
    assert any(PATTERN in line for line in added)
    assert any(PATTERN in line for line in screen.type("greycheck rules list"))
    state = screen.type("greycheck status")
    assert state[0].split() == ["store", f"sqlite:///{place}/store/greycheck.db"]
    assert any(line.startswith("waits") and "4 triplets" in line for line in state)

    (place / "bin").mkdir()
    shutil.chown(place / "bin", screen.user)
    installed = screen.type(f"greycheck install {place}/bin --user {screen.user}")
    assert any(f"echo {place}/store/greycheck.db > env/" in line for line in installed)

    # Of what no check made there is nothing to be seen, and the command that mends it is whole.
    doctor = screen.type(f"greycheck doctor --dir {place}/none --user {screen.user}")
    assert any(
        line.endswith(
            (
                f"greycheck install --user {screen.user} {place}/none",
                f"greycheck install {place}/none",
            )
        )
        for line in doctor
    )
    assert doctor[-1].endswith(".")


def test_domains_and_what_is_released_fit_the_screen(screen: Screen) -> None:
    listed = screen.type("greycheck list domains")
    assert listed[0].split()[0] == "domain"
    assert LONG_DOMAIN in listed
    assert any(line.startswith("pool.example ") and line.endswith(" pool") for line in listed)
    shown = screen.type("greycheck show domain example.com")
    assert "state             known" in shown
    assert any(
        line.startswith("2001:db8:0:1111:2222:3333:4444:0/112 ") and line.endswith("SPF")
        for line in shown
    )
    assert f"  greycheck list pending --domain={LONG_DOMAIN}" in screen.type(
        f"greycheck show domain {LONG_DOMAIN}"
    )
    told = screen.type(
        "greycheck explain 2001:db8:0:1111:2222:3333:4444:5 a@example.com b@c.example"
    )
    for name in ("message", "provider", "correspondent", "domain", "moved"):
        assert any(line.split()[:1] == [name] for line in told), name
    assert any(line.split()[-2:] == ["=>", "domain"] for line in told)
    assert "  greycheck forget domain example.com" in told
    told = screen.type("greycheck explain 198.51.100.7 alice@example.org bob@example.net")
    release = "  greycheck release 198.51.100.7 alice@example.org bob@example.net"
    assert release in told
    assert "  greycheck resolve example.org" in told
    released = screen.type(release.strip())
    assert released[0] == "released: to:bob@example.net from:alice@example.org"
    told = screen.type("greycheck explain 198.51.100.7 alice@example.org bob@example.net")
    assert any("released as to:bob@example.net" in line for line in told)
    assert any(line.split()[:1] == ["release"] for line in screen.type("greycheck rules list"))
    assert screen.type("greycheck forget domain example.com") == ["1 domain forgotten."]


def test_the_digest_fits_the_screen(screen: Screen) -> None:
    digest = "greycheck digest --older 0"
    assert screen.type(digest) == ["Nothing that waits looks legitimate."]
    screen.type("greycheck allow from:example.org")
    told = screen.type(digest)
    assert told[0] == "3 mails that look legitimate: deferred, and not tried again for 0s."
    assert any("\\x1b[31mred\\x07\\xe2\\x80\\xae@example.org" in line for line in told)
    assert "    +2 near is a rule that allows: from:example.org" in told
    assert "    +2 since then a rule allows it: from:example.org" in told
    assert "      greycheck allow 198.51.100.7" in told


def test_before_the_first_mail_the_screen_says_where_the_store_will_be(
    screen: Screen, place: Path
) -> None:
    screen.type(f"export GREYCHECK_DATABASE={place}/store/other.db")
    for command in ("list", "status", "show 192.0.2.1"):
        assert screen.type(f"greycheck {command}") == [
            "There is no store yet: the first mail makes it, or: greycheck db upgrade",
            f"It will be {place}/store/other.db",
        ]


# From the time of such lines to a day that is over, in seconds.
BEFORE = -200 * 86400


def test_a_log_is_watched_as_it_grows_and_simulated(screen: Screen, place: Path) -> None:
    log = place / "current"
    hostile = "\\x1b[31mred\\x07\\xe2\\x80\\xae@example.org"
    wide = "2001:db8:1111:2222:3333:4444:5555:6666"
    log.write_text(
        line(BEFORE, NEW, more=" wait=300")
        + line(BEFORE + 400, RETRY, more=" delayed=400 identity=there.example")
        + line(BEFORE + 500, NEW, wide, LONG, LONG, more=" wait=300")
    )
    told = screen.type(f"greycheck simulate --log {log} --delay 15m")
    assert told[0].startswith("log        2026-06-29 ")
    assert any(each.split()[:3] == ["passed", "after", "a"] for each in told)
    assert "reading" not in " ".join(told), "the bar is gone when it is done"

    screen.tmux("send-keys", "clear; tmux -L greycheck clear-history", "Enter")
    time.sleep(0.2)
    screen.wait_for_prompt()
    screen.tmux("send-keys", "-l", f"greycheck watch {log}")
    screen.tmux("send-keys", "Enter")
    screen.wait_for(wide)
    log.rename(place / "current.old")
    log.write_text(
        line(BEFORE + 600, "reject reason=rule", sender=hostile, more=" rule=192.0.2.0/24")
    )
    screen.wait_for("rule=192.0.2.0/24")
    shown = screen.tmux("capture-pane", "-p", "-e")
    assert all(f"\x1b[{colour}m" in shown for colour in (31, 32, 33)), "verdicts have colours"
    screen.tmux("send-keys", "C-c")
    screen.wait_for_prompt()
    command, day, *lines, last = screen.tmux("capture-pane", "-p", "-J").rstrip().split("\n")
    assert (command.split()[-1], day, last) == (str(log), "2026-06-29", PROMPT)
    lines = [each.rstrip() for each in lines]
    assert all(len(each) <= WIDTH for each in lines)
    assert "08:00:00  defer   new            192.0.2.1  wait 5m" in lines
    assert "08:06:40  accept  retry          192.0.2.1  waited 6m 40s" in lines
    assert f"08:08:20  defer   new            {wide}  wait 5m" in lines
    assert "          \\x1b[31mred\\x07\\xe2\\x80\\xae@example.org -> bob@example.net" in lines
    assert lines[-1] == "^C"
