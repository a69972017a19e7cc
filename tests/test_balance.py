"""Balancing against slow loops and imbalanced-learn: neighbours, made rows, votes; and no row crosses a split."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.data.balance import balance, between, plan, space, voted
from modelyard.data.nearest import nearest
from modelyard.errors import DataError, Unsupported

KINDS = {"age": "number", "city": "category", "note": "text", "y": "category"}


def slow(points: np.ndarray, k: int) -> np.ndarray:
    """Neighbours by sorting all distances, one row at a time; ties by row number."""
    out = []
    for i, p in enumerate(points):
        squares = ((points - p) ** 2).sum(1)
        out.append([j for _, j in sorted((float(d), j) for j, d in enumerate(squares) if j != i)[:k]])
    return np.array(out)


@given(n=st.integers(6, 90), d=st.integers(1, 5), k=st.integers(1, 5), seed=st.integers(0, 9), grid=st.booleans(), scale=st.sampled_from([1e-6, 1.0, 1e9]))
@settings(max_examples=60, deadline=None)
def test_neighbours_are_those_of_a_loop(n: int, d: int, k: int, seed: int, grid: bool, scale: float) -> None:
    """Also on a grid of whole numbers, where most distances are tied: there, exactly the same rows in the same order."""
    random = np.random.default_rng(seed)
    points = random.integers(0, 3, (n, d)).astype(float) * (scale if scale != 1e-6 else 1) if grid else random.normal(size=(n, d)) * scale
    rows, distances = nearest(points, k)
    wanted = slow(points, k)
    true = np.sqrt(((points[:, None] - points[wanted]) ** 2).sum(2))
    np.testing.assert_allclose(distances, true, rtol=1e-9, atol=1e-12 * scale)
    if not grid:
        np.testing.assert_array_equal(rows, wanted)
    assert all(i not in found for i, found in enumerate(rows))


def test_ties_go_to_the_lower_row_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Powers of two and whole numbers are exact in every step, so equal distances are equal bits."""
    from modelyard.data import nearest as module

    points = np.repeat(np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [-4.0, -4.0]]), 64, axis=0)
    found = []
    for block in (1, 7, 256):
        monkeypatch.setattr(module, "BLOCK", block)
        found.append(nearest(points, 3)[0])
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert found[0][0].tolist() == [1, 2, 3] and found[0][70].tolist() == [64, 65, 66]


def test_outliers_do_not_cost_exactness() -> None:
    random = np.random.default_rng(3)
    points = random.normal(size=(400, 6))
    points[7] = 1e8  # the screen in float32 is blind beside it
    np.testing.assert_array_equal(nearest(points, 4)[0], slow(points, 4))
    with pytest.raises(ValueError, match="there are 3 at most"):
        nearest(points[:4], 4)


def test_queries_of_their_own() -> None:
    random = np.random.default_rng(4)
    points, queries = random.normal(size=(300, 3)), random.normal(size=(20, 3))
    rows, _ = nearest(points, 2, queries)
    np.testing.assert_array_equal(rows, np.argsort(((queries[:, None] - points) ** 2).sum(2), axis=1, kind="stable")[:, :2])


def test_made_rows_are_those_of_imbalanced_learn() -> None:
    """Given its draws and its neighbours, the same values."""
    smote = pytest.importorskip("imblearn.over_sampling", reason="imbalanced-learn is not installed")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(3000, 20)), (np.arange(3000) < 200).astype(int)
    theirs, _ = smote.SMOTE(random_state=5).fit_resample(x, y)
    draws = np.random.RandomState(5)
    rare = x[y == 1]
    near, _ = nearest(rare, 5)
    base, turn = np.divmod(draws.randint(0, near.size, 2600), 5)
    ours = between(rare, near, base, turn, draws.uniform(size=2600))
    np.testing.assert_allclose(ours, theirs[3000:], atol=1e-6)


