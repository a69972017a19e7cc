"""Compression: what each stage does against what it is defined by, and the judgement of the whole."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import ConfigError, Unsupported
from modelyard.runtime.model import Model

torch = pytest.importorskip("torch", reason="nets need the extra 'train'")
onnx = pytest.importorskip("onnx", reason="graphs are rewritten with the extra 'train'")

from modelyard.verbs.compress import low_rank, parsed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # torch's exporter


# --- stages -----------------------------------------------------------------------------------------------------------------


def test_the_distillation_loss_is_its_formula() -> None:
    from modelyard.losses.distillation import loss

    draw = np.random.default_rng(0)
    z, t, own = draw.normal(size=(5, 4)) * 3, draw.normal(size=(5, 4)) * 3, np.array([0, 3, -1, 2, 1])
    log_softmax = lambda x: x - np.log(np.exp(x).sum(1, keepdims=True))  # noqa: E731
    for temperature, alpha in ((1.0, 0.7), (4.0, 0.2)):
        p, q = log_softmax(t / temperature), log_softmax(z / temperature)
        soft = temperature**2 * (np.exp(p) * (p - q)).sum(1)
        hard = -log_softmax(z)[np.arange(5), np.maximum(own, 0)]
        expected = np.where(own < 0, soft, alpha * soft + (1 - alpha) * hard)
        target = torch.tensor(np.concatenate([t, own[:, None]], 1))
        value, weight = loss(torch.tensor(z), target, temperature=temperature, alpha=alpha)
        assert np.allclose(value.numpy(), expected) and bool((weight == 1).all())


def test_factors_keep_the_energy_and_err_by_what_they_leave_out() -> None:
    """Eckart & Young: the squared error is the sum of the squared singular values that were dropped."""
    draw = np.random.default_rng(0)
    low = draw.normal(size=(60, 5)) @ draw.normal(size=(5, 40)) + 0.01 * draw.normal(size=(60, 40))
    config = low_rank.Config(energy=0.99)
    thin = low_rank.factors(low.astype(np.float32), config)
    assert thin is not None
    singular = np.linalg.svd(low, compute_uv=False)
    rank = thin[0].shape[1]
    kept = (singular[:rank] ** 2).sum() / (singular**2).sum()
    assert kept >= 0.99 and (singular[: rank - 1] ** 2).sum() / (singular**2).sum() < 0.99
    assert np.isclose(((low - thin[0].astype(np.float64) @ thin[1]) ** 2).sum(), (singular[rank:] ** 2).sum(), rtol=1e-3)
    assert low_rank.factors(draw.normal(size=(40, 40)).astype(np.float32), config) is None  # noise has no low rank


@pytest.mark.parametrize("turned", [False, True])
def test_a_factorised_graph_answers_like_the_product(turned: bool) -> None:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    first = (draw.normal(size=(30, 3)) @ draw.normal(size=(3, 50))).astype(np.float32)
    second = (draw.normal(size=(50, 2)) @ draw.normal(size=(2, 20))).astype(np.float32)
    bias = draw.normal(size=20).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], transB=int(turned)),
    ]
    constants = [numpy_helper.from_array(a, n) for a, n in ((first, "w"), (second.T.copy() if turned else second, "v"), (bias, "b"))]
    shape = lambda name, width: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])  # noqa: E731
    graph = helper.make_graph(nodes, "g", [shape("x", 30)], [shape("y", 20)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = draw.normal(size=(7, 30)).astype(np.float32)
    run = lambda: onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]  # noqa: E731
    before = run()
    assert low_rank.factorise(model.graph, low_rank.Config(energy=1.0 - 1e-9)) == 2
    assert sum(np.prod(t.dims) for t in model.graph.initializer) < 0.5 * (first.size + second.size)
    assert np.allclose(run(), before, rtol=1e-4, atol=1e-3)


def test_a_narrowed_mlp_is_the_net_without_those_units() -> None:
    from modelyard.kinds._contract import Part
    from modelyard.nets import mlp

    parts = {"numbers": Part((6,), "float32")}
    config = mlp.Config(hidden=(16, 12, 8), numbers="plain")
    torch.manual_seed(0)
    encoder = mlp.Encoder(config, parts).eval()
    narrowed, weights = mlp.narrow(config, dict(encoder.state_dict()), 0.5, encoder)
    assert narrowed.hidden == (8, 6, 8)
    small = mlp.Encoder(narrowed, parts).eval()
    small.load_state_dict(weights, strict=True)
    with torch.no_grad():
        for i in (0, 1):  # the same units silenced in the whole net: what they send on is zero
            kept = {tuple(r.tolist()) for r in weights[f"body.{3 * i}.bias"][:, None]}
            for unit in range(config.hidden[i]):
                if tuple(encoder.body[3 * i].bias[unit : unit + 1].tolist()) not in kept:
                    encoder.body[3 * i + 3].weight[:, unit] = 0
        inputs = {"numbers": torch.randn(9, 6)}
        assert torch.allclose(encoder(inputs), small(inputs), atol=1e-6)
    with pytest.raises(Unsupported, match="one hidden layer"):
        mlp.narrow(mlp.Config(hidden=(8,)), {}, 0.5, encoder)


def test_a_narrowed_cnn_is_the_net_without_those_channels() -> None:
    from modelyard.kinds._contract import Part
    from modelyard.nets import cnn

    parts = {"pixels": Part((1, 16, 16), "uint8")}
    config = cnn.Config(widths=(8, 12, 10), depths=(1, 3, 2))
    torch.manual_seed(0)
    encoder = cnn.Encoder(config, parts).eval()
    narrowed, weights = cnn.narrow(config, dict(encoder.state_dict()), 0.5, encoder)
    assert narrowed.widths == (4, 6, 10)
    small = cnn.Encoder(narrowed, parts).eval()
    small.load_state_dict(weights, strict=True)
    whole, state = dict(encoder.state_dict()), 0
    kept_before = None
    with torch.no_grad():
        for name in [k.removesuffix(".0.weight") for k in whole if k.endswith(".0.weight") and whole[k].dim() == 4]:
            kernel = whole[f"{name}.0.weight"]
            mine = weights[f"{name}.0.weight"]
            kept = [i for i in range(len(kernel)) if any(torch.equal(kernel[i] if kept_before is None else kernel[i][kept_before], m) for m in mine)]
            assert len(kept) == len(mine)
            for gone in set(range(len(kernel))) - set(kept):  # a silent channel: normalised to 0 and shifted by 0
                for part in ("weight", "bias"):
                    whole[f"{name}.1.{part}"][gone] = 0
            kept_before = kept
            state += 1
        assert state == 6
        images = {"pixels": torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)}
        assert torch.allclose(encoder(images), small(images), atol=1e-5)


def test_channels_of_images_go_in_blocks() -> None:
    """Whole blocks of 16 stay where there are such: kernels take as long for 19 channels as for 32."""
    from modelyard.nets.cnn import _left

    assert [_left(w, 0.4) for w in (8, 16, 32, 64, 128)] == [5, 10, 16, 32, 80]
    assert [_left(w, 0.01) for w in (17, 40, 64)] == [16, 32, 64] and _left(20, 0.95) == 16 and _left(1, 0.95) == 1


def test_a_table_that_is_the_last_matrix_too_is_quantised_in_both_places() -> None:
    """ONNX Runtime's quantiser turns the matrix of a Gemm where it lies; what else read it met it turned."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from modelyard.verbs.compress.quantise import _apart, _quiet

    table = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "i"], ["x"]), helper.make_node("Gemm", ["x", "table"], ["y"], transB=1)]
    ends = [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]), helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(table, "table")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    rows = np.arange(40)
    _apart(model.graph)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/a.onnx")
        quantize_dynamic(f"{folder}/a.onnx", f"{folder}/b.onnx", weight_type=QuantType.QInt8)
        found = onnxruntime.InferenceSession(f"{folder}/b.onnx").run(None, {"i": rows})[0]
    assert np.abs(found - table @ table.T).max() < 0.1 * np.abs(table @ table.T).max() and (found.argmax(1) == (table @ table.T).argmax(1)).mean() > 0.9


