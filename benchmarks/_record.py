"""What every benchmark says beside its numbers: where it ran, how long, and how sure the difference to a peer is."""

from __future__ import annotations

import os
import platform
import time
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


def bootstrap(values_RK: np.ndarray) -> list[tuple[float, float]]:
    """95 % percentile interval of each column of resampled values."""
    low, high = np.percentile(values_RK, [2.5, 97.5], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
