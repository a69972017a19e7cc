"""Reading accounts for every row, values survive, and splits keep their promises; counts are checked by a second reader."""

from __future__ import annotations

import csv
import gzip
import io
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.data.read import Reading, read
from modelyard.data.source import DataConfig, open_source
from modelyard.data.split import SplitConfig, split
from modelyard.data.typing import infer, target_kind
from modelyard.errors import DataError

SHARED = Path(os.environ.get("MODELYARD_SHARED", Path(__file__).parents[2] / "shared")) / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside the checkout")


@needs_shared
@pytest.mark.parametrize(
    ("path", "options", "rows"),
    [
        ("tabular/telco_churn/Telco-Customer-Churn.csv.gz", {}, {"train": 7043}),
        ("tabular/adult_income/adult-train.csv.gz", {"header": False}, {"train": 32561}),
        ("tabular/credit_card_default/credit.csv.gz", {}, {"train": 24000}),
        ("text_classification/waimai_10k_zh/waimai_10k.csv.gz", {}, {"train": 11987}),
        ("dirty_data/movies_messy/movies.json.gz", {}, {"train": 3201}),
        ("multilabel/music_emotions/music.csv.gz", {}, {"train": 593}),
        ("image_classification/mnist", {}, {"train": 60000, "test": 10000}),
    ],
)
def test_real_sets_have_the_rows_that_their_makers_state(path: str, options: dict, rows: dict[str, int]) -> None:
    source = open_source(DataConfig(path=path, **options), SHARED)
    assert {name: t.rows for name, t in source.tables.items()} == rows
    assert not source.set_aside


@given(
    rows=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_what_the_csv_module_writes_is_read_or_set_aside(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    """Any texts: rows kept and set aside add up, and kept values are the ones that were written."""
    clean = [tuple("".join(c for c in v if c not in "\r\x00" and not "\ud800" <= c <= "\udfff") for v in row) for row in rows]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["left", "right"])
    writer.writerows(clean)
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    table = read(path, Reading(separator=","))
    lines = sum(1 + (a + b).count("\n") for a, b in clean)
    assert table.rows <= len(clean) <= table.rows + len(table.set_aside) <= lines
    kept = list(zip(*(["" if v is None else str(v) for v in table.data[c].to_list()] for c in ("left", "right")), strict=True))
    if not table.set_aside and all(t == pl.String for t in table.data.dtypes):
        assert kept == list(clean)


def test_a_stray_quote_costs_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,"x\n2,y\n3,z"w\n4,"v"t\n', encoding="utf-8")
    table = read(path)
    assert table.data["a"].to_list() == [2, 3] and table.data["b"].to_list() == ["y", 'z"w']
    assert [s.line for s in table.set_aside] == [2, 5]


def test_values_are_not_changed_by_their_types(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,big,code,n,word\n1,9007199254740993,007,NA,NA\n2,9007199254740995,010,2.5,None\n", encoding="utf-8")
    frame = read(path).data
    assert frame["big"].to_list() == [9007199254740993, 9007199254740995]
    assert frame["code"].to_list() == ["007", "010"]
    assert frame["n"].to_list() == [None, 2.5]
    assert frame["word"].to_list() == ["NA", "None"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_chinese_in_each_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "客户.csv.gz"
    path.write_bytes(gzip.compress("城市,流失\n北京,是\n上海,否\n".encode(encoding)))
    table = read(path)
    assert table.data["城市"].to_list() == ["北京", "上海"]
    assert bool(table.notes) == (encoding == "gb18030")


def test_the_same_rows_have_one_fingerprint_in_any_format(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None]})
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "t.parquet")
    prints = {read(tmp_path / name).fingerprint for name in ("t.csv", "t.parquet")} | {read(frame).fingerprint}
    assert len(prints) == 1
    assert read(frame.with_columns(a=pl.Series([1, 2, 4]))).fingerprint not in prints


def frame_of(n: int, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    labels = np.where(random.random(n) < 0.1, "rare", "often")
    return pl.DataFrame({"y": labels, "who": random.integers(0, n // 4, n), "when": random.permutation(n)})


@given(n=st.integers(20, 400), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_splits_are_disjoint_whole_and_repeatable(n: int, seed: int) -> None:
    frame = frame_of(n, seed)
    for config in (SplitConfig(), SplitConfig(by="who"), SplitConfig(time="when")):
        parts = split(frame, config, ["y"], seed=seed)
        again = split(frame, config, ["y"], seed=seed)
        assert sorted(np.concatenate(list(parts.values()))) == list(range(n))
        assert all(np.array_equal(parts[k], again[k]) for k in parts)
    when = frame["when"].to_numpy()
    assert when[parts["train"]].max() < when[parts["valid"]].min() <= when[parts["valid"]].max() < when[parts["test"]].min()


def test_a_stratified_split_keeps_shares_and_a_group_stays_together() -> None:
    frame = frame_of(2000)
    share = (frame["y"] == "rare").mean()
    for index in split(frame, SplitConfig(), ["y"]).values():
        assert abs((frame["y"][index] == "rare").mean() - share) < 0.01
    parts = split(frame, SplitConfig(by="who"), ["y"])
    groups = [set(frame["who"][i].to_list()) for i in parts.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be split"):
        split(frame_of(20).head(2), SplitConfig(), ["y"])
    with pytest.raises(DataError, match="lacks"):
        split(frame_of(20), SplitConfig(by="nobody"), ["y"])


def test_guesses() -> None:
    n = 60
    frame = pl.DataFrame(
        {
            "customer_id": [f"C{i}" for i in range(n)],
            "age": list(range(20, 20 + n)),
            "plan": ["basic", "gold", "basic"] * 20,
            "joined": [f"2026-01-{i % 28 + 1:02d}" for i in range(n)],
            "note": [f"the customer number {i} was not happy with it" for i in range(n)],
            "评论": [f"这家店的第{i}道菜味道非常好吃" for i in range(n)],
            "tags": ["a|b", "b", "a|c"] * 20,
            "same": ["x"] * n,
            "score": [0, 1] * 30,
        }
    )
    found = {k: (v.kind, v.role_hint) for k, v in infer(frame).items()}
    assert found["customer_id"] == ("category", "id") and found["same"][1] == "constant"
    assert found["plan"] == ("category", "") and found["joined"] == ("timestamp", "")
    assert found["note"] == ("text", "") and found["评论"] == ("text", "") and found["tags"] == ("label-set", "")
    assert target_kind(frame["score"]).kind == "category" and target_kind(frame["age"]).kind == "number"
