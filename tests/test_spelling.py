"""Which word may have been meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greycheck import settings
from greycheck.spelling import nearest

NAMES = [setting.name for setting in settings.TABLE]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("dealy", "delay"),
        ("retrywindow", "retry_window"),
        ("retry-window", "retry_window"),
        ("stirkes", "strikes"),
        ("databse", "database"),
        ("ipv4prefix", "ipv4_prefix"),
        ("nosuch", ""),
        ("", ""),
        ("d" * 10000, ""),
    ],
)
def test_a_setting_is_found_by_its_likeness(word: str, meant: str) -> None:
    assert nearest(word, NAMES) == meant


@given(st.sampled_from(NAMES), st.data())
def test_a_letter_that_is_missing_or_in_the_place_of_the_next_is_forgiven(
    name: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(name) - 2))
    turned = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    assert {
        nearest(name, NAMES),
        nearest(turned, NAMES),
        nearest(name[:at] + name[at + 1 :], [name]),
    } == {name}


def test_of_nothing_nothing_is_found() -> None:
    assert nearest("word", []) == ""
