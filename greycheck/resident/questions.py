"""A request of the policy protocol: its envelope, its settings, and how its answer is written.

A client on a unix socket may send settings with a request (from tcprules, through a launcher in C).
They are laid over the settings file as it was last read. Over TCP they do not count: any program of
that network can connect there. A request cannot change where the store is, nor what belongs to the
resident as a whole. One that names another database is not answered, and the launcher in C becomes
the launcher in Python.
"""

from copy import copy
from time import monotonic, time

from greycheck import hooks, log, policy, settings
from greycheck.envelope import Envelope
from greycheck.hooks import delegation as protocol
from greycheck.policy import Decision, Verdict
from greycheck.resident.forms import Forms
from greycheck.resident.messages import Messages
from greycheck.settings import PREFIX, Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from greycheck.hooks import Hook
    from greycheck.resident.peers import Peer

# How many different sets of settings of requests are kept.
VARIANTS = 1024


# How many different answers that refuse are kept.
REFUSALS = 1024

# The answer that accepts, and adds no header.
ACCEPTED = protocol.LET_THROUGH + protocol.END

# The attributes by which a launcher in C says as which hook it was called, and when. A time of more
# than OLDEST seconds ago does not count.
HOOK = b"greycheck_hook"
TIME = b"greycheck_time"
OLDEST = 600

# The strike interval for an attempt whose time is not known: no retry is a strike.
NEVER = -(1 << 62)

# Settings of the store: a request may repeat them, not change them.
OF_THE_STORE = {
    PREFIX + name
    for name in (b"CONFIG", b"DATABASE", b"DATABASE_FILE", b"DATABASE_HOSTS", b"DATABASE_MODE")
}

VERIFIED_NAMES = PREFIX + b"VERIFIED_NAMES"


class Elsewhere(Exception):
    """Only the forked child can answer this request; the message says why."""


class Question:
    """One request of PEER about ENVELOPE under SETTINGS, with the PROBLEMS of those it brought.

    ``started`` is when it was read (``monotonic``). ``waited`` is how long before that the mail was
    tried, in seconds, as the launcher in C of HOOK says; None if it does not say. ``decision`` is
    advanced by the store. ``answered`` is true once it has its answer.
    """

    __slots__ = (
        "answered",
        "decision",
        "envelope",
        "hook",
        "peer",
        "problems",
        "settings",
        "started",
        "waited",
    )

    def __init__(
        self,
        peer: "Peer",
        envelope: Envelope,
        settings: Settings,
        hook: "Hook | None",
        problems: "list[str]",
    ) -> None:
        self.started = monotonic()
        self.waited: int | None = None
        self.peer = peer
        self.envelope = envelope
        self.settings = settings
        self.hook = hook
        self.problems = problems
        self.decision = Decision(envelope, settings, int(time()))
        self.answered = False

    @property
    def attempt(self) -> int:
        """The time for which it is decided: when the mail was tried, in seconds since 1970."""
        return self.decision.now

    def failed(self, message: str) -> Verdict:
        """Returns the verdict by ``on_error``, because of MESSAGE."""
        return self.decision.failed(message)

    def was_made(self, when: bytes) -> None:
        """Decides as of WHEN, the time of the attempt as the launcher in C has it.

        A time that cannot be, because a clock was set, counts as now.
        """
        made = int(when) if when.isdigit() and len(when) < 20 else self.attempt
        self.waited = self.attempt - made if 0 <= self.attempt - made <= OLDEST else 0
        self.decision.now -= self.waited

    def may_be_as_old_as(self, seconds: float) -> None:
        """Decides as of SECONDS ago: the attempt was made since then, at a time that is not known.

        Counted from now, it might pass as a retry that came late enough, and make its client known.
        It may have been too early or not, so it is no strike.
        """
        self.settings = copy(self.settings)
        self.settings.strike_interval = NEVER
        self.decision = Decision(self.envelope, self.settings, int(time() - seconds))

    def is_overdue(self, now: float) -> bool:
        """Returns true if its deadline is over at NOW (``monotonic``)."""
        return now - self.started >= self.settings.deadline


