"""Chooses actions in an environment."""

from __future__ import annotations

from modelyard.tasks._contract import Task, Toy


def toy(n: int, seed: int) -> Toy:
    return Toy({}, None, options={"env": "modelyard-probes/grid-world"})


TASK = Task(
    name="modelyard-probes/control", kinds=("category",), losses={}, toy=toy, supervised=False, output="move",
    default="modelyard-probes/value-iteration", metrics=("return",),
)  # fmt: skip
