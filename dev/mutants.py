"""Puts one fault after another into a copy of the code, and runs the tests that are to notice it.

    .venv/bin/python dev/mutants.py                 all
    .venv/bin/python dev/mutants.py decision:pool   those whose name begins so
    .venv/bin/python dev/mutants.py --list          their names, and the tests that are run

Each is printed as ``caught``, with the first test that failed, or as ``survived``: then a test is
missing. The exit code is 1 if one survived. Needs what ``dev/test`` has set up.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# The longest time that the tests of one fault may take, in seconds: it may be an endless loop.
LONGEST = 900

# What is not copied: the copy uses the packages of the checkout.
LEFT_OUT = (".git", ".venv", ".deps", "__pycache__", ".*_cache", ".hypothesis")


class Mutant(NamedTuple):
    """A fault: in FILE, OLD (which is there once) becomes NEW, and TESTS are to notice it.

    TESTS are arguments of pytest. SERVERS is true if they need a database server.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    servers: bool = False


POLICY = "greycheck/policy.py"
CHECK = "greycheck/check.py"
STATEMENTS = "greycheck/store/schema/statements.py"
SQLITE = "greycheck/store/sqlite.py"
SERVER = "greycheck/store/server.py"
UNKNOWN = "greycheck/unknown.py"
WRITING = "greycheck/store/writing.py"
BASE = "greycheck/store/base.py"
KEEPING = "greycheck/resolve/keeping.py"
EXPIRY = "greycheck/store/admin/expiry.py"

OF_POLICY = "tests/test_policy.py"
OF_ORDER = "tests/test_order.py"
OF_CHECK = "tests/test_check.py"
OF_IDENTITY = "tests/test_identity.py"
OF_KEEPING = "tests/resolve/test_keeping.py"
OF_SERVER = "tests/store/test_server.py"
OF_OUTBOUND = "tests/test_outbound.py"
OF_EXPIRY = "tests/store/admin/test_expiry.py"

