"""What every benchmark says beside its numbers: where it ran, how long, and how sure the difference to a peer is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

SHARED = Path(os.environ.get("MODELYARD_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
"""The data sets that the README of that folder describes."""


def need_data() -> None:
    """Ends the program with a sentence where the data sets are not there."""
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED} is not there; set MODELYARD_SHARED to the folder that holds data/")


def hardware() -> str:
    """Date, processor, cores, and versions of what computes."""
    import importlib.metadata as metadata

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    family = " ".join(line.partition(":")[0].strip() + " " + line.partition(":")[2].strip() for line in lines[:6] if line.startswith(("cpu family", "model\t")))
    versions = []
    for package in ("torch", "scikit-learn", "lightgbm", "onnxruntime", "numpy", "polars"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    load = os.getloadavg()[0]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, {model} ({family}), {os.cpu_count()} cores (load {load:.1f} before), Python {platform.python_version()}, {', '.join(versions)}"


def verdict(what: str, ok: bool, found: str) -> bool:
    """Prints one line and hands `ok` on."""
    print(f"{'ok    ' if ok else 'MISSED'} {what}: {found}", flush=True)
    return ok


class Clock:
    """Wall and CPU seconds of a block; CPU seconds / 2 is what two idle cores would take at least."""

    def __enter__(self) -> Clock:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def __str__(self) -> str:
        return f"wall {self.wall:.1f} s, CPU/2 {self.cpu / 2:.1f} s"


Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(truth (N,), guess (N,), weights (R, N)) → value of each resample (R,)."""


def accuracy(truth: np.ndarray, guess: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Share of equal labels."""
    return np.asarray(weights_RN @ (truth == guess) / weights_RN.sum(1))


def f1(truth: np.ndarray, guess: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """F1 of the label True."""
    hit = weights_RN @ (truth & guess)
    return np.asarray(2 * hit / (weights_RN @ truth + weights_RN @ guess))


def auc(truth: np.ndarray, guess: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties count one half."""
    order = np.argsort(guess, kind="stable")
    starts = np.flatnonzero(np.diff(guess[order], prepend=-np.inf))
    out = []
    for low in range(0, len(weights_RN), 50):  # 50 resamples of 16,000 rows are 6 MB
        w = weights_RN[low : low + 50, order].astype(np.float64)
        positive = np.add.reduceat(w * truth[order], starts, axis=1)
        negative = np.add.reduceat(w * ~truth[order], starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2
        out.append((positive * below).sum(1) / (positive.sum(1) * negative.sum(1)))
    return np.concatenate(out)


def rmse(truth: np.ndarray, guess: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """Root of the mean squared error."""
    return np.asarray(np.sqrt(weights_RN @ (truth - guess) ** 2 / weights_RN.sum(1)))


class Tally:
    """Values of ours and a peer's over folds, their means, and 95 % intervals by resampling the rows of every fold.

    The same resamples judge both, so that the difference has an interval of its own (paired bootstrap, Efron 1979).
    """

    def __init__(self, metric: Metric, resamples: int = 1000) -> None:
        self.metric, self.resamples = metric, resamples
        self.folds: list[tuple[np.ndarray, np.ndarray]] = []
        """(ours, peer) of each fold; entry 0 is the value on the rows as they are."""

    def add(self, truth: np.ndarray, ours: np.ndarray, peer: np.ndarray) -> str:
        """Judges one fold; a line about it."""
        random = np.random.default_rng(len(self.folds))
        drawn = random.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), self.resamples)
        weights_RN = np.concatenate([np.ones((1, len(truth))), drawn]).astype(np.float32)
        pair = self.metric(truth, ours, weights_RN), self.metric(truth, peer, weights_RN)
        self.folds.append(pair)
        return f"ours {pair[0][0]:.4f} peer {pair[1][0]:.4f}"

    def means(self) -> dict[str, tuple[float, float, float]]:
        """(value, low, high) of ours, of the peer, and of ours minus peer."""
        ours, peer = (np.mean([f[i] for f in self.folds], axis=0) for i in (0, 1))
        table = {"ours": ours, "peer": peer, "difference": ours - peer}
        return {k: (float(v[0]), *(float(x) for x in np.percentile(v[1:], [2.5, 97.5]))) for k, v in table.items()}


def shown(triple: tuple[float, float, float]) -> str:
    """`0.8342 [0.8250, 0.8431]`."""
    digits = ",.0f" if abs(triple[1]) + abs(triple[2]) > 100 else ".4f"
    return f"{triple[0]:{digits}} [{triple[1]:{digits}}, {triple[2]:{digits}}]"
