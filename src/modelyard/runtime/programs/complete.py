"""Continues prompts to their end with a language model: the engine of the server, run over a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from modelyard.runtime.answers import Param, Randomness
from modelyard.runtime.engine import SLOTS, Ask, Engine
from modelyard.runtime.sampling import PARAMS as DRAWING

PARAMS = (
    Param("max_tokens", "int", 128, 1, 100_000, doc="tokens to write at most; fewer where the prompt leaves less room, but never less than half the context"),
    *DRAWING,
    Param("frequency", "float", 0.0, -2.0, 2.0, doc="taken from a token's logit for each time it was written"),
    Param("presence", "float", 0.0, -2.0, 2.0, doc="taken from a token's logit once it was written"),
)
"""Parameters of a call, with their caps."""


def run(
    graphs: Mapping[str, Any], inputs: dict[str, np.ndarray], params: Mapping[str, Any], random: Randomness
) -> dict[str, np.ndarray]:
    """`<output>.ids` (B, T) int64 padded with the id that ends a text, `score` (B,) the mean log-probability of a text's tokens (its end
    included) and `gap` (B,) the smallest distance between the two most likely tokens on its way (0 where tokens were drawn)."""
    decoder = graphs["decoder"].fresh()  # a server answers several calls at once
    prompts_BL, length_B = inputs[f"{decoder.column}.tokens"], inputs[f"{decoder.column}.length"]
    rooms = [room(n, int(params["max_tokens"]), decoder.context) for n in length_B.tolist()]
    prompts = [begin(row[:n], decoder, most) for row, n, most in zip(prompts_BL, length_B.tolist(), rooms, strict=True)]
    engine = Engine(decoder, slots=min(SLOTS, len(prompts)), length=max(len(p) + most for p, most in zip(prompts, rooms, strict=True)))
    drawing = {p.name: params[p.name] for p in PARAMS if p.name != "max_tokens"}
    texts = [
        engine.submit(Ask(prompt=p, max_tokens=rooms[i], generator=random.generator(i), judged=True, **drawing)) for i, p in enumerate(prompts)
    ]
    engine.run()
    ids_BT = np.full((len(texts), max(1, *(len(t.ids) for t in texts)) + 1), decoder.ends[0], np.int64)
    for row, text in zip(ids_BT, texts, strict=True):
        row[: len(text.ids)] = text.ids
    score_B = np.array([t.score / max(1, len(t.ids) + (t.finish == "stop")) for t in texts])
    return {
        f"{decoder.output}.ids": ids_BT, f"{decoder.output}.score": score_B,
        f"{decoder.output}.gap": np.array([min(t.gap, 1e9) for t in texts]),
    }  # fmt: skip


def room(prompt: int, asked: int, context: int) -> int:
    """Tokens that may be written after a prompt of so many: what was asked for, else what the prompt leaves, but half the context at least
    (a prompt that is longer than the rest loses its beginning)."""
    return min(asked, max(context - max(1, prompt), context // 2))


def begin(prompt: np.ndarray, decoder: Any, room: int) -> np.ndarray:
    """The ids to read: the end of a prompt that is too long; where there is none, the token that ends the text before."""
    kept = np.asarray(prompt, np.int64)[-max(1, decoder.context - room) :]
    return kept if len(kept) else np.array([decoder.ends[0]], np.int64)
