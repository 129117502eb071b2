"""Links by which a recipient lets in one mail that waits, once: their tokens, and the secret key.

A token names a row, by its key and its first attempt, and when it expires; an HMAC over these shows
that it was made here. That it is used once is the store's to say: a release moves the row's first
attempt (``waiting.release_once``), and the token names none any more.

The key is in a file that the store's owner alone may read. Without that file no token is valid;
whoever removes it takes all links back.

Diagnostics: ``StoreError`` about the file, with what to do; ``Refused`` for a token.
"""

import hashlib
import hmac
import os
import secrets
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple
from urllib.parse import urlsplit

from greycheck.settings import Settings
from greycheck.store import rights
from greycheck.store.base import DIGEST, StoreError

# The file of the key, where no setting names one, and its size in bytes; it is written in hex.
FILE = "link.key"
SIZE = 32

# The form of a token: its version, the triplet's key, its first attempt, when it expires, and the
# HMAC of all that, cut so that base64 has no bits to spare: no two texts are one token.
VERSION = b"\x01"
TIME = 5
MAC = 21
PURPOSE = b"greycheck release by a link\0"
LENGTH = (len(VERSION) + DIGEST + 2 * TIME + MAC) * 4 // 3

# Why a token is refused.
INVALID, EXPIRED, USED = "invalid", "expired", "used"

WORDS = {
    INVALID: "this is no token of a link that was made here",
    EXPIRED: "this link has expired",
    USED: "this link was used, or what it is for does not wait any more",
}


class Token(NamedTuple):
    """What a token names: the KEY of a triplet, its FIRST attempt, and when it EXPIRES."""

    key: bytes
    first: int
    expires: int


class Refused(Exception):
    """A token is not valid; ``state`` is INVALID, EXPIRED or USED."""

    def __init__(self, state: str) -> None:
        super().__init__(WORDS[state])
        self.state = state


def _mac(secret: bytes, said: bytes) -> bytes:
    return hmac.new(secret, PURPOSE + said, hashlib.sha256).digest()[:MAC]


def written(secret: bytes, token: Token) -> str:
    """Returns TOKEN as text of LENGTH characters that a URL may have, made with the key SECRET."""
    times = (moment.to_bytes(TIME) for moment in (token.first, token.expires))
    said = VERSION + token.key + b"".join(times)
    return urlsafe_b64encode(said + _mac(secret, said)).decode()


def read(secret: bytes, text: str, now: int) -> Token:
    """Returns the token that TEXT is, valid at NOW and made with the key SECRET. Raises Refused."""
    if len(text) != LENGTH or not text.isascii():
        raise Refused(INVALID)
    try:
        found = urlsafe_b64decode(text)
    except ValueError:
        raise Refused(INVALID) from None
    if urlsafe_b64encode(found).decode() != text:
        raise Refused(INVALID)
    said, mac = found[:-MAC], found[-MAC:]
    if not hmac.compare_digest(_mac(secret, said), mac) or said[: len(VERSION)] != VERSION:
        raise Refused(INVALID)
    rest = said[len(VERSION) :]
    times = rest[DIGEST:]
    token = Token(rest[:DIGEST], int.from_bytes(times[:TIME]), int.from_bytes(times[TIME:]))
    if token.expires < now:
        raise Refused(EXPIRED)
    return token


def check_url(url: str) -> None:
    """Raises ValueError if URL is none behind which ``?token`` may stand."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not the URL of a page, as https://mail.example.net/greycheck-release.cgi")
    if "?" in url or "#" in url or parts.username is not None:
        raise ValueError("has a user, a question mark or a fragment: the token stands in its place")
    if not url.isascii() or not url.isprintable() or set(url) & set(" \"'<>\\^`{|}"):
        raise ValueError("has characters that a URL has escaped, as %20")


# --- the key --------------------------------------------------------------------------------------


def path_of(settings: Settings) -> str:
    """Returns the file of the key under SETTINGS."""
    if settings.link_key_file:
        return settings.link_key_file
    if settings.database.path:
        return str(Path(settings.database.path).with_name(FILE))
    return f"{settings.state_directory}/{FILE}"


def make_key(path: str) -> bytes:
    """Returns the key in the file PATH, which is made if it is not there. Raises StoreError."""
    _refuse_root(path)
    if not os.path.lexists(path):
        try:
            _write_key(path, Path(f"{path}.{secrets.token_hex(8)}"))
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}: name another by link_key_file") from None
    return read_key(path)


def _write_key(path: str, beside: Path) -> None:
    """Makes the file PATH of a new key, whole or not at all, and never in the place of another.

    It is written to BESIDE first. Raises OSError.
    """
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(SIZE) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink()


def read_key(path: str) -> bytes:
    """Returns the key in the file PATH. Raises StoreError unless it is this user's alone."""
    _refuse_root(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise StoreError(
            f"{path}: there is no key yet: greycheck digest --links makes it"
        ) from None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path}: is no regular file: name another by link_key_file")
        if status.st_uid != os.geteuid():
            owner = rights.user_name(status.st_uid)
            raise StoreError(f"{path}: is {owner}'s: run it as {owner}, or remove the file")
        if status.st_mode & 0o077:
            raise StoreError(f"{path}: others may read the key", f"rm {quote(path)}")
        text = os.read(descriptor, 2 * SIZE + 2)
    finally:
        os.close(descriptor)
    try:
        secret = bytes.fromhex(text.decode().strip())
    except ValueError:
        secret = b""
    if len(secret) != SIZE:
        raise StoreError(f"{path}: is no key of {2 * SIZE} hexadecimal digits", f"rm {quote(path)}")
    return secret


def _refuse_root(path: str) -> None:
    """Raises StoreError if this is root, and others may write where the file PATH is."""
    if os.geteuid() == 0:
        rights.only_roots(str(Path(path).parent))
