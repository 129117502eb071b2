"""The CGI program behind a real web server, and whoever attacks it."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import update

from greycheck.cli.main import cli
from greycheck.digest import links
from greycheck.store.schema.tables import triplet
from tests.digest.stores import HOUR, Waiting
from tests.digest.web import PATH, PROGRAM, Web
from tests.support import Database, only_settings

HOSTILE = b'"><script>alert(1)</script><form action=//evil.example>&lt;@h.example'


@pytest.fixture
def store(database: Database, monkeypatch: pytest.MonkeyPatch) -> Waiting:
    """A store in which two mails wait, and which the commands find."""
    only_settings(monkeypatch, database.environ)
    database.directory.chmod(0o700)
    database.make()
    store = Waiting(database)
    store.domain(b"known.example")
    store.mail(b"alice@known.example")
    store.mail(HOSTILE.replace(b"h.example", b"known.example"))
    return store


@pytest.fixture
def web(store: Waiting, place: Path) -> Iterator[Web]:
    with Web(place, store.database) as web:
        yield web


def tokens(web: Web) -> dict[str, str]:
    """The token of each mail's link, by its sender."""
    ran = CliRunner().invoke(cli, ["digest", "--json", "--links", web.url])
    assert ran.exit_code == 0, ran.output
    found = {}
    for mail in json.loads(ran.stdout)["domains"][0]["mails"]:
        url, _, token = mail["link"].partition("?")
        assert url == web.url
        found[mail["sender"]] = token
    return found


def rules() -> list[str]:
    listed = json.loads(CliRunner().invoke(cli, ["rules", "list", "--json"]).stdout)
    return [rule["pattern"] for rule in listed]


ALICE = "to:bob@example.net from:alice@known.example"


def test_get_shows_a_form_and_post_lets_the_mail_in_once(web: Web) -> None:
    token = tokens(web)["alice@known.example"]
    for _time in range(2):
        asked = web.get(token)
        assert asked.status == 200
        assert "From alice@known.example to bob@example.net." in asked.text
        assert (
            f'<form method="post" action="?">\n<input type="hidden" name="token" value="{token}"'
            in asked.text
        )
    assert web.ask("HEAD", token)._replace(headers={}) == (200, {}, "")
    assert rules() == []
    done = web.post(token)
    assert (done.status, rules()) == (200, [ALICE])
    assert "The mail may come in" in done.text
    assert token not in done.text
    for again in (web.post(token), web.get(token)):
        assert again.status == 410
        assert "It was used already" in again.text
    assert rules() == [ALICE]


def test_of_many_posts_at_once_one_counts(web: Web) -> None:
    token = tokens(web)["alice@known.example"]
    with ThreadPoolExecutor(4) as threads:
        statuses = sorted(answer.status for answer in threads.map(web.post, [token] * 4))
    assert statuses == [200, 410, 410, 410]
    assert rules() == [ALICE]


def test_every_answer_is_kept_by_nobody_tells_no_other_site_and_runs_nothing(web: Web) -> None:
    found = tokens(web)
    hostile = next(token for sender, token in found.items() if "script" in sender)
    for answer in (
        web.get(hostile),
        web.get("x"),
        web.post(found["alice@known.example"]),
        web.post(hostile[:-1]),
        web.ask("DELETE", hostile),
    ):
        headers = answer.headers
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "noindex" in headers["x-robots-tag"]
        policy = headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'none'"
        assert {"form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"} <= set(policy)
        assert not re.search(r"<(script|img|link|iframe|a)\b|javascript:|\son\w+=", answer.text)
        assert len(re.findall("<form", answer.text)) <= 1
        assert "evil.example" not in re.sub(r"<p>[^<]*</p>", "", answer.text)
    assert "\\x3cscript\\x3e" in web.get(hostile).text


def test_what_is_no_token_opens_nothing(web: Web, store: Waiting) -> None:
    found = tokens(web)
    token, other = found["alice@known.example"], min(found.values())
    key = links.read_key(str(store.database.directory / "link.key"))
    named = links.read(key, token, store.now)
    expired = links.written(key, named._replace(expires=store.now - 60))
    of_another = max(found.values()) if other == token else other
    shaped = [
        "A" * 64,
        ("B" if token[0] == "A" else "A") + token[1:],
        token[:36] + of_another[36:],
        links.written(bytes(32), named),
    ]
    wrong = [
        "",
        token[:-1],
        token + "A",
        "token=" + token,
        token + "&token=" + token,
        token[:63] + "%41",
        "..%2f" * 10,
        "%0d%0aSet-Cookie:%20a=b",
        "<script>alert(1)</script>",
        "A" * 5000,
    ]
    for answer in [*map(web.post, shaped), *map(web.post, wrong), *map(web.get, wrong)]:
        assert answer.status in (400, 404, 413)
        assert "set-cookie" not in answer.headers
        assert "alert(1)" not in answer.text
    assert [web.get(expired).status, web.post(expired).status] == [410, 410]
    assert "has expired" in web.get(expired).text
    assert rules() == []


