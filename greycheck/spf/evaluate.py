"""What SPF records come to: for all clients at once, or for one (RFC 7208 sections 4 and 5).

There is one evaluation, of sets: a record is gone through from left to right with the addresses
that no term has matched yet. For one client that is a set of one address. For all clients it is
all of IPv4, and then all of IPv6, as the RFC asks DNS about each kind of address on its own, and
counts on its own.

Where no client is given, some terms cannot be decided: exists, ptr, and macros of the sender, the
client or its HELO. Of such a term any address may be matched. So an address that goes on may have
passed already, or may have failed already; both are remembered as sets, and what is found for it
later is sure only where it says the same.

Interface: ``networks_of`` returns an ``Answer``, ``passes`` a ``Result``.

Diagnostics: none are raised. Whatever a domain publishes and DNS does ends in an answer.

Known limits: for all clients at once the look-ups of the longest way count. A client whom an
included record turns away early has made fewer, and may pass where the answer has nobody.
"""

import time
from dataclasses import dataclass

from greycheck.spf import macros, ranges, record
from greycheck.spf.dns import LONGEST, Failed, Found, Resolver, domain_name
from greycheck.spf.macros import Pieces
from greycheck.spf.ranges import IPV4, IPV6, NOBODY, Ranges
from greycheck.spf.record import Term, Wrong

# Seconds for one domain, if the caller gives no deadline (RFC 7208 section 4.6.4: 20 at least).
SECONDS = 20.0

# Terms that ask DNS, and those of them that may find nothing (section 4.6.4).
LOOKUPS = 10
VOIDS = 2
ASKING = frozenset(("include", "a", "mx", "ptr", "exists"))

# Names of hosts that one term may have (section 4.6.4): more MX are an error, more PTR not read.
HOSTS = 10

# Questions for one evaluation, whatever the limits above allow.
QUERIES = 60

# Terms of all records that one evaluation goes through.
TERMS = 2000

# The most ranges of an answer.
MOST_RANGES = 2000

# The most addresses that still mean one sender: a /8 of IPv4, a /24 of IPv6.
WIDEST_IPV4 = 1 << 24
WIDEST_IPV6 = 1 << 104

# For how many seconds an answer holds that no name server was asked for.
UNASKED = 86400

