"""Reading files that others may have put there: nothing of them holds the reader."""

import os
from pathlib import Path

import pytest

from greycheck.privilege.files import cause, read


def test_of_a_file_so_many_bytes_are_read_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert [read(path, most) for most in (4, 10, 1000)] == [b"0123", b"0123456789", b"0123456789"]
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read(link, 4) == b"0123"


@pytest.mark.parametrize("kind", ["fifo", "directory", "/dev/zero", "/dev/tty", "loop", "nothing"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """A pipe that nobody writes into would hold who opens it."""
    path = tmp_path / "named"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind != "nothing":
        path.symlink_to(path if kind == "loop" else kind)
    before = os.listdir("/proc/self/fd")
    for _number in range(3):
        with pytest.raises(OSError, match=r"regular|No such (file|device)|Too many levels"):
            read(path, 10)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file", "/a"), "/a: No such file"),
        (OSError(18, "Invalid link", b"/a\xff", None, "/b"), "/a\udcff and /b: Invalid link"),
        (OSError(13, "Denied", 7), "Denied"),
        (OSError("some words"), "some words"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_is_told_with_its_files(error: OSError, said: str) -> None:
    assert cause(error) == said
