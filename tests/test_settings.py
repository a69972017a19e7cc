"""Schemas: every type, bound and default of a section, and all mistakes together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as drawn
from hypothesis import strategies as st

from modelyard import settings
from modelyard.errors import Problem
from modelyard.settings import Between, Duration


@dataclass(frozen=True, kw_only=True)
class Inner:
    SHORTHAND: ClassVar[str] = "size"

    size: Annotated[int, Between(1, 9)] = 3
    """How large."""
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    where: Path
    """A place, over
    two lines."""
    lr: Annotated[float, Between(0, 1)] = 0.1
    mode: Literal["fast", "slow", 3] = "fast"
    budget: Duration | None = None
    inner: Inner = Inner()
    names: list[str] | str = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    on: bool = False

    def __post_init__(self) -> None:
        if self.on and self.mode == "slow":
            raise ValueError("on and slow do not go together")


def ask(value: Any, origins: dict[str, str] | None = None) -> tuple[Any, list[str]]:
    problems: list[Problem] = []
    return settings.parse(Outer, value, "o", problems, origins), [str(p) for p in problems]


def test_types_convert() -> None:
    found, problems = ask(
        {
            "where": "a/b",
            "lr": 1,
            "mode": 3,
            "budget": "1h30m",
            "inner": 5,
            "names": "x",
            "weights": {"a": 2},
            "on": True,
        }
    )
    assert not problems
    assert found == Outer(
        where=Path("a/b"), lr=1.0, mode=3, budget=5400.0, inner=Inner(size=5), names="x", weights={"a": 2.0}, on=True
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lr", "0.1", "expected a number"),
        ("lr", 1.5, "from 0 to 1"),
        ("lr", float("nan"), "from 0 to 1"),
        ("lr", True, "expected a number"),
        ("mode", "fats", "did you mean 'fast'"),
        ("budget", "5 minutes", "a duration such as"),
        ("budget", -1, "at least 0"),
        ("inner", {"size": 2.5}, "o.inner.size: got 2.5, expected a whole number"),
        ("inner", [1], "o.inner.size: got [1]"),
        ("inner", {"sise": 2}, "Did you mean 'size'?"),
        ("names", [1], "a list, each item a text or a text"),
        ("weights", {"a": "b"}, "got {'a': 'b'}"),
        ("on", 1, "true or false"),
        ("lrr", 1, "Did you mean 'lr'?"),
    ],
)
def test_each_mistake_is_named(key: str, value: Any, said: str) -> None:
    found, problems = ask({"where": "x", key: value})
    assert found is None and len(problems) == 1
    assert said in problems[0]


def test_all_mistakes_at_once_with_places() -> None:
    found, problems = ask(
        {"lr": "x", "inner": {"size": 0}, "moed": 1}, {"o": "f:1", "o.lr": "f:2", "o.inner": "f:3", "o.moed": "f:5"}
    )
    assert found is None
    assert [p.split(":")[0] + ":" + p.split(":")[1] for p in problems] == ["f:2", "f:3", "f:5", "f:1"]
    assert "o.where: is required: A place, over two lines." in problems[-1]


def test_rules_across_fields() -> None:
    assert ask({"where": "x", "on": True, "mode": "slow"})[1] == ["o: on and slow do not go together"]


def test_long_values_are_cut() -> None:
    assert len(ask({"where": "x", "lr": "y" * 10_000})[1][0]) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["where", "lr", "inner", "size", "weights", "zz"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@drawn(suppress_health_check=[HealthCheck.too_slow])  # a busy machine draws slowly
@given(json_values)
def test_any_value_gives_an_instance_or_problems(value: Any) -> None:
    found, problems = ask(value)
    assert (found is None) == bool(problems)
    if found is not None:
        assert ask(settings.plain(found))[0] == found  # what is dumped reads back as itself


def test_schema_and_reference_come_from_the_source() -> None:
    schema = settings.json_schema(Outer)
    assert schema["properties"]["lr"] == {"type": "number", "minimum": 0, "maximum": 1, "default": 0.1}
    assert schema["properties"]["where"]["description"] == "A place, over two lines."
    assert schema["properties"]["inner"]["anyOf"][0]["properties"]["size"]["description"] == "How large."
    row = next(line for line in settings.reference(Outer, "o").splitlines() if line.startswith("| `mode`"))
    assert row == "| `mode` | one of fast, slow, 3 | `fast` |  |"
