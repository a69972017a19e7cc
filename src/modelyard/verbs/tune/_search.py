"""The search itself: asks, runs, judges, writes the journal, and ends with the best model in the run folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelyard import registry, settings
from modelyard.data.source import TABLES_OR_PATH, open_source
from modelyard.errors import ArtefactError, ConfigError, GateFailed, Problem, Unsupported, UsageError
from modelyard.store import atomic
from modelyard.store.run import Run, now
from modelyard.tasks._binding import Bound, bind, of_texts
from modelyard.verbs.evaluate import aim
from modelyard.verbs.train import conclude
from modelyard.verbs.tune import Config, Tuned, _space
from modelyard.verbs.tune._engines import Engine, Here, Job, Workers
from modelyard.verbs.tune._journal import FORMAT, Journal, trials
from modelyard.verbs.tune._nested import nested, refuse, share
from modelyard.verbs.tune._space import Settings, Space
from modelyard.verbs.tune._study import Suggestions, importances, optuna
from modelyard.verbs.tune._trial import Course, resource

TRIALS = 50
"""Where the user names no number."""

FIXED = ("format", "method", "seed", "metric", "eta", "rungs", "points", "search", "model", "train", "data", "fingerprint")
"""What must be the same for a study to go on."""


class Search:
    """One study of a project."""

    def __init__(
        self, project: Any, device: str, say: Callable[[str], None], progress: Callable[[int, int, str], None] | None, lang: str
    ) -> None:
        self.project, self.device, self.say, self.progress, self.lang = project, device, say, progress, lang
        self.config: Config = project.section("tune")
        self.method = registry.load("verbs/tune", self.config.method)
        self.notes: list[str] = []
        self.found: dict[int, dict[str, Any]] = {}
        """Trials by number, as the journal has them."""
        self.running: set[int] = set()
        self.clock = 0.0
        """Seconds that earlier sessions of this study took."""
        self.fold: list[int] | None = None
        """[repeat, fold], where this is the search of a fold."""
        self.folds: list[dict[str, Any]] = []
        """What the searches of the folds chose."""

    # -- before the first trial -----------------------------------------------------------------------------------------

    def run(self, resume: str | bool) -> Tuned:
        """Everything."""
        optuna()
        project = self.project
        train = project.section("train")
        base = Settings(settings.plain(project.model.value), settings.plain(train), self._data())
        self.space = _space.read(self.config.search, base, project.origins)
        runs = project.base / "runs"
        run = _find(runs, resume) if resume else None
        source = None if project.data.env or project.data.stream else open_source(project.data, project.base, texts=of_texts(project.task))
        self.bound = bind(project.data, project.task, project.base, seed=train.seed, source=source)
        for note in self.bound.notes:
            self.say(note)
        if train.preset != "quick":
            reason = "train.preset fits many models by itself; tune varies one. Take it out, or name a model to tune"
            raise Unsupported(reason, "use", [Problem(f"is {train.preset}", "train.preset")])
        if train.folds:
            refuse(self.space.dimensions)
            self.config = share(self.config, train)
        self.output, self.metric, self.better = aim(self.bound, self.config.metric, project.section("evaluate").metrics, "tune")
        self._fits()
        self.run_folder = run or Run.create(runs, project.name)
        try:
            return self._run(base, source, resumed=run is not None)
        except (UsageError, GateFailed) as error:
            self.run_folder.update(state="failed", finished=now(), error=error.to_json())
            raise

    def _data(self) -> dict[str, Any]:
        """The data section as plain values; a table given in Python is no setting (it is read once, below)."""
        shown = {f: v for f, v in vars(self.project.data).items() if f not in TABLES_OR_PATH}
        paths = {f: getattr(self.project.data, f) for f in TABLES_OR_PATH}
        return settings.plain(shown) | {f: v if v is None or isinstance(v, str) else "<table>" for f, v in paths.items()}

    def _fits(self) -> None:
        """What can be said only with the data at hand: what `auto` means, and whether there is something to cut."""
        from modelyard.verbs.train import learner

        section = self.space.base.model
        choice = learner.choose(learner.located(self.project.base, section), self.bound.pipeline, self.bound.tasks, self.bound.rows["train"])
        searched = {"model", "model.name"} & set(self.space.dimensions)
        if choice.estimator and not searched and self.space.named == "auto":
            named = Settings({"name": choice.estimator}, self.space.base.train, self.space.base.data)
            read = _space.read({k: v for k, v in self.config.search.items()}, named, self.project.origins)  # auto is this estimator: check again
            self.space = Space(read.dimensions, self.space.base, choice.estimator)
        if not self.method.PRUNES:
            return
        models = [self.space.applied({key: v}).model for key in sorted(searched) for v in self.space.dimensions[key].points(2)] or [section]
        kinds = [resource(model, self.bound, self.project.base) for model in models]
        bare = [i for i, (kind, setting, _) in enumerate(kinds) if kind != "net" and not setting]
        name = lambda model: str(model.get("name", "a composite") if isinstance(model, dict) else model)  # noqa: E731
        if len(bare) == len(models):
            who = " and ".join(dict.fromkeys(name(models[i]) if name(models[i]) != "auto" else ", ".join(choice.names) for i in bare))
            message = f"{who} is fitted in one go, without epochs or rounds that {self.config.method} could cut; use method tpe, random or grid"
            raise Unsupported(message, "use", [Problem(f"is {self.config.method}", "tune.method")])
        if bare:
            self.notes.append(f"{', '.join(name(models[i]) for i in bare)}: fitted in one go, so those trials are not pruned")

    def _header(self, source: Any) -> dict[str, Any]:
        c = self.config
        base = self.space.base
        return {
            "event": "study", "format": FORMAT, "method": c.method, "seed": c.seed, "metric": f"{self.output}.{self.metric}",
            "better": self.better, "eta": c.eta, "rungs": c.rungs, "points": c.points, "search": settings.plain(c.search),
            "model": base.model, "train": base.train, "data": base.data, "fingerprint": None if source is None else source.fingerprint,
            **({} if self.fold is None else {"fold": self.fold}),
        }  # fmt: skip

    def _run(self, base: Settings, source: Any, resumed: bool) -> Tuned:
        self.begin(base, source, resumed)
        validated = nested(self, base, source) if self.project.section("train").folds else {}
        return self._conclude(self.work(), validated)

    def inside(self, own: Bound, run: Run, fold: list[int]) -> Search:
        """The same search of the rows of one fold."""
        inner = Search(self.project, self.device, lambda text: None, None, self.lang)
        inner.config, inner.space, inner.output, inner.metric, inner.better = self.config, self.space, self.output, self.metric, self.better
        inner.bound, inner.run_folder, inner.fold = own, run, fold
        return inner

    def begin(self, base: Settings, source: Any, resumed: bool) -> None:
        """Journal, rows and suggestions: all that the first trial needs."""
        run, project = self.run_folder, self.project
        self.journal = Journal(run.folder / "trials.jsonl")
        header = json.loads(json.dumps(self._header(source), default=str))
        if resumed:
            self._resume(header)
        if not self.journal.read():
            self.journal.append(header)
            run.write("config.json", {"settings": project.resolved(), "origins": project.origins, "base": str(project.base.resolve())})
        run.update(state="searching", verb="tune", model={"search": self.config.method}, study=self.config.method)
        evaluate = project.section("evaluate")
        course = Course(
            base.data, project.task, base.model, base.train, str(project.base), str(run.folder), project.name, project.section("train").seed,
            self.metric, self.output, evaluate.positive, self.config.rungs, self.config.eta, self.device, self.fold, source,
        )  # fmt: skip
        course.bounds[json.dumps(base.data, sort_keys=True, default=str)] = self.bound
        self.course = course
        self.suggestions = Suggestions(self.method, self.space, self.better, self.config)
        fixed = self.method.points(self.space, self.config) if hasattr(self.method, "points") else None
        self.total = len(fixed) if fixed is not None and self.config.trials is None else self.config.trials or TRIALS
        if fixed is not None:
            self.total = min(self.total, len(fixed))
        self.fixed = fixed

    def _resume(self, header: dict[str, Any]) -> None:
        self.journal.mend()
        entries = self.journal.read()
        if not entries:
            return
        was = entries[0]
        wrong = [k for k in FIXED if was.get(k) != header[k]]
        if wrong:
            details = [Problem(f"was {_short(was.get(k))}, is {_short(header[k])}", f"tune.{k}" if k in vars(self.config) else k) for k in wrong]
            raise ConfigError("the study was begun with other settings; resume it with the same, or begin a new one", details)
        self.found = trials(entries)
        self.clock = max((float(e.get("clock", 0.0)) for e in entries), default=0.0)
        finished = sum("state" in t for t in self.found.values())
        self.say(f"{self.run_folder.name}: {finished} trials are finished, {len(self.found) - finished} begin again")

    # -- the loop -------------------------------------------------------------------------------------------------------

    def work(self) -> bool:
        """Runs trials until there are enough or the time is over; True where Ctrl-C ended it."""
        began = time.monotonic()
        self.now = lambda: self.clock + time.monotonic() - began
        engine = None
        try:
            while True:
                while (engine is None or len(self.running) < engine.slots) and (job := self._next()):
                    engine = engine or self._engine()
                    engine.start(job)
                    self.running.add(job.number)
                if engine is None or not self.running:
                    break
                job, outcome = engine.wait()
                self._told(job, outcome)
            for number in sorted(self._waiting()):  # nothing may go on: what waits is pruned
                self._finish(number, "pruned")
            return False
        except KeyboardInterrupt:
            if self._best() is None:
                raise
            return True
        finally:
            if engine is not None:
                engine.close()

    def _engine(self) -> Engine:
        whole = bool(self.project.data.env or self.project.data.stream)
        if self.config.engine == "ray":
            from modelyard.verbs.tune._ray import Tasks

            return Tasks(self.course, self.config.parallel, whole)
        return Here(self.course) if self.config.parallel == 1 else Workers(self.course, self.config.parallel, whole)

    def _left(self) -> float | None:
        return None if self.config.budget is None else self.config.budget - self.now()

    def _next(self) -> Job | None:
        """The next piece of work, a function of the journal: a trial that a kill cut short, one that goes on, else a new one."""
        left, prunes = self._left(), self.method.PRUNES
        cut = sorted(n for n, t in self.found.items() if "state" not in t and n not in self.running and not t["scores"])
        if cut:
            return Job(cut[0], self.found[cut[0]]["params"], self.method.first_rung(cut[0], self.config) if prunes else None, left)
        waiting = self._waiting()
        over = left is not None and left <= 0
        number = None if not prunes or over else self.method.promoted(self._scores(), waiting, self.config)
        if number is None and not over and len(self.found) < self.total:
            return self._new(left)
        if number is None and self._best() is None and waiting and not self.running:  # too few to halve, or no time: the best so far goes on
            number = min(waiting, key=lambda n: (-max(self.found[n]["scores"]), self._scores()[n][max(self.found[n]["scores"])], n))
        if number is None:
            return self._new(left) if not self.found else None
        return Job(number, self.found[number]["params"], max(self.found[number]["scores"]) + 1, left)

    def _new(self, left: float | None) -> Job | None:
        number = len(self.found)
        params = self.fixed[number] if self.fixed is not None else self.suggestions.next(number, self.found)
        if params is None:
            self.notes.append(f"all {number} combinations were tried")
            self.total = number
            return self._next()
        self.journal.append({"event": "asked", "trial": number, "params": params})
        self.found[number] = {"trial": number, "params": params, "scores": {}, "seconds": 0.0, "epochs": 0}
        return Job(number, params, self.method.first_rung(number, self.config) if self.method.PRUNES else None, left)

    def _waiting(self) -> set[int]:
        """Trials that wait at a rung."""
        return {n for n, t in self.found.items() if "state" not in t and t["scores"] and n not in self.running}

    def _scores(self) -> dict[int, dict[int, float]]:
        """Scores by trial and rung, lower is better."""
        sign = -1 if self.better == "higher" else 1
        return {n: {rung: sign * value for rung, value in t["scores"].items()} for n, t in self.found.items()}

    def _told(self, job: Job, outcome: dict[str, Any]) -> None:
        """Judges what came back."""
        number, trial = job.number, self.found[job.number]
        self.running.discard(number)
        # a net goes on from its checkpoint; what begins again at each rung has taken the sum
        more = 0 if outcome.get("unit", "epochs") == "epochs" or outcome.get("again") else trial["epochs"]
        epochs = (0 if outcome.get("again") else outcome.get("epochs", 0)) + more
        seconds = round(trial["seconds"] + outcome["seconds"], 3)
        facts: dict[str, Any] = {"epochs": epochs or trial["epochs"], "of": outcome.get("of", 0), "unit": outcome.get("unit", ""), "seconds": seconds}
        if "error" in outcome:
            self._finish(number, "failed", reason=outcome["error"], **facts)
        elif outcome["late"] and self._best() is not None:
            last = trial["scores"][max(trial["scores"])] if trial["scores"] else None
            self._finish(number, "pruned", last, reason="the time was over", **facts)
        elif job.rung is None or not outcome["of"] or outcome["late"] or job.rung == self.config.rungs - 1:
            if job.rung is not None and outcome["of"]:
                trial["scores"][job.rung] = outcome["value"]
            self._finish(number, "complete", outcome["value"], **facts)
        else:
            entry = {"trial": number, "rung": job.rung, "value": outcome["value"], **facts}
            self.journal.append({"event": "scored", **entry, "clock": round(self.now(), 3)})
            trial["scores"][job.rung] = outcome["value"]
            trial |= facts
            self._tell_progress()

    def _finish(self, number: int, state: str, value: float | None = None, reason: str = "", **facts: Any) -> None:
        """The journal first: what is in it is never done again. Then the folder keeps the best model only."""
        best, trial = self._best(), self.found[number]
        if state == "pruned" and trial["scores"]:
            value = trial["scores"][max(trial["scores"])]
        kept: dict[str, Any] = {k: trial[k] for k in ("epochs", "of", "unit", "seconds") if k in trial}
        entry: dict[str, Any] = {
            "trial": number, "state": state, "value": value, **kept, **facts, "scores": [[r, v] for r, v in sorted(trial["scores"].items())],
        }  # fmt: skip
        if reason:
            entry["reason"] = reason
        self.journal.append({"event": "finished", **entry, "clock": round(self.now(), 3)})
        self.found[number] |= {**entry, "scores": trial["scores"]}
        for other in {number, *([best["trial"]] if best else [])} - {self._best_number()}:
            atomic.remove(self.course.place(other) / "model")
        shutil.rmtree(self.course.place(number) / "checkpoints", ignore_errors=True)
        self._tell_progress()

    def _tell_progress(self) -> None:
        if self.progress:
            best = self._best()
            text = f"best {self.metric} {best['value']:.4g}" if best else ""
            self.progress(sum("state" in t or bool(t["scores"]) for t in self.found.values()), self.total, text)

    def _best_number(self) -> int | None:
        best = self._best()
        return None if best is None else int(best["trial"])

    def _best(self) -> dict[str, Any] | None:
        """The best whole trial; of equal ones the first."""
        sign = -1 if self.better == "higher" else 1
        whole = [t for t in self.found.values() if t.get("state") == "complete"]
        return min(whole, key=lambda t: (sign * t["value"], t["trial"]), default=None)

    # -- the end --------------------------------------------------------------------------------------------------------

    def _failed(self) -> list[dict[str, Any]]:
        return [{"trial": t["trial"], "params": t["params"], "reason": t["reason"]} for t in self.found.values() if t.get("state") == "failed"]

    def best_or_raise(self) -> dict[str, Any]:
        """The best whole trial; `GateFailed` with the reasons where there is none."""
        best, failed = self._best(), self._failed()
        if best is None:
            reasons = list(dict.fromkeys(f["reason"] for f in failed))
            raise GateFailed(f"all {len(failed)} trials failed", [Problem(r, "trial " + str(failed[0]["trial"])) for r in reasons[:5]])
        return best

    def _conclude(self, cut: bool, validated: dict[str, Any]) -> Tuned:
        run, best, failed = self.run_folder, self.best_or_raise(), self._failed()
        done = [t for t in self.found.values() if "state" in t]
        chosen = self.space.applied(best["params"])
        run.update(**self._picture(best, failed))
        bound = self.course.bound(chosen.data)
        facts = self.keep(best)
        origins = {**self.project.origins, **{key: f"tune: trial {best['trial']}" for key in best["params"]}}
        resolved = {**self.project.resolved(), "model": chosen.model, "train": chosen.train}
        if any(key.startswith("data.") for key in best["params"]):
            resolved["data"] = chosen.data
        run.write("config.json", {"settings": resolved, "origins": origins, "base": str(self.project.base.resolve())})
        (run.folder / "config.yaml").write_text(snippet(resolved), encoding="utf-8")
        head = f"# the best of {len(done)} trials: {self.metric} {best['value']:.6g} on the validation rows\n"
        (run.folder / "best.yaml").write_text(head + snippet(_changed(chosen, best["params"])), encoding="utf-8")
        trained = conclude(run, run.model, bound, facts, self.project.section("evaluate"), lang=self.lang, cut=cut, validated=validated)
        if not cut:
            for number in self.found:
                atomic.remove(self.course.place(number) / "model")
            shutil.rmtree(run.folder / "tables", ignore_errors=True)
        metric = self.metric if len(self.bound.pipeline.outputs) == 1 else f"{self.output}.{self.metric}"
        return Tuned(
            str(run.folder), str(run.model), metric, {"trial": best["trial"], "params": best["params"], "value": best["value"]},
            str(run.folder / "best.yaml"), len(done), sum(t["state"] == "pruned" for t in done), failed, sum(t["epochs"] for t in done),
            trained.metrics, trained.gate, self.notes, cut, self.folds,
        )  # fmt: skip

    def keep(self, best: dict[str, Any]) -> dict[str, Any]:
        """The best trial's model as the run's; facts of its manifest. It is trained again only where its folder was lost."""
        from modelyard.store import folder as store

        run, place = self.run_folder, self.course.place(best["trial"])
        wanted = place / "model"
        if not (wanted / "manifest.json").is_file() and not self._is(run.model, best["trial"]):
            self.course.advance(best["trial"], best["params"], None)
        if (wanted / "manifest.json").is_file():
            aside = run.folder / ".model.partial"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(wanted, aside)
            atomic.remove(run.model)
            atomic.rename(aside, run.model)
            events = place / "events.jsonl"
            if events.is_file():
                shutil.copyfile(events, run.folder / "events.jsonl")
            run.update(kept=best["trial"])
        manifest = store.read(run.model)
        return {"training": manifest.get("training", {}), "seed": manifest.get("seed", 0)}

    def _is(self, model: Path, number: int) -> bool:
        """Whether the run's model is that of a trial already (the study was finished before)."""
        return (model / "manifest.json").is_file() and self.run_folder.read("run.json").get("kept") == number

    def _picture(self, best: dict[str, Any], failed: list[dict[str, Any]]) -> dict[str, Any]:
        """What the report shows of the search. With pruning, importance is of the first rung, which every trial reached."""
        shown = []
        for t in sorted((t for t in self.found.values() if "state" in t), key=lambda t: t["trial"]):
            first = t["scores"].get(0) if self.method.PRUNES else t["value"]
            kept = {k: t[k] for k in ("trial", "params", "state", "value", "epochs", "of", "seconds")} | {"unit": t.get("unit", "")}
            shown.append({**kept, "shown": first, "reason": t.get("reason", "")})
        axes = {k: {"log": getattr(d, "log", False), "values": list(getattr(d, "values", ()))} for k, d in self.space.dimensions.items()}
        found = importances(shown, self.space)
        search = {
            "method": self.config.method, "metric": self.metric, "better": self.better, "best": best["trial"], "axes": axes, "trials": shown,
            "importance": [{"name": k, "value": v} for k, v in found],
        }  # fmt: skip
        return {"search": search}


