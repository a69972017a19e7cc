"""MNIST and the CIFAR-10 subset from raw files to test accuracy: kind, encoding, recipe, augmentation and net.

    python benchmarks/vision.py mnist              # official split: at least 99.5 % within 5 minutes on 2 cores
    python benchmarks/vision.py cifar10 --seeds 3  # 20,000 images: at least 75 % within 10 minutes
    python benchmarks/vision.py mnist --held-out   # the split that recipes are chosen on, without test images
    python benchmarks/vision.py speed              # every family in ONNX Runtime on one thread: weights, latency, throughput

The floor is printed first: the arithmetic of all convolutions, forward and backward, at 45 GFLOP/s (two cores with
AVX2). Times are wall and CPU seconds; CPU seconds / cores is what an idle machine takes. The training loop here is
written out by hand, so that it also says what Modelyard's own loop costs in comparison.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from modelyard.kinds._contract import Part
from modelyard.kinds._pixels import PixelsConfig
from modelyard.kinds.image import KIND
from modelyard.nets import cnn, inverted, light, resnet, shuffle
from modelyard.verbs.train.augment import ImageAugment, read

SHARED = (
    Path(os.environ.get("MODELYARD_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "image_classification"
)
GFLOPS = 45
FAMILIES: dict[str, Any] = {"cnn": cnn, "resnet": resnet, "light": light, "inverted": inverted, "shuffle": shuffle}


def idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of bytes (format: http://yann.lecun.com/exdb/mnist)."""
    data = gzip.decompress(path.read_bytes())
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, 4).astype(int)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def mnist() -> tuple[pl.Series, np.ndarray, pl.Series, np.ndarray]:
    """(training images, labels, test images, labels)."""
    folder = SHARED / "mnist"
    x, y, x_test, y_test = (
        idx(folder / f"{name}.gz")
        for name in (
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        )
    )
    return pl.Series("image", x), y.astype(np.int64), pl.Series("image", x_test), y_test.astype(np.int64)


