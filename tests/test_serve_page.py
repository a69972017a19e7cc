"""The try-it page in a real browser: every kind's field, answers, errors, snippets that run when pasted, keyboard, phone."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import modelyard
from modelyard.runtime.model import Model
from modelyard.verbs.serve import Server, page

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "</script><img src=x onerror=alert(1)> it's \"quoted\" \\ 'twice' $HOME `id` !x 😀 \u2028"


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Image, text, number, category and timestamp in; category, number and label set out. One epoch: only the page matters."""
    folder = tmp_path_factory.mktemp("page")
    random = np.random.default_rng(0)
    lines = []
    for i in range(48):
        k = i % 3
        pixels = random.integers(0, 60, (12, 12, 3), dtype=np.uint8)
        pixels[..., k] += 150
        lines.append(
            {
                "photo": base64.b64encode(png(pixels)).decode("ascii"),
                "note": f"{HOSTILE} {['good', 'bad', 'plain'][k]} {i}",
                "age": float(random.integers(18, 80)) if i % 9 else None,
                "plan": ["basic", "it's", "专业版"][k],
                "seen": f"2024-0{1 + k}-11T10:00:00",
                "kind": ["red", "green", "<b>蓝</b>"][k],
                "price": float(10 * k + random.normal()),
                "themes": ["x"] if k == 0 else ["x", "y"],
            }
        )
    (folder / "page.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in lines), encoding="utf-8")
    inputs = {"photo": "image", "note": "text", "age": "number", "plan": "category", "seen": "timestamp"}
    outputs = {"kind": "category", "price": "number", "themes": "label-set"}
    with contextlib.chdir(folder):
        done = modelyard.train({"data": {"path": "page.jsonl", "inputs": inputs, "outputs": outputs}, "train": {"epochs": 1}})
    return Model.load(folder / done.model)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with modelyard.serve(model, name="demo 模型") as running:
        yield running


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Any]:
    """An open page; anything on the console, any error and any request elsewhere fails the test."""
    yield from opened(browser, server.url)


def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    context = browser.new_context(locale="en-US", **options)
    page_ = context.new_page()
    noise: list[str] = []
    page_.on("console", lambda m: noise.append(m.text) if m.type in ("error", "warning") else None)
    page_.on("pageerror", lambda e: noise.append(str(e)))
    page_.on("dialog", lambda d: (noise.append(d.message), d.dismiss()))
    page_.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else noise.append(r.url))
    page_.goto(url + "/")
    yield page_
    context.close()
    assert noise == []


