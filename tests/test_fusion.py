"""Four kinds of input and two outputs in one model: every input counts for what depends on it (benchmarks/fusion.py, small)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def fusion() -> Any:
    """The benchmark as a module; its data sets lie beside the repository or where MODELYARD_SHARED says."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        module = importlib.import_module("fusion")
    finally:
        sys.path.remove(str(BENCHMARKS))
    if not module.SHARED.is_dir():
        pytest.skip(f"the data sets are not at {module.SHARED}; set MODELYARD_SHARED")
    return module


def test_shuffling_any_input_lowers_both_outputs(fusion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    digits, (_, _, messages, customers) = load_digits(), fusion.parts()
    small = (digits.images * 15).astype(np.uint8), digits.target, messages, customers  # 8 × 8 pixels: seconds, not minutes
    monkeypatch.setattr(fusion, "parts", lambda: small)
    learn, test = fusion.joined(1000, 1000)
    weights_RN = fusion.resamples(test.height, 200)
    model = fusion.fitted(learn, list(fusion.GROUPS), tmp_path, 8)
    whole = fusion.judged(model, test, weights_RN)
    falls = {}
    for group in fusion.GROUPS:
        broken = fusion.judged(model, fusion.shuffled(test, group), weights_RN)
        falls |= {(group, output): fusion.spread(values - broken[output]) for output, values in whole.items()}
    assert not {k: v for k, v in falls.items() if v[1] <= 0}, falls
    assert whole["case"][0] > 0.3, "eight balanced classes: chance is 0.125"


def test_joined_rows_share_no_source_between_training_and_test(fusion: Any) -> None:
    learn, test = fusion.joined(200, 200)
    assert len(set(learn["message"]) & set(test["message"])) < 5  # the collection itself repeats messages
    pixels = [{bytes(v) for v in frame["image"].to_numpy()} for frame in (learn, test)]
    assert not pixels[0] & pixels[1]
