"""A request of the policy protocol as a question to the store: its envelope, its settings, and how its answer is written.

A peer on a unix socket may send settings of its own for one request (from tcprules, by way of the native child), which are laid over the
settings file as it was last read. Over TCP they do not count: who can connect there need not be a mail server. Where the store is, and
what else belongs to the resident as a whole, a request cannot change: one that names another database is not answered, and the native
child who asked becomes the forked child.
"""

from collections import OrderedDict
from copy import copy
from time import monotonic, time

from greycheck import check, hooks, log, policy, settings
from greycheck.envelope import Envelope
from greycheck.hooks import policy as protocol
from greycheck.hooks import spp
from greycheck.policy import Verdict
from greycheck.resident.forms import Forms
from greycheck.settings import PREFIX, Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from greycheck.hooks import Hook
    from greycheck.resident.peers import Peer
    from greycheck.store.lean import Asked, Store

    K = TypeVar("K")

# How many different sets of settings of requests are remembered.
VARIANTS = 1024

# How many messages are remembered.
MESSAGES = 4096

# The attributes by which a native child says what it was called as, and when: for how long ago that counts, in seconds.
HOOK = b"greycheck_hook"
TIME = b"greycheck_time"
OLDEST = 600

# A retry is a strike within this many seconds where nobody knows when it was made: never.
NEVER = -(1 << 62)

# Settings that say where the store is: a request may repeat them, not change them.
OF_THE_STORE = {
    PREFIX + name for name in (b"CONFIG", b"DATABASE", b"DATABASE_FILE", b"DATABASE_HOSTS", b"DATABASE_MODE")
}

VERIFIED_NAMES = PREFIX + b"VERIFIED_NAMES"


class Elsewhere(Exception):
    """A request that only the forked child can answer; the message says why."""


class Question:
    """One request of PEER: what is asked, under which settings, since when (``monotonic``); and the verdict, once it is there.

    ``attempt`` is when the mail was tried (seconds since 1970), by which it is decided; ``waited`` is how long ago the native child says
    that this was, in seconds, and None where nobody says.
    """

    __slots__ = (
        "answered",
        "attempt",
        "changes",
        "envelope",
        "hook",
        "peer",
        "problems",
        "settings",
        "started",
        "verdict",
        "waited",
    )

    def __init__(
        self,
        peer: "Peer",
        envelope: Envelope,
        found: Settings,
        hook: "Hook | None",
        problems: "list[str]",
    ) -> None:
        self.started = monotonic()
        self.attempt = int(time())
        self.waited: int | None = None
        self.peer = peer
        self.envelope = envelope
        self.settings = found
        self.hook = hook
        self.problems = problems
        self.verdict: Verdict | None = None
        self.changes: list[policy.Change] = []
        self.answered = False

    def error(self, message: str) -> Verdict:
        """The verdict of ``on_error``, because of MESSAGE."""
        return Verdict(self.settings.on_error, "error", detail=f"error={message}")

    def was_made(self, when: bytes) -> None:
        """The native child says WHEN the attempt was made. Of a time that cannot be, because a clock was set, nothing is believed."""
        made = int(when) if when.isdigit() and len(when) < 20 else self.attempt
        self.waited = self.attempt - made if 0 <= self.attempt - made <= OLDEST else 0
        self.attempt -= self.waited

    def may_be_as_old_as(self, seconds: float) -> None:
        """The attempt was made within the last so many SECONDS, and nobody knows when.

        It counts from the first of them. Counted from now, it might pass as a retry that came late enough, and make its client known.
        Whether it was hasty cannot be said, so it is no strike.
        """
        self.attempt = int(time() - seconds)
        self.settings = copy(self.settings)
        self.settings.strike_interval = NEVER

    def is_overdue(self, now: float) -> bool:
        """Whether its deadline is over at NOW (``monotonic``)."""
        return now - self.started >= self.settings.deadline


