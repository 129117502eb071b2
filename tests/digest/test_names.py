"""Clients' names are verified by a real name server, and bounded in number and time."""

import pytest

from greycheck.digest import names
from greycheck.spf.dns import Resolver
from tests.dns_servers import Liar, Nsd

ZONES = {
    "2.0.192.in-addr.arpa.": """7 PTR mail.example.org.
8 PTR forged.example.org.
9 PTR host-192-0-2-9.example.org.
10 PTR mail.example.org.
10 PTR ten.example.org.
11 PTR nowhere.invalid.""",
    "8.b.d.0.1.0.0.2.ip6.arpa.": "7" + ".0" * 23 + " PTR v6.example.org.",
    "example.org.": """mail A 192.0.2.7
forged A 192.0.2.77
host-192-0-2-9 A 192.0.2.9
ten A 192.0.2.10
v6 AAAA 2001:db8::7""",
}


def test_a_name_counts_where_it_has_the_address_and_does_not_spell_it() -> None:
    with Nsd(ZONES) as nsd:
        clients = [f"192.0.2.{last}" for last in range(7, 13)] + ["2001:db8::7", "198.51.100.1"]
        assert names.verified(Resolver([nsd.address]), clients) == {
            "192.0.2.7": "mail.example.org",
            "192.0.2.10": "ten.example.org",
            "2001:db8::7": "v6.example.org",
        }


def test_it_asks_for_so_many_clients_and_ends_though_nobody_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(names, "CLIENTS", 3)
    liar = Liar(lambda _query, _by_tcp: None)
    try:
        clients = [f"192.0.2.{last % 5}" for last in range(100)]
        assert names.verified(Resolver([f"127.0.0.1:{liar.port}"]), clients, 0.5) == {}
        asked = {name for name, _kind, _by_tcp in liar.queries}
        assert len(asked) == 3
    finally:
        liar.close()
