"""Providers of mail: which domains' SPF names their networks, and what these are.

Interface: ``KNOWN`` are some by name, ``domains_of`` reads what an operator writes, ``look_up``
asks DNS and returns what it ``Said``, ``in_words`` tells what is wrong with that.

Every command loads this; dnspython is loaded where it is needed.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from greycheck.spelling import nearest
from greycheck.spf import networks
from greycheck.spf.ranges import Ranges

if TYPE_CHECKING:
    from greycheck.spf.dns import Resolver

# The most networks of a provider. Those that are known have some dozens.
MOST_NETWORKS = 1000

# How many domains are asked for at once.
AT_ONCE = 8

# The domains whose SPF names the networks of a provider: those that it tells its customers to
# include, or that of its own users. What these say today, DNS tells.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "amazonses": ("amazonses.com",),
    "apple": ("icloud.com",),
    "brevo": ("spf.brevo.com",),
    "constantcontact": ("spf.constantcontact.com",),
    "fastmail": ("spf.messagingengine.com",),
    "gandi": ("_mailcust.gandi.net",),
    "gmx": ("gmx.net", "gmx.com"),
    "google": ("_spf.google.com",),
    "mailchimp": ("servers.mcsv.net",),
    "mailgun": ("mailgun.org",),
    "mailjet": ("spf.mailjet.com",),
    "mailru": ("_spf.mail.ru",),
    "mandrill": ("spf.mandrillapp.com",),
    "microsoft": ("spf.protection.outlook.com", "outlook.com"),
    "ovh": ("mx.ovh.com",),
    "postmark": ("spf.mtasv.net",),
    "protonmail": ("_spf.protonmail.ch",),
    "qq": ("spf.mail.qq.com",),
    "rackspace": ("emailsrvr.com",),
    "sendgrid": ("sendgrid.net",),
    "yahoo": ("_spf.mail.yahoo.com",),
    "yandex": ("_spf.yandex.net",),
    "zendesk": ("mail.zendesk.com",),
    "zoho": ("zohomail.com",),
}

# Networks of which no provider is told apart: many clients may have such an address here (see
# ``normalise.is_private``).
PRIVATE = Ranges(
    networks.pairs(
        (
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        )
    )
)


@dataclass(frozen=True)
class Said:
    """What DNS said of the domain NAME at ASKED_AT (seconds since 1970).

    STATE and WHY are as those of ``evaluate.Answer``. With the state ``found``, NETWORKS are those
    that are let in. DEPENDS is true if there are others that only a client itself can tell.
    """

    name: str
    state: str
    why: str
    networks: tuple[str, ...]
    depends: bool
    asked_at: int


def domains_of(text: str) -> Sequence[str]:
    """Returns the domains of the provider that TEXT names, or the domain TEXT.

    Raises ValueError.
    """
    from greycheck.spf.dns import domain_name

    known = KNOWN.get(text.lower())
    if known:
        return known
    domain = domain_name(text.encode("utf-8", "surrogateescape"))
    if domain is None:
        near = nearest(text.lower(), KNOWN)
        raise ValueError(
            "neither a domain nor a provider that is known by name (greycheck providers known)"
            + (f". Did you mean {near}?" if near else "")
        )
    return (domain.decode(),)


def name_of(domain: str) -> str:
    """Returns the name by which the provider of DOMAIN is known; empty if it is none of these."""
    return next((name for name, domains in KNOWN.items() if domain in domains), "")


def in_words(state: str, why: str, is_empty: bool) -> str:
    """Returns what the STATE of an answer means, with its WHY; empty if all is well.

    IS_EMPTY says that it names no network.
    """
    if state == "failed":
        return f"DNS did not answer: {why}"
    if state == "error":
        return f"its SPF is wrong: {why}"
    if state == "wide":
        return f"its SPF is too wide: {why}"
    if state == "found" and why and not is_empty:
        return f"a part of its SPF is wrong: {why}"
    return why


def look_up(names: Iterable[str], servers: Iterable[str]) -> list[Said]:
    """Returns what DNS says of each domain of NAMES now, in their order.

    SERVERS are the name servers, as ``dns.Resolver`` has them. Raises ValueError if there is none.
    """
    from greycheck.spf.dns import Resolver

    asked = list(servers)
    Resolver(asked)
    with ThreadPoolExecutor(AT_ONCE) as workers:
        return list(workers.map(lambda name: ask(name, Resolver(asked), int(time.time())), names))


def ask(name: str, dns: "Resolver", now: int) -> Said:
    """Returns what DNS says of the domain NAME, at NOW."""
    from greycheck.spf import evaluate

    answer = evaluate.networks_of(name.encode(), dns)
    if answer.state != "found":
        return Said(name, answer.state, answer.why, (), False, now)
    found = networks.written(answer.ranges - PRIVATE)
    if len(found) > MOST_NETWORKS:
        why = f"over {MOST_NETWORKS} networks"
        return Said(name, "error", why, (), False, now)
    why = answer.why
    if not found:
        why = why or (
            "only a client itself can tell whether it may send"
            if answer.depends
            else "from private networks only"
            if answer.ranges
            else "nobody may send"
        )
    return Said(name, "found", why, tuple(found), answer.depends, now)