def cifar10() -> tuple[pl.Series, np.ndarray, pl.Series, np.ndarray]:
    """The same of JPEG files in zips, with a folder for each class."""
    found: list[Any] = []
    for part in ("train", "test"):
        with zipfile.ZipFile(SHARED / "cifar10_subset" / f"{part}.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
            folders = [name.split("/")[-2] for name in names]
            found += [pl.Series("image", [archive.read(name) for name in names])]
            found += [np.unique(folders, return_inverse=True)[1]]
    return found[0], found[1], found[2], found[3]


def training_flops(net: nn.Module, images: Tensor) -> float:
    """Floating-point operations of one image, forward and backward (3 times forward), counted by PyTorch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()({"pixels": images[:2]})
    return 3.0 * float(counter.get_total_flops()) / 2


def rate(done: float, warmup: float) -> float:
    """One cycle: from a tenth up to 1 in the share `warmup` of all steps, then straight down to 0."""
    return 0.1 + 0.9 * done / warmup if done < warmup else (1 - done) / (1 - warmup)


def train(net: nn.Module, images: Tensor, labels: Tensor, settings: dict[str, Any], seed: int) -> None:
    """AdamW, weight decay on matrices only, one cycle."""
    epochs, batch = settings["epochs"], settings["batch"]
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=settings["lr"], betas=(0.9, 0.99), fused=True)
    hook = ImageAugment({"image": read("standard", images.shape[1])}, ["image.pixels"], seed, epochs)
    steps, step = epochs * math.ceil(len(images) / batch), 0
    net.train()
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        total = 0.0
        for begin in range(0, len(order), batch):
            ids = order[begin : begin + batch]
            picked = torch.from_numpy(ids)
            inputs, _ = hook({"image.pixels": images[picked]}, ids, epoch)
            for group in optimiser.param_groups:
                group["lr"] = settings["lr"] * rate(step / steps, settings["warmup"])
            loss = functional.cross_entropy(
                net({"pixels": inputs["image.pixels"]}), labels[picked], label_smoothing=settings["label_smoothing"]
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            optimiser.zero_grad()
            total += loss.item() * len(ids)
            step += 1
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}", file=sys.stderr, flush=True)


@torch.inference_mode()
def correct(net: nn.Module, images: Tensor, labels: Tensor) -> int:
    """How many are right."""
    net.eval()
    answers = torch.cat([net({"pixels": block}).argmax(1) for block in torch.split(images, 500)])
    return int((answers == labels).sum())


def interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    p, spread = right / count, z * z / count
    middle, half = p + spread / 2, z * math.sqrt(p * (1 - p) / count + spread / (4 * count))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def run(data: str, family: str, seed: int, held_out: bool, threads: int, epochs: int | None, rows: int | None) -> None:
    """One training from files to a printed line."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    wall, cpu = time.perf_counter(), time.process_time()
    columns: list[Any] = list(mnist() if data == "mnist" else cifar10())
    if held_out:
        # MNIST's neighbours are of one writer, and those of the test set are others: a random split flatters by 0.25 %
        order = np.arange(60_000)[::-1] if data == "mnist" else np.random.default_rng(123).permutation(len(columns[0]))
        cut = len(order) // (6 if data == "mnist" else 5)
        columns = [columns[0][order[cut:]], columns[1][order[cut:]], columns[0][order[:cut]], columns[1][order[:cut]]]
    if rows:
        kept = np.random.default_rng([seed, 1]).permutation(len(columns[0]))[:rows]
        columns[:2] = columns[0][kept], columns[1][kept]
    checked = [KIND.check(column) for column in (columns[0], columns[2])]
    assert not checked[0][1] and not checked[1][1], "the shared images are whole"
    encoding: Any = KIND.encodings["pixels"]
    state = encoding.fit(checked[0][0], PixelsConfig())
    x, x_test = (
        torch.from_numpy(np.array(encoding.encode(column, state, {})["pixels"], copy=True)) for column, _ in checked
    )
    y, y_test = torch.from_numpy(columns[1]), torch.from_numpy(columns[3])
    module = FAMILIES[family]
    settings: dict[str, Any] = module.TRAIN
    config: Any = module.Config()
    if module is cnn:
        config, settings = cnn.recipe(encoding.parts(state), len(x))
    settings = {**settings, "epochs": epochs or settings["epochs"]}
    encoder = module.Encoder(config, encoding.parts(state), statistics=state.statistics())
    net = nn.Sequential(encoder, nn.Linear(encoder.width, int(y.max()) + 1))
    flops = training_flops(net, x) * settings["epochs"] * len(x)
    small = settings["epochs"] // 2 / settings["epochs"]  # the share of epochs at a lower resolution
    flops *= 1 - small * (1 - read("standard", x.shape[1]).progressive ** 2)
    print(f"{data} {family} {config}\n  {settings}")
    print(f"  floor: {flops / 1e12:.1f} TFLOP = {flops / GFLOPS / 1e9:.0f} s at {GFLOPS} GFLOP/s", flush=True)
    prepared, used = time.perf_counter() - wall, time.process_time() - cpu
    train(net, x, y, settings, seed)
    right = correct(net, x_test, y_test)
    low, high = interval(right, len(y_test))
    print(
        f"  {data} {family} seed {seed}: {'held-out' if held_out else 'test'} accuracy {right / len(y_test):.4f} "
        f"[{low:.4f}, {high:.4f}]; {time.perf_counter() - wall:.0f} s wall, {time.process_time() - cpu:.0f} s CPU on "
        f"{threads} threads (of these {prepared:.0f} and {used:.0f} to read and encode)",
        flush=True,
    )


class _OfPixels(nn.Module):
    """Called with the tensor itself, as the exporter wants: it takes a last dict for keywords."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, 10)."""
        logits: Tensor = self.net({"pixels": pixels})
        return logits


def session(family: str, shape: tuple[int, int, int]) -> tuple[Any, int]:
    """(ONNX Runtime on one thread with a head of ten labels, number of weights)."""
    import onnxruntime

    module = FAMILIES[family]
    torch.manual_seed(0)
    encoder = module.Encoder(module.Config(), {"pixels": Part(shape, "uint8")})
    net = nn.Sequential(encoder, nn.Linear(encoder.width, 10)).eval()
    batch = {0: torch.export.Dim.DYNAMIC}
    example = torch.zeros((3, *shape), dtype=torch.uint8)
    program = torch.onnx.export(
        _OfPixels(net).eval(), (example,), dynamo=True, dynamic_shapes={"pixels": batch}, input_names=["pixels"], verbose=False
    )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]), sum(w.numel() for w in net.parameters())


def speed(shape: tuple[int, int, int] = (3, 32, 32), rounds: int = 100) -> None:
    """One line a family: median CPU time of a call, families in turn so that a busy machine slows them alike."""
    made = {family: session(family, shape) for family in FAMILIES}
    images = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
    spent: dict[tuple[str, int], list[float]] = {}
    for count, calls in ((1, 20), (64, 1)):
        for _ in range(rounds):
            for family, (runtime, _) in made.items():
                begin = time.process_time()
                for _ in range(calls):
                    runtime.run(None, {"pixels": images[:count]})
                spent.setdefault((family, count), []).append((time.process_time() - begin) / calls)
    print("| net | weights | one image, ms | low | high | images/s at 64 |\n|---|---|---|---|---|---|")
    for family, (_, weights) in made.items():
        low, one, high = (1000 * float(q) for q in np.quantile(spent[family, 1], (0.25, 0.5, 0.75)))
        many = 64 / float(np.median(spent[family, 64]))
        print(f"| {family} | {weights:,} | {one:.3f} | {low:.3f} | {high:.3f} | {many:,.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["mnist", "cifar10", "speed"])
    parser.add_argument("--net", choices=list(FAMILIES), default="cnn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, counted from --seed")
    parser.add_argument(
        "--held-out", action="store_true", help="hold out part of the training set; leave the test set alone"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--rows", type=int, help="only so many training images, drawn by the seed")
    given = parser.parse_args()
    if given.data == "speed":
        speed()
        sys.exit()
    if not SHARED.is_dir():
        sys.exit(f"the shared data sets are not at {SHARED}; set MODELYARD_SHARED")
    for each in range(given.seed, given.seed + given.seeds):
        run(given.data, given.net, each, given.held_out, given.threads, given.epochs, given.rows)
