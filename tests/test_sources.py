"""Workbooks, databases, archives, UTF-16 and datasets objects: the same rows as the CSV file, every row accounted for, no bomb unpacked."""

from __future__ import annotations

import bz2
import datetime as dt
import gzip
import io
import json
import lzma
import re
import resource
import sqlite3
import struct
import sys
import zipfile
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.data import packed, sql
from modelyard.data.images import read_idx
from modelyard.data.read import Reading, read
from modelyard.data.source import DataConfig, open_source
from modelyard.data.sql import FETCH
from modelyard.errors import DataError, MissingExtra

FRAME = pl.DataFrame({"name": ["Zoë", "北京", "O'Neil, Ann"], "n": [1, 2, 3], "x": [0.5, None, -2.25], "code": ["007", "010", "1"]})
CSV = FRAME.write_csv()


def rows(path: Any, base: Path = Path(), **options: Any) -> pl.DataFrame:
    return open_source(DataConfig(path=path, **options), base).tables["train"].data


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_utf_16_with_and_without_a_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes(CSV.encode(encoding))
    assert rows("t.csv", tmp_path).equals(FRAME)
    (tmp_path / "named.csv").write_bytes(CSV.encode("utf-16"))
    assert rows("named.csv", tmp_path, encoding="utf-16").equals(FRAME)


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_each_compression(tmp_path: Path, suffix: str, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"t.csv.{suffix}").write_bytes(pack(CSV.encode()))
    assert rows(f"t.csv.{suffix}", tmp_path).equals(FRAME)
    (tmp_path / f"cut.csv.{suffix}").write_bytes(pack(CSV.encode() * 50)[:-9])
    with pytest.raises(DataError, match="is no whole"):
        rows(f"cut.csv.{suffix}", tmp_path)
    (tmp_path / f"bomb.csv.{suffix}").write_bytes(pack(b"a,b\n" * 2**18))
    with pytest.raises(DataError, match=r"unpacks to more than 500000 bytes.*data\.max_bytes"):
        rows(f"bomb.csv.{suffix}", tmp_path, max_bytes=500_000)
    monkeypatch.setattr(packed, "RATIO_FROM", 2**19)
    with pytest.raises(DataError, match=r"more than 300 times its size.*data\.max_bytes"):
        rows(f"bomb.csv.{suffix}", tmp_path)
    assert rows(f"bomb.csv.{suffix}", tmp_path, max_bytes=2**23).height == 2**18 - 1


def test_a_bomb_is_stopped_before_it_fills_the_memory(tmp_path: Path) -> None:
    """A gigabyte in a megabyte: refused after 64 MiB by its ratio, with not much more memory than that."""
    # gzip files one after the other are one gzip file
    (tmp_path / "big.csv.gz").write_bytes(gzip.compress(bytes(2**23)) * 128)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="refused"):
        rows("big.csv.gz", tmp_path)
    unit = 2**10 if sys.platform != "darwin" else 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * unit


def test_a_parquet_bomb_is_known_by_its_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pl.DataFrame({"a": pl.repeat(1, 500_000, eager=True)}).write_parquet(tmp_path / "t.parquet")
    assert rows("t.parquet", tmp_path).height == 500_000
    with pytest.raises(DataError, match=r"about 4000000 bytes from .*data\.max_bytes"):
        rows("t.parquet", tmp_path, max_bytes=1_000_000)
    monkeypatch.setattr(packed, "SIZE_LIMIT", 2**20)
    with pytest.raises(DataError, match="if it is no bomb"):
        rows("t.parquet", tmp_path)
    pl.DataFrame({"a": np.random.default_rng(0).random(200_000)}).write_parquet(tmp_path / "real.parquet")
    assert rows("real.parquet", tmp_path).height == 200_000, "large, but as large as its file"


def zipped(path: Path, files: dict[str, bytes], link: str = "") -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name == link:
                info.external_attr = 0o120777 << 16
            archive.writestr(info, content)
    return path.name


def test_zips_of_tables(tmp_path: Path) -> None:
    one = zipped(tmp_path / "one.zip", {"folder/t.csv": CSV.encode(), "readme.md": b"hello", "__MACOSX/._t.csv": b"x"})
    assert rows(one, tmp_path).equals(FRAME)
    both = zipped(tmp_path / "both.zip", {"train.csv": CSV.encode(), "test.csv": CSV.encode()})
    assert set(open_source(DataConfig(path=both), tmp_path).tables) == {"train", "test"}
    assert open_source(DataConfig(path=both, valid=one), tmp_path).tables["valid"].rows == 3


