"""Adapters: PEFT reads ours and we read PEFT's with equal logits and gradients; quantised bases err as their tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modelyard.errors import ArtefactError, Unsupported
from modelyard.kinds._contract import Head, Part
from modelyard.nets import _adapters, _quantised, causal
from modelyard.nets._huggingface import to_settings

V = 53


def network(arch: str = "qwen3", **options: Any) -> causal.Network:
    torch.manual_seed(0)
    config = causal.Config(architecture=arch, width=32, layers=2, heads=4, kv_heads=2 if arch != "gpt2" else None, context=48, **options)  # type: ignore[arg-type]
    net = causal.Network(config, {"tokens": Part((None,), "int32", V)}, [Head("y", "text", "tokens", V)], "x")
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else torch.nn.init.normal_(p, mean=0.5, std=0.2)
    return net.eval()


def adapt(net: causal.Network, **shape: Any) -> list[str]:
    names = _adapters.attach(net, _adapters.Shape(rank=3, alpha=5.0, **shape))
    torch.manual_seed(1)
    for layer in _adapters.adapted(net).values():
        torch.nn.init.normal_(layer.lora_B, std=0.2)
        if layer.magnitude is not None:
            layer.magnitude.data *= 1 + 0.2 * torch.randn_like(layer.magnitude)
    return names


def save_base(net: causal.Network, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_settings(net.config, V, {"bos_token_id": 0, "eos_token_id": 1})), encoding="utf-8")
    save_file({k: v.contiguous().clone() for k, v in net.stored().items()}, folder / "model.safetensors", metadata={"format": "pt"})


def save_adapter(net: causal.Network, where: Any, folder: Path, base: str = "", meta: dict[str, str] | None = None) -> None:
    folder.mkdir()
    config, tensors = _adapters.to_peft(net, where, base)
    (folder / _adapters.CONFIG).write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / _adapters.WEIGHTS, metadata={"format": "pt", **(meta or {})})


FORMS = [("qwen3", {}), ("llama", {"dora": True}), ("gpt2", {"rslora": True}), ("gpt2", {"dora": True}), ("qwen2", {"targets": ("q_proj", "v_proj")})]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("arch", "shape"), FORMS)
def test_peft_reads_ours_and_we_read_pefts(arch: str, shape: dict[str, Any], tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    net = network(arch)
    where = _adapters.places(net)
    save_base(net, tmp_path / "base")
    plain = net.logits(tokens := torch.randint(0, V, (2, 15)))
    adapt(net, **shape)
    save_adapter(net, where, tmp_path / "adapter", str(tmp_path / "base"))
    ours = net.logits(tokens)
    assert (ours - plain).abs().max() > 0.1
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(theirs(tokens).logits, ours, atol=2e-5, rtol=1e-4)
    theirs.save_pretrained(tmp_path / "again")
    again = network(arch)
    _adapters.load(again, tmp_path / "again")
    assert torch.allclose(again.logits(tokens), ours, atol=2e-5, rtol=1e-4)
    _adapters.merge(again)
    assert torch.allclose(again.logits(tokens), ours, atol=1e-4, rtol=1e-4)
    assert set(again.state_dict()) == set(network(arch).state_dict())


@pytest.mark.filterwarnings("ignore")
def test_gpt2_adapters_that_peft_made_are_read(tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    net = network("gpt2")
    save_base(net, tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn", "c_fc"], init_lora_weights=False, fan_in_fan_out=True)
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    _adapters.load(net, tmp_path / "adapter")
    tokens = torch.randint(0, V, (2, 15))
    assert torch.allclose(net.logits(tokens), theirs(tokens).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_off_is_the_base_and_only_adapters_learn(dora: bool) -> None:
    net = network()
    tokens = torch.randint(0, V, (2, 15))
    plain = net.logits(tokens)
    names = adapt(net, dora=dora, dropout=0.3)
    assert len(names) == 14
    with _adapters.off(net):
        assert torch.equal(net.logits(tokens), plain)
    assert not torch.equal(net.logits(tokens), plain)
    learning = {n for n, p in net.named_parameters() if p.requires_grad}
    assert learning == net.moving and all(n.rpartition(".")[2] in ("lora_A", "lora_B", "magnitude") for n in learning)
    net.train().sums(tokens, None)[:, 0].sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


def test_an_adapter_on_another_base_is_refused(tmp_path: Path) -> None:
    net = network()
    where, own = _adapters.places(net), _adapters.fingerprint(net)
    adapt(net)
    save_adapter(net, where, tmp_path / "adapter", meta={_adapters.BASE: own})
    same = network()
    _adapters.load(same, tmp_path / "adapter", own=_adapters.fingerprint(same))
    other = network()
    other.model.norm.weight.data[0] += 1e-3
    with pytest.raises(ArtefactError, match="another base"):
        _adapters.load(other, tmp_path / "adapter", own=_adapters.fingerprint(other))
    wider = network(feedforward=64)
    with pytest.raises(ArtefactError, match="do not fit"):
        _adapters.load(wider, tmp_path / "adapter")


def test_names_that_no_layer_has_are_refused() -> None:
    with pytest.raises(Unsupported, match="query"):
        _adapters.attach(network(), _adapters.Shape(targets=("query",)))
    with pytest.raises(Unsupported, match="lm_head"):
        _adapters.attach(network(), _adapters.Shape(targets=("lm_head",)))


def test_nf4_is_made_of_normal_quantiles() -> None:
    """Section 3 of the paper: 2^k quantiles of N(0, 1), asymmetric so that zero is exact, divided by the largest."""
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    quantile = lambda p: torch.special.ndtri(p)  # noqa: E731
    positive = quantile(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -quantile(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    table = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    assert torch.allclose(table / table.abs().max(), torch.tensor(_quantised.NF4, dtype=torch.float64), atol=2e-4)


@pytest.mark.parametrize("shape", [(40, 30), (64, 64), (7, 300)])
def test_quantised_matrices_are_near_and_small(shape: tuple[int, int]) -> None:
    torch.manual_seed(3)
    layer = torch.nn.Linear(shape[1], shape[0])
    torch.nn.init.normal_(layer.weight, std=0.02)
    slow = _slow_nf4(layer.weight.detach())
    four, eight = _quantised.Quantised(layer, "nf4"), _quantised.Quantised(layer, "int8")
    # the slow one keeps its scales whole, so that a value at the border of two codes may take the other
    assert ((four.weight - slow).abs() < 5e-4).float().mean() > 0.99
    assert (four.weight - layer.weight).norm() / layer.weight.norm() < 0.11
    assert (eight.weight - layer.weight).abs().max() <= layer.weight.abs().max() / 127 * 0.51
    x = torch.randn(5, shape[1], requires_grad=True)
    for form in (four, eight):
        said = form(x)
        assert torch.allclose(said, torch.nn.functional.linear(x, form.weight, layer.bias))
        (grad,) = torch.autograd.grad(said.square().sum(), x)
        (plain,) = torch.autograd.grad(torch.nn.functional.linear(x, form.weight, layer.bias).square().sum(), x)
        assert torch.allclose(grad, plain, rtol=1e-4, atol=1e-6)
        assert not any(p.requires_grad for p in form.parameters()) and not list(form.buffers())


def _slow_nf4(weight: torch.Tensor) -> torch.Tensor:
    values = weight.flatten().tolist()
    out: list[float] = []
    for i in range(0, len(values), 64):
        block = values[i : i + 64]
        largest = max(map(abs, block))
        out += [min(_quantised.NF4, key=lambda c: abs(c - v / largest)) * largest for v in block]
    return torch.tensor(out).view(weight.shape)


def test_four_bits_are_four_bits() -> None:
    layer = torch.nn.Linear(1024, 1024, bias=False)
    assert _quantised.Quantised(layer, "nf4").bytes() * 8 / 1024**2 == pytest.approx(4.127, abs=0.001)
    assert _quantised.Quantised(layer, "int8").bytes() * 8 / 1024**2 == pytest.approx(8.03, abs=0.01)


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_a_quantised_base_learns_and_merges(form: str) -> None:
    net = network()
    adapt(net, base=form)
    tokens = torch.randint(0, V, (2, 15))
    net.sums(tokens, None)[:, 0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in net.named_parameters() if n.endswith("lora_A"))
    ours = net.logits(tokens)
    _adapters.merge(net)
    assert torch.allclose(net.logits(tokens), ours, atol=1e-3, rtol=1e-3)
