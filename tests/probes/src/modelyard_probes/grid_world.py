"""A walk on a grid to the far corner, with a wall, -1 a step (Sutton & Barto 2018, ch. 4)."""

from __future__ import annotations

import numpy as np
import polars as pl

from modelyard.data.environment import Environment

MOVES = {"down": (1, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0)}


class GridWorld(Environment):
    """States are cells `cell` = "row,column"; answers are moves."""

    def __init__(self, size: int = 4, slip: float = 0.1) -> None:
        self.size, self.slip = size, slip
        self.inputs = {"cell": "category"}
        self.outputs = {"move": "category"}
        self.wall = (1, 1)

    def states(self) -> pl.DataFrame:
        cells = [f"{r},{c}" for r in range(self.size) for c in range(self.size) if (r, c) != self.wall]
        return pl.DataFrame({"cell": cells})

    def actions(self) -> pl.DataFrame:
        return pl.DataFrame({"move": list(MOVES)})

    def after(self, cell: tuple[int, int], move: str) -> tuple[int, int]:
        there = tuple(min(self.size - 1, max(0, a + b)) for a, b in zip(cell, MOVES[move], strict=True))
        return cell if there == self.wall else (there[0], there[1])

    def transitions(self, cell: str, move: str) -> list[tuple[float, str, float, bool]]:
        """(probability, next cell, reward, done)."""
        here = tuple(map(int, cell.split(",")))
        goal = (self.size - 1, self.size - 1)
        if here == goal:
            return [(1.0, cell, 0.0, True)]
        out = []
        for other in MOVES:
            chance = (1 - self.slip if other == move else 0.0) + self.slip / len(MOVES)
            there = self.after((here[0], here[1]), other)
            out.append((chance, f"{there[0]},{there[1]}", -1.0, there == goal))
        return out

    def reset(self, random: np.random.Generator) -> dict[str, object]:
        self.random, self.cell = random, "0,0"
        return {"cell": self.cell}

    def step(self, action: dict[str, object]) -> tuple[dict[str, object], float, bool]:
        options = self.transitions(self.cell, str(action["move"]))
        chosen = options[int(self.random.choice(len(options), p=[o[0] for o in options]))]
        self.cell = chosen[1]
        return {"cell": self.cell}, chosen[2], chosen[3]


def make(**settings: object) -> Environment:
    return GridWorld(**settings)  # type: ignore[arg-type]
