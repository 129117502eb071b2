"""The addresses of ``metrics_listen``, in this process: slow peers, and numbers that fail."""

import ast
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest

from greycheck.metrics import listener
from greycheck.metrics.numbers import Numbers
from tests.resident.test_metrics import PATIENCE, scrape
from tests.servers import free_port, wait_until
from tests.support import ROOT


class Counted:
    """What a resident tells; a FAULT is raised in place of its clients' number."""

    numbers = Numbers()
    waiting = lost = 0

    def __init__(self, fault: Exception | None = None) -> None:
        self._fault = fault

    @property
    def peers(self) -> int:
        if self._fault is not None:
            raise self._fault
        return 7


def test_who_sends_a_byte_now_and_then_is_closed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "PATIENCE", 0.3)
    port = free_port()
    listener.listen(("127.0.0.1", port), Counted())
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.1))
            for _ in range(listener.AT_ONCE)
        ]
        for _ in range(100):
            slow = [each for each in slow if is_open(each)]
        assert slow == []
    wait_until(lambda: is_told(port), "others are answered again")


def is_told(port: int) -> bool:
    try:
        return "greycheck_resident_connections 7.0" in scrape(port)
    except OSError:
        return False


def is_open(peer: socket.socket) -> bool:
    """Sends a byte over the connection PEER; returns whether it is still open."""
    try:
        peer.sendall(b"x")
        return peer.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_numbers_that_fail_are_one_line_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    listener.listen(("127.0.0.1", port), Counted(ValueError("a\nb\x1b")))
    for _ in range(3):
        with pytest.raises(urllib.error.HTTPError, match="500"):
            scrape(port)
    assert capfd.readouterr().err == (
        "greycheck: warning metrics: not told: ValueError: a\\x0ab\\x1b\n"
    )


def test_who_goes_away_leaves_nothing_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    listener.listen(("127.0.0.1", port), Counted())
    for sent in (b"", b"GET /metrics", b"\x00\xff\r\n\r\n", b"GET /metrics HTTP/1.0\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as peer:
            peer.sendall(sent)
    # As many as one address may have at once: some may not be gone yet.
    wait_until(lambda: is_told(port), "others are answered again")
    assert capfd.readouterr().err == ""


def test_nothing_here_imports_the_resident() -> None:
    imported = [
        name
        for path in (ROOT / "greycheck" / "metrics").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for name in (f"{node.module}.{alias.name}" for alias in node.names)
    ]
    assert [name for name in imported if name.startswith("greycheck.resident")] == []
    assert "greycheck.metrics.numbers.Numbers" in imported
