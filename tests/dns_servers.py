"""Name servers on loopback: NSD with zones as tests write them, and one that lies.

They resolve nothing: NSD knows its zones, and refuses everything else. All of them end with the
thread that started them, at the latest.
"""

import contextlib
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.servers import ENVIRON, PATIENCE, PAUSE, dying, free_port, wait_until

HOST = "127.0.0.1"

# Before the records of a zone: its SOA, whose last number is the negative TTL.
HEAD = """$ORIGIN {origin}
$TTL 3600
@ SOA ns.{origin} admin.{origin} 1 3600 900 86400 {negative}
@ NS ns.{origin}
"""


class Nsd:
    """NSD with ZONES: of each its origin, as ``example.``, and the lines of its records.

    A zone without a SOA of its own gets one, with a negative TTL of NEGATIVE seconds.
    """

    def __init__(self, zones: Mapping[str, str], negative: int = 300) -> None:
        self.port = free_port()
        self.negative = negative
        self.directory = Path(tempfile.mkdtemp(prefix="greycheck-nsd-"))
        self.process: subprocess.Popen[bytes] | None = None
        self._start(zones)

    @property
    def address(self) -> str:
        """As the setting ``resolver`` has it."""
        return f"{HOST}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def replace(self, zones: Mapping[str, str]) -> None:
        """Has ZONES and no others from now on, on the same port."""
        self._stop()
        self._start(zones)

    def close(self) -> None:
        self._stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def _start(self, zones: Mapping[str, str]) -> None:
        names = {}
        for number, (origin, text) in enumerate(zones.items()):
            head = "" if " SOA " in text else HEAD
            path = self.directory / f"zone{number}"
            path.write_text(head.format(origin=origin, negative=self.negative) + text + "\n")
            names[origin] = path
        configuration = self.directory / "nsd.conf"
        configuration.write_text(
            "server:\n"
            f"  ip-address: {HOST}@{self.port}\n"
            "  server-count: 1\n"
            '  username: ""\n  database: ""\n  chroot: ""\n'
            f'  zonesdir: "{self.directory}"\n'
            f'  zonelistfile: "{self.directory}/list"\n'
            f'  pidfile: "{self.directory}/pid"\n'
            f'  xfrdfile: "{self.directory}/xfrd"\n'
            f'  xfrdir: "{self.directory}"\n'
            f'  logfile: "{self.directory}/log"\n'
            "  rrl-ratelimit: 0\n"
            "remote-control:\n  control-enable: no\n"
            + "".join(f'zone:\n  name: "{name}"\n  zonefile: "{names[name]}"\n' for name in names)
        )
        self.process = subprocess.Popen(
            [*dying("root"), "nsd", "-d", "-c", str(configuration)],
            env=ENVIRON,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: all(map(self._serves, zones)), "NSD has its zones", self.log)

    def _serves(self, origin: str) -> bool:
        assert self.process
        if self.process.poll() is not None:
            raise RuntimeError(f"NSD ended: {self.log()}")
        query = dns.message.make_query(origin, "SOA")
        try:
            response = dns.query.tcp(query, HOST, timeout=1, port=self.port)
        except (OSError, EOFError, dns.exception.DNSException):
            return False
        return response.rcode() == dns.rcode.NOERROR and bool(response.answer)

    def _stop(self) -> None:
        """NSD's main process ends its children."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE)
            self.process = None


# What a liar says to a query, which came by TCP if the flag is true: bytes, or None for silence.
Behaviour = Callable[[dns.message.Message, bool], bytes | None]


class Liar:
    """A name server that answers as BEHAVIOUR says; ``queries`` are those that it has seen.

    With ``closes`` it closes a connection after the first byte of an answer; with ``drips`` it
    sends there one byte after the other, and never the last. It waits for DELAY seconds, or until
    it is closed, before each answer.
    """

    def __init__(self, behaviour: Behaviour, delay: float = 0) -> None:
        self.behaviour = behaviour
        self.delay = delay
        self.queries: list[tuple[str, str, bool]] = []
        self.closes = self.drips = False
        self.closed = threading.Event()
        self.port = free_port()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((HOST, self.port))
        self._tcp = socket.create_server((HOST, self.port))
        self._connections: list[socket.socket] = []
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed.set()
        for one in (self._udp, self._tcp, *self._connections):
            # Who waits in another thread is woken by this, and not by close().
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _answer(self, packet: bytes, tcp: bool) -> bytes | None:
        query = dns.message.from_wire(packet)
        asked = query.question[0]
        self.queries.append((asked.name.to_text(), dns.rdatatype.to_text(asked.rdtype), tcp))
        if self.delay:
            self.closed.wait(self.delay)
        return self.behaviour(query, tcp)

    def _serve_udp(self) -> None:
        while not self.closed.is_set():
            try:
                packet, peer = self._udp.recvfrom(65535)
                # A slow answer does not hold up others.
                threading.Thread(target=self._reply, args=(packet, peer), daemon=True).start()
            except OSError:
                return

    def _reply(self, packet: bytes, peer: tuple[str, int]) -> None:
        if not packet:  # what shutdown() makes of a waiting recvfrom()
            return
        answer = self._answer(packet, tcp=False)
        if answer is not None and not self.closed.is_set():
            try:
                self._udp.sendto(answer, peer)
            except OSError:
                return

    def _serve_tcp(self) -> None:
        while not self.closed.is_set():
            try:
                connection, _peer = self._tcp.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as stream:
                while size := stream.read(2):
                    packet = stream.read(struct.unpack("!H", size)[0])
                    answer = self._answer(packet, tcp=True)
                    if self.closes:
                        connection.sendall(b"\0")
                        connection.shutdown(socket.SHUT_RDWR)
                        return
                    if self.drips:
                        connection.sendall(b"\xff\xff")
                        while not self.closed.wait(PAUSE):
                            connection.sendall(b"\0")
                    if answer is not None:
                        connection.sendall(struct.pack("!H", len(answer)) + answer)
        except (OSError, struct.error):
            return


# --- behaviours -----------------------------------------------------------------------------------


def answering(records: Callable[[str, str], list[str]]) -> Behaviour:
    """Answers truly: RECORDS are, of a name and a kind, lines as in a zone (``name TTL IN A ...``).

    By UDP only as much as fits.
    """

    def behave(query: dns.message.Message, tcp: bool) -> bytes:
        asked = query.question[0]
        response = dns.message.make_response(query, recursion_available=True)
        lines = records(asked.name.to_text(), dns.rdatatype.to_text(asked.rdtype))
        response.answer = [rrset(line) for line in lines]
        wire = response.to_wire(max_size=65535)
        return wire if tcp or len(wire) <= 1232 else truncated(query, tcp)

    return behave


def rrset(line: str) -> dns.rrset.RRset:
    name, ttl, kind, data = line.split(" ", 3)
    return dns.rrset.from_text(name, int(ttl), "IN", kind, *data.split(" | "))


def silent(query: dns.message.Message, tcp: bool) -> None:
    """Says nothing."""


def says(rcode: dns.rcode.Rcode) -> Behaviour:
    """Says RCODE to everything."""

    def behave(query: dns.message.Message, tcp: bool) -> bytes:
        response = dns.message.make_response(query, recursion_available=True)
        response.set_rcode(rcode)
        return response.to_wire()

    return behave


def truncated(query: dns.message.Message, tcp: bool) -> bytes:
    """Says that there is more, by TCP too."""
    response = dns.message.make_response(query, recursion_available=True)
    response.flags |= dns.flags.TC
    return response.to_wire()


def garbage(query: dns.message.Message, tcp: bool) -> bytes:
    """Sends bytes without sense behind the right header."""
    return query.to_wire()[:2] + bytes.fromhex("8180 0001 0001 0000 0000") + b"\xff" * 90


def wrong_id(query: dns.message.Message, tcp: bool) -> bytes:
    """Answers another query."""
    response = dns.message.make_response(query, recursion_available=True)
    response.id ^= 1
    return response.to_wire()
