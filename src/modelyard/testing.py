"""The conformance kit: what every kind, encoding, task, net, estimator and metric must hold, ours and outsiders'.

    from modelyard.testing import check_task
    def test_my_task(): check_task("package/name")

Each check raises `AssertionError` with a sentence. Checks use the thing's own toy data and small random values, and
compare with something independent: a row alone against the batch, merged halves against the whole, ONNX against torch.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard import registry
from modelyard.kinds._contract import Array, Encoding, Head, Kind, Part, Ragged, RowError, take
from modelyard.store.state import pack, restore

SAMPLES: dict[str, list[Any]] = {
    "number": [1.5, -2.0, None, 0.0, 1e6, 3.25, 7.0, 7.0],
    "category": ["a", "b", None, "a", "城市", "a b", "b", "c"],
    "label-set": [["x", "y"], [], None, ["y"], ["x"], ["z", "x"], ["y"], []],
    "text": ["a good day", "今天天气很好", "", None, "word", "more words than the others have", "x y", "😀 z"],
    "timestamp": ["2026-01-31", None, "2026-01-31T10:00:00Z", "1999-12-31 23:59:59", "2020-02-29", "2026/02/01", "20260102", "2026-05-05"],
    "words": [["Anna", "sings"], "今天 rains", None, ["x"], ["McDonald's", "1998", "@you", "😀"], ["a", "a"], ["Łódź"], ["z" * 40]],
    "tags": [["B-x", "I-x", "O"], ["O"], None, ["B-y"], ["O", "O"], ["B-x"], [], ["O", "B-y", "I-y"]],
    "vector": [[0.5, 1.0], [0.0, -2.0], None, [0.25, 3.0], [1.0, 1.0], [0.0, 0.0], [7.0, 0.125], None],
    "fill": [["a", "##b"], [], None, ["城"], ["a"], ["b", "c", "d"], ["x"], ["y", "y"]],
    "cluster": [0, 1, None, 2, 1, 0, -1, 1],
    "messages": [
        [{"role": "user", "content": "hello"}], None, [{"role": "system", "content": "答得短些。"}, {"role": "user", "content": "你好"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}],
        [{"role": "user", "content": ""}], [{"role": "user", "content": "😀 hello"}], None, [{"role": "user", "content": "hello again, hello"}],
    ],
}  # fmt: skip
"""Raw values of the built-in kinds; others pass their own to `check_kind`."""


def check_kind(name: str, samples: list[Any] | None = None) -> None:
    """`check` is idempotent and keeps length, JSON goes and comes back, and every encoding passes `check_encoding`."""
    kind: Kind = registry.load("kinds", name).KIND
    assert kind.name == name, f"{name}: the kind calls itself {kind.name}"
    values = samples if samples is not None else _samples(name)
    raw = kind.from_json(values).alias("c")
    clean, errors = kind.check(raw)
    assert len(clean) == len(values), f"{name}: check changed the number of rows"
    assert not errors, f"{name}: check refused its own samples: {errors}"
    again, errors = kind.check(clean)
    assert not errors and again.dtype == clean.dtype and again.equals(clean), f"{name}: check is not idempotent"
    back, errors = kind.check(kind.from_json(kind.to_json(clean)).alias("c"))
    assert not errors and back.equals(clean), f"{name}: values change on their way through JSON"
    present = clean.is_not_null()
    distance = kind.distance(clean.filter(present), clean.filter(present))
    assert (np.asarray(distance) == 0).all(), f"{name}: a value is at a distance from itself"
    summary = kind.summary(clean)
    assert summary["count"] == len(values) and summary["missing"] == clean.null_count(), f"{name}: summary miscounts"
    assert all(isinstance(kind.draw(v), str) for v in clean.to_list()), f"{name}: draw gives no text"
    for encoding in kind.encodings.values():
        usable = clean.filter(present) if kind.needs_value else clean
        check_encoding(encoding, usable)


def _samples(name: str) -> list[Any]:
    if name == "image":
        import base64
        import io

        from PIL import Image

        found = []
        for i in range(4):
            buffer = io.BytesIO()
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "PNG")
            found.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
        return found
    assert name in SAMPLES, f"pass samples of the kind {name}"
    return SAMPLES[name]


def check_encoding(encoding: Encoding, column: pl.Series) -> None:
    """Parts tell the truth, rows do not see their neighbours, merged halves equal the whole, the state survives storage."""
    assert dataclasses.is_dataclass(encoding.Config) and dataclasses.is_dataclass(encoding.State), (
        f"{encoding.name}: Config and State are dataclasses"
    )
    state = encoding.fit(column)
    arrays = encoding.encode(column, state, {})
    parts = encoding.parts(state)
    assert set(parts) == set(arrays), f"{encoding.name}: parts {set(parts)} and arrays {set(arrays)} differ"
    for name, array in arrays.items():
        _fits(encoding.name, name, array, parts[name], len(column))
    for i in range(len(column)):
        alone = encoding.encode(column[i : i + 1], state, {})
        for name, array in arrays.items():
            assert _same(take(array, np.array([i])), alone[name]), f"{encoding.name}.{name}: row {i} differs alone"
    stored: dict[str, np.ndarray] = {}
    packed = pack(state, "s", stored)
    restored = encoding.encode(column, restore(encoding.State, packed, stored), {})
    assert all(_same(arrays[n], restored[n]) for n in arrays), f"{encoding.name}: the state changes when it is stored"
    half = len(column) // 2
    halves = [encoding.update(encoding.start(encoding.Config()), part) for part in (column[:half], column[half:])]
    merged = encoding.encode(column, encoding.finish(encoding.merge(*halves)), {})
    for name in arrays:
        assert _same(arrays[name], merged[name], 1e-5), f"{encoding.name}.{name}: merged halves differ from the whole"


def _fits(encoding: str, name: str, array: Array, part: Part, rows: int) -> None:
    assert len(array) == rows, f"{encoding}.{name}: {len(array)} examples of {rows}"
    assert isinstance(array, Ragged) == part.ragged, f"{encoding}.{name}: ragged or not?"
    values = array.values if isinstance(array, Ragged) else array
    shape = (*part.shape[1:],) if part.ragged else part.shape
    assert values.shape[1:] == shape, f"{encoding}.{name}: shape {values.shape[1:]} is not {shape}"
    if part.cardinality is not None and values.size:
        assert values.max() < part.cardinality, f"{encoding}.{name}: an id reaches {values.max()} of {part.cardinality}"


def _same(a: Array, b: Array, tolerance: float = 0.0) -> bool:
    if isinstance(a, Ragged) and isinstance(b, Ragged):
        return np.array_equal(a.offsets, b.offsets) and _same(a.values, b.values, tolerance)
    assert isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=a.dtype.kind == "f"))


def check_task(name: str, rows: int = 240, seed: int = 0) -> None:
    """The toy trains, beats nothing-at-all in one of its metrics, and the saved model replays, alone and in a batch."""
    from modelyard.runtime.answers import compare
    from modelyard.runtime.model import Model
    from modelyard.verbs.train import train

    task = registry.load("tasks", name).TASK
    assert task.name == name and task.kinds, f"{name}: the task calls itself {task.name}"
    first, again = task.toy(rows, seed), task.toy(rows, seed)
    assert all(first.tables[t].equals(again.tables[t]) for t in first.tables), f"{name}: toy is not a function of its seed"
    with tempfile.TemporaryDirectory() as folder:
        found = train(toy_data(first), name, name="toy", base=Path(folder))
        model = Model.load(found.model)
        assert model.parity is not None and model.parity.ok
        assert found.metrics, f"{name}: nothing was measured"
        if model.by_row:
            examples = model.examples[:8]
            together = model.predict(examples)
            for i, row in enumerate(examples):
                alone = model.predict([row])
                part = dataclasses.replace(together, columns=together.columns[i : i + 1], errors=[], rows=1)
                assert compare(part, alone, model.pipeline.scales()).ok, f"{name}: example {i} is answered differently alone"


def toy_data(toy: Any) -> Any:
    """The `data` section of a toy."""
    from modelyard.data.source import DataConfig
    from modelyard.data.split import SplitConfig

    options = dict(toy.options)
    if "split" in options:
        options["split"] = SplitConfig(**options["split"])
    inputs = {k: {"kind": v} for k, v in toy.kinds.items() if k != toy.target}
    outputs = {toy.target: {"kind": toy.kinds[toy.target]}} if toy.target in toy.kinds else None
    return DataConfig(path=toy.tables or None, target=toy.target, inputs=inputs or None, outputs=outputs, **options)


def random_inputs(accepts: str, rows: int, seed: int = 0) -> tuple[dict[str, Part], dict[str, Array], dict[str, Any]]:
    """(parts, arrays, keyword arguments) of small random inputs in an encoding: `table`, `pixels`, `bag`, `tokens`, `chars`, `language`."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 12, rows)
    lengths[0] = 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ragged = lambda values: Ragged(values, offsets)  # noqa: E731
    if accepts == "table":
        parts = {"numbers": Part((5,), "float32"), "categories": Part((2,), "int32", 9)}
        ids = np.stack([random.integers(0, 6, rows), random.integers(0, 9, rows)], 1).astype(np.int32)
        return parts, {"numbers": random.normal(size=(rows, 5)).astype(np.float32), "categories": ids}, {"cardinalities": [6, 9]}
    if accepts == "pixels":
        return {"pixels": Part((3, 16, 16), "uint8")}, {"pixels": random.integers(0, 255, (rows, 3, 16, 16), np.uint8)}, {}
    if accepts == "bag":
        parts = {"grams": Part((None,), "int32", 50), "weights": Part((None,), "float32")}
        values = random.random(offsets[-1]).astype(np.float32)
        return parts, {"grams": ragged(random.integers(0, 50, offsets[-1]).astype(np.int32)), "weights": ragged(values)}, {}
    if accepts == "spelled":
        count = int(offsets[-1])
        parts = {
            "words": Part((None,), "int32", 50), "characters": Part((None, 8), "int32", 30), "marks": Part((None, 6), "int32", 40),
            "features": Part((None, 12), "float32"),
        }  # fmt: skip
        sizes = {k: (count, *(n or 1 for n in p.shape[1:])) for k, p in parts.items()}
        drawn = {k: random.integers(1, p.cardinality or 2, sizes[k]).astype(p.dtype) for k, p in parts.items()}
        return parts, {k: ragged(v) for k, v in drawn.items()}, {}
    assert accepts in ("tokens", "chars", "pretrained", "language"), f"no random inputs for {accepts}"
    return {"tokens": Part((None,), "int32", 50)}, {"tokens": ragged(random.integers(1, 50, offsets[-1]).astype(np.int32))}, {}


