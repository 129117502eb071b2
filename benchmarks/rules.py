"""A known triplet where there are rules, against an interpreter that starts and does nothing.

All rules are found by one indexed query, so two thousand should cost what twenty do; and so should
two thousand rules over pairs of every mail's recipient, which are found by one more. The stores
have 100 000 known triplets and 50 000 clients; no rule matches, so that each check goes the whole
way. Checks of a store beside have no rules at all.
"""

import click

from benchmarks.check import with_store, without_store
from benchmarks.common import (
    QUICK_ROWS,
    ROWS,
    TIMES,
    Case,
    Numbers,
    interleave,
    options,
    print_table,
    ratio,
    times_row,
    workshop,
)

FEW, MANY = 20, 2000

MANY_TARGET = 1.7
FEW_TARGET = 1.05


@click.command(help=__doc__)
@options(rounds=400, quick_rounds=3)
def main(rounds: int, quick: bool) -> None:
    """Measures and prints."""
    rows = QUICK_ROWS if quick else ROWS
    with workshop() as place:
        idle, _exempt = without_store(place)
        cases: list[Case] = []
        for rules in (0, FEW, MANY):
            numbers = Numbers(rows, clients=rows // 2, rules=rules)
            [case] = with_store(place, numbers, ("known",), f"rules{rules}")
            case.name = f"known, {rules} rules"
            cases.append(case)
        for pairs in (FEW, MANY):
            numbers = Numbers(rows, clients=rows // 2, pairs=pairs)
            [case] = with_store(place, numbers, ("known",), f"pairs{pairs}")
            case.name = f"known, {pairs} pairs"
            cases.append(case)
        interleave([idle, *cases], rounds)
    none, few, many, few_pairs, many_pairs = cases
    table = [
        times_row(idle),
        times_row(none, ratio(none, idle, "bare")),
        times_row(few, ratio(few, idle, "bare")),
        times_row(many, ratio(many, idle, "bare", MANY_TARGET)),
        times_row(many, ratio(many, few, f"{FEW} rules", FEW_TARGET)),
        times_row(few_pairs, ratio(few_pairs, few, f"{FEW} rules")),
        times_row(many_pairs, ratio(many_pairs, few_pairs, f"{FEW} pairs", FEW_TARGET)),
    ]
    print_table(f"rules (rounds: {rounds})", TIMES, table)


if __name__ == "__main__":
    main()
