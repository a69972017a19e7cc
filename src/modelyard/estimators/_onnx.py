"""ONNX models of estimators, node by node. Names are numbered, so that parts are made side by side without a word about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OPSET, ML_OPSET = 18, 5


class Nodes:
    """Nodes and constants in the making; inputs keep the names of the graph inputs (`table.numbers`)."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float64) -> str:
        """The name of a constant of any shape."""
        from onnx import numpy_helper

        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype, order="C"), name))
        return name

    def node(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """The name of the output of a node that has one; `out` gives it."""
        from onnx import helper

        name = out or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def several(self, op: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        """The names of the outputs of a node that has `count` of them."""
        from onnx import helper

        names = [f"{op.lower()}{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def keep(self, made: Any) -> str:
        """Takes a node made elsewhere (a TreeEnsemble); the name of its output."""
        self.nodes.append(made)
        name: str = made.output[0]
        return name

    def fresh(self, stem: str) -> str:
        """A name that no node has yet."""
        return f"{stem}{len(self.nodes)}"

    def cast(self, name: str, to: str, out: str = "") -> str:
        """`name` as float32, float64 or int64."""
        from onnx import TensorProto

        types = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "int64": TensorProto.INT64}
        return self.node("Cast", name, out=out, to=types[to])

    def points(self, numbers: bool, sizes: Sequence[int], mark: float) -> str:
        """(B, D) float64: the numbers, then for each category `size` columns of which that of its id holds `mark` (none for higher ids)."""
        blocks = [self.cast("table.numbers", "float64")] if numbers else []
        for i, size in enumerate(sizes):
            rows = self.constant(np.concatenate([np.eye(size) * mark, np.zeros((1, size))]))
            column = self.node("Gather", "table.categories", self.constant(i, np.int64), axis=1)
            blocks.append(self.node("Gather", rows, self.node("Min", column, self.constant(size, np.int32)), axis=0))
        return self.node("Concat", *blocks, axis=1)

    def model(self, inputs: Mapping[str, Any], outputs: Mapping[str, int]) -> Any:
        """A checked ONNX model over graph inputs (name → Part) with outputs of `(batch, size)`."""
        import onnx
        from onnx import TensorProto, helper

        types = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}
        used = {name for n in self.nodes for name in n.input}
        ins = [
            helper.make_tensor_value_info(name, types[part.dtype], ["batch", *("length" if s is None else s for s in part.shape)])
            for name, part in inputs.items()
            if name in used
        ]
        outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in outputs.items()]
        graph = helper.make_graph(self.nodes, "modelyard", ins, outs, self.constants)
        ml = any(n.domain == "ai.onnx.ml" for n in self.nodes)
        opsets = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid("ai.onnx.ml", ML_OPSET)] if ml else [])
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10 if ml else 9)  # TreeEnsemble came with version 10
        onnx.checker.check_model(model)
        return model