class Messages:
    """The last messages that were asked about, by the attribute ``instance``, which is the same for all recipients of one.

    Who asks so keeps a message's recipients together himself; what a hook's child asks is kept in the store (``check.remember``).
    """

    def __init__(self) -> None:
        # Those of which a recipient vouches for later ones, since when; and those that have their header.
        self._vouched: OrderedDict[tuple[bytes, str | None, bytes], int] = OrderedDict()
        self._headed: OrderedDict[bytes, int] = OrderedDict()

    def identify(self, envelope: Envelope, instance: bytes) -> None:
        """Tells ENVELOPE of which message INSTANCE it is, and whether an earlier recipient may vouch for this one."""
        envelope.message = instance
        envelope.first = (instance, envelope.client, envelope.sender) not in self._vouched

    def first_passed(self, store: "Store", asked: "Asked", now: int) -> bool:
        """Whether an earlier recipient vouches for what is ASKED."""
        envelope = asked.envelope
        if envelope.hook != protocol.NAME:
            return check.first_passed(store, asked, now)
        since = self._vouched.get((envelope.message, envelope.client, envelope.sender), 0)
        return now - since <= policy.MESSAGE_TIME

    def vouch(self, envelope: Envelope, now: int) -> None:
        """Remembers that ENVELOPE, an earlier recipient, vouches for later ones."""
        _remember(self._vouched, (envelope.message, envelope.client, envelope.sender), now)

    def wants_header(self, instance: bytes) -> bool:
        """Whether a message has no header yet; from now on it has."""
        if not instance or instance in self._headed:
            return False
        _remember(self._headed, instance, 0)
        return True


def _remember(messages: "OrderedDict[K, int]", message: "K", now: int) -> None:
    if len(messages) >= MESSAGES:
        messages.popitem(last=False)
    messages[message] = now


class Reader:
    """Reads requests under the settings of ENVIRON, and knows the MESSAGES that they were about. WARN takes a warning about a peer."""

    def __init__(self, environ: dict[bytes, bytes], messages: "Messages", warn: "Callable[[str], None]") -> None:
        self.environ = environ
        self.messages = messages
        self._warn = warn
        self._lines = settings.read_file(environ)
        self.settings = settings.read(environ, self._lines)
        self._fixed = _where_the_store_is(self.settings)
        self._forms = Forms()
        self._hooks = {hook.NAME.encode(): hook for hook in hooks.every()}
        # Settings and what is wrong with them, by how a request writes its own, and whether it has a verified name.
        self._variants: dict[tuple[bytes, bool], tuple[Settings, list[str]]] = {}
        self._of_verified_names = self._variant({VERIFIED_NAMES: b"yes"})
        self._own = self._variant({})

    def question(self, request: bytes, peer: "Peer") -> Question | None:
        """The question that a REQUEST, given without its end, asks; None where there is nothing to decide. Raises Malformed, Elsewhere."""
        found = self._forms.attributes(request)
        if not protocol.decides(found):
            return None
        own = 0 if request.startswith(b"GREYCHECK") else request.find(b"\nGREYCHECK")
        name = found.get(HOOK)
        refused = not peer.is_local and (own >= 0 or name is not None)
        if refused:
            name, own = None, -1
        hook = None
        if name is not None:
            hook = self._hooks.get(name)
            if hook is None:
                raise Elsewhere(f"no such hook: {log.quoted(name.decode('utf-8', 'surrogateescape'))}")
        if own >= 0:
            used, problems = self._with(found, request[own:])
        else:
            used, problems = self._of_verified_names if protocol.has_verified_name(found) else self._own
        if refused and not peer.was_refused:
            peer.was_refused = True
            self._warn(f"{peer.where}: settings of a request count from a unix socket only")
        envelope = protocol.envelope(found, hook.NAME if hook else protocol.NAME)
        if hook is spp:
            spp.identify(envelope, found)
        elif hook is None:
            self.messages.identify(envelope, found.get(b"instance", b""))
        question = Question(peer, envelope, used, hook, problems)
        if hook is not None and peer.is_local and (when := found.get(TIME)) is not None:
            question.was_made(when)
        return question

    def _with(self, attributes: dict[bytes, bytes], written: bytes) -> tuple[Settings, list[str]]:
        """The settings under those that a request's ATTRIBUTES bring along, WRITTEN so, and what is wrong with these."""
        verified = protocol.has_verified_name(attributes)
        found = self._variants.get((written, verified))
        if found is None:
            found = self._read_anew(attributes, verified)
            if len(self._variants) >= VARIANTS:
                self._variants.clear()
            self._variants[written, verified] = found
        return found

    def _read_anew(self, attributes: dict[bytes, bytes], verified: bool) -> tuple[Settings, list[str]]:
        given = {name: value for name, value in attributes.items() if name.startswith(b"GREYCHECK")}
        for name in OF_THE_STORE & given.keys():
            self._refuse_another(name, given.pop(name))
        if verified:
            given.setdefault(VERIFIED_NAMES, b"yes")
        return self._variant(given)

    def _refuse_another(self, name: bytes, value: bytes) -> None:
        if value == self.environ.get(name, b""):
            return
        if name == PREFIX + b"DATABASE":
            try:
                if settings.database_url(value.decode("utf-8", "surrogateescape").strip()) == self.settings.database:
                    return
            except ValueError:
                pass
        raise Elsewhere(f"{name.decode()} is another one here")

    def _variant(self, given: dict[bytes, bytes]) -> tuple[Settings, list[str]]:
        """The settings where GIVEN is in the environment besides, and what is wrong with them that is not wrong without."""
        read = settings.read(self.environ | self._fixed | given, self._lines)
        return read, [problem for problem in read.problems if problem not in self.settings.problems]