@pytest.mark.parametrize(
    ("files", "link", "reason"),
    [
        ({"../t.csv": b"a\n1\n"}, "", "leads outside"),
        ({"/etc/t.csv": b"a\n1\n"}, "", "leads outside"),
        ({"..\\t.csv": b"a\n1\n"}, "", "leads outside"),
        ({"C:\\t.csv": b"a\n1\n"}, "", "leads outside"),
        ({"t.csv": b"passwords"}, "t.csv", "is a link"),
        ({"t.csv": b"a\n1\n", "more.tar.gz": b"x"}, "", "is an archive in the archive"),
        ({"a.csv": b"a\n1\n", "b.csv": b"a\n1\n"}, "", "holds 2 tables"),
        ({"t.bin": b"x"}, "", "no images .* and no table"),
    ],
)
def test_zips_that_are_refused(tmp_path: Path, files: dict[str, bytes], link: str, reason: str) -> None:
    name = zipped(tmp_path / "t.zip", files, link)
    with pytest.raises(DataError) as caught:
        rows(name, tmp_path)
    assert re.search(reason, str(caught.value))
    assert [p.name for p in tmp_path.iterdir()] == ["t.zip"], "nothing is ever unpacked to disk"


def test_an_idx_file_may_not_claim_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "x-idx3-ubyte"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31) + bytes(64))
    with pytest.raises(DataError, match="and holds 64 bytes"):
        read_idx(path)
    path.write_bytes(struct.pack(">BBBB2I", 0, 0, 0x0C, 2, 2, 3) + struct.pack(">6i", *range(6)))
    assert read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


# --- workbooks -------------------------------------------------------------------------------------------------------


def workbook(path: Path, sheets: dict[str, list[list[Any]]], merge: str = "") -> str:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, lines in sheets.items():
        sheet = book.create_sheet(name)
        for line in lines:
            sheet.append(line)
        if merge:
            sheet.merge_cells(merge)
    book.save(path)
    return path.name


HEAD = ["name", "n", "x", "code", "when", "ok"]
LINES = [
    ["Zoë", 1, 0.5, "007", dt.datetime(2024, 2, 29, 12, 30), True],
    ["北京", 2, None, "010", dt.datetime(2024, 3, 1), False],
    [None, None, None, None, None, None],
    ["  ", 3, -2.25, "1", None, None],
]


def test_a_sheet_is_the_rows_that_were_written(tmp_path: Path) -> None:
    name = workbook(tmp_path / "t.xlsx", {"People": [[], HEAD, *LINES], "Other": [["a"], [1]]})
    source = open_source(DataConfig(path=name), tmp_path)
    frame = source.tables["train"].data
    assert frame["name"].to_list() == ["Zoë", "北京", None] and frame["n"].to_list() == [1, 2, 3]
    assert frame["x"].to_list() == [0.5, None, -2.25] and frame["code"].to_list() == ["007", "010", "1"]
    assert frame["when"].to_list() == [dt.datetime(2024, 2, 29, 12, 30), dt.datetime(2024, 3, 1), None]
    assert frame["ok"].to_list() == [True, False, None] and not source.set_aside
    assert "the sheet People was read" in source.notes[0]
    assert rows(name, tmp_path, sheet="Other")["a"].to_list() == rows(name, tmp_path, sheet=2)["a"].to_list() == [1]
    with pytest.raises(DataError, match="has no sheet 'Third'; it has People, Other"):
        rows(name, tmp_path, sheet="Third")


def test_rows_of_a_sheet_that_cannot_be_used_are_set_aside(tmp_path: Path) -> None:
    lines = [["a", "b"], [1, "x"], ["#REF!", "y"], [2, "z", None, "beyond"], ["#N/A", "w"], [3, "v"]]
    name = workbook(tmp_path / "t.xlsx", {"S": lines})
    table = open_source(DataConfig(path=name), tmp_path).tables["train"]
    assert table.data["a"].to_list() == [1, None, 3] and table.rows_read == 5
    assert [(s.line, s.column) for s in table.set_aside] == [(3, "a"), (4, None)]
    assert "column D" in table.set_aside[1].reason