def check_net(name: str, seed: int = 0) -> None:
    """Gradients flow to every weight, examples do not see their neighbours or their padding, `embed` and `from_embedded` make
    `forward`, weights survive storage, and the ONNX graph agrees to 1e-5 at other batch sizes and lengths."""
    import torch

    from modelyard.nets._network import build
    from modelyard.runtime.backends.onnx import session
    from modelyard.runtime.pipeline import dense
    from modelyard.verbs.export.onnx import export_module

    module = registry.load("nets", name)
    for accepts in module.ACCEPTS:
        if getattr(getattr(module, "Network", None), "sees_targets", False):
            _check_writer(name, module, accepts, seed)
            continue
        parts, arrays, options = random_inputs(accepts, 6, seed)
        heads = [Head("y", "category", "logits", 3)]
        spec = {"nets": {"c": {"name": name, "config": module.Config()}}}
        make = lambda: build(spec, {"c": parts}, options.get("cardinalities", []), heads, seed=seed)  # noqa: E731, B023
        network = make()
        twin = make()
        assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), twin.state_dict().values(), strict=True)), (
            f"{name}: weights are not a function of the seed"
        )
        batch = {k: torch.from_numpy(v) for k, v in dense({f"c.{k}": v for k, v in arrays.items()}).items()}
        network.train()
        network(batch)["y.logits"].square().sum().backward()
        still = [n for n, p in network.named_parameters() if p.grad is None]
        assert not still, f"{name}: no gradient reaches {still}"
        network.eval()
        with torch.inference_mode():
            whole = network(batch)["y.logits"]
            split = network.from_embedded(network.embed(batch))["y.logits"]  # type: ignore[operator]
        assert torch.allclose(whole, split, atol=1e-6), f"{name}: embed and from_embedded do not make forward"
        for i in range(6):
            alone = dense({f"c.{k}": take(v, np.array([i])) for k, v in arrays.items()})
            with torch.inference_mode():
                one = network({k: torch.from_numpy(v) for k, v in alone.items()})["y.logits"]
            assert torch.allclose(whole[i : i + 1], one, atol=1e-5), f"{name}: example {i} is answered differently alone"
        ragged = {f"c.{k}" for k, p in parts.items() if p.ragged}
        graph = session(export_module(network, {k: v.numpy() for k, v in batch.items()}, ragged))
        for rows in (1, 9):
            _, other, _ = random_inputs(accepts, rows, seed + rows)
            fed = dense({f"c.{k}": v for k, v in other.items()})
            with torch.inference_mode():
                expected = network({k: torch.from_numpy(v) for k, v in fed.items()})["y.logits"].numpy()
            difference = float(np.abs(graph(fed)["y.logits"] - expected).max())
            assert difference <= 1e-5, f"{name}: ONNX differs by {difference:.2g} with {rows} examples"