def shell(command: str, **env: str) -> Any:
    """What a shell prints for pasted lines (by its input: an argument would be limited where a paste is not)."""
    done = subprocess.run(["bash"], input=command, capture_output=True, text=True, encoding="utf-8", timeout=60, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def snippets(tab: Any) -> dict[str, str]:
    return tab.evaluate("snippets")  # type: ignore[no-any-return]


def controls(tab: Any, name: str) -> Any:
    return tab.locator(".field", has=tab.locator(f".name:text-is('{name}')"))


def until(tab: Any, expression: str, seconds: float = 20) -> None:
    """Waits until an expression of the page is true. Playwright's own waiting polls by `eval`, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < end, f"still not true after {seconds} s: {expression}"
        tab.wait_for_timeout(50)


def test_the_form_holds_an_example_and_draws_its_answer(tab: Any, model: Model) -> None:
    rows = model.examples
    first = tab.evaluate("row()")
    assert list(first) == list(rows[0]) and first["note"] == (rows[0]["note"] or None) and first["photo"] == rows[0]["photo"]
    shown = [controls(tab, n).locator("input,select,textarea").first.evaluate("e => e.type || e.tagName") for n in first]
    assert shown == ["file", "textarea", "number", "select-one", "datetime-local"]
    tab.click("#another")
    tab.wait_for_selector("#answer .output")
    answer = model.predict([rows[1]]).to_json()[0]
    assert tab.locator("#answer .big").all_text_contents()[0] == answer["kind"]  # markup in a label stays text
    drawn = {b.locator("span").first.text_content(): b.locator("span").last.text_content() for b in tab.locator(".bar").all()}
    for label, score in {**answer["kind.scores"], **answer["themes.scores"]}.items():
        assert abs(float(drawn[label].rstrip(" %")) / 100 - score) < 6e-4
    assert abs(float(tab.locator("#answer .big").nth(1).text_content()) - answer["price"]) < 1e-4 * (1 + abs(answer["price"]))
    assert tab.locator("#answer b").count() == 0


def test_typed_values_reach_the_model_and_errors_stand_at_their_field(tab: Any, tmp_path: Path) -> None:
    photo = tmp_path / "red.png"
    photo.write_bytes(png(np.full((20, 20, 3), (200, 0, 0), np.uint8)))
    controls(tab, "photo").locator("input").set_input_files(photo)
    until(tab, "row().photo.startsWith('data:image/png;base64,')")
    assert base64.b64decode(tab.evaluate("row().photo").partition(",")[2]) == photo.read_bytes()
    assert controls(tab, "photo").locator("img").evaluate("e => e.naturalWidth") == 20
    controls(tab, "age").locator("input").fill("")
    controls(tab, "plan").locator("select").select_option(label="(another value …)")
    controls(tab, "plan").locator("input").fill("never seen")
    controls(tab, "seen").locator("input").fill("2025-03-04T05:06:07")
    controls(tab, "note").locator("textarea").fill("短文本")
    row = tab.evaluate("row()")
    assert (row["age"], row["plan"], row["seen"], row["note"]) == (None, "never seen", "2025-03-04T05:06:07", "短文本")
    tab.click("button[type=submit]:visible")
    tab.wait_for_selector("#answer .output")
    tab.evaluate("fields.get('photo').set(null)")
    tab.click("button[type=submit]:visible")
    note = controls(tab, "photo").locator("[role=alert]")
    note.wait_for(state="visible")
    assert "missing" in note.text_content() and controls(tab, "photo").locator("input").get_attribute("aria-invalid") == "true"
    tab.click("#another")  # a good row takes the error away
    tab.wait_for_selector("#answer .output")
    assert not note.is_visible()


def test_a_dropped_picture_is_taken(tab: Any) -> None:
    data = base64.b64encode(png(np.zeros((5, 7, 3), np.uint8))).decode("ascii")
    tab.evaluate(
        """async (data) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), carried = new DataTransfer();
          carried.items.add(new File([bytes], "a.png", { type: "image/png" }));
          document.querySelector(".drop").dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
        }""",
        data,
    )
    until(tab, "document.querySelector('.drop img').naturalWidth === 7")
    assert tab.evaluate("row().photo") == f"data:image/png;base64,{data}"


def test_snippets_answer_when_pasted(tab: Any, model: Model, tmp_path: Path) -> None:
    controls(tab, "note").locator("textarea").fill(HOSTILE + "\nsecond line ''' \\")
    row = tab.evaluate("row()")
    expected = json.loads(json.dumps(model.predict([row]).to_json()))
    found = snippets(tab)
    assert shell(found["curl"])["predictions"] == expected
    script = tmp_path / "snippet.py"
    script.write_text(found["Python"], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, encoding="utf-8", env={**os.environ, "PYTHONIOENCODING": "utf-8"}
    )
    assert done.stdout.strip() == str(expected), done.stderr
    run = (
        "(async () => { const lines = []; const console = { log: (v) => lines.push(v) }; " + found["JavaScript"] + "\nreturn lines[0]; })()"
    )
    assert tab.evaluate(run) == expected
    # a row beyond what one argument may hold goes by a here-document
    controls(tab, "note").locator("textarea").fill("it's long " * 20_000)
    curl = snippets(tab)["curl"]
    assert "<<'JSON'" in curl and len(tab.locator("#snippet").text_content()) < 4000
    answer = shell(curl)["predictions"]
    assert [a["kind"] for a in answer] == [a["kind"] for a in model.predict([tab.evaluate("row()")]).to_json()]


def test_the_copy_button_and_the_keyboard(browser: Any, server: Server) -> None:
    for tab in opened(browser, server.url, permissions=["clipboard-read", "clipboard-write"]):
        tab.locator("[role=tab]", has_text="curl").focus()
        tab.keyboard.press("ArrowRight")
        assert tab.evaluate("document.activeElement.textContent") == "Python" and tab.locator("#snippet").text_content().startswith(
            "import json"
        )
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        until(tab, "document.getElementById('copy').textContent === 'Copied'")
        assert tab.evaluate("navigator.clipboard.readText()") == snippets(tab)["Python"]
        controls(tab, "age").locator("input").focus()
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#answer .output")
        nameless = """[...document.querySelectorAll("input, select, textarea, button")].filter((e) => !e.hidden && e.offsetParent &&
            !(e.labels && e.labels.length) && !e.getAttribute("aria-label") && !e.getAttribute("aria-labelledby") && !e.textContent.trim())
            .map((e) => e.outerHTML)"""
        assert tab.evaluate(nameless) == []


def test_many_rows_as_lines_and_as_a_table(tab: Any, model: Model) -> None:
    tab.click("#fill-batch")
    lines = tab.locator("#batch").input_value()
    tab.locator("#batch").fill(lines + '\n{"note": 1}')
    tab.click("#run-batch")
    tab.wait_for_selector("#batch-answer table")
    rows = tab.locator("#batch-answer tbody tr").all()
    expected = model.predict(model.examples[:5]).to_json()
    assert len(rows) == 6 and "absent" in rows[5].text_content()
    for shown, answer in zip(rows, expected, strict=False):
        assert shown.locator("td").nth(1).text_content().startswith(answer["kind"])
    with tab.expect_download() as download:
        tab.click("#download")
    saved = [json.loads(text) for text in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]
    assert saved[:5] == json.loads(json.dumps(expected)) and set(saved[5]) == {"error"}
    tab.locator("#batch").fill('{"note": 1}\n{oops')
    tab.click("#run-batch")
    tab.wait_for_selector("#batch-answer [role=alert]")
    assert "line 2 is not JSON" in tab.locator("#batch-answer").text_content()
    table = tab.evaluate("(text) => parseCsv(text)", 'a;b\r\n"x;""y""";2\n;3\n')
    assert table == [{"a": 'x;"y"', "b": "2"}, {"a": None, "b": "3"}]


