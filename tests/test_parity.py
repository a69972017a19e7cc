"""The trained model, its ONNX export and the server answer alike: every family on small data (benchmarks/parity.py, small).

The comparison itself is checked too: with a weight moved by 1 % it must say so.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelyard.data.source import DataConfig
from modelyard.runtime.answers import Answers, compare
from modelyard.runtime.model import Model, answers_from_json
from modelyard.verbs.export import export
from modelyard.verbs.serve import serve
from modelyard.verbs.train import Config, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

ROWS = 160


def table(random: np.random.Generator) -> dict[str, Any]:
    """Numbers with gaps and categories of any script."""
    a = random.normal(size=ROWS)
    gaps = [None if i % 13 == 0 else float(v) for i, v in enumerate(a)]
    return {"a": gaps, "b": random.uniform(-1e6, 1e6, ROWS), "c": random.choice(["红", "blue", "ß"], ROWS)}


def texts(random: np.random.Generator) -> dict[str, Any]:
    """Words, Chinese, emoji, and one empty text."""
    words = np.array(["rice", "soup", "train", "££", "好吃", "不好", "🚂", "ticket"])
    return {"text": ["", *(" ".join(random.choice(words, random.integers(1, 9))) for _ in range(ROWS - 1))]}


def images(random: np.random.Generator) -> dict[str, Any]:
    """PNG files in memory."""
    from PIL import Image

    found = []
    for pixels in random.integers(0, 255, (ROWS, 12, 12), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return {"image": found}


LABELS = np.array(["no", "yes", "maybe"])
TARGETS: dict[str, Any] = {
    "label": lambda r: LABELS[r.integers(0, 3, ROWS)].tolist(),
    "number": lambda r: r.normal(size=ROWS) * 1e5 + 1e6,
    "labels": lambda r: [LABELS[r.random(3) < 0.5].tolist() for _ in range(ROWS)],
}
CASES = [
    *((table, t, m) for m in ("trees", "linear", "mlp", "forest", "neighbours") for t in TARGETS),
    *((table, "label", m) for m in ("tabm", "ft-transformer")),
    (table, None, "k-means"),
    *((texts, "label", m) for m in ("linear", "bag", "text-cnn", "transformer")),
    (texts, "labels", "linear"),
    *((images, "label", m) for m in ("cnn", "inverted", "light", "resnet", "shuffle")),
]


def served(model: Model, exports: str, rows: list[dict[str, Any]], like: Answers) -> Answers:
    """Answers over HTTP."""
    output = model.signature.outputs[0].name
    with serve(exports) as server:
        body = json.dumps({"instances": rows}).encode("utf-8")
        ask = urllib.request.Request(f"{server.url}/v1/models/{model.name}:predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(ask, timeout=60) as answer:
            found = json.load(answer)["predictions"]
    return answers_from_json([a if isinstance(a, dict) and output in a else {output: a} for a in found], like)


@pytest.mark.parametrize(("maker", "target", "name"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_three_ways_to_one_answer(maker: Any, target: str | None, name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    frame = pl.DataFrame({k: pl.Series(k, v) for k, v in maker(random).items()} | ({"y": pl.Series(TARGETS[target](random))} if target else {}))
    inputs: Any = {"text": "text"} if maker is texts else None
    result = train(DataConfig(path=frame[:120], target="y" if target else None, inputs=inputs), None, name, Config(epochs=1, smoke=False), base=tmp_path)
    model, exports = Model.load(result.model), export(result.model).folder
    onnx, rows = Model.load(exports), frame.drop("y", strict=False)  # 40 of the rows are new to the model
    first, second = model.predict(rows), onnx.predict(rows)
    if maker is images:
        sent = [{"image": base64.b64encode(v).decode("ascii")} for v in rows["image"]]
    else:
        sent = rows.to_dicts()
    third = served(model, exports, sent, second)
    for other in (second, third):
        found = compare(first, other, model.pipeline.scales())
        assert found.ok and found.rows == ROWS and found.max_difference <= 1e-5, (model.backend, found.to_json())


def test_the_comparison_sees_a_weight_that_moved(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    frame = pl.DataFrame({**{k: pl.Series(k, v) for k, v in table(random).items()}, "y": TARGETS["number"](random)})
    model = Model.load(train(DataConfig(path=frame, target="y"), None, "linear", Config(), base=tmp_path).model)
    rows = frame.drop("y")
    before, main = model.predict(rows), model.graphs["main"]
    model.graphs["main"] = lambda inputs: {k: v * np.float32(1.01) for k, v in main(inputs).items()}
    assert not compare(before, model.predict(rows), model.pipeline.scales()).ok
