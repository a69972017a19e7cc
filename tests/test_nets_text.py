"""Text nets: alone = padded, exported = torch, and each against a slow loop."""

from __future__ import annotations

import importlib
import io
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from modelyard.kinds._contract import Part  # noqa: E402
from modelyard.nets import bag, text_cnn, transformer  # noqa: E402

TOKENS = {"tokens": Part((None,), "int32", 50)}
GRAMS = {"grams": Part((None,), "int32", 5000), "weights": Part((None,), "float32")}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("bag", {"buckets": 300}), ("bag", {"hidden": (16,)}), ("text_cnn", {"sizes": (2, 3, 4)}),
    ("transformer", {"width": 32}), ("transformer", {"width": 32, "pooling": "mean"}),
]  # fmt: skip


def encoder(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    module = importlib.import_module(f"modelyard.nets.{name}")
    return module.Encoder(module.Config(**options), GRAMS if name == "bag" else TOKENS).eval()


def batch(name: str, lengths: list[int], width: int) -> dict[str, Tensor]:
    """Padding holds zeros, as `pad` makes it."""
    generator = torch.Generator().manual_seed(1)
    length = torch.tensor(lengths)
    mask = torch.arange(width)[None] < length[:, None]
    shape = (len(lengths), width)
    if name == "bag":
        grams = torch.randint(0, 5000, shape, generator=generator, dtype=torch.int32) * mask
        return {"grams": grams, "weights": torch.rand(shape, generator=generator) * mask, "length": length}
    return {"tokens": torch.randint(1, 50, shape, generator=generator, dtype=torch.int32) * mask, "length": length}


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_text_alone_and_in_a_padded_batch_answers_the_same(name: str, options: dict[str, Any]) -> None:
    net, lengths = encoder(name, options), [7, 1, 12, 0, 3]
    x = batch(name, lengths, 20)
    with torch.no_grad():
        together = net(x)
        assert together.shape == (5, net.width) and torch.isfinite(together).all()
        for i, n in enumerate(lengths):
            one = {k: v[i : i + 1, : max(1, n)] if v.dim() == 2 else v[i : i + 1] for k, v in x.items()}
            torch.testing.assert_close(net(one), together[i : i + 1], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(net.from_embedded(net.embed(x)), together, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own exporter
@pytest.mark.filterwarnings("ignore:.*axis name:UserWarning")
@pytest.mark.parametrize(("name", "options"), [CASES[0], *CASES[2:4]], ids=str)
def test_the_exported_net_answers_the_same(name: str, options: dict[str, Any]) -> None:
    ort = pytest.importorskip("onnxruntime")
    net, x = encoder(name, options), batch(name, [5, 3, 0], 9)
    keys = list(x)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, *values: Tensor) -> Tensor:
            return self.net(dict(zip(keys, values, strict=True)))

    rows, places = torch.export.Dim("B", min=1, max=4096), torch.export.Dim("L", min=1, max=4096)
    axes = tuple({0: rows, 1: places} if x[k].dim() == 2 else {0: rows} for k in keys)
    program = torch.onnx.export(
        Named().eval(), tuple(x.values()), dynamo=True, dynamic_shapes=(axes,), input_names=keys, verbose=False
    )
    stream = io.BytesIO()
    program.save(stream)
    session = ort.InferenceSession(stream.getvalue(), providers=["CPUExecutionProvider"])
    wanted = [i.name for i in session.get_inputs()]
    for lengths, width in ([1], 1), ([0], 1), ([40, 2, 0, 17], 40):
        x = batch(name, lengths, width)
        with torch.no_grad():
            expected = net(x).numpy()
        (found,) = session.run(None, {k: x[k].numpy() for k in wanted})
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_bag_is_a_weighted_sum_and_its_fused_training_path_has_the_same_gradient() -> None:
    net = bag.Encoder(bag.Config(width=4, buckets=100, dropout=0.0, gram_dropout=0.0), GRAMS)
    x = batch("bag", [5, 0, 3], 6)
    table = net.table.weight.detach().numpy().astype(np.float64)
    want = np.zeros((3, 4))
    for i in range(3):
        for j in range(int(x["length"][i])):
            want[i] += float(x["weights"][i, j]) * table[int(x["grams"][i, j]) % 100]
    np.testing.assert_allclose(net.eval()(x).detach().numpy(), want, atol=1e-6)
    gradients = []
    for training in (True, False):
        net.train(training).zero_grad()
        (net(x) ** 2).sum().backward()
        gradients.append(net.table.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_the_convolution_equals_a_loop_over_windows() -> None:
    net = text_cnn.Encoder(text_cnn.Config(embedding=3, filters=2, sizes=(2, 3)), TOKENS).eval()
    x = batch("text_cnn", [4, 1], 6)
    table = net.table.weight.detach().numpy()
    found = net(x).detach().numpy()
    for i in range(2):
        tokens = table[x["tokens"][i, : int(x["length"][i])].numpy()]
        want = []
        for convolution, size in zip(net.convolutions, (2, 3), strict=True):
            weight, bias = convolution.weight.detach().numpy(), convolution.bias.detach().numpy()
            padded = np.pad(tokens, ((size // 2, size - 1 - size // 2), (0, 0)))
            windows = [np.einsum("fek,ke->f", weight, padded[t : t + size]) + bias for t in range(len(tokens))]
            want.append(np.maximum(windows, 0).max(axis=0))
        np.testing.assert_allclose(found[i], np.concatenate(want), atol=1e-5)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    position = torch.arange(30.0)[:, None] * 10_000.0 ** (-torch.arange(4.0) / 4)
    q, k = (torch.randn(8, generator=torch.Generator().manual_seed(s)).expand(1, 1, 30, 8) for s in (0, 1))
    turned_q, turned_k = (transformer.rotate(v, position.cos(), position.sin())[0, 0] for v in (q, k))
    scores = turned_q @ turned_k.T
    for offset in (0, 3, 11):
        diagonal = torch.diagonal(scores, offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert scores.std() > 0.1


def test_the_transformer_sees_order() -> None:
    net = encoder("transformer", {"width": 32})
    a = {"tokens": torch.tensor([[3, 4, 5, 6]], dtype=torch.int32), "length": torch.tensor([4])}
    b = {**a, "tokens": a["tokens"].flip(1)}
    assert (net(a) - net(b)).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "options"), [CASES[0], *CASES[2:4]], ids=str)
def test_a_rule_is_learnt(name: str, options: dict[str, Any]) -> None:
    """Whether token (gram) 7 is in the text."""
    net = encoder(name, options)
    head = nn.Linear(net.width, 2)
    optimiser = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=1e-2)
    generator = torch.Generator().manual_seed(3)
    key = "grams" if name == "bag" else "tokens"
    x = {key: torch.randint(8, 50, (256, 10), generator=generator, dtype=torch.int32), "length": torch.full((256,), 10)}
    x["weights"] = torch.full((256, 10), 10**-0.5)
    y = torch.arange(256) % 2
    x[key][y == 1, 4] = 7
    net.train()
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(net(x)), y).backward()
        optimiser.step()
    accuracy = (head(net.eval()(x)).argmax(1) == y).float().mean()
    assert accuracy > 0.97


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple"):
        transformer.Config(width=30, heads=4)
