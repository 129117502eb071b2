"""One check: what the policy says of an envelope, against a store.

The same for everybody who decides. Time and the connection are handed in.
"""

from greycheck import policy
from greycheck.envelope import Envelope, message_triplet, triplet
from greycheck.normalise import is_private
from greycheck.store.lean import Again, Asked, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from greycheck.policy import Change, Verdict
    from greycheck.settings import Settings
    from greycheck.store.lean import Store

    # Whether the first recipient of the message of what is asked passed a moment ago.
    FirstPassed = Callable[[Store, Asked, int], bool]

# How often a race may be lost. From the second time on the row is locked first, so that SQLite never loses twice, and others seldom.
ATTEMPTS = 20


def first_passed(store: "Store", asked: Asked, now: int) -> bool:
    """Whether STORE was told by ``remember`` of the first recipient of the message of what is ASKED. Raises StoreError."""
    return policy.is_remembered(store.lookup(_of_message(asked), now).triplet, now)


def check(
    store: "Store", envelope: Envelope, settings: "Settings", now: int, first_passed: "FirstPassed" = first_passed
) -> "Verdict":
    """The verdict on ENVELOPE at NOW (seconds since 1970), committed to STORE; where it vouches, ``remember`` is still to be called.

    FIRST_PASSED is for those who keep elsewhere which messages have a first recipient that passed.

    Where the change cannot be written, an acceptance stands, and so does a deferral whose triplet is recorded already; the verdict
    says so in ``unrecorded``. Raises StoreError where what must be recorded cannot be: deferred now, it would be again for ever.
    """
    asked = Asked(envelope, triplet(envelope, settings.ipv4_prefix, settings.ipv6_prefix))
    verdict = None
    changes: list[Change] = []
    fault = StoreError(f"the race for this triplet was lost {ATTEMPTS} times")
    for _attempt in range(ATTEMPTS):
        try:
            if verdict is not None:
                store.lock(asked)
            verdict, changes = decide(store, asked, settings, now, first_passed)
            if store.save(asked, changes, patient=verdict.reason not in ("client", "known")):
                return verdict
        except Again as error:
            fault = error
        except StoreError as error:
            fault = error
            break
    if verdict is None or policy.needs_record(verdict, changes):
        raise fault
    verdict.unrecorded, verdict.vouches = str(fault), False
    return verdict


def decide(
    store: "Store", asked: Asked, settings: "Settings", now: int, first_passed: "FirstPassed" = first_passed
) -> "tuple[Verdict, list[Change]]":
    """The verdict on what is ASKED, and the changes to be written before it holds (see ``policy.decide``).

    What is new, and has tags in its sender, is looked for under its key of an earlier release too.
    """
    found = look_up(store, asked, now)
    verdict, changes = policy.decide(found, settings, now)
    there = found.triplet
    if verdict.reason in ("new", "expected") and asked.is_tagged:
        from greycheck import earlier

        then = policy.Found(earlier.row(store, asked, now), found.client, found.rules, found.expected)
        then.shared = found.shared
        decided = policy.decide(then, settings, now)
        if decided[0].reason not in ("new", "expected"):
            found, (verdict, changes) = then, decided
    told = bool(asked.envelope.message)
    is_later = told and not asked.envelope.first
    if is_later and policy.may_follow(verdict, found, settings) and first_passed(store, asked, now):
        return policy.followed()
    if policy.looks_around(verdict, settings):
        terms = policy.Terms(settings, policy.deciding(found.rules, settings))
        waiting = store.waiting(asked, now - terms.retry_window, now, settings)
        verdict, changes = policy.look_around(verdict, changes, found, asked.triplet, waiting, settings, now)
    if found.triplet is not there and found.triplet is not None:
        terms = policy.Terms(settings, policy.deciding(found.rules, settings))
        changes = earlier.carried_over(changes, found.triplet, there, terms, now)
    if told and asked.envelope.first:
        verdict.vouches = policy.vouches(verdict, changes, found, settings, now)
    return verdict, changes


def look_up(store: "Store", asked: Asked, now: int) -> policy.Found:
    """What STORE knows of what is ASKED, and whether its client's address need not be one client's."""
    found = store.lookup(asked, now)
    if is_private(asked.triplet.client):
        found.shared = asked.triplet.client
    return found


def remember(store: "Store", envelope: Envelope, settings: "Settings", now: int) -> None:
    """Tells STORE that ENVELOPE, a message's first recipient, vouches for later ones: a row among the triplets, for a moment.

    Where the message before, from the same sender in the same session, has done so, nothing is written. Raises StoreError.
    """
    message = _of_message(Asked(envelope, triplet(envelope, settings.ipv4_prefix, settings.ipv6_prefix)))
    row = store.lookup(message, now).triplet
    if not policy.is_remembered(row, now, policy.MESSAGE_TIME // 2):
        store.save(message, [policy.remembering(row, now)], patient=False)


def _of_message(asked: Asked) -> Asked:
    return Asked(asked.envelope, message_triplet(asked.triplet, asked.envelope.message))
