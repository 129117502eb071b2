"""One check: a decision, with what a store knows of it, and its changes written there.

The same for everybody who decides. Time and the connection are handed in.
"""

from greycheck.envelope import message_triplet
from greycheck.policy import EARLIER, IDENTITY, MESSAGE, NETWORKS, NOTHING, PENDING, ROWS
from greycheck.store.base import Asked, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from greycheck.policy import Decision, TripletRow
    from greycheck.store.base import Store

    # Whether the first recipient of the message of a decision passed a moment ago.
    FirstPassed = Callable[[Store, Decision], bool]

# How often a race may be lost. From the second time on the row is locked first, so that SQLite
# never loses twice, and others seldom.
ATTEMPTS = 20


def check(
    store: "Store", decision: "Decision", first_passed: "FirstPassed | None" = None
) -> "Decision":
    """Makes DECISION and commits its changes to STORE; returns it, or one made anew after a race.

    FIRST_PASSED is for those who keep elsewhere which messages have a first recipient that passed.

    Where the changes cannot be written, an acceptance stands, and so does a deferral whose triplet
    is recorded already: ``unrecorded`` says why. Raises StoreError where what must be recorded
    cannot be: deferred now, it would be again for ever. Where the decision opens a message,
    ``remember`` is still to be called.
    """
    made: Decision | None = None
    fault = StoreError(f"the race for this triplet was lost {ATTEMPTS} times")
    asked = Asked(decision.envelope, decision.triplet)
    for _attempt in range(ATTEMPTS):
        try:
            if made is not None:
                store.lock(asked)
            decision = decision.anew()
            decide(store, asked, decision, first_passed)
            made = decision
            if store.save(asked, made.changes, patient=not made.only_counts_use):
                return made
        except StoreError as error:
            from greycheck.store.causes import Again

            fault = error
            if not isinstance(error, Again):
                break
    if made is None or made.needs_record:
        raise fault
    made.unrecorded = str(fault)
    return made


def decide(
    store: "Store",
    asked: Asked,
    decision: "Decision",
    first_passed: "FirstPassed | None" = None,
    until: str = NOTHING,
) -> str:
    """Makes DECISION, which ASKED is the key of, with what STORE knows. Raises StoreError.

    Where it needs UNTIL, that is returned: it is called once more then.
    """
    while need := decision.advance():
        if need == until:
            return need
        answer(store, asked, decision, need, first_passed)
    finish(asked, decision)
    return NOTHING


def answer(
    store: "Store",
    asked: Asked,
    decision: "Decision",
    need: str,
    first_passed: "FirstPassed | None" = None,
) -> None:
    """Gives DECISION what it NEEDs, from what STORE knows. Raises StoreError."""
    now = decision.now
    if need == ROWS:
        decision.take_rows(store.lookup(asked, now))
    elif need == PENDING:
        decision.take_pending(store.waiting(asked, decision.since, now, decision.settings))
    elif need == EARLIER:
        decision.take_earlier(_earlier(store, asked, now))
    elif need == MESSAGE:
        decision.take_message((first_passed or message_passed)(store, decision))
    elif need == IDENTITY:
        decision.take_identity(store.identity(asked, now, decision.settings))
    else:
        assert need == NETWORKS
        decision.take_networks(store.networks(asked, decision.since, decision.settings))


def finish(asked: Asked, decision: "Decision") -> None:
    """Notes in ASKED what DECISION, which is made, found out: its row will say so."""
    if decision.authorised_by == "SPFRESULT":
        asked.authorised = 1


def _earlier(store: "Store", asked: Asked, now: int) -> "TripletRow | None":
    """The triplet's row under the key of an earlier release, where that is another one."""
    from greycheck.earlier import triplet_then

    then = triplet_then(asked.triplet)
    return None if then is None else store.lookup(Asked(asked.envelope, then), now).triplet


def message_passed(store: "Store", decision: "Decision") -> bool:
    """Whether ``remember`` told STORE of the first recipient of DECISION's message.

    Raises StoreError.
    """
    from greycheck.unknown import message_passed_recently

    row = store.lookup(_of_message(decision), decision.now).triplet
    return message_passed_recently(row, decision.now)


def remember(store: "Store", decision: "Decision", now: int) -> None:
    """Records in STORE that DECISION, on a message's first recipient, lets later ones pass.

    That is a row among the triplets, for MESSAGE_TIME. Where the message before, from the same
    sender in the same session, has done so, nothing is written. Raises StoreError.
    """
    from greycheck.unknown import MESSAGE_TIME, message_passed_recently, message_row

    message = _of_message(decision)
    row = store.lookup(message, now).triplet
    if not message_passed_recently(row, now, MESSAGE_TIME // 2):
        store.save(message, [message_row(row, now)], patient=False)


def _of_message(decision: "Decision") -> Asked:
    envelope = decision.envelope
    return Asked(envelope, message_triplet(decision.triplet, envelope.message))
