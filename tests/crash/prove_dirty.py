"""The full proof for `make prove`: thousands of dirty tables through check, train and predict; ten thousand fuzzed rows per model type.

    python tests/crash/prove_dirty.py --tables 2000                  # 0 lost rows, 0 tracebacks, predict takes what train took
    python tests/crash/prove_dirty.py --rows 10000 --models trees,linear,mlp
    python tests/crash/prove_dirty.py --tables 200 --first 400       # a part of the same 2,000

Tables are samples of the real ones in `../shared/data`, broken by seeded operators (several at once) and written as CSV, TSV, UTF-16, GB18030,
compressed, JSON lines, workbook or database. A refusal (exit 2) must name its reason; what is accepted must account for
every row, and a model that was trained must answer or refuse each row of the table that it learnt from, and of another dirty one.
Prints one line a kind, each fault with its seed, and exits 1 if there was any.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import lzma
import math
import os
import random
import sqlite3
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("MODELYARD_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
TABLES = {
    # name: (file, target, kind of task)
    "heart": ("medical/heart_statlog/heart_disease.csv", -1, "classification"),
    "horse colic": ("dirty_data/horse_colic/horse-colic.csv", 22, "classification"),
    "telco": ("tabular/telco_churn/Telco-Customer-Churn.csv.gz", -1, "classification"),
    "adult": ("tabular/adult_income/adult-train.csv.gz", -1, "classification"),
    "bank": ("tabular/bank_marketing/bank.csv.gz", -1, "classification"),
    "housing": ("tabular/california_housing/housing.csv.gz", -2, "regression"),
    "fraud": ("tabular/vehicle_claim_fraud/fraud_1994_1995.csv.gz", 15, "classification"),
}
STRANGE = (
    "", " ", "?", "-", "--", "NA", "N/A", "nan", "NaN", "null", "None", "#REF!", "#N/A", "inf", "-inf", "Infinity", "1e999", "-1e400",
    "1e-999", "0x1F", "1,5", "1 000", "1.000,5", "$5", "50%", "５", "٣", "½", "007", "+1", "1e5", "1E+05", "-0", "0.1.2", "true", "TRUE",
    "yes", "=1+1", "@SUM(A1)", "'x", "\\N", "\ufeff", "\u200b", "\u2028", "\x07", "\x1b[31m", "é", "e\u0301", "北京", "🙂", "a" * 500,
    "2024-01-01", "31/12/2024", "99999999999999999999", "-9223372036854775809", "<b>", "a;b", "a|b", "{}", "[1]", "\t", "x" * 60_000,
)  # fmt: skip


@dataclass
class Dirty:
    """A table to be written."""

    header: list[str]
    rows: list[list[str]]
    target: int
    task: str
    lines: dict[int, str] = field(default_factory=dict)
    """Raw lines in place of a row; delimited files only."""
    done: list[str] = field(default_factory=list)


def sample(name: str, draw: random.Random, rows: int) -> Dirty:
    """Rows of a real table, at random, all as texts."""
    import csv

    path, target, task = TABLES[name]
    raw = (SHARED / path).read_bytes()
    lines = list(csv.reader(io.StringIO((gzip.decompress(raw) if path.endswith(".gz") else raw).decode("utf-8-sig")), skipinitialspace=True))
    lines = [line for line in lines if line]
    headless = name in ("adult", "horse colic")
    header = [f"c{i}" for i in range(len(lines[0]))] if headless else lines.pop(0)
    body = [line for line in lines if len(line) == len(header)]
    return Dirty(list(header), [list(r) for r in draw.sample(body, min(rows, len(body)))], target % len(header), task)


# --- operators -------------------------------------------------------------------------------------------------------

Operator = Callable[[Dirty, random.Random], None]


def cells(table: Dirty, draw: random.Random) -> None:
    """Strange values at random places, the target too at times."""
    columns = [i for i in range(len(table.header)) if i != table.target or draw.random() < 0.2]
    for _ in range(draw.randint(1, 12)):
        if table.rows:
            draw.choice(table.rows)[draw.choice(columns)] = draw.choice(STRANGE)


def column_of_strange(table: Dirty, draw: random.Random) -> None:
    column = draw.choice([i for i in range(len(table.header)) if i != table.target])
    share = draw.random()
    for row in table.rows:
        if draw.random() < share:
            row[column] = draw.choice(STRANGE[:-1])


def one_value(table: Dirty, draw: random.Random) -> None:
    column, value = draw.choice([i for i in range(len(table.header)) if i != table.target]), draw.choice(STRANGE[:-1])
    for row in table.rows:
        row[column] = value


def no_target(table: Dirty, draw: random.Random) -> None:
    for row in draw.sample(table.rows, min(3, len(table.rows))):
        row[table.target] = ""


def rare_labels(table: Dirty, draw: random.Random) -> None:
    for row in draw.sample(table.rows, min(3, len(table.rows))):
        row[table.target] = draw.choice(("new", "x y", "北", "1", "A"))


def short_line(table: Dirty, draw: random.Random) -> None:
    i = draw.randrange(len(table.rows))
    table.lines[i] = "\x1f".join(table.rows[i][: draw.randint(1, len(table.header) - 1)])


def long_line(table: Dirty, draw: random.Random) -> None:
    i = draw.randrange(len(table.rows))
    table.lines[i] = "\x1f".join([*table.rows[i], *["more"] * draw.randint(1, 4)])


def stray_quote(table: Dirty, draw: random.Random) -> None:
    """One per table at most: two would be the ends of one long field."""
    i = draw.randrange(len(table.rows))
    row = [v.replace('"', "") for v in table.rows[i]]
    place = draw.randrange(len(row))
    row[place] = draw.choice(('"' + row[place], row[place] + '"', row[place][:1] + '"' + row[place][1:], '"a"b'))
    table.lines[i] = "\x1f".join(row)


def nul(table: Dirty, draw: random.Random) -> None:
    i = draw.randrange(len(table.rows))
    table.lines[i] = "\x1f".join([*table.rows[i][:-1], "a\x00b"])


def copies(table: Dirty, draw: random.Random) -> None:
    table.rows += [list(draw.choice(table.rows)) for _ in range(draw.randint(1, 20))]


def names(table: Dirty, draw: random.Random) -> None:
    i = draw.randrange(len(table.header))
    odd = (" ", table.header[0], table.header[i] + " ", "a.b", "名", "x" * 300, "1", "a/b", "a=b", 'q"q', "__class__", "a\nb", "{x}", "%s")
    table.header[i] = draw.choice(odd)


def few(table: Dirty, draw: random.Random) -> None:
    table.rows = table.rows[: draw.choice((0, 1, 2, 3, 5, 9))]
    table.lines.clear()


def extra_column(table: Dirty, draw: random.Random) -> None:
    table.header.append(f"extra{draw.randrange(99)}")
    make = draw.choice(("{i}", "", "note {i} about the thing", "a|b", "2024-01-{day:02d}"))
    for i, row in enumerate(table.rows):
        row.append(make.format(i=i, day=i % 28 + 1))
    for i in list(table.lines):
        del table.lines[i]


OPERATORS: list[Operator] = [
    cells, cells, cells, column_of_strange, one_value, no_target, rare_labels, short_line, long_line, stray_quote, nul, copies, names, few,
    extra_column,
]  # fmt: skip


def dirty(seed: int) -> tuple[Dirty, random.Random]:
    """The table of a seed: a sample with one to five operators."""
    draw = random.Random(seed)
    table = sample(list(TABLES)[seed % len(TABLES)], draw, draw.choice((40, 80, 150)))
    for operator in draw.sample(OPERATORS, draw.randint(1, 5)):
        if table.rows and (operator is cells or operator.__name__ not in table.done):
            operator(table, draw)
            table.done.append(operator.__name__)
    return table, draw


# --- writing ---------------------------------------------------------------------------------------------------------


def delimited(table: Dirty, separator: str) -> str:
    """CSV text; a field with a separator, a quote or a newline is quoted."""

    def field_(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in (separator, '"', "\n", "\r")) else text

    lines = [separator.join(map(field_, table.header))]
    for i, row in enumerate(table.rows):
        lines.append(table.lines[i].replace("\x1f", separator) if i in table.lines else separator.join(map(field_, row)))
    return "\n".join(lines) + "\n"


def blank(table: Dirty, separator: str) -> int:
    """Rows that are written as blank lines, which are no rows."""
    whole = [row for i, row in enumerate(table.rows) if i not in table.lines]
    return sum(not delimited(Dirty(["a"], [row], 0, ""), separator).split("\n", 1)[1].strip() for row in whole)


def write(table: Dirty, folder: Path, name: str, draw: random.Random) -> tuple[str, int, bool]:
    """(what `data` names, rows that must be accounted for, whether that number is exact)."""
    others = ("jsonl", "json", "parquet", "xlsx", "sqlite")
    form = draw.choice(("csv", "csv", "csv", "tsv", "semicolon", "utf-16", "gb18030", "gz", "xz", "crlf", *others))
    if form in others and len(set(table.header)) < len(table.header):
        form = "csv"
    table.done.append(form)
    separator = {"tsv": "\t", "semicolon": ";"}.get(form, ",")
    records = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    path = folder / f"{name}.{form if form in ('tsv', 'jsonl', 'json', 'parquet', 'xlsx') else 'csv'}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    elif form == "json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif form == "parquet":
        import polars as pl

        columns = {n: [r[i] for r in table.rows] for i, n in enumerate(table.header)}
        pl.DataFrame(columns, schema=dict.fromkeys(table.header, pl.String)).write_parquet(path)
    elif form == "xlsx":
        return _workbook(table, path), sum(any(v.strip() for v in row) for row in table.rows), True
    elif form == "sqlite":
        with contextlib.closing(sqlite3.connect(folder / f"{name}.db")) as db:
            quoted = ", ".join('"' + h.replace('"', '""') + '" TEXT' for h in table.header)
            db.execute(f"CREATE TABLE t ({quoted})")
            db.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(table.header))})", table.rows)
            db.commit()
        return f"sqlite:///{folder / f'{name}.db'}", len(table.rows), True
    else:
        text = delimited(table, separator)
        text = text.replace("\n", "\r\n") if form == "crlf" else text
        coding = form if form in ("utf-16", "gb18030") else "utf-8"
        raw = text.encode(coding)
        if form in ("gz", "xz"):
            path = path.with_name(f"{path.name}.{form}")
            raw = gzip.compress(raw) if form == "gz" else lzma.compress(raw, preset=0)
        path.write_bytes(raw)
        lonely = len(table.header) == 1
        return str(path), len(table.rows) - blank(table, separator), "stray_quote" not in table.done and not lonely
    return str(path), len(records), True


def _workbook(table: Dirty, path: Path) -> str:
    import openpyxl
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = openpyxl.Workbook()
    sheet = book.active
    table.header = [ILLEGAL_CHARACTERS_RE.sub("", h) for h in table.header]
    table.rows = [[ILLEGAL_CHARACTERS_RE.sub("", v)[:32_000] for v in row] for row in table.rows]
    for line in [table.header, *table.rows]:
        sheet.append([None if v == "" else v for v in line])
    for row in sheet.iter_rows():
        for cell in row:
            if cell.data_type == "f":
                cell.data_type = "s"  # "=1+1" as a text
    book.save(path)
    return str(path)


# --- tables ----------------------------------------------------------------------------------------------------------


def ask(*args: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, JSON, stderr) of a command, in this process."""
    from modelyard import cli

    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryFile("w+b") as held, contextlib.redirect_stderr(err):
        keep = os.dup(1)
        os.dup2(held.fileno(), 1)
        try:
            with contextlib.redirect_stdout(out):
                code = cli.main([*args, "--json", "-q"])
        finally:
            os.dup2(keep, 1)
            os.close(keep)
        held.seek(0)
        text = held.read().decode("utf-8") or out.getvalue()
    return code, json.loads(text, parse_constant=lambda name: f"not JSON: {name}"), err.getvalue()


