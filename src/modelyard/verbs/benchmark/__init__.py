"""Compares all exports of a model side by side: size, time of a row and of a batch, metric, parity; what is refused stands there with its reason.

modelyard benchmark runs/digits-0001
modelyard benchmark runs/churn-0001 data=new.csv benchmark.exports=[onnx,openvino,docker] benchmark.batch=256
modelyard benchmark runs/digits-0001 benchmark.beside=[digits-small-0001]         # and what compress made of it

Every export is made anew, opened as its users would open it, and replays the model's stored examples. Those that pass are timed in turns, so that
whatever else the machine does hits all alike. Nothing takes the place of an export that is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from modelyard.errors import ConfigError
from modelyard.settings import Between

__all__ = ["Benchmarked", "Config", "benchmark"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """`benchmark`: what is compared, and for how long."""

    SHORTHAND: ClassVar[str] = "exports"

    exports: list[str] | None = None
    """Forms of `export.format`; without it all of them."""
    beside: list[str] = field(default_factory=list)
    """Other models of the same outputs, such as a compressed one: names of runs, or folders."""
    batch: Annotated[int, Between(1, 100_000)] = 64
    """Rows that are answered together."""
    seconds: Annotated[float, Between(0.05, 600)] = 1.0
    """Of timing for each export, once for single rows and once for batches; at least five rounds."""
    metrics: list[str] | None = None
    """Metrics by name; without it the first of each output."""
    rows: Annotated[int, Between(1)] = 2000
    """Rows that the metric is measured on, at most; each row is answered by every export."""


@dataclass
class Benchmarked:
    """What was measured."""

    model: str
    version: str
    report: str
    data: str
    """Where the numbers stand: `benchmark.json`."""
    split: str
    """Whose rows the metric was measured on."""
    rows: int
    batch: int
    entries: list[dict[str, Any]]
    """`{name, what, bytes, one, batch, metrics, parity, refused}`, the model itself first. `one` and `batch` are milliseconds `{median, low, high,
    rounds, share}` (`share` of the model's own time in the same round), `batch` with `rows_per_second`; `refused` is `{why, reason}` or null."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [f"{self.report}: {self.split}, {self.rows} rows, batches of {self.batch}"]
        for e in self.entries:
            size = f"{e['bytes'] / 1e6:8.2f} MB" if e["bytes"] else " " * 11
            if not e["one"]:
                lines.append(f"  {e['name']:14}{size}  {e['refused']['why']}: {e['refused']['reason']}")
                continue
            one, many, metric = e["one"], e["batch"], next(iter(e["metrics"].items()), None)
            told = f"{metric[0]} {metric[1]['value']:.4g}" if metric and metric[1]["value"] is not None else ""
            parity = f"differs by {e['parity']['max_difference']:.1e}" if e["parity"] else ""
            lines.append(f"  {e['name']:14}{size}  {one['median']:.3f} ms, {many['rows_per_second']:,.0f} rows/s  {told}  {parity}".rstrip())
        return "\n".join(lines)


def benchmark(
    folder: Path, bound: Any, split: str, config: Config, *, runs: Path, model: Any = None, trust_code: bool = False, lang: str = "en",
    progress: Any = None,
) -> Benchmarked:  # fmt: skip
    """Compares the model of `folder` with its exports on the rows of `bound` (its `split`); writes `benchmark/` beside the model folder.

    Raises `ConfigError` for forms that do not exist. A form that refuses is an entry with its reason.
    """
    import tempfile

    from modelyard.runtime.model import TOLERANCE, Model
    from modelyard.store.run import Run, machine, now
    from modelyard.verbs.benchmark import _contenders, _measure
    from modelyard.verbs.report import write_report

    forms = _forms(config.exports)
    loaded = model if model is not None else Model.load(folder, trust_code=trust_code)
    target = _target(folder)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".benchmark-") as place:
        entries, models = _contenders.gathered(loaded, folder, forms, config.beside, Path(place), runs, trust_code, progress)
        _measure.timed(entries, models, loaded, bound, split, config)
        rows = _measure.judged(entries, models, bound, split, config)
        target.mkdir()
    whole = {
        "model": str(folder), "version": loaded.version, "split": split, "rows": rows, "batch": config.batch, "tolerance": TOLERANCE["float32"],
        "entries": entries, "machine": machine(), "time": now(),
    }  # fmt: skip
    run = Run(target)
    run.write("benchmark.json", whole)
    run.write("run.json", {
        "name": f"{loaded.name}, exports compared", "state": "finished", "started": now(), "machine": machine(),
        "model": {"model": [loaded.backend], "version": loaded.version}, "exports": whole, "pictures": {"exports": whole},
    })  # fmt: skip
    page = write_report(target, {}, lang=lang)
    return Benchmarked(str(folder), loaded.version, str(page), str(target / "benchmark.json"), split, rows, config.batch, entries)


def _forms(wanted: list[str] | None) -> list[str]:
    """Checked names of forms. Raises `ConfigError` with every one that is unknown."""
    import typing

    from modelyard.errors import Problem
    from modelyard.verbs.export import Config as Export

    known = list(typing.get_args(typing.get_type_hints(Export)["format"]))
    if wrong := [f for f in wanted or [] if f not in known]:
        problems = [Problem(f"{f!r} is no form of export; expected {', '.join(known)}", "benchmark.exports") for f in wrong]
        raise ConfigError(f"benchmark.exports names {len(wrong)} form(s) that do not exist", problems)
    return list(dict.fromkeys(wanted if wanted is not None else known))


def _target(folder: Path) -> Path:
    """`benchmark` beside the model folder, or the next free number."""
    target, number = folder.parent / "benchmark", 2
    while target.exists():
        target, number = folder.parent / f"benchmark-{number}", number + 1
    return target


def run(project: Any, *, model: str | None = None, options: Any) -> Benchmarked:
    """The verb."""
    from modelyard.progress import Bar
    from modelyard.runtime.model import Model
    from modelyard.store import sealed
    from modelyard.store.run import model_folder
    from modelyard.verbs.evaluate import rows

    runs = project.base / "runs"
    folder = model_folder(model, runs)
    loaded = Model.load(folder, trust_code=options.trust_code)
    sealed.forbid_copy(loaded.opened, folder)
    bound, splits, _ = rows(project, folder, loaded)
    with Bar("comparing", quiet=options.quiet or options.json) as bar:

        def progress(step: int, steps: int, text: str) -> None:
            bar.total = steps
            bar.update(step, text)

        return benchmark(
            folder, bound, splits[-1], project.section("benchmark"), runs=runs, model=loaded, trust_code=options.trust_code,
            lang=options.lang or project.section("report").lang, progress=progress,
        )  # fmt: skip
