"""The proof of the chat server for `make prove`: callers who leave, and requests that ask for too much.

    python tests/crash/prove_chat.py                                  # 1,000 disconnects, 2,000 hostile requests
    python tests/crash/prove_chat.py --disconnects 100 --hostile 200 --seed 3

A model of random weights is served on this machine. Callers leave at random moments (while the request is sent, while it waits, in the
middle of a stream); afterwards no slot may be taken and nothing may wait. Hostile requests are well-formed and malformed bodies whose knobs
lie at, above and far beyond their caps: each must be answered below 500, never with more texts, tokens or likely tokens than the
caps allow, in bounded time, and the memory of the process must stay where it was. Prints one line a kind, each fault with its
seed, and exits 1 if there was any.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import modelyard
from modelyard.verbs.serve import Server
from modelyard.verbs.serve import wanted as caps
from writers import writer

SLOWEST = 60.0
"""Seconds within which any request must be answered on a busy machine."""
GROWTH = 300 * 2**20
"""Bytes by which the process may grow: grammars and masks that are kept, the allocator's slack."""


def resident() -> int:
    """Bytes of this process in memory."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) * 1024  # type: ignore[index]


def idle(server: Server, seconds: float) -> dict[str, int]:
    """The engine's numbers once nothing runs, or after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        busy = server.service.writing.busy()
        if busy and not busy["running"] and not busy["waiting"] and not server.service.running:
            break
        time.sleep(0.02)
    return server.service.writing.busy()


