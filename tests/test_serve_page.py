"""The try-it page in a real browser: fields, examples, upload, batch, languages, snippets; and the report of the run."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import modelyard
from modelyard.verbs.serve import serve

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

SWITCHES = ("--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync").split()
SIZES = {"desktop": (1200, 900), "phone": (390, 844)}
SIDE = 12


def customers() -> tuple[pl.DataFrame, str]:
    """Chinese names, labels and a quote; half of the leavers are young."""
    rows = [{"年龄": 18 + i % 60, "月收入": 4000.0 + 37 * i if i % 9 else None, "城市": ("北京", "上海", "O'Neill")[i % 3], "流失": "是" if i % 60 < 25 else "否"} for i in range(240)]
    return pl.DataFrame(rows), "流失"


def shapes() -> tuple[pl.DataFrame, str]:
    """Horizontal and vertical bars on noise, as pixels."""
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 60, (120, SIDE, SIDE), dtype=np.uint8)
    for i in range(120):
        at = chance.integers(1, SIDE - 3)
        pixels[(i, slice(at, at + 2)) if i % 2 else (i, slice(None), slice(at, at + 2))] = 230
    return pl.DataFrame({"image": pl.Series("image", pixels), "shape": ["lying" if i % 2 else "standing" for i in range(120)]}), "shape"


def reviews() -> tuple[pl.DataFrame, str]:
    """Short texts with a word that decides."""
    chance = np.random.default_rng(1)
    words = "the room was near station and we stayed two nights there".split()
    rows = []
    for i in range(160):
        text = " ".join([*chance.choice(words, 9), ("wonderful", "dreadful")[i % 2], str(i)])
        rows.append({"review": text, "mood": ("good", "bad")[i % 2]})
    return pl.DataFrame(rows), "mood"


CASES = {"customers": (customers, {"model": "linear"}), "shapes": (shapes, {"model": "cnn", "train.epochs": 4}), "reviews": (reviews, {"model": "linear"})}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each case."""
    base = tmp_path_factory.mktemp("page")
    here = Path.cwd()
    os.chdir(base)
    try:
        for name, (data, settings) in CASES.items():
            frame, target = data()
            modelyard.train(settings, data=frame, target=target, name=name, quiet=True)
    finally:
        os.chdir(here)
    return {name: next(base.glob(f"runs/{name}-*")) for name in CASES}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        yield running
        running.close()


def visit(browser: Any, url: str, size: str, lang: str = "en-US") -> tuple[Any, list[str]]:
    """(page, complaints of the browser: errors, refused loads)."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, locale=lang)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(8000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    return page, complaints


def overflow(page: Any) -> int:
    """Pixels that the page is wider than the screen."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_predict_and_another_example(runs: dict[str, Path], browser: Any, name: str, size: str) -> None:
    with serve(runs[name] / "model") as server:
        page, complaints = visit(browser, server.url, size)
        target = server.model.signature.outputs[0].name
        for i in (0, 1):
            if i:
                page.click("[data-say=another]")
            else:
                page.click("button.main")
            own = server.model.predict([server.model.examples[i]]).to_json()[0]
            page.wait_for_function("t => document.querySelector('#answer .big')?.textContent === t", arg=own[target])
            best = max(own[f"{target}.scores"].values())
            assert page.inner_text("#answer .bar span:last-child") == f"{100 * best:.1f} %"
        assert overflow(page) <= 0 and complaints == []
        if name == "shapes":
            assert page.evaluate("document.querySelector('.preview').naturalWidth") == SIDE
        page.context.close()


def test_batch_shows_every_row_and_its_mistakes(runs: dict[str, Path], browser: Any) -> None:
    with serve(runs["customers"] / "model") as server:
        page, complaints = visit(browser, server.url, "phone")
        page.fill("#batch", '年龄,月收入,城市\n20,5000,"北京"\nold,1,上海\n70,,O\'Neill\n')
        page.click("#run-batch")
        page.wait_for_selector("#batch-answer table")
        lines = page.locator("#batch-answer tr").all_inner_texts()
        rows = [{"年龄": 20, "月收入": 5000, "城市": "北京"}, {"年龄": 70, "月收入": None, "城市": "O'Neill"}]
        own = server.model.predict(rows).to_json()
        assert len(lines) == 4 and own[0]["流失"] in lines[1] and own[1]["流失"] in lines[3]
        assert "年龄" in lines[2] and "not a finite number" in lines[2]
        page.fill("#batch", json.dumps(rows[0], ensure_ascii=False) + "\n{oops")
        page.click("#run-batch")
        page.wait_for_selector("#batch-answer .bad")
        assert overflow(page) <= 0 and complaints == []
        page.context.close()


