"""What metrics of written texts share: words, sums over examples, and sacreBLEU where it is installed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelyard.metrics._contract import Sums, Undefined, check_rows, weights_or_ones

INSTALL = "sacreBLEU is not installed: pip install sacrebleu"

ALONE = r"\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Han, Hiragana and Katakana: each is a word, since no blanks stand between words."""
WORD = re.compile(rf"[{ALONE}]|[^\W_{ALONE}]+")
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af]")
KANA = re.compile(r"[\u3040-\u30ff]")


def words(text: str | None) -> list[str]:
    """Lower-case runs of letters and digits; each Chinese or Japanese character is one."""
    return WORD.findall((text or "").lower())


def texts(values: np.ndarray) -> list[str]:
    """Texts with missing ones empty."""
    return [v or "" for v in values]


def mean_sums(value_B: np.ndarray, weights: np.ndarray | None) -> Sums:
    """A mean over examples as sums, for the bootstrap."""
    weight_B = weights_or_ones(weights, len(value_B))
    return Sums(np.stack([weight_B * value_B, weight_B], 1), lambda sums_RS: sums_RS[:, 0] / sums_RS[:, 1])


def tokeniser(truth: Sequence[str]) -> str:
    """sacreBLEU's tokeniser for the language of the truths: `zh` for Chinese, `char` for Japanese, else `13a`.

    By characters: a fifth of Han is Chinese, unless one in twenty is Kana.
    """
    some = "".join(truth[:2000])
    size = max(1, len(some) - some.count(" "))
    if len(KANA.findall(some)) > 0.05 * size:
        return "char"
    return "zh" if len(HAN.findall(some)) > 0.2 * size else "13a"


def scorer(name: str, truth: Sequence[str]) -> Any:
    """sacreBLEU's `BLEU` or `CHRF` with its defaults. Raises `Undefined` with the install line where it is absent."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ModuleNotFoundError:
        raise Undefined(INSTALL) from None
    return BLEU(tokenize=tokeniser(truth)) if name == "bleu" else CHRF()


def statistics(name: str, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """sacreBLEU's counts of each example (B, S): what its corpus score is made of by adding up."""
    check_rows(truth, prediction, None)
    expected, found = texts(truth), texts(prediction)
    return np.array(scorer(name, expected)._extract_corpus_statistics(found, [expected]), np.float64)


def signature(name: str, truth: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    """`{"signature": …}` of the score, as papers are to quote it (Post 2018)."""
    expected = texts(truth)
    used = scorer(name, expected)
    used.corpus_score(texts(prediction)[:1], [expected[:1]])  # the number of references is known after a score only
    return {"signature": used.get_signature().format()}
