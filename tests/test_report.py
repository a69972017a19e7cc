"""The report of a run: complete, one file without network, small, escaped, in both languages."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from modelyard.errors import ArtefactError, UsageError
from modelyard.metrics import Predicted, baseline, evaluate_output, picture_data
from modelyard.options import Options
from modelyard.verbs.report import Report, plain, run, write_report
from modelyard.verbs.report._words import WORDS, words
from modelyard.verbs.report.page import render, sort_slices

LABELS = ["咨询", "投诉", "<b>退货</b>"]


def evaluation(images=12, size=200):
    """A three-class output and a number, with everything a report can show."""
    rng = np.random.default_rng(0)
    y, ids = rng.integers(0, 3, 400), rng.integers(0, 3, 400)
    p = rng.dirichlet(np.ones(3), 400)
    p[np.arange(400), y] += 0.3
    p /= p.sum(1, keepdims=True)
    guess = baseline("category", ids, 400, labels=LABELS)
    x = rng.normal(size=400)
    picture = "data:image/png;base64," + base64.b64encode(bytes(size)).decode()
    return {
        "test": {
            "意图": {
                "kind": "category",
                "metrics": evaluate_output("category", y, p, labels=LABELS),
                "baseline": evaluate_output("category", y, guess, labels=LABELS),
                "pictures": picture_data("category", y, Predicted(scores=p), labels=LABELS),
                "worst": [
                    {"row": i, "inputs": {"照片": f'<img src="{picture}" alt="">', "文本": "<span>你好</span>"},
                     "truth": LABELS[2], "prediction": "投诉", "confidence": 0.9}
                    for i in range(images)
                ],
                "slices": [
                    {"slice": "北京", "rows": 30, "metric": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95,
                    "better": "higher"},
                    {"slice": "上海", "rows": 20, "metric": "accuracy", "value": 0.4, "low": 0.2, "high": 0.6,
                    "better": "higher"},
                ],
            },
            "天数": {
                "kind": "number", "metrics": evaluate_output("number", x, x + 0.1),
                "baseline": evaluate_output("number", x, baseline("number", x, 400)),
                "pictures": picture_data("number", x, Predicted(values=x + 0.1)),
            },
        }
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    facts = {
        "name": "客服 & <script>alert(1)</script>", "model": {"task": "classification", "parameters": 123456},
        "gate": [{"metric": "test.意图.accuracy", "value": 0.8, "limit": ">= 0.99", "passed": False}],
        "data": {
            "rows_in": 1001, "rows": {"train": 600, "test": 400}, "balance": {"意图": {"咨询": 3, "投诉": 2}},
            "set_aside": [{"file": "a.csv", "line": 7, "column": "y", "reason": "no number", "value": "<x>"}],
        },
        "argv": ["train", "data=a.csv"], "machine": {"cores": 2, "versions": {"numpy": "2"}},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    events = [
        {"epoch": i, "train_loss": 1 / (i + 1), "valid": {"accuracy": i / 10}, "lr": 0.1, "best": i == 3}
        for i in range(5)
    ]
    lines = [json.dumps(e) for e in events] + ['{"epoch": 5, "tra']  # cut short by a kill
    (tmp_path / "events.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "config.yaml").write_text("target: 意图  # command line\n", encoding="utf-8")
    return tmp_path


class Page(HTMLParser):
    """Collects the text, the loading attributes and the stack of open tags."""

    VOID = frozenset(("meta", "img", "br", "rect", "circle", "line", "polygon"))

    def __init__(self, html):
        super().__init__()
        self.loads, self.words, self.open, self.tags = [], [], [], set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loads += [
            v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "srcset", "data", "poster")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_is_whole_and_loads_nothing(folder, lang):
    html = write_report(folder, evaluation(), lang=lang).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == [] and not page.tags & {"script", "link", "iframe", "object", "base"}
    assert all(load.startswith(("#", "data:")) for load in page.loads)
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html
    assert 'name="viewport"' in html and ('lang="zh-Hans"' in html) == (lang == "zh")
    text = " ".join(page.words)
    for needed in (
        "客服",
        "咨询",
        "天数",
        "上海",
        "a.csv",
        "target: 意图",
        "1,001",
        "123,456",
        "modelyard train data=a.csv",
    ):
        assert needed in text, needed
    say = words(lang)
    for key in ("gate_failed", "better_than_baseline", "worst_rows", "learning_curve", "roc", "residuals", "set_aside"):
        assert say(key) in text, key
    assert text.index("上海") < text.index("北京")  # the worst slice comes first
    assert "<script>alert" not in html and "<b>退货" not in html and "&lt;b&gt;退货" in html


def test_numbers_on_the_page_are_those_of_the_evaluation(folder):
    found = evaluation()
    html = write_report(folder, found).read_text(encoding="utf-8")
    accuracy = found["test"]["意图"]["metrics"]["accuracy"]
    assert f'<div class="big">{accuracy["value"]:.4f}'.rstrip("0") in html and f"[{accuracy['low']:.4f}"[:6] in html
    assert f"{found['test']['意图']['baseline']['accuracy']['value']:.4f}".rstrip("0") in html


def test_plots_come_with_their_data(folder):
    result = run(model=write_report(folder, evaluation()).parent)
    assert result.report.endswith("report.html") and result.bytes > 10_000
    names = {p.split("/")[-1] for p in result.plots}
    assert {"learning_curve.svg", "test.意图.confusion.svg", "test.天数.residuals.svg"} <= names
    data = json.loads((folder / "plots" / "test.意图.confusion.json").read_text(encoding="utf-8"))
    assert np.sum(data["matrix"]) == 400
    svg = (folder / "plots" / "test.意图.confusion.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg ") and "咨询" in svg


def test_making_the_report_again_gives_the_same_page_and_keeps_the_run(folder):
    first = write_report(folder, evaluation()).read_bytes()
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    (folder / "model").mkdir()
    assert run(model=folder / "model").bytes == len(first)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert run(model=folder, options=Options(lang="zh")).report.endswith("report.zh.html")


def test_the_page_stays_below_five_megabytes_and_says_what_is_missing(folder):
    path = write_report(folder, evaluation(images=48, size=200_000))
    assert path.stat().st_size < 5_000_000
    assert "left out to keep this page small" in path.read_text(encoding="utf-8")


def test_a_run_with_metrics_only_is_shown(folder):
    metrics = {"test": {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}}}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    html = (folder / run(model=folder).report).read_text(encoding="utf-8")
    assert "[0.8, 0.95]" in html


def test_undefined_metrics_and_empty_reports_do_not_break_the_page():
    zeros = np.zeros(5, np.int64)
    found = {"valid": {"y": {"kind": "category", "metrics": evaluate_output("category", zeros, zeros, ["f1"])}}}
    html = render(Report("x", evaluation=found))
    assert "not defined: " in html and "NaN" not in html and "nan" not in html
    assert Page(render(Report("x"))).open == []


def test_not_better_than_the_baseline_is_said():
    found = {"value": 0.6, "low": 0.5, "high": 0.7, "better": "higher"}
    base = {"value": 0.55, "low": 0.5, "high": 0.6, "better": "higher"}
    html = render(
        Report("x", evaluation={"test": {"y": {"metrics": {"accuracy": found}, "baseline": {"accuracy": base}}}})
    )
    assert "not clearly better" in html
    lower = {"value": 0.2, "low": 0.1, "high": 0.3, "better": "lower"}
    worse = {"test": {"y": {"metrics": {"rmse": lower}, "baseline": {"rmse": {**lower, "value": 0.05}}}}}
    assert "worse than the trivial" in render(Report("x", evaluation=worse))


def test_slices_are_sorted_by_the_direction_of_their_metric():
    up = [{"slice": s, "value": v, "better": "higher"} for s, v in (("a", 0.5), ("b", None), ("c", 0.1))]
    assert [s["slice"] for s in sort_slices(up)] == ["c", "a", "b"]
    assert [s["slice"] for s in sort_slices([{**s, "better": "lower"} for s in up])] == ["a", "c", "b"]


def test_damaged_and_missing_runs_are_refused_with_a_sentence(folder, tmp_path_factory):
    (folder / "samples").mkdir()
    (folder / "samples" / "evaluation.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtefactError, match="damaged"):
        run(model=folder)
    with pytest.raises(ArtefactError, match="no run"):
        run(model=tmp_path_factory.mktemp("empty"))
    with pytest.raises(UsageError, match="expected one of en, zh"):
        write_report(folder, {}, lang="de")


def test_both_languages_have_every_word_with_the_same_blanks():
    blanks = re.compile(r"\{\w+\}")
    for key, (english, chinese) in WORDS.items():
        assert english and chinese and set(blanks.findall(english)) == set(blanks.findall(chinese)), key


def test_plain_makes_json_of_numpy_and_of_what_json_cannot_say():
    found = plain({1: np.float32(0.5), "a": [np.nan, float("inf"), np.arange(2)], "b": (True, None, np.int64(3))})
    assert json.dumps(found, allow_nan=False) == '{"1": 0.5, "a": [null, null, [0, 1]], "b": [true, null, 3]}'


def test_pictures_of_long_and_of_like_names_have_files_of_their_own() -> None:
    """A file name holds 255 bytes, and what no file name may hold becomes a dash."""
    from modelyard.verbs.report import _stem

    assert _stem("valid.price.residuals") == "valid.price.residuals"
    names = {_stem(f"valid.{'价' * n}.residuals") for n in range(80, 90)}
    assert len(names) == 10 and all(len(n.encode("utf-8")) < 160 and n.endswith(".residuals") for n in names)
    assert _stem("valid.a/b.roc") == _stem("valid.a-b.roc") != _stem("valid.a-b.roc", always=True) != _stem("valid.a/b.roc", always=True)
