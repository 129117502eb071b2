"""Whom our users wrote to, as ``greycheck list`` and ``forget`` tell it."""

import click
from sqlalchemy import RowMapping

from greycheck import normalise, outbound
from greycheck.cli.columns import Cell
from greycheck.explain.decision import address_bytes
from greycheck.settings import Settings
from greycheck.store.waiting import correspondent_key
from greycheck.times import coarse

# What stands before both addresses, for forget.
KEYWORD = "correspondent"

TITLES: tuple[tuple[str, ...], ...] = (("may answer", "user", "first", "last", "state"),)


def cells(row: RowMapping, settings: Settings, now: int) -> list[Cell]:  # noqa: ARG001
    """Returns a correspondent's ROW as five cells."""
    state = "over" if row["expires_at"] <= now else f"{coarse(row['expires_at'] - now)} left"
    return [
        (row["sender"], ""),
        (row["recipient"], ""),
        (coarse(now - row["first_seen"]), ""),
        (coarse(now - row["last_seen"]), ""),
        (state, "dim" if state == "over" else ""),
    ]


def data(row: RowMapping, settings: Settings, now: int) -> dict[str, object]:  # noqa: ARG001
    """Returns a correspondent's ROW for JSON, with whether it counts."""
    found = {name: value for name, value in row.items() if name != "pair_key"}
    return found | {"key": bytes(row["pair_key"]).hex(), "counts": row["expires_at"] > now}


def key_of(what: tuple[str, ...]) -> bytes:
    """Returns the key of the arguments WHAT: ``correspondent``, who may answer, and our user.

    Empty where they are about something else. Raises UsageError.
    """
    if what[:1] != (KEYWORD,):
        return b""
    if len(what) != 3:
        raise click.UsageError("name both: correspondent WHO USER")
    outside = normalise.fold_sender(normalise.mail_address(address_bytes(what[1])))
    return correspondent_key(outside, outbound.user_of(address_bytes(what[2])))
