"""Few cases that contain every pair of values of a table's columns: a covering array of strength two. The same each time.

Most faults of software show themselves when two conditions meet (Kuhn, Wallace and Gallo, IEEE TSE 30(6), 2004), and the
pairs of eight columns fit into some two hundred rows where the product has a hundred thousand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

Row = dict[str, str]
_Pair = tuple[tuple[str, str], tuple[str, str]]


def pairwise(columns: Mapping[str, Sequence[str]]) -> list[Row]:
    """Greedy: each row begins with a pair that is missing and takes in as many other missing ones as it can."""
    missing = dict.fromkeys(_pairs(columns))  # in order, which a set is not
    used = {(name, value): 0 for name, values in columns.items() for value in values}
    rows: list[Row] = []
    while missing:
        row = dict(next(iter(missing)))
        for name, values in columns.items():
            if name not in row:
                row[name] = min(values, key=lambda value: (-_gain(row, (name, value), missing), used[name, value]))
        for pair in combinations(_cells(row, columns), 2):
            missing.pop(pair, None)
        for cell in row.items():
            used[cell] += 1
        rows.append({name: row[name] for name in columns})
    return rows


def everything(columns: Mapping[str, Sequence[str]], *, varied: Mapping[str, Sequence[str]]) -> list[Row]:
    """The whole product of the columns; the varied ones take their turns beside it."""
    turns = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    whole = [dict(zip(columns, values, strict=True)) for values in product(*columns.values())]
    # The number of turns must not divide the columns' periods, or some values would never meet.
    return [{**row, **turns[(number + number // len(turns)) % len(turns)]} for number, row in enumerate(whole)]


def _pairs(columns: Mapping[str, Sequence[str]]) -> list[_Pair]:
    return [
        ((one, left), (two, right))
        for one, two in combinations(columns, 2)
        for left, right in product(columns[one], columns[two])
    ]


def _gain(row: Row, cell: tuple[str, str], missing: Mapping[_Pair, None]) -> int:
    return sum((other, cell) in missing or (cell, other) in missing for other in row.items())


def _cells(row: Row, columns: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(name, row[name]) for name in columns]
