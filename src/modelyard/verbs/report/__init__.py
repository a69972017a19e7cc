"""Shows a run as one HTML file: what the model is worth, where it fails, and how to make it again.

The page needs no network, reads on a phone, and speaks English or Chinese (`lang=zh`). It is a view of what the run
stored: making it again changes nothing else.

The evaluation object, which `train` and `evaluate` produce and `samples/evaluation.json` stores:

    {split: {output: {
        "kind":     "category",                                  kind of the output
        "headline": "accuracy",                                  optional: the metric of the first screen
        "metrics":  {name: {value, low, high, better, note?}},   from modelyard.metrics.evaluate_output
        "baseline": {name: {value, low, high, better, note?}},   the same of modelyard.metrics.baseline
        "pictures": {name: data},                                from modelyard.metrics.picture_data; see pictures.py
        "worst":    [{row, inputs: {column: html}, truth, prediction, confidence?, loss?, along?}],   html from Kind.draw;
                                                                 along: {truth, prediction} as html from Kind.draw_along
        "samples":  [{row, inputs: {column: html}, truth, prediction}],   of outputs without pictures
        "slices":   [{slice, rows, metric, value, low, high, better, note?}],
        "segments": [{segment, rows, share, name, text, differences: [{column, kind, effect, here, everybody, …}]}],   of groups of rows
        "groups":   {by, groups, tried, rows, of, text, …},      why there are as many groups
    }}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modelyard.verbs.report._report import EVALUATION, Report, plain

__all__ = ["Config", "Report", "Written", "plain", "run", "write_report"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The section `report`."""

    lang: Literal["en", "zh"] = "en"
    """Language of the page: English or Chinese."""
    out: str | None = None
    """Where the page goes; by default `report.html` in the run folder (`report.zh.html` in Chinese)."""


@dataclass(frozen=True)
class Written:
    """What `report` wrote."""

    report: str
    plots: list[str]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """`{report, plots, bytes}`."""
        return dict(vars(self))

    def __str__(self) -> str:
        return f"{self.report}  ({self.bytes / 1000:,.0f} kB, {len(self.plots)} pictures in plots/)"


def run(project: Any = None, *, model: str | None = None, options: Any = None) -> Written:
    """The verb: writes the report of a run; `model` is a run folder, the `model` folder in it, or the name of a run.

    Without `model` it takes the latest run. The flag `--lang` goes before `report.lang`.
    """
    from modelyard.store.run import Run

    config: Config = project.section("report") if project is not None else Config()
    lang = getattr(options, "lang", None)
    path = Path(model) if model is not None else None
    if path is not None and not (path / "run.json").is_file() and (path.parent / "run.json").is_file():
        path = path.parent
    runs = project.base / "runs" if project is not None else Path("runs")
    folder = Run.find(runs, str(path) if path is not None else None).folder
    return _write(folder, None, replace(config, lang=lang) if lang else config)


def write_report(folder: Path, evaluation: Mapping[str, Any] | None = None, *, lang: str = "en") -> Path:
    """Store the evaluation of a run, draw its pictures and write its page; returns the page's path.

    `run.json` must be there; `Report.of_run` says which of its facts are shown.
    """
    return Path(_write(Path(folder), evaluation, Config(lang=lang)).report)  # type: ignore[arg-type]


def _write(folder: Path, evaluation: Mapping[str, Any] | None, config: Config) -> Written:
    from modelyard.verbs.report._words import words
    from modelyard.verbs.report.page import render

    say = words(config.lang)
    if evaluation is not None:
        evaluation = plain(evaluation)
        _save(folder / EVALUATION, json.dumps(evaluation, ensure_ascii=False, allow_nan=False))
    report = Report.of_run(folder, evaluation)
    plots = _plots(folder, report, say)
    page = render(report, config.lang)
    target = (
        Path(config.out)
        if config.out
        else folder / ("report.html" if config.lang == "en" else f"report.{config.lang}.html")
    )
    _save(target, page)
    return Written(str(target), plots, len(page.encode("utf-8")))


def _plots(folder: Path, report: Report, say: Any) -> list[str]:
    """`plots/<split>.<output>.<picture>.svg` and `.json` of every picture; learning curves without split and output."""
    from modelyard.verbs.report import _promises
    from modelyard.verbs.report._board import board_data
    from modelyard.verbs.report.pictures import PICTURES, draw, learning_data, standalone

    every = {
        name: data for name, data in {**learning_data(report.events), **report.pictures}.items() if name in PICTURES
    }
    if report.search.get("trials"):
        every |= {"search_history": report.search, "search_settings": report.search}
    every |= {f"{output}.leaderboard": data for output, data in board_data(report.leaderboard).items()}
    every |= _promises.pictures(report.promises)
    for split, outputs in report.evaluation.items():
        for output, found in outputs.items():
            if tried := _promises.tried_data(found.get("groups") or {}):
                every[".".join(filter(None, [split, output, "groups_tried"]))] = tried
            for name, data in (found.get("pictures") or {}).items():
                if name in PICTURES:
                    every[".".join(filter(None, [split, output, name]))] = data
    written: list[str] = []
    for key, data in every.items():
        stem = _stem(key)
        if f"plots/{stem}.svg" in written:  # a/b and a-b are two outputs
            stem = _stem(key, always=True)
        _save(folder / "plots" / f"{stem}.json", json.dumps(plain(data), ensure_ascii=False, allow_nan=False))
        _save(folder / "plots" / f"{stem}.svg", standalone(draw(key.split(".")[-1], data, say)))
        written.append(f"plots/{stem}.svg")
    return written


def _stem(key: str, always: bool = False) -> str:
    """A file name for a picture; a name too long for a file system (255 bytes) is cut, and its hash tells it apart."""
    import hashlib
    import re

    stem = re.sub(r"[^\w.-]+", "-", key)
    if len(stem.encode("utf-8")) <= 150 and not always:
        return stem
    rest, _, picture = stem.rpartition(".")
    short = rest.encode("utf-8")[:120].decode("utf-8", "ignore")
    return f"{short}-{hashlib.sha256(key.encode('utf-8')).hexdigest()[:8]}.{picture}"


def _save(path: Path, content: str) -> None:
    """Write in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(content, encoding="utf-8")
    os.replace(aside, path)
