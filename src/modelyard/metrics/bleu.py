"""BLEU of written texts against the true ones, 0 … 100, by sacreBLEU (Papineni et al. 2002; Post 2018), case-sensitive.

Corpus BLEU: precisions of 1- to 4-grams, each over all examples, and the penalty for being too short. The tokeniser is `13a`, `zh` for
Chinese and `char` for Japanese truths; the signature stands beside the value.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from modelyard.metrics._contract import Metric, Sums, weights_or_ones
from modelyard.metrics._texts import signature, statistics

ORDER = 4


def compute(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> float:
    """`truth` and `prediction` are texts (B,)."""
    return sums(truth, prediction, weights=weights).value("no text has a word")


def sums(truth: np.ndarray, prediction: np.ndarray, *, weights: np.ndarray | None = None, **_: Any) -> Sums:
    """Lengths and n-gram counts of each example."""
    rows_BS = statistics("bleu", truth, prediction) * weights_or_ones(weights, len(truth))[:, None]
    return Sums(rows_BS, _bleu)


def _bleu(sums_RS: np.ndarray) -> np.ndarray:
    """Of (length written, length true, matches of 1 … 4-grams, n-grams written); an order without a match counts as 1/2, 1/4 … of one
    (sacreBLEU's smoothing `exp`)."""
    own_R, true_R = sums_RS[:, 0], sums_RS[:, 1]
    hits_RN, all_RN = sums_RS[:, 2 : 2 + ORDER], sums_RS[:, 2 + ORDER :]
    none_RN = (hits_RN == 0) & (all_RN > 0)
    smooth_RN = 0.5 ** np.cumsum(none_RN, axis=1)
    precision_RN = np.where(none_RN, smooth_RN, hits_RN) / all_RN
    log_R = np.where(all_RN > 0, np.log(np.where(all_RN > 0, precision_RN, 1.0)), -np.inf).mean(axis=1)
    brevity_R = np.where(own_R < true_R, np.exp(1 - true_R / own_R), 1.0)
    found_R = 100 * brevity_R * np.exp(log_R)
    return np.where((own_R > 0) & hits_RN.any(axis=1), found_R, np.where(true_R > 0, 0.0, np.nan))


METRIC = Metric(
    "bleu", "higher", "labels", ("text",), compute, sums=sums, bounds=(0.0, 100.0), about=partial(signature, "bleu")
)
