"""Everything that can go wrong, with everything else. Whatever meets, the promises hold.

Every pair of faults is here; APPLIANCE_TEST_FULL=1 takes the whole product: 35,000 cases, an hour and a half.
"""

from __future__ import annotations

import os

import pytest
from covering import Row, everything, pairwise
from ordeal import COLUMNS, VARIED, Ordeal


def rows() -> list[Row]:
    full = os.environ.get("APPLIANCE_TEST_FULL") == "1"
    return everything(COLUMNS, varied=VARIED) if full else pairwise({**COLUMNS, **VARIED})


@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(row.values()).replace(" ", "_"))
def test_the_promises_hold_whatever_meets(row: Row) -> None:
    Ordeal(row).run()


def test_every_pair_of_faults_is_among_the_cases() -> None:
    cases = pairwise({**COLUMNS, **VARIED})

    for one, left in COLUMNS.items():
        for two, right in COLUMNS.items():
            if one < two:
                assert {(row[one], row[two]) for row in cases} == {(a, b) for a in left for b in right}
    assert pairwise({**COLUMNS, **VARIED}) == cases
