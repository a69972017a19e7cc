"""The same answers everywhere: the trained model, its ONNX export and the HTTP server, on whole test sets.

    python benchmarks/parity.py [words of a row's name …]       # all rows without words
    python benchmarks/parity.py --grpc                          # and the Open Inference Protocol over gRPC
    python benchmarks/parity.py --core VENV/bin/python          # the server runs there, for example in a core-only environment

Each row trains a model for a moment (parity is no matter of quality), exports it, and answers every test row three ways: with the
graphs of training (PyTorch, NumPy for estimators), with ONNX Runtime, and over HTTP (JSON there and back). Labels must be
equal, but for ties: two best scores within twice the tolerance. Scores, and numbers in deviations of the training target,
may differ by 1e-5 at most. Exit code 1 where a row of data is answered differently.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
from _record import SHARED, Clock, hardware, need_data, verdict

from modelyard.data.images import read_idx
from modelyard.data.source import DataConfig
from modelyard.runtime.answers import Answers, Parity, compare
from modelyard.runtime.model import Model, answers_from_json
from modelyard.verbs.export import export
from modelyard.verbs.serve import serve
from modelyard.verbs.train import Config, train

BODY = 500
"""Rows of one request; 500 images of MNIST are 0.6 MB."""


@dataclass
class Data:
    """Training rows, whole test set, and what the columns mean."""

    rows: pl.DataFrame
    test: pl.DataFrame
    config: dict[str, Any] = field(default_factory=dict)
    task: str | None = None


def _cut(frame: pl.DataFrame, learn: int, **config: Any) -> Data:
    """A seeded order; the first `learn` rows train, all others are the test set."""
    order = np.random.default_rng(0).permutation(frame.height)
    return Data(frame[order[:learn]], frame[order[learn:]], config)


def telco() -> Data:
    """Numbers and categories, a label."""
    frame = pl.read_csv(SHARED / "tabular/telco_churn/Telco-Customer-Churn.csv.gz", infer_schema_length=None)
    return _cut(frame, 2000, target="Churn", ignore=["customerID"])


def housing() -> Data:
    """A number."""
    return _cut(pl.read_csv(SHARED / "tabular/california_housing/housing.csv.gz"), 4000, target="median_house_value")


def wholesale() -> Data:
    """No target."""
    frame = pl.read_csv(SHARED / "clustering/wholesale_customers/wholesale.csv")
    return Data(frame, frame, {"ignore": [c for c in frame.columns if c.lstrip("\ufeff") in ("Channel", "Region")]}, "clustering")


def sms() -> Data:
    """English texts."""
    frame = pl.read_csv(SHARED / "text_classification/sms_spam/smsspamcollection.tsv.gz", separator="\t", quote_char=None)
    return _cut(frame.select(text="message", label="label"), 1000, target="label", inputs={"text": "text"})


def waimai() -> Data:
    """Chinese texts."""
    frame = pl.read_csv(SHARED / "text_classification/waimai_10k_zh/waimai_10k.csv.gz")
    return _cut(frame.select(text="review", label=pl.col("label").cast(pl.String)), 1500, target="label", inputs={"text": "text"})


def nlupp() -> Data:
    """Sets of labels."""
    found = [r for i in range(20) for r in json.loads((SHARED / f"multilabel/nlupp_banking/fold{i}.json").read_text(encoding="utf-8"))]
    frame = pl.DataFrame({"text": [r["text"] for r in found], "intents": [r.get("intents", []) for r in found]})
    return _cut(frame, 1000, target="intents", inputs={"text": "text"})


def mnist() -> Data:
    """Images; 1,500 to learn from, the official 10,000 to answer."""
    folder = SHARED / "image_classification/mnist"
    x, y, x_test, y_test = (
        read_idx(folder / f"{n}.gz") for n in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    )
    frame = lambda images, labels: pl.DataFrame({"image": pl.Series(images), "label": [str(v) for v in labels]})  # noqa: E731
    return Data(frame(x[:1500], y[:1500]), frame(x_test, y_test), {"target": "label"})


ROWS: dict[str, tuple[Callable[[], Data], Any]] = {
    **{f"classification · numbers and categories · {m} · telco": (telco, m) for m in ("trees", "linear", "mlp")},
    **{f"regression · numbers and categories · {m} · housing": (housing, m) for m in ("trees", "linear", "mlp")},
    "clustering · numbers · k-means · wholesale": (wholesale, "k-means"),
    **{f"classification · text · {m} · sms": (sms, m) for m in ("linear", "bag", "text-cnn", "transformer")},
    **{f"classification · Chinese text · {m} · waimai": (waimai, m) for m in ("linear", "text-cnn")},
    **{f"label set · text · {m} · nlupp": (nlupp, m) for m in ("linear", "bag")},
    **{f"classification · image · {m} · mnist": (mnist, m) for m in ("cnn", "inverted", "light", "resnet", "shuffle")},
}


def rows_of(model: Model, frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Test rows as JSON values."""
    columns = {c.name: c.rules.to_json(c.rules.check(frame[c.name])[0]) for c in model.pipeline.inputs}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@contextmanager
