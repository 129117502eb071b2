"""What the commands share: faults as one line."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from greycheck.cli.common import foreseen
from greycheck.privilege import apart
from greycheck.store.base import StoreError

IS_ROOT = os.geteuid() == 0


def no_name() -> None:
    with socket.socket() as listening:
        listening.bind(("192.0.2.1", 0))


def a_descriptor() -> None:
    reader, writer = os.pipe()
    try:
        os.listdir(reader)
    finally:
        os.close(reader)
        os.close(writer)


def two_names() -> None:
    os.rename("/nonexistent/one", "/nonexistent/two")


def too_long() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("/" + "x" * 200)


def nothing() -> None:
    raise TimeoutError


FAULTS: dict[Callable[[], None], str] = {
    no_name: "Cannot assign requested address",
    a_descriptor: "Not a directory",
    lambda: os.mkdir(b"/nonexistent/one"): "/nonexistent/one: No such file or directory",
    two_names: "/nonexistent/one and /nonexistent/two: No such file or directory",
    too_long: "AF_UNIX path too long",
    nothing: "TimeoutError",
}


@pytest.mark.parametrize(("fault", "said"), FAULTS.items())
def test_a_fault_of_the_system_is_told_with_its_files_where_it_has_any(
    fault: Callable[[], None], said: str
) -> None:
    with pytest.raises(click.ClickException) as told, foreseen():
        fault()
    assert told.value.message == said


@pytest.mark.skipif(not IS_ROOT, reason="only root becomes another")
@pytest.mark.parametrize(("fault", "said"), FAULTS.items())
def test_so_it_is_by_another_users_process(fault: Callable[[], None], said: str) -> None:
    with pytest.raises(StoreError) as told:
        apart.as_user(65534, fault)
    assert str(told.value) == said


def test_an_output_that_takes_nothing_is_no_fault_of_the_store() -> None:
    """It is told by who prints."""
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OSError, match="No space") as told,
        foreseen(),
    ):
        full.write(b"x")
    assert told.value.errno == errno.ENOSPC