def test_mistakes_in_stages_are_all_told() -> None:
    with pytest.raises(ConfigError) as found:
        parsed(["shrink", {"prune": {"share": 3}}, {"quantise": {"hau": "static"}}, "low_rank", {"low-rank": 0.9}])
    assert len(found.value.details) == 3
    names = [(name, config) for name, config in parsed(["low_rank", {"prune": 0.3}, "quantise"])]
    assert [n for n, _ in names] == ["low-rank", "prune", "quantise"] and names[1][1].share == 0.3


# --- the whole ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide net for a line that a narrow one would do for, and trees for the same."""
    import contextlib

    folder = tmp_path_factory.mktemp("compress")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(600, 4))
    label = np.where(x[:, 0] + x[:, 1] > 0, "yes", "no")
    frame = pl.DataFrame({**{f"n{i}": x[:, i] for i in range(4)}, "y": label})
    with contextlib.chdir(folder):
        frame.write_csv("rows.csv")
        net = {"name": "mlp", "hidden": [512, 512], "numbers": "plain"}
        modelyard.train(data="rows.csv", target="y", model=net, name="net", quiet=True, **{"train.epochs": 6, "train.seed": 3})
        modelyard.train(data="rows.csv", target="y", model="trees", name="trees", quiet=True)
    return folder


