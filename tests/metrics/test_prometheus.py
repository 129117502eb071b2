"""Alerts and the dashboard: promtool tries the alerts, and a real Prometheus asks a resident."""

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from greycheck.metrics import exposition, resident
from greycheck.metrics.counted import Counted, Spooled
from greycheck.metrics.numbers import Numbers
from tests.cli.test_metrics import promtool
from tests.resident.conftest import start  # noqa: F401
from tests.resident.resident import DEFERRED, Resident
from tests.servers import free_port, wait_until
from tests.support import ROOT

ALERTS = ROOT / "contrib" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "contrib" / "grafana" / "greycheck.json"
TRIED = Path(__file__).with_name("alerts.yml")

OWN = """
groups:
  - name: tried
    rules:
      - alert: Deferred
        expr: greycheck_resident_verdicts_total{verdict="defer", reason="new"} == 3
"""


class Idle:
    numbers = Numbers()
    waiting = peers = lost = 0


def names() -> set[str]:
    """The name of each number that there is."""
    counted = Counted(oldest=1, expired={"mx": 1}, answered={"p.example": 1})
    marks = [("db", "down", 0.0)]
    families = exposition.Families(counted, marks, Spooled(1, 1)), resident.Families(Idle())
    return {
        sample.name for each in families for family in each.collect() for sample in family.samples
    }


def expressions(panels: list[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_alerts_are_sound_and_each_fires_when_it_must() -> None:
    promtool("check", "rules", ALERTS)
    promtool("test", "rules", TRIED)
    told = re.findall(r"alert: (\w+)", ALERTS.read_text())
    assert len(told) > 10
    assert [name for name in told if f'alertname="{name}"' not in TRIED.read_text()] == []


def test_each_number_that_alerts_and_dashboard_name_is_there() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    pattern = re.compile(r"\bgreycheck_\w+")
    named = set(pattern.findall("\n".join(expressions(dashboard["panels"]))))
    alerted = set(
        pattern.findall("\n".join(re.findall(r"(?s)expr:(.*?)\n +\w+:", ALERTS.read_text())))
    )
    assert len(named) > 10
    assert len(alerted) > 8
    assert sorted((named | alerted) - names()) == []
    documented = set(pattern.findall((ROOT / "docs" / "monitoring.rst").read_text()))
    there = {re.sub("_(bucket|count|sum)$", "", name) for name in names()}
    assert sorted(there - documented) == []
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


@contextmanager
def prometheus(place: Path, target: int) -> Iterator[str]:
    """A Prometheus that asks the resident at port TARGET each second; where it answers."""
    own, settings, log = place / "own.yml", place / "prometheus.yml", place / "prometheus.log"
    own.write_text(OWN)
    settings.write_text(
        json.dumps(  # YAML, too
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(ALERTS), str(own)],
                "scrape_configs": [
                    {
                        "job_name": "greycheck",
                        "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
                    }
                ],
            }
        )
    )
    promtool("check", "config", settings)
    port = free_port()
    with log.open("wb") as written:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={settings}",
                f"--storage.tsdb.path={place / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdout=written,
            stderr=written,
        )
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def asked(url: str, **query: str) -> Any:
    try:
        with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
            return json.load(answer)["data"]
    except ConnectionError:
        return None
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it is starting
            return None
        raise AssertionError(f"{query}: {error.read().decode()}") from None
    except urllib.error.URLError:
        return None


def test_a_real_prometheus_asks_a_resident_and_evaluates_all_rules(
    start: Any,  # noqa: F811
    place: Path,
) -> None:
    port = free_port()
    served: Resident = start(metrics_listen=f"127.0.0.1:{port}")
    for number in range(3):
        assert served.ask(sender=f"ann{number}@example.org") == DEFERRED
    with prometheus(place, port) as url:

        def alerts() -> list[str]:
            found = asked(f"{url}/alerts") or {"alerts": []}
            return [each["labels"]["alertname"] for each in found["alerts"]]

        def log() -> str:
            return (place / "prometheus.log").read_text()

        wait_until(lambda: alerts() == ["Deferred"], "the alert", log)

        def health() -> set[str]:
            groups = asked(f"{url}/rules")["groups"]
            return {rule["health"] for group in groups for rule in group["rules"]}

        wait_until(lambda: health() == {"ok"}, "all rules were evaluated", log)
        for each in expressions(json.loads(DASHBOARD.read_text())["panels"]):
            expr = each.replace("$__rate_interval", "1m").replace("$instance", ".*")
            assert "$" not in expr
            assert asked(f"{url}/query", query=expr)["resultType"] in ("vector", "scalar"), expr
        # The resident goes, and the alert is pending.
        assert served.stop() == 0
        wait_until(lambda: "GreycheckResidentDown" in alerts(), "the alert that it is gone", log)
