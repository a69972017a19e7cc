"""Missing values against scikit-learn and slow loops, the same alone and in a batch, stored and exported; monotone trees; short columns."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelyard import registry
from modelyard.data.source import DataConfig
from modelyard.data.split import SplitConfig
from modelyard.errors import ConfigError, DataError, ModelyardError, Unsupported
from modelyard.kinds._contract import SMALL
from modelyard.kinds._missing import Missing
from modelyard.runtime import imputation
from modelyard.runtime._neighbours import Neighbours
from modelyard.runtime.imputation import Chain, Imputation, Nearest, moments
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import Column
from modelyard.tasks._binding import bind
from modelyard.verbs.train import Config, train


def correlated(rows: int, columns: int, seed: int = 0, missing: float = 0.1) -> np.ndarray:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3)) @ random.normal(size=(3, columns)) + 0.5 * random.normal(size=(rows, columns))
    x[random.random(x.shape) < missing] = np.nan
    return x


def slow_means(z: np.ndarray, donors: np.ndarray, k: int) -> np.ndarray:
    """k-NN in Python: nearest by (distance, number), the mean of those that have the column."""
    out = z.copy()
    for i, row in enumerate(z):
        distances = []
        for n, donor in enumerate(donors):
            both = [j for j in range(len(row)) if not (math.isnan(row[j]) or math.isnan(donor[j]))]
            distances.append((sum((row[j] - donor[j]) ** 2 for j in both) / len(both) if both else math.inf, n))
        order = [n for d, n in sorted(distances) if d < math.inf]
        for j in np.flatnonzero(np.isnan(row)):
            near = [donors[n, j] for n in order if not math.isnan(donors[n, j])][:k]
            out[i, j] = sum(near) / len(near) if near else math.nan
    return out


@pytest.mark.parametrize("seed, missing, k", [(0, 0.1, 5), (1, 0.3, 1), (2, 0.6, 7), (3, 0.05, 30)])
def test_neighbours_are_those_of_scikit_learn(seed: int, missing: float, k: int) -> None:
    from sklearn.impute import KNNImputer

    x = correlated(700, 8, seed, missing)
    x = x[~np.isnan(x).all(1)]
    mean, scale = moments(x)
    expected = KNNImputer(n_neighbors=k).fit_transform((x - mean) / scale) * scale + mean
    fitted = Nearest.fit([str(j) for j in range(8)], [k] * 8, x)
    found = fitted.fill(x)
    assert np.abs(found - expected).max() < 1e-9
    alone = np.concatenate([fitted.fill(x[i : i + 1]) for i in range(60)])
    assert np.array_equal(alone, found[:60])  # to the last bit


@pytest.mark.parametrize("case", ["ties", "far", "bare"])
def test_neighbours_where_the_product_cannot_tell(case: str) -> None:
    """Equal distances by the dozen, values whose squares drown the differences, rows that share no column: as the slow loop says."""
    random = np.random.default_rng(0)
    donors = random.integers(0, 3, (300, 4)).astype(np.float64) if case == "ties" else random.normal(size=(300, 4))
    if case == "far":
        donors[:, 0] = 30_000 + 0.01 * random.normal(size=300)
    donors[random.random(donors.shape) < 0.2] = np.nan
    if case == "bare":
        donors[:150, :2], donors[150:, 2:] = np.nan, np.nan
    rows = donors[::7].copy()
    rows[::3, 1] = np.nan
    found = Neighbours(donors).means(rows, np.full(4, 3))
    assert np.allclose(found, slow_means(rows, donors, 3), rtol=0, atol=1e-9, equal_nan=True)
    assert np.array_equal(found, np.concatenate([Neighbours(donors).means(r[None], np.full(4, 3)) for r in rows]), equal_nan=True)


def test_row_without_anything_gets_the_mean() -> None:
    x = correlated(200, 4)
    fitted = Nearest.fit(list("abcd"), [5, 5, 5, 0], x)
    found = fitted.fill(np.full((1, 4), np.nan))
    assert np.allclose(found[0, :3], np.nanmean(x[:, :3], 0)) and np.isnan(found[0, 3])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_chain_of_regressions() -> None:
    """An exact linear relation comes back; on noisy data it errs no more than scikit-learn's; one row as in a batch, inside the range."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 500))
    exact = np.stack([a, b, 2 * a - 3 * b + 1], 1)
    holes = exact.copy()
    holes[np.arange(0, 500, 5), random.integers(0, 3, 100)] = np.nan
    filled = Chain.fit(list("abc"), [0, 1, 2], 30, holes).fill(holes)
    inside = ((exact > np.nanmin(holes, 0)) & (exact < np.nanmax(holes, 0))).all(1)  # beyond, values are cut to the range of training
    assert (np.abs(filled - exact) / exact.std(0))[inside].max() < 0.03
    whole = correlated(600, 6, missing=0.0)
    x = np.where(random.random(whole.shape) < 0.15, np.nan, whole)
    chain = Chain.fit([str(j) for j in range(6)], list(range(6)), 10, x)
    ours, theirs = chain.fill(x), IterativeImputer(random_state=0).fit_transform(x)
    gap = np.isnan(x)
    error = [float(np.sqrt(((f - whole)[gap] ** 2).mean())) for f in (ours, theirs)]
    assert error[0] < 1.03 * error[1] and error[0] < 0.8 * float(np.sqrt(((np.nanmean(x, 0) - whole)[gap] ** 2).mean()))
    assert np.array_equal(ours[:80], np.concatenate([chain.fill(x[i : i + 1]) for i in range(80)]))
    assert (ours <= np.nanmax(x, 0) + 1e-9).all() and (ours >= np.nanmin(x, 0) - 1e-9).all()


