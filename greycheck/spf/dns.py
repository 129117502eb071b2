"""Questions to a resolver of DNS, each bounded in time, and answers that are checked.

Interface: ``Resolver`` asks; an answer is ``Found``, or ``Failed`` is raised. ``server`` reads one
value of the setting ``resolver``, ``domain_name`` what a mail says its domain is.

A resolver is trusted to resolve, and nothing of what it passes on is: an answer with records of
another name, with too many, with a loop or without sense is a failure. Ids and ports are random.

Diagnostics: ``Failed``, with a text that may be shown. ``ValueError`` for a wrong setting.
"""

import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from greycheck import normalise
from greycheck.log import show

SYSTEM = Path("/etc/resolv.conf")
PORT = 53

# The most records of a message. Popular domains have a hundred texts; a flood has thousands.
RECORDS = 400

# The most seconds for which "there is none" holds (RFC 2308 section 5).
NEGATIVE = 3 * 3600

# The size of a UDP packet that crosses every network unbroken.
PAYLOAD = 1232

# How often each server is asked one question, as packets are lost.
ROUNDS = 2

# The most answers that are kept.
KEPT = 10000

# The longest name, written, and the longest label.
LONGEST, LABEL = 253, 63
_OF_NAMES = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


class Failed(Exception):
    """DNS did not answer, or not in a way to be believed; the text tells how."""


class Found(NamedTuple):
    """An answer: RECORDS, and for how many seconds it holds. Without records it is void.

    A record of TXT is its strings joined, of A and AAAA the bytes of the address, of MX and PTR the
    name in lower case, empty if that is no host's. MISSING is true if there is no such name.
    """

    records: tuple[bytes, ...]
    ttl: int
    missing: bool = False


def server(text: str) -> tuple[str, int]:
    """Returns the address and the port that TEXT writes: address, address:port or [v6]:port.

    Raises ValueError.
    """
    address, port = text, ""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in address:
            raise ValueError(f"{text}: no address of a name server")
        port = rest[1:] if rest else str(PORT)
    elif text.count(":") == 1:
        address, port = text.split(":")
    else:
        port = str(PORT)
    normalise.written_bits(address)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(f"{text}: no port of a name server")
    return address, int(port)


def of_system(path: Path = SYSTEM) -> list[tuple[str, int]]:
    """Returns the name servers that the file PATH names. Raises ValueError if it names none."""
    try:
        found = dns.resolver.Resolver(str(path))
    except (dns.exception.DNSException, OSError, UnicodeError):
        raise ValueError(f"{path}: no name server") from None
    return [(str(address), PORT) for address in found.nameservers]


