"""Causal language models: equal to `transformers` both ways, packed as alone, counted as by hand, and the same token by token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelyard.errors import Unsupported
from modelyard.kinds._contract import Head, Part
from modelyard.nets import _vocabulary, causal
from modelyard.nets._huggingface import from_settings, to_settings
from modelyard.nets._slots import Slots

V = 61
SHAPES = [("qwen3", True, 2), ("qwen3", False, None), ("qwen2", True, 1), ("llama", False, 2), ("mistral", False, 4), ("gpt2", True, None)]


def network(arch: str, tied: bool = True, kv: int | None = None, **options: object) -> causal.Network:
    torch.manual_seed(0)
    config = causal.Config(architecture=arch, width=32, layers=2, heads=4, kv_heads=kv, context=48, tied=tied, **options)  # type: ignore[arg-type]
    net = causal.Network(config, {"tokens": Part((None,), "int32", V)}, [Head("y", "text", "tokens", V)], "x")
    for p in net.parameters():  # far from zero, so that a wrong norm or place shows
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else torch.nn.init.normal_(p, mean=0.5, std=0.2)
    return net.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("arch", "tied", "kv"), SHAPES)
def test_what_is_saved_loads_in_transformers_and_back(arch: str, tied: bool, kv: int | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    net = network(arch, tied, kv)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(to_settings(net.config, V, ids)), encoding="utf-8")
    save_file({k: v.contiguous().clone() for k, v in net.stored().items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    tokens_BL = torch.randint(0, V, (3, 20))
    assert torch.allclose(net.logits(tokens_BL), theirs.eval()(tokens_BL).logits, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    back = causal.Network(from_settings(settings), {"tokens": Part((None,), "int32", V)}, [Head("y", "text", "tokens", V)], "x")
    back.restore({k: v.detach() for k, v in theirs.state_dict().items() if not (tied and k == "lm_head.weight")})
    assert all(torch.equal(a, net.state_dict()[k]) for k, a in back.state_dict().items())


def test_shapes_that_are_not_computed_are_refused() -> None:
    good = to_settings(causal.Config(), V, {})
    with pytest.raises(Unsupported, match="qwen9"):
        from_settings({**good, "model_type": "qwen9"})
    with pytest.raises(Exception, match="rope_type"):
        from_settings({**good, "rope_parameters": {"rope_type": "yarn"}})


def test_counted_tokens_are_those_of_the_answers() -> None:
    net = network("llama")
    prompt, answer = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13]]
    mask = [[0, 1, 0], [0]]
    pad = lambda rows: torch.tensor([[*r, *[0] * (3 - len(r))] for r in rows])  # noqa: E731
    inputs = {
        "x.tokens": pad(prompt), "x.length": torch.tensor([3, 1]), "x.mask": pad(mask),
        "y.ids": pad(answer), "y.length": torch.tensor([2, 3]),
    }  # fmt: skip
    sums = net(inputs)["y.tokens"]
    for i in range(2):
        tokens = torch.tensor([prompt[i] + answer[i]])
        p_LV = net.logits(tokens)[0].log_softmax(1)
        counted = [j for j, m in enumerate([*mask[i], *[1] * len(answer[i])]) if m and j]
        assert sums[i].tolist() == pytest.approx([-sum(p_LV[j - 1, tokens[0, j]].item() for j in counted), len(counted)], rel=1e-5)


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_packed_texts_do_not_see_each_other(arch: str) -> None:
    net = network(arch)
    texts = [torch.randint(0, V, (n,)) for n in (7, 4, 9)]
    packed = torch.cat(texts)[None]
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor([7, 4, 9]))[None]
    hidden = net.model(packed, segments)[0]
    for text, found in zip(texts, hidden.split([7, 4, 9]), strict=True):
        assert torch.allclose(net.model(text[None])[0], found, atol=1e-5)


def test_blocks_of_the_vocabulary_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, ids = torch.randn(37, 8, requires_grad=True), torch.randn(V, 8, requires_grad=True), torch.randint(0, V, (37,))
    weigh = torch.rand(37)
    found = []
    for limit in (2**24, V * 5):
        monkeypatch.setattr(_vocabulary, "BLOCK", limit)
        nll = _vocabulary.token_nll(hidden, weight, ids)
        sums = [torch.autograd.grad(total, (hidden, weight), retain_graph=True) for total in ((nll * weigh).sum(), 0.3 * nll.sum())]
        found.append([nll.detach(), *sums[0], *sums[1]])
    plain = torch.nn.functional.cross_entropy(hidden @ weight.T, ids, reduction="none")
    wanted = [torch.autograd.grad(total, (hidden, weight), retain_graph=True) for total in ((plain * weigh).sum(), 0.3 * plain.sum())]
    frozen = torch.autograd.grad(_vocabulary.token_nll(hidden, weight.detach(), ids).sum(), hidden)[0]
    assert torch.allclose(frozen, wanted[1][0] / 0.3, atol=1e-5)
    for mine in found:
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, [plain, *wanted[0], *wanted[1]], strict=True))


def test_the_vocabulary_in_half_precision_has_the_same_gradients() -> None:
    hidden, weight, ids = torch.randn(37, 8), torch.randn(V, 8, requires_grad=True), torch.randint(0, V, (37,))
    weigh = torch.rand(37)
    for total in (lambda nll: (nll * weigh).sum(), lambda nll: nll.sum()):
        plain = torch.autograd.grad(total(_vocabulary.token_nll(hidden, weight, ids)), weight)[0]
        with torch.autocast("cpu", torch.bfloat16):
            nll = _vocabulary.token_nll(hidden.bfloat16(), weight, ids)
        assert nll.dtype == torch.float32
        assert torch.allclose(torch.autograd.grad(total(nll), weight)[0], plain, atol=0.1)


def test_activations_computed_again_give_the_same_gradients() -> None:
    grads = []
    for again in (False, True):
        net = network("qwen3", checkpointing=again).train()
        inputs = {"y.ids": torch.arange(24).reshape(2, 12), "y.length": torch.tensor([12, 12])}
        net(inputs)["y.tokens"][:, 0].sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("arch", "kv"), [("qwen3", 2), ("gpt2", None), ("llama", 1)])
def test_token_by_token_in_slots_equals_the_whole_text(arch: str, kv: int | None) -> None:
    net = network(arch, kv=kv)
    slots = Slots(net)
    slots.reserve(5, 40)
    texts = [np.random.default_rng(i).integers(0, V, n) for i, n in enumerate((12, 5, 9))]
    expected = [net.logits(torch.from_numpy(t)[None])[0].detach().numpy() for t in texts]
    place = np.array([3, 0, 4])  # neither in order nor side by side
    begun = np.array([6, 2, 9])
    prompts = np.stack([np.pad(t[:n], (0, 9 - n)) for t, n in zip(texts, begun, strict=True)])
    found = slots.feed(prompts, begun, place, np.zeros(3, np.int64))
    assert np.allclose(found, [e[n - 1] for e, n in zip(expected, begun, strict=True)], atol=1e-4)
    for _ in range(3):  # the third text has ended: its slot begins a new one meanwhile
        found = slots.feed(np.stack([texts[0][begun[:1]], texts[1][begun[1:2]]]), np.ones(2), place[:2], begun[:2])
        begun[:2] += 1
        assert np.allclose(found, [expected[0][begun[0] - 1], expected[1][begun[1] - 1]], atol=1e-4)
        fresh = slots.feed(texts[1][None, :4], np.array([4]), place[2:], np.zeros(1, np.int64))
        assert np.allclose(fresh[0], expected[1][3], atol=1e-4)
    with pytest.raises(ValueError, match="41 tokens"):
        slots.feed(np.zeros((1, 1)), np.ones(1), np.zeros(1), np.array([40]))
