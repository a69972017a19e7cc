"""Image nets and augmentation: against the papers' tables, slow loops, ONNX Runtime and themselves in another batch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modelyard import settings
from modelyard.errors import ConfigError, Problem, Unsupported
from modelyard.kinds._contract import Part
from modelyard.nets import cnn, inverted, light, resnet, shuffle
from modelyard.nets._pixels import ImageEncoder
from modelyard.verbs.train import augment as ops
from modelyard.verbs.train.augment import AugmentConfig, Draws, Mix, augment
from modelyard.verbs.train.config import TrainConfig

CASES: list[tuple[Any, dict[str, Any], tuple[int, int, int]]] = [
    (cnn, {}, (3, 32, 32)),
    (cnn, {"widths": (8, 16), "depths": (3, 4), "activation": "gelu", "dropout": 0.3}, (1, 9, 6)),
    (cnn, {"widths": (8, 16, 16, 16), "depths": (1, 1, 1, 1)}, (1, 4, 4)),
    (resnet, {}, (3, 32, 32)),
    (resnet, {"depth": 14, "preactivation": True, "widen": 0.5}, (1, 28, 28)),
    (resnet, {"depth": 18, "widen": 0.125}, (3, 70, 64)),
    (light, {}, (3, 32, 32)),
    (light, {"size": "full", "widen": 0.35, "activation": "silu"}, (3, 64, 80)),
    (light, {}, (1, 5, 5)),
    (inverted, {}, (3, 32, 32)),
    (inverted, {"size": "small", "widen": 0.35}, (3, 64, 80)),
    (inverted, {"dropout": 0.3}, (1, 5, 5)),
    (shuffle, {}, (3, 32, 32)),
    (shuffle, {"size": "0.5x", "widen": 0.5, "activation": "hard-swish"}, (3, 64, 80)),
    (shuffle, {"dropout": 0.3}, (1, 5, 5)),
]
NAMES = [f"{module.__name__.split('.')[-1]}-{index}" for index, (module, _, _) in enumerate(CASES)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny nets: threads that wait for each other are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pixels(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def encoder(module: Any, options: dict[str, Any], shape: tuple[int, int, int]) -> ImageEncoder:
    """With running statistics that differ from 0 and 1, as after training."""
    torch.manual_seed(0)
    statistics = {"mean": [0.4] * shape[0], "std": [0.2] * shape[0]}
    made: ImageEncoder = module.Encoder(
        module.Config(**options), {"pixels": Part(shape, "uint8")}, statistics=statistics
    )
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    made.train()
    for seed in range(3):
        made({"pixels": pixels(16, shape, seed)})
    made.eval()
    return made


@pytest.mark.parametrize(("module", "options", "shape"), CASES, ids=NAMES)
@torch.no_grad()
def test_features_have_the_width_and_do_not_depend_on_the_batch(module: Any, options: Any, shape: Any) -> None:
    net, images = encoder(module, options, shape), pixels(7, shape)
    together = net({"pixels": images})
    assert together.shape == (7, net.width) and together.std() > 0
    alone = torch.cat([net({"pixels": images[i : i + 1]}) for i in range(7)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    by_hand = net.from_embedded({"pixels": images.float() / 255})
    torch.testing.assert_close(by_hand, together)


@pytest.mark.parametrize(("module", "options", "shape"), CASES, ids=NAMES)
def test_every_weight_learns_and_pixels_have_a_gradient(module: Any, options: Any, shape: Any) -> None:
    net = encoder(module, options, shape).train()
    embedded = net.embed({"pixels": pixels(8, shape)})
    embedded["pixels"].requires_grad_()
    (net.from_embedded(embedded) * torch.randn(net.width)).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    assert embedded["pixels"].grad is not None and embedded["pixels"].grad.any()


@pytest.mark.parametrize(("module", "options", "shape"), [CASES[i] for i in (0, 5, 6, 9, 12)], ids=["cnn", "resnet", "light", "inverted", "shuffle"])
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_runtime_answers_the_same_for_any_batch(module: Any, options: Any, shape: Any) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = encoder(module, options, shape)
    network = _Named(net).eval()
    dynamic = {"pixels": {0: torch.export.Dim.DYNAMIC}}
    program = torch.onnx.export(
        network, (pixels(3, shape),), dynamo=True, dynamic_shapes=dynamic, input_names=["pixels"], verbose=False
    )
    assert program is not None
    model = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for count in (1, 2, 13):
        images = pixels(count, shape, count)
        with torch.no_grad():
            expected = network(images).numpy()
        np.testing.assert_allclose(session.run(None, {"pixels": images.numpy()})[0], expected, atol=1e-5, rtol=1e-5)


class _Named(nn.Module):
    def __init__(self, net: ImageEncoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of one tensor."""
        features: Tensor = self.net({"pixels": pixels})
        return features


