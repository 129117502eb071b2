"""Each fault of dev/mutants.py can be put in: its line is there, and so are its tests.

Whether the tests notice it, only ``dev/mutants.py`` itself tells.
"""

import ast
import importlib.util
import sys
from collections import Counter
from types import ModuleType
from typing import Any

import pytest

from tests.support import ROOT


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "dev" / "mutants.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MUTANTS = load().MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_can_be_put_in(mutant: Any) -> None:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
    ast.parse(text.replace(mutant.old, mutant.new))
    for file in mutant.tests.split():
        assert (ROOT / file).exists()


def test_each_fault_has_a_name_of_its_own() -> None:
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
