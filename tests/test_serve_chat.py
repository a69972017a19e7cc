"""OpenAI's routes: the unmodified client, streams, caps, constraints, callers who leave, several models."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.runtime.desk import Desk
from modelyard.runtime.vocabulary import Vocabulary
from modelyard.verbs.chat import Config, Conversation, talk
from modelyard.verbs.serve import Server
from test_serve_page import CHROMIUM, FLAGS
from writers import predicted, writer


@pytest.fixture(scope="module")
def model() -> Any:
    return writer()


@pytest.fixture(scope="module")
def server(model: Any) -> Iterator[Server]:
    with modelyard.serve(model, slots=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(server: Server, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8")
        connection.request("POST", path, raw, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def chat(server: Server, **changes: Any) -> tuple[int, Any]:
    return ask(server, "/v1/chat/completions", {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, **changes})


def idle(server: Server, seconds: float = 10) -> dict[str, int]:
    until = time.monotonic() + seconds
    while (busy := server.service.writing.busy()) and (busy["running"] or busy["waiting"]) and time.monotonic() < until:
        time.sleep(0.01)
    return busy


MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"}]


def test_the_openai_client_chats(client: Any, model: Any) -> None:
    answer = client.chat.completions.create(model="small", messages=MESSAGES, temperature=0, max_tokens=20)
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    ids = predicted(model, prompt, max_tokens=20)
    vocabulary = Vocabulary(model.pipeline.outputs[0].state.tokenizer)
    assert answer.choices[0].message.content == vocabulary.text(ids)
    assert answer.choices[0].message.role == "assistant" and answer.object == "chat.completion"
    assert answer.usage.completion_tokens == len(ids) and answer.usage.prompt_tokens == len(vocabulary.encode(prompt))
    assert answer.choices[0].finish_reason == ("length" if len(ids) == 20 else "stop")
    assert "small" in [m.id for m in client.models.list()]


def test_the_openai_client_streams_the_same_text(client: Any) -> None:
    for settings in ({"temperature": 0}, {"temperature": 0.9, "seed": 7, "top_p": 0.9}):
        whole = client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=30, **settings).choices[0].message.content
        stream = client.chat.completions.create(
            model="small", messages=MESSAGES, max_tokens=30, stream=True, stream_options={"include_usage": True}, **settings
        )  # fmt: skip
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
        assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason in ("length", "stop")
        assert chunks[-1].usage.completion_tokens <= 30 and not chunks[-1].choices


def test_completions_are_those_of_predict(client: Any, model: Any) -> None:
    prompts = ["The cat", "Hello there", "你"]
    answer = client.completions.create(model="small", prompt=prompts, temperature=0, max_tokens=12)
    vocabulary = Vocabulary(model.pipeline.outputs[0].state.tokenizer)
    assert [c.text for c in answer.choices] == [vocabulary.text(predicted(model, p, max_tokens=12)) for p in prompts]
    drawn = client.completions.create(model="small", prompt="The cat", temperature=0.8, seed=3, max_tokens=12, n=2, extra_body={"top_k": 40})
    assert drawn.choices[0].text == vocabulary.text(predicted(model, "The cat", seed=3, temperature=0.8, top_k=40, max_tokens=12))
    assert drawn.choices[0].text != drawn.choices[1].text
    ids = client.completions.create(model="small", prompt=vocabulary.encode("The cat"), temperature=0, max_tokens=12, echo=True)
    assert ids.choices[0].text == "The cat" + answer.choices[0].text


def test_logprobs(client: Any) -> None:
    settings: Any = {"model": "small", "max_tokens": 6, "temperature": 0}
    found = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **settings).choices[0]
    assert len(found.logprobs.content) == 6
    for token in found.logprobs.content:
        assert len(token.top_logprobs) == 3 and token.logprob == token.top_logprobs[0].logprob <= 0
        assert sum(np.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-6
    text = b"".join(bytes(t.bytes) for t in found.logprobs.content).decode("utf-8", "replace")
    assert text == found.message.content
    old = client.completions.create(prompt="The", logprobs=2, **settings).choices[0].logprobs
    assert len(old.tokens) == len(old.token_logprobs) == len(old.top_logprobs) == 6 and all(len(t) == 2 for t in old.top_logprobs)


def test_stops_hold_across_tokens(server: Server) -> None:
    _, whole = chat(server, temperature=0, max_tokens=60)
    text = whole["choices"][0]["message"]["content"]
    for length in (1, 2, 5):
        stop = text[11 : 11 + length]
        _, found = chat(server, temperature=0, max_tokens=60, stop=["never there", stop])
        assert found["choices"][0]["message"]["content"] == text[: text.index(stop)] and found["choices"][0]["finish_reason"] == "stop"


SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
          "required": ["name", "age", "tags"], "additionalProperties": False}  # fmt: skip


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_constrained_answers_validate(client: Any, temperature: float) -> None:
    for seed in range(3):
        settings: Any = {"model": "small", "messages": MESSAGES, "temperature": temperature, "seed": seed, "max_tokens": 70}
        form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
        found = client.chat.completions.create(response_format=form, **settings).choices[0]
        jsonschema.validate(json.loads(found.message.content), SCHEMA)
        assert found.finish_reason == "stop"
        found = client.chat.completions.create(response_format={"type": "json_object"}, **settings).choices[0]
        assert isinstance(json.loads(found.message.content), dict)
        found = client.chat.completions.create(extra_body={"structured_outputs": {"regex": r"(yes|no), \d{2}"}}, **settings).choices[0]
        assert found.message.content[-4:-2] == ", " and found.message.content.split(",")[0] in ("yes", "no")


def test_every_mistake_is_told_at_once(server: Server) -> None:
    status, found = chat(server, temperature=9, n=99, stop=[""], logit_bias={"a": 1}, wrong=1, max_tokens=10**6, top_logprobs=3, stream="yes")
    message = found["error"]["message"]
    assert status == 400 and found["error"]["type"] == "invalid_request_error" and found["error"]["param"] == "wrong"
    for part in ("temperature: got 9", "n: got 99", "stop:", "logit_bias:", "wrong: unknown", "top_logprobs:", "stream:"):
        assert part in message
    for changes, part in [
        ({"max_tokens": 10**6}, "1000000 to write"), ({"messages": []}, "1 to 2000"), ({"messages": [{"role": "user", "content": 5}]}, "expected a text"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "role of"), ({"messages": [{"role": "user", "content": "x" * 10**6}]}, "characters"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer", "minimum": 3}}}}, "minimum"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "max_tokens": 5}, "cannot hold"),
        ({"guided_regex": "(a"}, "without its )"), ({"guided_regex": 5}, "must be a text"), ({"seed": 1.5}, "whole number"),
        ({"stream_options": {"include_usage": True}}, "needs stream"), ({"tool_choice": "required"}, "none or auto"),
    ]:  # fmt: skip
        status, found = chat(server, **changes)
        assert status == 400 and part in found["error"]["message"], (changes, found)
    assert chat(server, model="other")[0] == 404 and chat(server, model="other")[1]["error"]["code"] == "model_not_found"
    status, found = ask(server, "/v1/chat/completions", b"{")
    assert status == 400 and "not JSON" in found["error"]["message"]
    assert ask(server, "/v1/chat/completions", b" " * (5 * 2**20))[0] == 413
    assert ask(server, "/v1/embeddings", {"model": "small", "input": "x"})[0] == 400
    assert ask(server, "/v1/completions", {"model": "small", "prompt": [[10**9]]})[0] == 400
    assert idle(server)["running"] == 0


def test_a_hostile_template_harms_nobody() -> None:
    made = writer(template="{% for i in range(10**9) %}x{% endfor %}")
    with modelyard.serve(made, slots=2) as server:
        status, found = chat(server)
        assert status == 400 and "too much work" in found["error"]["message"]
        assert ask(server, "/v1/completions", {"model": "small", "prompt": "x", "max_tokens": 3})[0] == 200


def test_who_leaves_takes_the_texts_along(server: Server) -> None:
    body = json.dumps({"model": "small", "messages": MESSAGES, "max_tokens": 200, "ignore_eos": True, "n": 3, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    before = idle(server)["written"]
    for stream in (True, False):
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                sent = body if stream else body.replace(b'"stream": true', b'"stream": false')
                connection.sendall(head % len(sent) + sent)
                if stream:
                    assert connection.recv(300)
                else:
                    time.sleep(0.05)
    busy = idle(server)
    assert busy["running"] == busy["waiting"] == 0
    assert busy["written"] - before < 8 * 3 * 200
    assert chat(server)[0] == 200


def test_callers_at_once_get_what_they_get_alone(server: Server) -> None:
    bodies = [{"temperature": 0.7 * (i % 2), "seed": i, "max_tokens": 5 + i, "messages": [{"role": "user", "content": f"Say {i}"}]} for i in range(12)]
    alone = [chat(server, **b)[1]["choices"][0]["message"]["content"] for b in bodies]
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: chat(server, **bodies[i])[1]["choices"][0]["message"]["content"]})) for i in range(12)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [found[i] for i in range(12)] == alone


def test_tokens_and_token_header(model: Any) -> None:
    with modelyard.serve(model, token="secret", slots=2) as server:
        status, found = chat(server)
        assert status == 401 and found["error"]["code"] == "invalid_api_key"
        openai = pytest.importorskip("openai")
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0)
        assert client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=3).usage.completion_tokens <= 3


def test_the_page_talks(tmp_path: Any) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip("chromium is not installed (apt-get install chromium)")
    made = writer(kind="messages")
    with modelyard.serve(made, slots=2) as server, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for options in (
            {"locale": "en-US", "viewport": {"width": 1200, "height": 900}},
            {"locale": "zh-CN", "viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
        ):
            noise: list[str] = []
            context = browser.new_context(**options)
            tab = context.new_page()
            tab.on("console", lambda m, noise=noise: noise.append(m.text) if m.type in ("error", "warning") else None)
            tab.on("pageerror", lambda e, noise=noise: noise.append(str(e)))
            tab.goto(server.url + "/")
            tab.locator("#chat details summary").click()
            tab.fill("input[name=temperature]", "0")
            tab.fill("input[name=max_tokens]", "20")
            tab.fill("#chat-text", "Hi <b>你好</b>")
            tab.press("#chat-text", "Enter")
            tab.wait_for_selector(".bubble.assistant p.small")
            body = {"messages": [{"role": "user", "content": "Hi <b>你好</b>"}], "temperature": 0, "max_tokens": 20, "model": made.name}
            expected = ask(server, "/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]
            said = tab.locator(".bubble.assistant .said").evaluate("e => e.textContent")
            assert said == expected
            assert json.loads(tab.inner_text("#snippet").partition(" -d '")[2].removesuffix("'")) == body
            tab.fill("input[name=max_tokens]", "150")
            decoder = server.service.writing.desk.decoder
            feed, ends = decoder.feed, decoder.ends
            decoder.feed = lambda *a, feed=feed: (time.sleep(0.1), feed(*a))[1]  # type: ignore[method-assign]
            decoder.ends = ()  # so that there is something to stop
            tab.fill("#chat-text", "again")
            tab.locator("#chat-send").click()
            tab.locator("#chat-stop").click()
            tab.wait_for_selector("#chat-send")
            assert idle(server, 5)["running"] == 0  # 150 tokens would take 15 s
            decoder.feed, decoder.ends = feed, ends  # type: ignore[method-assign]
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert (tab.locator("#chat-send").inner_text() == "发送") == (options["locale"] == "zh-CN")
            tab.locator("#chat-new").click()
            assert tab.locator(".bubble").count() == 0
            tab.fill("#chat-text", "x" * 5000)  # more than it reads: a sentence, and the text can be sent again
            tab.locator("#chat-send").click()
            tab.wait_for_selector("#chat-log [role=alert]")
            assert len(tab.input_value("#chat-text")) == 5000
            assert [n for n in noise if "status of 400" not in n] == []
            context.close()
        browser.close()
        assert idle(server)["running"] == 0


def test_talking_in_the_terminal_is_what_the_server_says() -> None:
    made = writer(kind="messages")
    notes: list[str] = []
    config = Config(seed=3, temperature=0.8, top_p=0.9, max_tokens=20, system="Be kind.")
    with modelyard.serve(made, slots=2) as server:
        desk = Desk.of(made, slots=1)
        conversation = Conversation(desk, config)
        said: list[str] = []
        talk(conversation, ["Hello", "And 你好?", "/reset", "/nothing", "Hello", "y" * 3000, "/quit", "never"], said.append, notes.append)
        desk.close()
        turns = [m["content"] for m in conversation.all]
        history: list[dict[str, str]] = [{"role": "system", "content": "Be kind."}]
        for line, answer in zip(turns[:4:2], turns[1:4:2], strict=True):
            history.append({"role": "user", "content": line})
            body = {"messages": history, "seed": 3, "temperature": 0.8, "top_p": 0.9, "max_tokens": 20}
            assert chat(server, **body)[1]["choices"][0]["message"]["content"] == answer
            history.append({"role": "assistant", "content": answer})
    assert "".join(said) == f"{turns[1]}\n{turns[3]}\n{turns[1]}\n" and len(turns) == 6
    assert "anew" in notes[0] and "no command" in notes[1] and "tokens" in notes[2]


def test_a_long_conversation_forgets_its_beginning() -> None:
    made = writer(kind="messages", context=160)
    desk = Desk.of(made, slots=1)
    notes: list[str] = []
    conversation = Conversation(desk, Config(seed=1, max_tokens=30, system="S"))
    for i in range(6):
        conversation.answer(f"Tell me more of number {i}, please", lambda text: None, notes.append)
    desk.close()
    assert any("oldest" in n for n in notes)
    assert conversation.messages[0]["content"] == "S" and conversation.messages[-2]["content"].startswith("Tell me more of number 5")


class Vectors:
    """A model of vectors: what `/v1/embeddings` needs of one."""

    name, version, frame = "vectors", "v", {"name": "rows"}

    def __init__(self, like: Any) -> None:
        from types import SimpleNamespace as Space

        self.pipeline = Space(inputs=like.pipeline.inputs, outputs=[Space(name="vector", kind="vector", state=None)])
        self.graphs: dict[str, Any] = {"main": None}
        self.like, self.manifest = like, like.manifest
        self.signature, self.examples, self.backend = like.signature, [], "torch"

    def encode_rows(self, rows: Any) -> Any:
        return self.like.encode_rows(rows)

    def predict(self, rows: Any, *_: Any) -> Any:
        from modelyard.runtime.answers import Answers

        values = [[float(len(r["prompt"])), 0.5, -1.0] for r in rows]
        return Answers(pl.DataFrame({"vector": pl.Series(values, dtype=pl.List(pl.Float32))}), [], len(rows), "vectors", "v")


def test_embeddings(model: Any) -> None:
    from starlette.testclient import TestClient

    from modelyard.verbs.serve.app import Service

    service = Service(Vectors(model))  # type: ignore[arg-type]
    try:
        test = TestClient(service.app())
        texts = ["Hello", "你好"]
        found = test.post("/v1/embeddings", json={"model": "vectors", "input": texts}).json()
        assert [d["embedding"] for d in found["data"]] == [[5.0, 0.5, -1.0], [2.0, 0.5, -1.0]] and found["usage"]["prompt_tokens"] > 0
        coded = test.post("/v1/embeddings", json={"model": "vectors", "input": texts, "encoding_format": "base64"}).json()["data"][1]["embedding"]
        assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == [2.0, 0.5, -1.0]
        assert test.post("/v1/embeddings", json={"model": "vectors", "input": []}).status_code == 400
        assert test.post("/v1/chat/completions", json={"model": "vectors", "messages": []}).status_code == 400
    finally:
        service.close()