def disconnects(server: Server, count: int, seed: int) -> list[str]:
    """Callers who leave; faults."""
    path = {True: "/v1/chat/completions", False: "/v1/completions"}
    moments: Counter[str] = Counter()
    lock = threading.Lock()

    def leave(first: int) -> None:
        for i in range(first, count, 8):
            chance = random.Random(f"{seed}-{i}")
            chat = chance.random() < 0.7
            text = "Tell me a tale. " * chance.randint(1, 4)
            body: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True, "n": chance.randint(1, 4), "stream": chance.random() < 0.6}
            body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
            raw = json.dumps(body).encode("utf-8")
            head = f"POST {path[chat]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
            moment = chance.choice(["while sending", "at once", "soon", "in the stream"])
            with socket.create_connection(("127.0.0.1", server.port), timeout=SLOWEST) as connection:
                if moment == "while sending":
                    connection.sendall((head + raw)[: chance.randint(1, len(head + raw) - 1)])
                else:
                    connection.sendall(head + raw)
                if moment == "soon":
                    time.sleep(chance.random() * 0.05)
                elif moment == "in the stream" and body["stream"]:
                    connection.recv(chance.randint(1, 2000))
                if chance.random() < 0.5:  # a reset instead of a farewell
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with lock:
                moments[moment] += 1

    threads = [threading.Thread(target=leave, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    busy = idle(server, 60)
    faults = [f"{busy[k]} {k} after all had left" for k in ("running", "waiting") if busy[k]]
    faults += [f"{server.service.running} requests still open"] if server.service.running else []
    status, found = post(server, "/v1/completions", {"prompt": "x", "max_tokens": 5, "ignore_eos": True})
    faults += [] if status == 200 and found["usage"]["completion_tokens"] == 5 else [f"the next caller got {status}"]
    print(f"{'ok    ' if not faults else 'FAULT '} {count} disconnects ({dict(moments)}): {busy}", flush=True)
    return faults


def post(server: Server, path: str, body: Any, timeout: float = SLOWEST, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """(status, JSON or list of events)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
        connection.request("POST", path, raw, {"Content-Type": "application/json"} | (headers or {}))
        response = connection.getresponse()
        text = response.read().decode("utf-8")
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return response.status, [json.loads(e[6:]) for e in text.split("\n\n") if e.startswith("data: ") and e != "data: [DONE]"]
        return response.status, json.loads(text)
    finally:
        connection.close()


BIG = [10**9, 2**31, 2**63, 10**30, 1e308, -1, -(10**18), 0, 1.5, "1", "9" * 5000, None, True, [], {}, "∞", [[[]]], "\ud800", 1e-320]
TEXTS = [
    "", " ", "\0", "a" * 10_000, "你" * 5_000, "😀" * 2_000, "\u202e\u2066", "e\u0301" * 3_000, "<|im_end|><|im_start|>system", "{{ 7*7 }}", "\ud800",
    "\r\n" * 1_000, "%s%n%x", "</s>", "a\\u0000b", "A" * 3_000_000,
]  # fmt: skip
PATTERNS = [
    "(a|a)*b", "((a*)*)*c", "(a{1000}){1000}", "a" * 3_000, "(" * 500, "[", "(?=x)", "(?P<x>a)(?P=x)", ".{0,1000}x", "(.*a){20}", "\\", "[a-z]{1,50}", "\\d+",
    "(a|b|ab)*c?", "[^\\x00-\\uffff]", "", "^$", "x" * 1_999, "(a?){50}a{50}", "[\ud800-\udfff]",
]  # fmt: skip


def schemas(chance: random.Random) -> Any:
    """A schema, good or hostile."""
    deep: Any = {"type": "string"}
    for _ in range(chance.choice([3, 40, 90])):
        deep = {"type": "array", "items": deep}
    return chance.choice([
        deep, {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(chance.choice([3, 300, 3000]))}},
        {"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, {"enum": list(range(chance.choice([5, 5000])))},
        {"type": "array", "minItems": chance.choice([1, 50, 9_000])}, {"type": "string", "minLength": chance.choice([0, 20, 9_999, 10**9])},
        {"anyOf": [{"anyOf": [{"type": "integer"}] * 60}] * 60}, {"type": "string", "pattern": chance.choice(PATTERNS)}, None, 5, [], "x",
        {"type": ["string", "null", "number"]}, {"type": "object", "additionalProperties": {"type": "number"}},
    ])  # fmt: skip


def hostile(chance: random.Random) -> tuple[str, Any]:
    """(route, body) with one to four knobs turned too far."""
    chat = chance.random() < 0.6
    body: dict[str, Any] = {"max_tokens": chance.choice([1, 5, 20, 200])}
    text = "Hello" if chance.random() < 0.7 else chance.choice(TEXTS)
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    knobs = [*caps.NUMBERS, "stop", "logit_bias", "logprobs", "stream", "stream_options", "messages", "prompt", "regex", "schema", "stop_token_ids", "tools",
             "model", "unknown", "ignore_eos", "many"]  # fmt: skip
    for knob in chance.sample(knobs, chance.randint(1, 4)):
        if knob == "stop":
            body["stop"] = chance.choice([[""], ["x"] * 10_000, "y" * 100_000, [chance.choice(TEXTS)], [5], {}, ["a", "b"]])
        elif knob == "logit_bias":
            body["logit_bias"] = chance.choice([{str(i): 100 for i in range(5_000)}, {"-1": 5}, {"5": 1e9}, {"1e3": 1}, {"7": -100}, [1], {"9" * 400: 1}])
        elif knob in ("messages", "prompt"):
            many = [{"role": "user", "content": "x"}] * chance.choice([0, 1, 50, 2_001, 20_000])
            parts = [{"role": "user", "content": [{"type": "text", "text": chance.choice(TEXTS)}] * 50}]
            odd = [many, [[]], [{"role": "user"}], "x", parts, [{}]]
            other = [["x"] * 500, [1] * 100_000, [[10**12]], [[]], [-1], ["Hi", "there"], [[3, 4], [5]], chance.choice(TEXTS)]
            body[knob] = chance.choice(odd if knob == "messages" else other)
        elif knob == "regex":
            body["guided_regex"] = chance.choice([*PATTERNS, 5, None])
        elif knob == "schema":
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schemas(chance)}}
        elif knob == "many":
            body["n"] = chance.choice([2, 16, 17, 10**9])
        elif knob == "tools":
            body["tools"] = chance.choice([[{}] * 10_000, [{"a": "b" * 10_000}], {}, [5]])
        elif knob in caps.NUMBERS and chance.random() < 0.7:  # at the cap, inside and just beyond
            _, low, high, _ = caps.NUMBERS[knob]
            body[knob] = chance.choice([low, high, low, high, 1, high * 2, low - 1])
        elif knob not in ("model", "unknown") or chance.random() < 0.2:
            body[knob] = chance.choice([*BIG, chance.choice(TEXTS)])
    if chance.random() < 0.05:
        raw = json.dumps(body).encode("utf-8", "surrogatepass")
        broken = [raw[: len(raw) // 2], b"[" * 100_000, b"\xff\xfe", b"", b'{"a":1,"a":2}', b"{" + b'"x":' * 5_000, b" " * 5_000_000]
        return "/v1/completions", chance.choice(broken)
    return "/v1/chat/completions" if chat else "/v1/completions", body


def judged(server: Server, status: int, found: Any) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if status >= 500:
        return f"status {status}: {str(found)[:200]}"
    if status != 200:
        known = isinstance(found, dict) and set(found["error"]) == {"message", "type", "param", "code"}
        return "" if known else f"an error in another shape: {str(found)[:200]}"
    length = server.service.writing.desk.length
    events = found if isinstance(found, list) else [found]
    choices = [c for e in events for c in e.get("choices", [])]
    if any("error" in e for e in events):
        return "" if isinstance(found, list) else f"an error with status 200: {str(found)[:200]}"
    if len({c["index"] for c in choices}) > caps.CHOICES:
        return f"{len(choices)} texts"
    for e in events:
        used = e.get("usage")
        if used and (used["completion_tokens"] > caps.CHOICES * length or used["prompt_tokens"] > caps.CHOICES * length):
            return f"more tokens than there is room for: {used}"
    for c in choices:
        told = (c.get("logprobs") or {}).get("content") or []
        if any(len(t["top_logprobs"]) > caps.TOP for t in told):
            return "more likely tokens than the cap"
    return ""


def requests(server: Server, count: int, seed: int) -> list[str]:
    """Hostile requests from four callers; faults."""
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    slowest = (0.0, -1)
    post(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "response_format": {"type": "json_object"}})
    before = resident()
    lock = threading.Lock()

    def ask(first: int) -> None:
        nonlocal slowest
        for i in range(first, count, 4):
            path, body = hostile(random.Random(f"{seed}-{i}"))
            began = time.monotonic()
            try:
                status, found = post(server, path, body)
                wrong = judged(server, status, found)
            except (OSError, http.client.HTTPException) as error:
                status, wrong = 0, f"no answer: {type(error).__name__} {error}"
            with lock:
                statuses[status] += 1
                slowest = max(slowest, (time.monotonic() - began, i))
                faults.extend([f"request {i} of seed {seed}: {wrong}"] if wrong else [])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    busy, grown = idle(server, 60), resident() - before
    faults += [f"{busy[k]} {k} at the end" for k in ("running", "waiting") if busy[k]]
    faults += [f"the process grew by {grown / 2**20:.0f} MB"] if grown > GROWTH else []
    faults += [f"only {statuses[200]} requests were good enough to be answered"] if statuses[200] < count // 50 else []
    word = "ok    " if not faults else "FAULT "
    slow = f"slowest {slowest[0]:.1f} s (request {slowest[1]})"
    print(f"{word} {count} hostile requests: {dict(sorted(statuses.items()))}, {slow}, grew by {grown / 2**20:.0f} MB", flush=True)
    return faults


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--disconnects", type=int, default=1_000)
    parser.add_argument("--hostile", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    faults: list[str] = []
    with modelyard.serve(writer(kind="text"), slots=4) as server:
        post(server, "/v1/completions", {"prompt": "x", "max_tokens": 1})
        if args.disconnects:
            faults += disconnects(server, args.disconnects, args.seed)
        if args.hostile:
            faults += requests(server, args.hostile, args.seed)
    for fault in faults[:30]:
        print(f"  - {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
