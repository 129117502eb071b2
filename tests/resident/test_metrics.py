"""``metrics_listen``: what a resident tells Prometheus, and that nothing there harms it."""

import socket
import urllib.error
import urllib.request

import pytest

from tests.cli.test_metrics import promtool, samples
from tests.resident.conftest import Start
from tests.resident.resident import ACCEPTED, DEFERRED, Resident
from tests.servers import free_port

PATIENCE = 20


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        assert "text/plain" in answer.headers["Content-Type"]
        return str(answer.read().decode())


def test_it_tells_its_verdicts_and_promtool_accepts_it(start: Start) -> None:
    port = free_port()
    resident = start(metrics_listen=f"127.0.0.1:{port}")
    assert f"note metrics at http://127.0.0.1:{port}/metrics" in resident.log()
    assert [resident.ask() for _ in range(2)] == [DEFERRED] * 2
    text = scrape(port)
    found = samples(text)
    assert found['greycheck_resident_verdicts_total{reason="new",verdict="defer"}'] == 1
    assert found['greycheck_resident_verdicts_total{reason="early",verdict="defer"}'] == 1
    assert found["greycheck_resident_queue_requests"] in (0, 1)
    assert found["greycheck_resident_log_lines_lost_total"] == 0
    assert found["greycheck_resident_unforeseen_errors_total"] == 0
    assert found["greycheck_resident_start_time_seconds"] > 1_600_000_000
    promtool("check", "metrics", text=text)
    for path in ("/", "/metrics/x", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            scrape(port, path)
    assert resident.warnings() == []


def test_a_port_in_use_costs_one_line_and_nothing_else(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        resident = start(metrics_listen=address)
        assert resident.ask() == DEFERRED
        said = f"metrics_listen: {address}: Address already in use: no metrics there"
        assert resident.warnings() == [said]


def test_peers_that_are_silent_keep_neither_mail_nor_the_end_waiting(start: Start) -> None:
    port = free_port()
    resident = start(metrics_listen=f"127.0.0.1:{port}")
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
    try:
        # The first few hold a thread each, all others are closed at once.
        silent[-1].settimeout(PATIENCE)
        assert silent[-1].recv(1) == b""
        resident.reread()
        assert resident.ask(protocol_state="CONNECT") == ACCEPTED
        assert resident.ask() == DEFERRED
        assert resident.stop() == 0
    finally:
        for each in silent:
            each.close()
    assert resident.log().count("warning") <= 1, resident.log()  # that it serves as root


@pytest.mark.parametrize("given", ["", "127.0.0.1:0"])
def test_the_library_is_loaded_only_where_it_is_asked_for(start: Start, given: str) -> None:
    options = {"program": ("-X", "importtime", "-m", "greycheck")}
    resident: Resident = start(options, metrics_listen=given)
    assert ("prometheus_client" in resident.log()) == bool(given)
    assert ("wsgiref" in resident.log()) == bool(given)


@pytest.mark.parametrize(
    ("library", "cause"),
    [
        ("None", "import of prometheus_client halted; None in sys.modules"),
        ("type(sys)('prometheus_client')", "cannot import name 'CollectorRegistry' from"),
    ],
    ids=["missing", "another"],
)
def test_without_the_library_it_says_how_to_install_it_and_goes_on(
    start: Start, library: str, cause: str
) -> None:
    program = (
        f"import sys; sys.modules['prometheus_client'] = {library};"
        " from greycheck.__main__ import main; main()"
    )
    resident = start({"program": ("-c", program)}, metrics_listen="127.0.0.1:0, [::1]:0")
    assert resident.ask() == DEFERRED
    [said] = resident.warnings()
    assert said.startswith(f"metrics_listen: needs prometheus_client ({cause}")
    assert " install " in said
