"""Does everything the project file asks for: prepare, train or tune, evaluate, export. What did not change is not done again.

modelyard run
modelyard run -f examples/churn/modelyard.yaml
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelyard.data import artefact
from modelyard.data.sql import is_url, sqlite_file
from modelyard.errors import ArtefactError, GateFailed, Problem
from modelyard.store import folder as store
from modelyard.store.run import Run, versions

TRAINING = ("version", "name", "task", "seed", "data", "prepare", "model", "train", "tune")
"""What decides the trained model."""

READ = {
    **dict.fromkeys(("train", "valid", "test", "unlabelled", "sheet", "query", "limit", "encoding", "separator")), "header": True,
}  # fmt: skip
"""Keys of `data` that say how the raw rows are read, as they stand for what `prepare` wrote."""
ROLES = ("target", "inputs", "outputs", "ignore", "id", "weight", "group", "time")
"""Keys of `data` that a data artefact with split rows carries itself, with what its steps added."""


@dataclass
class Ran:
    """What each stage did: `done` or `unchanged`."""

    run: str
    model: str
    stages: dict[str, str]
    metrics: dict[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {k: v for k, v in vars(self).items() if k != "seconds"}

    def __str__(self) -> str:
        if set(self.stages.values()) == {"unchanged"}:
            return f"nothing changed since {self.run}: nothing was done ({self.seconds:.1f} s)"
        lines = [f"{stage:<9} {what}" for stage, what in self.stages.items()]
        return "\n".join([*lines, f"model     {self.model}", f"report    {self.run}/report.html", f"next      modelyard serve {self.run}"])


def run(project: Any, *, model: str | None = None, options: Any) -> Ran:
    """The verb."""

    began = time.monotonic()
    resolved = project.resolved()
    content = fingerprints(project)
    key = _key({k: resolved.get(k) for k in TRAINING}, content, versions())
    runs = project.base / "runs"
    stages: dict[str, str] = {}
    making = "tune" if project.has("tune.search") else "train"
    found = _finished(runs, key)
    prepared: dict[str, str] = {}
    if project.has("prepare"):
        prepared = _prepare(project, found, stages, options)
        project = _of(project, prepared["data"])
    verb = lambda name, args: _call(name, project, args, options)  # noqa: E731
    if found is None:
        trained = verb(making, [])
        found = Run(Path(trained.run))
        found.update(key=key, **({"prepared": prepared} if prepared else {}))
        stages[making] = "done"
    else:
        stages[making] = "unchanged"
    _evaluate(project, found, resolved, stages, verb)
    if project.has("export"):
        _export(found, resolved, stages, verb)
    metrics = found.read("metrics.json")
    ran = Ran(str(found.folder), str(found.model), stages, metrics, time.monotonic() - began)
    missed = [g for g in found.read("run.json").get("gate") or [] if not g["passed"]]
    if missed:
        details = [Problem(f"is {g['value']:.4g}, wanted {g['limit']}", g["metric"]) for g in missed]
        raise GateFailed(f"{len(missed)} gate(s) missed", details, ran)
    return ran


def _prepare(project: Any, found: Run | None, stages: dict[str, str], options: Any) -> dict[str, str]:
    """`{data, key}` of the data artefact: the one that the finished run learnt from, while it is there; else what the verb makes or finds.

    The raw rows are not even read where a run of the same key is finished: the key holds their content.
    """
    before = found.read("run.json").get("prepared") if found is not None else None
    if before and (made := artefact.made(project.base / before["data"])) is not None and made.key == before["key"]:
        stages["prepare"] = "unchanged"
        return {k: str(before[k]) for k in ("data", "key")}
    done = _call("prepare", project, [], options)
    stages["prepare"] = "unchanged" if done.unchanged else "done"
    place = Path(os.path.relpath(Path(done.data).resolve(), project.base.resolve())).as_posix()
    made = artefact.made(project.base / place)
    assert made is not None
    return {"data": place, "key": made.key}


def _of(project: Any, data: str) -> Any:
    """The project with the rows that `prepare` made."""
    made = artefact.made(project.base / data)
    assert made is not None
    changes = {**READ, "path": data, **(dict.fromkeys(ROLES) if made.split else {})}
    hidden = {k: v for k, v in project.hidden.items() if k.removeprefix("data.") not in changes}
    origins = {**project.origins, "data.path": "prepare"}
    return replace(project, data=replace(project.data, **changes), hidden=hidden, origins=origins)


def _call(verb: str, project: Any, args: list[str], options: Any) -> Any:
    from modelyard import registry

    try:
        return registry.load("verbs", verb).run(project, model=args[0] if args else None, options=replace(options, args=args))
    except GateFailed as missed:  # a missed gate is told once, at the end
        return missed.result


def _finished(runs: Path, key: str) -> Run | None:
    """The newest finished run of this key whose model is whole."""
    for folder in sorted(runs.glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True) if runs.is_dir() else []:
        run = Run(folder.parent)
        facts = run.read("run.json")
        if facts.get("key") == key and facts.get("state") == "finished":
            try:
                store.read(run.model)
            except ArtefactError:
                continue
            return run
    return None


def _evaluate(project: Any, run: Run, resolved: dict[str, Any], stages: dict[str, str], verb: Any) -> None:
    wanted = _key(resolved.get("evaluate"), store.version(run.model))
    facts = run.read("run.json")
    if facts.get("evaluated") == wanted:
        stages["evaluate"] = "unchanged"
        return
    if "unchanged" in stages.values() or project.has("evaluate"):
        verb("evaluate", [str(run.folder)])
    run.update(evaluated=wanted)
    stages["evaluate"] = "done"


def _export(run: Run, resolved: dict[str, Any], stages: dict[str, str], verb: Any) -> None:
    wanted = _key(resolved.get("export"), store.version(run.model))
    facts = run.read("run.json")
    folder = Path(facts["export"]["folder"]) if "export" in facts else None
    if folder is not None and facts["export"]["key"] == wanted and (folder / "manifest.json").is_file():
        try:
            store.read(folder)
            stages["export"] = "unchanged"
            return
        except ArtefactError:
            pass
    exported = verb("export", [str(run.folder)])
    run.update(export={"key": wanted, "folder": exported.folder})
    stages["export"] = "done"


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode("utf-8")).hexdigest()


def fingerprints(project: Any) -> dict[str, str]:
    """sha256 of every file that the data and model sections name; content counts, never the time of a file."""
    found = {}
    for name in ("path", "train", "valid", "test", "unlabelled"):
        given = getattr(project.data, name)
        if isinstance(given, str):
            path = sqlite_file(given, project.base) if is_url(given) else project.base / given
            # another database is asked anew every time: nobody knows from here what changed in it
            found[name] = _content(path) if path is not None else f"asked at {time.time_ns()}"
    module = project.model.value.get("module") if isinstance(project.model.value, dict) else None
    if isinstance(module, str) and module.rpartition(":")[0].endswith(".py"):
        found["module"] = _content(project.base / module.rpartition(":")[0])
    return found


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(os.path.relpath(file, path).encode("utf-8") + b"\0")
        with file.open("rb") as stream:
            while piece := stream.read(2**20):
                digest.update(piece)
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from sorted(p for p in path.rglob("*") if p.is_file())
