"""Kills a study of 200 trials a hundred times with SIGKILL and resumes it: no finished trial may be lost, repeated or suggested otherwise.

    python tests/crash/prove_tune.py --kills 100 --trials 200
    python tests/crash/prove_tune.py --kills 40 --trials 60 --method halving

Half of the kills come at a random moment, half just before a random file-system call (of a model's save, the journal, the run's files);
after every fourth the journal also gets a half-written line, as a power cut leaves it. After each kill everything that was finished before must
still be there, as it was. The killed study must end with the same settings and values, trial by trial, as one that nobody touched, and with
a model that answers its stored examples. Prints one line of JSON and exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import killing

from modelyard.store import atomic
from modelyard.verbs.tune._journal import Journal, trials

ROWS = 200

MODELS: dict[bool, dict[str, Any]] = {
    False: {"model": "linear", "tune.search": {"model.c": "log 1e-4..1e3", "model.penalty": ["l1", "l2"]}},
    True: {"model": {"name": "trees", "trees": 27, "bags": 1}, "tune.search": {"model.lr": "log 1e-2..1", "model.leaves": "int 2..16"}},
}
"""Cheap trials; those of methods that cut need rounds."""


def table() -> dict[str, list[Any]]:
    """Two classes along a line, with noise; plain lists, because threads of a data frame do not survive a fork."""
    draw = random.Random(0)
    x = [[draw.gauss(0, 1) for _ in range(ROWS)] for _ in range(3)]
    y = ["yes" if a + b + draw.gauss(0, 1) > 0 else "no" for a, b in zip(x[0], x[1], strict=True)]
    return {**{f"x{i}": column for i, column in enumerate(x)}, "y": y}


def study(folder: Path, method: str, count: int, resume: bool) -> None:
    """Runs or resumes the study in `folder`."""
    import polars as pl

    from modelyard.project import load_project
    from modelyard.verbs.tune import tune

    values = {
        "data.path": pl.DataFrame(table()), "data.target": "y", "tune.trials": count, "tune.method": method, "tune.metric": "log_loss",
        "evaluate.metrics": ["log_loss"], **MODELS[method in ("halving", "hyperband")],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "modelyard.yaml").write_text("version: 1\nname: study\n", encoding="utf-8")
    tune(load_project(folder, values=values), resume=resume)


def journal(folder: Path) -> Path:
    """Where the study writes."""
    return folder / "runs" / "study-0001" / "trials.jsonl"


def finished(folder: Path) -> dict[int, Any]:
    """Trials of the journal that are finished: what a resumed study must keep."""
    found = trials(Journal(journal(folder)).read()) if journal(folder).is_file() else {}
    kept = {n: t for n, t in found.items() if "state" in t or t["scores"]}
    return {n: (t["params"], t.get("state"), t.get("value"), t["scores"]) for n, t in kept.items()}


def die_at(call: int) -> None:
    """SIGKILL just before the `call`-th file-system call from here."""
    left = [call]

    def watch(name: str, path: Path) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    atomic.watch = watch


def killed(folder: Path, method: str, kills: int, count: int, draw: random.Random) -> dict[str, Any]:
    """The study under kills: how often it died and what was wrong."""
    died = torn = at_calls = 0
    wrong: list[str] = []
    over = False
    while not over:
        before = finished(folder)
        resume = journal(folder).is_file()
        calls = died % 2 == 1

        def work(resume: bool = resume, at: int | None = draw.randrange(3, 110) if calls and died < kills else None) -> None:
            if at is not None:
                die_at(at)
            study(folder, method, count, resume)

        status = killing.child(work, None if calls or died >= kills else draw.uniform(0.15, 1.2))
        if status not in (0, -signal.SIGKILL):
            wrong.append(f"ended with {status} after {died} kills")
            break
        over = status == 0
        died += not over
        at_calls += calls and not over
        after = finished(folder)
        wrong += [f"trial {n} was {v}, is {after.get(n)}" for n, v in before.items() if v[1] and after.get(n) != v]
        wrong += [f"trial {n} lost a score" for n, v in before.items() if not (n in after and v[3].items() <= after[n][3].items())]
        if not over and died % 4 == 0 and journal(folder).is_file():
            torn += 1
            with journal(folder).open("ab") as file:
                file.write(b'{"event": "finished", "trial": 7, "sta')
    return {"kills": died, "at calls": at_calls, "torn lines": torn, "wrong": wrong}


def prove(folder: Path, method: str, kills: int, count: int, seed: int) -> dict[str, Any]:
    """Kills spread over as many studies as they need; each is compared with the one that nobody touched."""
    began = time.monotonic()
    straight = folder / "straight"
    assert killing.child(lambda: study(straight, method, count, False)) == 0, "the study that nobody touched failed"
    expected = finished(straight)
    total: dict[str, Any] = {"method": method, "trials": len(expected), "kills": 0, "at calls": 0, "torn lines": 0, "studies": 0, "wrong": []}
    draw = random.Random(seed)
    while total["kills"] < kills and not total["wrong"]:
        place = folder / f"killed{total['studies']}"
        found = killed(place, method, kills - total["kills"], count, draw)
        lines = Journal(journal(place)).read()
        for event in ("asked", "finished"):
            numbers = [e["trial"] for e in lines if e["event"] == event]
            found["wrong"] += [f"trial {n} was {event} more than once" for n in sorted({n for n in numbers if numbers.count(n) > 1})]
        if finished(place) != expected:
            found["wrong"].append(f"{place.name} differs from the study that nobody touched")
        if killing.child(lambda place=place: _replay(place)) != 0:  # type: ignore[misc]
            found["wrong"].append(f"the model of {place.name} does not answer as it did")
        for key in ("kills", "at calls", "torn lines", "wrong"):
            total[key] += found[key]
        total["studies"] += 1
    return {**total, "seconds": round(time.monotonic() - began, 1)}


def _replay(place: Path) -> None:
    from modelyard.runtime.model import Model

    model = Model.load(journal(place).parent / "model")
    assert model.replay().ok


def warm() -> None:
    """What the children need is imported once; nothing is run, because threads do not survive a fork."""
    import importlib

    names = (
        "optuna", "optuna.samplers", "sklearn.linear_model", "sklearn.model_selection", "sklearn.svm", "lightgbm", "polars",
        "modelyard.project", "modelyard.verbs.tune._search", "modelyard.verbs.train.fit_estimator", "modelyard.verbs.train.save",
        "modelyard.estimators.linear", "modelyard.estimators.trees", "modelyard.verbs.report.page", "modelyard.verbs.report.pictures",
    )  # fmt: skip
    for name in names:
        importlib.import_module(name)


def main() -> int:
    """0 where nothing was lost, repeated or different."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--method", default="tpe")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warm()
    with tempfile.TemporaryDirectory() as name:
        found = prove(Path(name), given.method, given.kills, given.trials, given.seed)
    print(json.dumps(found))
    return int(bool(found["wrong"]) or found["kills"] < given.kills)


if __name__ == "__main__":
    sys.exit(main())
