"""A million rows of Parquet through an exported net: `modelyard.predict`, beside ONNX Runtime called by hand.

    python benchmarks/batch_predict.py [--rows 1000000] [--rounds 15]

The net is an MLP (16 numbers, 64, 64, 3 labels). By hand: the same Parquet is read with Polars, made one float32 matrix, run in blocks of 8,192 rows;
what comes out is left as it is. Ours also checks and scales every column, makes scores, labels and row errors of the outputs, and writes a Parquet
file. Loading the model (with its stored examples replayed) counts for ours, loading the session for the other. In turns; the goal is at least
0.9 of the rows a second.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from _record import hardware, verdict


def main() -> None:
    """Prints the median of the paired ratios with its quartiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(hardware(), flush=True)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        ratios = compare(prepare(given.rows), given.rows, given.rounds)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    sys.exit(0 if verdict("rows/s >= 0.9 of ONNX Runtime by hand", middle >= 0.9, f"{middle:.2f} [{low:.2f}, {high:.2f}]") else 1)


def prepare(rows: int) -> str:
    """Writes `rows.parquet`; the folder of an exported model for it."""
    import modelyard

    x = np.random.default_rng(0).normal(size=(rows, 16))
    names = [f"n{i}" for i in range(16)]
    pl.DataFrame(x, schema=names).write_parquet("rows.parquet")
    small = pl.DataFrame(x[:4000], schema=names).with_columns(y=pl.Series(np.array(["a", "b", "c"])[x[:4000, :3].argmax(1)]))
    model = {"name": "mlp", "numbers": "plain", "hidden": [64, 64]}
    trained = modelyard.train(data=small, target="y", model=model, quiet=True, **{"train.epochs": 3})
    return str(modelyard.export(str(trained.run)).folder)


def compare(folder: str, rows: int, rounds: int) -> list[float]:
    """Seconds by hand / ours, round by round; the first is not counted."""
    import onnxruntime

    import modelyard

    ratios = []
    for turn in range(rounds + 1):
        began = time.perf_counter()
        modelyard.predict(folder, data="rows.parquet", out="answers.parquet")
        ours = time.perf_counter() - began
        began = time.perf_counter()
        x = pl.read_parquet("rows.parquet").to_numpy().astype(np.float32)
        session = onnxruntime.InferenceSession(str(next(Path(folder).rglob("*.onnx"))))
        name = session.get_inputs()[0].name
        for i in range(0, rows, 8192):
            session.run(None, {name: x[i : i + 8192]})
        hand = time.perf_counter() - began
        if turn:
            ratios.append(hand / ours)
            print(f"  ours {ours:.3f} s, by hand {hand:.3f} s", flush=True)
    assert pl.read_parquet("answers.parquet").height == rows
    return ratios


if __name__ == "__main__":
    main()