def small(place: Path, run: str, stages: list[Any], **more: Any) -> Any:
    import contextlib

    with contextlib.chdir(place):
        settings = {f"compress.{k}": v for k, v in {"stages": stages, **more}.items()}
        return modelyard.compress(f"runs/{run}", data="rows.csv", target="y", quiet=True, **{"train.seed": 3}, **settings)


def test_a_net_is_pruned_and_quantised_and_stays_one_model(place: Path) -> None:
    found = small(place, "net-0001", [{"prune": {"epochs": 2}}, "quantise"], max_loss=0.03, favour="size")
    assert [s["accepted"] for s in found.stages] == [None, True, True] and found.smaller > 3.5
    sizes = [s["bytes"] for s in found.stages]
    assert sizes == sorted(sizes, reverse=True) and found.stages[2]["value"] >= found.stages[0]["value"] * 0.97
    folder = place / found.model
    model = Model.load(folder)
    assert model.backend == "onnx" and model.parity is not None and model.parity.ok
    parents = [p["relation"] for p in model.manifest["parents"]]
    assert parents == ["prune 0.5", "export onnx", "quantise auto"]
    with modelyard.serve(str(folder)) as server:
        assert server.parity.ok
    report = (place / found.run / "report.html").read_text(encoding="utf-8")
    assert "Stages" in report and "quantise" in report and (place / found.run / "plots" / "pareto.svg").is_file()
    assert found.metrics["test"]["accuracy"]["value"] > 0.9
    told = json.loads((place / found.run / "run.json").read_text(encoding="utf-8"))
    assert told["state"] == "finished" and [s["stage"] for s in told["stages"]] == ["model", "prune", "quantise"]


def test_the_picture_of_sensitivity_is_what_silent_units_cost(place: Path) -> None:
    """Against a network whose units are multiplied by zero, and nothing is changed for good."""
    found = small(place, "net-0001", [{"prune": {"epochs": 0}}])
    data = json.loads((place / found.run / "plots/sensitivity.json").read_text(encoding="utf-8"))
    assert (place / found.run / "plots/sensitivity.svg").is_file() and data["metric"] == "accuracy" and data["layers"]
    model = Model.load(place / "runs/net-0001/model")
    from modelyard.runtime.backends.torch import rebuild
    from modelyard.verbs.compress import prune

    network = rebuild(model.folder, model.manifest, model.pipeline)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    layer = data["layers"][0]
    (weight, bias) = dict(prune.silent(network))[layer["name"]]
    gone = weight.detach().norm(dim=1).argsort()[: int(0.75 * len(weight))]
    mask = torch.ones(len(weight)).index_fill_(0, gone, 0)
    owner = network.get_submodule("encoders." + layer["name"])
    owner.register_forward_hook(lambda _m, _i, out: out * mask)
    encoded, _ = model.encode_rows(model.examples)
    with torch.inference_mode():
        hooked = network({k: torch.from_numpy(np.asarray(v)) for k, v in encoded.arrays.items()})["y.logits"]
        owner._forward_hooks.clear()
        weight.data.index_fill_(0, gone, 0), bias.data.index_fill_(0, gone, 0)
        assert torch.allclose(hooked, network({k: torch.from_numpy(np.asarray(v)) for k, v in encoded.arrays.items()})["y.logits"], atol=1e-5)
    assert len(layer["values"]) == 4 and layer["values"][-1] <= layer["values"][0] + 0.05
    again = Model.load(place / "runs/net-0001/model")
    assert all(torch.equal(before[k], v) for k, v in rebuild(again.folder, again.manifest, again.pipeline).state_dict().items())


def test_what_loses_too_much_is_left_and_the_parent_stays(place: Path) -> None:
    found = small(place, "net-0001", [{"prune": {"share": 0.95, "epochs": 0}}, {"low-rank": {"energy": 0.05}}], max_loss=0.0)
    assert [s["accepted"] for s in found.stages] == [None, False, False] and found.smaller == 1.0
    assert all("accuracy would be" in s["reason"] or "of the" in s["reason"] for s in found.stages[1:])
    parent, stays = Model.load(place / "runs/net-0001/model"), Model.load(place / found.model)
    rows = parent.examples
    assert stays.examples == rows and stays.predict(rows)["y"].to_list() == parent.predict(rows)["y"].to_list()


