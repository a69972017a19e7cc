"""The stages of one compression, one after the other, each judged against what stood before it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard import registry, settings
from modelyard.errors import ParityError, Unsupported
from modelyard.runtime.model import Model
from modelyard.tasks._binding import Bound, bind
from modelyard.verbs.compress import _measure

if TYPE_CHECKING:
    from modelyard.store.run import Run
    from modelyard.verbs.compress import Config

HELPS = 0.95
"""A stage must bring the bytes or the milliseconds of a row below this share of what they were."""
WORSE = 1.1
"""And neither may rise above this share: files that shrink while answers slow down are no gain for both."""


@dataclasses.dataclass
class Work:
    """`bound` are the rows; `teacher` is the model that came in, `plain` the same as ONNX graphs."""

    teacher: Model
    bound: Bound
    config: Config
    metric: str
    output: str
    better: str
    train: Any
    trust_code: bool
    least: float = 0.0
    """Value of the metric that must not be undercut (or exceeded, where lower is better)."""
    pictures: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What stages have to show beside their numbers."""

    @classmethod
    def begin(cls, model: Model, data: Any, task: str | None, config: Config, base: Path, train: Any, trust_code: bool, judged: list[str] | None) -> Work:
        """Binds the rows as the model knows them and chooses the metric."""
        from modelyard.verbs.evaluate import aim

        if not model.by_row:
            raise Unsupported("an example of this model is made of many rows, and stages are timed on single ones", "not yet")
        bound = bind(data, task, base, like=model.pipeline, tasks=model.tasks, seed=train.seed if train is not None else 0)
        output, metric, better = aim(bound, config.metric, judged, "compress")
        return cls(model, bound, config, metric, output, better, train, trust_code)

    def go(self, stages: list[tuple[str, Any]], run: Run, progress: Any) -> list[dict[str, Any]]:
        """Goes through the stages and leaves the last model that stands in `run.model`; what is told of each, the first model's first."""
        work = run.folder / "stages"
        current = self._exported(self.teacher.folder, work / "0-model")
        net = self.teacher.folder
        rows = [dict(r) for r in self.bound.splits["valid"].select([c.name for c in self.bound.pipeline.inputs]).head(64).to_dicts()]
        value = self.value(current)
        if value != value:
            raise Unsupported(f"{self.metric} is not defined on the validation rows, so no stage could be judged; set compress.metric", "needs")
        scale = abs(value) * self.config.max_loss
        self.least = value - scale if self.better == "higher" else value + scale
        one, many = (_measure.milliseconds([current], rows, n)[0] for n in (1, 64))
        told = [self._entry("model", None, value, current, one, many)]
        if progress:
            progress(0, len(stages), "model")
        for i, (name, config) in enumerate(stages, 1):
            module = registry.load("verbs/compress", name)
            entry: dict[str, Any] = {"stage": name, "settings": settings.plain(config), "accepted": False}
            try:
                if getattr(module, "NET", False):
                    folder = module.apply(self, net, config, work / f"{i}-{name}-net")
                    child = self._exported(folder, work / f"{i}-{name}")
                    if hasattr(module, "after"):
                        child = Model.load(module.after(self, child, config, work / f"{i}-{name}-after"))
                else:
                    folder = None
                    child = Model.load(module.apply(self, current, config, work / f"{i}-{name}"))
                value = self.value(child)
                before, after = _measure.milliseconds([current, child], rows, 1)
                before_64, after_64 = _measure.milliseconds([current, child], rows, 64)
                entry |= self._entry(name, settings.plain(config), value, child, after, after_64)
                told[-1 if told[-1]["accepted"] is not False else self._standing(told)] |= {"milliseconds_1": before, "milliseconds_64": before_64}
                reason = self._against(value, _measure.size(child) / _measure.size(current), after / before)
                entry |= {"accepted": reason is None, "reason": reason}
                if reason is None:
                    current, net = child, folder or net
            except (Unsupported, ParityError) as error:
                entry |= {"reason": error.message, "why": getattr(error, "why", None)}
            told.append(entry)
            run.event({"event": "stage", **entry})
            if progress:
                progress(i, len(stages), name)
        shutil.copytree(current.folder, run.model)
        shutil.rmtree(work)
        return told

    def value(self, model: Model) -> float:
        """The metric on the validation rows."""
        from modelyard.verbs.evaluate import score

        return float(score(model, self.bound, "valid", self.metric, self.output)["value"])

    def _against(self, value: float, size: float, time: float) -> str | None:
        lost = value < self.least if self.better == "higher" else value > self.least
        if lost or value != value:
            return f"{self.metric} would be {value:.4g}, beyond {self.least:.4g}"
        told = f"{size:.2f} of the bytes, {time:.2f} of the time"
        if self.config.favour != "both":
            return None if (size if self.config.favour == "size" else time) <= HELPS else f"favour: {self.config.favour}, but {told}"
        if size > HELPS and time > HELPS:
            return f"neither smaller nor faster: {told}"
        return None if max(size, time) <= WORSE else told

    def _entry(self, name: str, config: Any, value: float, model: Model, one: float, many: float) -> dict[str, Any]:
        return {
            "stage": name, "settings": config, "accepted": None, "value": value, "bytes": _measure.size(model), "milliseconds_1": one,
            "milliseconds_64": many,
        }  # fmt: skip

    @staticmethod
    def _standing(told: list[dict[str, Any]]) -> int:
        return max(i for i, s in enumerate(told) if s["accepted"] is not False)

    def _exported(self, folder: Path, target: Path) -> Model:
        """The model as ONNX graphs, where it has any; else as it is."""
        from modelyard.verbs.export import export

        if Model.load(folder, trust_code=self.trust_code).backend != "onnx":
            try:
                return Model.load(export(folder, "onnx", trust_code=self.trust_code, into=target).folder)
            except Unsupported:
                pass
        shutil.copytree(folder, target)
        return Model.load(target, trust_code=self.trust_code)
