"""Each hook's record: it is whole, and all who must know a hook take it from there."""

import ast
import os
import posix
import re
import shlex
from pathlib import Path

import pytest

from greycheck import child, hooks, settings
from greycheck.cli import demo, install, manual
from greycheck.cli import explain as explain_command
from greycheck.doctor import launchers, processes, service
from greycheck.envelope import EXEMPTING, Envelope
from greycheck.explain import decision, explanation, reasons
from greycheck.hooks import calling, delegation, record, smtpextfork
from greycheck.hooks.record import HOME, LIST, PATH, PLUGIN, Hook, Record
from greycheck.launchers import native, python, trial
from greycheck.policy import ACCEPT, DEFER, REJECT, Verdict
from greycheck.resident.messages import Messages
from greycheck.resident.questions import Reader
from tests.support import ROOT

HERE = Path(hooks.__file__).parent

every_hook = pytest.mark.parametrize("hook", hooks.every(), ids=lambda hook: hook.NAME)
every_record = pytest.mark.parametrize("record_", hooks.records(), ids=lambda one: one.NAME)

SETTINGS = settings.read({b"GREYCHECK_CONFIG": b"/dev/null"})

PARTS = {
    "client": b"192.0.2.1",
    "name": b"mail.example.org",
    "sender": b"alice@example.org",
    "recipient": b"bob@example.net",
    "helo": b"me",
}


def fields(of: type) -> set[str]:
    """The fields that the record OF this kind has."""
    return {
        name for kind in of.__mro__ if kind.__module__ == record.__name__ for name in vars(kind)
    } & {*re.findall(r"    def (\w+)\(self", Path(record.__file__).read_text())}


# --- it is whole ----------------------------------------------------------------------------------


@every_hook
def test_a_hooks_file_has_every_field(hook: Hook) -> None:
    assert len(fields(Hook)) > 15
    missing = sorted(name for name in fields(Hook) if not hasattr(hook, name))
    assert not missing, f"greycheck/hooks/{hook.NAME}.py lacks {missing}"


@every_record
def test_so_has_the_protocols(record_: Record) -> None:
    missing = sorted(name for name in fields(Record) if not hasattr(record_, name))
    assert not missing, f"greycheck/hooks/{record_.NAME}.py lacks {missing}"


def test_every_file_here_is_a_record() -> None:
    others = {"__init__", Path(record.__file__).stem, Path(calling.__file__).stem}
    known = {*hooks.FILES.values(), hooks.PROTOCOL}
    assert {path.stem for path in HERE.glob("*.py")} - others == known


@pytest.mark.parametrize(("key", "name"), hooks.FILES.items())
def test_its_line_in_the_registry_is_the_records(key: tuple[bytes, bool], name: str) -> None:
    hook = calling.of_program(key[0].decode())
    assert name == hook.NAME
    assert (hook.PROGRAM.encode(), bool(hook.ARGUMENTS)) == key


def test_no_two_are_called_alike() -> None:
    for names in (
        [one.NAME for one in hooks.records()],
        [one.TITLE for one in hooks.records()],
        [hook.PROGRAM for hook in hooks.every()],
        [switch for hook in hooks.every() for switch in hook.SWITCHES],
    ):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", sorted(HERE.glob("*.py")), ids=lambda path: path.stem)
def test_no_hook_imports_the_registry(path: Path) -> None:
    """Which imports them."""
    if path.stem in (*hooks.FILES.values(), hooks.PROTOCOL):
        found = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
        ]
        assert found
        assert not [node.module for node in found if node.module == hooks.__name__]


@every_hook
def test_each_verdict_has_an_exit_code(hook: Hook) -> None:
    assert set(hook.ANSWERS) == {ACCEPT, DEFER, REJECT}
    assert len(set(hook.ANSWERS.values())) == 3 or hook.reply, "how is a deferral told?"