def weights(module: Any, shape: tuple[int, int, int], **options: Any) -> int:
    with torch.device("meta"):
        net = module.Encoder(module.Config(**options), {"pixels": Part(shape, "uint8")})
    return sum(weight.numel() for weight in net.parameters())


def test_weights_are_those_of_the_papers() -> None:
    # torchvision's tables, with a head of 1000 classes
    assert weights(resnet, (3, 224, 224), depth=18) == 11_689_512 - 513 * 1000
    assert weights(resnet, (3, 224, 224), depth=34) == 21_797_672 - 513 * 1000
    assert weights(light, (3, 224, 224), size="full") == 3_504_872 - 1281 * 1000
    assert weights(inverted, (3, 224, 224), size="large") == 5_483_032 - 1281 * 1000
    assert weights(inverted, (3, 224, 224), size="small") == 2_542_856 - 1025 * 1000
    for size, whole in (("0.5x", 1_366_792), ("1x", 2_278_604), ("1.5x", 3_503_624)):
        assert weights(shuffle, (3, 224, 224), size=size) == whole - 1025 * 1000
    assert weights(shuffle, (3, 224, 224), size="2x") == 7_393_996 - 2049 * 1000
    # He 2015, table 6: ResNet-20 has 0.27 million; our two projections add 2,560 weights and 192 of normalisation
    assert weights(resnet, (3, 32, 32), depth=20) == 269_722 - 650 + 2_560 + 192


@pytest.mark.parametrize(
    ("module", "size", "millions"),
    # Howard 2019, table 3; Ma 2018, table 8; with a head of 1000 classes
    [(inverted, "large", 219), (inverted, "small", 56), (shuffle, "0.5x", 41), (shuffle, "1x", 146), (shuffle, "1.5x", 299), (shuffle, "2x", 591)],
)
def test_multiplications_are_those_of_the_papers(module: Any, size: str, millions: int) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        net = module.Encoder(module.Config(size=size), {"pixels": Part((3, 224, 224), "uint8")}).eval()
        net({"pixels": torch.zeros((1, 3, 224, 224), dtype=torch.uint8)})
    found = counter.get_total_flops() / 2e6 + net.width * 1000 / 1e6
    assert 0.97 * millions < found < 1.01 * millions  # the papers count normalisation and activations as well


