"""Beam search: the best few beginnings go on side by side, and the text with the best score per length wins.

Sutskever et al. 2014; length penalty Σ log p / length^α of Wu et al. 2016 in the form of Murray & Chiang 2018. With one beam it is
`generate`, whose settings it takes too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelyard.errors import Problem, UsageError
from modelyard.runtime.answers import Graph, Param, Randomness
from modelyard.runtime.programs import generate
from modelyard.runtime.programs._writing import Block, Texts, blocks, log_total, top
from modelyard.runtime.sampling import PARAMS as DRAWN

PARAMS = (
    Param("beams", "int", 4, 1, 32, doc="beginnings that go on side by side; 1 takes (or draws) one token at a time"),
    Param("length_penalty", "float", 1.0, 0.0, 5.0, doc="a text's log-probability is divided by its length to this power; 0 favours short ones"),
    Param("early_stop", "bool", True, doc="stop as soon as so many texts have ended as there are beams; false: when no beginning can win any more"),
    *generate.PARAMS,
)


def run(graphs: Mapping[str, Graph], inputs: dict[str, np.ndarray], params: Mapping[str, Any], random: Randomness) -> dict[str, np.ndarray]:
    """`<output>.ids`, `<output>.score` (mean log-probability) and `<output>.gap` of every example."""
    if params["beams"] == 1:
        return generate.run(graphs, inputs, params, random)
    drawing = [p.name for p in DRAWN if params[p.name] != p.default]
    if drawing:
        reason = "beam search takes the most likely texts; write beams=1 to draw them"
        raise UsageError("wrong parameters: " + reason, [Problem(reason, f"params.{name}") for name in drawing])
    texts, block = Texts(), None
    for block in blocks(graphs, inputs, params["max_length"], params["beams"]):
        _Search(block, params).run(texts)
    assert block is not None
    return texts.arrays(block.output, block.end)


@dataclass
class _Ended:
    """Texts of one example that have ended: (score, order of ending, ids, mean log-probability)."""

    found: list[tuple[float, int, list[int], float]] = field(default_factory=list)

    def add(self, ids: list[int], total: float, penalty: float, most: int) -> None:
        """Keeps the best `most`; of equal ones the first to end."""
        self.found.append((total / len(ids) ** penalty, -len(self.found), ids, total / len(ids)))
        self.found = sorted(self.found, reverse=True)[:most]


class _Search:
    """One block of examples; rows of the block are `beams` beginnings for each example that is not done yet."""

    def __init__(self, block: Block, params: Mapping[str, Any]) -> None:
        self.block, self.beams, self.limit = block, int(params["beams"]), int(params["max_length"])
        self.penalty, self.early = float(params["length_penalty"]), bool(params["early_stop"])
        rows = len(block.example_R)
        self.live = block.example_R.copy()
        self.ended = {int(i): _Ended() for i in self.live}
        self.gap = {int(i): np.inf for i in self.live}
        block.keep(np.repeat(np.arange(rows), self.beams))
        self.total_EK = np.full((rows, self.beams), -np.inf)
        self.total_EK[:, 0] = 0.0  # all beams begin alike: only the first counts
        self.ids = np.zeros((rows, self.beams, 0), np.int64)

    def run(self, texts: Texts) -> None:
        """Search until every example is done."""
        for length in range(1, self.limit + 1):
            token_EK, parent_EK = self._choose(length)
            self.ids = np.concatenate([np.take_along_axis(self.ids, parent_EK[:, :, None], 1), token_EK[:, :, None]], 2)
            rest = np.array([not self._done(i, int(example), length) for i, example in enumerate(self.live)], bool)
            for i in np.flatnonzero(~rest | (length == self.limit)).tolist():
                self._finish(i, length, texts)
            if not rest.any() or length == self.limit:
                return
            rows = (np.flatnonzero(rest)[:, None] * self.beams + parent_EK[rest]).ravel()
            self.live, self.total_EK, self.ids, token_EK = self.live[rest], self.total_EK[rest], self.ids[rest], token_EK[rest]
            self.block.keep(rows, same=bool(rest.all()) and length > 1)  # the first step says which states change
            self.block.go(token_EK.ravel())

    def _choose(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(token, parent) (E, K) of the best beginnings that go on; those that end are put down."""
        beams, logits_RV = self.beams, self.block.logits_RV
        some = min(2 * beams + 1, logits_RV.shape[1])  # enough for `beams` to go on whatever ends, and one that just misses
        top_RC = top(logits_RV, some)
        logp_RC = np.take_along_axis(logits_RV, top_RC, 1) - log_total(logits_RV)[:, None]
        sums = self.total_EK[:, :, None] + logp_RC.reshape(len(self.live), beams, some)
        flat, ids = sums.reshape(len(self.live), -1), top_RC.reshape(len(self.live), -1)
        # by falling sum; of equal ones the first beam, the lowest id
        order = np.lexsort((ids, np.repeat(np.arange(beams), some)[None].repeat(len(flat), 0), -flat), axis=1)[:, : 2 * beams + 1]
        best, token = np.take_along_axis(flat, order, 1), np.take_along_axis(ids, order, 1)
        parent = order // some
        chosen = np.zeros((len(self.live), beams), np.int64)
        for i, example in enumerate(self.live.tolist()):
            ends = np.flatnonzero(token[i] == self.block.end)
            for c in ends[ends < beams].tolist():
                if np.isfinite(best[i, c]):
                    self.ended[example].add([*self.ids[i, parent[i, c]].tolist(), self.block.end], float(best[i, c]), self.penalty, beams)
            on = np.flatnonzero(token[i] != self.block.end)
            chosen[i] = on[:beams]
            self._near(example, best[i], beams, on)
        self.total_EK = np.take_along_axis(best, chosen, 1)
        return np.take_along_axis(token, chosen, 1), np.take_along_axis(parent, chosen, 1)

    def _near(self, example: int, best: np.ndarray, beams: int, on: np.ndarray) -> None:
        """Remembers the smallest distance between what was kept and what just missed, among ends and among those that go on."""
        pairs = [(best[beams - 1], best[beams])] if len(best) > beams else []
        pairs += [(best[on[beams - 1]], best[on[beams]])] if len(on) > beams else []
        near = [a - b for a, b in pairs if np.isfinite(b)]
        self.gap[example] = float(min([self.gap[example], *near]))

    def _done(self, i: int, example: int, length: int) -> bool:
        ended = self.ended[example].found
        if len(ended) < self.beams:
            return False
        best = float(self.total_EK[i].max())
        return self.early or best / self.limit**self.penalty <= ended[-1][0]

    def _finish(self, i: int, length: int, texts: Texts) -> None:
        """The best text of the example; where too few have ended, its beginnings count as they are."""
        example = int(self.live[i])
        ended = self.ended[example]
        if len(ended.found) < self.beams:
            for k in range(self.beams):
                if np.isfinite(self.total_EK[i, k]):
                    ended.add(self.ids[i, k].tolist(), float(self.total_EK[i, k]), self.penalty, self.beams)
        best = ended.found
        # scores are sums over lengths: their distance times the length is one of log-probabilities again
        last = (best[0][0] - best[1][0]) * len(best[0][2]) ** self.penalty if len(best) > 1 else np.inf
        texts.put(example, best[0][2], best[0][3], float(min(self.gap[example], last)))
