"""Lists runs, or compares two: which settings differ, and which metrics, with their intervals.

modelyard runs
modelyard runs compare churn-0001 churn-0002
modelyard runs path=elsewhere/runs --json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError, UsageError
from modelyard.options import Options
from modelyard.store.run import Run

NEEDS_PROJECT = False


@dataclass
class Listing:
    """Every run of a folder, oldest first."""

    folder: str
    runs: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def show(self) -> str:
        """A line a run."""
        if not self.runs:
            return f"no runs in {self.folder}; make one with: modelyard train"
        rows = [[r["run"], r["state"], r["started"] or "", r["metric"] or ""] for r in self.runs]
        return _columns([["run", "state", "started", "metric"], *rows])


@dataclass
class Comparison:
    """Two runs side by side."""

    a: str
    b: str
    settings: dict[str, dict[str, Any]]
    """Dotted key → `{a, b}`, where they differ."""
    metrics: dict[str, dict[str, Any]]
    """Dotted metric → `{a, b, difference, overlap}`; `a` and `b` as stored, `overlap` whether the intervals meet."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def show(self) -> str:
        """Two tables."""
        settings = [[k, _say(v["a"]), _say(v["b"])] for k, v in self.settings.items()]
        metrics = [
            [
                k,
                _say(v["a"]),
                _say(v["b"]),
                "" if v["difference"] is None else f"{v['difference']:+.4g}",
                _overlap(v["overlap"]),
            ]
            for k, v in self.metrics.items()
        ]
        first = _columns([["setting", self.a, self.b], *settings]) if settings else "the settings are the same"
        second = (
            _columns([["metric", self.a, self.b, "difference", ""], *metrics])
            if metrics
            else "there are no metrics to compare"
        )
        return f"{first}\n\n{second}"


def run(project: None, *, model: str | None, options: Options) -> Listing | Comparison:
    """Raises `ArtefactError` for a run that is not there, `UsageError` for other arguments."""
    unknown = set(options.values) - {"path", "file"}
    if unknown:
        raise UsageError(f"runs has no key {', '.join(sorted(unknown))}; expected path=FOLDER")
    base = Path(str(options.values["file"])).parent if "file" in options.values else Path()
    folder = Path(str(options.values.get("path", base / "runs")))
    args = options.args
    if not args:
        return Listing(folder.as_posix(), [_line(r) for r in _all(folder)])
    if args[0] == "compare" and len(args) == 3:
        return compare(Run.find(folder, args[1]), Run.find(folder, args[2]))
    if len(args) == 1 and args[0] not in ("compare", "list"):
        return Listing(folder.as_posix(), [_line(Run.find(folder, args[0]))])
    if args == ["list"]:
        return Listing(folder.as_posix(), [_line(r) for r in _all(folder)])
    raise UsageError(
        f"got runs {' '.join(args)}; write: modelyard runs, modelyard runs RUN, or modelyard runs compare A B"
    )


def _all(folder: Path) -> list[Run]:
    found = [Run(p.parent) for p in folder.glob("*/run.json")] if folder.is_dir() else []
    return sorted(found, key=lambda r: (str(_read(r, "run.json").get("started", "")), r.name))


def _read(run: Run, name: str) -> dict[str, Any]:
    """A file of a run; a damaged one counts as not written, so that one bad run does not hide the others."""
    try:
        found = run.read(name)
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _line(run: Run) -> dict[str, Any]:
    facts = _read(run, "run.json")
    metrics = flat(_read(run, "metrics.json"))
    shown = next((k for k in metrics if k.startswith("test.")), next(iter(metrics), None))
    return {
        "run": run.name,
        "state": facts.get("state", "damaged"),
        "started": facts.get("started"),
        "verb": facts.get("verb"),
        "metric": f"{shown} {_say(metrics[shown])}" if shown else None,
        "metrics": metrics,
        "model": run.model.as_posix() if run.model.is_dir() else None,
    }


def compare(a: Run, b: Run) -> Comparison:
    """Settings and metrics of two runs; either may be unfinished."""
    left, right = _settings(a), _settings(b)
    settings = {
        k: {"a": left.get(k), "b": right.get(k)} for k in sorted({*left, *right}) if left.get(k) != right.get(k)
    }
    mine, other = flat(_read(a, "metrics.json")), flat(_read(b, "metrics.json"))
    metrics = {k: _difference(mine.get(k), other.get(k)) for k in [*mine, *(k for k in other if k not in mine)]}
    return Comparison(a.name, b.name, settings, metrics)


def _settings(run: Run) -> dict[str, Any]:
    from modelyard.errors import ConfigError
    from modelyard.project_file import bare, read_file

    path = run.folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        return _leaves(bare(read_file(path, [])))
    except ConfigError as error:
        raise ArtefactError(f"{path} is damaged: {error.message}") from None


def _leaves(tree: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {where: tree}
    found: dict[str, Any] = {}
    for key, item in tree.items():
        if where or key != "origins":
            found |= _leaves(item, f"{where}.{key}" if where else str(key))
    return found


def flat(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Metrics by dotted name; `{value, low, high}` is a leaf."""
    found: dict[str, Any] = {}
    for key, item in tree.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(item, Mapping) and "value" not in item:
            found |= flat(item, name)
        elif isinstance(item, int | float | Mapping) and not isinstance(item, bool):
            found[name] = dict(item) if isinstance(item, Mapping) else item
    return found


def _difference(a: Any, b: Any) -> dict[str, Any]:
    left, right = (m if isinstance(m, Mapping) else {"value": m} for m in (a, b))
    difference = None
    if all(isinstance(m.get("value"), int | float) for m in (left, right)):
        difference = right["value"] - left["value"]
    overlap = None
    if all(isinstance(m.get(k), int | float) for m in (left, right) for k in ("low", "high")):
        overlap = bool(left["low"] <= right["high"] and right["low"] <= left["high"])
    return {"a": a, "b": b, "difference": difference, "overlap": overlap}


def _overlap(overlap: bool | None) -> str:
    return "" if overlap is None else "intervals overlap" if overlap else "intervals apart"


def _say(value: Any) -> str:
    if isinstance(value, Mapping) and "value" in value:
        interval = (
            f" [{_say(value['low'])}, {_say(value['high'])}]"
            if value.get("low") is not None and value.get("high") is not None
            else ""
        )
        return f"{_say(value['value'])}{interval}"
    return "—" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _columns(rows: list[list[str]]) -> str:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