class Resolver:
    """Asks name servers, and keeps what they said: one object for one run."""

    def __init__(self, servers: Iterable[str] = (), seconds: float = 5.0) -> None:
        """Takes SERVERS as ``server`` reads them; without any, the system's.

        A question ends after SECONDS at most. Raises ValueError.
        """
        self.servers = [server(text) for text in servers] or of_system()
        self.seconds = seconds
        self.asked = 0
        self._kept: dict[tuple[dns.name.Name, str], Found | Failed] = {}

    def ask(self, name: bytes, kind: str, deadline: float) -> Found:
        """Returns the records of KIND (TXT, A, AAAA, MX, PTR) that NAME has.

        It takes at most the seconds given to the object, and ends before DEADLINE
        (``time.monotonic``). A NAME that DNS cannot have is missing, and so is a top label alone:
        no mail is sent from there, and HELO is often one. Raises Failed.
        """
        if b"." not in name.removesuffix(b"."):
            return Found((), NEGATIVE, missing=True)
        try:
            asked = dns.name.Name((*name.lower().removesuffix(b".").split(b"."), b""))
        except dns.exception.DNSException:
            return Found((), NEGATIVE, missing=True)
        answer = self._kept.get((asked, kind))
        if answer is None:
            try:
                answer = self._exchange(asked, kind, deadline)
            except Failed as failed:
                answer = failed
            # What failed only for want of time may succeed for the next domain.
            if isinstance(answer, Found) or time.monotonic() < deadline:
                if len(self._kept) >= KEPT:
                    self._kept.clear()
                self._kept[asked, kind] = answer
        if isinstance(answer, Failed):
            raise Failed(str(answer))
        return answer

    def _exchange(self, name: dns.name.Name, kind: str, deadline: float) -> Found:
        ends = min(deadline, time.monotonic() + self.seconds)
        tries = self.servers * ROUNDS
        why = "no time left"
        for number, (address, port) in enumerate(tries):
            now = time.monotonic()
            if now >= ends:
                break
            until = now + (ends - now) / (len(tries) - number)
            try:
                found = _read(_query(name, kind, address, port, until))
            except TimeoutError:
                why = "no answer"
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else "closed"
            except Failed as failed:
                why = str(failed)
            except Exception as error:  # whatever a parser makes of a liar's bytes
                why = f"no sense: {type(error).__name__}"
            else:
                if number:
                    # Who answered is asked first from now on.
                    first = (address, port)
                    self.servers = [first, *(one for one in self.servers if one != first)]
                return found
            finally:
                self.asked += 1
        raise Failed(f"{kind} {show(_written(name)) or '.'}: {why}")


def answers(address: str, port: int, seconds: float) -> str:
    """Returns why the name server at ADDRESS and PORT is none that resolves, empty if it is one.

    It is asked for the root, which tells nobody anything, and has so many SECONDS.
    """
    try:
        query = dns.message.make_query(dns.name.root, "NS", use_edns=0, payload=PAYLOAD)
        until = time.monotonic() + seconds
        response = dns.message.from_wire(_by_udp(query.to_wire(), address, port, until))
    except TimeoutError:
        return f"no answer within {seconds:g}s"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else "closed"
    except Exception as error:  # whatever a parser makes of a liar's bytes
        return f"no sense: {type(error).__name__}"
    code = response.rcode()
    return "" if code == dns.rcode.NOERROR else dns.rcode.to_text(code)


def _query(
    name: dns.name.Name, kind: str, address: str, port: int, until: float
) -> dns.message.Message:
    """Asks the server at ADDRESS by UDP, and by TCP if it has more to say, or said nonsense.

    Raises OSError, of which TimeoutError is one, Failed, and what dnspython raises.
    """
    query = dns.message.make_query(name, kind, use_edns=0, payload=PAYLOAD)
    wire = query.to_wire()
    try:
        return _parsed(query, _by_udp(wire, address, port, until))
    except (dns.exception.DNSException, ValueError, Failed):
        # Truncated; or forged, and who forges packets is not heard on a connection.
        return _parsed(query, _by_tcp(wire, address, port, until))


def _by_udp(wire: bytes, address: str, port: int, until: float) -> bytes:
    family, kind, protocol, _name, peer = socket.getaddrinfo(
        address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )[0]
    with socket.socket(family, kind, protocol) as sock:
        # From then on the kernel passes on nobody else's packets, and chooses a port at random.
        sock.connect(peer)
        sock.settimeout(_left(until))
        sock.send(wire)
        return sock.recv(65535)


def _by_tcp(wire: bytes, address: str, port: int, until: float) -> bytes:
    with socket.create_connection((address, port), timeout=_left(until)) as sock:
        sock.sendall(struct.pack("!H", len(wire)) + wire)
        (size,) = struct.unpack("!H", _received(sock, 2, until))
        return _received(sock, size, until)


def _received(sock: socket.socket, size: int, until: float) -> bytes:
    parts = b""
    while len(parts) < size:
        sock.settimeout(_left(until))
        part = sock.recv(size - len(parts))
        if not part:
            raise ConnectionError("closed")
        parts += part
    return parts


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