def _where_the_store_is(found: Settings) -> dict[bytes, bytes]:
    """The variables that say where the store of the settings FOUND is, so that it need not be found out again for a request."""
    given = {b"DATABASE": found.database, b"STATE_DIRECTORY": found.state_directory}
    return {PREFIX + name: text.encode("utf-8", "surrogateescape") for name, text in given.items() if text}


class Writer:
    """Writes answers, and the log lines that go with them. HOST is the name of this host, for the header that MESSAGES get once."""

    def __init__(self, host: str, messages: Messages) -> None:
        self._host = host
        self._messages = messages

    def lines(self, question: Question, verdict: Verdict, notes: "list[str]") -> bytes:
        """The log lines of VERDICT, after those of wrong settings, and of NOTES about the store."""
        milliseconds = round((monotonic() - question.started) * 1000)
        line = log.verdict_line(question.envelope, verdict, milliseconds)
        if not notes and not question.problems and not verdict.warning:
            return line
        problems = [*question.problems, verdict.warning] if verdict.warning else question.problems
        before = [log.line(f"warning {problem}") for problem in problems] + [log.line(note) for note in notes]
        return b"".join(before) + line

    def answer(self, question: Question, verdict: Verdict, lines: bytes) -> bytes:
        """The answer that tells VERDICT, and to a native child the log's LINES and how to end."""
        hook = question.hook
        if hook is None:
            return f"action={self._action(question, verdict)}\n\n".encode("utf-8", "surrogateescape")
        action = protocol.action(verdict, question.settings)
        told = f"action={action}\nexit={hook.ANSWERS[verdict.action]}\n".encode("utf-8", "surrogateescape")
        said = hook.says(verdict, question.envelope, question.settings)
        if said:
            told += b"say=" + said
        return told + b"".join(b"log=" + line for line in lines.splitlines(keepends=True)) + b"\n"

    def _action(self, question: Question, verdict: Verdict) -> str:
        wanted = verdict.action == policy.ACCEPT and question.settings.header == "yes"
        if wanted and self._messages.wants_header(question.envelope.message):
            return f"PREPEND {protocol.header(verdict, self._host, int(time()))}"
        return protocol.action(verdict, question.settings)