@every_hook
def test_addresses_are_variables_or_both_are_arguments(hook: Hook) -> None:
    assert hook.ARGUMENTS in ((), ("sender", "recipient")), "greycheck.c knows no others"
    assert {"client", "sender", "recipient"} <= {*hook.VARIABLES, *hook.ARGUMENTS} <= PARTS.keys()
    assert not hook.VARIABLES.keys() & {*hook.ARGUMENTS}


@every_hook
def test_more_variables_are_read_by_identify(hook: Hook) -> None:
    assert bool(hook.FURTHER) == (hook.identify is not None)
    assert not {*hook.FURTHER} & {*hook.VARIABLES.values(), *map(str.encode, EXEMPTING)}


@every_hook
def test_how_it_is_switched_on_is_told(hook: Hook) -> None:
    assert hook.RUNS in (LIST, PATH, HOME, PLUGIN)
    assert bool(hook.SWITCHES) == (hook.RUNS != PLUGIN)
    told = hook.SWITCH_ON.format(program="/a b/p", quoted="'/a b/p'")
    assert told.startswith(f"{hook.TITLE}, ")
    assert "/a b/p" in told or hook.PROGRAM in told
    assert hook.IF_MISSING.startswith("all mail is ")


# --- the envelope ---------------------------------------------------------------------------------


@every_hook
def test_what_it_hands_over_arrives(hook: Hook) -> None:
    argv, environ = calling.call(hook, PARTS)
    assert hooks.called_by([b"bin/" + argv[0], *argv[1:]]) is hook
    found = hook.envelope(argv, environ)
    assert (found.hook, found.client, found.name) == (hook.NAME, "192.0.2.1", b"mail.example.org")
    assert (found.sender, found.recipient, found.missing) == (
        PARTS["sender"],
        PARTS["recipient"],
        "",
    )
    assert found.helo == (PARTS["helo"] if "helo" in hook.VARIABLES else b"")


@every_hook
def test_it_tells_messages_apart_or_does_not(hook: Hook) -> None:
    argv, environ = calling.call(hook, PARTS)
    found = hook.envelope(argv, environ | dict.fromkeys(hook.FURTHER, b"1"))
    assert bool(found.message) == hook.TELLS_MESSAGES


@every_record
def test_whose_later_recipients_follow_the_first_is_told(record_: Record) -> None:
    meaning = reasons.REASONS["message"].meaning
    assert (record_.TITLE in meaning) == record_.TELLS_MESSAGES


@every_hook
def test_without_its_client_an_envelope_is_incomplete(hook: Hook) -> None:
    argv, environ = calling.call(hook, PARTS)
    del environ[hook.VARIABLES["client"]]
    assert hook.envelope(argv, environ).missing == hook.VARIABLES["client"].decode()


