"""How texts become the rows of a batch of a language model: as blocks of a corpus, one a row, or several packed into a row.

A row is what is read and what is written, one behind the other (`<output>.ids`), with 1 where a token counts (`<output>.mask`). Where
nothing is read anywhere, the texts are a corpus, cut into blocks. Packed rows (`train.pack`) hold whole texts up to the length of a row,
numbered by `<output>.segments`: none sees another (Krell et al. 2021, arXiv 2107.02027: longest first, into the fullest row that has room).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

import numpy as np

from modelyard.data.batches import Batches
from modelyard.data.blocks import Blocks
from modelyard.errors import Unsupported
from modelyard.kinds._contract import Array, Ragged
from modelyard.verbs.train.config import TrainConfig

Arrays = tuple[Mapping[str, Array], Mapping[str, Array]]


def arrange(
    arrays: Arrays, column: str, output: str, length: int, config: TrainConfig, *, weights: np.ndarray | None = None, teach: bool = True
) -> tuple[Batches | Blocks, list[str]]:
    """(batches, what is to be told) of encoded examples for rows of `length` tokens (one more is read than predicted)."""
    prompts, ids = arrays[0][f"{column}.tokens"], arrays[1][f"{output}.ids"]
    masks = arrays[0].get(f"{column}.mask")
    assert isinstance(prompts, Ragged) and isinstance(ids, Ragged) and (masks is None or isinstance(masks, Ragged))
    batch = int(config.batch or 1)
    if config.pack is None and is_corpus(prompts):
        if weights is not None:
            raise Unsupported("a corpus cut into blocks has no weights of rows; leave data.weight out, or set train.pack: false", "use")
        return Blocks(ids, output, length=length, batch=batch, seed=config.seed, shuffle=teach), []
    rows = joined(prompts, ids, masks, length + 1)
    notes = [f"{rows.cut} of {len(ids)} texts were cut to {length + 1} tokens: what is read loses its beginning first"] if rows.cut else []
    inputs: dict[str, Array] = {f"{output}.mask": rows.mask}
    targets: dict[str, Array] = {f"{output}.ids": rows.ids}
    if config.pack and teach:
        if weights is not None:
            raise Unsupported("packed rows hold several examples and cannot be weighed; leave data.weight or train.pack out", "never")
        inputs, targets = packed(rows, output, length + 1)
        notes.append(f"{len(ids)} texts are packed into {len(targets[f'{output}.ids'])} rows of up to {length + 1} tokens")
    many = len(targets[f"{output}.ids"])
    made = Batches(
        inputs, targets, batch=batch, seed=config.seed, weights=weights, shuffle=teach, drop_last=teach and many > 2 * batch,
        tokens=config.batch_tokens,
    )  # fmt: skip
    return made, notes


def is_corpus(prompts: Ragged) -> bool:
    """Whether nothing is read: each prompt is the end of the text before, or missing."""
    return int(prompts.lengths_B.max(initial=0)) <= 1


class Rows:
    """Texts with what is read before them."""

    def __init__(self, ids: Ragged, mask: Ragged, cut: int) -> None:
        self.ids, self.mask, self.cut = ids, mask, cut


def joined(prompts: Ragged, ids: Ragged, masks: Ragged | None, most: int) -> Rows:
    """Prompt and text of each example behind each other, cut to `most` tokens: first the prompt's beginning, then the text's end."""
    text_B = np.minimum(ids.lengths_B, most)
    read_B = np.minimum(prompts.lengths_B, most - text_B)
    cut = int(((text_B < ids.lengths_B) | (read_B < prompts.lengths_B)).sum())
    offsets = np.concatenate([[0], np.cumsum(read_B + text_B)]).astype(np.int64)
    values, counted = np.zeros(offsets[-1], np.int64), np.zeros(offsets[-1], np.int8)
    here, there = _places(offsets[:-1], read_B), _places(prompts.offsets[1:] - read_B, read_B)
    values[here] = prompts.values[there]
    if masks is not None:
        counted[here] = masks.values[there]
    here, there = _places(offsets[:-1] + read_B, text_B), _places(ids.offsets[:-1], text_B)
    values[here], counted[here] = ids.values[there], 1
    counted[offsets[:-1][read_B + text_B > 0]] = 0  # nothing stands before the first token
    return Rows(Ragged(values, offsets), Ragged(counted, offsets), cut)


def _places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Positions of runs one behind the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def packed(rows: Rows, output: str, most: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """(inputs, targets) of rows that hold several texts each."""
    bins = bins_of(rows.ids.lengths_B, most)
    order = np.concatenate([np.array(b, np.int64) for b in bins])
    sizes = np.array([len(b) for b in bins])
    ids, mask = rows.ids.take(order), rows.mask.take(order)
    lengths = ids.lengths_B
    ends = np.cumsum(sizes)
    offsets = np.concatenate([[0], np.cumsum(lengths)])[np.concatenate([[0], ends])].astype(np.int64)
    number = np.arange(len(order)) - np.repeat(ends - sizes, sizes)
    segments = np.repeat(number, lengths).astype(np.int32)
    inputs: dict[str, Array] = {f"{output}.mask": Ragged(mask.values, offsets), f"{output}.segments": Ragged(segments, offsets)}
    return inputs, {f"{output}.ids": Ragged(ids.values, offsets)}


def bins_of(lengths_B: np.ndarray, most: int) -> list[list[int]]:
    """Texts by row: longest first, each into the row with the least room that still has enough."""
    room: list[tuple[int, int]] = []
    bins: list[list[int]] = []
    for i in np.argsort(-lengths_B, kind="stable").tolist():
        need = int(lengths_B[i])
        at = bisect_left(room, (need, -1))
        left, row = room.pop(at) if at < len(room) else (most, len(bins))
        if row == len(bins):
            bins.append([])
        bins[row].append(i)
        insort(room, (left - need, row))
    return bins
