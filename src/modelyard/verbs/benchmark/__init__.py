"""Compares a model with everything that it can be exported as, and with other models: size, speed here, metric, and whether the answers are the same.

modelyard benchmark runs/churn-0001
modelyard benchmark runs/churn-0001 benchmark.forms=[onnx,openvino] benchmark.models=[runs/churn-small-0001]

Each form is made in a folder that is thrown away, replays the stored examples like any export, and answers the same rows; a form that cannot be
made is listed with its reason, and none is measured as another. Times are those of whole predictions (checks and decoding with them), taken in
turns so that what else runs on the machine hits all alike. Writes `benchmark.html` and `benchmark.json` beside the model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from modelyard import registry
from modelyard.errors import ConfigError, ModelyardError, Problem, Unsupported
from modelyard.settings import Between

__all__ = ["Benchmarked", "Config", "benchmark"]

MODEL = "model"
"""Name of the model itself among the forms."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """`benchmark`: what is compared, and on what."""

    forms: list[str] | None = None
    """Forms of export; without it all that there are, those that cannot be made with their reason."""
    models: list[str] = field(default_factory=list)
    """Other models of the same columns (runs, model folders, exports) to be compared, as compressed ones."""
    metric: str | None = None
    """What is judged; without it the first metric of the output."""
    rows: Annotated[int, Between(1)] = 2000
    """Rows at most on which metric and answers are compared: the first of the test rows, else of the validation rows, else of all."""
    batch: Annotated[int, Between(2, 100_000)] = 256
    """Rows of the larger of the two predictions that are timed."""
    seconds: Annotated[float, Between(0.1, 600)] = 2.0
    """Of timing, for each model and number of rows."""


@dataclass
class Benchmarked:
    """What was found."""

    model: str
    report: str
    metric: str
    rows: int
    """On which metric and answers were compared."""
    batch: int
    forms: list[dict[str, Any]]
    """`{form, bytes, parity, milliseconds, rows_per_second, value, differing, largest}`, times as `{median, low, high}` and values as `{value, low, high}`;
    or `{form, refused, why}`. The model itself comes first."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [f"{'':18} {'KiB':>10} {'ms, one row':>22} {'rows/s':>12}  {self.metric} on {self.rows} rows"]
        for f in self.forms:
            if "refused" in f:
                lines.append(f"{f['form']:18} {f['why']}: {f['refused']}")
                continue
            one, many, value = f["milliseconds"], f["rows_per_second"], f["value"]
            times = f"{one['median']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
            same = "" if f["form"] == MODEL else f"; {f['differing']} answers differ, by {f['largest']:.2g} at most"
            between = f" [{value['low']:.4g}, {value['high']:.4g}]" if value.get("low") is not None else ""
            lines.append(f"{f['form']:18} {f['bytes'] / 1024:>10,.0f} {times:>22} {many['median']:>12,.0f}  {value['value']:.4g}{between}{same}")
        return "\n".join([*lines, self.report])


def benchmark(
    folder: Path, bound: Any, config: Config, *, judged: Sequence[str] | None = None, lang: str = "en", trust_code: bool = False, progress: Any = None,
) -> Benchmarked:  # fmt: skip
    """Compares the model of `folder` with its forms and with `config.models` on the rows of `bound`. Raises `ConfigError`, `Unsupported`."""
    from modelyard.runtime.model import Model
    from modelyard.store import atomic, sealed
    from modelyard.verbs.benchmark import _compare, _page
    from modelyard.verbs.evaluate import aim

    model = Model.load(folder, trust_code=trust_code)
    sealed.forbid_copy(model.opened, folder)
    if not model.by_row:
        raise Unsupported("an example of this model is made of many rows, and forms are timed on single ones", "not yet")
    named = _forms(config.forms)
    split = next((s for s in ("test", "valid", "train") if s in bound.splits and bound.splits[s].height), "valid")
    output, metric, better = aim(bound, config.metric, list(judged) if judged else None, "benchmark", split)
    with tempfile.TemporaryDirectory() as place:
        found = _compare.Comparison(model, bound, split, output, metric, config)
        for name in (*named, *config.models):
            if progress:
                progress(name, len(named) + len(config.models) + 2)
            if name in named:
                found.form(name, Path(place) / name, trust_code)
            else:
                found.other(name, trust_code)
        if progress:
            progress("timing", len(named) + len(config.models) + 2)
        forms = found.measured()
    home = folder.parent if (folder.parent / "run.json").is_file() else folder
    report = home / ("benchmark.zh.html" if lang == "zh" else "benchmark.html")
    done = Benchmarked(str(folder), str(report), metric, found.rows, config.batch, forms)
    atomic.replace_file(home / "benchmark.json", json.dumps({**done.to_json(), "better": better}, indent=1).encode("utf-8"))
    atomic.replace_file(report, _page.page(done, model, better, lang).encode("utf-8"))
    return done


def _forms(wanted: Sequence[str] | None) -> list[str]:
    known = registry.names("verbs/export")
    if wanted is None:
        return list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        details = [Problem(f"{name!r} is no form; expected {', '.join(known)}", "benchmark.forms") for name in unknown]
        raise ConfigError(f"benchmark.forms has {len(unknown)} mistake(s)", details)
    return list(dict.fromkeys(wanted))


def refused(name: str, error: ModelyardError) -> dict[str, Any]:
    """The entry of a form that cannot be had here."""
    why: Mapping[str, str] = {"MissingExtra": "needs", "ParityError": "differs"}
    return {"form": name, "refused": error.message, "why": getattr(error, "why", None) or why.get(type(error).__name__, "fails")}


def run(project: Any, *, model: str | None = None, options: Any) -> Benchmarked:
    """The verb."""
    from modelyard.progress import Bar
    from modelyard.runtime.model import Model
    from modelyard.store.run import model_folder
    from modelyard.verbs.evaluate import rows_for

    folder = model_folder(model, project.base / "runs")
    bound, _ = rows_for(project, folder, Model.load(folder, trust_code=options.trust_code))
    with Bar("comparing", quiet=options.quiet or options.json) as bar:
        done = 0

        def progress(text: str, steps: int) -> None:
            nonlocal done
            bar.total = steps
            bar.update(done, text)
            done += 1

        return benchmark(
            folder, bound, project.section("benchmark"), judged=project.section("evaluate").metrics, lang=options.lang or project.section("report").lang,
            trust_code=options.trust_code, progress=progress,
        )  # fmt: skip
