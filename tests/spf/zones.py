"""Random domains with SPF records that mean each other, and what they say, worked out plainly.

``World`` makes names, addresses and records from a seed. ``World.zones`` writes them for a name
server; ``World.check`` says what a domain says about one client, in the order of RFC 7208 and
without any sets, DNS or text of records.
"""

import ipaddress
import random
from dataclasses import dataclass, field

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# All that happens is within these, so that terms often meet.
IPV4 = ipaddress.IPv4Network("10.0.0.0/27")
IPV6 = ipaddress.IPv6Network("2001:db8::/123")
LOCALS = ("ann", "bob")
HELOS = ("h1.example", "nowhere.example")
WORDS = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}
MACROS = ("i", "l", "h", "v", "o", "d", "p")


class PermError(Exception):
    pass


@dataclass
class Term:
    qualifier: str
    mechanism: str
    argument: str = ""
    prefix4: int = 32
    prefix6: int = 128

    def __str__(self) -> str:
        if self.mechanism == "redirect":
            return f"redirect={self.argument}"
        text = self.qualifier + self.mechanism + (f":{self.argument}" if self.argument else "")
        if self.mechanism == "ip4":
            return f"{text}/{self.prefix4}"
        if self.mechanism == "ip6":
            return f"{text}/{self.prefix6}"
        if self.mechanism in ("a", "mx"):
            return f"{text}/{self.prefix4}//{self.prefix6}"
        return text


@dataclass
class World:
    seed: int
    records: dict[str, list[str]] = field(default_factory=dict)  # "name kind" to data
    terms: dict[str, list[Term]] = field(default_factory=dict)  # of a domain with one good record
    wrong: set[str] = field(default_factory=set)
    domains: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.hosts = [f"h{number}.example" for number in range(12)]
        self.mails = [f"m{number}.example" for number in range(6)]
        for host in self.hosts[:9]:
            self.add(host, "A", *map(str, self.some(IPV4, self.random.randrange(4))))
            self.add(host, "AAAA", *map(str, self.some(IPV6, self.random.randrange(4))))
        for number, mail in enumerate(self.mails[:5]):
            count = (1, 2, 3, 10, 11)[number]
            chosen = self.random.sample(self.hosts, min(count, 12))
            self.add(mail, "MX", *(f"{at} {host}." for at, host in enumerate(chosen)))
        for address in [*IPV4, *IPV6]:
            if self.random.random() < 0.6:
                names = self.random.sample(self.hosts, self.random.randrange(1, 4))
                self.add(address.reverse_pointer, "PTR", *(f"{name}." for name in names))
            for kind in ("e", "f"):
                if self.random.random() < 0.4:
                    self.add(f"{dotted(address)}.{kind}.example", "A", "127.0.0.2")
        for name in ("ann.l.example", "bob.m.example", "in-addr.v.example", "h1.example.g.example"):
            self.add(name, "A", "127.0.0.2")
        for number in range(150):
            self.make(f"d{number}.example", number)
        for local in LOCALS[:1]:
            self.make(f"{local}.inc.example", 120)

    def some(self, network: ipaddress.IPv4Network | ipaddress.IPv6Network, count: int) -> list[str]:
        size = network.num_addresses
        return [str(network[self.random.randrange(size)]) for _ in range(count)]

    def add(self, name: str, kind: str, *data: str) -> None:
        if data:
            self.records.setdefault(f"{name} {kind}", []).extend(dict.fromkeys(data))

    def make(self, domain: str, number: int) -> None:
        self.domains.append(domain)
        luck = self.random.random()
        if luck < 0.03:
            return
        if luck < 0.06:
            self.wrong.add(domain)
            self.add(
                domain,
                "TXT",
                *self.random.choice(
                    [('"v=spf1 ip4:10.0.0.0/24 ip4:1"',), ('"v=spf1 -all"', '"v=spf1 +all"')]
                ),
            )
            return
        terms = [self.term(number) for _ in range(self.random.choice((1, 2, 3, 4, 6)))]
        luck = self.random.random()
        if luck < 0.4:
            terms.append(Term(self.random.choice("--~?"), "all"))
        if luck > 0.3 and self.random.random() < 0.3:
            terms.append(Term("", "redirect", self.domain(number)))
        self.terms[domain] = terms
        self.add(domain, "TXT", '"v=spf1 ' + " ".join(map(str, terms)) + '"')
        if self.random.random() < 0.3:
            self.add(domain, "A", *self.some(IPV4, 2))
            self.add(domain, "MX", f"5 {self.random.choice(self.hosts)}.")

    def domain(self, number: int) -> str:
        """Mostly one with a higher number, so that most have an end."""
        if self.random.random() < 0.05:
            return self.random.choice(
                ("%{l}.inc.example", f"d{self.random.randrange(150)}.example")
            )
        return f"d{self.random.randrange(number, 151)}.example"

    def term(self, number: int) -> Term:
        choice = self.random.choice
        qualifier = choice("+++++--~?")
        prefix4 = choice((28, 29, 30, 31, 32, 32))
        prefix6 = choice((124, 125, 126, 127, 128, 128))
        kind = choice(
            ("ip4", "ip4", "ip6", "ip6", "a", "mx", "exists", "include", "include", "ptr")
        )
        if kind == "ip4":
            return Term(qualifier, kind, self.some(IPV4, 1)[0], prefix4)
        if kind == "ip6":
            return Term(qualifier, kind, self.some(IPV6, 1)[0], prefix6=prefix6)
        if kind in ("a", "mx"):
            names = self.hosts if kind == "a" else self.mails
            name = choice((*names, *names, "", "%{h}", "%{d}", "%{o}"))
            return Term(qualifier, kind, name, prefix4, prefix6)
        if kind == "include":
            return Term(qualifier, kind, self.domain(number + 1))
        if kind == "ptr":
            return Term(
                qualifier, kind, choice(("", "%{h}", "h2.example", "x.h1.example", "%{o1}"))
            )
        names = ["%{i}.e.example", "%{i}.f.example", "%{l}.l.example", "%{l}.m.example",
                 "%{h}.g.example", "%{p}", "none.example"]  # fmt: skip
        if qualifier != "+":
            names += ["%{v}.v.example", "h1.example"]
        return Term(qualifier, kind, choice(names))

    def zones(self) -> dict[str, str]:
        lines: dict[str, list[str]] = {"example.": [], "in-addr.arpa.": [], "ip6.arpa.": []}
        for key, data in self.records.items():
            name, kind = key.split()
            for origin, zone in lines.items():
                if f"{name}.".endswith(f".{origin}"):
                    zone += [f"{name}. {kind} {one}" for one in data]
        return {origin: "\n".join(zone) for origin, zone in lines.items()}

    # --- what a domain says -----------------------------------------------------------------------

    def check(self, domain: str, address: Address, local: str, helo: str) -> str:
        return Check(self, domain, address, local, helo).result()


