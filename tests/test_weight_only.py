"""Weights in 8 and 4 bits: values against GGUF's own code and the slow formula, a folder that is smaller, says what it holds and is served."""

from __future__ import annotations

import contextlib
import functools
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelyard
from modelyard.errors import ArtefactError, Unsupported
from modelyard.runtime.answers import compare
from modelyard.runtime.model import Model

torch = pytest.importorskip("torch", reason="nets need the extra 'train'")

from modelyard.nets import _packed, _quantised  # noqa: E402
from modelyard.verbs.compress import weight_only  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen"]


@pytest.mark.parametrize(("form", "theirs"), [("int8", "Q8_0"), ("int4", "Q4_0")])
def test_blocks_are_those_of_gguf(form: str, theirs: str) -> None:
    """Bit for bit, with an empty block, a constant one and a value that stands alone."""
    quants = pytest.importorskip("gguf.quants", reason="the reference")
    draw = np.random.default_rng(0)
    matrix = (draw.normal(size=(7, 96)) * draw.lognormal(size=(7, 1))).astype(np.float32)
    matrix[1, :32], matrix[2, :32], matrix[3, 5] = 0, 0.25, 90
    kind = getattr(quants.GGMLQuantizationType, theirs)
    expected = quants.dequantize(quants.quantize(matrix, kind), kind)
    parts = _packed.pack(matrix, form)
    assert np.array_equal(_packed.unpack(parts, form, matrix.shape), expected)
    assert sum(a.nbytes for a in parts.values()) * 8 / matrix.size == _packed.BITS[form]


def test_nf4_is_the_quantile_table_times_the_largest_of_a_block() -> None:
    """Dettmers et al. 2023, appendix E: the table from the normal quantiles (its offset as in bitsandbytes), values by a slow loop."""
    stats = pytest.importorskip("scipy.stats")
    offset = 0.9677083
    positive = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    table = np.sort(np.concatenate([positive, [0.0], negative]) / positive.max())
    assert np.allclose(table, _quantised.NF4, atol=1e-6)
    matrix = np.random.default_rng(1).normal(size=(5, 130)).astype(np.float32)
    found = _packed.unpack(_packed.pack(matrix, "nf4"), "nf4", matrix.shape)
    flat, said = matrix.ravel(), found.ravel()
    for start in range(0, flat.size, 64):
        block = flat[start : start + 64]
        nearest = np.array([table[np.abs(table - v / np.abs(block).max()).argmin()] for v in block]) * np.abs(block).max()
        # the scale itself is kept in 8 bits: at most half a step of the spread of the scales
        assert np.abs(said[start : start + 64] - nearest).max() < 0.35 * np.abs(block).max() / 2
        assert (np.isclose(said[start : start + 64], nearest, rtol=0.03, atol=0.01)).mean() > 0.9


def test_rows_that_are_no_whole_blocks_and_arrays_that_do_not_fit() -> None:
    matrix = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    for form, worst in (("int8", 1 / 127), ("int4", 1 / 8)):
        parts = _packed.pack(matrix, form)
        found = _packed.unpack(parts, form, (3, 50))
        assert found.shape == matrix.shape and np.abs(found - matrix).max() <= 1.02 * worst * np.abs(matrix).max()
        with pytest.raises(ArtefactError, match="not those of"):
            _packed.unpack({k: v[:2] for k, v in parts.items()}, form, (3, 50))


