"""Writes on: a corpus, answers to prompts, or the next turn of a conversation, by a causal language model.

modelyard train task=text-generation data=corpus.txt
modelyard train task=text-generation data=chats.jsonl model='{name: causal, base: Qwen/Qwen3-0.6B}'
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from modelyard.data.frames import language
from modelyard.kinds._contract import Ragged
from modelyard.runtime.answers import Answers
from modelyard.runtime.programs import complete
from modelyard.tasks._contract import Loss, Task, Toy

TOKENS = 2**14
"""Tokens that are scored together."""
SAMPLES = 6
"""Rows that are answered in an evaluation, for the report."""


def toy(n: int, seed: int) -> Toy:
    """Questions about sums of two digits, answered in words."""
    random = np.random.default_rng(seed)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    pairs = random.integers(0, 5, (n, 2))
    rows = {"prompt": [f"{words[a]} and {words[b]} is " for a, b in pairs], "completion": [words[a + b] for a, b in pairs]}
    return Toy({"train": pl.DataFrame(rows)}, None)


def examine(model: Any, rows: pl.DataFrame, output: str) -> tuple[Answers, pl.Series]:
    """(answers with how likely the true texts are, those texts).

    Beside `<output>`, written for the first `SAMPLES` rows, stand `<output>.nll` (Σ -log p of the tokens of the true text), `.tokens`,
    `.hits` (tokens that were the likeliest) and `.bytes`, and for preferences `.wins` and `.pairs`. A corpus is scored in blocks of the
    length that training had, as in training.
    """
    pipeline = model.pipeline
    column = pipeline.inputs[0].name
    encoded = pipeline.encode(rows.select(column))
    ids = pipeline.targets(rows, encoded.contexts)[f"{output}.ids"]
    prompts = encoded.arrays[f"{column}.tokens"]
    assert isinstance(ids, Ragged) and isinstance(prompts, Ragged)
    length = model.graphs["decoder"].row
    corpus = int(prompts.lengths_B.max(initial=0)) <= 1
    found = _corpus(model.graphs["score"], ids, length) if corpus else _each(model.graphs["score"], prompts, ids, length)
    truth = rows[output]
    some = language.asked(rows.head(SAMPLES))
    said = model.predict_examples(some.select(column), {"max_tokens": min(200, length), "temperature": 0.8 if corpus else 0.0}, 0)
    texts = [*said.columns[output].to_list(), *[None] * (rows.height - some.height)]
    columns = {output: pl.Series(texts, dtype=pl.String), f"{output}.nll": found[0], f"{output}.tokens": found[1], f"{output}.hits": found[2]}
    columns |= {f"{output}.{k}": v for k, v in _won(model, rows, output, found[0] / np.maximum(found[1], 1), length).items()}
    columns[f"{output}.bytes"] = truth.fill_null("").str.len_bytes().cast(pl.Float64).to_numpy()
    return Answers(pl.DataFrame(columns), [], rows.height, model.name, model.version), truth


def _won(model: Any, rows: pl.DataFrame, output: str, better_B: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """`wins` (1, 0, or ½ where they are equal) and `pairs`, where rows have a worse answer, `rejected`; empty where none has.

    `better_B` are the true texts' mean -log p of a token: by the sums the shorter answer would win.
    """
    if "rejected" not in rows.columns or rows["rejected"].null_count() == rows.height:
        return {}
    pipeline, column = model.pipeline, model.pipeline.inputs[0].name
    other = rows.with_columns(rows["rejected"].fill_null("").alias(output))
    encoded = pipeline.encode(other.select(column))
    ids = pipeline.targets(other, encoded.contexts)[f"{output}.ids"]
    nll_B, tokens_B, _ = _each(model.graphs["score"], encoded.arrays[f"{column}.tokens"], ids, length)
    worse_B = nll_B / np.maximum(tokens_B, 1)
    pairs_B = rows["rejected"].is_not_null().to_numpy().astype(np.float64)
    return {"wins": pairs_B * np.where(better_B == worse_B, 0.5, better_B < worse_B), "pairs": pairs_B}


def _corpus(score: Any, ids: Ragged, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nll, tokens, hits) of each row, from blocks over all of them; the very first token follows nothing and does not count."""
    values = ids.values.astype(np.int64)
    nll, hit = np.zeros(len(values)), np.zeros(len(values))
    starts = np.arange(0, max(1, len(values) - 1), length)
    many = max(1, TOKENS // length)
    for first in range(0, len(starts), many):
        some = starts[first : first + many]
        where = np.minimum(some[:, None] + np.arange(length + 1), len(values) - 1)
        said = score({"tokens": values[where]})
        real = some[:, None] + np.arange(1, length + 1) < len(values)
        nll[where[:, 1:][real]], hit[where[:, 1:][real]] = said["nll"][real], said["hit"][real]
    counted = np.arange(len(values)) > 0
    return tuple(_sums(x, ids.offsets) for x in (nll, counted.astype(np.float64), hit))  # type: ignore[return-value]


def _each(score: Any, prompts: Ragged, ids: Ragged, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nll, tokens, hits) of each text after its prompt; what is too long is cut as in training."""
    text_B = np.minimum(ids.lengths_B, length + 1)
    read_B = np.minimum(prompts.lengths_B, length + 1 - text_B)
    out = np.zeros((3, len(ids)))
    order = np.argsort(text_B + read_B, kind="stable")
    many = max(1, TOKENS // (length + 1))
    for some in (order[i : i + many] for i in range(0, len(order), many)):
        width = max(2, int((text_B + read_B)[some].max()))
        tokens, counted = np.zeros((len(some), width), np.int64), np.zeros((len(some), width), bool)
        for row, mark, i in zip(tokens, counted, some.tolist(), strict=True):
            read, text = prompts.values[: prompts.offsets[i + 1]], ids.values[ids.offsets[i] :]
            row[: read_B[i]], row[read_B[i] : read_B[i] + text_B[i]] = read[len(read) - read_B[i] :], text[: text_B[i]]
            mark[max(1, read_B[i]) : read_B[i] + text_B[i]] = True
        said = score({"tokens": tokens})
        for k, found in enumerate((said["nll"], np.ones_like(said["nll"]), said["hit"])):
            out[k, some] = np.where(counted[:, 1:], found, 0.0).sum(1)
    return out[0], out[1], out[2]


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(total[offsets[1:]] - total[offsets[:-1]])


TASK = Task(
    name="text-generation",
    kinds=("text",),
    losses={"text": Loss("token_nll", "ids")},
    toy=toy,
    encoding="language",
    guessed=False,
    output="completion",
    frame="language",
    frame_config=language.config_of,
    default="causal",
    metrics=("perplexity", "nats_per_token", "bits_per_byte", "token_accuracy"),
    measured={"win_rate": "wins"},
    program="complete",
    params=complete.PARAMS,
    examine=examine,
    shown={"max_tokens": 16},
    aligned=True,
)
