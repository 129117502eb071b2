"""Senders' domains, as ``greycheck list``, ``show`` and ``forget`` tell them."""

import shlex
from collections.abc import Iterator
from itertools import islice

import click
from sqlalchemy import Engine, RowMapping

from greycheck.cli import terminal
from greycheck.cli.columns import Cell, Rows, facts
from greycheck.cli.output import console, print_json
from greycheck.explain.decision import address_bytes
from greycheck.settings import Settings
from greycheck.store.admin import domains
from greycheck.store.admin.domains import POOL, REFUSED, Named
from greycheck.times import away, coarse, local
from greycheck.unknown import DomainRow, is_known_domain

# What stands before the name of a domain, for show and forget.
KEYWORD = "domain"

# The width of the names of what is shown, in columns.
LABEL = 16

# Rows in one table of networks.
PAGE = 500

TITLES: tuple[tuple[str, ...], ...] = (
    ("domain", "passes", "used", "networks", "SPF", "asked", "next", "state"),
)

STYLES = {"known": "green", "unknown": "", "pool": "cyan", "failed": "red", "error": "red"}

# What the state of a domain's SPF means.
MEANINGS = {
    "found": "it names the networks that send for the domain",
    "none": "the domain has none",
    "wide": "it lets so many networks send that it means no one sender",
    "error": "it is wrong, and counts as none",
    "failed": "DNS did not tell, and there is no earlier answer",
}

SOURCES = {
    "spf": "SPF",
    "client": "SPF, asked for this address",
    REFUSED: "SPF, asked: may not send",
    POOL: "learnt as a pool",
}


def named(text: str) -> list[Named]:
    """Returns what the domain TEXT, as an operator writes it, may be in the store.

    Raises UsageError.
    """
    domain = address_bytes(text)
    if not domain.strip(b"."):
        raise click.UsageError(f"{text}: no domain: write it as example.org")
    if b"@" in domain:
        rest = terminal.shown(text.rpartition("@")[2])
        raise click.UsageError(f"{text}: an address: write its domain alone: {rest}")
    return domains.named(domain)


def is_domain(what: tuple[str, ...]) -> bool:
    """Whether the arguments WHAT name a domain: ``domain`` and its name. Raises UsageError."""
    if what[:1] != (KEYWORD,) or len(what) == 3:
        return False
    if len(what) != 2:
        raise click.UsageError("name one domain, as: domain example.org")
    return True


# --- the list -------------------------------------------------------------------------------------


def state_of(row: RowMapping, settings: Settings, now: int) -> str:
    """Returns the state of a domain's ROW: known, pool (its networks were learnt) or unknown."""
    if row["passes"] is not None:
        known = DomainRow(row["first_seen"], row["last_seen"], row["passes"])
        if is_known_domain(known, settings, now):
            return "known"
    return "pool" if row["pool_networks"] else "unknown"


def spf_state(row: RowMapping, now: int) -> str:
    """Returns the state of the SPF in ROW at NOW; ``-`` where it is not known, or too old."""
    if row["state"] is None:
        return "-"
    return str(row["state"]) if row["spf_expires_at"] > now else "over"


def cells(row: RowMapping, settings: Settings, now: int) -> list[Cell]:
    """Returns a domain's ROW as eight cells."""
    state, answer = state_of(row, settings, now), spf_state(row, now)
    networks, learnt = row["networks"], row["pool_networks"]
    return [
        (row["name"], ""),
        ("-" if row["passes"] is None else str(row["passes"]), ""),
        ("-" if row["last_seen"] is None else coarse(now - row["last_seen"]), ""),
        (f"{networks}{' pool' if learnt and learnt == networks else ''}", ""),
        (answer, STYLES.get(answer, "")),
        ("-" if row["answered_at"] is None else coarse(now - row["answered_at"]), ""),
        (_next(row["next_at"], now), ""),
        (state, STYLES[state]),
    ]


def _next(moment: int | None, now: int) -> str:
    if moment is None:
        return "-"
    return coarse(moment - now) if moment > now else "now"


def data(row: RowMapping, settings: Settings, now: int) -> dict[str, object]:
    """Returns a domain's ROW for JSON. Times are in seconds since 1970."""
    answer = None
    if row["state"] is not None:
        answer = {name: row[name] for name in domains.ANSWER}
        answer["per_client"] = bool(row["per_client"])
        answer["expires_at"] = row["spf_expires_at"]
    return {
        "domain": row["name"],
        "key": bytes(row["domain_key"]).hex(),
        "state": state_of(row, settings, now),
        "passes": row["passes"],
        "first_seen": row["first_seen"],
        "last_seen": row["last_seen"],
        "expires_at": row["expires_at"],
        "networks": row["networks"],
        "pool_networks": row["pool_networks"],
        "spf": answer,
    }


# --- one domain -----------------------------------------------------------------------------------


