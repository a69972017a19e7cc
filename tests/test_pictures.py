"""Pictures: valid SVG, marks where the data says, text as text, few marks for much data."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from modelyard.metrics import Predicted, picture_data
from modelyard.metrics._pictures import calibration, lengths, points
from modelyard.verbs.report._board import board_rows, failed_rows
from modelyard.verbs.report._svg import Plot, number, shorten, ticks, width_of
from modelyard.verbs.report._words import words
from modelyard.verbs.report.pictures import PICTURES, draw, learning_data, standalone

SVG = "{http://www.w3.org/2000/svg}"


def everything(n=500, k=3, labels=("猫", "狗 & <鸟>", "a very long class name that cannot fit anywhere")):
    """Data for every picture there is."""
    rng = np.random.default_rng(0)
    y, p, x = rng.integers(0, k, n), rng.dirichlet(np.ones(k), n), rng.normal(size=n)
    clusters = Predicted(labels=rng.integers(-1, 3, n), features=rng.normal(size=(n, 4)))
    item = {"name": "列", "value": -0.1, "low": -0.2, "high": 0.1}
    axes = {"train.lr": {"log": True, "values": []}, "model.名": {"log": False, "values": ["a<b", [64, 64]]}}
    trials = [
        {"trial": i, "params": {"train.lr": 10.0 ** -(i % 4), "model.名": ["a<b", [64, 64]][i % 2]}, "state": s, "value": v, "epochs": 1, "of": 3,
         "seconds": 0.1, "reason": "" if v else "no & never"}
        for i, (s, v) in enumerate([("complete", 0.5), ("pruned", 0.9), ("failed", None), ("complete", 0.4), ("complete", 70.0)])
    ]  # fmt: skip
    search = {"metric": "log_loss", "better": "lower", "best": 3, "axes": axes, "trials": trials}
    events = [{"epoch": i, "train_loss": 10.0**-i, "valid": {"loss": None, "f1": 0.5}, "lr": 0.1} for i in range(4)]
    return {
        **picture_data("category", y, Predicted(scores=p), labels=labels),
        **picture_data("number", x, Predicted(values=x + 1)),
        **picture_data("cluster", None, clusters),
        **learning_data(events),
        "leaderboard": {"metric": "rmse", "better": "lower", "entries": [
            {"model": f"{i:02d}-列 <trees>", "weight": 0.5 if i else 0.0, "value": 1.0 + i, "low": 0.5 if i else math.nan, "high": 2.0} for i in range(30)
        ]},
        "pareto": {
            "metric": "accuracy", "better": "higher", "limit": 0.9,
            "points": [
                {"stage": s, "accepted": a, "value": v, "bytes": b, "milliseconds_1": 0.1}
                for s, a, v, b in (("model", None, 0.95, 90_000), ("prune", False, 0.8, 40_000), ("quantise", True, 0.94, 25_000), ("distil", False, 0, None))
            ],
        },
        "sensitivity": {
            "metric": "accuracy", "better": "higher", "limit": 0.9,
            "layers": [
                {"name": "table.body.0 <a>", "shares": [0, 0.25, 0.5, 0.75], "values": [0.95, 0.94, 0.9, 0.7]},
                {"name": "列", "shares": [0, 0.25, 0.5, 0.75], "values": [0.95, None, math.nan, 0.9]},
            ],
        },
        "search_history": search,
        "search_settings": search,
        "metrics": {"items": [{**item, "name": "f1", "value": 0.5, "baseline": math.nan}]},
        "importance": {"items": [item, {**item, "value": 0.3, "low": None}]},
        "balance": {"labels": labels, "counts": [5, 0, 9]},
        "lengths": lengths(rng.poisson(30, n)),
        "groups_tried": {"by": "silhouette", "groups": 3, "cells": None, "tried": {"2": 0.31, "3": 0.52, "4": 0.4, "10": -0.1}},
        "reliability": {"split": "test", "error": {"before": 0.2, "after": 0.01}, "before": calibration(y, p), "after": calibration(y, p)},
        "coverage": {"promised": 0.9, "coverage": 0.91, "low": 0.88, "high": 0.93, "rows": n},
    }


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_picture_is_valid_named_and_keeps_text_as_text(name, lang):
    svg = draw(name, everything()[name], words(lang))
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    assert root.find(f"{SVG}title").text == words(lang)(name) and root.find(f"{SVG}desc").text
    assert not re.search(r"\b(nan|-?inf)\b", svg)
    width, height = map(float, root.get("viewBox").split()[2:])
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.get("x")) <= width and 0 <= float(element.get("y")) <= height
    for element in root.iter(f"{SVG}rect"):
        assert float(element.get("x")) + float(element.get("width")) <= width + 1
    assert ElementTree.fromstring(standalone(svg)).find(f"{SVG}style") is not None


def test_class_names_are_escaped_and_cut_with_the_whole_name_on_hover():
    svg = draw("confusion", everything()["confusion"], words("zh"))
    texts = ["".join(t.itertext()) for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "猫" in texts and any("狗 & <鸟>" in t for t in texts)
    assert any("…" in t and "a very long class name that cannot fit anywhere" in t for t in texts)


def test_the_confusion_matrix_shows_every_count_up_to_40_classes_and_none_at_150():
    rng = np.random.default_rng(1)
    for k, digits in ((2, True), (40, True), (150, False)):
        y = np.append(np.arange(k), rng.integers(0, k, 3000))
        found = np.where(rng.random(len(y)) < 0.8, y, rng.integers(0, k, len(y)))
        data = picture_data("category", y, Predicted(labels=found), labels=[f"L{i}" for i in range(k)])["confusion"]
        root = ElementTree.fromstring(draw("confusion", data))
        written = sorted(t.text for t in root.iter(f"{SVG}text") if t.text.replace(",", "").isdigit())
        counts = sorted(f"{v:,}" for row in data["matrix"] for v in row if v)
        assert written == (counts if digits else [])
        assert len(list(root.iter(f"{SVG}rect"))) == len(counts) + 1
        worst = max((v, f"L{i} → L{j}") for i, row in enumerate(data["matrix"]) for j, v in enumerate(row) if i != j)
        assert f"({worst[0]})" in root.find(f"{SVG}desc").text


def test_200_000_rows_give_small_pictures_that_say_how_many():
    rng = np.random.default_rng(2)
    n = 200_000
    y, s, x = rng.integers(0, 2, n), rng.random(n), rng.normal(size=n)
    data = {
        **picture_data("category", y, Predicted(scores=s)),
        **picture_data("number", x, Predicted(values=x + rng.normal(size=n))),
        **picture_data("cluster", None, Predicted(labels=y, features=rng.normal(size=(n, 3)))),
    }
    for name, one in data.items():
        svg = draw(name, one)
        assert len(svg) < 200_000, name
        marks = svg.count("<rect") + svg.count("<polygon") + svg.count("h0") + len(re.findall(r"L\d", svg))
        assert marks <= 2500, (name, marks)
    assert "200,000 rows counted in hexagons" in draw("residuals", data["residuals"])
    assert "2,000 of 200,000 rows" in draw("clusters", data["clusters"])


def test_hexagons_hold_every_row_near_its_place():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=5000), rng.normal(size=5000) * 7 + 100
    cells = points(x, y)
    assert sum(cells["count"]) == 5000 and len(cells["count"]) <= 2000
    weights = np.array(cells["count"]) / 5000
    assert np.array(cells["x"]) @ weights == pytest.approx(x.mean(), abs=cells["radius"][0] / 5)
    assert np.array(cells["y"]) @ weights == pytest.approx(y.mean(), abs=cells["radius"][1] / 5)
    near = np.min(np.abs(x[:200, None] - cells["x"]) + 0 * y[:200, None], axis=1)
    assert near.max() <= cells["radius"][0] * 1.01


def test_curves_end_where_they_must_and_thinning_keeps_the_area():
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 20_000)
    s = y * 0.5 + rng.random(20_000)
    data = picture_data("category", y, Predicted(scores=np.clip(s / 1.5, 0, 1)))
    roc, pr = data["roc"]["curves"][0], data["pr"]["curves"][0]
    assert (roc["x"][0], roc["y"][0], roc["x"][-1], roc["y"][-1]) == (0, 0, 1, 1) and len(roc["x"]) <= 201
    assert np.trapezoid(roc["y"], roc["x"]) == pytest.approx(roc["value"], abs=2e-3)
    assert pr["x"][-1] == 1 and np.trapezoid(pr["y"], pr["x"]) == pytest.approx(pr["value"], abs=5e-3)


def test_calibration_and_score_pictures_count_every_row():
    data = everything(n=777)
    assert sum(b["count"] for b in data["calibration"]["bins"]) == 777
    assert sum(sum(s["counts"]) for s in data["scores"]["series"]) == 777
    assert sum(data["lengths"]["series"][0]["counts"]) + data["lengths"]["beyond"] == 777


def test_learning_data_reads_nested_and_flat_events_and_the_best_epoch():
    events = [
        {"event": "start", "rows": 10},
        {"epoch": 1, "train_loss": 2.0, "valid": {"loss": 1.5, "accuracy": {"value": 0.5}}, "lr": 0.1, "seconds": 3},
        {"epoch": 2, "train_loss": 1.0, "valid": {"loss": 1.2, "accuracy": {"value": 0.7}}, "lr": 0.05, "best": True},
    ]
    data = learning_data(events)
    assert [s["label"] for s in data["learning_curve"]["series"]] == ["train_loss", "valid.loss"]
    assert data["metric_curve"]["series"] == [{"label": "valid.accuracy", "y": [0.5, 0.7]}]
    assert data["rate_curve"]["series"][0]["y"] == [0.1, 0.05] and data["metric_curve"]["best"] == 2
    assert learning_data(events[:2]) == {}  # one point is no curve


def test_axes_place_data_and_round_ticks():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1] and ticks(-7, 93) == [0, 20, 40, 60, 80]
    assert ticks(5, 5) == [5]
    plot = Plot("t", (0, 10), (1, 1000), log_y=True)
    assert plot.px(0) == plot.left and plot.px(10) == plot.right
    assert plot.py(math.sqrt(1000)) == pytest.approx((plot.top + plot.bottom) / 2)
    flat = Plot("t", (3, 3), (math.nan, math.inf))
    assert flat.left < flat.px(3) < flat.right and math.isfinite(flat.py(0.5))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"), (0.93121, "0.9312"), (12345, "12,345"), (1.5, "1.5"), (1e-6, "1.00e-06"), (math.nan, "—"),
        (-0.25, "-0.25"), (143.49, "143.5"), (99999.4, "99,999"), (-1e9, "-1.00e+09"),
    ],
)  # fmt: skip
def test_numbers_are_short_for_people(value, shown):
    assert number(value) == shown


def test_chinese_takes_the_room_it_needs():
    assert width_of("猫猫") > width_of("abc") and width_of(shorten("很长的一个类别名称", 60)) <= 60
    assert shorten("short", 100) == "short"


def test_the_chosen_number_of_groups_is_marked_where_it_was_best():
    data = {"by": "silhouette", "groups": 3, "cells": None, "tried": {"2": 0.31, "3": 0.52, "4": 0.4, "10": -0.1}}
    svg = draw("groups_tried", data)
    plot = Plot("", (2, 10), (-0.1 - 0.62 * 0.08, 0.52 + 0.62 * 0.08), x_label="x", y_label="y", height=280, legend_rows=1)
    assert f"M{plot.px(3):.1f} {plot.py(0.52):.1f}h0" in svg and "chosen: 3 (0.52)" in svg and "10: -0.1" in svg
    cells = draw("groups_tried", {"by": "cells", "groups": 5, "cells": 8, "tried": {"4": 0.1, "8": 0.3, "16": 0.2}})
    assert "chosen: 8 (0.3)" in cells  # of cells along a direction, not of groups


def test_coverage_lies_where_it_was_measured():
    svg = draw("coverage", {"promised": 0.9, "coverage": 0.75, "low": 0.7, "high": 0.8, "rows": 100})
    at = lambda v: 16 + 408 * (v - 0.55) / 0.45  # noqa: E731 (0.55: half an interval below the lowest mark)
    assert f'cx="{at(0.75):.1f}"' in svg and f'x1="{at(0.9):.1f}"' in svg and "promised 0.9" in svg and "[0.7, 0.8]" in svg


def test_a_candidate_that_failed_is_listed_with_its_reason_and_no_other():
    scores = {"y": {"value": 0.9, "low": 0.8, "high": 0.95, "metric": "f1"}}
    told = [
        {"model": "00-trees", "scores": scores, "weight": 1.0, "fit_seconds": 2.0, "settings": {"lr": 0.1}},
        {"model": "01-<net>", "reason": "no & never", "fit_seconds": 0.5},
    ]
    _, good = board_rows(told, words("en"))
    head, bad = failed_rows(told, words("zh"))
    assert [row[0] for row in good] == ["00-trees"] and [row[:2] for row in bad] == [["01-&lt;net&gt;", "no &amp; never"]] and len(head) == len(bad[0])


def test_a_setting_alone_has_a_picture_that_fits_a_phone():
    data = everything()["search_settings"]
    one = draw("search_settings", {**data, "axes": {"train.lr": data["axes"]["train.lr"]}})
    assert 'viewBox="0 0 440 ' in one and "min-width" not in one and "train.lr" in one and "model." not in one
    assert "min-width" in draw("search_settings", {**data, "axes": {f"model.{i}": data["axes"]["train.lr"] for i in range(4)}})