def _check_writer(name: str, module: Any, accepts: str, seed: int) -> None:
    """A net that is taught with the ids of what it shall write and answers with sums (B, 2 or 3) of each example."""
    import torch

    from modelyard.nets._network import build
    from modelyard.runtime.pipeline import dense

    parts, arrays, _ = random_inputs(accepts, 6, seed)
    spec = {"nets": {"c": {"name": name, "config": module.Config()}}}
    network, twin = (build(spec, {"c": parts}, [], [Head("y", "text", "tokens", 50)], seed=seed) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), twin.state_dict().values(), strict=True)), (
        f"{name}: weights are not a function of the seed"
    )
    random = np.random.default_rng(seed)
    written = Ragged.from_lists([random.integers(3, 50, n).tolist() for n in random.integers(1, 9, 6)], np.int64)
    named = {**{f"c.{k}": v for k, v in arrays.items()}, "y.ids": written}
    feed = lambda index: {k: torch.from_numpy(v) for k, v in dense({k: take(a, index) for k, a in named.items()}).items()}  # noqa: E731
    network.train()
    network(feed(np.arange(6)))["y.tokens"][:, 0].sum().backward()
    still = [n for n, p in network.named_parameters() if p.grad is None]
    assert not still, f"{name}: no gradient reaches {still}"
    network.eval()
    with torch.inference_mode():
        whole = network(feed(np.arange(6)))["y.tokens"]
        for i in range(6):
            one = network(feed(np.array([i])))["y.tokens"]
            assert torch.allclose(whole[i : i + 1], one, atol=1e-4), f"{name}: example {i} is judged differently alone"
    stored = network.stored() if hasattr(network, "stored") else network.state_dict()  # type: ignore[operator]
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    twin.restore(stored) if hasattr(twin, "restore") else twin.load_state_dict(stored)  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), twin.state_dict().values(), strict=True)), (
        f"{name}: weights change when they are stored"
    )