def dotted(address: Address) -> str:
    if address.version == 4:
        return str(address)
    return ".".join(address.exploded.replace(":", ""))


class Check:
    def __init__(self, world: World, origin: str, address: Address, local: str, helo: str) -> None:
        self.world, self.origin, self.address = world, origin, address
        self.local, self.helo = local, helo
        self.lookups = self.voids = 0

    def result(self) -> str:
        try:
            return self.check(self.origin) or "none"
        except PermError:
            return "permerror"

    def data(self, name: str, kind: str) -> list[str]:
        return self.world.records.get(f"{name} {kind}", [])

    def addresses(self, name: str) -> list[str]:
        return self.data(name, "A" if self.address.version == 4 else "AAAA")

    def check(self, domain: str) -> str:
        if domain in self.world.wrong:
            raise PermError
        if domain not in self.world.terms:
            return ""
        terms = self.world.terms[domain]
        for term in terms:
            if term.mechanism == "redirect":
                if any(other.mechanism == "all" for other in terms):
                    continue
                self.count()
                found = self.check(self.expand(term.argument, domain))
                if not found:
                    raise PermError
                return found
            if self.matches(term, domain):
                return WORDS[term.qualifier]
        return "neutral"

    def count(self) -> None:
        self.lookups += 1
        if self.lookups > 10:
            raise PermError

    def matches(self, term: Term, domain: str) -> bool:
        kind = term.mechanism
        if kind == "all":
            return True
        if kind in ("ip4", "ip6"):
            return self.within(term.argument, term)
        self.count()
        name = self.expand(term.argument, domain) if term.argument else domain
        if kind == "include":
            found = self.check(name)
            if not found:
                raise PermError
            return found == "pass"
        if kind == "a":
            void = not self.addresses(name)
            matched = any(self.within(one, term) for one in self.addresses(name))
        elif kind == "mx":
            hosts = [data.split()[1][:-1] for data in self.data(name, "MX")]
            if len(hosts) > 10:
                raise PermError
            void = not hosts
            matched = any(self.within(one, term) for host in hosts for one in self.addresses(host))
        elif kind == "exists":
            void = not self.data(name, "A")
            matched = not void
        else:
            void = not self.data(self.address.reverse_pointer, "PTR")
            matched = any(f".{host}".endswith(f".{name}") for host in self.validated())
        if void:
            self.voids += 1
            if self.voids > 2:
                raise PermError
        return matched

    def within(self, address: str, term: Term) -> bool:
        other = ipaddress.ip_address(address)
        prefix = term.prefix4 if other.version == 4 else term.prefix6
        return self.address in ipaddress.ip_network(f"{address}/{prefix}", strict=False)

    def validated(self) -> list[str]:
        names = [data[:-1] for data in self.data(self.address.reverse_pointer, "PTR")]
        return [name for name in names if str(self.address) in self.addresses(name)]

    def expand(self, text: str, domain: str) -> str:
        if "%{p}" in text:
            names = self.validated()
            own = [name for name in names if name == domain]
            under = [name for name in names if name.endswith(f".{domain}")]
            text = text.replace("%{p}", [*own, *under, *sorted(names), "unknown"][0])
        values = {
            "o1": "example",
            "i": dotted(self.address),
            "l": self.local,
            "h": self.helo,
            "v": "in-addr" if self.address.version == 4 else "ip6",
            "o": self.origin,
            "d": domain,
        }
        for letter, value in values.items():
            text = text.replace(f"%{{{letter}}}", value)
        return text