def people(n: int = 400, seed: int = 0) -> dict[str, pl.DataFrame]:
    random = np.random.default_rng(seed)

    def table(rows: int) -> pl.DataFrame:
        rare = random.random(rows) < 0.1
        return pl.DataFrame(
            {
                "age": [None if random.random() < 0.1 else float(v) for v in random.integers(18, 80, rows)],
                "city": random.choice(["Oslo", "Lima", "Kyiv"], rows),
                "note": [f"note {i}" for i in range(rows)],
                "y": np.where(rare, "rare", "often"),
                "w": random.random(rows),
            }
        )

    return {"train": table(n), "test": table(n // 4)}


@pytest.mark.parametrize("method", ["over", "under", "smote"])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_labels_have_the_wanted_shares_and_only_train_changes(method: str, ratio: float) -> None:
    splits = people()
    after, notes = balance(splits, "y", KINDS, method, ratio=ratio, seed=3)
    before = dict(splits["train"]["y"].value_counts().iter_rows())
    counts = dict(after["train"]["y"].value_counts().iter_rows())
    if method == "under":
        assert counts == {"rare": before["rare"], "often": int(before["rare"] / ratio)}
    else:
        assert counts == {"often": before["often"], "rare": round(ratio * before["often"])}
    assert after["test"] is splits["test"] and "→" in notes[0]
    again, _ = balance(splits, "y", KINDS, method, ratio=ratio, seed=3)
    assert after["train"].equals(again["train"])
    assert after["train"].schema == splits["train"].schema
    if method == "under":
        assert after["train"].join(splits["train"], on=splits["train"].columns, how="anti", nulls_equal=True).is_empty()
    else:
        assert after["train"].head(400).equals(splits["train"])
        assert not after["train"].equals(balance(splits, "y", KINDS, method, ratio=ratio, seed=4)[0]["train"])


def test_made_rows_lie_between_their_parents_and_stay_in_their_label() -> None:
    """Every made row against a loop: the number on a line between base and one of its five neighbours, the city by vote."""
    train = people(600, 1)["train"]
    origin, made, _ = plan(train, "y", KINDS, "smote", ratio=1.0, neighbours=5, seed=0)
    rare = np.flatnonzero((train["y"] == "rare").to_numpy())
    place = {int(r): i for i, r in enumerate(rare)}
    points = space(train[rare], ["age"], ["city"])
    squares = ((points[:, None] - points) ** 2).sum(2)
    np.fill_diagonal(squares, np.inf)
    ages, cities = train["age"].to_list(), train["city"].to_list()
    moved = 0
    for row, base in zip(made.iter_rows(named=True), origin[train.height :], strict=True):
        assert base in place
        limit = np.sort(squares[place[base]])[4]
        near = [int(rare[j]) for j in np.flatnonzero(squares[place[base]] <= limit + 1e-9)]
        if ages[base] is None:
            assert row["age"] is None
        else:
            known = [ages[base], *(ages[j] for j in near if ages[j] is not None)]
            assert min(known) <= row["age"] <= max(known) and row["age"] == round(row["age"])
            moved += row["age"] != ages[base]
        assert row["city"] in {cities[j] for j in near}
    assert moved > 50


def test_votes_are_those_of_a_counter() -> None:
    from collections import Counter

    random = np.random.default_rng(0)
    ids, near = random.integers(0, 3, 50), np.stack([random.permutation(50)[:5] for _ in range(50)])
    won = ids[voted(ids, near, np.arange(50))]
    for i in range(50):
        tally = Counter(ids[near[i]].tolist())
        best = max(tally.values())
        assert tally[int(won[i])] == best
        assert won[i] == next(v for v in ids[near[i]].tolist() if tally[v] == best)


def test_distances_of_mixed_rows_are_the_paper_s() -> None:
    """Two rows that differ in one category and are equal in numbers lie one (median) deviation apart."""
    rows = pl.DataFrame({"a": [0.0, 2.0, 0.0, 2.0], "b": [0.0, 0.0, 8.0, 8.0], "c": ["x", "x", "y", "x"]})
    points = space(rows, ["a", "b"], ["c"])
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(2.0)
    assert np.linalg.norm(points[0] - points[2]) == pytest.approx(np.sqrt(4 + 1))


def test_what_cannot_be_balanced_says_why() -> None:
    splits = people()
    with pytest.raises(DataError, match="needs rows by split; it got rows"):
        balance({"rows": splits["train"]}, "y", KINDS, "over")
    with pytest.raises(Unsupported, match="target of labels, not of kind number"):
        balance(splits, "age", KINDS, "over")
    with pytest.raises(Unsupported, match="expected one of over, under, smote"):
        balance(splits, "y", KINDS, "adasyn")
    with pytest.raises(Unsupported, match="texts or images alone"):
        balance(splits, "y", {"note": "text", "y": "category"}, "smote")
    one = {"train": splits["train"].filter(pl.col("y") == "often")}
    with pytest.raises(DataError, match="needs two"):
        balance(one, "y", KINDS, "over")


def test_a_label_with_one_row_is_copied_with_a_note() -> None:
    train = people()["train"].with_columns(y=pl.when(pl.int_range(pl.len()) == 5).then(pl.lit("single")).otherwise("y"))
    after, notes = balance({"train": train}, "y", KINDS, "smote")
    assert any("single has one training row" in n for n in notes)
    copies = after["train"].filter(pl.col("y") == "single")
    assert copies.height == after["train"]["y"].value_counts()["count"].max() and copies["age"].n_unique() == 1