def check_estimator(name: str, seed: int = 0) -> None:
    """Fits each kind of output it names, applies row by row as in a batch, survives storage, agrees with its ONNX graph."""
    from modelyard.runtime.backends.onnx import session
    from modelyard.runtime.pipeline import dense

    module = registry.load("estimators", name)
    accepts = module.ACCEPTS[0]
    parts, arrays, _ = random_inputs(accepts, 120, seed)
    column = "table" if accepts == "table" else "c"
    inputs = {f"{column}.{k}": v for k, v in arrays.items()}
    numbers = np.asarray(arrays["numbers"]) if "numbers" in arrays else np.zeros((120, 1))
    for kind in module.KINDS:
        head, targets = _target(kind, numbers)
        if kind == "category" and not getattr(module, "SUPERVISED", True):  # it finds anomalies, and looks at no labels
            head, targets = Head("y", "category", "logits", 2), {}
        state = module.fit(inputs, targets, [head], module.Config(), seed=seed)
        whole = module.apply(dense(inputs), state)[head.key]
        assert whole.dtype == np.float32 and len(whole) == 120, f"{name}: apply gives float32, a row an example"
        for i in range(5):
            alone = module.apply(dense({k: take(v, np.array([i])) for k, v in inputs.items()}), state)[head.key]
            assert np.allclose(whole[i : i + 1], alone, atol=1e-6), f"{name}: example {i} is answered differently alone"
        stored: dict[str, np.ndarray] = {}
        packed = pack(state, "m", stored)
        again = module.apply(dense(inputs), restore(module.State, packed, stored))[head.key]
        assert np.array_equal(whole, again), f"{name}: the state changes when it is stored"
        proto = module.graph(state, {f"{column}.{k}": p for k, p in parts.items()})
        if proto is not None:
            difference = float(np.abs(session(proto.SerializeToString())(dense(inputs))[head.key] - whole).max())
            assert difference <= 1e-5 * max(1.0, float(np.abs(whole).max())), f"{name}: ONNX differs by {difference:.2g}"


def _target(kind: str, numbers: np.ndarray) -> tuple[Head, dict[str, np.ndarray]]:
    signal = numbers[:, 0]
    if kind == "category":
        return Head("y", kind, "logits", 3), {"y.index": np.digitize(signal, np.quantile(signal, [0.3, 0.7])).astype(np.int64)}
    if kind == "label-set":
        return Head("y", kind, "logits", 2), {"y.multi_hot": np.stack([signal > 0, numbers[:, -1] > 0], 1).astype(np.float32)}
    if kind == "number":
        return Head("y", kind, "value", 1), {"y.value": signal.astype(np.float32)}
    return Head("y", kind, "distances", 0), {}


def check_method(name: str, kind: str, truth: np.ndarray, prediction: Any) -> None:
    """A metric is finite, has its direction, and does not prefer shuffled answers to the truth itself."""
    from modelyard import metrics

    found = metrics.evaluate_output(kind, truth, prediction, [name])
    entry = next(iter(found.values()))
    assert np.isfinite(entry["value"]) and entry["better"] in ("higher", "lower"), f"{name}: {entry}"


__all__ = [
    "RowError",
    "check_encoding",
    "check_estimator",
    "check_kind",
    "check_method",
    "check_net",
    "check_task",
    "random_inputs",
    "toy_data",
]