@torch.no_grad()
def test_a_shuffle_block_equals_the_papers_order_of_steps() -> None:
    net = encoder(shuffle, {}, (3, 16, 16))
    keep = next(layer for layer in net.modules() if isinstance(layer, shuffle.Keep))
    channels = 2 * keep.body[0][0].in_channels  # type: ignore[index, operator]
    maps = torch.randn(2, int(channels), 5, 5, generator=torch.Generator().manual_seed(0))
    joined = torch.cat((maps[:, : channels // 2], keep.body(maps[:, channels // 2 :])), 1)
    shuffled = joined.view(2, 2, channels // 2, 5, 5).transpose(1, 2).reshape(2, channels, 5, 5)
    found = keep(maps)
    assert torch.equal(found, shuffled)
    assert torch.equal(found[:, ::2], maps[:, : channels // 2])  # half passes unchanged, and lands on both halves
    change = next(layer for layer in net.modules() if isinstance(layer, shuffle.Change))
    maps = torch.randn(2, change.body[0][0].in_channels, 8, 8, generator=torch.Generator().manual_seed(1))  # type: ignore[index]
    found = change(maps)
    assert torch.equal(found[:, ::2], change.shortcut(maps)) and torch.equal(found[:, 1::2], change.body(maps))


@torch.no_grad()
def test_squeeze_and_excitation_equals_a_slow_loop() -> None:
    torch.manual_seed(0)
    layer = inverted.Excite(24)
    maps = torch.randn(3, 24, 4, 5)
    squeeze, excite = (conv.weight[:, :, 0, 0].double().numpy() for conv in (layer.squeeze, layer.excite))
    before, after = (conv.bias.double().numpy() for conv in (layer.squeeze, layer.excite))  # type: ignore[union-attr]
    for image, out in zip(maps.double().numpy(), layer(maps).numpy(), strict=True):
        means = np.array([channel.mean() for channel in image])
        hidden = np.maximum(squeeze @ means + before, 0)
        share = np.clip(excite @ hidden + after + 3, 0, 6) / 6
        np.testing.assert_allclose(out, image * share[:, None, None], atol=1e-5)


def test_a_column_that_is_no_image_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"not tokens \(None,\)"):
        cnn.Encoder(cnn.Config(), {"tokens": Part((None,), "int32")})


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (3, 1, 1), (1, 8, 8), (3, 64, 48), (3, 128, 128), (3, 9, 300)]
)
@pytest.mark.parametrize("rows", [1, 1000, 60_000, 10**7])
def test_the_recipe_fits_every_image_and_any_number_of_rows(shape: Any, rows: int) -> None:
    config, train = cnn.recipe({"pixels": Part(shape, "uint8")}, rows)
    net = cnn.Encoder(config, {"pixels": Part(shape, "uint8")}).eval()
    with torch.no_grad():
        assert net({"pixels": pixels(2, shape)}).shape == (2, net.width)
    assert 4 <= train["epochs"] <= 60 and set(train) == set(cnn.TRAIN)  # type: ignore[operator]
    assert set(train) <= {field.name for field in fields(TrainConfig)}


def test_a_wrong_net_section_names_every_mistake() -> None:
    problems: list[Problem] = []
    assert settings.parse(cnn.Config, {"widths": [8, 0], "dropout": 2, "width": 3}, "model", problems) is None
    assert len(problems) == 3
    for wrong in ({"widths": [8, 8], "depths": [1]}, {"stem": 4}):
        problems = []
        assert settings.parse(cnn.Config, wrong, "model", problems) is None and len(problems) == 1
    assert settings.parse(cnn.Config, {"widths": [8, 16]}, "model", []) == cnn.Config(widths=(8, 16))


@pytest.mark.parametrize("family", ["cnn", "resnet", "light", "inverted", "shuffle"])
def test_a_net_learns_to_tell_stripes(family: str) -> None:
    module = importlib.import_module(f"modelyard.nets.{family}")
    torch.manual_seed(0)
    labels = torch.arange(96) % 2
    bars = (torch.arange(12) // 2 % 2).float() * 160
    images = torch.where(labels[:, None, None] == 0, bars[None, :, None], bars[None, None, :]).expand(96, 12, 12)
    images = (images + torch.rand(96, 12, 12) * 90)[:, None].to(torch.uint8)
    net = module.Encoder(module.Config(), {"pixels": Part((1, 12, 12), "uint8")})
    head = nn.Linear(net.width, 2)
    optimiser = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=0.004)
    for step in range(30):
        optimiser.param_groups[0]["lr"] = 0.004 * (1 - step / 30)  # running statistics catch up at the end
        loss = nn.functional.cross_entropy(head(net({"pixels": images[:64]})), labels[:64])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    net.eval()
    with torch.no_grad():
        assert (head(net({"pixels": images[64:]})).argmax(1) == labels[64:]).all()


# -- augmentation


def draws(count: int, seed: int = 3, epoch: int = 1, first: int = 0) -> Draws:
    return Draws(seed, epoch, np.arange(first, first + count))


def test_an_example_is_augmented_alike_in_any_batch_and_differently_in_any_epoch_or_seed() -> None:
    config = AugmentConfig(crop=0.2, rotate=10, scale=0.1, shift=0.1, shear=0.1, flip=True, cutout=0.3)
    images, order = pixels(12, (3, 10, 8)), np.random.default_rng(0).permutation(12)
    whole, _ = augment(images, config, draws(12))
    mixed_up, _ = augment(images[order], config, Draws(3, 1, np.arange(12)[order]))
    torch.testing.assert_close(mixed_up, whole[order], atol=1e-4, rtol=0)
    for other in (draws(12, epoch=2), draws(12, seed=4), draws(12, first=12)):
        changed, _ = augment(images, config, other)
        assert ((changed - whole).abs().amax((1, 2, 3)) > 1).all()


def test_draws_are_uniform_and_independent() -> None:
    numbers = draws(20_000).uniform("flip", 3).numpy().astype(float)
    assert numbers.min() >= 0 and numbers.max() < 1
    for column in numbers.T:
        counts = np.histogram(column, 50, (0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 94.6  # chi-squared, 49 degrees of freedom: 1 in 10,000
    others = [draws(20_000, epoch=2), draws(20_000, seed=4), draws(20_000, first=1)]
    columns = [*numbers.T, draws(20_000).uniform("crop", 1)[:, 0], *(o.uniform("flip", 1)[:, 0] for o in others)]
    correlation = np.corrcoef(np.stack(columns)) - np.eye(len(columns))
    assert np.abs(correlation).max() < 4.5 / math.sqrt(20_000)


@pytest.mark.parametrize("padding", ["reflect", "zero"])
def test_crop_flip_and_cutout_equal_slow_loops(padding: str) -> None:
    images = pixels(9, (3, 7, 5))
    offsets = torch.randint(-3, 4, (9, 2), generator=torch.Generator().manual_seed(0))
    found = ops.crop(images, offsets, padding).numpy()
    for image, (y, x), out in zip(images.numpy(), offsets.tolist(), found, strict=True):
        mode: Any = "reflect" if padding == "reflect" else "constant"
        padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode=mode)
        np.testing.assert_array_equal(out, padded[:, 3 + y : 10 + y, 3 + x : 8 + x])
    chosen = torch.tensor([True, False] * 4 + [True])
    for index, out in enumerate(ops.flip(images, chosen).numpy()):
        np.testing.assert_array_equal(out, images[index].numpy()[:, :, :: -1 if chosen[index] else 1])
    centres = torch.rand((9, 2), generator=torch.Generator().manual_seed(1))
    for index, out in enumerate(ops.cutout(images, centres, (3, 2)).numpy()):
        expected = images[index].numpy().copy()
        top, left = int(centres[index, 0] * 7) - 1, int(centres[index, 1] * 5) - 1
        fill = images[index].float().mean((1, 2)).round().numpy()[:, None, None]
        expected[:, max(0, top) : top + 3, max(0, left) : left + 2] = fill
        np.testing.assert_array_equal(out, expected)


def test_affine_maps_are_exact_for_right_angles_and_whole_shifts() -> None:
    images = pixels(2, (1, 6, 6)).float()
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]).expand(2, 2, 3)
    torch.testing.assert_close(ops.affine(images, quarter), torch.rot90(images, 1, (2, 3)), atol=1e-3, rtol=0)
    one_pixel = torch.tensor([[1.0, 0.0, 2 / 6], [0.0, 1.0, 0.0]]).expand(2, 2, 3)
    moved = ops.affine(images, one_pixel, "zero")
    torch.testing.assert_close(moved[..., :-1], images[..., 1:], atol=1e-3, rtol=0)
    assert moved[..., -1].max() < 1e-3
    still = ops.affine_maps(AugmentConfig(), draws(4))
    torch.testing.assert_close(still, torch.eye(2, 3).expand(4, 2, 3))


def test_affine_maps_stay_within_their_limits() -> None:
    maps = ops.affine_maps(AugmentConfig(rotate=15, scale=0.2, shift=0.1), draws(5000)).double()
    angles = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 1, 1]))
    sizes = maps[:, 1, :2].norm(dim=1)
    for values, low, high in ((angles, -15, 15), (sizes, 0.8, 1.2), (maps[:, 0, 2], -0.2, 0.2)):
        assert low - 1e-3 <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high + 1e-3