@pytest.mark.parametrize(
    ("lines", "merge", "reason"),
    [
        ([["Sales", None], ["a", "b"], [1, 2]], "A1:B1", "cells in it are merged"),
        ([["a", None, "c"], [1, 2, 3]], "", "column B: has values and no name"),
        ([["a", "a"], [1, 2]], "", "a: appears more than once"),
        ([["a", "b"]], "", "holds no rows"),
        ([], "", "is empty"),
    ],
)
def test_headers_of_a_sheet_that_cannot_be_used(tmp_path: Path, lines: list[list[Any]], merge: str, reason: str) -> None:
    name = workbook(tmp_path / "t.xlsx", {"S": lines}, merge)
    with pytest.raises(DataError) as caught:
        rows(name, tmp_path)
    assert reason in str(caught.value)


def test_mixed_cells_become_texts_and_nothing_is_lost(tmp_path: Path) -> None:
    lines = [["a", "b", "c"], [1, 2.5, "x"], ["two", True, 3], [dt.date(2024, 1, 2), "y", None]]
    frame = rows(workbook(tmp_path / "t.xlsx", {"S": lines}), tmp_path)
    assert frame["a"].to_list() == ["1", "two", "2024-01-02T00:00:00"]
    assert frame["b"].to_list() == ["2.5", "true", "y"] and frame["c"].to_list() == ["x", "3", None]


def test_workbooks_that_are_none(tmp_path: Path) -> None:
    name = workbook(tmp_path / "t.xlsx", {"S": [["a"], *([i] for i in range(2000))]})
    with pytest.raises(DataError, match="unpacks to more than 5000 bytes"):
        rows(name, tmp_path, max_bytes=5000)
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(99))
    (tmp_path / "cut.xlsx").write_bytes((tmp_path / name).read_bytes()[:-300])
    (tmp_path / "empty.xlsx").write_bytes(b"x")
    content = io.BytesIO()
    with zipfile.ZipFile(tmp_path / name) as good, zipfile.ZipFile(content, "w") as bad:
        for info in good.infolist():
            body = good.read(info)
            bad.writestr(info.filename, body.replace(b"<worksheet", b"<!DOCTYPE a [<!ENTITY b 'c'>]><worksheet") if "sheet1" in info.filename else body)
    (tmp_path / "entity.xlsx").write_bytes(content.getvalue())
    for file, reason in (("old.xls", "old format"), ("cut.xlsx", "no .xlsx workbook|no readable"), ("empty.xlsx", "no .xlsx"), ("entity.xlsx", "entities")):
        with pytest.raises(DataError, match=reason):
            rows(file, tmp_path)


def test_without_openpyxl_the_install_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped(tmp_path / "t.xlsx", {"[Content_Types].xml": b"<a/>"})
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MissingExtra, match=r"pip install 'modelyard\[tables\]'"):
        rows("t.xlsx", tmp_path)


# --- databases -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A database with two tables and a view."""
    with sqlite3.connect(tmp_path / "shop.db") as db:
        db.execute("CREATE TABLE customers (name TEXT, n INTEGER, x REAL, code TEXT)")
        db.executemany("INSERT INTO customers VALUES (?, ?, ?, ?)", FRAME.rows())
        db.execute("CREATE TABLE odd (v, t TEXT)")
        db.executemany("INSERT INTO odd VALUES (?, ?)", [(1, "a"), (2.5, "b"), ("three", None), (b"\xff4", "d")])
        db.execute("INSERT INTO odd VALUES (5, CAST(X'ff41' AS TEXT))")
    return tmp_path


def test_rows_of_a_database(shop: Path) -> None:
    assert rows("sqlite:///shop.db", shop, sheet="customers").equals(FRAME)
    assert rows(f"sqlite:///{shop}/shop.db", Path(), query="SELECT * FROM customers WHERE n > 1").equals(FRAME[1:])
    assert rows("sqlite:///shop.db", shop, query="WITH a AS (SELECT n FROM customers) SELECT n + 1 AS m FROM a ORDER BY m")["m"].to_list() == [2, 3, 4]


