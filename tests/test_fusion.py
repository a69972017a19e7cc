"""Four kinds of input and two outputs in one model: every input counts for what depends on it (benchmarks/fusion.py, small)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard as my

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


# -- shared and separate layers of several outputs --------------------------------------------------------------------------


def two_tasks(n: int = 2000) -> dict[str, Any]:
    """Two outputs of the same numbers: a label and a number, each bent in its own way."""
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 6))
    label = np.where(x[:, 0] * x[:, 1] + 0.3 * x[:, 2] > 0, "yes", "no")
    return {**{f"x{i}": x[:, i] for i in range(6)}, "label": label, "amount": np.abs(x[:, 3]) - x[:, 4] + random.normal(size=n) * 0.1}


def test_outputs_have_hidden_layers_of_their_own_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame(two_tasks())
    data = {"path": frame, "outputs": {"label": "category", "amount": "number"}}
    model = {"name": "mlp", "hidden": [32], "fusion": {"own": [16]}}
    done = my.train(data=data, model=model, train={"epochs": 40, "batch": 64, "output_weights": {"amount": 0.5}})
    network = torch_network(done.model)
    assert [tuple(p.shape) for n, p in network.named_parameters() if n.startswith("heads.label")] == [(16, 32), (16,), (2, 16), (2,)]
    assert done.metrics["test"]["label"]["accuracy"]["value"] > 0.8 and done.metrics["test"]["amount"]["r2"]["value"] > 0.7
    # an output without weight is not learnt, though all it could use is shared
    ignored = my.train(data=data, model=model, train={"epochs": 40, "batch": 64, "output_weights": {"amount": 0.0}})
    assert ignored.metrics["test"]["label"]["accuracy"]["value"] > 0.8 and ignored.metrics["test"]["amount"]["r2"]["value"] < 0.3


def torch_network(folder: Path) -> Any:
    from modelyard.runtime.backends.torch import rebuild
    from modelyard.runtime.model import Model

    model = Model.load(folder)
    return rebuild(folder, model.manifest, model.pipeline)


def test_wrong_settings_of_fusion_and_weights_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelyard.errors import ConfigError

    monkeypatch.chdir(tmp_path)
    data = {"path": pl.DataFrame(two_tasks(100)), "outputs": {"label": "category", "amount": "number"}}
    with pytest.raises(ConfigError) as error:
        my.train(data=data, model={"name": "mlp", "fusion": {"own": [0], "depth": 3}})
    assert {d.where for d in error.value.details} == {"model.fusion.own", "model.fusion.depth"}
    with pytest.raises(ConfigError, match="expected label, amount"):
        my.train(data=data, model="mlp", train={"output_weights": {"lable": 1.0}})
