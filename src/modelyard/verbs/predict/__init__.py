"""Answers rows with a saved model; every row that comes gets a row back, with an error where it could not be used.

modelyard predict runs/churn-0001 data=new.csv
modelyard predict model data=new.parquet out=answers.parquet
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.errors import UsageError

FORMATS = ("csv", "jsonl", "parquet")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`predict`: where answers go."""

    out: str | None = None
    """File of answers: .csv, .jsonl or .parquet; without it `<data>.answers.csv` beside the data."""
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters of the model's programs."""
    seed: int = 0
    """Seed of programs that draw random numbers."""
    backend: str | None = None
    """torch, onnx or numpy; without it the model's own."""


@dataclass
class Predicted:
    """How many rows were answered, and where the answers are."""

    rows: int
    failed: int
    out: str
    errors: list[dict[str, Any]]
    model: str
    version: str

    def to_json(self) -> dict[str, Any]:
        """Plain data; at most 20 errors."""
        return {**vars(self), "errors": self.errors[:20]}

    def __str__(self) -> str:
        lines = [f"{self.rows - self.failed} of {self.rows} rows answered by {self.model} {self.version}: {self.out}"]
        lines += [f"  row {e['row'] + 1}: {e['column']} {e['reason']}" for e in self.errors[:5]]
        return "\n".join(lines)


def run(project: Any, *, model: str | None = None, options: Any) -> Predicted:
    """The verb."""
    from modelyard.data.source import open_source
    from modelyard.runtime.model import Model
    from modelyard.store.run import model_folder

    config: Config = project.section("predict")
    loaded = Model.load(
        model_folder(model, project.base / "runs"), config.backend, trust_code=options.trust_code,
        **({"device": options.device} if options.device else {}),
    )  # fmt: skip
    if not project.has("data"):
        raise UsageError("no rows are named; write data=FILE (csv, jsonl, parquet, an image folder …)")
    source = open_source(project.data, project.base)
    tables = source.tables
    table = tables["test"] if "test" in tables else next(iter(tables.values()))
    answers = loaded.predict(table.frame(), config.params or None, config.seed)
    given = project.data.path
    named = config.out or (f"{given}.answers.csv" if isinstance(given, str) and "://" not in given else "answers.csv")
    out = Path(named) if config.out or Path(named).is_absolute() else project.base / named
    write(answers, out)
    errors = [vars(e) for e in answers.errors]
    errors += [{"row": s.line, "column": s.column or "", "reason": f"was set aside while reading: {s.reason}"} for s in source.set_aside]
    return Predicted(
        answers.rows + len(source.set_aside), answers.failed + len(source.set_aside), str(out), errors, loaded.name, loaded.version
    )


def write(answers: Any, out: Path) -> None:
    """One row per row that came, in order; the column `error` says why a row has no answer."""
    import json

    import polars as pl

    suffix = out.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise UsageError(f"out={out}: answers are written as {', '.join('.' + f for f in FORMATS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    reasons: list[str | None] = [None] * answers.rows
    for e in reversed(answers.errors):
        reasons[e.row] = f"{e.column} {e.reason}".strip()
    table = answers.columns.with_columns(pl.Series("error", reasons, dtype=pl.String))
    if suffix == "parquet":
        table.write_parquet(out)
    elif suffix == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in answers.to_json())
        out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        for name in [n for n, t in table.schema.items() if isinstance(t, pl.Struct)]:
            parts = table[name].struct.unnest()
            table = table.drop(name).with_columns(*(parts[c].alias(f"{name}.{c}") for c in parts.columns))
        for name in [n for n, t in table.schema.items() if isinstance(t, pl.List) and isinstance(t.inner, pl.Struct)]:
            texts = [None if v is None else json.dumps(v, ensure_ascii=False) for v in table[name].to_list()]
            table = table.with_columns(pl.Series(name, texts, dtype=pl.String))
        for name in [n for n, t in table.schema.items() if isinstance(t, pl.List)]:
            table = table.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join("|"))
        table.write_csv(out)