def test_values_of_several_types_in_one_column_and_rows_that_are_no_text(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (20_000, 1, 2):
        monkeypatch.setattr(sql, "FETCH", size)
        table = open_source(DataConfig(path="sqlite:///shop.db", sheet="odd"), shop).tables["train"]
        assert table.data["v"].to_list() in (["1", "2.5", "three", "\\xff4"], ["1.0", "2.5", "three", "\\xff4"])
        assert table.rows_read == 5 and [(s.line, s.column) for s in table.set_aside] == [(5, "t")]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"query": "DELETE FROM customers"}, "only ever a SELECT"),
        ({"query": "SELECT 1 AS a; DROP TABLE customers"}, "only a single SELECT"),
        ({"query": "WITH a AS (SELECT 1) DELETE FROM customers"}, "only a single SELECT"),
        ({"query": "WITH a AS (SELECT 1) INSERT INTO customers SELECT 'x', 1, 2, 'y'"}, "only a single SELECT"),
        ({"query": "SELECT load_extension('x')"}, "only a single SELECT|not authorized|no such function"),
        ({"query": "SELECT nobody FROM customers"}, "no such column: nobody"),
        ({"query": "SELECT n, n FROM customers"}, "gives n more than once"),
        ({"sheet": "clients"}, "has no table 'clients'; it has: customers, odd"),
        ({}, r"2 tables \(customers, odd\); name one with data\.sheet"),
    ],
)
def test_what_is_no_select_is_refused(shop: Path, options: dict[str, str], reason: str) -> None:
    before = (shop / "shop.db").read_bytes()
    with pytest.raises(DataError, match=reason):
        rows("sqlite:///shop.db", shop, **options)
    assert (shop / "shop.db").read_bytes() == before


def test_urls_that_cannot_be_read(shop: Path) -> None:
    (shop / "none.db").write_bytes(b"this is no database, but a text that is long enough")
    for url, reason in (("sqlite:///none.db", "not a database"), ("sqlite:///absent.db", "does not exist"), ("sqlite://shop.db", "three slashes"),
                        ("mysql://me:secret@host/db", "not from mysql://")):  # fmt: skip
        with pytest.raises(DataError, match=reason) as caught:
            rows(url, shop, query="SELECT 1 AS a")
        assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match=r"data\.query asks a database"):
        rows("shop.csv", shop, query="SELECT 1")


