"""The inputs of an estimator as one matrix, described so that NumPy, SciPy and ONNX build the same columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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


def onnx_linear(layout: Layout, weights_DK: np.ndarray, bias_K: np.ndarray, output: str, tag: str) -> tuple[list[Any], list[Any]]:
    """(nodes, initializers) that compute `linear` as ONNX; inputs keep the names of the graph inputs."""
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []
    terms: list[str] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), f"{tag}_{name}"))
        return f"{tag}_{name}"

    def node(op: str, ins: Sequence[str], out: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(ins), [f"{tag}_{out}"], **attributes))
        return f"{tag}_{out}"

    start = 0
    if layout.numbers:
        table = constant("numbers", weights_DK[: layout.numbers].astype(np.float32))
        terms.append(node("MatMul", ["table.numbers", table], "numbers_sum"))
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
        capped = node("Min", ["table.categories", constant("caps", np.array(layout.cardinalities, np.int32))], "capped")
        ids = node("Add", [capped, constant("offsets", np.array(offsets, np.int32))], "ids")
        looked = node("Gather", [constant("rows", np.concatenate(rows).astype(np.float32)), ids], "looked", axis=0)
        terms.append(node("ReduceSum", [looked, constant("axis", np.array([1], np.int64))], "categories_sum", keepdims=0))
    for i, (name, size) in enumerate(zip(layout.grams, layout.gram_sizes, strict=True)):
        table_rows = np.concatenate([weights_DK[start : start + size], np.zeros((1, weights_DK.shape[1]), weights_DK.dtype)])
        capped = node("Min", [f"{name}.grams", constant(f"cap{i}", np.array(size, np.int32))], f"capped{i}")
        looked = node("Gather", [constant(f"rows{i}", table_rows.astype(np.float32)), capped], f"looked{i}", axis=0)
        weight = node("Unsqueeze", [f"{name}.weights", constant(f"last{i}", np.array([1], np.int64))], f"weight{i}")
        product = node("MatMul", [weight, looked], f"product{i}")  # (B,1,L) @ (B,L,K)
        terms.append(node("Squeeze", [product, constant(f"middle{i}", np.array([1], np.int64))], f"grams_sum{i}"))
        start += size
    total = terms[0] if len(terms) == 1 else node("Sum", terms, "sum")
    nodes.append(helper.make_node("Add", [total, constant("bias", bias_K.astype(np.float32))], [output]))
    return nodes, constants


def onnx_model(nodes: list[Any], constants: list[Any], inputs: Mapping[str, Any], outputs: Mapping[str, int], ml: bool = False) -> Any:
    """A checked ONNX model over graph inputs (name → Part) with outputs of `(batch, size)`."""
    import onnx
    from onnx import TensorProto, helper

    types = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}
    used = {name for n in nodes for name in n.input}
    ins = [
        helper.make_tensor_value_info(name, types[part.dtype], ["batch", *("length" if s is None else s for s in part.shape)])
        for name, part in inputs.items()
        if name in used
    ]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in outputs.items()]
    graph = helper.make_graph(nodes, "modelyard", ins, outs, constants)
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid("ai.onnx.ml", 5)] if ml else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10 if ml else 9)  # TreeEnsemble came with version 10
    onnx.checker.check_model(model)
    return model
