"""Which program a resident runs. Until somebody starts it anew that may be an older one than is installed.

Who asks hears it beside the answer to a request about which there is nothing to decide, so that older residents answer too.
"""

import socket

from greycheck import __version__
from greycheck.hooks.policy import END
from greycheck.store.compiled_sqlite import REVISION

REQUEST = b"request=smtpd_access_policy\nprotocol_state=CONNECT\ngreycheck_asks=program"
ANSWER = f"action=DUNNO\nversion={__version__}\nschema={REVISION}\n\n".encode()

# How much of an answer is read.
LIMIT = 4096

RESTART = "restart it: svc -t, sv restart or systemctl restart greycheck"


def other(path: str, patience: float) -> str:
    """What there is to say about a resident at the socket PATH that runs another program than this one.

    Empty where it runs the same, and where nobody answers within PATIENCE seconds.
    """
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(patience)
            asking.connect(path)
            asking.sendall(REQUEST + END)
            answer = asking.recv(LIMIT)
    except OSError:
        return ""
    return (
        "" if answer == ANSWER or not answer.startswith(b"action=") else f"{path}: the resident there {_runs(answer)}"
    )


def _runs(answer: bytes) -> str:
    """What program ANSWER is of. Anybody may listen there, so it is believed as far as it looks like one."""
    lines = dict(line.partition("=")[::2] for line in answer.decode("ascii", "replace").split("\n"))
    version, schema = (_plain(lines.get(name, "")) for name in ("version", "schema"))
    said = f"greycheck {version} for schema {schema}" if version and schema else "an older greycheck"
    return f"runs {said}, and {__version__} for schema {REVISION} is installed"


def _plain(word: str) -> str:
    is_plain = len(word) <= len("2026.12.31.post1+local") and word.replace(".", "").replace("+", "").isalnum()
    return word if word.isascii() and is_plain else ""