def test_the_command_line_reads_a_database(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(shop / "many.db") as db:
        db.execute("CREATE TABLE rows (a REAL, b TEXT, y TEXT)")
        db.executemany("INSERT INTO rows VALUES (?, ?, ?)", [(i * 1.5, "uv"[i % 2], "no" if i < 30 else "yes") for i in range(60)])
    (shop / "project").mkdir()
    (shop / "project" / "modelyard.yaml").write_text("data: {target: y}\n", encoding="utf-8")
    monkeypatch.chdir(shop)
    found = modelyard.check("project", data="sqlite:///many.db")  # relative to where it is typed, not to the project
    assert sum(found.rows.values()) == 60


class FakeServer:
    """psycopg as it is used here: one connection, a plain cursor and a named one."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.read_only = False

    def module(self) -> ModuleType:
        module = ModuleType("psycopg")
        module.Error = type("Error", (Exception,), {})  # type: ignore[attr-defined]

        def connect(url: str, **_: Any) -> Any:
            if "wrong" in url:
                raise module.Error(f"connection to {url} failed")  # type: ignore[attr-defined]
            return self

        module.connect = connect  # type: ignore[attr-defined]
        return module

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.left = []

    def cursor(self, name: str = "") -> Any:
        return self

    def execute(self, query: str) -> None:
        assert self.read_only
        self.asked.append(query)
        self.left = [("people",)] if "information_schema" in query else [(1, Decimal("2.5"), {"a": 1}), (2, None, None)]
        self.description = [SimpleNamespace(name=n) for n in ("n", "price", "extra")]

    def fetchall(self) -> list[Any]:
        return self.left

    def fetchmany(self, size: int) -> list[Any]:
        found, self.left = self.left[:1], self.left[1:]
        return found


def test_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    monkeypatch.setitem(sys.modules, "psycopg", server.module())
    frame = rows("postgresql://me:secret@host/db")
    assert frame.rows() == [(1, 2.5, '{"a": 1}'), (2, None, None)] and server.asked[-1] == 'SELECT * FROM "people"'
    with pytest.raises(DataError) as caught:
        rows("postgresql://me:secret@wrong/db", query="SELECT 1")
    assert "secret" not in str(caught.value) and "***" in str(caught.value)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"modelyard\[postgres\]"):
        rows("postgresql://host/db")


def test_a_real_postgresql_server(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types, more rows than one piece, a query, what is no reading, a wrong password; a model is trained on it."""
    import psycopg

    monkeypatch.chdir(tmp_path)
    with psycopg.connect(postgres) as connection:
        connection.execute(
            "CREATE TABLE claims (n bigint, price numeric(9,2), seen timestamptz, day date, ok boolean, who text, extra jsonb, tag uuid, tags text[])"
        )
        connection.execute("CREATE SEQUENCE s")
        connection.execute(
            "INSERT INTO claims SELECT i, i / 4.0, '2024-01-01 12:00+00'::timestamptz + i * interval '1 hour', '2024-01-01'::date + i % 300, i % 3 = 0,"
            " CASE WHEN i % 7 = 0 THEN NULL ELSE 'é北' || i % 5 END, '{\"a\": 1}', gen_random_uuid(), ARRAY['x', 'y'] FROM generate_series(1, 25000) i"
        )
    connection.close()
    frame = rows(postgres)
    assert frame.height == 25_000 > FETCH and frame["n"].to_list() == list(range(1, 25_001))
    assert frame["price"].to_list() == [i / 4 for i in range(1, 25_001)] and frame["ok"].sum() == 8333
    assert frame["who"].null_count() == 3571 and frame["who"][0] == "é北1" and frame["extra"][0] == '{"a": 1}' and frame["tags"][0].to_list() == ["x", "y"]
    assert frame["seen"][0].isoformat().startswith("2024-01-01T13:00") and frame["day"][0].isoformat() == "2024-01-02"
    asked = "SELECT n, price, who, ok FROM claims WHERE n <= 300"
    assert rows(postgres, query=asked).shape == (300, 4)
    writing = "WITH x AS (DELETE FROM claims RETURNING n) SELECT * FROM x"
    for query, reason in (("SELECT * FROM nowhere", "nowhere"), ("SELECT setval('s', 9)", "read-only"), (writing, "data-modifying")):
        with pytest.raises(DataError, match=reason):
            rows(postgres, query=query)
    with pytest.raises(DataError, match="authentication") as caught:
        rows(postgres.replace("s3cret", "wrong"))
    assert "wrong" not in str(caught.value)
    assert rows(postgres, query="SELECT count(*) c FROM claims")["c"].to_list() == [25_000]  # nothing was deleted
    found = modelyard.train(data={"path": postgres, "query": asked, "target": "ok"}, model="linear")
    assert sum(json.loads((Path(found.run) / "run.json").read_text(encoding="utf-8"))["data"]["rows"].values()) == 300
    assert not [f for f in Path(found.run).rglob("*") if f.is_file() and b"s3cret" in f.read_bytes()]  # the password is nowhere in the run
    with pytest.raises(DataError, match=r"does not keep passwords.*\$\{env:NAME\}"):
        modelyard.evaluate(found.run)
    again = modelyard.evaluate(found.run, data={"path": postgres, "query": asked, "target": "ok"})
    assert again.metrics["test"] == found.metrics["test"]
    monkeypatch.setenv("CLAIMS_PASSWORD", "s3cret")
    kept = modelyard.train(data={"path": postgres.replace("s3cret", "${env:CLAIMS_PASSWORD}"), "query": asked, "target": "ok"}, model="linear")
    assert modelyard.evaluate(kept.run).metrics["test"] == found.metrics["test"]  # read again by what the run kept
    assert b"s3cret" not in (Path(kept.run) / "config.yaml").read_bytes()


# --- datasets --------------------------------------------------------------------------------------------------------


def dataset(table: Any, features: dict[str, Any], indices: list[int] | None = None) -> Any:
    """What a `datasets.Dataset` has and is read by."""
    picked = table if indices is None else table.take(indices)
    return SimpleNamespace(features=features, data=SimpleNamespace(table=table), _indices=indices, with_format=lambda kind: _Sliced(picked))


class _Sliced:
    def __init__(self, table: Any) -> None:
        self.table = table

    def __getitem__(self, key: slice) -> Any:
        assert key == slice(None)
        return self.table


def test_datasets_objects() -> None:
    pa = pytest.importorskip("pyarrow")
    label = SimpleNamespace(names=["neg", "pos"])
    features = {"text": SimpleNamespace(), "label": label, "tags": SimpleNamespace(feature=label), "image": SimpleNamespace()}
    pictures = [{"bytes": b"\x89PNG", "path": None}, {"bytes": None, "path": None}, {"bytes": None, "path": "nowhere.png"}]
    table = pa.table({"text": ["a", "b", "c"], "label": [0, 1, -1], "tags": [[0, 1], [], [1]], "image": pictures})
    frame = rows(dataset(table, features))
    assert frame["label"].to_list() == ["neg", "pos", None] and frame["tags"].to_list() == [["neg", "pos"], [], ["pos"]]
    assert frame["image"].to_list() == [b"\x89PNG", None, b"nowhere.png"]
    assert rows(dataset(table, features, [2, 0]))["text"].to_list() == ["c", "a"]
    both = {"train": dataset(table, features), "validation": dataset(table, features), "unsupervised": dataset(table, features)}
    assert set(open_source(DataConfig(path=both), Path()).tables) == {"train", "valid", "unlabelled"}
    with pytest.raises(DataError, match=r"split.* holdout"):
        open_source(DataConfig(path={"train": dataset(table, features), "holdout": dataset(table, features)}), Path())


def test_real_datasets_objects() -> None:
    """The package itself, where it is installed."""
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    whole = datasets.Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}, features=features)
    assert rows(whole).rows() == [("a", "neg"), ("b", "pos"), ("c", "pos"), ("d", "neg")]
    assert rows(whole.select([3, 1])).rows() == [("d", "neg"), ("b", "pos")]
    both = datasets.DatasetDict({"train": whole, "validation": whole})
    assert set(open_source(DataConfig(path=both), Path()).tables) == {"train", "valid"}


