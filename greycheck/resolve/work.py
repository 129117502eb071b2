"""One run of ``greycheck resolve``: asks the domains that are due, several at once, within a time.

Threads ask DNS and nothing else; the main thread claims, and writes what they bring. Each domain
has a deadline of its own, none is begun that might not be done by the end, and whatever is left
over is due at the next run, on whichever host that is.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from sqlalchemy import Engine

from greycheck import normalise
from greycheck.resolve import LIMIT, SECONDS, due, keeping
from greycheck.resolve.due import Task
from greycheck.resolve.keeping import CEILING, FLOOR, Claim, Evaluated, keep, keep_clients
from greycheck.settings import Settings
from greycheck.spf import evaluate
from greycheck.spf.dns import Resolver
from greycheck.spf.evaluate import Answer

# How many domains are asked at once.
THREADS = 8

# How many seconds one domain may take.
OF_DOMAIN = evaluate.SECONDS

# How long a client counts that passed, at least: its next mail may come tomorrow.
OF_CLIENT = CEILING


@dataclass
class Report:
    """What a run did: domains ASKED, those that ANSWERED and those that FAILED, CLIENTS evaluated.

    LEFT are domains for which there was no time, and that are due at the next run; ELSEWHERE those
    that another host asks.
    """

    asked: int = 0
    answered: int = 0
    failed: int = 0
    clients: int = 0
    left: int = 0
    elsewhere: int = 0


@dataclass(frozen=True)
class Outcome:
    """What DNS said: an ANSWER, None where only clients were evaluated, and of CLIENTS."""

    answer: Answer | None
    clients: tuple[tuple[bytes, evaluate.Result], ...]


def resolver(settings: Settings) -> Resolver:
    """Returns a resolver that asks the servers of SETTINGS. Raises ValueError if there are none."""
    return Resolver(
        f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        for address, port in settings.resolver
    )


def run(
    engine: Engine,
    settings: Settings,
    now: int,
    interval: int = 60,
    limit: int = LIMIT,
    seconds: float = SECONDS,
) -> Report:
    """Asks what is due at NOW, LIMIT domains at most, for SECONDS at most.

    INTERVAL is how many seconds ago the run before was. Raises ValueError if there is no name
    server.
    """
    began = time.monotonic()
    dns = resolver(settings)
    tasks = due.tasks(engine, settings, now, interval, limit)
    return work_off(engine, dns, tasks, now, began + seconds)


def work_off(
    engine: Engine,
    dns: Resolver,
    tasks: Iterable[Task],
    now: int,
    ends: float,
    forced: bool = False,
) -> Report:
    """Asks the domains of TASKS, of which it is NOW, until ENDS (``time.monotonic``).

    FORCED asks them whether they are due or not.
    """
    report, began = Report(), time.monotonic()
    of_domain = min(OF_DOMAIN, max((ends - began) / 2, 0.0))
    left = _Tasks(tasks)

    def current() -> int:
        return now + int(time.monotonic() - began)

    with ThreadPoolExecutor(THREADS) as threads:
        running: dict[Future[Outcome], tuple[Task, Claim | None]] = {}
        while True:
            while len(running) < THREADS and time.monotonic() + of_domain <= ends:
                task = left.next()
                if task is None:
                    break
                claim = None
                if forced or task.asks(now):
                    claim = keeping.claim(engine, task, current(), forced)
                    if claim is None:
                        report.elsewhere += 1
                        continue
                task.clients = due.not_evaluated(engine, task, now) if task.clients else {}
                if claim is None and not task.clients:
                    continue
                report.asked += claim is not None
                until = time.monotonic() + of_domain
                running[threads.submit(ask, dns, task, claim is not None, until)] = task, claim
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, claim = running.pop(future)
                _take(engine, report, task, claim, future.result(), current())
        report.left = sum(1 for _task in left)
    return report


class _Tasks:
    """TASKS, one after the other, until there are no more."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = iter(tasks)

    def __iter__(self) -> Iterator[Task]:
        return self._tasks

    def next(self) -> Task | None:
        return next(self._tasks, None)


def ask(dns: Resolver, task: Task, asks: bool, until: float) -> Outcome:
    """Returns what DNS says of the domain of TASK if it ASKS, and of its clients, by UNTIL."""
    answer = evaluate.networks_of(task.domain, dns, until) if asks else None
    results = []
    if answer is None or (answer.state == "found" and answer.depends):
        for address, sender in task.clients.items():
            value = int.from_bytes(address, "big")
            if answer is not None and (value in answer.ranges or value not in answer.perhaps):
                continue
            # Nobody has kept what it said in HELO.
            said = evaluate.passes(task.domain, sender, text_of(address), b"", dns, until)
            results.append((address, said))
            if said.result == "temperror":
                break  # the others would have to wait as long
    return Outcome(answer, tuple(results))


def text_of(address: bytes) -> str:
    """Returns the packed ADDRESS as ``normalise.client_address`` has it."""
    value = int.from_bytes(address, "big")
    if value >> normalise.IPV4_BITS == normalise.MAPPED:
        value &= (1 << normalise.IPV4_BITS) - 1
        return normalise.address_text(normalise.IPV4_BITS, value)
    return normalise.address_text(normalise.IPV6_BITS, value)


def _take(
    engine: Engine, report: Report, task: Task, claim: Claim | None, outcome: Outcome, now: int
) -> None:
    """Keeps the OUTCOME for TASK, and counts it in REPORT."""
    evaluated = [
        Evaluated(address, said.result == "pass", now + _lasting(said))
        for address, said in outcome.clients
    ]
    if claim is None:
        if evaluated and keep_clients(engine, task, evaluated, now):
            report.clients += len(evaluated)
        return
    assert outcome.answer is not None
    if not keep(engine, claim, task, outcome.answer, evaluated, now):
        report.elsewhere += 1
        return
    if outcome.answer.state == "failed":
        report.failed += 1
    else:
        report.answered += 1
        report.clients += len(evaluated)


def _lasting(said: evaluate.Result) -> int:
    """Returns for how many seconds it holds what was SAID of a client."""
    if said.result == "pass":
        return OF_CLIENT
    return min(max(said.ttl, FLOOR), CEILING)