RESULTS = {"+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}


@dataclass(frozen=True)
class Answer:
    """What a domain says about all clients.

    STATE is:

    - ``found``: the clients in RANGES pass; of those in PERHAPS only ``passes`` can tell;
    - ``none``: no record, or no domain that can have one;
    - ``wide``: so many pass that it does not mean one sender;
    - ``error``: the record is wrong (permerror), or says too much;
    - ``failed``: DNS did not answer; RANGES and PERHAPS are what was found before.

    WHY is empty, or one line that may be shown; with ``found`` it tells why what the record says
    later does not count. TTL is in seconds, the least of all records that were read, and 0 if DNS
    failed. LOOKUPS are those that the RFC limits.
    """

    state: str
    why: str
    ranges: Ranges
    perhaps: Ranges
    ttl: int
    lookups: int

    @property
    def depends(self) -> bool:
        """True if there are clients for whom only ``passes`` can tell."""
        return bool(self.perhaps)


@dataclass(frozen=True)
class Result:
    """What a domain says about one client.

    RESULT is one of ``pass``, ``fail``, ``softfail``, ``neutral``, ``none``, ``permerror``,
    ``temperror``; WHY is empty, or one line that may be shown; TTL is in seconds, as in an Answer.
    """

    result: str
    why: str
    ttl: int
    lookups: int


@dataclass(frozen=True)
class Client:
    """One client, with what it says: its ADDRESS as a number of 128 bits, SENDER, HELO."""

    address: int
    sender: bytes
    helo: bytes


@dataclass
class Outcome:
    """What the record of one domain says about the addresses it was asked about.

    PASSED surely pass. OPEN may pass. OFFERED are those of OPEN that a term without macros names:
    they pass unless an earlier term turns them away. UNDECIDED end in an error. RESULT is the word
    for the one client; it is ``none`` if there is no record.
    """

    passed: Ranges = NOBODY
    open: Ranges = NOBODY
    offered: Ranges = NOBODY
    undecided: Ranges = NOBODY
    result: str = "neutral"


def networks_of(domain: bytes, dns: Resolver, deadline: float | None = None) -> Answer:
    """Returns what DOMAIN, the domain of a sender, says about all clients.

    DOMAIN may be any bytes. It ends at DEADLINE (``time.monotonic``), or after SECONDS.
    """
    name = domain_name(domain)
    if name is None:
        return Answer("none", "no domain that DNS can have", NOBODY, NOBODY, UNASKED, 0)
    if deadline is None:
        deadline = time.monotonic() + SECONDS
    passed = perhaps = offered = NOBODY
    works: list[Evaluation] = []
    for family in (IPV4, IPV6):
        work = Evaluation(dns, deadline, name, family)
        outcome = work.check(name, family)
        works.append(work)
        passed |= outcome.passed
        perhaps |= outcome.open
        offered |= outcome.passed | outcome.offered
    return _answer(works, passed, perhaps, offered, none=outcome.result == "none")


def _answer(
    works: "list[Evaluation]", passed: Ranges, perhaps: Ranges, offered: Ranges, none: bool
) -> Answer:
    troubles = [work.trouble for work in works if work.trouble]
    # A failure of DNS counts before an error: it may be over the next time.
    state, why = min(troubles, key=_of_dns_first, default=("none" if none else "found", ""))
    if none:
        why = why or "no SPF record"
    if offered.ipv4_size() > WIDEST_IPV4 or offered.ipv6_size() > WIDEST_IPV6:
        state, why, passed, perhaps = "wide", "too many addresses pass", NOBODY, NOBODY
    elif len(passed) > MOST_RANGES:
        state, why, passed, perhaps = "error", f"over {MOST_RANGES} networks", NOBODY, NOBODY
    elif state == "error" and (passed or perhaps):
        state = "found"
    ttl = 0 if state == "failed" else min(work.ttl for work in works)
    return Answer(state, why, passed, perhaps, ttl, max(work.lookups for work in works))


def _of_dns_first(trouble: tuple[str, str]) -> bool:
    return trouble[0] != "failed"


def passes(
    domain: bytes,
    sender: bytes,
    address: str,
    helo: bytes,
    dns: Resolver,
    deadline: float | None = None,
) -> Result:
    """Returns what DOMAIN says about the client ADDRESS that says HELO and sends mail of SENDER.

    ADDRESS is as ``normalise.client_address`` returns it; raises ValueError if it is none. The
    other arguments may be any bytes. It ends at DEADLINE (``time.monotonic``), or after SECONDS.
    """
    value = ranges.value_of(address)
    name = domain_name(domain)
    if name is None:
        return Result("none", "no domain that DNS can have", UNASKED, 0)
    if deadline is None:
        deadline = time.monotonic() + SECONDS
    client = Client(value, sender, helo)
    universe = Ranges([(value, value)])
    work = Evaluation(dns, deadline, name, universe, client)
    outcome = work.check(name, universe)
    result = outcome.result
    if outcome.undecided and work.trouble:
        result = "temperror" if work.trouble[0] == "failed" else "permerror"
    why = work.trouble[1] if work.trouble else ""
    return Result(result, why, 0 if result == "temperror" else work.ttl, work.lookups)


class Evaluation:
    """One evaluation: what it may still do, what it has met, and who asks."""

    def __init__(
        self,
        dns: Resolver,
        deadline: float,
        origin: bytes,
        family: Ranges,
        client: Client | None = None,
    ) -> None:
        """Asks DNS until DEADLINE for ORIGIN, the sender's domain.

        FAMILY are the addresses, all of one kind; CLIENT is the one whose address it is, if any.
        """
        self.dns = dns
        self.deadline = deadline
        self.origin = origin
        self.ipv4 = bool(family & IPV4)
        self.above = ranges.FIRST_IPV4 if self.ipv4 else 0
        self.client = client
        self.ttl = UNASKED
        self.lookups = self.queries = self.terms = 0
        self.voids = self.perhaps_void = 0
        # The first error, as a state and its cause.
        self.trouble: tuple[str, str] | None = None
        # The addresses for which a term that cannot be decided may have been an error.
        self.doubtful = NOBODY
        # Whether DNS has no name for the client; and its names that have its address.
        self.nameless = False
        self._validated: list[bytes] | None = None

    def check(self, domain: bytes, alive: Ranges) -> Outcome:
        """Returns what the record of DOMAIN says about the addresses ALIVE."""
        walk = Walk(self, domain, alive)
        try:
            text = record.chosen(self.ask(domain, "TXT").records)
            if text is None:
                walk.outcome.result = "none"
                return walk.outcome
            walk.go(record.parse(text))
        except Wrong as wrong:
            walk.stop("error", str(wrong))
        except Failed as failed:
            walk.stop("failed", str(failed))
        return walk.outcome

    def ask(self, name: bytes, kind: str) -> Found:
        """Returns the records of KIND that NAME has. Raises Failed, Wrong."""
        if self.queries >= QUERIES:
            raise Wrong(f"over {QUERIES} questions to DNS")
        self.queries += 1
        found = self.dns.ask(name, kind, self.deadline)
        self.ttl = min(self.ttl, found.ttl)
        return found

    def count_lookup(self) -> None:
        """Counts a term that asks DNS. Raises Wrong at the first that is too many."""
        self.lookups += 1
        if self.lookups > LOOKUPS:
            raise Wrong(f"over {LOOKUPS} terms that ask DNS")

    def count_void(self) -> None:
        """Counts a term that found nothing. Raises Wrong at the first that is too many."""
        self.voids += 1
        if self.voids > VOIDS:
            raise Wrong(f"over {VOIDS} terms that find nothing in DNS")

    def count_term(self) -> None:
        """Counts any term. Raises Wrong at the first that is too many, Failed after the time."""
        self.terms += 1
        if self.terms > TERMS:
            raise Wrong(f"over {TERMS} terms")
        if time.monotonic() >= self.deadline:
            raise Failed("no time left")

    def expand(self, pieces: Pieces, domain: bytes) -> bytes:
        """Returns the name that PIECES stand for in the record of DOMAIN."""
        return macros.shortened(
            macros.expand(pieces, lambda letter: self._value(chr(letter), domain))
        )

    def _value(self, letter: str, domain: bytes) -> bytes:
        if letter == "d":
            return domain
        if letter == "o":
            return self.origin
        if letter == "v":
            return b"in-addr" if self.ipv4 else b"ip6"
        assert self.client is not None  # only such macros are expanded without one
        if letter == "i":
            return macros.address_text(self.client.address, self.ipv4)
        if letter == "h":
            return self.client.helo[:LONGEST]
        if letter == "p":
            return self._client_name(domain)
        local = self.client.sender.rpartition(b"@")[0] or b"postmaster"
        return local if letter == "l" else local + b"@" + self.origin

    def _client_name(self, domain: bytes) -> bytes:
        # Any of them will do. Sorted, it is the same in every answer.
        names = sorted(self.names_of_client())
        for name in names:
            if name == domain:
                return name
        for name in names:
            if name.endswith(b"." + domain):
                return name
        return names[0] if names else b"unknown"

    def names_of_client(self) -> list[bytes]:
        """Returns the client's names from DNS that have its address; none if DNS fails."""
        assert self.client is not None
        if self._validated is None:
            self._validated = []
            own = self.client.address
            text = macros.address_text(own, self.ipv4).split(b".")
            name = b".".join(text[::-1]) + (b".in-addr.arpa" if self.ipv4 else b".ip6.arpa")
            try:
                hosts = self.ask(name, "PTR").records
            except Failed:
                return self._validated
            self.nameless = not hosts
            for host in hosts[:HOSTS]:
                try:
                    if host and own in self.addresses(host):
                        self._validated.append(host)
                except Failed:
                    continue
        return self._validated

    def addresses(self, name: bytes) -> list[int]:
        """Returns the addresses of NAME, of the kind that is asked about, as 128 bits each.

        Raises Failed, Wrong.
        """
        records = self.ask(name, "A" if self.ipv4 else "AAAA").records
        return [int.from_bytes(packed, "big") | self.above for packed in records]

    def around(self, addresses: list[int], term: Term) -> Ranges:
        """Returns the networks around ADDRESSES with the prefixes of TERM."""
        prefix = ranges.IPV4_AT + term.prefix4 if self.ipv4 else term.prefix6
        return Ranges(pair for address in addresses for pair in ranges.network(address, prefix))


class Walk:
    """The way through the record of one domain.

    ``alive`` are the addresses that no term has surely matched. Of them ``may_have_passed`` and
    ``may_have_failed`` are those that a term may have matched that cannot be decided.
    """

    def __init__(self, work: Evaluation, domain: bytes, alive: Ranges) -> None:
        """Begins with the addresses ALIVE, for WORK, in the record of DOMAIN."""
        self.work = work
        self.domain = domain
        self.alive = alive
        self.may_have_passed = self.may_have_failed = NOBODY
        self.outcome = Outcome()

    def go(self, written: record.Record) -> None:
        """Goes through the record as WRITTEN. Raises Failed, Wrong: then those alive end so."""
        at = 0
        terms = written.terms
        while at < len(terms) and self.alive:
            self.work.count_term()
            term = terms[at]
            at += 1
            if term.mechanism in ("ip4", "ip6"):
                matched = list(_network(term))
                # A list of networks is one set; it need not be subtracted one by one.
                try:
                    while at < len(terms) and _alike(terms[at], term):
                        self.work.count_term()
                        matched += _network(terms[at])
                        at += 1
                finally:
                    self.match(term.qualifier, Ranges(matched))
            else:
                self.take(term)
        if self.alive and written.redirect:
            # What the other record does not decide is not decided here either.
            self.take(Term("+", "redirect", written.redirect))
        self.outcome.open |= self.alive & self.may_have_passed

    def stop(self, state: str, why: str) -> None:
        """Ends the way of those alive in an error of STATE, for WHY."""
        trouble = self.work.trouble
        if trouble is None or (state == "failed" and trouble[0] != "failed"):
            self.work.trouble = (state, why)
        self.drop(self.alive)

    def drop(self, undecided: Ranges) -> None:
        """Ends the way of the UNDECIDED in an error; who may have passed before it still may."""
        self.outcome.open |= undecided & self.may_have_passed
        self.outcome.undecided |= undecided
        self.alive -= undecided

    def match(self, qualifier: str, matched: Ranges) -> None:
        """Ends the way of the addresses MATCHED by a term with QUALIFIER."""
        here = self.alive & matched
        if not here:
            return
        if qualifier == "+":
            unsure = here & (self.may_have_failed | self.work.doubtful)
            self.outcome.passed |= here - unsure
            self.outcome.open |= unsure
            self.outcome.offered |= unsure
        else:
            self.outcome.open |= here & self.may_have_passed
        self.outcome.result = RESULTS[qualifier]
        self.alive -= here

    def may_match(self, qualifier: str, matched: Ranges) -> None:
        """Remembers that a term with QUALIFIER may match those alive of the addresses MATCHED."""
        here = self.alive & matched
        if qualifier == "+":
            self.may_have_passed |= here
        else:
            self.may_have_failed |= here

    def take(self, term: Term) -> None:
        """Goes through TERM, which is all or asks DNS. Raises Failed, Wrong."""
        mechanism, work = term.mechanism, self.work
        if mechanism == "all":
            self.match(term.qualifier, self.alive)
            return
        work.count_lookup()
        known = mechanism != "ptr" and macros.fixed(term.domain)
        if work.client is None and not known:
            self.may_match(term.qualifier, self.alive)
            self.doubt(mechanism)
            return
        name = work.expand(term.domain, self.domain).lower() if term.domain else self.domain
        if mechanism in ("include", "redirect"):
            self.enter(term, name)
            return
        found, matched = self.look_up(term, name)
        if not found:
            work.count_void()
            self.doubt("")
        self.match(term.qualifier, matched)

    def look_up(self, term: Term, name: bytes) -> tuple[bool, Ranges]:
        """Returns whether DNS has something for TERM about NAME, and which of those alive match.

        Raises Failed, Wrong.
        """
        work = self.work
        if term.mechanism == "a":
            addresses = work.addresses(name)
            return bool(addresses), work.around(addresses, term)
        if term.mechanism == "mx":
            hosts = work.ask(name, "MX").records
            if len(hosts) > HOSTS:
                raise Wrong(f"over {HOSTS} mail servers")
            addresses = [address for host in hosts if host for address in work.addresses(host)]
            return bool(hosts), work.around(addresses, term)
        if term.mechanism == "exists":
            found = bool(work.ask(name, "A").records)
            return found, self.alive if found else NOBODY
        suffix = b"." + name
        within = any((b"." + host).endswith(suffix) for host in work.names_of_client())
        return not work.nameless, self.alive if within else NOBODY

    def enter(self, term: Term, name: bytes) -> None:
        """Goes through the record of NAME, which TERM includes or goes over to."""
        work = self.work
        inner = work.check(name, self.alive)
        if inner.result == "none" and not inner.undecided:
            raise Wrong("a domain without SPF record is included")
        self.match_inner(term.qualifier, inner)
        if term.mechanism == "redirect" and not inner.undecided:
            self.outcome.result = inner.result

    def match_inner(self, qualifier: str, inner: Outcome) -> None:
        """Ends the way of those whom the INNER record decides."""
        offered = inner.offered & self.alive
        self.match(qualifier, inner.passed)
        self.may_match(qualifier, inner.open)
        if qualifier == "+":
            self.outcome.offered |= offered
        self.drop(inner.undecided & self.alive)

    def doubt(self, mechanism: str) -> None:
        """Remembers that a term of MECHANISM that cannot be decided may end in an error.

        An included record may not be there, or be wrong, and ask more than is counted here; there
        may be too many mail servers; and any other may find nothing, once too often.
        """
        work = self.work
        work.perhaps_void += mechanism in ("a", "mx", "ptr", "exists")
        if mechanism in ("include", "redirect", "mx") or (
            work.perhaps_void and work.voids + work.perhaps_void > VOIDS
        ):
            work.doubtful |= self.alive


def _network(term: Term) -> Ranges:
    if term.mechanism == "ip4":
        return ranges.ipv4_network(term.value, term.prefix4)
    return ranges.ipv6_network(term.value, term.prefix6)


def _alike(term: Term, other: Term) -> bool:
    return term.mechanism in ("ip4", "ip6") and term.qualifier == other.qualifier
