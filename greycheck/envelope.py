"""The envelope of one RCPT TO, as a hook hands it over, and the triplet that it makes.

An envelope is what arrived: bytes, unchanged. A triplet is what greylisting compares: normalised and, on the sender's side, folded.
"""

from greycheck import normalise


class Envelope:
    """One client asking for one recipient.

    ``client`` is the canonical client address, or None where the hook gave none that is usable; ``missing`` then says what was
    wrong. ``exempt`` names the variable that frees this client from checking, or is empty. ``sender`` and ``recipient`` are raw
    bytes; the null sender is empty. ``name`` is the client's name from DNS and ``helo`` what it calls itself, raw, empty if unknown.

    ``message`` is the same for all recipients of a message from this client and sender, and empty where the hook does not tell, or no
    earlier recipient has been accepted that could vouch for this one; ``first`` is whether this is the first recipient of a message.
    """

    __slots__ = ("client", "exempt", "first", "helo", "hook", "message", "missing", "name", "recipient", "sender")

    def __init__(
        self,
        hook: str,
        client: str | None,
        sender: bytes,
        recipient: bytes,
        exempt: str = "",
        missing: str = "",
        name: bytes = b"",
        helo: bytes = b"",
        message: bytes = b"",
        first: bool = True,
    ) -> None:
        self.hook = hook
        self.client = client
        self.name = name
        self.helo = helo
        self.sender = sender
        self.recipient = recipient
        self.exempt = exempt
        self.missing = missing
        self.message = message
        self.first = first


# What frees a client from checking: a relay or an authenticated client (contract.md section 3, greylisting.md, reason `exempt`).
EXEMPTING = ("RELAYCLIENT", "SMTPAUTHUSER")


def from_tcpserver(
    hook: str, environ: dict[bytes, bytes], sender: bytes, recipient: bytes, helo: bytes = b""
) -> Envelope:
    """The envelope of SENDER and RECIPIENT from the client that tcpserver's variables in ENVIRON describe."""
    address = environ.get(b"TCPREMOTEIP")
    client = None if address is None else normalise.client_address(address)
    missing = ""
    if client is None:
        missing = "TCPREMOTEIP" if address is None else "usable-TCPREMOTEIP"
    exempt = next((name for name in EXEMPTING if name.encode() in environ), "")
    name = environ.get(b"TCPREMOTEHOST", b"")
    return Envelope(hook, client, sender, recipient, exempt, missing, name, helo)


def from_variables(
    hook: str, environ: dict[bytes, bytes], sender: bytes, recipient: bytes, helo: bytes = b""
) -> Envelope:
    """The envelope in those variables of ENVIRON that are called SENDER, RECIPIENT and HELO, and in tcpserver's."""
    given = environ.get(sender), environ.get(recipient)
    found = from_tcpserver(hook, environ, given[0] or b"", given[1] or b"", environ.get(helo, b""))
    if given == (None, None):
        found.missing = f"{sender.decode()},{recipient.decode()}" + (f",{found.missing}" if found.missing else "")
    return found


class Triplet:
    """Client network, sender and recipient, normalised: the key of greylisting (RFC 6647 section 5).

    ``sender`` is folded; ``written`` is the same with its tags.
    """

    __slots__ = ("client", "network", "recipient", "sender", "written")

    def __init__(
        self, client: str, network: str, sender: bytes, recipient: bytes, written: bytes | None = None
    ) -> None:
        self.client = client
        self.network = network
        self.sender = sender
        self.recipient = recipient
        self.written = sender if written is None else written


def triplet(envelope: Envelope, ipv4_prefix: int, ipv6_prefix: int) -> Triplet:
    """The triplet of an ENVELOPE that has a client, under the prefix lengths of the settings."""
    assert envelope.client is not None
    written = normalise.mail_address(envelope.sender)
    return Triplet(
        envelope.client,
        normalise.client_network(envelope.client, ipv4_prefix, ipv6_prefix),
        normalise.fold_sender(written),
        normalise.mail_address(envelope.recipient),
        written,
    )


# What begins a message's part of its key, where a triplet has its recipient: no address holds a NUL (contract.md section 4).
OF_MESSAGE = b"\0"


def message_triplet(asked: Triplet, message: bytes) -> Triplet:
    """What stands for all later recipients of MESSAGE, one of whose triplets is ASKED: no triplet of a recipient is equal to it."""
    return Triplet(asked.client, asked.network, asked.sender, OF_MESSAGE + message)
