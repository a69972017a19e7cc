"""The short way of a request's plain rows gives the very arrays of the long way, and leaves to it whatever is not plain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelyard.kinds._missing import Missing
from modelyard.runtime.pipeline import Column, Pipeline
from modelyard.runtime.quick import Quick
from modelyard.runtime.rows import to_columns

ROWS = 60


def pipeline(numbers: str, indicator: bool = False) -> Pipeline:
    """Three numbers (one with gaps, one constant) and two labels (one with gaps)."""
    random = np.random.default_rng(1)
    gaps = [None if i % 7 == 0 else float(v) for i, v in enumerate(random.normal(1e5, 3, ROWS))]
    frame = pl.DataFrame({
        "a": gaps, "b": random.normal(size=ROWS), "c": [2.0] * ROWS,
        "d": random.choice(["x", "ß", "红"], ROWS), "e": [None if i % 5 == 0 else "k" for i in range(ROWS)],
    })  # fmt: skip
    made = Pipeline([Column(n, "number", numbers) for n in "abc"] + [Column(n, "category", "index") for n in "de"], [])
    made.inputs = [made.inputs[i] for i in (3, 0, 1, 4, 2)]
    if indicator:
        made.inputs[1].missing = Missing(indicator=True)
    checked, _ = made.check(frame)
    made.fit([checked])
    for column in made.inputs:
        column.summary = column.rules.summary(checked[column.name])
    return made


VALUES: list[Any] = [0, -3, 2.5, 1e300, -1e-300, 2**53 + 1, None, math.nan, 10**18]
LABELS: list[Any] = ["x", "红", "ß", "new", None, "X"]


@pytest.mark.parametrize("indicator", [False, True])
@pytest.mark.parametrize("numbers", ["scaled", "raw", "bins"])
@pytest.mark.parametrize("rows", [1, 2, 70])
def test_plain_rows_are_encoded_alike(numbers: str, indicator: bool, rows: int) -> None:
    made = pipeline(numbers, indicator)
    quick = Quick.of(made)
    assert quick is not None
    random = np.random.default_rng(rows)
    for _ in range(40):
        pick = lambda values: values[int(random.integers(len(values)))]  # noqa: E731
        given = [{**{n: pick(VALUES) for n in "abc"}, **{n: pick(LABELS) for n in "de"}, "more": 1} for _ in range(rows)]
        found = quick.encode(given)
        raw, broken = to_columns(given, made.inputs)
        checked, errors = made.check(raw)
        assert not broken and not errors and found is not None
        expected = made.encode(checked).arrays
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array, equal_nan=True), name  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    "odd", [{"a": "1"}, {"a": True}, {"b": math.inf}, {"b": [1]}, {"b": 10**400}, {"d": " x"}, {"d": ""}, {"d": 1}, {"e": ["k"]}, {"d": "x\u2003"}]
)
def test_what_is_not_plain_is_left_to_the_long_way(odd: dict[str, Any]) -> None:
    quick = Quick.of(pipeline("scaled"))
    plain = {"a": 1.0, "b": 1, "c": 2, "d": "x", "e": None}
    assert quick is not None and quick.encode([plain]) is not None
    assert quick.encode([plain, {**plain, **odd}]) is None
    assert quick.encode([{k: v for k, v in plain.items() if k != "b"}]) is None
    assert quick.encode([plain, "row"]) is None


def test_other_pipelines_have_no_short_way() -> None:
    made = pipeline("scaled")
    made.inputs[1].missing = Missing(method="mean")
    assert Quick.of(made) is None
    assert Quick.of(Pipeline([Column("t", "text", "bag")], [])) is None
