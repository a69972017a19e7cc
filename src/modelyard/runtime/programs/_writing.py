"""What programs that write share: texts in blocks of like length, and the states that graphs hand on.

`read` gives the logits of the first token as `<output>.logits`, the id that ends a text as `end`, and states by name; `step` takes
`token` and the states and gives logits and the states that changed. All arrays have the example axis first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from modelyard.runtime.answers import Graph

ROWS, PLACES = 256, 2**15
"""Rows that are written together, and tokens that they may come to: the keys and values of 4 layers of width 128 are 4 KB a token, so
that no call, whatever its parameters, holds more than 134 MB of them (twice that while a token is added)."""

LOGITS = ".logits"
RUN = 64
"""Neighbouring ids that are looked at together for the largest logits."""


@dataclass
class Block:
    """Texts that are being written: row `r` belongs to example `example_R[r]` of the call."""

    step: Graph
    output: str
    end: int
    logits_RV: np.ndarray
    states: dict[str, np.ndarray]
    example_R: np.ndarray
    changing: set[str] = field(default_factory=set)
    """States that a step changes; the others belong to the example."""

    def go(self, token_R: np.ndarray) -> None:
        """One more token for each row."""
        found = dict(self.step({"token": token_R, **self.states}))
        self.logits_RV = found.pop(f"{self.output}{LOGITS}")
        self.states |= found
        self.changing |= set(found)

    def keep(self, rows: np.ndarray, same: bool = False) -> None:
        """Only (or again, or in another order) the rows named; `same` where each place still holds a row of the same example."""
        self.states = {name: state if same and name not in self.changing else state[rows] for name, state in self.states.items()}
        self.logits_RV, self.example_R = self.logits_RV[rows], self.example_R[rows]


def blocks(graphs: Mapping[str, Graph], inputs: Mapping[str, np.ndarray], longest: int, beams: int = 1) -> Iterator[Block]:
    """Blocks of examples, the shortest first, read; what was padded beyond a block's longest is cut off.

    A block has as many examples as have room with `beams` rows each of up to `longest` tokens.
    """
    rows = max(1, min(ROWS, PLACES // longest) // beams)
    lengths = {name.removesuffix(".length"): array for name, array in inputs.items() if name.endswith(".length")}
    total_B = sum(lengths.values()) if lengths else np.zeros(len(next(iter(inputs.values()))), np.int64)
    order = np.argsort(total_B, kind="stable")
    for start in range(0, len(order), rows):
        example_R = order[start : start + rows]
        some = {name: array[example_R] for name, array in inputs.items()}
        for column, length_B in lengths.items():
            width = max(1, int(length_B[example_R].max(initial=0)))
            for name in some:
                if name.rsplit(".", 1)[0] == column and some[name].ndim > 1:
                    some[name] = some[name][:, :width]
        found = dict(graphs["read"](some))
        key = next(name for name in found if name.endswith(LOGITS))
        logits_RV, end_R = found.pop(key), found.pop("end")
        yield Block(graphs["step"], key.removesuffix(LOGITS), int(end_R[0]), logits_RV, found, example_R)


@dataclass
class Texts:
    """What was written for the examples of a call."""

    ids: dict[int, list[int]] = field(default_factory=dict)
    score: dict[int, float] = field(default_factory=dict)
    gap: dict[int, float] = field(default_factory=dict)

    def put(self, example: int, ids: list[int], score: float, gap: float) -> None:
        """One finished text: ids (with the one that ends it, where it came to that), mean log-probability, nearest other choice."""
        self.ids[example], self.score[example], self.gap[example] = ids, score, gap

    def arrays(self, output: str, end: int) -> dict[str, np.ndarray]:
        """`<output>.ids` (B, T) int64 filled up with `end`, `<output>.score` and `<output>.gap` (B,)."""
        rows, width = len(self.ids), max(map(len, self.ids.values()), default=1)
        ids_BT = np.full((rows, max(1, width)), end, np.int64)
        for i, ids in self.ids.items():
            ids_BT[i, : len(ids)] = ids
        each = lambda found: np.array([found[i] for i in range(rows)], np.float64)  # noqa: E731
        return {f"{output}.ids": ids_BT, f"{output}.score": each(self.score), f"{output}.gap": each(self.gap)}


def log_total(logits_RV: np.ndarray) -> np.ndarray:
    """log Σ exp of each row, in the precision of the logits but for the sum."""
    top_R1 = logits_RV.max(axis=1, keepdims=True)
    total_R = np.exp(logits_RV - top_R1).sum(axis=1, dtype=np.float64)
    return np.asarray(np.log(total_R) + top_R1[:, 0])


def top(logits_RV: np.ndarray, count: int) -> np.ndarray:
    """Ids (R, count) of the largest logits of each row, in no order.

    They lie in the `count` runs of `RUN` ids with the largest maxima, so that little is sorted: 5 times faster at 6,000 ids.
    """
    rows, width = logits_RV.shape
    runs = width // RUN
    if runs <= 2 * count:
        return np.argpartition(logits_RV, width - count, axis=1)[:, width - count :]
    whole_RNK = logits_RV[:, : runs * RUN].reshape(rows, runs, RUN)
    run_RC = np.sort(np.argpartition(whole_RNK.max(axis=2), runs - count, axis=1)[:, runs - count :], axis=1)
    near = np.take_along_axis(whole_RNK, run_RC[:, :, None], 1).reshape(rows, -1)
    ids = (run_RC[:, :, None] * RUN + np.arange(RUN)).reshape(rows, -1)
    rest = np.arange(runs * RUN, width)
    near, ids = np.concatenate([near, logits_RV[:, rest]], 1), np.concatenate([ids, np.broadcast_to(rest, (rows, len(rest)))], 1)
    at = np.argpartition(near, near.shape[1] - count, axis=1)[:, near.shape[1] - count :]
    return np.take_along_axis(ids, at, 1)