def served(python: str, model: Path) -> Iterator[str]:
    """Address of a server process."""
    command = [python, "-m", "modelyard", "serve", str(model), "serve.port=0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **_path(python)}) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def _path(python: str) -> dict[str, str]:
    return {} if python == sys.executable else {"PYTHONPATH": ""}  # the other environment has its own


def over_http(python: str, folder: Path, model: Model, rows: list[dict[str, Any]], like: Answers) -> Answers:
    """Answers of a server to all rows."""
    found: list[dict[str, Any]] = []
    outputs = [f.name for f in model.signature.outputs]
    with served(python, folder) as url:
        for start in range(0, len(rows), BODY):
            body = json.dumps({"instances": rows[start : start + BODY]}).encode("utf-8")
            ask = urllib.request.Request(f"{url}/v1/models/{quote(model.name)}:predict", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(ask, timeout=120) as answer:
                found += json.load(answer)["predictions"]
    plain = [a if isinstance(a, dict) and (outputs[0] in a or "error" in a) else {outputs[0]: a} for a in found]
    return answers_from_json(plain, like)


def parity(data: Data, model: Any, folder: Path, python: str, grpc: bool) -> dict[str, Parity]:
    """Train, export, answer, compare."""
    result = train(DataConfig(path=data.rows, **data.config), data.task, model, Config(epochs=1, smoke=False), base=folder)
    first = Model.load(result.model)
    exports = Path(export(result.model).folder)
    second = Model.load(exports)
    inputs = data.test.select(c.name for c in first.pipeline.inputs)
    ours, theirs = first.predict(inputs), second.predict(inputs)
    scales = first.pipeline.scales()
    http = over_http(python, exports, second, rows_of(second, inputs), theirs)
    found = {f"{first.backend} and ONNX": compare(ours, theirs, scales), f"{first.backend} and HTTP": compare(ours, http, scales)}
    if grpc:
        from _rpc import over_grpc

        with serve(exports, grpc=0) as server:
            assert server.rpc is not None
            over = over_grpc(server.rpc.address, server.service.name, second, rows_of(second, inputs), theirs, BODY)
        found[f"{first.backend} and gRPC"] = compare(ours, over, scales)
    return found


def main() -> int:
    """One line per row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*")
    parser.add_argument("--core", default=sys.executable, help="interpreter that serves")
    parser.add_argument("--grpc", action="store_true", help="ask over gRPC too, in this process (the extra 'grpc')")
    asked = parser.parse_args()
    need_data()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(hardware(), flush=True)
    ok = []
    for name, (load, model) in ROWS.items():
        if asked.words and not any(w in name for w in asked.words):
            continue
        with tempfile.TemporaryDirectory() as folder, Clock() as clock:
            found = parity(load(), model, Path(folder), asked.core, asked.grpc)
        whole = all(p.ok for p in found.values())
        line = "; ".join(f"{k}: {p.rows:,} rows, {len(p.differing)} differ, largest {p.max_difference:.1e}, {p.ties} ties" for k, p in found.items())
        ok.append(verdict(name, whole, f"{line} ({clock})"))
    return 0 if ok and all(ok) else 1


if __name__ == "__main__":
    sys.exit(main())
