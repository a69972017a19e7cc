"""Matrices of fully connected layers as products of two thin ones, by singular values (Denton et al. 2014, arXiv:1404.0736).

The rank is the smallest that keeps `energy` of the squared singular values; a matrix of which the two factors would not be smaller stays. The squared
error of a factorised matrix is the sum of the squared singular values that were left out (Eckart & Young 1936).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from modelyard.errors import MissingExtra, Unsupported
from modelyard.runtime.model import Model
from modelyard.settings import Between
from modelyard.verbs.compress._child import child

if TYPE_CHECKING:
    from modelyard.verbs.compress._work import Work


@dataclass(frozen=True, kw_only=True)
class Config:
    """`low_rank`."""

    SHORTHAND: ClassVar[str] = "energy"

    energy: Annotated[float, Between(0.01, 1)] = 0.98
    """Share of the squared singular values that is kept."""
    saving: Annotated[float, Between(0.05, 1)] = 0.8
    """A matrix is factorised where its factors have at most this share of its numbers."""


def apply(work: Work, model: Model, config: Config, target: Path) -> Path:
    """The folder of the model with factorised graphs."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "train") from None
    if "onnx" not in model.manifest["model"]:
        raise Unsupported("what is factorised are ONNX graphs, and this model has none; distil it into a net first", "use")
    count = 0

    def rewrite(graph: str, source: Path, out: Path) -> None:
        nonlocal count
        whole = onnx.load(str(source))
        count += factorise(whole.graph, config)
        onnx.save(whole, str(out))

    found = child(model, target, f"low rank {config.energy}", rewrite)
    if not count:
        raise Unsupported(f"no matrix has a rank low enough: {config.energy:g} of the energy needs more than {config.saving:g} of the numbers", "never")
    return found


def factors(matrix_NM: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray] | None:
    """(N, R) and (R, M) whose product keeps the energy; None where they would not save enough."""
    u, s, v = np.linalg.svd(matrix_NM.astype(np.float64), full_matrices=False)
    kept = np.cumsum(s**2) / max(float((s**2).sum()), 1e-30)
    rank = int(np.searchsorted(kept, config.energy - 1e-12) + 1)
    rows, columns = matrix_NM.shape
    if rank * (rows + columns) > config.saving * rows * columns:
        return None
    root = np.sqrt(s[:rank])
    return (u[:, :rank] * root).astype(np.float32), (root[:, None] * v[:rank]).astype(np.float32)


def factorise(graph: Any, config: Config) -> int:
    """Replaces MatMul and Gemm by a constant matrix with two thin ones where that saves enough; how many."""
    from onnx import helper, numpy_helper

    constants = {t.name: t for t in graph.initializer}
    used = [name for node in graph.node for name in node.input]
    count, nodes = 0, []
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        fits = node.op_type == "MatMul" or (node.op_type == "Gemm" and attributes.get("alpha", 1.0) == 1.0 and not attributes.get("transA", 0))
        weight = constants.get(node.input[1]) if fits and len(node.input) > 1 else None
        matrix = numpy_helper.to_array(weight) if weight is not None and len(weight.dims) == 2 else None
        turned = bool(attributes.get("transB", 0))
        thin = factors(matrix.T if turned else matrix, config) if matrix is not None and matrix.dtype == np.float32 else None
        if weight is None or thin is None:
            nodes.append(node)
            continue
        count += 1
        left, right = f"{weight.name}:left", f"{weight.name}:right"
        graph.initializer.extend([numpy_helper.from_array(thin[0], left), numpy_helper.from_array(thin[1], right)])
        if used.count(weight.name) == 1:
            graph.initializer.remove(weight)
        middle = f"{node.output[0]}:thin"
        nodes.append(helper.make_node("MatMul", [node.input[0], left], [middle]))
        rest = list(node.input[2:])
        if node.op_type == "Gemm" and rest:
            nodes.append(helper.make_node("Gemm", [middle, right, *rest], list(node.output), beta=float(attributes.get("beta", 1.0))))
        else:
            nodes.append(helper.make_node("MatMul", [middle, right], list(node.output)))
    del graph.node[:]
    graph.node.extend(nodes)
    return count