def test_a_bad_field_is_explained_where_the_answer_would_be(runs: dict[str, Path], browser: Any) -> None:
    with serve(runs["shapes"] / "model") as server:
        page, _ = visit(browser, server.url, "desktop")
        page.set_input_files("input[type=file]", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
        page.wait_for_function("document.querySelector('.preview').src.startsWith('data:')")
        page.click("button.main")
        page.wait_for_selector("#answer .bad")
        assert "image" in page.inner_text("#answer .bad")
        page.context.close()


def test_an_uploaded_picture_is_predicted(runs: dict[str, Path], browser: Any) -> None:
    pixels = np.full((SIDE, SIDE), 20, np.uint8)
    pixels[5:7] = 230
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    with serve(runs["shapes"] / "model") as server:
        own = server.model.predict([{"image": pixels.tolist()}]).to_json()[0]
        page, complaints = visit(browser, server.url, "phone")
        page.set_input_files("input[type=file]", {"name": "bar.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
        page.wait_for_function("document.querySelector('#snippet').textContent.includes('data:image/png')")
        page.click("button.main")
        page.wait_for_selector("#answer .big")
        assert page.inner_text("#answer .big") == own["shape"] and complaints == []
        assert page.inner_text("#answer .bar span:last-child") == f"{100 * max(own['shape.scores'].values()):.1f} %"
        page.context.close()


def test_both_languages(runs: dict[str, Path], browser: Any) -> None:
    with serve(runs["customers"] / "model") as server:
        page, _ = visit(browser, server.url, "phone", "zh-CN")
        assert page.inner_text("button.main") == "预测" and page.get_attribute("html", "lang") == "zh-Hans"
        assert page.get_attribute("input[type=number]", "placeholder") == "（缺失）"
        page.click("#lang")
        assert page.inner_text("button.main") == "Predict" and page.get_attribute("html", "lang") == "en"
        assert page.get_attribute("input[type=number]", "placeholder") == "(missing)"
        left = [t for t in page.locator("[data-say]").all_inner_texts() if any("\u4e00" <= c <= "\u9fff" for c in t)]
        assert left == []
        page.context.close()


@pytest.mark.parametrize("name", CASES)
def test_what_is_copied_runs(runs: dict[str, Path], browser: Any, name: str) -> None:
    with serve(runs[name] / "model") as server:
        page, _ = visit(browser, server.url, "desktop")
        quoted = next((i for i, e in enumerate(server.model.examples) if e.get("城市") == "O'Neill"), 0)
        for _ in range(quoted):
            page.click("[data-say=another]")
        own = server.model.predict([server.model.examples[quoted]]).to_json()[0]
        for tab, command in (("curl", ["sh", "-c"]), ("Python", [shutil.which("python3") or "python", "-c"])):
            page.click(f".tabs button:has-text('{tab}')")
            page.click("#copy")
            code = page.evaluate("navigator.clipboard.readText()")
            done = subprocess.run([*command, code], capture_output=True, text=True, timeout=30, check=True)
            target = server.model.signature.outputs[0].name
            assert own[target] in done.stdout, (tab, done.stdout, done.stderr)
        page.context.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_the_report_loads_nothing_and_fits_the_screen(runs: dict[str, Path], browser: Any, name: str, size: str) -> None:
    path = runs[name] / "report.html"
    page, complaints = visit(browser, path.resolve().as_uri(), size)
    assert complaints == [] and overflow(page) <= 0
    assert path.stat().st_size < 5_000_000
    assert page.locator("h1").inner_text().startswith(name)
    requests = page.evaluate("performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))")
    assert requests == []
    cut = page.evaluate("[...document.querySelectorAll('svg text')].filter(t => { const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect(); return a.width && (a.left < b.left - 2 || a.right > b.right + 2) }).map(t => t.textContent)")
    assert cut == []
    page.context.close()