def test_only_the_form_lets_in(web: Web) -> None:
    token = tokens(web)["alice@known.example"]
    body = f"token={token}".encode()
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert web.ask(method, token, body).status == 405
    assert [
        web.ask("POST", token).status,  # nothing in the body
        web.ask("POST", "", b"").status,
        web.ask("POST", "", b"\r\n" + body).status,
        web.ask("POST", "", body + b"\r\n").status,
        web.ask("POST", "", body + b"&x=y").status,
        web.ask("POST", "", body.replace(b"=", b"\0=")).status,
        web.ask("POST", "", b"token=" + b"\xff" * 64).status,
        web.ask("GET", "", body).status,
    ] == [400] * 2 + [404] * 6
    assert rules() == []


def test_a_huge_body_is_not_read_and_a_wrong_length_neither(web: Web) -> None:
    token = tokens(web)["alice@known.example"]
    body = f"token={token}"
    for length in ("257", "100000000", "9" * 30, "-1", "1e3", "70 70"):
        with socket.create_connection(("127.0.0.1", web.port), timeout=60) as peer:
            request = f"POST {PATH} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
            peer.sendall(request.encode())
            peer.shutdown(socket.SHUT_WR)
            answer = peer.makefile("rb").read()
        assert b" 200 " not in answer.split(b"\r\n")[0], length
    assert rules() == []


def test_what_fails_tells_a_stranger_nothing(web: Web, store: Waiting) -> None:
    token = tokens(web)["alice@known.example"]
    key = store.database.directory / "link.key"
    key.chmod(0o644)
    for answer in (web.get(token), web.post(token)):
        assert answer.status == 503
        assert str(key) not in answer.text
    assert "others may read the key" in web.log.read_text()
    key.chmod(0o600)
    store.database.execute(update(triplet).values(expires_at=store.now - HOUR))
    assert web.get(token).status == 410
    assert rules() == []
    assert token not in web.log.read_text()


def test_the_token_is_in_nobodys_arguments_or_environment(place: Path) -> None:
    """What the program calls tells what it was given."""
    fake = place / "python"
    told = place / "told"
    fake.write_text(
        f'#!/bin/sh\n{{ echo "$@"; env; echo "input: $(cat)"; }} > {told}\n'
        'echo \'{"state": "used"}\'\n'
    )
    fake.chmod(0o755)
    token = "T" * 64
    environ = {
        "PATH": os.defpath,
        "REQUEST_METHOD": "GET",
        "QUERY_STRING": token,
        "REQUEST_URI": f"{PATH}?{token}",
        "HTTP_REFERER": f"http://x/{token}",
        "HTTP_GREYCHECK_DATABASE": "/evil",
        "LD_PRELOAD_X": "x",
        "GREYCHECK_CONFIG": "/etc/other.conf",
    }
    code = f"import sys; sys.executable = {str(fake)!r}; exec(open({str(PROGRAM)!r}).read())"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code], env=environ, capture_output=True, check=True
    )
    assert ran.stdout.startswith(b"Status: 410 Gone\r\n")
    arguments, *rest = told.read_text().splitlines()
    assert arguments == "-I -m greycheck release --token --json --dry-run"
    assert rest.pop() == f"input: {token}"
    assert token not in "".join(rest)
    names = {line.partition("=")[0] for line in rest} - {"PWD", "_", "SHLVL", "OLDPWD", "LC_CTYPE"}
    assert names == {"PATH", "GREYCHECK_CONFIG"}


def test_a_request_without_what_a_web_server_gives_is_refused() -> None:
    ran = subprocess.run(
        [sys.executable, "-I", str(PROGRAM)], env={}, capture_output=True, check=True
    )
    head, _, body = ran.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"Status: 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD, POST" in head
    assert b"<h1>This cannot be done</h1>" in body