def test_mixup_and_cutmix_weigh_both_targets() -> None:
    images, partner = pixels(8, (2, 6, 4)), torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    weight = torch.linspace(0, 1, 8)
    blended, mix = ops.mixup(images, partner, weight)
    for i in range(8):
        expected = weight[i] * images[i].double() + (1 - weight[i]) * images[partner[i]].double()
        torch.testing.assert_close(blended[i].double(), expected, atol=1e-3, rtol=0)
    centres = torch.rand((8, 2), generator=torch.Generator().manual_seed(0))
    cut, mix = ops.cutmix(images, partner, weight, centres)
    own, other = (cut == images).all(1), (cut == images[partner]).all(1)
    assert (own | other).all()
    same = (images == images[partner]).all(1)
    torch.testing.assert_close(mix.weight_B, 1 - (other & ~same).float().mean((1, 2)))
    targets, logits = torch.arange(8) % 3, torch.randn(8, 3)
    soft = mix.weight_B[:, None] * nn.functional.one_hot(targets, 3)
    soft = soft + (1 - mix.weight_B[:, None]) * nn.functional.one_hot(targets[partner], 3)
    expected = nn.functional.cross_entropy(logits, soft, reduction="none")
    found = ops.mixed(lambda target: nn.functional.cross_entropy(logits, target, reduction="none"), targets, mix)
    torch.testing.assert_close(found, expected)


