"""Each step and each reason of the decision has its words: what is forgotten is named here."""

import pytest

from greycheck import policy
from greycheck.explain.explanation import LINES, TOLD_WITH
from greycheck.explain.reasons import _MEANINGS, REASONS
from greycheck.explain.remedies import REMEDIES
from greycheck.explain.steps import _IN_WORDS


@pytest.mark.parametrize("step", policy.STEPS, ids=lambda step: str(step.name))
def test_a_step_is_told_and_its_reason_has_a_meaning_and_a_remedy(step: policy.Step) -> None:
    assert TOLD_WITH.get(step.name, step.name) in _IN_WORDS, (
        f"explain/steps.py does not tell of {step.name}"
    )
    assert step.reason in _MEANINGS, f"explain/reasons.py has no meaning of {step.reason}"
    assert step.reason in REMEDIES, f"explain/remedies.py has nothing about {step.reason}"


def test_nothing_is_told_of_a_step_that_is_not_there() -> None:
    reasons = {step.reason for step in policy.STEPS}
    assert list(_IN_WORDS) == LINES
    assert set(TOLD_WITH) | set(LINES) == {step.name for step in policy.STEPS}
    assert set(REMEDIES) == reasons
    assert set(_MEANINGS) == set(REASONS) == reasons | {"error"}


def test_a_step_has_a_name_of_its_own() -> None:
    names = [step.name for step in policy.STEPS]
    assert len(names) == len(set(names))
