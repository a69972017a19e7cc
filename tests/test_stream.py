"""Data larger than memory: read in pieces, every row accounted for, the same model as from memory, bounded residence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from modelyard.data import stream as streaming
from modelyard.data.read import Reading
from modelyard.data.source import DataConfig
from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.tasks._binding import bind
from modelyard.verbs.train import Config, train


def table(rows: int, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3)).round(4)
    place = random.choice(["north", "south", "east"], rows)
    y = np.where(x[:, 0] + (place == "north") > 0.3, "yes", "no")
    return pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "place": place, "note": [f"number {i % 7}" for i in range(rows)], "y": y})


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 300)
    monkeypatch.setattr(streaming, "HELD", 250)


def test_pieces_hold_every_row_in_order(tmp_path: Path, small_pieces: None) -> None:
    frame = table(1000)
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "t.parquet")
    frame.write_ndjson(tmp_path / "t.jsonl")
    for name in ("t.csv", "t.parquet", "t.jsonl"):
        pieces = [f for f, _ in streaming.chunks(tmp_path / name, Reading())]
        assert len(pieces) > 2
        assert pl.concat(pieces).equals(frame), name


def test_bad_lines_are_set_aside_with_their_line(tmp_path: Path, small_pieces: None) -> None:
    lines = table(1000).write_csv().splitlines()
    lines[700] = "1,2"
    lines[900] = lines[900].replace(",", ",oops", 1)
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    bound = bind(DataConfig(path="t.csv", target="y", stream=True, ignore=["note"]), None, tmp_path)
    assert sum(bound.rows.values()) + len(bound.set_aside) == 1000
    assert [s.line for s in bound.set_aside if "fields" in s.reason] == [701]


def test_states_and_arrays_are_those_of_the_rows_in_memory(tmp_path: Path, small_pieces: None) -> None:
    table(1000).write_csv(tmp_path / "t.csv")
    bound = bind(DataConfig(path="t.csv", target="y", inputs={"a": "number", "place": "category", "note": "text"}, stream=True), None, tmp_path)
    assert bound.stream is not None
    bound.pipeline.fit(bound.stream)
    arrays = bound.stream.encode(lambda f: bound.pipeline.encode(f).arrays, "input")
    whole = pl.concat(list(bound.stream))
    expected = bound.pipeline.encode(whole).arrays
    for name, array in expected.items():
        if isinstance(array, np.ndarray):
            assert isinstance(arrays[name], np.memmap) and np.array_equal(arrays[name], array), name
        else:
            assert np.array_equal(arrays[name].values, array.values) and np.array_equal(arrays[name].offsets, array.offsets)  # type: ignore[union-attr]
    mean = bound.pipeline.inputs[0].state.mean
    assert mean == pytest.approx(whole["a"].mean(), abs=1e-12)


def test_training_from_pieces(tmp_path: Path, small_pieces: None) -> None:
    table(2000).write_csv(tmp_path / "t.csv")
    data = DataConfig(path="t.csv", target="y", stream=True, ignore=["note"])
    found = train(data, "classification", "mlp", Config(epochs=8), base=tmp_path)
    assert found.metrics["test"]["accuracy"]["value"] > 0.9
    assert Model.load(found.model).replay().ok
    with pytest.raises(Unsupported, match="in memory"):
        train(data, "classification", "trees", base=tmp_path)


def test_residence_is_bounded(tmp_path: Path) -> None:
    """A file of about 190 MB is read, checked and spooled with less than its size above the start."""
    part = table(60_000).with_columns(note=pl.lit("x" * 400)).write_csv()
    head, _, body = part.partition("\n")
    with (tmp_path / "big.csv").open("w", encoding="utf-8") as file:
        file.write(head + "\n")
        for _ in range(7):
            file.write(body)
    size = (tmp_path / "big.csv").stat().st_size
    code = f"""
import resource
from pathlib import Path
import modelyard.tasks._binding as binding, modelyard.data.stream as streaming
from modelyard.data.source import DataConfig
streaming.CHUNK, streaming.HELD = 8192, 5000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bound = binding.bind(DataConfig(path="big.csv", target="y", stream=True, ignore=["note"]), None, Path({str(tmp_path)!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sum(bound.rows.values()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    grown, rows = map(int, done.stdout.split())
    assert rows == 420_000
    assert grown * 1024 < 0.75 * size, f"{grown / 1024:.0f} MB more for a file of {size / 2**20:.0f} MB"