MUTANTS = (
    # The phases of a triplet.
    Mutant(
        "decision: a retry exactly at the delay is early",
        POLICY,
        "    if age < timings.delay:\n",
        "    if age <= timings.delay:\n",
        OF_POLICY,
    ),
    Mutant(
        "decision: the window's last second does not count",
        POLICY,
        "return DUE if age <= timings.retry_window else OVER",
        "return DUE if age < timings.retry_window else OVER",
        OF_POLICY,
    ),
    Mutant(
        "decision: the lifetime's last second does not count",
        POLICY,
        "return KNOWN if now - row.last <= timings.lifetime else OVER",
        "return KNOWN if now - row.last < timings.lifetime else OVER",
        OF_POLICY,
    ),
    Mutant(
        "decision: a first attempt in the future is waited for",
        UNKNOWN,
        "it.changes, _wait(it, min(it.row.first, it.now)))",
        "it.changes, _wait(it, it.row.first))",
        OF_POLICY,
    ),
    Mutant(
        "decision: a use is recorded a second too late",
        POLICY,
        "abs(it.now - row.last) < min(REFRESH",
        "abs(it.now - row.last) <= min(REFRESH",
        OF_POLICY,
    ),
    # Rules.
    Mutant(
        "decision: an unverified name allows",
        POLICY,
        'if rule.kind != "name" or rule.action != "allow" or settings.verified_names == "yes":',
        'if rule.kind != "names" or rule.action != "allow" or settings.verified_names == "yes":',
        OF_POLICY,
    ),
    Mutant(
        "decision: a rule that rejects defers",
        POLICY,
        '        return it.decide(REJECT, "rule")\n',
        '        return it.decide(DEFER, "rule")\n',
        OF_POLICY,
    ),
    Mutant(
        "decision: an expectation is not used up",
        UNKNOWN,
        'it.decide(ACCEPT, "expected", (passed, Change(expected, None)), detail=by)',
        'it.decide(ACCEPT, "expected", (passed,), detail=by)',
        OF_POLICY,
    ),
    # Clients and strikes.
    Mutant(
        "decision: a client needs one more pass to be known",
        POLICY,
        "return row.passes >= settings.client_passes and",
        "return row.passes > settings.client_passes and",
        OF_POLICY,
    ),
    Mutant(
        "decision: a client is known for ever",
        POLICY,
        "row.passes >= settings.client_passes and now - row.last <= settings.lifetime",
        "row.passes >= settings.client_passes",
        OF_POLICY,
    ),
    Mutant(
        "decision: passes of a client are not counted",
        UNKNOWN,
        "ClientRow(client.first, now, client.passes + 1), expires)",
        "ClientRow(client.first, now, client.passes), expires)",
        OF_POLICY,
    ),
    Mutant(
        "decision: a shared address becomes a known client",
        POLICY,
        "self.client = None if self.shared or self.rule is not None else rows.client",
        "self.client = None if self.rule is not None else rows.client",
        OF_POLICY,
    ),
    Mutant(
        "decision: a client is refused a second too long",
        POLICY,
        "if it.now < client.struck <= it.now + it.settings.strike_time:",
        "if it.now <= client.struck <= it.now + it.settings.strike_time:",
        OF_POLICY,
    ),
    Mutant(
        "decision: a client is refused until a time that no clock of today wrote",
        POLICY,
        "if it.now < client.struck <= it.now + it.settings.strike_time:",
        "if it.now < client.struck:",
        OF_POLICY,
    ),
    Mutant(
        "decision: one more strike is needed",
        UNKNOWN,
        "    if strikes >= settings.strikes:\n",
        "    if strikes > settings.strikes:\n",
        OF_POLICY,
    ),
    Mutant(
        "decision: a retry exactly at the strike interval is none",
        UNKNOWN,
        "return 0 <= now - last <= settings.strike_interval",
        "return 0 <= now - last < settings.strike_interval",
        OF_POLICY,
    ),
    Mutant(
        "decision: an attempt before the clock was set back is hasty",
        UNKNOWN,
        "return 0 <= now - last <= settings.strike_interval",
        "return now - last <= settings.strike_interval",
        OF_POLICY,
    ),
    Mutant(
        "decision: the same attempt seen a second later is another one",
        UNKNOWN,
        "abs(now - row.last) <= SAME_ATTEMPT",
        "abs(now - row.last) < SAME_ATTEMPT",
        OF_POLICY,
    ),
    Mutant(
        "decision: each address that is hasty gets a row",
        UNKNOWN,
        "it.shared or (client is None and row.early >= HASTE)",
        "it.shared",
        OF_POLICY,
    ),
    # Messages, providers, correspondents.
    Mutant(
        "decision: a rule that greylists falls where the first recipient passed",
        UNKNOWN,
        "if it.rule is not None or it.envelope.first or not it.envelope.message:",
        "if it.envelope.first or not it.envelope.message:",
        OF_POLICY,
    ),
    Mutant(
        "decision: what was not recorded opens its message",
        POLICY,
        "not self.envelope.first or self.unrecorded:",
        "not self.envelope.first:",
        f"{OF_CHECK} {OF_POLICY}",
    ),
    Mutant(
        "decision: a provider counts where identities are switched off",
        UNKNOWN,
        'if it.rule is not None or it.settings.identity == "no":',
        "if it.rule is not None:",
        f"{OF_IDENTITY} {OF_POLICY}",
    ),
    Mutant(
        "decision: a correspondent's address is believed from anywhere",
        UNKNOWN,
        'identity.written is not None and (it.domain or identity.state != "found")',
        "identity.written is not None",
        OF_IDENTITY,
    ),
    # Identity.
    Mutant(
        "decision: a domain needs one more pass to be known",
        UNKNOWN,
        "return row.passes >= settings.domain_passes and",
        "return row.passes > settings.domain_passes and",
        OF_IDENTITY,
    ),
    Mutant(
        "decision: a domain is known for ever",
        UNKNOWN,
        "row.passes >= settings.domain_passes and now - row.last <= settings.lifetime",
        "row.passes >= settings.domain_passes",
        OF_IDENTITY,
    ),
    Mutant(
        "decision: a known domain lets in whoever uses its name",
        UNKNOWN,
        "    if it.domain and is_known_domain(it.pending.identity.row",
        "    if is_known_domain(it.pending.identity.row",
        OF_IDENTITY,
    ),
    Mutant(
        "decision: a mail of the domain that waits lets in whoever uses its name",
        UNKNOWN,
        "if not it.domain or since is None or it.now - since < it.timings.delay:",
        "if since is None or it.now - since < it.timings.delay:",
        OF_IDENTITY,
    ),
    Mutant(
        "decision: a domain's retry exactly at the delay waits",
        UNKNOWN,
        "since is None or it.now - since < it.timings.delay:",
        "since is None or it.now - since <= it.timings.delay:",
        OF_IDENTITY,
    ),
    Mutant(
        "decision: SPFRESULT counts where it is not trusted",
        POLICY,
        'if settings.trust_spfresult == "yes" and envelope.spf_passed:',
        "if envelope.spf_passed:",
        OF_IDENTITY,
    ),
    # Pools and limits.
    Mutant(
        "decision: a pool needs one more network",
        UNKNOWN,
        "pending.rounds < rounds_needed(pending, it.settings) or",
        "pending.rounds <= rounds_needed(pending, it.settings) or",
        OF_POLICY,
    ),
    Mutant(
        "decision: a pool exactly at the delay waits",
        UNKNOWN,
        "now - pending.oldest < it.timings.delay or",
        "now - pending.oldest <= it.timings.delay or",
        OF_POLICY,
    ),
    Mutant(
        "decision: a sender of the recipient's domain is a pool",
        UNKNOWN,
        " or is_own_domain(it.triplet):",
        ":",
        OF_POLICY,
    ),
    Mutant(
        "decision: a pool may be quicker than a queue",
        UNKNOWN,
        "settings.pool_networks * (CLOSE_ROUNDS if is_close else 1)",
        "settings.pool_networks",
        OF_POLICY,
    ),
    Mutant(
        "decision: a pool must be slower by a second",
        UNKNOWN,
        "return now - newest >= POOL_GAP",
        "return now - newest > POOL_GAP",
        OF_POLICY,
    ),
    Mutant(
        "decision: a network may have one more waiting",
        UNKNOWN,
        "if it.pending.crowd >= limit:",
        "if it.pending.crowd > limit:",
        OF_POLICY,
    ),
    Mutant(
        "decision: what waits already of a crowded network is not counted",
        UNKNOWN,
        "    limit = it.settings.network_limit\n    if not limit or it.phase == EARLY:",
        "    limit = it.settings.network_limit\n    if not limit:",
        OF_POLICY,
    ),
    Mutant(
        "decision: one more may wait in all",
        UNKNOWN,
        "if it.pending.total >= limit:",
        "if it.pending.total > limit:",
        OF_POLICY,
    ),
    Mutant(
        "decision: the limit of all comes before that of a network",
        POLICY,
        '    Step("crowded", "crowded"),\n    Step("full", "full"),\n',
        '    Step("full", "full"),\n    Step("crowded", "crowded"),\n',
        OF_ORDER,
    ),
    Mutant(
        "decision: an expectation is used up before a retry",
        POLICY,
        '    Step("retry", "retry"),\n    Step("expected", "expected"),\n',
        '    Step("expected", "expected"),\n    Step("retry", "retry"),\n',
        OF_ORDER,
    ),
    # How a check is driven.
    Mutant(
        "check: a new triplet that is not recorded is deferred",
        POLICY,
        '        if self.reason == "new":\n            return True\n',
        '        if self.reason == "new":\n            return False\n',
        f"{OF_CHECK} {OF_POLICY}",
    ),
    Mutant(
        "check: a lost race is not decided again",
        CHECK,
        "ATTEMPTS = 20\n",
        "ATTEMPTS = 1\n",
        OF_CHECK,
    ),
    Mutant(
        "check: after a lost race the row is not locked",
        CHECK,
        "            if made is not None:\n                store.lock(asked)\n",
        "            if False:\n                store.lock(asked)\n",
        OF_CHECK,
    ),
    Mutant(
        "check: after a lost race the old decision is written",
        CHECK,
        "            decision = decision.anew()\n",
        "            decision = made or decision.anew()\n",
        OF_CHECK,
    ),
    Mutant(
        "check: what must be recorded stands unrecorded",
        CHECK,
        "    if made is None or made.needs_record:\n",
        "    if made is None:\n",
        OF_CHECK,
    ),
    Mutant(
        "check: a use of what is known waits for another writer",
        CHECK,
        "patient=not made.only_counts_use)",
        "patient=True)",
        OF_CHECK,
    ),
    Mutant(
        "check: a message is written again for each recipient",
        CHECK,
        "message_passed_recently(row, now, MESSAGE_TIME // 2)",
        "message_passed_recently(row, now, 0)",
        OF_CHECK,
    ),
    # Writes that count only where a row is as it was read.
    Mutant(
        "store: a row that changed meanwhile is overwritten",
        STATEMENTS,
        ", *unchanged))\n        .values({name: bindparam(name) for name in (*state,",
        "))\n        .values({name: bindparam(name) for name in (*state,",
        OF_CHECK,
    ),
    Mutant(
        "store: of a triplet its passes are not compared",
        STATEMENTS,
        '"early_attempts", "passes")\n',
        '"early_attempts")\n',
        OF_CHECK,
    ),
    Mutant(
        "store: a row that came meanwhile is overwritten",
        STATEMENTS,
        "return sqlite.insert(table).values(values).on_conflict_do_nothing()",
        'return sqlite.insert(table).values(values).prefix_with("OR REPLACE")',
        OF_CHECK,
    ),
    Mutant(
        "store: a range that the domain named is prolonged by a pool",
        STATEMENTS,
        """("expires_at",), authorised.c.source == literal_column("'pool'")\n""",
        """("expires_at",)\n""",
        OF_IDENTITY,
    ),
    Mutant(
        "store: a change that changed nothing counts",
        WRITING,
        'return changed == 1 or name == "PUT_NETWORK"',
        'return changed <= 1 or name == "PUT_NETWORK"',
        OF_CHECK,
    ),
    Mutant(
        "store: of changes that belong together the first one stays (SQLite)",
        SQLITE,
        'self._end("ROLLBACK", False)',
        'self._end("COMMIT", False)',
        OF_CHECK,
    ),
    Mutant(
        "store: the lock is taken by the first write (SQLite)",
        SQLITE,
        'self._execute("BEGIN IMMEDIATE")',
        'self._execute("BEGIN")',
        OF_CHECK,
    ),
    Mutant(
        "store: who is not patient waits (SQLite)",
        SQLITE,
        "        if not patient:\n            self._patience = HURRY\n",
        "        if False:\n            self._patience = HURRY\n",
        OF_CHECK,
    ),
    Mutant(
        "store: of changes that belong together the first one stays (servers)",
        SERVER,
        'self._end("ROLLBACK", False)',
        'self._end("COMMIT", False)',
        OF_CHECK,
        servers=True,
    ),
    Mutant(
        "store: changes that belong together are written one by one (servers)",
        SERVER,
        "        if len(changes) > 1:\n            self._begin()\n",
        "        if False:\n            self._begin()\n",
        f"{OF_SERVER} {OF_CHECK}",
        servers=True,
    ),
    Mutant(
        "store: a row is not locked (servers)",
        SERVER,
        "        self._begin()\n        self._run(self._compiled.LOCK_TRIPLET[0], [asked.key])\n",
        "        self._begin()\n",
        OF_SERVER,
        servers=True,
    ),
    Mutant(
        "store: a user has one correspondent more (SQLite)",
        SQLITE,
        "if count >= CORRESPONDENTS:",
        "if count > CORRESPONDENTS:",
        OF_OUTBOUND,
    ),
    # What is kept of a domain, and what is removed.
    Mutant(
        "resolver: two hosts ask one domain",
        KEEPING,
        "if row is not None and not forced and not row.is_due(now):",
        "if False:",
        OF_KEEPING,
    ),
    Mutant(
        "resolver: an older answer overwrites a newer one",
        KEEPING,
        "if row is None or Claim(task.key, row.asked_at, row.next_at, row.failures) != mine:",
        "if row is None:",
        OF_KEEPING,
    ),
    Mutant(
        "resolver: two claims of one second are the same",
        KEEPING,
        "next_at += 1  # each claim is another one",
        "next_at += 0",
        OF_KEEPING,
    ),
    Mutant(
        "resolver: what was found of a client is added to another answer",
        KEEPING,
        'row is None or row.answered_at != task.told.answered_at or row.state != "found"',
        'row is None or row.state != "found"',
        OF_KEEPING,
    ),
    Mutant(
        "resolver: an answer that is too old counts while DNS fails",
        KEEPING,
        "if row.answered_at is not None and row.expires_at > now:",
        "if row.answered_at is not None:",
        OF_KEEPING,
    ),
    Mutant(
        "resolver: pools stay where the domain says its networks",
        KEEPING,
        '            if answer.state == "found":\n                networks.drop_pools()\n',
        "",
        OF_KEEPING,
    ),
    Mutant(
        "resolver: ranges of pools overlap",
        KEEPING,
        "if first > end and not own & said and not own & single:",
        "if not own & said and not own & single:",
        OF_KEEPING,
    ),
    Mutant(
        "resolver: clients stay whom the domain no longer leaves open",
        KEEPING,
        "            networks.keep_clients_in(answer.perhaps)\n",
        "",
        OF_KEEPING,
    ),
    Mutant(
        "expire: a row goes in its last second",
        EXPIRY,
        "        .where(table.c.expires_at < now)\n        .order_by(table.c.expires_at)\n",
        "        .where(table.c.expires_at <= now)\n        .order_by(table.c.expires_at)\n",
        OF_EXPIRY,
    ),
)


