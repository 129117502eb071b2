"""One check: what the policy says of an envelope, against a store.

The same for everybody who decides. Time and the connection are handed in.
"""

from greycheck import policy
from greycheck.envelope import Envelope, triplet
from greycheck.store.lean import Again, Asked, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greycheck.policy import Change, Verdict
    from greycheck.settings import Settings
    from greycheck.store.lean import Store

# How often a race may be lost. From the second time on the row is locked first, so that SQLite never loses twice, and others seldom.
ATTEMPTS = 20


def check(store: "Store", envelope: Envelope, settings: "Settings", now: int) -> "Verdict":
    """The verdict on ENVELOPE at NOW (seconds since 1970), committed to STORE.

    Where the change cannot be written, an acceptance stands, and so does a deferral whose triplet is recorded already; the verdict
    says so in ``unrecorded``. Raises StoreError where a new triplet cannot be recorded: deferred now, it would be again for ever.
    """
    asked = Asked(envelope, triplet(envelope, settings.ipv4_prefix, settings.ipv6_prefix))
    verdict = None
    fault = StoreError(f"the race for this triplet was lost {ATTEMPTS} times")
    for _attempt in range(ATTEMPTS):
        try:
            if verdict is not None:
                store.lock(asked)
            verdict, changes = _decide(store, asked, settings, now)
            if store.save(asked, changes, patient=verdict.reason not in ("client", "known")):
                return verdict
        except Again as error:
            fault = error
        except StoreError as error:
            fault = error
            break
    if verdict is None or verdict.reason == "new":
        raise fault
    verdict.unrecorded = str(fault)
    return verdict


def _decide(store: "Store", asked: Asked, settings: "Settings", now: int) -> "tuple[Verdict, list[Change]]":
    found = store.lookup(asked, now)
    verdict, changes = policy.decide(found, settings, now)
    if not policy.looks_around(verdict, settings):
        return verdict, changes
    terms = policy.Terms(settings, policy.deciding(found.rules, settings))
    waiting = store.waiting(asked, now - terms.retry_window, settings.pending_limit)
    return policy.look_around(verdict, changes, found, waiting, settings, now)
