"""The models that the vectors ask: `half_plus_two` (x / 2 + 2, TensorFlow Serving's own example), `loan` (three columns, one label) and `note` (a
text, a date and a list of words, one label).

    python tests/protocol/models.py FOLDER        # trains them there
    modelyard serve serve.models.half_plus_two=FOLDER/runs/half_plus_two-0001 serve.models.loan=… serve.models.note=…
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
import polars as pl

import modelyard

NAMES = ("half_plus_two", "loan", "note")


def train(folder: Path) -> dict[str, str]:
    """Name → model folder."""
    random = np.random.default_rng(0)
    x = random.uniform(-100, 100, 400)
    age = random.integers(18, 80, 300).astype(np.float64)
    job = random.choice(["clerk", "cook", "驾驶员"], 300)
    owner = random.choice(["true", "false"], 300)
    gaps = [None if i % 17 == 0 else float(a) for i, a in enumerate(age)]
    words = random.choice(["rice", "soup"], 200), random.choice(["train", "hotel"], 200)
    food = random.random(200) < 0.5
    days = [f"2024-{m:02d}-{d:02d}T00:00:00" for m, d in zip(random.integers(1, 13, 200), random.integers(1, 28, 200), strict=True)]
    frames = {
        "half_plus_two": (pl.DataFrame({"x": x, "y": x / 2 + 2}), "y", {}),
        "loan": (
            pl.DataFrame({"age": gaps, "job": job, "owner": owner, "approved": np.where((age > 45) ^ (job == "cook"), "yes", "no")}),
            "approved", {"age": "number", "job": "category", "owner": "category"},
        ),
        "note": (
            pl.DataFrame({
                "text": np.where(food, words[0], words[1]), "day": pl.Series(days).str.to_datetime(),
                "tags": [["warm", "new"] if i % 2 else ["cold"] for i in range(200)], "topic": np.where(food, "food", "travel"),
            }),
            "topic", {"text": "text", "day": "timestamp", "tags": "label-set"},
        ),
    }  # fmt: skip
    found = {}
    with contextlib.chdir(folder):
        for name, (frame, target, inputs) in frames.items():
            model = {"name": "linear", "numbers": "scaled"} if name == "half_plus_two" else {"name": "linear"}
            more = {"data.inputs": inputs} if inputs else {}
            found[name] = str(folder / modelyard.train(data=frame, target=target, model=model, name=name, seed=1, **more).model)
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    for name, model in train(place).items():
        print(name, model)