def test_trees_are_distilled_into_a_net_and_into_fewer_trees(place: Path) -> None:
    student = {"name": "mlp", "hidden": [16], "numbers": "plain"}
    found = small(place, "trees-0001", [{"distil": {"to": student, "epochs": 30}}], max_loss=0.05, favour="size")
    assert found.stages[1]["accepted"] is True and Model.load(place / found.model).manifest["model"]["net"]["nets"]["table"]["config"]["hidden"] == [16]
    fewer = small(place, "trees-0001", [{"distil": {"to": {"name": "trees", "trees": 5, "leaves": 4}}}], max_loss=0.1, favour="size")
    assert fewer.stages[1]["accepted"] is True and fewer.smaller > 2
    with pytest.raises(Unsupported, match="student"):
        small(place, "trees-0001", None)  # type: ignore[arg-type]


def test_a_student_reads_texts_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    good, bad, any_ = ["fine", "lovely", "great"], ["awful", "poor", "broken"], ["the", "a", "room", "meal", "was", "and"]
    label = draw.integers(0, 2, 300)
    texts = [" ".join([*draw.choice(any_, 4), str(draw.choice(good if y else bad))]) for y in label]
    pl.DataFrame({"text": texts, "y": ["good" if y else "bad" for y in label]}).write_csv("rows.csv")
    settings: dict[str, Any] = {"data": "rows.csv", "target": "y", "quiet": True, "data.inputs": {"text": "text"}}
    modelyard.train(model="bag", name="texts", **{"train.epochs": 5}, **settings)
    to = {"to": {"name": "bag", "width": 8}, "inputs": {"text": {"encoding": "bag", "buckets": 512}}, "epochs": 40}
    found = modelyard.compress("runs/texts-0001", **{"compress.stages": [{"distil": to}], "compress.max_loss": 0.05}, **settings)
    assert found.stages[1]["accepted"] is True and found.smaller > 2
    column = Model.load(found.model).pipeline.inputs[0]
    assert column.encoding == "bag" and column.config.buckets == 512  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="texte"):
        modelyard.compress("runs/texts-0001", **{"compress.stages": [{"distil": {**to, "inputs": {"texte": {}}}}]}, **settings)


def test_stages_that_do_not_apply_say_why(place: Path) -> None:
    found = small(place, "trees-0001", ["prune", "quantise", {"distil": {"to": {"name": "cnn"}}}], favour="size")
    assert [s["accepted"] for s in found.stages] == [None, False, False, False]
    assert all(s["reason"] for s in found.stages[1:]) and "nets of our families" in found.stages[1]["reason"]


def test_features_of_the_teacher_are_matched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear map explains more of the teacher's features by those of a student that matched them; the attention map by its formula, place by place."""
    from modelyard.data.source import DataConfig
    from modelyard.runtime.backends.torch import rebuild
    from modelyard.verbs.compress import Config, _hints, distil
    from modelyard.verbs.compress._work import Work

    maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    squares = (maps.numpy().astype(np.float64) ** 2).sum(1)
    pooled = np.array([[squares[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for i in range(4) for j in range(4)] for b in range(2)])
    assert np.allclose(_hints.attention(maps).numpy(), pooled / np.linalg.norm(pooled, axis=1, keepdims=True), atol=1e-6)
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(500, 4))
    y = np.where(x[:, 0] * x[:, 1] + x[:, 2] > 0, "yes", "no")
    pl.DataFrame({**{f"x{i}": x[:, i] for i in range(4)}, "y": y}).write_csv("rows.csv")
    settings: dict[str, Any] = {"data": "rows.csv", "target": "y", "quiet": True, "train.seed": 1}
    modelyard.train(model={"name": "mlp", "hidden": [64], "numbers": "plain"}, name="wide", **{"train.epochs": 10}, **settings)

    def features(folder: Path) -> Any:
        model = Model.load(folder)
        network: Any = rebuild(model.folder, model.manifest, model.pipeline)
        watched, encoded = _hints.Watched(network), model.pipeline.encode(pl.read_csv("rows.csv").drop("y"))
        with torch.inference_mode():
            network({k: torch.from_numpy(np.asarray(v)) for k, v in encoded.arrays.items()})
        return watched.together().numpy()

    model = Model.load("runs/wide-0001/model")
    teacher, left = features(model.folder), {}
    for weight in (0.0, 3.0):
        work = Work.begin(model, DataConfig(path="rows.csv", target="y"), None, Config(), tmp_path, None, False, None)
        asked = distil.Config(to={"name": "mlp", "hidden": [16], "numbers": "plain"}, epochs=40, features=weight)
        student = features(distil.apply(work, model.folder, asked, tmp_path / f"student-{weight}"))
        design = np.c_[student, np.ones(len(student))]
        left[weight] = (teacher - design @ np.linalg.lstsq(design, teacher, rcond=None)[0]).var() / teacher.var()
    assert left[3.0] < 0.75 * left[0.0], left  # measured 0.037 and 0.064
    with pytest.raises(Unsupported, match="convolutions"):
        distil.apply(work, model.folder, distil.Config(to={"name": "mlp"}, attention=1.0), tmp_path / "none")


