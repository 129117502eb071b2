"""The envelope of one RCPT TO, as a hook hands it over, and the triplet that is made of it.

An envelope has what arrived: bytes, unchanged. A triplet is what greylisting compares: it is
normalised, and its sender is folded.
"""

from greycheck import normalise


class Envelope:
    """One client that wants to send to one recipient.

    ``client`` is the canonical client address, or None if the hook gave no usable one; then
    ``missing`` says what was wrong. ``exempt`` names the variable that exempts this client from
    checking, or is empty. ``sender`` and ``recipient`` are raw bytes; the null sender is empty.
    ``name`` is the client's name from DNS and ``helo`` its name in HELO, raw, empty if unknown.

    ``message`` is the same for all recipients of a message from this client and sender. It is empty
    if the hook does not tell, or if no earlier recipient was accepted that could let this one pass.
    ``first`` is true for the first recipient of a message. ``spf_passed`` is true where the mail
    server found that the sender's domain lets this client send (RFC 7208).
    """

    __slots__ = (
        "client",
        "exempt",
        "first",
        "helo",
        "hook",
        "message",
        "missing",
        "name",
        "recipient",
        "sender",
        "spf_passed",
    )

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
        spf_passed: bool = False,
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
        self.spf_passed = spf_passed


# The variables that exempt a client from checking, with reason `exempt`: it is a relay client or
# authenticated (docs/hooks.rst#environment-and-process, docs/decision.rst#the-order).
EXEMPTING = ("RELAYCLIENT", "SMTPAUTHUSER")


# The variable in which some builds of qmail say what the sender's SPF says of the client, and what
# it says then (docs/hooks.rst#spfresult). It may come from elsewhere: only ``trust_spfresult`` lets
# it count.
SPFRESULT, PASSED = b"SPFRESULT", b"pass"

# The variables in which tcpserver gives the client's address and name.
TCPSERVER = {"client": b"TCPREMOTEIP", "name": b"TCPREMOTEHOST"}


def from_client(
    hook: str,
    environ: dict[bytes, bytes],
    variables: dict[str, bytes],
    sender: bytes,
    recipient: bytes,
    helo: bytes = b"",
) -> Envelope:
    """Returns the envelope of SENDER and RECIPIENT from the client in ENVIRON.

    VARIABLES names the variables of the client's address (``client``) and of its name (``name``).
    """
    address = environ.get(variables["client"])
    client = None if address is None else normalise.client_address(address)
    missing = ""
    if client is None:
        missing = ("" if address is None else "usable-") + variables["client"].decode()
    exempt = next((name for name in EXEMPTING if name.encode() in environ), "")
    name = environ.get(variables.get("name", b""), b"")
    spf_passed = environ.get(SPFRESULT, b"").lower() == PASSED
    return Envelope(
        hook, client, sender, recipient, exempt, missing, name, helo, spf_passed=spf_passed
    )


def from_variables(hook: str, environ: dict[bytes, bytes], variables: dict[str, bytes]) -> Envelope:
    """Returns the envelope whose parts are all in ENVIRON, under the names in VARIABLES."""
    names = variables["sender"], variables["recipient"]
    sender, recipient = map(environ.get, names)
    helo = environ.get(variables.get("helo", b""), b"")
    envelope = from_client(hook, environ, variables, sender or b"", recipient or b"", helo)
    if sender is None and recipient is None:
        names_missing = b",".join(names).decode()
        envelope.missing = names_missing + (f",{envelope.missing}" if envelope.missing else "")
    return envelope


class Triplet:
    """Client network, sender and recipient, normalised: greylisting's key (RFC 6647 section 5).

    ``sender`` is folded; ``written`` is the same sender before folding.
    """

    __slots__ = ("client", "network", "recipient", "sender", "written")

    def __init__(
        self,
        client: str,
        network: str,
        sender: bytes,
        recipient: bytes,
        written: bytes | None = None,
    ) -> None:
        self.client = client
        self.network = network
        self.sender = sender
        self.recipient = recipient
        self.written = sender if written is None else written

    @property
    def is_tagged(self) -> bool:
        """True if the sender has tags that are folded, or that an earlier release folded."""
        return self.sender != self.written or normalise.PLUS in self.sender


def triplet(envelope: Envelope, ipv4_prefix: int, ipv6_prefix: int) -> Triplet:
    """Returns the triplet of ENVELOPE, which has a client, with prefix lengths of the settings."""
    assert envelope.client is not None
    written = normalise.mail_address(envelope.sender)
    return Triplet(
        envelope.client,
        normalise.client_network(envelope.client, ipv4_prefix, ipv6_prefix),
        normalise.fold_sender(written),
        normalise.mail_address(envelope.recipient),
        written,
    )


# Begins the key of a message in the place of a triplet's recipient: no address has a NUL byte
# (docs/hooks.rst#addresses).
OF_MESSAGE = b"\0"


def message_triplet(asked: Triplet, message: bytes) -> Triplet:
    """Returns the key that stands for all later recipients of MESSAGE; ASKED is a triplet of one.

    It is never equal to a recipient's triplet.
    """
    return Triplet(asked.client, asked.network, asked.sender, OF_MESSAGE + message)
