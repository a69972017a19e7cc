"""Every planted fault of `faults.json` is caught when the altered folder is loaded.

A fault is what a careless hand or a wrong conversion does to a saved model: one entry or one array changed, and the manifest's
hashes made to fit. The unaltered copy, re-hashed in the same way, must load.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

import modelyard as my
from modelyard.data.source import DataConfig
from modelyard.errors import ArtefactError, ModelyardError, ParityError
from modelyard.kinds._missing import Missing
from modelyard.runtime.model import Model
from modelyard.store.atomic import sha256
from modelyard.verbs.train import Config, train

FAULTS = json.loads((Path(__file__).parent / "faults.json").read_text(encoding="utf-8"))
ROWS = 240

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def table(random: np.random.Generator) -> dict[str, Any]:
    """Numbers (one with gaps), a category and a date, and labels that depend on them."""
    size, width = random.normal(size=ROWS), random.normal(50, 9, ROWS)
    colour = random.choice(["red", "grün", "蓝"], ROWS, p=[0.5, 0.3, 0.2])
    day = np.datetime64("2021-03-01") + random.integers(0, 700, ROWS)
    value = size + (colour == "red") + (width - 50) / 9 + (day - day.min()).astype(int) / 350
    gaps = [None if i % 11 == 0 else float(v) for i, v in enumerate(size)]
    columns = {"size": gaps, "width": width, "colour": colour, "day": day.astype(str)}
    return {**columns, "value": value, "y": np.array(["low", "mid", "top"])[np.searchsorted([0.7, 1.9], value)]}


def texts(random: np.random.Generator) -> dict[str, Any]:
    """Sentences of 3 to 20 words in two scripts, with marks."""
    words = np.array(["Rice", "soup", "TRAIN", "££", "好吃", "不好", "ticket!", "late", "fresh", "cold"])
    found = [" ".join(random.choice(words, random.integers(3, 20))) for _ in range(ROWS)]
    return {"text": found, "y": ["bad" if "不好" in t or "late" in t else "good" for t in found]}


def images(random: np.random.Generator) -> dict[str, Any]:
    """Colour pictures, the label by which channel is brightest."""
    import io

    from PIL import Image

    found, labels = [], []
    for i in range(ROWS):
        pixels = random.integers(0, 160, (14, 14, 3), dtype=np.uint8)
        pixels[..., i % 3] += 90
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        found.append(buffer.getvalue())
        labels.append("rgb"[i % 3])
    return {"image": found, "y": labels}


def fit(folder: Path, columns: dict[str, Any], model: Any, target: str | None = "y", data: dict[str, Any] | None = None, **config: Any) -> Path:
    frame = pl.DataFrame(columns)
    settings = DataConfig(path=frame, target=target, **(data or {}))
    task = config.pop("task", None)
    return train(settings, task, model, Config(epochs=2, smoke=False, **config), base=folder).model


def models() -> dict[str, Callable[[Path, np.random.Generator], Path]]:
    """How each model of `faults.json` is made."""

    def regression(folder: Path, r: np.random.Generator) -> Path:
        columns = table(r)
        columns["y"] = columns.pop("value")
        return fit(folder, columns, {"name": "mlp", "numbers": "plain"}, data={"missing_values": Missing(method="mean")}, coverage=0.9)

    def labels(r: np.random.Generator) -> dict[str, Any]:
        return {k: v for k, v in table(r).items() if k != "value"}

    def threshold(folder: Path, r: np.random.Generator) -> Path:
        columns = labels(r)
        columns["y"] = ["top" if y == "top" else "other" for y in columns["y"]]
        model = fit(folder, columns, "trees")
        return Path(str(my.evaluate(model, data=pl.DataFrame(columns), target="y", threshold="f1", **{"data.split.valid": 0.3}).child))

    def sets(folder: Path, r: np.random.Generator) -> Path:
        columns = texts(r)
        columns["y"] = [[w for w, key in (("rice", "Rice"), ("cold", "cold"), ("ticket", "ticket")) if key in t] for t in columns["text"]]
        return fit(folder, columns, "linear")

    def composite(folder: Path, r: np.random.Generator) -> Path:
        return fit(folder, labels(r), {"parts": ["forest", "linear"], "combine": "weights", "weights": [3, 1]})

    return {
        "table": lambda f, r: fit(f, labels(r), "mlp", calibration="temperature"),
        "regression": regression,
        "trees": lambda f, r: fit(f, labels(r), "trees"),
        "threshold": threshold,
        "bag": lambda f, r: fit(f, texts(r), "linear"),
        "tokens": lambda f, r: fit(f, texts(r), "transformer", data={"inputs": {"text": {"encoding": "tokens", "max_length": 32}}}),
        "chars": lambda f, r: fit(f, texts(r), "text-cnn", data={"inputs": {"text": {"encoding": "chars"}}}),
        "image": lambda f, r: fit(f, images(r), "cnn"),
        "sets": sets,
        "composite": composite,
        "clusters": lambda f, r: fit(f, {k: v for k, v in labels(r).items() if k in ("size", "width")}, "k-means", None),
        "anomaly": lambda f, r: fit(f, {k: v for k, v in labels(r).items() if k in ("size", "width")}, "robust-z", None, task="anomaly-detection"),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    found: dict[str, Path] = {}
    makers = models()

    def get(name: str) -> Path:
        if name not in found:
            found[name] = makers[name](tmp_path_factory.mktemp(name), np.random.default_rng(5))
        return found[name]

    yield get


def steps(path: str) -> list[str | int]:
    """`pipeline.inputs[size].state.mean` as keys; names in brackets find the entry of a list by its name."""
    return [int(k) if re.fullmatch(r"-?\d+", k) else k for k in re.findall(r"[^.\[\]]+", path)]


def entry(body: Any, path: str) -> tuple[Any, str | int]:
    """(container, key) of a path in the manifest."""
    *way, last = steps(path)
    for key in way:
        body = body[next(i for i, e in enumerate(body) if e["name"] == key) if isinstance(body, list) and isinstance(key, str) else key]
    assert last in body if isinstance(body, dict) else True, f"{path} is not there"
    return body, last


def alter_value(old: Any, op: str, value: Any) -> Any:
    """The new value of one entry of the manifest."""
    if op == "set":
        return value
    if op == "add":
        return old + value
    if op == "multiply":
        return old * value
    if op == "reverse":
        return old[::-1]
    if op == "drop":
        return old[:-1]
    if op == "swap":
        i, j = value
        return [old[j] if k == i else old[i] if k == j else x for k, x in enumerate(old)]
    if op == "replace":
        assert value[0] in old
        return old.replace(*value)
    if op == "fill":
        return json.loads(json.dumps(old), parse_float=lambda x: float(x) + value)
    assert op == "unmerge"
    tokenizer = json.loads(old)
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][: len(tokenizer["model"]["merges"]) // 2]
    return json.dumps(tokenizer)


def alter_array(old: np.ndarray, op: str, value: Any) -> np.ndarray:
    """The new content of one tensor."""
    changed = {
        "multiply": lambda: old * np.asarray(value, old.dtype), "add": lambda: old + np.asarray(value, old.dtype), "reverse": lambda: old[::-1],
        "roll": lambda: np.roll(old, 1, 0), "invert": lambda: ~old, "flip": lambda: np.flip(old, value),
    }[op]()  # fmt: skip
    assert not np.array_equal(changed, old), "the fault changes nothing"
    return np.ascontiguousarray(changed.astype(old.dtype))


def plant(folder: Path, fault: dict[str, Any]) -> None:
    """Changes the folder as the fault says."""
    where, op, value = fault["where"], fault["op"], fault.get("value")
    if op == "swap-folders":
        first, second = sorted((folder / "parts").iterdir())
        first.rename(folder / "aside")
        second.rename(first)
        (folder / "aside").rename(second)
        return
    file, _, path = where.partition(":")
    if file != "manifest.json":
        arrays = load_file(folder / file)
        arrays[path] = alter_array(arrays[path], op, value)
        save_file(arrays, folder / file)
        return
    body = json.loads((folder / file).read_text(encoding="utf-8"))
    holder, key = entry(body, path)
    if op == "remove":
        del holder[key]
    else:
        new = alter_value(holder[key], op, value)
        assert new != holder[key], "the fault changes nothing"
        holder[key] = new
    (folder / file).write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")


def rehash(folder: Path) -> None:
    """Makes every manifest fit its files again, the inner ones first."""
    for manifest in sorted(folder.rglob("manifest.json"), key=lambda p: -len(p.parts)):
        body = json.loads(manifest.read_text(encoding="utf-8"))
        paths = [p for p in manifest.parent.rglob("*") if p.is_file() and p != manifest]
        body["files"] = {p.relative_to(manifest.parent).as_posix(): {"sha256": sha256(p), "size": p.stat().st_size} for p in paths}
        manifest.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


@pytest.mark.parametrize("fault", FAULTS, ids=[f["fault"].replace(" ", "-") for f in FAULTS])
def test_a_planted_fault_is_caught_at_load(made: Callable[[str], Path], fault: dict[str, Any], tmp_path: Path) -> None:
    folder = copied(made(fault["model"]), tmp_path / "model")
    plant(folder, fault)
    rehash(folder)
    with pytest.raises((ParityError, ArtefactError)) as caught:
        Model.load(folder)
    assert isinstance(caught.value, ModelyardError)


@pytest.mark.parametrize("name", sorted({f["model"] for f in FAULTS}))
def test_a_copy_without_a_fault_loads(made: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    folder = copied(made(name), tmp_path / "model")
    rehash(folder)
    model = Model.load(folder)
    assert model.parity is not None and model.parity.ok and model.parity.rows >= 20


def test_there_are_forty_faults_or_more() -> None:
    assert len({f["fault"] for f in FAULTS}) == len(FAULTS) >= 40