def one_table(seed: int, counts: Counter[str]) -> list[str]:
    """What is wrong with the answers to the table of a seed."""
    table, draw = dirty(seed)
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        data, written, exact = write(table, folder, "train", draw)
        target = table.header[table.target].strip()
        options = [f"data={data}", f"task={table.task}", f"data.drop_missing_targets={'true' if draw.random() < 0.5 else 'false'}"]
        (folder / "modelyard.yaml").write_text(f"data: {{target: {json.dumps(target)}}}\n", encoding="utf-8")
        code, answer, err = ask("check", "-f", str(folder), *options)
        faults += judged("check", code, answer, err)
        counts[f"check {code}"] += 1
        accepted = code in (0, 1)
        if code in (0, 1) and "rows" in answer:
            found = sum(answer["rows"].values()) + answer["set_aside_count"]
            if found != written if exact else not 0 < found <= written:
                faults.append(f"check: {written} rows written, {found} accounted for")
        model = draw.choice(("linear", "trees", "linear", "neighbours", "mlp"))
        quick = {"trees": ["model.trees=5"], "mlp": ["train.epochs=1"]}.get(model, [])
        code, answer, err = ask("train", "-f", str(folder), *options, f"model.name={model}", *quick, "train.smoke=false")
        faults += judged("train", code, answer, err)
        counts[f"train {code}"] += 1
        if code == 2 and answer["error"]["kind"] == "Unsupported":
            counts["train: not this model"] += 1  # trees and neighbours read no texts
        elif code == 2 and accepted:
            faults.append(f"train refused what check accepted: {answer['error']}")
        if code == 0:
            run = json.loads((Path(answer["run"]) / "run.json").read_text(encoding="utf-8"))["data"]
            if sum(run["rows"].values()) + run["set_aside_count"] != run["rows_in"]:
                faults.append(f"train: {run['rows_in']} rows came, {run['rows']} and {run['set_aside_count']} set aside")
            faults += answers(answer["run"], folder, data, written if exact else None, run["set_aside_count"], counts)
            other, more = dirty(seed)
            for row in other.rows:
                for i in range(len(row)):
                    if i != other.target and more.random() < 0.1:
                        row[i] = more.choice(STRANGE[:-1])
            other.lines.clear()
            other.done = []
            second, rows, sure = write(other, folder, "new", more)
            faults += answers(answer["run"], folder, second, rows if sure else None, None, counts)
    return [f"seed {seed} ({', '.join(table.done)}): {f}" for f in faults]