def test_two_of_four_is_refused_with_what_it_comes_to_here(place: Path) -> None:
    """Zeros are no faster: the times stand in the reason, and they are times of this machine."""
    import re

    found = small(place, "net-0001", [{"prune": {"pattern": "2:4"}}])
    stage = found.stages[1]
    assert stage["accepted"] is False and stage["why"] == "needs" and "compute capability 8.0" in stage["reason"]
    dense, zeroed, listed = (float(t) for t in re.findall(r"([\d.]+) ms", stage["reason"]))
    assert zeroed > 0.5 * dense > 0 and listed > 0


# --- learning with 8 bits ---------------------------------------------------------------------------------------------------


def test_grids_are_those_of_the_quantiser_and_gradients_pass() -> None:
    """Weights and activations against ONNX's own formulas in NumPy, and the straight-through gradient."""
    from modelyard.verbs.compress import qat

    draw = np.random.default_rng(0)
    w, x = draw.normal(size=(5, 8)).astype(np.float32), draw.normal(size=(9, 8)).astype(np.float32) + 2
    for by_channel in (True, False):
        scale = np.abs(w).max(1, keepdims=True) / 127 if by_channel else np.abs(w).max() / 127
        weight = torch.tensor(w, requires_grad=True)
        found = qat.on_grid(weight, by_channel)
        assert np.allclose(found.detach().numpy(), np.rint(w / scale) * scale, atol=1e-6)
        found.sum().backward()
        assert weight.grad is not None and bool((weight.grad == 1).all())
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))  # DynamicQuantizeLinear
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    expected = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    assert np.allclose(qat.in_range(torch.from_numpy(x)).numpy(), expected, atol=1e-5)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    before, given = {k: v.clone() for k, v in net.state_dict().items()}, torch.from_numpy(x)
    plain = net(given)
    undo = qat.rounded(net)
    rounded = net(given)
    assert 0 < float((rounded - plain).abs().max()) < 0.1
    rounded.sum().backward()
    undo()
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()) and torch.equal(net(given), plain)
    assert all(p.grad is not None for p in net.parameters())


def test_a_net_that_int8_harms_learns_to_live_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One scale for a whole matrix: what a rounding afterwards loses, learning with it wins back for the most part."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(1200, 3))
    y = x[:, 0] * x[:, 1] + np.sin(3 * x[:, 2])
    pl.DataFrame({**{f"x{i}": x[:, i] for i in range(3)}, "y": y}).write_csv("rows.csv")
    settings: dict[str, Any] = {"data": "rows.csv", "target": "y", "quiet": True, "train.seed": 1}
    asked = {"train.epochs": 60, "train.lr": 1e-2, "train.batch": 64, "train.weight_decay": 0.0}
    modelyard.train(model={"name": "mlp", "hidden": [32, 32, 32], "numbers": "plain", "dropout": 0.0}, name="exact", **asked, **settings)
    stages = [{"quantise": {"per_channel": False}}, {"qat": {"per_channel": False, "epochs": 20, "rate": 0.2}}]
    found = modelyard.compress("runs/exact-0001", **{"compress.stages": stages, "compress.favour": "size", "compress.max_loss": 0.03}, **settings)
    whole, after, learnt = (s["value"] for s in found.stages)  # rmse; measured 0.137, 0.146, 0.138
    assert after > 1.03 * whole and not found.stages[1]["accepted"], found
    assert learnt - whole < 0.5 * (after - whole) and found.stages[2]["accepted"], found
    folder = Path(found.model)
    relations = [p["relation"] for p in Model.load(folder).manifest["parents"]]
    assert relations == ["qat 20 epochs", "export onnx", "quantise auto"]
    kinds = {n.op_type for n in onnx.load(str(folder / "model.onnx")).graph.node}
    assert kinds & {"MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QLinearMatMul"}, kinds
