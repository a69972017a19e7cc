"""The seven series of known cause of the Numenta Anomaly Benchmark (Lavin & Ahmad 2015), with the published windows and the benchmark's own score.

    python benchmarks/nab.py [--model auto] [--refits 20] [--seed 0]

Every row is described by what was known by then: its value, the last changes, means and spreads of the last 5, 25 and 100 rows, the value
one day and one week before, the time of day. A detector of ours (the task `anomaly-detection`, no labels) is fitted on the rows of the
probation, and again on all rows so far at each twentieth of the rest (2 and 20 times were tried; `isolation-forest` alone with 10): no
row is scored by a model that saw it or anything later. A row is an alarm only where its score is the highest of the last 2 % of the
series; else a fault of an hour would cost twelve alarms (the benchmark counts every one).

Printed for each series and together: the NAB score (standard profile) at our own threshold, which looks at no window (`model.alarms`, here 0.001
of normal rows), and at the threshold that is best over the seven series, as the benchmark's optimiser takes it for every detector. Beside it
two peers of the same protocol: z, the value's distance from the mean of all past rows in deviations, and random scores. The scoreboard of NAB is
over the whole corpus of 58 series (HTM 70.5, random cut forest 51.7, windowed Gaussian 39.6, random 11.0, its README), so these numbers do not compare with it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import polars as pl
from _record import SHARED, Clock, hardware, need_data

from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.metrics._nab import nab, worth
from modelyard.runtime.model import Model
from modelyard.verbs.train import Config, train

ROOT = SHARED / "anomaly" / "nab_real_known_cause"
ALARMS = 0.001
QUIET = 0.02


def series(path: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """(features of every row, its time)."""
    frame = pl.read_csv(path, try_parse_dates=True)
    time = frame["timestamp"].cast(pl.Datetime("us"))
    step_s = float(time.diff().drop_nulls().dt.total_seconds().median())  # type: ignore[arg-type]
    day = max(1, round(86_400 / step_s))
    value, last = pl.col("value").cast(pl.Float64), pl.col("value").cast(pl.Float64).shift(1)
    columns = [value, (value - last).alias("change"), (value - value.shift(5)).alias("change5")]
    for rows in (5, 25, 100):
        columns.append((value - last.rolling_mean(rows, min_samples=2)).alias(f"above{rows}"))
        columns.append(value.rolling_std(rows, min_samples=2).alias(f"spread{rows}"))
    columns += [(value - value.shift(k * day)).alias(f"since{k}") for k in (1, 7) if k * day < 0.1 * frame.height]
    hour = time.dt.hour() + time.dt.minute() / 60
    found = frame.select(columns).with_columns(
        hour_sin=pl.Series(np.sin(hour.to_numpy() * np.pi / 12)), hour_cos=pl.Series(np.cos(hour.to_numpy() * np.pi / 12))
    )
    return found, time.to_numpy()


def windows(name: str, time: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) rows of the published windows."""
    published = json.loads((ROOT / "combined_windows.json").read_text(encoding="utf-8"))[f"realKnownCause/{name}.csv"]
    ends = [tuple(np.datetime64(t[:19]) for t in window) for window in published]
    return [(int(np.searchsorted(time, a)), int(np.searchsorted(time, b, side="right")) - 1) for a, b in ends]


def margins(frame: pl.DataFrame, cuts: list[int], model: str, seed: int) -> np.ndarray:
    """(N,) log odds of an alarm, from a model of the rows before the last cut; -inf in the probation."""
    out = np.full(frame.height, -np.inf)
    for start, end in zip(cuts, [*cuts[1:], frame.height], strict=True):
        data = DataConfig(path=frame[:start], inputs=dict.fromkeys(frame.columns, "number"), split=SplitConfig(test=0.0, valid=0.0))
        section = {"name": model, "alarms": ALARMS} if model != "auto" else {"name": "auto", "alarms": ALARMS}
        with tempfile.TemporaryDirectory() as folder:
            done = train(data, task="anomaly-detection", model=section, base=Path(folder), config=Config(seed=seed))
            loaded = Model.load(done.model)
            outputs, _ = loaded.outputs(loaded.pipeline.check(frame[start:end])[0])
        (logits,) = outputs.values()
        out[start:end] = logits[:, 1].astype(np.float64) - logits[:, 0]
    return out


def quiet(scores: np.ndarray) -> np.ndarray:
    """The scores where they are the highest of the last rows, else -inf."""
    rows = max(2, int(QUIET * len(scores)))
    before = pl.Series(scores).shift(1, fill_value=-np.inf).rolling_max(rows, min_samples=1).to_numpy()
    return np.where(scores > before, scores, -np.inf)


def main() -> int:
    """A line per series."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="auto")
    parser.add_argument("--refits", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    need_data()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print(hardware(), flush=True)
    names = sorted(p.name.removesuffix(".csv.gz") for p in (ROOT / "realKnownCause").glob("*.csv.gz"))
    found: dict[str, list[np.ndarray]] = {"ours": [], "z": [], "random": []}
    own: list[list[tuple[int, int]]] = []
    for name in names:
        frame, time = series(ROOT / "realKnownCause" / f"{name}.csv.gz")
        own.append(windows(name, time))
        first = int((worth(frame.height, [])[1] == -2).sum())
        cuts = [first + (frame.height - first) * i // given.refits for i in range(given.refits)]
        with Clock() as clock:
            found["ours"].append(quiet(margins(frame, cuts, given.model, given.seed)))
        x = frame["value"].to_numpy()
        seen = np.arange(1, len(x) + 1)
        mean = np.cumsum(x) / seen
        deviation = np.sqrt(np.maximum(np.cumsum(x * x) / seen - mean**2, 1e-12))
        found["z"].append(quiet(np.append(0.0, np.abs(x[1:] - mean[:-1]) / deviation[:-1])))
        found["random"].append(quiet(np.random.default_rng(given.seed).random(len(x))))
        fixed = nab([found["ours"][-1]], [own[-1]], 0.0)
        print(
            f"{name} ({len(x)} rows, {len(own[-1])} windows): {fixed.score:.1f} at our threshold, {fixed.hits} of {fixed.hits + fixed.misses} windows, "
            f"{fixed.false_alarms} false alarms; {clock}", flush=True,
        )  # fmt: skip
    together = nab(found["ours"], own, 0.0)
    print(f"all seven at our threshold (alarms {ALARMS}): {together.score:.1f}, {together.hits} windows, {together.false_alarms} false alarms")
    for label, scores in found.items():
        best = nab(scores, own)
        each = ", ".join(f"{n} {nab([s], [w], best.threshold).score:.1f}" for n, s, w in zip(names, scores, own, strict=True))
        counts = f"{best.hits} of {best.hits + best.misses} windows, {best.false_alarms} false alarms"
        print(f"{label} at the best common threshold: {best.score:.1f}, {counts}; {each}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
