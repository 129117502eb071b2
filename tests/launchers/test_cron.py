"""The lines of a crontab that are told to operators."""

import subprocess
from pathlib import Path

from greycheck.launchers import cron


def test_the_command_is_one_word_for_the_shell_whatever_its_path(tmp_path: Path) -> None:
    program = tmp_path / "it's 100 %" / "greycheck"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$0:$1"\n')
    program.chmod(0o755)
    line = cron.line("7 * * * *", program, "expire", "env ")
    times, command = line[: len("7 * * * *")], line[len("7 * * * *") :]
    assert times == "7 * * * *"
    # cron ends the command at the first % that has no backslash, and removes those before others.
    assert command.replace("\\%", "").count("%") == 0
    ran = subprocess.run(
        ["/bin/sh", "-c", command.replace("\\%", "%")], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"{program}:expire\n"


def test_a_plain_path_stands_as_it_is() -> None:
    assert cron.line("@hourly", Path("/a/greycheck"), "expire") == "@hourly /a/greycheck expire"
