"""The inputs of an estimator as one matrix, described so that NumPy, SciPy and ONNX build the same columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelyard.estimators._onnx import Nodes
from modelyard.kinds._contract import Array, Ragged


@dataclass
class Layout:
    """Blocks of columns, in order: numbers, one-hot categories, sparse n-grams."""

    numbers: int = 0
    cardinalities: list[int] = field(default_factory=list)
    grams: list[str] = field(default_factory=list)
    """Text columns read as weighted n-grams."""
    gram_sizes: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Columns in all."""
        return self.numbers + sum(self.cardinalities) + sum(self.gram_sizes)


def layout_of(inputs: Mapping[str, Array]) -> Layout:
    """The layout of encoded training inputs."""
    numbers, categories = inputs.get("table.numbers"), inputs.get("table.categories")
    names = [k.removesuffix(".grams") for k in inputs if k.endswith(".grams")]
    sizes = [int(_values(inputs[f"{n}.grams"]).max(initial=0)) + 1 for n in names]
    cards = [] if categories is None else (np.asarray(categories).max(axis=0, initial=0) + 1).astype(int).tolist()
    return Layout(0 if numbers is None else np.asarray(numbers).shape[1], cards, names, sizes)


def _values(array: Array) -> np.ndarray:
    return array.values if isinstance(array, Ragged) else array


def sparse(inputs: Mapping[str, Array], layout: Layout) -> Any:
    """SciPy CSR matrix `(B, width)` for fitting."""
    from scipy import sparse as sp

    blocks: list[Any] = []
    if layout.numbers:
        blocks.append(sp.csr_matrix(np.asarray(inputs["table.numbers"], np.float32)))
    if layout.cardinalities:
        ids_Bm = np.asarray(inputs["table.categories"])
        for i, size in enumerate(layout.cardinalities):
            rows = np.arange(len(ids_Bm))
            inside = ids_Bm[:, i] < size
            data = np.ones(int(inside.sum()), np.float32)
            blocks.append(sp.csr_matrix((data, (rows[inside], ids_Bm[inside, i])), (len(ids_Bm), size)))
    for name, size in zip(layout.grams, layout.gram_sizes, strict=True):
        grams, weights = inputs[f"{name}.grams"], inputs[f"{name}.weights"]
        assert isinstance(grams, Ragged) and isinstance(weights, Ragged)
        keep = grams.values < size
        offsets = np.concatenate([[0], np.cumsum(keep)])[grams.offsets]
        blocks.append(sp.csr_matrix((weights.values[keep], grams.values[keep], offsets), (len(grams), size)))
    return sp.hstack(blocks, format="csr") if len(blocks) > 1 else blocks[0]


def linear(inputs: Mapping[str, Array], layout: Layout, weights_DK: np.ndarray, bias_K: np.ndarray) -> np.ndarray:
    """`features @ weights + bias`, `(B, K)` float32, without building the features; inputs may be padded or ragged."""
    rows = len(next(iter(inputs.values())))
    out = np.tile(bias_K.astype(np.float64), (rows, 1))
    start = 0
    if layout.numbers:
        out += np.asarray(inputs["table.numbers"], np.float64) @ weights_DK[: layout.numbers].astype(np.float64)
        start = layout.numbers
    for i, size in enumerate(layout.cardinalities):
        ids_B = np.asarray(inputs["table.categories"])[:, i]
        known = ids_B < size
        out[known] += weights_DK[start + ids_B[known]]
        start += size
    for name, size in zip(layout.grams, layout.gram_sizes, strict=True):
        grams, values = inputs[f"{name}.grams"], inputs[f"{name}.weights"]
        if isinstance(grams, Ragged) and isinstance(values, Ragged):
            _add_ragged(out, grams, values.values, weights_DK[start : start + size])
        else:
            _add_padded(out, np.asarray(grams), np.asarray(values), weights_DK[start : start + size])
        start += size
    return out.astype(np.float32)


def _add_ragged(out: np.ndarray, grams: Ragged, values: np.ndarray, table_DK: np.ndarray) -> None:
    for low in range(0, len(grams), 256):  # 256 rows of 500 grams and 150 classes are 77 MB
        high = min(low + 256, len(grams))
        a, b = grams.offsets[low], grams.offsets[high]
        ids, weight = grams.values[a:b], np.where(grams.values[a:b] < len(table_DK), values[a:b], 0.0)
        products = table_DK[np.minimum(ids, len(table_DK) - 1)] * weight[:, None]
        owners = np.repeat(np.arange(high - low), grams.lengths_B[low:high])
        np.add.at(out[low:high], owners, products) if len(products) < 2000 else _reduce(out[low:high], owners, products)


def _reduce(out: np.ndarray, owners: np.ndarray, products: np.ndarray) -> None:
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    out[owners[starts]] += np.add.reduceat(products, starts, axis=0)


def _add_padded(out: np.ndarray, grams_BL: np.ndarray, values_BL: np.ndarray, table_DK: np.ndarray) -> None:
    for low in range(0, len(grams_BL), 64):
        ids, values = grams_BL[low : low + 64], values_BL[low : low + 64]
        values = np.where(ids < len(table_DK), values, 0.0)
        out[low : low + 64] += np.einsum("bl,blk->bk", values, table_DK[np.minimum(ids, len(table_DK) - 1)])


def onnx_linear(g: Nodes, layout: Layout, weights_DK: np.ndarray, bias_K: np.ndarray, out: str = "") -> str:
    """The nodes that compute `linear`; the name of their output, `out` where it is given."""
    terms: list[str] = []
    start = 0
    if layout.numbers:
        terms.append(g.node("MatMul", "table.numbers", g.constant(weights_DK[: layout.numbers], np.float32)))
        start = layout.numbers
    if layout.cardinalities:
        # one table for all columns; each gets a zero row for ids that training never saw
        offsets, rows = [], []
        position = 0
        for size in layout.cardinalities:
            offsets.append(position)
            rows += [weights_DK[start : start + size], np.zeros((1, weights_DK.shape[1]), weights_DK.dtype)]
            position += size + 1
            start += size
        capped = g.node("Min", "table.categories", g.constant(layout.cardinalities, np.int32))
        ids = g.node("Add", capped, g.constant(offsets, np.int32))
        looked = g.node("Gather", g.constant(np.concatenate(rows), np.float32), ids, axis=0)
        terms.append(g.node("ReduceSum", looked, g.constant([1], np.int64), keepdims=0))
    for name, size in zip(layout.grams, layout.gram_sizes, strict=True):
        table_rows = np.concatenate([weights_DK[start : start + size], np.zeros((1, weights_DK.shape[1]), weights_DK.dtype)])
        capped = g.node("Min", f"{name}.grams", g.constant(size, np.int32))
        looked = g.node("Gather", g.constant(table_rows, np.float32), capped, axis=0)
        weight = g.node("Unsqueeze", f"{name}.weights", g.constant([1], np.int64))
        product = g.node("MatMul", weight, looked)  # (B,1,L) @ (B,L,K)
        terms.append(g.node("Squeeze", product, g.constant([1], np.int64)))
        start += size
    total = terms[0] if len(terms) == 1 else g.node("Sum", *terms)
    return g.node("Add", total, g.constant(bias_K, np.float32), out=out)