def answers(run: str, folder: Path, data: str, written: int | None, most: int | None, counts: Counter[str]) -> list[str]:
    """Faults of predicting a file; `most` rows may fail, where it is what training saw."""
    import polars as pl

    out = folder / "answers.parquet"
    out.unlink(missing_ok=True)
    code, answer, err = ask("predict", run, f"data={data}", f"out={out}")
    faults = judged("predict", code, answer, err)
    counts[f"predict {code}"] += 1
    if code != 0:
        if most is not None:
            faults.append(f"predict refused what train accepted: {answer.get('error')}")
        return faults
    table = pl.read_parquet(out)
    if written is not None and answer["rows"] != written:
        faults.append(f"predict: {written} rows written, {answer['rows']} accounted for")
    if most is not None and answer["failed"] > most:
        faults.append(f"predict: {answer['failed']} rows failed, training set {most} aside: {answer['errors'][:3]}")
    missing = table[table.columns[0]].is_null() & table["error"].is_null()
    if missing.any():
        faults.append(f"predict: {int(missing.sum())} rows have neither answer nor error")
    counts["rows answered"] += table.height
    return faults


def judged(verb: str, code: int, answer: dict[str, Any], err: str) -> list[str]:
    """Faults of any answer: a bug, a traceback, a refusal without words, a value that is no JSON."""
    faults = []
    error = answer.get("error", {})
    if code not in (0, 1, 2):
        faults.append(f"{verb}: exit {code}: {error.get('message')}")
    if "Traceback" in err:
        faults.append(f"{verb}: a traceback: {err[-300:]}")
    if code and len(error.get("message", "")) < 10:
        faults.append(f"{verb}: exit {code} without a reason")
    if "not JSON" in json.dumps(answer):
        faults.append(f"{verb}: a number that JSON lacks")
    return faults