def put_in(mutant: Mutant, root: Path) -> None:
    """Puts MUTANT into the checkout ROOT. Raises ValueError if its line is not there once."""
    path = root / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has this {text.count(mutant.old)} times")
    path.write_text(text.replace(mutant.old, mutant.new))


def tried(mutant: Mutant) -> tuple[str, str]:
    """Returns what became of MUTANT (caught, survived or broken), and the test that failed."""
    with tempfile.TemporaryDirectory(prefix="greycheck-mutant.") as place:
        # Tests act as other users too, who must be able to read the copy.
        Path(place).chmod(0o755)
        copy = Path(place, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        (copy / ".deps").symlink_to(ROOT / ".deps")
        put_in(mutant, copy)
        environ = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        if mutant.file.startswith("greycheck/store/schema/"):
            made = [sys.executable, "-m", "greycheck.store.schema.generate"]
            subprocess.run(made, cwd=copy, env=environ, check=True, stdout=subprocess.DEVNULL)
        quick = [] if mutant.servers else ["-m", "not system"]
        pytest = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "--tb=no"]
        try:
            ran = subprocess.run(
                [*pytest, *quick, *mutant.tests.split()],
                cwd=copy,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "caught", f"no end within {LONGEST} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode == 1 and failed:
        return "caught", failed[1]
    return ("survived", "") if ran.returncode == 0 else ("broken", ran.stdout[-2000:])


def main(arguments: list[str]) -> int:
    """Tries the mutants whose names begin as ARGUMENTS say; returns 1 if one was not caught."""
    names = [each for each in arguments if not each.startswith("-")]
    chosen = [one for one in MUTANTS if not names or one.name.startswith(tuple(names))]
    if "--list" in arguments:
        for mutant in chosen:
            print(f"{mutant.name}\n    {mutant.file}: {mutant.tests}")
        return 0
    left = 0
    for mutant in chosen:
        outcome, by = tried(mutant)
        left += outcome != "caught"
        print(f"{outcome:<8}  {mutant.name}" + (f"\n          {by}" if by else ""), flush=True)
    print(f"{len(chosen) - left} of {len(chosen)} were caught")
    return int(left > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
