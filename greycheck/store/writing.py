"""How a change is written: the compiled statement of each kind, and its parameters."""

from greycheck.log import show_address
from greycheck.policy import Change, ClientRow, RuleRow, TripletRow, domain_of
from greycheck.store.base import DIGEST, Asked
from greycheck.store.waiting import NO_DOMAIN, correspondent_key, packed_range, pair_keys
from greycheck.unknown import DomainRow, NetworkRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.outbound import Letter


# The statements of a triplet's row.
TRIPLETS = ("INSERT_TRIPLET", "SWAP_TRIPLET")


def letter_parameters(letter: "Letter") -> dict[str, object]:
    """The parameters of CORRESPONDENT, CORRESPONDENTS and PUT_CORRESPONDENT for LETTER, by name."""
    key = correspondent_key(letter.outside, letter.user)
    pair_low, pair_high = pair_keys(key)
    return {
        "pair_key": key,
        "pair_low": pair_low,
        "pair_high": pair_high,
        "sender": show_address(letter.outside),
        "recipient": show_address(letter.user),
        "first_seen": letter.written,
        "last_seen": letter.written,
        "expires_at": letter.expires,
    }


def statement(change: Change) -> str:
    """Returns the name of the compiled statement that makes CHANGE.

    It changes no row if the old one is no longer there.
    """
    if isinstance(change.new, TripletRow):
        return "INSERT_TRIPLET" if change.old is None else "SWAP_TRIPLET"
    if isinstance(change.new, ClientRow):
        return "INSERT_CLIENT" if change.old is None else "SWAP_CLIENT"
    if isinstance(change.new, DomainRow):
        return "INSERT_DOMAIN" if change.old is None else "SWAP_DOMAIN"
    return "PUT_NETWORK" if isinstance(change.new, NetworkRow) else "DELETE_RULE"


def is_done(name: str, changed: int) -> bool:
    """Whether the statement NAME, which CHANGED so many rows, did what it was to do.

    What is only put there may be there already.
    """
    return changed == 1 or name == "PUT_NETWORK"


def parameters(asked: Asked, change: Change) -> dict[str, object]:
    """The parameters of that statement, by name."""
    old, new = change.old, change.new
    if isinstance(new, TripletRow):
        values = _triplet_state("", new)
        values["passed_at"], values["expires_at"] = new.passed, change.expires
        if isinstance(old, TripletRow):
            return values | _triplet_state("was_", old) | {"key_triplet_key": asked.key}
        values["triplet_key"], values["network"] = asked.key, asked.triplet.network
        values["sender"], values["recipient"] = asked.shown
        values["origin"], values["authorised"] = asked.origin, asked.authorised
        return values
    if isinstance(new, ClientRow):
        values = _client_state("", new) | {"expires_at": change.expires}
        if isinstance(old, ClientRow):
            return values | _client_state("was_", old) | {"key_address": asked.triplet.client}
        return values | {"address": asked.triplet.client}
    if isinstance(new, DomainRow):
        values = _domain_state("", new) | {"expires_at": change.expires}
        key = asked.origin[:DIGEST] if asked.origin else NO_DOMAIN
        if isinstance(old, DomainRow):
            return values | _domain_state("was_", old) | {"key_domain_key": key}
        return values | {"domain_key": key, "name": show_address(domain_of(asked.triplet.sender))}
    if isinstance(new, NetworkRow):
        first, last = packed_range(new.network)
        return {
            "network_key": (asked.origin or NO_DOMAIN)[:DIGEST] + first,
            "last": last,
            "source": "pool",
            "name": show_address(domain_of(asked.triplet.sender)),
            "added_at": new.added,
            "expires_at": change.expires,
        }
    assert isinstance(old, RuleRow)
    return {"match_key": old.key}


def _triplet_state(prefix: str, row: TripletRow) -> dict[str, object]:
    return {
        prefix + "first_attempt": row.first,
        prefix + "last_attempt": row.last,
        prefix + "early_attempts": row.early,
        prefix + "passes": row.passes,
    }


def _domain_state(prefix: str, row: DomainRow) -> dict[str, object]:
    return {
        prefix + "passes": row.passes,
        prefix + "first_seen": row.first,
        prefix + "last_seen": row.last,
    }


def _client_state(prefix: str, row: ClientRow) -> dict[str, object]:
    return {
        prefix + "passes": row.passes,
        prefix + "first_seen": row.first,
        prefix + "last_seen": row.last,
        prefix + "strikes": row.strikes,
        prefix + "struck_until": row.struck,
    }
