"""Tells which program a resident runs: until it is restarted, perhaps an older one than installed.

It is asked by a request about which nothing is to be decided, so older residents answer that too.
"""

import socket

from greycheck import __version__
from greycheck.hooks.delegation import BEGINNING, END, LET_THROUGH, NO_QUESTION
from greycheck.store.compiled_sqlite import REVISION

REQUEST = NO_QUESTION + b"\ngreycheck_asks=program"

# How the answer begins, whatever program the resident runs; and what this one answers.
ANSWER_BEGINS = LET_THROUGH + b"\nversion="
ANSWER = ANSWER_BEGINS + f"{__version__}\nschema={REVISION}".encode() + END

# How many bytes of an answer are read.
LIMIT = 4096

RESTART = "restart it: svc -t, sv restart or systemctl restart greycheck"


def other(path: str, timeout: float) -> str:
    """Returns a complaint if the resident at the socket PATH runs another program than this one.

    Empty if it runs the same, or does not answer within TIMEOUT seconds.
    """
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(timeout)
            asking.connect(path)
            asking.sendall(REQUEST + END)
            answer = asking.recv(LIMIT)
    except OSError:
        return ""
    return (
        ""
        if answer == ANSWER or not answer.startswith(BEGINNING)
        else f"{path}: the resident there {_runs(answer)}"
    )


def _runs(answer: bytes) -> str:
    """Returns the words on the program that sent ANSWER.

    Any program may listen there, so only what looks like a version is repeated.
    """
    lines = dict(line.partition("=")[::2] for line in answer.decode("ascii", "replace").split("\n"))
    version, schema = (_plain(lines.get(name, "")) for name in ("version", "schema"))
    said = (
        f"greycheck {version} for schema {schema}" if version and schema else "an older greycheck"
    )
    return f"runs {said}, and {__version__} for schema {REVISION} is installed"


def _plain(word: str) -> str:
    is_plain = (
        len(word) <= len("2026.12.31.post1+local")
        and word.replace(".", "").replace("+", "").isalnum()
    )
    return word if word.isascii() and is_plain else ""