def test_chinese_themes_and_a_phone(browser: Any, server: Server) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    for tab in opened(browser, server.url, **phone):
        tab.tap("#another")
        tab.wait_for_selector("#answer .output")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        back = "getComputedStyle(document.body).backgroundColor"
        dark = tab.evaluate(back)
        assert max(int(v) for v in dark[4:-1].split(",")) < 64
        tab.tap("#theme")  # light
        assert min(int(v) for v in tab.evaluate(back)[4:-1].split(",")) > 192
        tab.tap("#lang")
        assert (
            tab.locator("button.main").first.text_content() in ("打开", "预测")
            and tab.evaluate("document.documentElement.lang") == "zh-Hans"
        )
        untranslated = tab.evaluate("Object.keys(WORDS.en).filter((k) => !(k in WORDS.zh))")
        assert untranslated == []
        tab.reload()
        assert tab.evaluate("[lang, theme]") == ["zh", "light"]


def test_a_token_opens_the_page_and_stands_in_the_snippets(browser: Any, model: Model) -> None:
    with modelyard.serve(model, token="s3cret-1") as running:
        context = browser.new_context(locale="en-US")
        tab = context.new_page()
        tab.goto(running.url + "/")
        tab.fill("#token", "wrong")
        tab.press("#token", "Enter")
        until(tab, "document.getElementById('token-error').textContent.includes('bearer token')")
        assert not tab.locator("#app").is_visible()
        tab.fill("#token", "s3cret-1")
        tab.press("#token", "Enter")
        tab.wait_for_selector("#fields .field")
        tab.click("button[type=submit]:visible")
        tab.wait_for_selector("#answer .output")
        curl = snippets(tab)["curl"]
        assert "s3cret" not in curl
        expected = json.loads(json.dumps(model.predict(model.examples[:1]).to_json()))
        assert shell(curl, MODELYARD_TOKEN="s3cret-1")["predictions"] == expected
        assert shell(running.curl, MODELYARD_TOKEN="s3cret-1")["predictions"] == expected
        context.close()


