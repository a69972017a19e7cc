"""The full proof for `make prove`: kill -9 at random moments and at every file-system call of a save, then resume.

    python tests/crash/prove_resume.py --random 30      # half of them with a time budget; a third is killed twice
    python tests/crash/prove_resume.py --power 200      # beside it: saves under a power cut that drops what was not fsynced

Each time weights, optimiser state, metrics of every epoch and predictions must equal those of a run that nobody touched,
bit for bit (CPU, float32, one thread), and a checkpoint that was complete before the kill must still be the one resumed from,
or a later one. Prints one line a kind and exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import killing
import power


def at_random(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kills at random moments; odd runs have a time budget, each third is killed again while it resumes."""
    draw = random.Random(seed)
    killed = wrong = budgets = twice = 0
    places = []
    i = -1
    while killed < count:  # a run that ends before its moment is no kill
        i += 1
        budget = i % 2 == 1
        settings: dict[str, Any] = {"seed": i, "epochs": 400 if budget else 12, "patience": 0} | ({"budget": 2.0} if budget else {})
        settings["checkpoint_every"] = draw.choice([0.0, 0.02, 0.1])
        run = folder / f"random{i}"
        dead = killing.killed_after(run, settings, draw.uniform(0.02, 1.5 if budget else 0.3)) == -9
        killed += dead
        before = killing.newest(run)
        if i % 3 == 0 and before >= 0:
            twice += killing.killed_after(run, settings, draw.uniform(0.01, 0.3), resume=True) == -9
            before = max(before, killing.newest(run))
        found = killing.resumed(run, settings)
        places.append(found["from"])
        same = found["print"] == killing.straight(run, settings, found["decisions"])
        budgets += budget and dead
        wrong += not same or (before >= 0 and found["from"] < before) or bool(found["notes"] and before >= 0)
    return {"kills": killed, "second kills": twice, "with a budget": budgets, "resumed from steps": places, "different": wrong}


def at_each_call(folder: Path, epochs: int) -> dict[str, Any]:
    """A run is killed just before each of its file-system calls."""
    settings: dict[str, Any] = {"epochs": epochs, "patience": 0}
    calls = killing.calls_of_a_run(folder / "whole", settings)
    expected = killing.straight(folder / "straight", settings, [])
    wrong = []
    for k, call in enumerate(calls):
        run = folder / f"call{k}"
        status = killing.killed_at(run, settings, k)
        before = killing.newest(run)
        found = killing.resumed(run, settings)
        if status != -9 or found["print"] != expected or (before >= 0 and found["from"] < before):
            wrong.append(f"{k}: {call}")
    return {"calls": len(calls), "different": len(wrong), "where": wrong}


def main() -> int:
    """0 where everything was equal."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--random", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=1, help="of the run that is killed at each call; 6 saves an epoch")
    parser.add_argument("--power", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where the runs are written (a temporary folder)")
    given = parser.parse_args()
    killing.warm()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        for label, work in (
            ("random moments", lambda: at_random(Path(name), given.random, given.seed)),
            ("each file-system call", lambda: at_each_call(Path(name), given.epochs)),
            ("power cuts", lambda: power.cuts(Path(name), given.power, given.seed)),
        ):
            start = time.monotonic()
            result[label] = {**work(), "seconds": round(time.monotonic() - start, 1)}
            print(f"{label}: {result[label]}", file=sys.stderr, flush=True)
    print(json.dumps(result))
    return int(any(found["different"] for found in result.values()))


if __name__ == "__main__":
    sys.exit(main())
