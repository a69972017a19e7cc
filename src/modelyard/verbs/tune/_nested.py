"""`train.folds` with a search: every fold makes the whole search on its own rows, and what it chose answers the rows held out.

Nested cross-validation (Varma & Simon 2006, "Bias in error estimation when using cross-validation for model selection"): the scores are those of
"search, then fit", not of the settings that came out, and no row judges a model that it helped to fit or to choose. The searches of the folds
lie in `folds/REPEAT-FOLD/` with journals of their own, so that one that is cut short goes on.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelyard.errors import ConfigError, Problem
from modelyard.store import atomic
from modelyard.store.run import Run
from modelyard.tasks._binding import Bound
from modelyard.verbs.train.cross_validation import judged, over_folds
from modelyard.verbs.tune._space import Settings

if TYPE_CHECKING:
    from modelyard.verbs.tune._search import Search

DONE = "fold.json"


def refuse(dimensions: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where settings of the data are searched: they may set other rows aside, and folds would be of other rows."""
    if wrong := [key for key in dimensions if key.startswith("data.")]:
        problems = [Problem("cannot vary where train.folds is set: it decides which rows there are", f"tune.search.{key}") for key in wrong]
        raise ConfigError("folds need the same rows in every trial; search other keys, or take out train.folds", problems)


def nested(search: Search, base: Settings, source: Any) -> dict[str, Any]:
    """`{"folds": …}` as `train` reports them; what each fold chose is written to the run as `folds`."""
    train, chosen = search.project.section("train"), []

    def score(own: Bound, repeat: int, number: int) -> Mapping[str, Any]:
        of = f", repeat {repeat + 1} of {train.repeats}" if train.repeats > 1 else ""
        search.say(f"search in fold {number + 1} of {train.folds}{of}")
        found = _one(search, own, base, source, repeat, number)
        chosen.append(found)
        scores: Mapping[str, Any] = found["scores"]
        return scores

    found = over_folds(search.bound, search.project.data.split, train, score)
    search.run_folder.update(folds=chosen)
    search.folds = chosen
    return found


def _one(search: Search, own: Bound, base: Settings, source: Any, repeat: int, number: int) -> dict[str, Any]:
    """`{repeat, fold, params, value, scores}` of one fold: settings that its search chose, their value on its validation rows, and the
    metrics of the rows held out."""
    folder = search.run_folder.folder / "folds" / f"{repeat}-{number}"
    place = folder / DONE
    if place.is_file():
        kept: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        if kept["trials"] == search.config.trials:  # a finished search may be given more
            return kept
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder)
    if not (folder / "run.json").is_file():
        run.write("run.json", {"state": "searching"})
    inner = search.inside(own, run, [repeat, number])
    inner.begin(base, source, resumed=(folder / "trials.jsonl").is_file())
    if inner.work():
        raise KeyboardInterrupt("stopped by Ctrl-C in a fold; go on with: modelyard tune --resume")
    best = inner.best_or_raise()
    inner.keep(best)
    scores = judged(run.model, own, search.project.section("evaluate"))
    found = {"repeat": repeat, "fold": number, "params": best["params"], "value": best["value"], "scores": scores, "trials": search.config.trials}
    found = json.loads(json.dumps(found, default=str))  # the same whether it comes from disk or not
    atomic.replace_file(place, json.dumps(found, ensure_ascii=False).encode("utf-8"))
    for name in ("model", "trials", "tables"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return found


def share(config: Any, train: Any) -> Any:
    """`tune` with each search's part of the time: that of the folds and the last one."""
    if config.budget is None or not train.folds:
        return config
    return dataclasses.replace(config, budget=config.budget / (train.folds * train.repeats + 1))
