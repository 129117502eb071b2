"""A small disk of its own, for test_faults.py: run in a mount namespace, it mounts a tmpfs and
prints how children ended there.

Usage: in_small_disk.py MOUNTPOINT CHILD.... Prints one JSON line: {event: [exit code, log]}.
"""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

place, child = Path(sys.argv[1]), sys.argv[2:]
results: dict[str, list[object]] = {}


def mount(*options: str) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "mode=0755", *options, "none", str(place)], check=True
    )


def check(event: str, sender: str, **settings: str) -> None:
    environ = {
        "PATH": os.defpath,
        "GREYCHECK_CONFIG": "/dev/null",
        "GREYCHECK_DATABASE": f"{place}/greycheck.db",
        "GREYCHECK_DEADLINE": "60s",
        "TCPREMOTEIP": "192.0.2.1",
        "REMOTEMF": sender,
        "REMOTERCPT": "bob@example.net",
        **settings,
    }
    ran = subprocess.run(
        child,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    results[event] = [ran.returncode, ran.stderr.decode()]


def age(seconds: int) -> None:
    with sqlite3.connect(place / "greycheck.db") as connection:
        connection.execute(
            "UPDATE triplet SET first_attempt = first_attempt - ?1, last_attempt = last_attempt -"
            " ?1",
            (seconds,),
        )
    connection.close()


def ahead(sender: str, seconds: int) -> None:
    """As if SENDER had been recorded under a clock that was so many SECONDS ahead."""
    with sqlite3.connect(place / "greycheck.db") as connection:
        connection.execute(
            "UPDATE triplet SET first_attempt = first_attempt + ?1, last_attempt = last_attempt +"
            " ?1, expires_at = expires_at + ?1"
            " WHERE sender = ?2",
            (seconds, sender),
        )
    connection.close()


def fill() -> None:
    filler = os.open(place / "filler", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        while os.write(filler, b"x" * 4096):
            pass
    except OSError:
        os.close(filler)


mount("-o", "size=400k")
fill()
check("no room to make the store", "first@example.org")
(place / "filler").unlink()
check("recorded", "waits@example.org")
age(300)
check("recorded too", "early@example.org")
check("recorded as well", "ahead@example.org")
keeper = sqlite3.connect(
    place / "greycheck.db"
)  # like a child that is never alone, it keeps the shared memory file there
keeper.execute("SELECT count(*) FROM triplet").fetchone()
age(10)
ahead("ahead@example.org", 7200)
fill()
for number in range(200):
    check("new, disk full", f"new{number}@example.org")
    if "full" in str(results["new, disk full"][1]):
        break
check("new, disk full, on_error=defer", f"new{number}@example.org", GREYCHECK_ON_ERROR="defer")
check("early, disk full", "early@example.org")
check("due, disk full", "waits@example.org")
check("of the future, disk full", "ahead@example.org")
check("of the future, disk full, on_error=defer", "ahead@example.org", GREYCHECK_ON_ERROR="defer")
keeper.close()
fill()
check("new, disk full and nobody there", "alone@example.org")
(place / "filler").unlink()
check("new, room again", f"new{number}@example.org")
connection = sqlite3.connect(place / "greycheck.db")
results["integrity"] = [0, connection.execute("PRAGMA integrity_check").fetchone()[0]]
connection.close()
subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
check("new, read-only", "another@example.org")
check("of the future, read-only", "ahead@example.org")
subprocess.run(["umount", str(place)], check=True)
print(json.dumps(results))
