"""What ``greycheck config`` prints is a settings file that says the same."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from greycheck import settings
from greycheck.cli.config import config

HOSTS = st.sampled_from(
    ["127.0.0.1:10023", "[::1]:0", "0.0.0.0:65535", "[::]:25", "[2001:db8::7]:10023", "192.0.2.1:1"]
)
NETWORKS = st.sampled_from(
    ["0.0.0.0/0", "::/0", "192.0.2.7", "10.0.0.0/8", "2001:db8::/32", "::1", "192.0.2.99/25"]
)
NAMES = st.text("abcXYZ0189.-_\u00e4\u0130", min_size=1, max_size=12)
PRINTABLE = st.text(
    st.characters(exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")), max_size=30
)
PATHS = PRINTABLE.map(lambda text: f"/{text}")
DURATIONS = st.builds("{}{}".format, st.integers(0, 400), st.sampled_from(["", "s", "m", "h", "d"]))


def listed(of: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(of, max_size=3).map(", ".join)


# Kinds of values, each with one of them: a setting that reads that one is given others of the kind.
KINDS = [
    ("any words", PRINTABLE),
    ("/a.db", PATHS),
    ("7d", DURATIONS),
    ("5s", DURATIONS),
    ("127.0.0.1:25", listed(HOSTS)),
    ("10.0.0.0/8", listed(NETWORKS)),
    ("a.example", listed(NAMES)),
    ("1000000", st.integers(0, 1000000).map(str)),
    ("user:group", st.builds("{}:{}".format, NAMES | st.just(""), NAMES | st.just(""))),
]

# What there are only a few of.
WORDS = [
    *map(str, range(129)),
    *("0600", "0660", "0666"),
    *("YES", "no", "Greylist", "accept", "DEFER", "observe", "enforce", "reject"),
    *("/a.db", "sqlite:////a b.db", "mysql://u@h/d"),
    "postgresql:///d?host=%2Frun%2Fa&host=h%3A1",
]


def text_read_by(setting: settings.Setting) -> st.SearchStrategy[str]:
    def is_read(text: str) -> bool:
        try:
            setting.parse(text.strip())
        except ValueError:
            return False
        return text.strip().isprintable()

    kinds = [values.filter(is_read) for one, values in KINDS if is_read(one)]
    words = [word for word in WORDS if is_read(word)]
    return st.one_of(*kinds, *([st.sampled_from(words)] if words else []))


@pytest.mark.parametrize("setting", settings.TABLE, ids=lambda setting: setting.name)
@given(data=st.data())
@limits(
    max_examples=12,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
        HealthCheck.too_slow,
    ],
)
def test_what_it_prints_of_any_value_is_read_as_the_same(
    setting: settings.Setting, tmp_path: Path, data: st.DataObject
) -> None:
    text = data.draw(text_read_by(setting))
    variable = f"GREYCHECK_{setting.name.upper()}"
    given_ = {
        "GREYCHECK_CONFIG": "/dev/null",
        variable: text,
        "GREYCHECK_STATE_DIRECTORY": str(tmp_path),
        "HOME": str(tmp_path),
    } | ({} if setting.name.startswith("database") else {"GREYCHECK_DATABASE": "/a.db"})
    if setting.name == "state_directory":
        given_[variable] = text
    expected = settings.read({name.encode(): value.encode() for name, value in given_.items()})
    printed = CliRunner().invoke(
        config, [], env=given_ | dict.fromkeys(["GREYCHECK", "GREYCHECK_SOCKET_X"])
    )
    assert printed.exception is None or isinstance(printed.exception, SystemExit), printed.exception
    (tmp_path / "conf").write_text(printed.stdout, "utf-8")
    again = settings.read(
        {b"GREYCHECK_CONFIG": str(tmp_path / "conf").encode(), b"HOME": str(tmp_path).encode()}
    )
    for each in settings.TABLE:
        if each.name != "database" or expected.has_store:
            assert getattr(again, each.name) == getattr(expected, each.name), (
                each.name,
                text,
                printed.stdout,
            )
    as_json = json.loads(CliRunner().invoke(config, ["--json"], env=given_).stdout)
    assert [row["name"] for row in as_json["settings"]] == [each.name for each in settings.TABLE]


@pytest.mark.parametrize("unseen", ["\u00ad", "\u2800", "\ufe0f", "\U000e0100"])
def test_a_value_that_nobody_could_read_is_none(unseen: str) -> None:
    found = settings.read(
        {b"GREYCHECK_CONFIG": b"/dev/null", b"GREYCHECK_DEFER_TEXT": f"a{unseen}b".encode()}
    )
    assert "not a line of printable characters" in found.problems[0]


@pytest.mark.parametrize("setting", settings.TABLE, ids=lambda setting: setting.name)
def test_a_default_is_shown_as_it_is_written(setting: settings.Setting) -> None:
    if setting.name != "database":
        assert setting.parse(setting.show(setting.default)) == setting.default
