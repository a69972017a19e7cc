"""Weights (and what flows between them) in 8 bits, by ONNX Runtime's quantisation.

Dynamic: weights in int8, activations measured at each call; for matrix products. Static: activations scaled by what training rows showed, which
convolutions need (Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, arXiv:1712.05877).
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from modelyard.errors import ArtefactError, MissingExtra, Unsupported
from modelyard.runtime.backends.onnx import session
from modelyard.runtime.model import Model
from modelyard.settings import Between
from modelyard.verbs.compress._child import child, feeds

if TYPE_CHECKING:
    from modelyard.verbs.compress._work import Work


MATRICES = {"MatMul", "Gemm", "Conv", "LSTM", "GRU", "RNN", "Gather", "Attention"}
"""Operators with weights that the quantiser knows."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """`quantise`."""

    SHORTHAND: ClassVar[str] = "how"

    how: Literal["auto", "dynamic", "static"] = "auto"
    """auto: static where there are convolutions, else dynamic."""
    rows: Annotated[int, Between(1, 100_000)] = 256
    """Training rows that a static quantisation is scaled by."""
    per_channel: bool = True
    """A scale for each output channel of a weight."""


def apply(work: Work, model: Model, config: Config, target: Path) -> Path:
    """The folder of the model with quantised graphs."""
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    except ImportError as error:
        raise MissingExtra(error.name or "onnx", "train") from None
    if "onnx" not in model.manifest["model"]:
        raise Unsupported("what is quantised are ONNX graphs, and this model has none; distil it into a net first", "use")
    if model.manifest["model"].get("estimator"):
        raise Unsupported("an estimator holds thresholds and distances that 8 bits would move; distil it into a net first", "use")
    shown = work.bound.splits["train"].head(config.rows)
    seen: dict[str, list[dict[str, Any]]] = {}

    def rewrite(graph: str, source: Path, out: Path) -> None:
        kinds = {node.op_type for node in onnx.load(str(source)).graph.node}
        if not kinds & MATRICES:
            raise Unsupported("the graph holds no matrices that could be stored in 8 bits; distil it into a net first", "use")
        static = config.how == "static" or (config.how == "auto" and "Conv" in kinds)
        with _quiet(), tempfile.TemporaryDirectory() as aside:
            # the exporter's notes of shapes stand in the way of the quantiser's own inference, which finds them anew
            ready, whole = Path(aside) / "ready.onnx", onnx.load(str(source))
            del whole.graph.value_info[:]
            _apart(whole.graph)
            onnx.save(whole, str(ready))
            try:
                if static:
                    seen.update(seen or feeds(model, shown))
                    names = {i.name for i in whole.graph.input}
                    reader = _Rows([{k: v for k, v in f.items() if k in names} for f in seen[graph]])
                    quantize_static(
                        str(ready), str(out), reader, quant_format=QuantFormat.QDQ, per_channel=config.per_channel,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    )  # fmt: skip
                else:
                    quantize_dynamic(str(ready), str(out), per_channel=config.per_channel, weight_type=QuantType.QInt8)
            except Exception as error:  # the quantiser asserts and raises whatever its parts raise
                raise Unsupported(f"ONNX Runtime's quantiser does not take the graph: {str(error)[:200] or repr(error)}", "never") from None
        try:
            session(out)
        except ArtefactError as error:
            raise Unsupported(f"what the quantiser wrote does not run: {error.message[:300]}", "never") from None

    return child(model, target, f"quantise {config.how}", rewrite)


def _apart(graph: Any) -> None:
    """Gives each `Gemm` that turns its matrix one of its own: the quantiser turns it where it lies, under everybody else who reads it (a table of embeddings
    that is the last matrix too)."""
    users = Counter(name for node in graph.node for name in node.input)
    held = {t.name: t for t in graph.initializer}
    for i, node in enumerate(graph.node):
        turned = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
        if turned and users[node.input[1]] > 1 and node.input[1] in held:
            copy = graph.initializer.add()
            copy.CopyFrom(held[node.input[1]])
            copy.name = node.input[1] = f"{node.input[1]}_of_{i}"


class _Rows:
    """ONNX Runtime's calibration reader over arrays."""

    def __init__(self, found: list[dict[str, Any]]) -> None:
        self.left = iter(found)

    def get_next(self) -> dict[str, Any] | None:
        """The next block."""
        return next(self.left, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that the quantiser logs for every graph."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