def test_the_packed_product_is_the_product_with_the_unpacked_matrix() -> None:
    """Through ONNX Runtime's MatMulNBits, for one row and many, in float64 beside it."""
    draw = np.random.default_rng(0)
    matrix, x = draw.normal(size=(48, 80)).astype(np.float32), draw.normal(size=(2, 7, 80)).astype(np.float32)
    parts, bias = _packed.pack(matrix, "int4"), torch.from_numpy(draw.normal(size=48).astype(np.float32))
    layer = _packed.Packed(parts, matrix.shape, bias)
    expected = x.astype(np.float64) @ _packed.unpack(parts, "int4", matrix.shape).astype(np.float64).T + bias.numpy()
    with torch.inference_mode():
        assert np.abs(layer(torch.from_numpy(x)).numpy() - expected).max() < 2e-5 and layer.session is not None
        assert np.abs(layer(torch.from_numpy(x[:1, 0])).numpy() - expected[0, 0]).max() < 2e-5
    given = torch.from_numpy(x).requires_grad_(True)
    layer(given).sum().backward()
    assert given.grad is not None and np.allclose(given.grad[0, 0].numpy(), layer.weight.sum(0).numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model that counts on."""
    folder: Path = tmp_path_factory.mktemp("words")
    draw = np.random.default_rng(0)
    starts = draw.integers(0, len(WORDS) - 4, 200)
    lines = [{"prompt": f"{WORDS[s]} {WORDS[s + 1]} ", "completion": f"{WORDS[s + 2]} {WORDS[s + 3]}"} for s in starts]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines), encoding="utf-8")
    model = {"name": "causal", "width": 64, "layers": 2, "heads": 2, "context": 64, "tokenizer": "bytes", "vocabulary": 300}
    settings = {"train.epochs": 20, "train.lr": 5e-3, "train.seed": 1}
    with contextlib.chdir(folder):
        modelyard.train(data="rows.jsonl", task="text-generation", model=model, name="words", quiet=True, **settings)
    return folder


@functools.cache
def small(place: Path, form: str) -> Any:
    with contextlib.chdir(place):
        settings = {"compress.stages": [{"weight-only": {"form": form}}], "compress.favour": "size", "compress.max_loss": 0.2}
        return modelyard.compress("runs/words-0001", data="rows.jsonl", task="text-generation", quiet=True, **settings)


@pytest.mark.parametrize(("form", "less"), [("int8", 3.0), ("int4", 4.0), ("nf4", 4.0)])
def test_a_language_model_is_smaller_says_so_and_is_served(place: Path, form: str, less: float) -> None:
    found = small(place, form)
    assert [s["accepted"] for s in found.stages] == [None, True] and found.smaller > less, found
    before, after = found.stages[0]["value"], found.stages[1]["value"]
    assert before <= after * 1.05 and after < before * 1.2  # perplexity, in the report too
    report = (place / found.run / "report.html").read_text(encoding="utf-8")
    assert "weight-only" in report and form in report
    folder = place / found.model
    model = Model.load(folder)
    assert model.parity is not None and model.parity.ok and model.manifest["model"]["weights"]["form"] == form
    assert model.manifest["model"]["program"] == Model.load(place / "runs/words-0001/model").manifest["model"]["program"]
    assert (folder / "quantised.safetensors").is_file() and not (folder / "model.safetensors").exists()
    assert f"matrices in {form}" in (folder / "README.md").read_text(encoding="utf-8")
    with modelyard.serve(str(folder)) as server:
        body = json.dumps({"model": "words", "prompt": "three four ", "max_tokens": 16, "temperature": 0}).encode()
        asked = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as response:
            said = json.load(response)["choices"][0]["text"]
    assert said.strip() == "five six"


def test_others_find_no_weights_and_exports_make_them_whole(place: Path, tmp_path: Path) -> None:
    from modelyard.verbs.export import export

    folder = place / small(place, "int4").model
    made = export(folder, "safetensors", into=tmp_path / "whole")
    exported, packed = Model.load(made.folder), Model.load(folder)
    assert made.parity["rows"] > 0 and "weights" not in exported.manifest["model"]
    assert "quantised" not in (Path(made.folder) / "README.md").read_text(encoding="utf-8")
    same = compare(exported.predict(packed.examples), packed.predict(packed.examples), {})
    assert same.ok and same.ties == 0
    with pytest.raises(Unsupported, match="packed already"):
        weight_only.apply(None, packed, weight_only.Config(), tmp_path / "again")  # type: ignore[arg-type]
    damaged = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["model"]["weights"] | {"matrices": {"model.nothing.weight": "int4"}}
    with pytest.raises(ArtefactError, match="has not"):
        _packed.restore(torch.nn.Linear(2, 2), {}, damaged)
    transformers = pytest.importorskip("transformers", reason="a reader of the layout")
    with pytest.raises(OSError, match="safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made.folder)
    assert torch.equal(theirs.model.layers[0].mlp.up_proj.weight, _whole(packed, folder).model.layers[0].mlp.up_proj.weight)


def _whole(model: Model, folder: Path) -> Any:
    from modelyard.runtime.backends.torch import rebuild

    return _packed.whole(rebuild(folder, model.manifest, model.pipeline))
