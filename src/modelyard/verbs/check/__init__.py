"""Looks at the data before anything is trained: types, missing values, duplicates, leakage, balance; refuses what cannot train.

modelyard check data=customers.csv target=churned
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from modelyard.errors import ConfigError, GateFailed, ModelyardError, Problem
from modelyard.tasks._binding import Bound, bind

RARE = 5
"""Rows of a label below which it can hardly be learnt."""
IMBALANCE = 20.0
"""Most frequent label : rarest label from which metrics such as accuracy mislead."""


@dataclass
class Checked:
    """What was found. `problems` should be mended; `warnings` should be known."""

    rows: dict[str, int]
    set_aside: list[dict[str, Any]]
    columns: list[dict[str, Any]]
    balance: dict[str, dict[str, int]]
    problems: list[dict[str, str]] = field(default_factory=list)
    findings: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "set_aside": self.set_aside[:100], "set_aside_count": len(self.set_aside)}

    def __str__(self) -> str:
        lines = [
            "rows  "
            + ", ".join(f"{n} {s}" for s, n in self.rows.items())
            + (f"; {len(self.set_aside)} set aside" if self.set_aside else "")
        ]
        width = max((len(c["name"]) for c in self.columns), default=4)
        for c in self.columns:
            lines.append(f"  {c['name']:<{width}}  {c['role']:<6} {c['kind']:<10} {c['missing']:>6} missing  {c['about']}")
        lines += [f"set aside: {s['file']}:{s['line']} {s['column'] or ''} {s['reason']}" for s in self.set_aside[:5]]
        lines += [f"note: {n}" for n in self.notes]
        lines += [f"know: {f['where']}: {f['message']} {f['hint']}".rstrip() for f in self.findings]
        lines += [f"MEND: {f['where']}: {f['message']} {f['hint']}".rstrip() for f in self.problems]
        return "\n".join(lines + ([] if self.problems else ["ready to train: modelyard train"]))


def check(bound: Bound) -> Checked:
    """All findings on bound data."""
    found = Checked(bound.rows, [vars(s) for s in bound.set_aside], [], {}, notes=bound.notes)
    train = bound.splits["train"]
    for role, columns in (("input", bound.pipeline.inputs), ("target", bound.pipeline.outputs)):
        for c in columns:
            if c.name in train.columns:
                summary = c.rules.summary(train[c.name])
                about = _about(summary)
                found.columns.append({"name": c.name, "role": role, "kind": c.kind, "missing": summary.get("missing", 0), "about": about})
    _columns(bound, found)
    _targets(bound, found)
    _leakage(bound, found)
    return found


def _about(summary: dict[str, Any]) -> str:
    if "mean" in summary:
        return f"mean {summary['mean']:.4g}, {summary['quantiles']['0']:.4g} … {summary['quantiles']['1']:.4g}"
    if "top" in summary:
        top = ", ".join(f"{str(k)[:20]} {n}" for k, n in list(summary["top"].items())[:3])
        return f"{summary.get('distinct', len(summary['top']))} labels: {top}"
    return ", ".join(f"{k} {v}" for k, v in summary.items() if k not in ("count", "missing") and isinstance(v, str | int | float))[:80]


def _add(group: list[dict[str, str]], where: str, message: str, hint: str = "") -> None:
    group.append({"where": where, "message": message, "hint": hint})


def _columns(bound: Bound, found: Checked) -> None:
    train = bound.splits["train"]
    for c in bound.pipeline.inputs:
        values = train[c.name]
        missing = values.null_count() / max(1, len(values))
        if missing > 0.5:
            _add(found.findings, c.name, f"{missing:.0%} of the values are missing.")
        if values.dtype not in (pl.Binary,) and not isinstance(values.dtype, pl.Array) and values.n_unique() == 1:
            _add(found.findings, c.name, "has one value only and tells nothing.", f"Leave it out: data.ignore=[{c.name}].")
        if c.kind == "category" and values.n_unique() > 0.5 * len(values) and len(values) > 50:
            _add(
                found.findings,
                c.name,
                f"{values.n_unique()} different labels in {len(values)} rows: a name or a text?",
                f"data.inputs.{c.name}=text",
            )
    names = [c.name for c in bound.pipeline.inputs]
    copies = train.height - _hash(train, names + [c.name for c in bound.pipeline.outputs if c.name in train.columns]).n_unique()
    if copies:
        _add(found.findings, "train", f"{copies} row(s) are exact copies of others.")


def _targets(bound: Bound, found: Checked) -> None:
    train = bound.splits["train"]
    for c in bound.pipeline.outputs:
        if c.name not in train.columns:
            continue
        values = train[c.name]
        if c.kind == "category":
            counts = dict(sorted(values.value_counts().iter_rows(), key=lambda kv: -kv[1]))
            found.balance[c.name] = counts
            rare = [f"{k} ({n})" for k, n in counts.items() if n < RARE]
            if rare:
                _add(
                    found.findings,
                    c.name,
                    f"label(s) with fewer than {RARE} training rows: {', '.join(rare[:10])}.",
                    "Collect more, or join them.",
                )
            ratio = max(counts.values()) / max(1, min(counts.values()))
            if ratio > IMBALANCE:
                _add(
                    found.findings,
                    c.name,
                    f"the most frequent label is {ratio:.0f} times the rarest.",
                    "Judge by average_precision or f1; try train.class_weights=balanced.",
                )
            for split, frame in bound.splits.items():
                new = set(frame[c.name].drop_nulls().unique()) - set(counts) if c.name in frame.columns else set()
                if new:
                    _add(
                        found.problems,
                        c.name,
                        f"{split} holds label(s) that train never shows: {', '.join(sorted(map(str, new))[:5])}.",
                        "Split by stratum, or add training rows.",
                    )
        for source in bound.pipeline.inputs:
            if source.kind in ("category", "number") and c.kind in ("category", "number") and _determines(train[source.name], values):
                _add(
                    found.problems,
                    source.name,
                    f"tells {c.name} exactly: a copy of the target, or written after it was known.",
                    f"data.ignore=[{source.name}], unless it is known beforehand.",
                )


def _determines(source: pl.Series, target: pl.Series) -> bool:
    """Whether each value of a repeated column goes with one target value (and both vary)."""
    pair = pl.DataFrame({"s": source, "t": target}).drop_nulls()
    values = pair["s"].n_unique()
    if values < 2 or pair["t"].n_unique() < 2 or values > pair.height / 5:
        same = pair["s"].dtype == pair["t"].dtype and bool((pair["s"] == pair["t"]).all()) if pair.height else False
        return same
    return bool(pair.group_by("s").agg(pl.col("t").n_unique().alias("n"))["n"].max() == 1)


def _leakage(bound: Bound, found: Checked) -> None:
    """The same inputs in train and in a split that judges."""
    names = [c.name for c in bound.pipeline.inputs]
    seen = _hash(bound.splits["train"], names).unique()
    for split in ("valid", "test"):
        frame = bound.splits.get(split)
        if frame is None or not frame.height:
            continue
        shared = int(_hash(frame, names).is_in(seen.implode()).sum())
        if shared:
            share = shared / frame.height
            group = found.problems if share > 0.01 and shared > 5 else found.findings
            _add(
                group,
                split,
                f"{shared} row(s) ({share:.1%}) have exactly the inputs of a training row.",
                "Remove the copies, or split by the column that links them: data.split.by=COLUMN.",
            )


def _hash(frame: pl.DataFrame, names: list[str]) -> pl.Series:
    picked = []
    for name in names:
        column = frame[name]
        if isinstance(column.dtype, pl.Array):
            flat = column.to_numpy().reshape(len(column), -1)
            column = pl.Series(name, [hash(row.tobytes()) for row in np.ascontiguousarray(flat)])
        elif isinstance(column.dtype, pl.List):
            column = column.cast(pl.List(pl.String)).list.join("\x1f")
        picked.append(column.alias(name))
    return pl.DataFrame(picked).hash_rows(seed=0)


def run(project: Any, *, model: str | None = None, options: Any) -> Checked:
    """The verb: exit 2 for data that cannot train, 1 where something should be mended first."""
    seed = project.section("train").seed
    found = check(bind(project.data, project.task, project.base, seed=seed))
    if found.problems:
        details = [Problem(p["message"], p["where"], p["hint"]) for p in found.problems]
        raise GateFailed(f"{len(details)} thing(s) to mend before training", details, found)
    return found


def despite(error: ConfigError) -> None:
    """Looks at the data of a broken project file, and raises its mistakes and those of the data in one message.

    `check` alone does so: a verb that works refuses a broken file before it reads anything, and tables may take minutes.
    """
    project = error.project
    try:
        bind(project.data, project.task, project.base)
    except ModelyardError as found:
        details = found.details or [Problem(found.message)]
        if all(found.message not in (d.message, str(d)) for d in details):
            details = [Problem(found.message), *details]
        raise ConfigError(f"{error.message.rstrip(':')}, and more in the data:", [*error.details, *details]) from None
