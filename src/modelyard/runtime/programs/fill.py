"""Asks a masked language model about the hidden tokens of each text: those that the text hides, or a share that the call hides itself.

With `mask` above 0 that share of the tokens (special ones never, one at least) is hidden first, drawn for each example by its own counter,
and the probability of what stood there is answered too: pseudo-log-likelihoods as Salazar et al. 2020 (arXiv 1910.14659) define them, on a
sample of the places instead of one pass for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelyard.errors import ArtefactError
from modelyard.runtime.answers import Graph, Randomness

NUMBERS = 2**25
"""Logits of one call of the graph at most (128 MB): 30,000 tokens at 1,000 places."""


def facts(pipeline: Any) -> dict[str, Any]:
    """Names of the text and of the output, the ids of the mask and of all special tokens, the number of tokens."""
    output = pipeline.outputs[0]
    column = next(c for c in pipeline.inputs if c.name == output.of)
    special = getattr(column.state, "special", {})
    if "mask_token" not in special:
        raise ArtefactError(f"the tokenizer of {column.name} has no mask token; choose a base that was trained with one, or train one here")
    known = {"text": column.name, "output": output.name, "mask": special["mask_token"], "special": sorted(special.values())}
    return {**known, "vocabulary": column.state.size}


def run(
    graphs: Mapping[str, Graph], inputs: dict[str, np.ndarray], params: Mapping[str, Any], random: Randomness, facts: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """`ids` and `scores` (B, M, top) of the likeliest tokens at the M `places`, of which `count` (B,) are real."""
    text = facts["text"]
    tokens_BL, length_B = inputs[f"{text}.tokens"], inputs[f"{text}.length"]
    real_BL = np.arange(tokens_BL.shape[1]) < length_B[:, None]
    if params["mask"] > 0:
        hidden_BL = hide(tokens_BL, real_BL, params["mask"], facts["special"], random)
    else:
        hidden_BL = (tokens_BL == facts["mask"]) & real_BL
    places_BM, count_B = positions(hidden_BL)
    asked = np.where(hidden_BL, np.asarray(facts["mask"], tokens_BL.dtype), tokens_BL)
    fed = {**inputs, f"{text}.tokens": asked, f"{text}.places": places_BM}
    truth_BM = np.take_along_axis(tokens_BL, places_BM, 1).astype(np.int64)
    step = max(1, NUMBERS // (places_BM.shape[1] * facts["vocabulary"]))
    blocks = []
    for low in range(0, len(tokens_BL), step):
        part = {name: array[low : low + step] for name, array in fed.items()}
        blocks.append(_best(graphs["main"](part)[f"{facts['output']}.logits"], params["top"], truth_BM[low : low + step]))
    found = {k: np.concatenate([b[k] for b in blocks]) for k in blocks[0]} | {"places": places_BM, "count": count_B}
    found |= {"truth": truth_BM} if params["mask"] > 0 else {}
    if params["mask"] == 0:
        del found["chance"]
    return {f"{facts['output']}.{k}": v for k, v in found.items()}


def hide(tokens_BL: np.ndarray, real_BL: np.ndarray, share: float, special: list[int], random: Randomness) -> np.ndarray:
    """(B, L) which tokens are hidden: of each example a share, one at least; special ones never."""
    free_BL = real_BL & ~np.isin(tokens_BL, special)
    out = np.zeros(tokens_BL.shape, bool)
    for i, free_L in enumerate(free_BL):
        at = np.flatnonzero(free_L)
        if len(at):
            chosen = random.generator(i).permutation(len(at))[: max(1, round(share * len(at)))]
            out[i, at[chosen]] = True
    return out


def positions(hidden_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places (B, M) of the hidden tokens in order, zeros behind them, their number (B,)); M is at least 1."""
    count_B = hidden_BL.sum(1)
    order_BL = np.argsort(~hidden_BL, axis=1, kind="stable")[:, : max(1, int(count_B.max(initial=0)))]
    return np.where(np.arange(order_BL.shape[1]) < count_B[:, None], order_BL, 0).astype(np.int64), count_B.astype(np.int64)


def _best(logits_BMV: np.ndarray, top: int, truth_BM: np.ndarray) -> dict[str, np.ndarray]:
    """The likeliest tokens with their probabilities, and the logarithm of the truth's."""
    top = min(top, logits_BMV.shape[2])
    shifted = logits_BMV - logits_BMV.max(2, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(2, keepdims=True))
    some = np.argpartition(-logs, top - 1, axis=2)[:, :, :top]
    values = np.take_along_axis(logs, some, 2)
    order = np.argsort(-values, axis=2, kind="stable")
    ids, scores = np.take_along_axis(some, order, 2), np.exp(np.take_along_axis(values, order, 2))
    chance = np.take_along_axis(logs, truth_BM[:, :, None], 2)[:, :, 0]
    return {"ids": ids.astype(np.int64), "scores": scores.astype(np.float64), "chance": chance.astype(np.float64)}