# The number of records in each part of a message, behind its id, its flags and the questions.
_COUNTS = struct.Struct("!6xHHH")


def _parsed(query: dns.message.Message, wire: bytes) -> dns.message.Message:
    """Returns the answer WIRE to QUERY. Raises Failed, ValueError, and what dnspython raises.

    Records are counted before they are read: a message of thousands would take a parser seconds.
    """
    if len(wire) < _COUNTS.size:
        raise ValueError("no message")
    if sum(_COUNTS.unpack_from(wire)) > RECORDS:
        raise Failed(f"more than {RECORDS} records")
    response = dns.message.from_wire(wire, raise_on_truncation=True)
    if not query.is_response(response):
        raise ValueError("an answer to another question")
    return response


def _read(response: dns.message.Message) -> Found:
    """Returns what RESPONSE says. Raises Failed if it says nothing that can be believed."""
    code = response.rcode()
    if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise Failed(dns.rcode.to_text(code))
    if not isinstance(response, dns.message.QueryMessage):
        raise Failed("no answer to a query")
    try:
        chain = response.resolve_chaining()
    except dns.message.ChainTooLong:
        raise Failed("a loop of CNAMEs") from None
    except dns.message.AnswerForNXDOMAIN:
        raise Failed("records of a name that does not exist") from None
    known = {response.question[0].name, chain.canonical_name, *(at.name for at in chain.cnames)}
    for rrset in response.answer:
        ours = rrset.name in known or rrset.rdtype in (
            dns.rdatatype.DNAME,
            dns.rdatatype.RRSIG,
        )
        if not ours:
            raise Failed("records of another name")
    if chain.answer is None:
        speaks = response.flags & (dns.flags.AA | dns.flags.RA) or chain.cnames
        if not speaks:
            raise Failed("the server does not resolve")
        return Found((), min(chain.minimum_ttl, NEGATIVE), code == dns.rcode.NXDOMAIN)
    return Found(tuple(_bytes(record) for record in chain.answer), chain.minimum_ttl)


def _bytes(record: Any) -> bytes:
    if record.rdtype == dns.rdatatype.TXT:
        return b"".join(record.strings)
    if record.rdtype == dns.rdatatype.A:
        return socket.inet_pton(socket.AF_INET, record.address)
    if record.rdtype == dns.rdatatype.AAAA:
        return socket.inet_pton(socket.AF_INET6, record.address)
    return _written(record.exchange if record.rdtype == dns.rdatatype.MX else record.target)


def _written(name: dns.name.Name) -> bytes:
    """Returns NAME in lower case, its labels with dots between; empty if a label has a dot."""
    labels = name.labels[:-1]
    return b"" if any(b"." in label for label in labels) else b".".join(labels).lower()


def domain_name(domain: bytes) -> bytes | None:
    """Returns the name under which DNS may know DOMAIN, the domain of a mail address.

    It is in lower case, without a trailing dot. Returns None where no name server need be asked:
    no dot, no letters where a host's name has them, an address. Names in other scripts are encoded
    as IDNA 2003 does; those that IDNA 2008 reads otherwise are none.
    """
    if len(domain) > LONGEST + 1:
        return None
    if not domain.isascii():
        try:
            text = domain.decode()
            # Four characters that IDNA 2003 changes to others, and IDNA 2008 does not.
            if any(char in "\u00df\u03c2\u200c\u200d" for char in text):
                return None
            named = dns.name.from_text(text, dns.name.root, idna_codec=dns.name.IDNA_2003)
        except (UnicodeError, dns.exception.DNSException):
            return None
        domain = _written(named)
    name = domain.lower().removesuffix(b".")
    labels = name.split(b".")
    fits = len(name) <= LONGEST and all(0 < len(label) <= LABEL for label in labels)
    if not fits or len(labels) < 2 or labels[-1].isdigit():
        return None
    return name if _OF_NAMES.issuperset(name.replace(b".", b"")) else None