def test_digits_of_other_scripts_are_texts_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n５,1\n٣,2\n", encoding="utf-8")
    assert rows("t.csv", tmp_path).rows() == [("５", 1), ("٣", 2)]


def test_half_characters_cost_their_own_row(tmp_path: Path) -> None:
    r"""JSON can write "\ud800", which is no Unicode and breaks whatever encodes it; "\ud83d\ude42" is a whole character."""
    good, bad = '{"a": "\\ud83d\\ude42", "b": 1}', '{"a": "\\ud800", "b": 2}'
    (tmp_path / "t.jsonl").write_text(f"{good}\n{bad}\n", encoding="utf-8")
    (tmp_path / "t.json").write_text(f"[{good}, {bad}]", encoding="utf-8")
    for name in ("t.jsonl", "t.json"):
        table = open_source(DataConfig(path=name), tmp_path).tables["train"]
        assert table.data.rows() == [("🙂", 1)] and [s.line for s in table.set_aside] == [2]
    with pytest.raises(DataError, match="half of a character"):
        rows([{"a": "\ud800"}])


def test_a_half_character_costs_its_own_row_of_a_prediction() -> None:
    from modelyard.runtime.pipeline import Column
    from modelyard.runtime.rows import to_columns

    inputs = [Column("a", "category", "index"), Column("b", "number", "raw")]
    for given in ([{"a": "x", "b": 1}, {"a": "\ud800", "b": 2}], {"a": ["x", "\ud800"], "b": [1, 2]}):
        frame, errors = to_columns(given, inputs)
        assert frame.height == 2 and [(e.row, e.column) for e in errors] == [(1, "a")]
        assert errors[0].reason.startswith("holds half of a character") and errors[0].value.encode("utf-8")
    _, errors = to_columns([{"\ud800": 1, "b": 2}], inputs)
    assert "keys that came: \\ud800, b" in errors[0].reason and errors[0].reason.encode("utf-8")


def test_blanks_around_a_name_do_not_make_another_column() -> None:
    from modelyard.runtime.pipeline import Column
    from modelyard.runtime.rows import to_columns

    inputs = [Column("age ", "number", "raw"), Column("city", "category", "index")]
    frame, errors = to_columns(pl.DataFrame({"age": [1.0], " city": ["Oslo"], "x": [0]}), inputs)
    assert frame.rows() == [(1.0, "Oslo")] and frame.columns == ["age ", "city"] and not errors
    with pytest.raises(DataError, match="absent: age "):
        to_columns(pl.DataFrame({"age": [1.0], " age": [2.0], "city": ["Oslo"]}), inputs)


def test_a_reading_of_each_source_has_one_fingerprint(shop: Path) -> None:
    """The same rows are the same data, wherever they were."""
    (shop / "t.csv").write_text(CSV, encoding="utf-8")
    workbook(shop / "t.xlsx", {"S": [FRAME.columns, *map(list, FRAME.rows())]})
    places = (("t.csv", None), ("t.xlsx", None), ("sqlite:///shop.db", "customers"))
    found = {open_source(DataConfig(path=path, sheet=sheet), shop).tables["train"].fingerprint for path, sheet in places}
    assert len(found) == 1 and found == {read(FRAME, Reading()).fingerprint}
