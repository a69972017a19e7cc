"""The protocol suites (tests/protocol/*.json) against our server, as anybody could run them; the judge itself is tried with wrong answers."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import modelyard

HERE = Path(__file__).parent / "protocol"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"protocol_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runner = load("runner")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    models = load("models").train(tmp_path_factory.mktemp("protocol"))
    with modelyard.serve(models=models) as server:
        yield runner.Target(server.url)


@pytest.mark.parametrize(("suite", "least"), [("tensorflow_serving", 120), ("open_inference", 200)])
def test_every_vector_is_answered_as_its_protocol_says(target: Any, suite: str, least: int) -> None:
    vectors = runner.vectors(suite)
    asked = {json.dumps({k: v for k, v in vector.items() if k not in ("name", "expect")}) for vector in vectors}
    assert len(asked) >= least
    wrong = {v["name"]: found for v in vectors if (found := target.run(v))}
    assert not wrong, json.dumps(wrong, ensure_ascii=False, indent=1)


def test_the_judge_sees_wrong_answers() -> None:
    expect = {"status": 200, "body": {"predictions": [2.5, {"$each": "$text"}], "outputs": "$absent"}}
    assert runner.judge(expect, 200, b'{"predictions": [2.51, ["a"]], "more": 1}', {}) is None
    for status, raw in (
        (500, b"{}"), (200, b'{"predictions": [2.6, []]}'), (200, b'{"predictions": [2.5, [], 1]}'), (200, b'{"predictions": [2.5, [1]]}'), (200, b"x"),
        (200, b'{"predictions": [2.5, []], "outputs": 1}'), (200, b'{"predictions": [NaN, []]}'), (200, b'{"predictions": [true, []]}'), (200, b"[]"),
    ):  # fmt: skip
        assert runner.judge(expect, status, raw, {}), raw
    binary = {"status": 200, "body": {}, "binary": {"y": ["FP32", [1.0]]}}
    head = b'{"outputs": [{"name": "y", "datatype": "FP32", "parameters": {"binary_data_size": 4}}]}'
    size = {"Inference-Header-Content-Length": str(len(head))}
    assert runner.judge(binary, 200, head + b"\0\0\x80\x3f", size) is None
    for rest in (b"\0\0\x80\x40", b"\0\0\x80\x3f\0", b""):
        assert runner.judge(binary, 200, head + rest, size)