@every_hook
def test_its_variables_tell_a_hook_from_an_operator(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a mail server's child might be taken for a person's, and check nothing."""
    monkeypatch.setattr(child, "_is_character_device", lambda _descriptor: True)
    for variable in hook.VARIABLES.values():
        monkeypatch.setattr(posix, "environ", {child.COMPLETION: b"x", variable: b""})
        assert not child.asks_completion([hook.PROGRAM.encode()]), variable
    monkeypatch.setattr(posix, "environ", {child.COMPLETION: b"x"})
    assert child.asks_completion([hook.PROGRAM.encode()])


# --- the launchers --------------------------------------------------------------------------------


@every_hook
def test_a_launcher_without_a_package_answers_its_hook(hook: Hook) -> None:
    assert hook.PROGRAM in python.PROGRAMS
    for action in (ACCEPT, DEFER):
        code, words = calling.last_resort(hook, action)
        assert code == hook.ANSWERS[action]
        assert f"({code}, '{action}', {words!r})" in python.launcher(hook.PROGRAM)
        assert bool(words) == (hook.reply is not None and action == DEFER)


def test_the_last_resorts_are_those_of_earlier_releases() -> None:
    found = {hook.NAME: calling.last_resort(hook, DEFER) for hook in hooks.every()}
    assert (
        found.items()
        >= {
            "smtpextfork": (101, b""),
            "checkenv": (101, b""),
            "rcptcheck": (111, b""),
            "spp": (0, b"E451 temporary failure, please try again later (#4.3.0)\n"),
        }.items()
    )


@every_hook
def test_the_table_of_the_launcher_in_c_has_its_record(hook: Hook) -> None:
    """Which tests of that launcher hold against its behaviour, for every hook."""
    variables = [hook.VARIABLES.get(part, b"").decode() for part in PARTS]
    names = [f'"{name}"' for name in (hook.NAME, *variables)]
    codes = [str(hook.ANSWERS[action]) for action in (ACCEPT, DEFER, REJECT)]
    row = f'{{"{hook.PROGRAM}", LAUNCHERS "/{hook.PROGRAM}", {", ".join(names)}, '
    row += f"{1 + len(hook.ARGUMENTS)}, {{{', '.join(codes)}}}, "
    _before, found, rest = native.table().partition(row)
    assert found, native.table()
    rest = rest.partition(" LAUNCHERS ")[0]
    assert rest.startswith("{0, 0}") == (hook.reply is None)
    for variable in (*map(str.encode, EXEMPTING), *hook.FURTHER):
        assert f'"{variable.decode()}", ' in rest


@every_hook
def test_the_source_in_c_names_no_hook(hook: Hook) -> None:
    source = re.sub(r"/\*.*?\*/", "", native.source().read_text(), flags=re.DOTALL)
    names = [
        hook.NAME,
        *map(os.fsdecode, [*hook.VARIABLES.values(), *hook.FURTHER, *hook.SWITCHES]),
    ]
    names += [str(code) for code in hook.ANSWERS.values() if code]
    names += [f'"{hook.PROGRAM}"'] if hook is not smtpextfork else []
    assert not [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source)]


@every_hook
def test_the_resident_knows_it(hook: Hook) -> None:
    reader = Reader({b"GREYCHECK_CONFIG": b"/dev/null"}, Messages(), pytest.fail)

    class Local:
        is_local, was_refused, where = True, False, ""

    request = b"request=smtpd_access_policy\nsender=a\nclient_address=192.0.2.1\ngreycheck_hook="
    question = reader.question(request + hook.NAME.encode(), Local())  # type: ignore[arg-type]
    assert question is not None
    assert question.hook is hook


# --- what operators are told ----------------------------------------------------------------------


@every_hook
def test_install_says_how_to_switch_it_on(hook: Hook) -> None:
    paths = [Path("/qmail/bin") / name for name in python.PROGRAMS]
    path = f"/qmail/bin/{hook.PROGRAM}"
    told = install.lines(paths, SETTINGS)
    assert f"\n{hook.SWITCH_ON.format(program=path, quoted=shlex.quote(path))}\n" in told
    assert f"{path}\n" in told.partition("\n\n")[0] + "\n"
    assert hook.PROGRAM in (install.install.help or "")


@every_hook
def test_doctor_knows_it(hook: Hook) -> None:
    assert launchers.HOOKS[hook.PROGRAM] is hook
    assert f"greycheck.hooks.{hook.NAME}" in launchers.modules()
    for variable in hook.SWITCHES:
        assert variable in processes.HOOK_VARIABLES
        assert processes.kept(variable + b"=x") == ((variable, b"x"),)
        assert processes.rules_variables(b"+" + variable + b"=x\0") == ((variable, b"x"),)
        assert service.SWITCHES[variable] is hook
    assert (hook in service.PLUGGED) == (not hook.SWITCHES)


@every_record
def test_explain_knows_it(record_: Record) -> None:
    assert record_.NAME in explanation.ASKING
    found = decision.envelope_of(
        record_.NAME, b"192.0.2.1", PARTS["sender"], PARTS["recipient"], {}, b"me", PARTS["name"]
    )
    assert (found.hook, found.client, found.sender, found.missing) == (
        record_.NAME,
        "192.0.2.1",
        PARTS["sender"],
        "",
    )


@every_hook
def test_explain_ends_with_its_exit_codes(hook: Hook) -> None:
    codes = explain_command.exit_codes()
    assert all(re.search(rf"\b{code}\b", codes) for code in hook.ANSWERS.values())
    if hook.ANSWERS != smtpextfork.ANSWERS:
        assert f"for {hook.TITLE} " in codes


@every_hook
def test_demo_plays_it_or_it_says_that_it_cannot_be_played(hook: Hook) -> None:
    assert (hook.NAME in demo.HOOKS) == bool(hook.DEMO)
    if hook.DEMO:
        variables = demo.hook_variables(Path("/x"), hook.NAME)
        assert variables.keys() == {"QMAIL_HOME", *dict(hook.DEMO)}
        server = (Path(demo.__file__).parents[1] / "demo" / "smtpd.py").read_text()
        assert all(f'"{variable}"' in server for variable in dict(hook.DEMO))


@every_record
def test_the_manual_has_a_paragraph_on_it(record_: Record) -> None:
    page = words(manual.commands_page())
    assert words(record_.MANUAL) in page
    assert record_.NAME in dict(manual.PAIRS)["hook"]


@every_hook
def test_the_manual_has_its_program_codes_and_variables(hook: Hook) -> None:
    page = words(manual.commands_page())
    assert f"**{hook.PROGRAM}**" in page.partition(" .SH DESCRIPTION ")[0]
    exits = dict(manual.exits_of_hooks())
    meant = [f"{word}" for code in hook.ANSWERS.values() for word in [exits.get(str(code), "")]]
    assert all(meant), f"EXIT_STATUS of {hook.NAME} lacks a code"
    differing = {
        code for action, code in hook.ANSWERS.items() if code != smtpextfork.ANSWERS[action]
    }
    assert differing == {code for code, _words in hook.EXIT_STATUS}
    environment = page.partition(" .SH ENVIRONMENT ")[2].partition(" .SH EXAMPLES ")[0]
    for variable in (*hook.VARIABLES.values(), *hook.FURTHER):
        assert re.search(rf"\b{variable.decode()}\b", environment), variable


def words(page: str) -> str:
    """The words of PAGE in roff, in one line; bold ones with ** around."""
    plain = re.sub(r"\\fB(.*?)\\fR", r"**\1**", page)
    plain = plain.replace("\\-", "-").replace("\\&", "").replace("\\(ga", "`")
    return " ".join(plain.split())


@every_record
def test_the_documents_have_a_section_on_it(record_: Record) -> None:
    text = (ROOT / "docs" / "hooks.rst").read_text()
    assert record_.TITLE in text, f"docs/hooks.rst has no word on {record_.TITLE}"


@every_hook
def test_the_documents_say_how_to_switch_it_on(hook: Hook) -> None:
    text = " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.rst")))
    assert hook.PROGRAM in text
    for variable in hook.SWITCHES:
        assert variable.decode() in text


# --- a trial --------------------------------------------------------------------------------------


@every_hook
def test_a_trial_is_this_hooks(hook: Hook, tmp_path: Path) -> None:
    """A program that defers as this hook is told to passes its trial; one that does not fails."""
    verdict, envelope = Verdict(DEFER, "new", 300), Envelope(hook.NAME, "192.0.2.1", b"", b"")
    said = calling.reply(hook, verdict, envelope, SETTINGS).decode()
    path = tmp_path / hook.PROGRAM
    for code, complaint in ((hook.ANSWERS[DEFER], ""), (hook.ANSWERS[DEFER] + 1, "does not run")):
        log = "greycheck: defer reason=new"
        path.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(said)}\necho {log} >&2\nexit {code}\n")
        path.chmod(0o755)
        found = trial.try_run(path)
        assert complaint in found
        assert bool(found) == bool(complaint)


def test_the_protocol_is_no_program() -> None:
    assert delegation.NAME not in [hook.NAME for hook in hooks.every()]
    assert delegation.NAME in [one.NAME for one in hooks.records()]