class Reader:
    """Reads requests under the settings of ENVIRON, as the settings file is now.

    MESSAGES are the messages that were asked about. WARN is called with warnings about clients.
    """

    def __init__(
        self, environ: dict[bytes, bytes], messages: "Messages", warn: "Callable[[str], None]"
    ) -> None:
        self.environ = environ
        self.messages = messages
        self._warn = warn
        self._lines = settings.read_file(environ)
        self.settings = settings.read(environ, self._lines)
        self._fixed = _where_the_store_is(self.settings)
        self._forms = Forms()
        self._hooks = {hook.NAME.encode(): hook for hook in hooks.every()}
        # Settings and the problems with them, by the text of a request's own, and whether it has a
        # verified name.
        self._variants: dict[tuple[bytes, bool], tuple[Settings, list[str]]] = {}
        self._of_verified_names = self._variant({VERIFIED_NAMES: b"yes"})
        self._own = self._variant({})

    def question(self, request: bytes, peer: "Peer") -> Question | None:
        """Reads REQUEST, which has no end, of PEER. Returns None if nothing is to be decided.

        Raises Malformed, Elsewhere.
        """
        if values := self._forms.plain(request):
            return self._plain_question(values, peer)
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
                raise Elsewhere(
                    f"no such hook: {log.quoted(name.decode('utf-8', 'surrogateescape'))}"
                )
        if own >= 0:
            used, problems = self._with(found, request[own:])
        else:
            used, problems = (
                self._of_verified_names if protocol.has_verified_name(found) else self._own
            )
        if refused and not peer.was_refused:
            peer.was_refused = True
            self._warn(f"{peer.where}: settings of a request count from a unix socket only")
        envelope = protocol.envelope(found, hook.NAME if hook else protocol.NAME)
        if hook is None:
            self.messages.identify(envelope, found.get(b"instance", b""))
        elif hook.identify is not None:
            hook.identify(envelope, found)
        question = Question(peer, envelope, used, hook, problems)
        if hook is not None and peer.is_local and (when := found.get(TIME)) is not None:
            question.was_made(when)
        return question

    def _plain_question(self, values: "Sequence[bytes]", peer: "Peer") -> Question | None:
        """Returns the question of a request that has a plain form, with these VALUES."""
        state, user, instance, *parts = values
        if state not in protocol.DECIDED:
            return None
        used, problems = self._of_verified_names if protocol.is_verified(parts[3]) else self._own
        exempt = "sasl_username" if user else ""
        envelope = protocol.envelope_of(protocol.NAME, exempt, False, *parts)
        self.messages.identify(envelope, instance)
        return Question(peer, envelope, used, None, problems)

    def _with(self, attributes: dict[bytes, bytes], written: bytes) -> tuple[Settings, list[str]]:
        """Returns settings with those in ATTRIBUTES, whose text is WRITTEN, and their problems."""
        verified = protocol.has_verified_name(attributes)
        found = self._variants.get((written, verified))
        if found is None:
            found = self._read_anew(attributes, verified)
            if len(self._variants) >= VARIANTS:
                self._variants.clear()
            self._variants[written, verified] = found
        return found

    def _read_anew(
        self, attributes: dict[bytes, bytes], verified: bool
    ) -> tuple[Settings, list[str]]:
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
                if (
                    settings.read_database(value.decode("utf-8", "surrogateescape").strip())
                    == self.settings.database
                ):
                    return
            except ValueError:
                pass
        raise Elsewhere(f"{name.decode()} is another one here")

    def _variant(self, given: dict[bytes, bytes]) -> tuple[Settings, list[str]]:
        """Returns the settings with GIVEN in the environment, and the problems that GIVEN has."""
        read = settings.read(self.environ | self._fixed | given, self._lines)
        return read, [problem for problem in read.problems if problem not in self.settings.problems]


def _where_the_store_is(settings: Settings) -> dict[bytes, bytes]:
    """Returns the variables for the store of SETTINGS: no request looks for it again."""
    given = {b"DATABASE": settings.database.url, b"STATE_DIRECTORY": settings.state_directory}
    return {
        PREFIX + name: text.encode("utf-8", "surrogateescape")
        for name, text in given.items()
        if text
    }


class Writer:
    """Writes answers, and the log lines that go with them.

    HOST is the name of this host, for the header that each of MESSAGES gets once.
    """

    def __init__(self, host: str, messages: Messages) -> None:
        self._host = host
        self._messages = messages
        # Answers that refuse, by all that they depend on.
        self._refusals: dict[tuple[Settings, str, bool, int], bytes] = {}

    def lines(self, question: Question, verdict: Verdict, notes: "list[str]") -> bytes:
        """Returns the log line of VERDICT, behind problems with settings and NOTES on the store."""
        milliseconds = round((monotonic() - question.started) * 1000)
        line = log.verdict_line(question.envelope, verdict, milliseconds)
        if not notes and not question.problems and not verdict.warning:
            return line
        problems = [*question.problems, verdict.warning] if verdict.warning else question.problems
        before = [log.line(f"warning {problem}") for problem in problems] + [
            log.line(note) for note in notes
        ]
        return b"".join(before) + line

    def answer(self, question: Question, verdict: Verdict, lines: bytes) -> bytes:
        """Returns the answer for VERDICT.

        A launcher in C gets the log's LINES with it, and the exit code.
        """
        hook = question.hook
        if hook is None:
            if verdict.action == policy.ACCEPT:
                return self._acceptance(question, verdict)
            return self._refusal(question, verdict)
        action = protocol.action(verdict, question.settings)
        answer = f"action={action}\nexit={hook.ANSWERS[verdict.action]}\n".encode(
            "utf-8", "surrogateescape"
        )
        reply = hook.reply
        if reply is not None and (said := reply(verdict, question.envelope, question.settings)):
            answer += b"say=" + said
        return answer + b"".join(b"log=" + line for line in lines.splitlines(keepends=True)) + b"\n"

    def _acceptance(self, question: Question, verdict: Verdict) -> bytes:
        wanted = question.settings.header == "yes"
        if not wanted or not self._messages.wants_header(question.envelope.message):
            return ACCEPTED
        return f"action=PREPEND {protocol.header(verdict, self._host, int(time()))}\n\n".encode()

    def _refusal(self, question: Question, verdict: Verdict) -> bytes:
        settings = question.settings
        key = settings, verdict.action, verdict.reason == "error", verdict.wait
        found = self._refusals.get(key)
        if found is None:
            found = f"action={protocol.action(verdict, settings)}\n\n".encode(
                "utf-8", "surrogateescape"
            )
            if len(self._refusals) >= REFUSALS:
                self._refusals.clear()
            self._refusals[key] = found
        return found
