"""Modelyard's training loop beside Lightning and a hand-written PyTorch loop: the same nets, numbers and accuracy.

    python benchmarks/training_loop.py                       # ≥ 60 s a side and net, interleaved
    python benchmarks/training_loop.py --seconds 5 --nets mlp
    python benchmarks/training_loop.py --batches             # in-memory batches beside DataLoader over a TensorDataset

Every side trains the same architecture from the same initial weights with AdamW (fused) and cross-entropy on MNIST in batches
of 128, counts training loss and accuracy on held-out images after each epoch, and sees float32 pixels in memory. Epochs are timed one
by one in the order A B C, C A B, …; a ratio is that of epochs made in the same round, so that what else runs on the machine hits all
sides alike; every side lives in a process of its own. Accuracies are means over the second half of the epochs. Reported: median of the
paired ratios with a 95 % bootstrap interval, for wall time and for CPU time of the process, which other processes disturb less.
Start-up (building, the first epoch) is reported apart.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from modelyard.data.batches import Batches
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.loop import Fit, Term

SHARED = Path(os.environ.get("MODELYARD_SHARED", Path(__file__).parents[2] / "shared"))
BATCH, CHECK = 128, 512


def mnist(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(training images, labels, test images, labels): float32 in [0, 1], int64. Noise of that shape where the files are absent."""
    folder = SHARED / "data" / "image_classification" / "mnist"
    if not folder.is_dir():
        draw = torch.Generator().manual_seed(0)
        return (torch.rand(rows, 1, 28, 28, generator=draw), torch.randint(10, (rows,), generator=draw),
                torch.rand(2000, 1, 28, 28, generator=draw), torch.randint(10, (2000,), generator=draw))  # fmt: skip

    def read(name: str, skip: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=skip)

    def pair(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = read(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:count].astype(np.float32) / 255
        return torch.from_numpy(images), torch.from_numpy(read(f"{name}-labels-idx1-ubyte.gz", 8)[:count].astype(np.int64))

    return *pair("train", rows), *pair("t10k", 2000)


def mlp() -> nn.Module:
    """784-128-10: what a step costs beside its arithmetic shows most here."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and max-pooling (LeCun et al. 1998)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    """The net of the 99.5 % run: `nets/cnn.py` with its recipe for grey 28 x 28 images."""
    from modelyard.kinds._contract import Part
    from modelyard.nets import cnn as family

    parts = {"pixels": Part((1, 28, 28), "uint8")}
    config, _ = family.recipe(parts, 60_000)
    encoder = family.Encoder(config, parts)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = encoder, nn.Linear(encoder.width, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.encoder({"pixels": x * 255}))
            return out

    return Net()


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {"mlp": (mlp, 20_000), "lenet": (lenet, 10_000), "cnn": (cnn, 5_000)}
"""Net and training rows: epochs of one to a few seconds."""


def optimiser_of(net: nn.Module) -> torch.optim.Optimizer:
    """The one that `verbs/train/optimisers.py` makes."""
    groups = [{"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.01},
              {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)


Epoch = Callable[[], tuple[float, float]]
"""Makes one epoch with its evaluation: (training loss, test accuracy)."""


def plain(net: nn.Module, data: tuple[torch.Tensor, ...], checked: bool) -> Epoch:
    """A hand-written loop that slices in-memory tensors. `checked`: it also looks for NaN in the loss of every step."""
    x, y, x_test, y_test = data
    optimiser, epochs = optimiser_of(net), iter(range(10**9))

    def epoch() -> tuple[float, float]:
        order = torch.from_numpy(np.random.default_rng(next(epochs)).permutation(len(x)))
        net.train()
        total = torch.zeros(())
        for i in range(0, len(x), BATCH):
            index = order[i : i + BATCH]
            loss = functional.cross_entropy(net(x[index]), y[index])
            loss.backward()  # type: ignore[no-untyped-call]
            if checked and not torch.isfinite(loss):
                raise ValueError("not finite")
            optimiser.step()
            optimiser.zero_grad()
            total += loss.detach() * len(index)
        net.eval()
        with torch.no_grad():
            right = sum(int((net(x_test[i : i + CHECK]).argmax(1) == y_test[i : i + CHECK]).sum()) for i in range(0, len(x_test), CHECK))
        return float(total) / len(x), right / len(x_test)

    return epoch


def lightning(net: nn.Module, data: tuple[torch.Tensor, ...]) -> tuple[Epoch, Callable[[], None]]:
    """Lightning's Trainer in a thread of its own that waits between epochs; loggers, checkpoints and bars are off."""
    import logging

    import lightning as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    x, y, x_test, y_test = data
    go, done, found, end = threading.Semaphore(0), threading.Semaphore(0), [(0.0, 0.0)], [False]

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            right = (self.net(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("accuracy", right, on_epoch=True, batch_size=len(batch[0]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimiser_of(self.net)

    class Turns(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            go.acquire()
            trainer.should_stop = end[0]

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            metrics = trainer.callback_metrics
            found[0] = (float(metrics["loss"]), float(metrics["accuracy"]))
            done.release()

    def work() -> None:
        trainer = pl.Trainer(
            max_epochs=10**6, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Turns()], num_sanity_val_steps=0,
        )  # fmt: skip
        train = DataLoader(TensorDataset(x, y), BATCH, shuffle=True)
        trainer.fit(Module(), train, DataLoader(TensorDataset(x_test, y_test), CHECK))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def epoch() -> tuple[float, float]:
        go.release()
        done.acquire()
        return found[0]

    return epoch, lambda: None


def ours(net: nn.Module, data: tuple[torch.Tensor, ...]) -> Epoch:
    """`Fit` as `train` uses it: guard, schedule, budgets and history included; one epoch at a time."""
    x, y, x_test, y_test = data

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"y.logits": self.net(inputs["x.pixels"])}

    from modelyard.losses.cross_entropy import loss, total

    config = TrainConfig(epochs=10**5, batch=BATCH, lr=1e-3, optimiser="adamw", weight_decay=0.01, schedule="constant",
                         precision="float32", compile=False, patience=0)  # fmt: skip
    train = Batches({"x.pixels": x.numpy()}, {"y.index": y.numpy()}, batch=BATCH)
    test = Batches({"x.pixels": x_test.numpy()}, {"y.index": y_test.numpy()}, batch=CHECK, shuffle=False)

    fit = Fit(Wrapped(), [Term("y.logits", "y.index", loss, total=total)], train, None, config)
    stop = threading.Event()

    def epoch() -> tuple[float, float]:
        stop.clear()
        seen: list[dict[str, Any]] = []

        def event(found: dict[str, Any]) -> None:
            seen.append(found)
            stop.set()

        fit.run(None, event, stop)
        fit.network.eval()
        with torch.no_grad():
            right = sum(int((fit.network(b.inputs)["y.logits"].argmax(1) == b.targets["y.index"]).sum()) for b in test.epoch(0))
        return seen[0]["loss"], right / test.rows

    return epoch


def interval(ratios: list[float], seed: int = 0) -> list[float]:
    """[median, low, high]: 95 % percentile bootstrap of the median."""
    draw = np.random.default_rng(seed)
    found = np.median(draw.choice(ratios, (4000, len(ratios))), axis=1)
    return [round(float(v), 3) for v in (np.median(ratios), *np.percentile(found, [2.5, 97.5]))]


BUILDERS: dict[str, Callable[[nn.Module, tuple[torch.Tensor, ...]], Epoch]] = {
    "ours": ours, "lightning": lambda net, data: lightning(net, data)[0], "plain": lambda net, data: plain(net, data, checked=False),
    "plain+check": lambda net, data: plain(net, data, checked=True),
}  # fmt: skip


def child(side: str, name: str) -> None:
    """One side of one net: an epoch for every line on stdin, what it found and took as a line of JSON."""
    make, rows = NETS[name]
    data = mnist(rows)
    torch.manual_seed(0)
    begin = time.perf_counter()
    epoch = BUILDERS[side](make(), data)
    epoch()
    start_up = time.perf_counter() - begin
    answer = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    print(json.dumps({"start-up": start_up}), file=answer, flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        _, accuracy = epoch()
        print(json.dumps({"accuracy": accuracy, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), file=answer, flush=True)


def compare(name: str, seconds: float, threads: int) -> dict[str, Any]:
    """Ratios of ours to each other side. Every side lives in a process of its own: threads that one side leaves waiting for work
    spin for a while, and in one process took half of the other side's time."""
    sides, start_up = {}, {}
    for side in BUILDERS:
        command = [sys.executable, __file__, "--child", side, "--nets", name, "--threads", str(threads)]
        sides[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        start_up[side] = round(float(_read(sides[side])["start-up"]), 2)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    order = list(sides)
    draw = random.Random(0)
    while sum(f["wall"] for f in found["ours"]) < seconds or len(found["ours"]) < 5:
        draw.shuffle(order)
        for side in order:
            pipe = sides[side].stdin
            assert pipe is not None
            pipe.write("go\n")
            pipe.flush()
            found[side].append(_read(sides[side]))
    for process in sides.values():
        process.kill()
    others = [side for side in sides if side != "ours"]
    pairs: Callable[[str, str], list[float]] = lambda side, key: [a[key] / b[key] for a, b in zip(found["ours"], found[side], strict=True)]  # noqa: E731
    return {
        "net": name, "epochs": len(found["ours"]), "rows": NETS[name][1],
        "seconds an epoch": {s: round(float(np.median([f["wall"] for f in v])), 3) for s, v in found.items()},
        "wall ratio": {s: interval(pairs(s, "wall")) for s in others}, "cpu ratio": {s: interval(pairs(s, "cpu")) for s in others},
        "accuracy": {s: round(float(np.mean([f["accuracy"] for f in v[len(v) // 2 :]])), 4) for s, v in found.items()}, "start-up": start_up,
    }  # fmt: skip


def _read(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a side ended early: {process.args}")
    found: dict[str, float] = json.loads(line)
    return found


def batches(seconds: float) -> dict[str, Any]:
    """Batches a second of ours and of DataLoader, and the share of what copying the same bytes in one piece takes."""
    found: dict[str, Any] = {}
    for label, shape in (("784 float32", (784,)), ("20 float32", (20,)), ("3x32x32 uint8", (3, 32, 32))):
        x = np.random.default_rng(0).integers(0, 255, (50_000, *shape)).astype(np.uint8 if "uint8" in label else np.float32)
        y = np.zeros(50_000, np.int64)
        mine = Batches({"x.v": x}, {"y.index": y}, batch=BATCH)
        loader = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), BATCH, shuffle=True)
        source, target = torch.from_numpy(x), torch.empty_like(torch.from_numpy(x))
        sides: dict[str, Callable[[], Any]] = {
            "ours": lambda mine=mine: _drain(mine.epoch(0)), "loader": lambda loader=loader: _drain(iter(loader)),
            "copy": lambda source=source, target=target: target.copy_(source),
        }  # fmt: skip
        times: dict[str, list[float]] = {s: [] for s in sides}
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(times["ours"]) < 5:
            for side, work in sides.items():
                begin = time.perf_counter()
                work()
                times[side].append(time.perf_counter() - begin)
        ratio: Callable[[str, str], list[float]] = lambda a, b, t=times: interval([p / q for p, q in zip(t[a], t[b], strict=True)])  # type: ignore[misc]  # noqa: E731
        found[label] = {"ms": {s: round(1e3 * float(np.median(v)), 2) for s, v in times.items()},
                        "faster than the loader": ratio("loader", "ours"), "share of copying": ratio("copy", "ours")}  # fmt: skip
    return found


def _drain(batches: Iterator[Any]) -> int:
    return sum(1 for _ in batches)


def main() -> None:
    """Prints a table on stderr and one JSON object on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of our side, for each net")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", action="store_true", help="only the batches")
    parser.add_argument("--child", choices=BUILDERS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        child(given.child, given.nets)
        return
    result: dict[str, Any] = {"batches": batches(min(5, given.seconds))}
    print(json.dumps(result["batches"], indent=1), file=sys.stderr)
    for name in [] if given.batches else given.nets.split(","):
        result[name] = found = compare(name, given.seconds, given.threads)
        for side, (middle, low, high) in found["wall ratio"].items():
            cpu = found["cpu ratio"][side]
            line = f"{name:6} ours / {side:11}  wall {middle:.3f} [{low:.3f}, {high:.3f}]  cpu {cpu[0]:.3f} [{cpu[1]:.3f}, {cpu[2]:.3f}]"
            print(f"{line}  accuracy {found['accuracy']['ours']:.3f} / {found['accuracy'][side]:.3f}", file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
