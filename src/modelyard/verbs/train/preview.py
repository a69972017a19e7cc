"""What a language model will be taught: the first rows of a batch, token by token, with what counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelyard.runtime.pipeline import Pipeline
from modelyard.runtime.vocabulary import Vocabulary

ROWS, TOKENS = 3, 200
"""Rows, and tokens of each, that are shown."""


def preview(batches: Any, pipeline: Pipeline, output: str) -> list[list[tuple[str, bool]]]:
    """(text of a token, whether it counts) of each token of the first rows that training will see; empty where there are none.

    The very first token of a row counts never: nothing stands before it. Tokens that are no text (the end, turns) go by their names.
    """
    batch = next(iter(batches.epoch(0)), None)
    state = next(c.state for c in pipeline.outputs if c.name == output)
    if batch is None or f"{output}.ids" not in batch.targets or not getattr(state, "tokenizer", ""):
        return []
    known = Vocabulary(state.tokenizer)
    ids_BL, masks = batch.targets[f"{output}.ids"], batch.inputs.get(f"{output}.mask")
    lengths = batch.targets.get(f"{output}.length")
    found = []
    for row in range(min(ROWS, len(ids_BL))):
        count = min(TOKENS, ids_BL.shape[1] if lengths is None else int(lengths[row]))
        ids = ids_BL[row, :count].tolist()
        marks = [i > 0 for i in range(count)] if masks is None else [bool(m) for m in masks[row, :count].tolist()]
        found.append([(_named(known, i), mark) for i, mark in zip(ids, marks, strict=True)])
    return found


def _named(known: Vocabulary, i: int) -> str:
    piece = known.pieces[i].decode("utf-8", errors="replace") if i < known.size else ""
    return piece or str(known.tokenizer.id_to_token(i) or f"<{i}>")


def in_brackets(row: Sequence[tuple[str, bool]]) -> str:
    """A row for a terminal: what counts stands in ⟦ ⟧."""
    found, inside = "", False
    for text, counted in row:
        found += ("⟦" if counted and not inside else "⟧" if inside and not counted else "") + text
        inside = counted
    return (found + ("⟧" if inside else "")).replace("\n", "⏎")