# --- rows ------------------------------------------------------------------------------------------------------------

WILD: tuple[Any, ...] = (
    None, True, False, 0, -1, 3.5, 10**18, -(10**30), 2**63, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan, "", " ", "x", "1", "1e999", "NaN", "\u0000",
    "\ud800", "🙂" * 50, "a" * 5000, [], [1, 2], ["a", None], {}, {"a": 1}, {"value": 3}, "2024-01-01", "<script>", "\n", [[[]]],
)  # fmt: skip


def fuzzed(rows: list[dict[str, Any]], draw: random.Random) -> dict[str, Any]:
    """A real row with some values, keys or everything replaced."""
    row = dict(draw.choice(rows))
    for name in list(row):
        if draw.random() < 0.05:
            row[name] = draw.choice(WILD)
        if draw.random() < 0.01:
            del row[name]
    if draw.random() < 0.05:
        row[draw.choice(("extra", "", "a.b"))] = draw.choice(WILD)
    return row


def finite(value: Any) -> bool:
    """Whether every number in a JSON value is one."""
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


def sound(value: Any) -> bool:
    """Whether a value can be written in strict JSON."""
    return finite(value) and "\ud800" not in str(value)


def one_model(name: str, count: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Faults of a model type under fuzzed rows, in Python and over HTTP; half of them for labels, half for numbers."""
    import modelyard
    from modelyard.errors import ModelyardError
    from modelyard.verbs.serve import serve as serving

    faults: list[str] = []
    counts: Counter[str] = Counter()
    draw = random.Random(seed)
    for source in ("adult", "housing"):
        table = sample(source, draw, 400)
        target = table.header[table.target]
        rows: list[dict[str, Any]] = [dict(zip(table.header, map(_typed, row), strict=True)) for row in table.rows]
        with tempfile.TemporaryDirectory() as folder:
            quick = {"mlp": {"train.epochs": 2}, "tabm": {"train.epochs": 1}, "ft-transformer": {"train.epochs": 1}}.get(name, {})
            file = Path(folder) / "modelyard.yaml"
            file.write_text("version: 1\n", encoding="utf-8")
            options: dict[str, Any] = {"model": name, "train.smoke": False, **quick}
            trained = modelyard.train(str(file), data=rows, target=target, task=table.task, quiet=True, **options)
            model = modelyard.load_model(trained.model)
            with serving(str(trained.model)) as server:
                done = 0
                while done < count // 2:
                    batch = [fuzzed(rows, draw) for _ in range(draw.choice((1, 2, 17, 100)))]
                    for row in batch:
                        row.pop(target, None)
                    done += len(batch)
                    try:
                        found = model.predict(batch).to_json()
                        # NaN, Infinity and half characters are no JSON, and the server refuses their body whole: in a tenth of the bodies only
                        sent = batch if draw.random() < 0.1 else [{k: v if sound(v) else None for k, v in row.items()} for row in batch]
                        body = json.dumps({"instances": sent}).encode()
                        url = f"{server.url}/v1/models/{model.name}:predict"
                        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
                        try:
                            with urllib.request.urlopen(request) as response:
                                status, served = response.status, json.load(response, parse_constant=lambda c: f"not JSON: {c}")
                        except urllib.error.HTTPError as error:
                            status, served = error.code, json.load(error)
                    except ModelyardError as error:
                        faults.append(f"{name}: a batch of {len(batch)} was refused whole: {str(error)[:200]}")
                        continue
                    except Exception:
                        faults.append(f"{name}: {traceback.format_exc()[-600:]} on {str(batch)[:300]}")
                        continue
                    failed = [isinstance(a, dict) and "error" in a for a in found]
                    counts["answered"] += len(found) - sum(failed)
                    counts["refused"] += sum(failed)
                    counts[f"HTTP {status}"] += 1
                    silent = any(f and not a["error"].get("reason") for f, a in zip(failed, found, strict=True))
                    if len(found) != len(batch) or not finite(found) or silent:
                        faults.append(f"{name}: {len(batch)} rows gave {len(found)} answers, finite {finite(found)}")
                    if status >= 500:
                        faults.append(f"{name}: HTTP {status}: {served}")
                    elif status == 200 and (len(served["predictions"]) != len(batch) or "not JSON" in json.dumps(served)):
                        faults.append(f"{name}: HTTP: {len(batch)} rows gave {len(served['predictions'])} answers")
    return faults, counts


def _typed(text: str) -> Any:
    try:
        return float(text) if text.strip() not in ("", "?") else None
    except ValueError:
        return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tables", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--models", default="trees,linear,mlp,forest,neighbours")
    asked = parser.parse_args()
    if not SHARED.is_dir():
        print(f"{SHARED} is not there; set MODELYARD_SHARED to the folder that holds data/")
        return 0
    import warnings

    warnings.simplefilter("ignore")
    faults: list[str] = []
    if asked.tables or not asked.rows:
        began, counts = time.monotonic(), Counter[str]()
        for seed in range(asked.first, asked.first + (asked.tables or 2000)):
            try:
                faults += one_table(seed, counts)
            except Exception:
                faults.append(f"seed {seed}: the proof itself failed: {traceback.format_exc()[-800:]}")
        took = f"{time.monotonic() - began:.0f} s"
        print(f"{asked.tables or 2000} dirty tables from {asked.first}: {len(faults)} faults, {dict(sorted(counts.items()))}, {took}")
    for name in asked.models.split(",") if asked.rows or not asked.tables else []:
        began = time.monotonic()
        found, counts = one_model(name, asked.rows or 10_000, 0)
        faults += found
        took = f"{time.monotonic() - began:.0f} s"
        print(f"{name}: {asked.rows or 10_000} fuzzed rows: {len(found)} faults, {dict(sorted(counts.items()))}, {took}", flush=True)
    for fault in faults[:60]:
        print(f"  {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
