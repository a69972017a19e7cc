# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""Networks: names, fusion, embeddings, seeds, a user's module, export."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn

from modelyard.errors import ArtefactError, UsageError
from modelyard.kinds._contract import Head, Part
from modelyard.nets import _table, mlp
from modelyard.nets._fusion import FUSIONS
from modelyard.nets._network import build, module_names
from modelyard.verbs.export.onnx import export_module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small only wait for a second thread."""
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


TABLE = {"numbers": Part((3,), "float32"), "categories": Part((2,), "int32")}
CARDINALITIES = [4, 7]
HEADS = [Head("y", "category", "logits", 3), Head("price", "number", "value", 1)]


def spec(*names: str, fusion: str = "concatenate") -> dict[str, Any]:
    return {"nets": {n: {"name": "mlp", "config": {"hidden": [8]}} for n in names}, "fusion": {"name": fusion}}


def inputs(*names: str, rows: int = 5, seed: int = 0) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, Any] = {}
    for n in names:
        found[f"{n}.numbers"] = torch.randn(rows, 3, generator=draw)
        found[f"{n}.categories"] = torch.randint(0, 4, (rows, 2), generator=draw, dtype=torch.int32)
    return found


ODD = ("a.b", "数量", "training", "forward", "keys", "type", "", "a·b", "weight", "x y", "items", "__class__", "_modules", "1")


def test_any_column_name_becomes_a_module() -> None:
    net = build(spec(*ODD), {n: TABLE for n in ODD}, CARDINALITIES, [Head(n, "category", "logits", 2) for n in ODD], seed=0)
    assert len(set(module_names(ODD).values())) == len(ODD)
    out = net(inputs(*ODD))
    assert set(out) == {f"{n}.logits" for n in ODD}
    net.load_state_dict(net.state_dict())
    one = build(spec(*ODD), {n: TABLE for n in ODD}, CARDINALITIES, [Head("y", "category", "logits", 2)], seed=0)
    base = one.eval()(inputs(*ODD))["y.logits"]
    for name in ODD:  # each column reaches its own encoder
        changed = inputs(*ODD) | {f"{name}.numbers": torch.zeros(5, 3)}
        assert not torch.allclose(one(changed)["y.logits"], base), name


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_fusions_use_every_input_and_serve_every_head(fusion: str) -> None:
    names = ("left", "right")
    net = build(spec(*names, fusion=fusion), {n: TABLE for n in names}, CARDINALITIES, HEADS, seed=1).eval()
    x = inputs(*names)
    out = net(x)
    assert {k: tuple(v.shape) for k, v in out.items()} == {"y.logits": (5, 3), "price.value": (5, 1)}
    for name in names:
        changed = net({**x, f"{name}.numbers": x[f"{name}.numbers"].flip(0)})
        assert all(not torch.allclose(changed[k], out[k]) for k in out), name
    alone = net({k: v[2:3] for k, v in x.items()})
    for key in out:
        torch.testing.assert_close(alone[key], out[key][2:3])
    sum(v.sum() for v in net(x).values()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_gated_fusion_against_the_formula() -> None:
    torch.manual_seed(0)
    gated = FUSIONS["gated"]([2, 3], width=4)
    a, b = torch.randn(6, 2), torch.randn(6, 3)
    (w1, w2), gate = gated.project, gated.gate
    for i in range(6):
        h = [np.tanh((w.weight @ x[i] + w.bias).detach().numpy()) for w, x in ((w1, a), (w2, b))]
        z = (gate.weight @ torch.cat([a[i], b[i]]) + gate.bias).detach().numpy().reshape(2, 4)
        share = np.exp(z) / np.exp(z).sum(0)
        np.testing.assert_allclose(gated([a, b])[i].detach().numpy(), share[0] * h[0] + share[1] * h[1], atol=1e-6)


def test_late_fusion_is_a_weighted_mean_of_decisions() -> None:
    late = FUSIONS["late"]([2, 3])
    head = late.head(4)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([0.0, np.log(3.0)]))
    a, b = torch.randn(5, 2), torch.randn(5, 3)
    torch.testing.assert_close(late.apply_head(head, [a, b]), 0.25 * head.each[0](a) + 0.75 * head.each[1](b))


def test_embedding_splits_the_pass_and_carries_gradients() -> None:
    net = build(spec("t"), {"t": TABLE}, CARDINALITIES, HEADS, seed=2).eval()
    x = inputs("t")
    embedded = net.embed(x)
    assert embedded["t.categories"].is_floating_point() and set(embedded) == set(x)
    for key, value in net.from_embedded(embedded).items():
        torch.testing.assert_close(value, net(x)[key])
    leaf = {k: v.detach().requires_grad_() for k, v in embedded.items()}
    net.from_embedded(leaf)["y.logits"].sum().backward()
    assert all(bool((v.grad != 0).any()) for v in leaf.values())


def test_weights_are_a_function_of_the_seed() -> None:
    made = []
    for seed in (3, 3, 4):
        torch.rand(5)
        before = torch.get_rng_state()
        made.append(build(spec("t"), {"t": TABLE}, CARDINALITIES, HEADS, seed=seed).state_dict())
        assert torch.equal(torch.get_rng_state(), before)  # and the caller's generator is left alone
    assert all(torch.equal(made[0][k], made[1][k]) for k in made[0])
    assert any(not torch.equal(made[0][k], made[2][k]) for k in made[0])


def test_periodic_features_against_a_loop() -> None:
    torch.manual_seed(0)
    periodic = _table.Periodic(2, 3)
    x = torch.randn(4, 2)
    out = periodic(x).detach().numpy().reshape(4, 2, periodic.out)
    for b in range(4):
        for n in range(2):
            angle = 2 * np.pi * periodic.frequency[n].detach().numpy() * float(x[b, n])
            waves = np.concatenate([np.sin(angle), np.cos(angle)])
            expected = np.maximum(0, waves @ periodic.weight[n].detach().numpy() + periodic.bias[n].detach().numpy())
            np.testing.assert_allclose(out[b, n], expected, atol=1e-5)


@pytest.mark.parametrize("parts", [TABLE, {"numbers": TABLE["numbers"]}, {"categories": TABLE["categories"]}])
def test_tables_of_numbers_categories_or_both(parts: dict[str, Part]) -> None:
    encoder = mlp.Encoder(mlp.Config(hidden=(6,)), parts, cardinalities=CARDINALITIES if "categories" in parts else [])
    given = {k.removeprefix("t."): v for k, v in inputs("t").items()}
    assert encoder({k: given[k] for k in parts}).shape == (5, 6)


def test_an_mlp_learns_what_no_linear_model_can() -> None:
    """y = [x0 · x1 > 0] xor (category is 2): 50 % for a linear model."""
    draw = torch.Generator().manual_seed(0)
    x = {"t.numbers": torch.randn(600, 3, generator=draw), "t.categories": torch.randint(0, 4, (600, 2), generator=draw)}
    y = ((x["t.numbers"][:, 0] * x["t.numbers"][:, 1] > 0) ^ (x["t.categories"][:, 0] == 2)).long()
    wide = {"nets": {"t": {"name": "mlp", "config": {"hidden": [64, 64], "dropout": 0.0}}}}
    net = build(wide, {"t": TABLE}, CARDINALITIES, [Head("y", "category", "logits", 2)], seed=0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net({k: v[:400] for k, v in x.items()})["y.logits"], y[:400]).backward()
        optimiser.step()
    right = net.eval()({k: v[400:] for k, v in x.items()})["y.logits"].argmax(1) == y[400:]
    assert float(right.float().mean()) > 0.85


USER = """
import torch
class Net(torch.nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.layer = torch.nn.Linear(12, size)
    def forward(self, x):
        assert x.is_floating_point() and x.max() <= 1
        return self.layer(x.flatten(1))
"""


def test_a_users_module_sees_scaled_pixels_and_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(USER, encoding="utf-8")
    parts = {"photo": {"pixels": Part((3, 2, 2), "uint8")}}
    user = {"module": f"{path}:Net", "args": {"size": 3}}
    net = build({"user": user}, parts, [], HEADS[:1], seed=0)
    pixels = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    expected = net.module.layer(pixels.float().flatten(1) / 255)
    torch.testing.assert_close(net({"photo.pixels": pixels})["y.logits"], expected)
    stored = {**user, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    with pytest.raises(UsageError, match="--trust-code"):
        build({"user": stored}, parts, [], HEADS[:1])
    build({"user": stored}, parts, [], HEADS[:1], trust_code=True)
    path.write_text(USER + "\n", encoding="utf-8")
    with pytest.raises(ArtefactError, match="hash differs"):
        build({"user": stored}, parts, [], HEADS[:1], trust_code=True)


def test_wrong_names_are_told() -> None:
    with pytest.raises(UsageError, match="gated"):
        build(spec("t", fusion="gatd"), {"t": TABLE}, CARDINALITIES, HEADS)
    with pytest.raises(UsageError, match="no class"):
        build({"user": {"module": "torch.nn:Nothing"}}, {"t": TABLE}, [], HEADS[:1])


@pytest.mark.parametrize("fusion", ["gated", "late"])
def test_exported_networks_agree(fusion: str) -> None:
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    names = ("left", "right")
    net = build(spec(*names, fusion=fusion), {n: TABLE for n in names}, CARDINALITIES, HEADS, seed=1).eval()
    content = export_module(net, {k: v.numpy() for k, v in inputs(*names, rows=6).items()}, set())
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    for rows in (1, 9):
        fresh = inputs(*names, rows=rows, seed=rows)
        answers = session.run(["y.logits", "price.value"], {k: v.numpy() for k, v in fresh.items()})
        for answer, value in zip(answers, net(fresh).values(), strict=True):
            np.testing.assert_allclose(answer, value.detach().numpy(), atol=1e-5)
