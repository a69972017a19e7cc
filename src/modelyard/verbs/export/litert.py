"""LiteRT's `.tflite`: refused where its converter does not go together with this torch, which no version of it did when this was written."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.verbs.export import onnx


def make(model: Model, target: Path) -> dict[str, Any]:
    """Raises `Unsupported` with the reason: there is no converter that takes a program of this torch."""
    onnx.modules_of(model, "a .tflite file")
    torch = metadata.version("torch")
    reason = f"its converter, litert-torch (0.9.3 is the newest), wants torch below 2.13, and this is torch {torch}"
    raise Unsupported(f"{model.name} cannot be written for LiteRT: {reason}; export.format: onnx or openvino run on small machines too", "not yet")