def test_typing_errors_stay_finite() -> None:
    """1e300 in a column neither overflows nor makes the other values NaN, and one row still gets what it gets in a batch."""
    x = correlated(300, 3)
    x[5, 0], x[7, 1] = 1e300, -1.7e308
    for fitted in (Nearest.fit(list("abc"), [5] * 3, x), Chain.fit(list("abc"), [0, 1, 2], 10, x)):
        found = fitted.fill(x)
        assert np.isfinite(found).all() and (np.abs(found[np.isnan(x[:, 2]), 2]) < 100).all()
        assert np.array_equal(found[:40], np.concatenate([fitted.fill(x[i : i + 1]) for i in range(40)]))


def columns_of(methods: dict[str, Any]) -> list[Column]:
    kinds = {"n": "number", "c": "category", "t": "timestamp"}
    return [
        Column(name, kinds[name[0]], "scaled" if name[0] == "n" else "index" if name[0] == "c" else "calendar", missing=Missing(**m))
        for name, m in methods.items()
    ]


def messy(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    gaps = lambda values: [None if g else v for v, g in zip(values, random.random(rows) < 0.2, strict=True)]  # noqa: E731
    start = datetime(2025, 3, 1)
    return pl.DataFrame({
        "n": gaps(random.gamma(2.0, size=rows).tolist()), "nm": gaps(random.integers(0, 4, rows).astype(float).tolist()),
        "c": gaps(random.choice(["b", "a", "c"], rows, p=[0.4, 0.4, 0.2]).tolist()),
        "t": gaps([start + timedelta(hours=int(h)) for h in random.integers(0, 1000, rows)]),
    }, schema_overrides={"t": pl.Datetime("us")})  # fmt: skip


def test_single_values_are_what_polars_says() -> None:
    frame = messy()
    n, nm, c, t = (frame[name].drop_nulls() for name in ("n", "nm", "c", "t"))
    cases = [("n", "mean", n.mean()), ("n", "median", n.median()), ("nm", "mode", float(nm.mode().min())), ("c", "mode", min(
        v for v, k in c.value_counts().iter_rows() if k == c.value_counts()["count"].max())), ("t", "median", t.median()), ("t", "mean", t.mean())]  # fmt: skip
    for name, method, expected in cases:
        column = columns_of({name: {"method": method}})
        for chunks in ([frame], [frame[:130], frame[130:133], frame[133:]]):
            filled = Imputation.fit(column, chunks).fill(frame, column)[name]
            value = filled.filter(frame[name].is_null()).unique().to_list()
            assert len(value) == 1
            off = abs((value[0] - expected).total_seconds()) if name == "t" else abs(value[0] - expected) if name[0] == "n" else 0.0
            assert off < (1e-3 if name == "t" else 1e-12) and (name != "c" or value[0] == expected), (name, method, value, expected)
            assert filled.filter(frame[name].is_not_null()).equals(frame[name].drop_nulls())
    constant = columns_of({"n": {"method": "constant", "value": -1}, "c": {"method": "constant", "value": "none"}})
    filled = Imputation.fit(constant, [frame]).fill(frame, constant)
    assert filled["n"].null_count() == filled["c"].null_count() == 0 and filled["n"].min() == -1.0 and "none" in filled["c"].to_list()


def test_beyond_the_sample_medians_keep_their_stated_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the rows is seen: the rank of the median is off by at most what 5 standard errors allow, whatever the order of rows."""
    monkeypatch.setattr(imputation, "SAMPLE", 2000)
    values = np.sort(np.random.default_rng(0).normal(size=20_000))  # sorted: a sample of the head would be all wrong
    frame = pl.DataFrame({"n": values})
    column = columns_of({"n": {"method": "median"}})
    found = Imputation.fit(column, [frame[i : i + 3000] for i in range(0, 20_000, 3000)]).values["n"]
    assert abs(np.searchsorted(values, found) / len(values) - 0.5) < 5 * 0.5 / math.sqrt(2000)
    mean = columns_of({"n": {"method": "mean"}})
    assert Imputation.fit(mean, [frame[:7000], frame[7000:]]).values["n"] == pytest.approx(values.mean(), abs=1e-12)


def table(rows: int = 700, seed: int = 0) -> pl.DataFrame:
    """A number that another explains, one that is missing not at random, a category and a time."""
    random = np.random.default_rng(seed)
    a = random.normal(size=rows)
    b = 2 * a + 0.2 * random.normal(size=rows)
    c = random.choice(["x", "y", "z"], rows)
    secret = random.random(rows) < 0.3
    y = np.where(a + 2.0 * secret + 0.3 * random.normal(size=rows) > 0.6, "yes", "no")
    hole = lambda values, gone: [None if g else v for v, g in zip(values, gone, strict=True)]  # noqa: E731
    start = datetime(2024, 1, 1)
    return pl.DataFrame({
        "a": hole(a.tolist(), random.random(rows) < 0.15), "b": b, "c": hole(c.tolist(), random.random(rows) < 0.1),
        "d": hole(random.normal(size=rows).tolist(), secret), "t": hole([start + timedelta(hours=7 * i) for i in range(rows)], random.random(rows) < 0.1),
        "y": y, "z": a * 3 + random.normal(size=rows),
    })  # fmt: skip


RULES: dict[str, Any] = {
    "a": {"kind": "number", "missing": "knn"}, "b": {"kind": "number", "missing": {"method": "iterative", "indicator": True}},
    "c": {"kind": "category", "missing": "mode"}, "t": {"kind": "timestamp", "missing": "median"},
    "d": {"kind": "number", "missing": {"method": "constant", "value": 0, "indicator": True}},
}  # fmt: skip


@pytest.mark.parametrize("model", ["trees", "linear"])
def test_filled_values_travel_with_the_model(model: str, tmp_path: Path) -> None:
    """Saved, loaded, exported: the same answers in a batch and alone, for every mixture of gaps; the card says what happens."""
    from modelyard.runtime.answers import compare
    from modelyard.verbs.export import export

    found = train(DataConfig(path=table(), target="y", inputs=RULES), None, model, base=tmp_path)
    exported = Model.load(export(found.model).folder)
    rows: list[dict[str, Any]] = [
        {"a": a, "b": b, "c": c, "d": d, "t": t}
        for a in (None, 1.5) for b in (None, -1.0) for c in (None, "x", "new") for d in (None, 0.3) for t in (None, "2024-05-05")
    ]  # fmt: skip
    model_ = Model.load(found.model)
    together = model_.predict(rows)
    assert model_.replay().ok and exported.replay().ok and together.failed == 0
    assert compare(together, exported.predict(rows), model_.pipeline.scales()).ok
    alone = pl.concat([model_.predict(row).columns for row in rows])
    assert alone.equals(together.columns)
    card = (found.model / "README.md").read_text(encoding="utf-8")
    assert "`a`: a missing value becomes the mean of the 5 nearest" in card and "`0.0` (a constant); a further number tells" in card
    assert found.metrics["test"]["roc_auc"]["value"] > 0.85  # d's gaps tell, a's are filled from b


def test_nothing_is_fitted_on_other_rows(tmp_path: Path) -> None:
    """Values outside the training rows change nothing; gaps in training do."""
    whole = table()
    splits = SplitConfig(column="part")
    part = ["train"] * 400 + ["valid"] * 150 + ["test"] * 150
    frame = whole.with_columns(part=pl.Series(part))
    other = frame.with_columns(a=pl.when(pl.col("part") == "train").then("a").otherwise(1000.0))

    def fitted(data: pl.DataFrame, method: str) -> Any:
        config = DataConfig(path=data, target="y", inputs={"a": {"kind": "number", "missing": method}, "b": "number"}, split=splits)
        bound = bind(config, None, tmp_path)
        bound.pipeline.fit([bound.splits["train"]])
        return bound.pipeline.filled(pl.DataFrame({"a": [None, None], "b": [0.5, -1.0]}, schema={"a": pl.Float64, "b": pl.Float64}))

    for method in ("mean", "median", "knn", "iterative"):
        assert fitted(frame, method).equals(fitted(other, method))
    assert fitted(frame, "mean")["a"][0] == pytest.approx(float(whole["a"][:400].mean()))  # type: ignore[arg-type]


def test_deleted_rows_are_named_and_refused(tmp_path: Path) -> None:
    inputs = {"a": {"kind": "number", "missing": "delete"}, "b": "number", "c": "category"}
    found = train(DataConfig(path=table(), target="y", inputs=inputs), None, "linear", base=tmp_path)
    bound = bind(DataConfig(path=table(), target="y", inputs=inputs), None, tmp_path)
    assert len(bound.set_aside) == table()["a"].null_count() and all(s.column == "a" and "missing: delete" in s.reason for s in bound.set_aside)
    answers = Model.load(found.model).predict([{"a": None, "b": 1.0, "c": "x"}, {"a": 1.0, "b": None, "c": None}])
    assert [e.row for e in answers.errors] == [0] and "rows without one are left out" in answers.errors[0].reason
    assert answers.columns["y"][1] is not None


def test_a_rule_for_all_columns(tmp_path: Path) -> None:
    """`data.missing_values` reaches the kinds it suits, and a column's own rule goes before it."""
    config = DataConfig(
        path=table(), target="y", inputs={"a": "number", "c": "category", "t": "timestamp", "b": {"kind": "number", "missing": "keep"}},
        missing_values=Missing(method="mean", indicator=True),
    )  # fmt: skip
    pipeline = bind(config, None, tmp_path).pipeline
    assert [c.missing.method for c in pipeline.inputs] == ["mean", "keep", "mean", "keep"]
    pipeline.fit([bind(config, None, tmp_path).splits["train"]])
    assert [n for n in pipeline.numbers() if n[1] == "indicator"] == [("a", "indicator"), ("t", "indicator")]


def test_streamed_rows_are_filled_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file read in pieces: the values are those of all training rows together, and no encoding sees a gap."""
    from modelyard.data import stream

    monkeypatch.setattr(stream, "CHUNK", 150)
    table(600).drop("t").write_csv(tmp_path / "rows.csv")
    rules = {"a": ("number", "knn"), "b": ("number", "keep"), "c": ("category", "mode"), "d": ("number", "median")}
    inputs = {name: {"kind": kind, "missing": method} for name, (kind, method) in rules.items()}
    bound = bind(DataConfig(path="rows.csv", target="y", inputs=inputs, stream=True), None, tmp_path)
    assert bound.stream is not None and len(bound.stream.parts) > 2
    bound.pipeline.fit(bound.stream)
    whole = pl.concat(list(bound.stream))
    imputed = bound.pipeline.imputation
    assert imputed is not None and imputed.nearest is not None and len(imputed.nearest.donors) == whole.height
    assert imputed.values["d"] == pytest.approx(whole["d"].median()) and imputed.values["c"] == whole["c"].drop_nulls().mode().sort()[0]
    filled = bound.pipeline.filled(whole)
    assert filled.select("a", "c", "d").null_count().sum_horizontal()[0] == 0
    assert [c.state.missing for c in bound.pipeline.inputs] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "options, says",
    [
        ({"kind": "category", "missing": "mean"}, "mean does not suit the kind category; expected one of keep, mode, constant, delete"),
        ({"kind": "number", "missing": "constant"}, "value goes with method: constant"),
        ({"kind": "number", "missing": {"method": "constant", "value": "much"}}, "is not a finite number"),
        ({"kind": "number", "missing": "medain"}, "did you mean 'median'"),
        ({"kind": "number", "missing": {"method": "knn", "neighbors": 3}}, "Did you mean 'neighbours'"),
        ({"kind": "text", "missing": {"method": "keep", "indicator": True}}, "an indicator stands beside numbers and labels"),
        ({"kind": "number", "monotone": "up"}, "expected increasing or decreasing"),
        ({"kind": "category", "monotone": "increasing"}, "only numbers rise and fall"),
    ],
)
def test_wrong_rules_are_refused(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        bind(DataConfig(path=table(), target="y", inputs={"a": options, "b": "number"}), None, tmp_path)
    assert says in str(caught.value.to_json())


def test_columns_without_any_value_are_all_named(tmp_path: Path) -> None:
    frame = table().with_columns(e=pl.lit(None, pl.Float64), f=pl.lit(None, pl.Float64))
    inputs = {"b": "number", "e": {"kind": "number", "missing": "median"}, "f": {"kind": "number", "missing": "knn"}}
    with pytest.raises(DataError) as caught:
        train(DataConfig(path=frame, target="y", inputs=inputs), None, "linear", base=tmp_path)
    assert {p.where for p in caught.value.details} == {"e", "f"} and "constant" in caught.value.details[0].hint


# monotone trees


@pytest.mark.parametrize("target, model", [("z", "trees"), ("y", {"name": "trees", "bags": 2, "monotone": {"a": 1, "d": "decreasing"}})])
def test_answers_are_monotone(target: str, model: Any, tmp_path: Path) -> None:
    """However the other columns stand, a rises and d falls; without the constraint some answer goes the other way."""
    signs = {"a": 1, "d": -1}
    named = {"a": "increasing", "d": "decreasing"} if isinstance(model, str) else {"a": 0, "d": 0}
    columns = ["a", "b", "d", "c"]

    def swings(inputs: Any, section: Any) -> dict[str, float]:
        found = train(DataConfig(path=table(), target=target, inputs=inputs), None, section, base=tmp_path)
        loaded, worst = Model.load(found.model), {}
        base = table()[:60].select(columns).with_columns(pl.col("a", "d").fill_null(0.0))
        for name, sign in signs.items():
            grid = np.linspace(-3, 3, 40)
            frame = pl.concat([base.with_columns(pl.lit(v).alias(name)) for v in grid])
            answers = loaded.predict(frame).columns
            score = answers[target].to_numpy() if target == "z" else answers["y.scores"].struct.field("yes").to_numpy()
            worst[name] = float((sign * np.diff(score.astype(np.float64).reshape(40, 60), axis=0)).min())
        return worst

    kept = swings({c: {"kind": "category" if c == "c" else "number", **({"monotone": named[c]} if c in named else {})} for c in columns}, model)
    free = swings({c: "category" if c == "c" else "number" for c in columns}, "trees")
    assert min(kept.values()) >= -1e-6 and min(free.values()) < -1e-3


@pytest.mark.parametrize(
    "model, target, kind, says",
    [
        ("linear", "y", None, "linear cannot promise"), ("mlp", "y", None, "mlp cannot promise"),
        ({"parts": ["trees", "linear"]}, "y", None, "linear cannot promise"), ("trees", "c", None, "no one score"),
        ({"name": "trees", "monotone": {"c": 1}}, "y", None, "is no number input"),
    ],
)  # fmt: skip
def test_who_cannot_be_monotone_says_so(model: Any, target: str, kind: str | None, says: str, tmp_path: Path) -> None:
    inputs: dict[str, Any] = {"a": {"kind": "number", "monotone": "increasing"}, "b": "number"} | ({"c": "category"} if target == "y" else {})
    config = DataConfig(path=table(), target=target, inputs=inputs, drop_missing_targets=True)
    with pytest.raises((Unsupported, ConfigError)) as caught:
        train(config, None, model, Config(epochs=1), base=tmp_path)
    assert says in str(caught.value.to_json()) and isinstance(caught.value, ModelyardError)


# short columns take a shorter way, to the same place

RAW: dict[str, list[Any]] = {
    "number": [1, 2.5, None, float("nan"), True, "3.5", " 4 ", "", "word", float("inf"), -0.0, 1e100, 2**60],
    "category": ["a", " b ", "", None, "\x1f", "\u00a0c", "a b", "\x1cd", 1, 2.0, 2.5, True, "é\u2003"],
    "timestamp": [
        "2024-02-29", "2024-02-30", "2024-01-31T13:45:00", "2024-01-31 13:45:00.25", "0001-01-01", "1969-12-31T23:59:59.999999", None, "",
        "2024-01-31T25:00:00", "2024-06-30T23:59:60", "2024-01-31T13:45:00Z", "31.01.2024", "03/04/2020", 1.7e9, "2024-1-5", "２０２４-01-01",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(RAW))
def test_short_and_long_columns_agree(name: str) -> None:
    """Each value alone, and the same value in a column too long for the shorter way, with its errors and its encoding."""
    kind = registry.load("kinds", name).KIND
    for value in RAW[name]:
        short, errors = kind.check(kind.from_json([value]).alias("x"))
        long, more = kind.check(kind.from_json([value] * (SMALL + 5)).alias("x"))
        assert short.dtype == long.dtype and short.to_list() * (SMALL + 5) == long.to_list(), value
        assert [(e.reason, e.value) for e in errors] * (SMALL + 5) == [(e.reason, e.value) for e in more], value
        for encoding in kind.encodings.values():
            state = encoding.fit(long)
            one, many = encoding.encode(short, state, {}), encoding.encode(long, state, {})
            for part, array in one.items():
                assert isinstance(array, np.ndarray) and array.dtype == np.asarray(many[part]).dtype
                assert np.array_equal(np.repeat(array, SMALL + 5, axis=0), many[part], equal_nan=array.dtype.kind == "f"), (value, part)


def test_calendar_is_that_of_python() -> None:
    """Day of month and of year, before and after 1970, against the standard library."""
    kind = registry.load("kinds", "timestamp").KIND
    random = np.random.default_rng(0)
    moments_ = [datetime(1970, 1, 1) + timedelta(seconds=int(s)) for s in random.integers(-(10**10), 10**10, 300)]
    column = pl.Series("t", moments_, dtype=pl.Datetime("us"))
    encoding = kind.encodings["calendar"]
    found = np.asarray(encoding.encode(column, encoding.fit(column), {})["value"])
    for k, turn in ((3, [m.day / 31 for m in moments_]), (4, [m.timetuple().tm_yday / 366 for m in moments_])):
        assert np.allclose(found[:, k], np.sin(2 * np.pi * np.array(turn)), atol=1e-6)
