"""Which token comes next: penalties, cuts and the draw, as functions of logits in NumPy.

Shared by every program and engine that writes, so that a text is the same wherever it is written. Axis letters: B texts, V ids.
Each setting is one number for all texts or one for each `(B,)`. Order: repetition, frequency and presence, temperature, top-k,
top-p, min-p (that of `transformers`); what is cut gets the logit -inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelyard.runtime.answers import Param

Setting = float | np.ndarray
"""One value for all texts, or `(B,)`."""

FEW = 1024
"""Most likely ids among which top-p is looked for before all are sorted: 30 times faster at 150,000 ids."""

PARAMS = (
    Param("temperature", "float", 0.0, 0.0, 5.0, doc="0 takes the most likely token each time; 1 draws as the model believes"),
    Param("top_k", "int", 0, 0, 1_000_000, doc="draw among so many most likely tokens; 0: among all"),
    Param("top_p", "float", 1.0, 0.0, 1.0, doc="draw among the fewest tokens whose probabilities reach this sum"),
    Param("min_p", "float", 0.0, 0.0, 1.0, doc="drop tokens less likely than this share of the most likely one"),
    Param("repetition", "float", 1.0, 0.1, 10.0, doc="above 1, tokens that were written already become less likely"),
)
"""Parameters of a call that draws tokens, with their caps."""


def adjust(
    logits_BV: np.ndarray,
    *,
    temperature: Setting = 1.0,
    top_k: int | np.ndarray = 0,
    top_p: Setting = 1.0,
    min_p: Setting = 0.0,
    repetition: Setting = 1.0,
    frequency: Setting = 0.0,
    presence: Setting = 0.0,
    seen: np.ndarray | None = None,
    prompt: np.ndarray | None = None,
) -> np.ndarray:
    """Logits `(B, V)` float64 that `choose` draws from; the given ones stay as they are.

    `seen` (B, V) counts how often each id was written; `prompt` (B, V) is true where an id was read, which `repetition` alone
    counts too. Sources: repetition of Keskar et al. 2019 (CTRL), frequency and presence as in OpenAI's interface
    (`logit - count · frequency - [count > 0] · presence`), top-k of Fan et al. 2018, top-p of Holtzman et al. 2020, min-p of
    Nguyen et al. 2024. Where the temperature is 0 nothing is cut: the most likely token is taken anyway.
    """
    out = np.array(logits_BV, np.float64)
    rows = len(out)
    each = lambda value: np.broadcast_to(np.asarray(value), (rows,))  # noqa: E731
    _penalise(out, each(repetition), each(frequency), each(presence), seen, prompt)
    heat_B = each(temperature).astype(np.float64)
    drawn_B = heat_B > 0
    out /= np.where(drawn_B, heat_B, 1.0)[:, None]
    k_B, p_B, least_B = each(top_k), each(top_p), each(min_p)
    for b in np.flatnonzero(drawn_B & ((k_B > 0) | (p_B < 1) | (least_B > 0))):
        _cut(out[b], int(k_B[b]), float(p_B[b]), float(least_B[b]))
    return out


def choose(logits_BV: np.ndarray, temperature: Setting, generators: Sequence[np.random.Generator | None]) -> np.ndarray:
    """The next id of each text `(B,)` int64, from what `adjust` gave.

    At temperature 0 the largest logit wins, the lowest id among equals; else one number of the text's own generator picks by the
    cumulated probabilities in the order of ids, so that a text draws the same alone and in any batch.
    """
    heat_B = np.broadcast_to(np.asarray(temperature), (len(logits_BV),))
    ids_B = np.argmax(logits_BV, axis=1).astype(np.int64)
    for b in np.flatnonzero(heat_B > 0).tolist():
        generator = generators[b]
        if generator is None:
            raise ValueError(f"text {b} is to be drawn at temperature {heat_B[b]} and has no generator")
        ids_B[b] = _draw(logits_BV[b], generator.random())
    return ids_B


def log_softmax(logits_BV: np.ndarray) -> np.ndarray:
    """Log-probabilities `(B, V)` float64."""
    shifted = np.asarray(logits_BV, np.float64) - np.max(logits_BV, axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _penalise(
    out_BV: np.ndarray, repetition_B: np.ndarray, frequency_B: np.ndarray, presence_B: np.ndarray, seen: np.ndarray | None,
    prompt: np.ndarray | None,
) -> None:  # fmt: skip
    for b in np.flatnonzero((repetition_B != 1) | (frequency_B != 0) | (presence_B != 0)):
        row = out_BV[b]
        written = np.flatnonzero(seen[b]) if seen is not None else np.zeros(0, np.int64)
        if repetition_B[b] != 1:
            known = written if prompt is None else np.union1d(written, np.flatnonzero(prompt[b]))
            row[known] = np.where(row[known] < 0, row[known] * repetition_B[b], row[known] / repetition_B[b])
        if seen is not None:
            row[written] -= seen[b][written] * frequency_B[b] + presence_B[b]


def _cut(row_V: np.ndarray, top_k: int, top_p: float, min_p: float) -> None:
    """Puts -inf where a token may not be drawn; the most likely one always stays."""
    if 0 < top_k < len(row_V):
        edge = np.partition(row_V, -top_k)[-top_k]
        row_V[row_V < edge] = -np.inf  # tokens equal to the last one stay with it
    if top_p < 1:
        kept = _nucleus(row_V, top_p)
        cut = np.full_like(row_V, -np.inf)
        cut[kept] = row_V[kept]
        row_V[:] = cut
    if min_p > 0:
        row_V[row_V < row_V.max() + np.log(min_p)] = -np.inf


def _nucleus(row_V: np.ndarray, top_p: float) -> np.ndarray:
    """Ids of the fewest tokens whose probabilities sum to at least `top_p`, the lowest id first among equals."""
    weight_V = np.exp(row_V - row_V.max())
    wanted = top_p * weight_V.sum()
    if len(row_V) > FEW:
        edge = np.partition(weight_V, -FEW)[-FEW]
        order = np.flatnonzero(weight_V > edge)  # without those equal to the edge, of which only some would be here
        order = order[np.argsort(-weight_V[order], kind="stable")]
        total = np.cumsum(weight_V[order])
        if len(total) and total[-1] >= wanted:
            return np.asarray(order[: int(np.searchsorted(total, wanted)) + 1])
    order = np.argsort(-weight_V, kind="stable")
    return np.asarray(order[: int(np.searchsorted(np.cumsum(weight_V[order]), wanted)) + 1])


def _draw(row_V: np.ndarray, uniform: float) -> int:
    """The id at `uniform` of the cumulated probabilities; never one that was cut."""
    possible = np.flatnonzero(row_V > -np.inf)
    total = np.cumsum(np.exp(row_V[possible] - row_V[possible].max()))
    at = int(np.searchsorted(total, uniform * total[-1], side="right"))
    return int(possible[min(at, len(possible) - 1)])