def test_label_sets_pixels_and_parameters_have_fields(browser: Any, server: Server, model: Model) -> None:
    """Kinds that this model lacks, by a page whose data was changed on the way."""
    data = page.data(model, "other")
    plain = {"labels": None, "open": False, "range": None, "required": True}
    few, many = {"name": "few", "kind": "label-set"}, {"name": "many", "kind": "label-set"}
    data["signature"]["inputs"] = [
        plain | few | {"labels": ["a, b", "c"]},
        plain | many | {"labels": [str(i) for i in range(99)]},
        plain | {"name": "grey", "kind": "image"},
        plain | {"name": "group", "kind": "cluster"},
    ]
    data["signature"]["params"] = [
        {"name": "beam", "type": "int", "default": 4, "low": 1, "high": 8, "choices": None, "doc": "Width."},
        {"name": "mode", "type": "str", "default": "b", "low": None, "high": None, "choices": ["a", "b"], "doc": ""},
    ]
    data["examples"] = [{"few": ["c"], "many": ["1", "2"], "grey": [[0, 255], [255, 0], [9, 9]], "group": 3}]
    context = browser.new_context(locale="en-US")
    tab = context.new_page()
    tab.route(server.url + "/", lambda route: route.fulfill(body=page.html("other", data), content_type="text/html"))
    tab.goto(server.url + "/")
    assert tab.evaluate("row()") == data["examples"][0]
    tab.get_by_label("a, b").check()
    controls(tab, "many").locator("textarea").fill("x, y\n\n z ")
    assert tab.evaluate("[row().few, row().many]") == [["a, b", "c"], ["x, y", "z"]]
    controls(tab, "grey").locator("img").evaluate("e => e.decode()")
    assert controls(tab, "grey").locator("img").evaluate("e => [e.naturalWidth, e.naturalHeight]") == [2, 3]
    assert "params" not in tab.evaluate("body([])")
    tab.click("#params summary")
    controls(tab, "beam").locator("input").fill("6")
    assert tab.evaluate("body([]).params") == {"beam": 6}
    context.close()


def test_the_page_is_closed_to_markup_and_to_other_sites(server: Server, model: Model) -> None:
    import urllib.request

    with urllib.request.urlopen(server.url + "/") as response:
        text, policy = response.read().decode("utf-8"), response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "<img" not in text and text.count("</script>") == 5 and "demo 模型" in text
    for name in page.FILES:
        found = page.static(name)
        assert found is not None and b"http://" not in found[0].replace(b"http://www.w3.org", b"") and b"https://" not in found[0]
    assert "<img" not in page.html("{{data}}<img src=x onerror=alert(1)>", None)


def test_the_python_curl_line_answers(server: Server, model: Model) -> None:
    expected = json.loads(json.dumps(model.predict(model.examples[:1]).to_json()))
    assert shell(server.curl)["predictions"] == expected
    body = json.dumps({"instances": [{**model.examples[0], "note": "it's long " * 20_000}]}, ensure_ascii=False)
    long = page.curl(server.url + server.service.path, body, token=False)
    assert "<<'JSON'" in long and len(shell(long)["predictions"]) == 1
