"""Serving a language model: our server with 16 clients at once against `transformers`' `generate`, one text after the other.

    python benchmarks/chat_serving.py                      # 30M parameters, 16 clients, 3 interleaved rounds, 2 threads
    python benchmarks/chat_serving.py --rounds 1 --tokens 24 --clients 8

The weights are random and the same on both sides: ours are written in Hugging Face's layout and read by `AutoModelForCausalLM`. Clients talk
to the server over HTTP on this machine, in a process of their own side's rounds: ours, theirs, ours, … so that a busy neighbour hits both.
Every greedy answer is compared; one that differs must have come to a place where the two best logits lie within 1e-4 (counted).
Prints a line a round and the goal: at least 2 times the tokens a second.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from _record import hardware, verdict
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from modelyard.nets._huggingface import to_settings
from modelyard.nets._slots import Slots
from modelyard.runtime.engine import TIE
from modelyard.verbs.serve import serve
from writers import network, writer

GOAL = 2.0
SHAPE: dict[str, Any] = {"architecture": "llama", "width": 512, "layers": 8, "heads": 8, "kv_heads": 4, "context": 512}


def made(vocabulary: int) -> Any:
    """A model that writes, of 30M parameters; its tokenizer knows fewer ids, as padded tables do."""
    model = writer()
    net = network(vocabulary, std=0.04, **SHAPE)
    model.graphs["decoder"] = Slots(net)
    for column in (*model.pipeline.inputs, *model.pipeline.outputs):
        column.state = replace(column.state, size=vocabulary)
    return model


def theirs(net: Any, vocabulary: int, folder: str) -> Any:
    """The same weights as `transformers` loads them."""
    import transformers

    transformers.logging.set_verbosity_error()
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    Path(folder, "config.json").write_text(json.dumps(to_settings(net.config, vocabulary, ids)), encoding="utf-8")
    save_file({k: v.contiguous().clone() for k, v in net.stored().items()}, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def ask(port: int, prompt: list[int], tokens: int) -> list[int]:
    """Ids of a greedy answer, as the server's log-probabilities name them (its text would not tell ids apart)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    found = json.loads(connection.getresponse().read())
    connection.close()
    return list(found["choices"][0]["token_ids"])


def ours(port: int, prompts: list[list[int]], tokens: int) -> tuple[float, list[list[int]]]:
    """(seconds, answers) of all clients at once."""
    answers: list[list[int]] = [[] for _ in prompts]

    def client(i: int) -> None:
        answers[i] = ask(port, prompts[i], tokens)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(len(prompts))]
    began = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return time.perf_counter() - began, answers


def one_by_one(model: Any, prompts: list[list[int]], tokens: int) -> tuple[float, list[list[int]]]:
    """(seconds, answers) of `generate`, a text after the other."""
    began, answers = time.perf_counter(), []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
            answers.append(out[0, len(prompt) :].tolist())
    return time.perf_counter() - began, answers


def apart(net: Any, prompt: list[int], a: list[int], b: list[int]) -> float:
    """How far the two best logits lie apart where two answers part; 0 where they are equal."""
    if a == b:
        return 0.0
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    with torch.inference_mode():
        row = net.logits(torch.tensor([prompt + a[:at]]))[0, -1].numpy()
    best = np.sort(row)
    return float(best[-1] - best[-2])


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="our server against generate, one by one")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(hardware(), flush=True)
    model = made(args.vocabulary)
    net = model.graphs["decoder"].network
    print(f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}M parameters, {args.clients} clients, {args.tokens} tokens each", flush=True)
    random = np.random.default_rng(0)
    prompts = [random.integers(3, args.vocabulary, random.integers(16, 129)).tolist() for _ in range(args.clients)]
    with tempfile.TemporaryDirectory() as folder, serve(model, slots=args.clients) as server:
        other = theirs(net, args.vocabulary, folder)
        one_by_one(other, prompts[:1], 4)
        ours(server.port, prompts[:2], 4)
        ratios, differ, ties = [], 0, 0
        for round_ in range(args.rounds):
            fresh = [[int(x) for x in random.integers(3, args.vocabulary, 1)] + p for p in prompts]  # so that no round reads the last one's cache
            mine, found = ours(server.port, fresh, args.tokens)
            their, expected = one_by_one(other, fresh, args.tokens)
            gaps = [apart(net, p, a, b) for p, a, b in zip(fresh, found, expected, strict=True)]
            ties += sum(0 < g < TIE for g in gaps)
            differ += sum(g >= TIE for g in gaps)
            total = args.clients * args.tokens
            ratios.append(their / mine)
            print(f"round {round_ + 1}: ours {total / mine:.1f} tokens/s, generate {total / their:.1f}, ratio {their / mine:.2f}", flush=True)
    good = verdict("greedy answers equal", differ == 0, f"{differ} differ beyond a gap of {TIE}, {ties} at smaller gaps, of {args.rounds * args.clients}")
    middle = statistics.median(ratios)
    return not (verdict(f"at least {GOAL} times the tokens a second", middle >= GOAL, f"{middle:.2f} (median of {args.rounds})") and good)


if __name__ == "__main__":
    sys.exit(main())