def _find(runs: Path, resume: str | bool) -> Run:
    """The run of a study: the one named, else the newest."""
    if isinstance(resume, str):
        run = Run.find(runs, resume)
        if not (run.folder / "trials.jsonl").is_file():
            raise ArtefactError(f"{run.name} is no study: it holds no trials.jsonl; go on with a training by: modelyard train --resume {resume}")
        return run
    studies = sorted(runs.glob("*/trials.jsonl"), key=lambda p: p.stat().st_mtime) if runs.is_dir() else []
    if not studies:
        raise ArtefactError(f"there is no study in {runs}; begin one with: modelyard tune")
    return Run(studies[-1].parent)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:119] + "…"


def _changed(chosen: Settings, params: dict[str, Any]) -> dict[str, Any]:
    """The sections as far as they were searched: the model whole, of train and data the keys."""
    found: dict[str, Any] = {"model": chosen.model} if any(k.split(".")[0] == "model" for k in params) else {}
    for key in params:
        section, *rest = key.split(".")
        if section != "model":
            source = getattr(chosen, section)
            found.setdefault(section, {})[rest[0]] = source[rest[0]]
    return found


def snippet(sections: dict[str, Any]) -> str:
    """YAML of plain values, a line for each key; JSON is YAML."""
    lines = []
    for name, value in sections.items():
        if isinstance(value, dict) and value:
            lines += [f"{name}:", *(f"  {k}: {json.dumps(v, ensure_ascii=False, default=str)}" for k, v in value.items() if v is not None)]
        elif value is not None:
            lines.append(f"{name}: {json.dumps(value, ensure_ascii=False, default=str)}")
    return "\n".join([*lines, ""])