def test_augment_with_mixing_returns_what_it_did() -> None:
    images = pixels(16, (3, 8, 8))
    unchanged, none = augment(images, AugmentConfig(), draws(16))
    assert none is None and unchanged is images
    blended, mix = augment(images, AugmentConfig(mixup=0.4), draws(16))
    assert isinstance(mix, Mix) and mix.partner_B.sort().values.tolist() == list(range(16))
    torch.testing.assert_close(blended, ops.mixup(images, mix.partner_B, mix.weight_B)[0])
    again, _ = augment(images, AugmentConfig(mixup=0.4), draws(16))
    assert torch.equal(again, blended)
    kinds = {augment(images, AugmentConfig(mixup=1, cutmix=1), draws(16, epoch=e))[0].dtype for e in range(12)}
    assert kinds == {torch.float32, torch.uint8}  # both occur: cut-mix keeps whole pixels
    for channels in (1, 3):
        plain, none = augment(pixels(4, (channels, 8, 8)), ops.standard(channels), draws(4))
        assert none is None and plain.shape == (4, channels, 8, 8) and plain.min() >= 0 and plain.max() <= 255


def test_progressive_sizes_are_those_of_pillow() -> None:
    images = pixels(3, (3, 32, 20))
    small = ops.progressive(images, 0.75)
    assert small.shape == (3, 3, 24, 15) and ops.progressive(images, 1.0) is images
    for image, out in zip(images, small, strict=True):
        pillow = Pillow.fromarray(image.permute(1, 2, 0).numpy()).resize((15, 24), Pillow.Resampling.BILINEAR)
        assert np.abs(np.asarray(pillow).transpose(2, 0, 1) - out.numpy()).max() < 1.01  # Pillow rounds twice


def test_the_hook_of_the_loop_touches_image_columns_only() -> None:
    inputs = {
        "a.pixels": pixels(6, (3, 16, 16)),
        "b.pixels": pixels(6, (3, 16, 16)),
        "table.numbers": torch.randn(6, 2),
    }
    config = AugmentConfig(flip=True, crop=0.2, progressive=0.5)
    hook = ops.ImageAugment({"a": config, "b": config}, inputs, seed=1, epochs=4)
    ids = np.arange(6)
    early, mix = hook(inputs, ids, 1)
    late, _ = hook(inputs, ids, 2)
    assert mix is None and early["a.pixels"].shape[2:] == (8, 8) and late["a.pixels"].shape[2:] == (16, 16)
    assert early["table.numbers"] is inputs["table.numbers"] and not torch.equal(late["a.pixels"], inputs["a.pixels"])
    same = {"a.pixels": inputs["a.pixels"], "b.pixels": inputs["a.pixels"]}
    drawn, _ = hook(same, ids, 3)
    assert not torch.equal(drawn["a.pixels"], drawn["b.pixels"])  # columns are drawn for by themselves
    unplanned, _ = ops.ImageAugment({"a": config}, inputs, seed=1, epochs=None)(inputs, ids, 0)
    assert unplanned["a.pixels"].shape[2:] == (16, 16)
    with pytest.raises(Unsupported, match=r"b\.pixels, table\.numbers too"):
        ops.ImageAugment({"a": AugmentConfig(mixup=0.2)}, inputs, seed=1, epochs=4)


def test_the_setting_is_read_with_all_its_mistakes() -> None:
    assert ops.read("none", 3) == ops.read(None, 3) == AugmentConfig()
    assert ops.read("standard", 3) == ops.standard(3) and ops.read("none", 1, mixup=0.5) == AugmentConfig(mixup=0.5)
    assert ops.read({"crop": 0.2, "flip": True}, 1) == AugmentConfig(crop=0.2, flip=True)
    with pytest.raises(ConfigError) as caught:
        ops.read({"crop": 2, "flop": True}, 3)
    assert len(caught.value.details) == 2
    with pytest.raises(ConfigError, match="standrd"):
        ops.read("standrd", 3)