def show(engine: Engine, names: list[Named], settings: Settings, now: int, as_json: bool) -> bool:
    """Prints all that is known of the first of NAMES that is. Returns False where none is."""
    for asked in names:
        known, answer, let_in = domains.one(engine, asked)
        networks = domains.networks_of(engine, asked)
        first = next(networks, None)
        if known is None and answer is None and let_in is None and first is None:
            continue
        ranges = _with(first, networks)
        if as_json:
            _print_data(asked, known, answer, let_in, ranges)
        else:
            lines = [("domain", asked.text), *_lines(known, answer, let_in, settings, now)]
            _print(lines, asked, ranges, now, _is_found(answer, now))
        return True
    return False


def _is_found(answer: RowMapping | None, now: int) -> bool:
    """Whether the SPF of ANSWER names networks, at NOW."""
    return answer is not None and answer["state"] == "found" and answer["expires_at"] > now


def _with(first: RowMapping | None, others: Iterator[RowMapping]) -> Iterator[RowMapping]:
    if first is not None:
        yield first
        yield from others


def _lines(
    known: RowMapping | None,
    answer: RowMapping | None,
    let_in: RowMapping | None,
    settings: Settings,
    now: int,
) -> Iterator[tuple[str, str]]:
    yield from _known_lines(known, settings, now)
    if let_in is not None:
        yield "provider", f"let in at the first attempt, since {_when(let_in['created_at'], now)}"
    if answer is None:
        yield "SPF", "not known: greycheck resolve asks for it"
        return
    state = answer["state"]
    over = "" if answer["expires_at"] > now else ": over, does not count any more"
    yield "SPF", f"{state}: {MEANINGS.get(state, state)}{over}"
    if answer["why"]:
        yield "", answer["why"]
    if answer["per_client"]:
        yield "", "some of it can only be asked for a client"
    if answer["answered_at"] is not None:
        yield "answered", _when(answer["answered_at"], now)
    yield "asked", _when(answer["asked_at"], now)
    if answer["failures"]:
        yield "", f"without an answer, {_times(answer['failures'])} in a row"
    is_due = answer["next_at"] <= now
    yield "asked again", "by the next run" if is_due else _when(answer["next_at"], now)
    yield "answer ends", _when(answer["expires_at"], now)


def _known_lines(
    known: RowMapping | None, settings: Settings, now: int
) -> Iterator[tuple[str, str]]:
    if settings.identity == "no":
        yield "counts", "not: identity = no"
    if known is None:
        yield "state", "unknown: it has never passed"
        return
    row = DomainRow(known["first_seen"], known["last_seen"], known["passes"])
    yield "state", "known" if is_known_domain(row, settings, now) else "unknown"
    yield (
        "passes",
        f"{known['passes']}; from {settings.domain_passes} on, all mail from its networks passes"
        if settings.domain_passes
        else f"{known['passes']}; domain_passes is off",
    )
    yield "first seen", _when(known["first_seen"], now)
    yield "last seen", _when(known["last_seen"], now)
    yield "removed after", _when(known["expires_at"], now)


def _print(
    lines: list[tuple[str, str]],
    asked: Named,
    networks: Iterator[RowMapping],
    now: int,
    is_found: bool,
) -> None:
    screen = console()
    facts(screen, lines, LABEL)
    table = Rows(screen, main=0)
    titles = [[(title, "bold") for title in ("network", "since", "for", "by")]]
    while page := list(islice(networks, PAGE)):
        screen.print()
        table.print([_range_cells(row, now, is_found) for row in page], titles)
    screen.print()
    # A command to be copied is not broken in two.
    command = f"greycheck list pending --domain={shlex.quote(asked.text)}"
    screen.print("what waits")
    screen.print(f"  {terminal.shown(command)}", soft_wrap=True)


def _range_cells(row: RowMapping, now: int, is_found: bool) -> list[Cell]:
    """Returns a range's ROW as four cells; IS_FOUND: SPF is, so that no pool counts."""
    left = row["expires_at"] - now
    source = SOURCES.get(row["source"], row["source"])
    if is_found and row["source"] == POOL:
        source += "; SPF counts"
    return [
        (domains.range_text(row), ""),
        (coarse(now - row["added_at"]), ""),
        (coarse(left) if left > 0 else "over", "" if left > 0 else "dim"),
        (source, "dim" if row["source"] == REFUSED else ""),
    ]


def _print_data(
    asked: Named,
    known: RowMapping | None,
    answer: RowMapping | None,
    let_in: RowMapping | None,
    networks: Iterator[RowMapping],
) -> None:
    found = None
    if answer is not None:
        found = {name: answer[name] for name in (*domains.ANSWER, "expires_at")}
        found["per_client"] = bool(answer["per_client"])
    times = ("passes", "first_seen", "last_seen", "expires_at")
    print_json(
        {
            "domain": asked.text,
            "key": asked.key.hex(),
            "known": None if known is None else {name: known[name] for name in times},
            "provider": let_in is not None,
            "spf": found,
            "networks": [
                {
                    "range": domains.range_text(row),
                    "source": row["source"],
                    "added_at": row["added_at"],
                    "expires_at": row["expires_at"],
                }
                for row in networks
            ],
        }
    )


def _when(moment: int, now: int) -> str:
    return f"{local(moment)} ({away(moment, now)})"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
