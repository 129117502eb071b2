"""The system's log, for where descriptor 2 is the connection to the client."""

import _socket
import posix
from time import localtime

from greycheck.hooks.delegation import MONTHS


class SystemLog:
    """The system's log at PATH, as syslog(3) writes to it. A line that it does not take is lost."""

    # The facility mail, and the severities info and warning (RFC 5424 section 6.2.1).
    INFO, WARNING = 2 << 3 | 6, 2 << 3 | 4

    def __init__(self, path: str = "/dev/log") -> None:
        self._path = path

    def add(self, lines: bytes) -> None:
        """Sends each of LINES."""
        device = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        )
        try:
            for line in lines.splitlines():
                device.sendto(self._message(line.removeprefix(b"greycheck: ")), self._path)
        except OSError:
            pass  # no syslogd takes it
        finally:
            device.close()

    def _message(self, said: bytes) -> bytes:
        priority = self.WARNING if said.startswith(b"warning ") else self.INFO
        return f"<{priority}>{self._now()} greycheck[{posix.getpid()}]: ".encode() + said

    @staticmethod
    def _now() -> str:
        _year, month, day, hour, minute, second = localtime()[:6]
        return f"{MONTHS[month - 1]} {day:2} {hour:02}:{minute:02}:{second:02}"

    def flush(self, seconds: float = 0) -> None:
        """Does nothing: all is sent."""
