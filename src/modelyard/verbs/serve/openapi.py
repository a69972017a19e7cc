"""OpenAPI 3.1 of a served model, made from its signature."""

from __future__ import annotations

from typing import Any

from modelyard.runtime.answers import Field, Param
from modelyard.runtime.model import Model

SHAPES: dict[str, dict[str, Any]] = {
    "number": {"type": ["number", "null"]},
    "category": {"type": ["string", "number", "boolean", "null"]},
    "label-set": {"type": ["array", "null"], "items": {"type": "string"}},
    "text": {"type": ["string", "null"]},
    "image": {"type": "string", "description": "base64 of a PNG or JPEG file, or a data URL"},
    "timestamp": {"type": ["string", "null"], "description": "ISO 8601"},
    "cluster": {"type": ["integer", "null"]},
}
TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


def document(model: Model, url: str = "/") -> dict[str, Any]:
    """The description that `/openapi.json` answers."""
    signature = model.signature
    row: dict[str, Any] = {
        "type": "object",
        "properties": {f.name: _field(f) for f in signature.inputs},
        "required": [f.name for f in signature.inputs if f.required],
    }
    if len(signature.inputs) == 1:  # a bare value stands for the only column
        row = {"anyOf": [row, _field(signature.inputs[0])]}
    answer: dict[str, Any] = {"type": "object", "properties": {k: v for f in signature.outputs for k, v in _answer(f).items()}}
    shapes = [{"$ref": "#/components/schemas/Answer"}, {"$ref": "#/components/schemas/Failure"}]
    if len(signature.outputs) == 1:  # and a bare value is answered where there is nothing beside it
        shapes.append(_field(signature.outputs[0]))
    failure = {
        "type": "object", "required": ["error"],
        "properties": {"error": {"type": "object", "properties": {k: {"type": "string"} for k in ("column", "reason", "value")}}},
    }  # fmt: skip
    body = {
        "type": "object",
        "properties": {
            "instances": {"type": "array", "items": {"$ref": "#/components/schemas/Row"}},
            "inputs": {"type": "object"},
            "params": {"type": "object", "properties": {p.name: _param(p) for p in signature.params}, "additionalProperties": False},
            "seed": {"type": "integer", "minimum": 0},
            "strict": {"type": "boolean", "description": "true turns a failed row into status 400"},
            "signature_name": {"type": "string"},
        },
        "additionalProperties": False,
        "example": {"instances": model.examples[:1]},
    }
    listed = {"type": "array", "items": {"anyOf": shapes}}
    answers = {"type": "object", "properties": {"predictions": listed, "outputs": {**listed, "description": "answers to inputs (columns)"}}}
    wrong = {"description": "what is wrong, in a sentence", "content": _json({"type": "object", "properties": {"error": {"type": "string"}}})}
    predict = {
        "post": {
            "summary": "Predict rows", "operationId": "predict", "requestBody": {"required": True, "content": _json(body)},
            "responses": {"200": {"description": "one answer a row, in order", "content": _json(answers)}, **{code: wrong for code in ("400", "401", "404", "413", "415", "503")}},
        }
    }  # fmt: skip
    plain = lambda text: {"get": {"summary": text, "responses": {"200": {"description": text}}}}  # noqa: E731
    return {
        "openapi": "3.1.0",
        "info": {"title": model.name, "version": model.version, "description": f"Predicts {', '.join(f.name for f in signature.outputs)}."},
        "servers": [{"url": url}],
        "paths": {
            f"/v1/models/{model.name}:predict": predict,
            f"/v1/models/{model.name}": plain("Status of the model"),
            f"/v1/models/{model.name}/metadata": plain("Signature of the model"),
            "/v2/health/ready": plain("Whether requests are answered"),
            "/v2/health/live": plain("Whether the process lives"),
            "/metrics": plain("Prometheus metrics"),
        },
        "components": {"schemas": {"Row": row, "Answer": answer, "Failure": failure}},
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answer(f: Field) -> dict[str, Any]:
    """What an output brings: the value, scores of labels, and the bounds or the set of a calibrated model."""
    number, labels = {"type": ["number", "null"]}, {"type": ["array", "null"], "items": {"type": "string"}}
    beside = {
        "number": {"low": number, "high": number},
        "category": {"scores": {"type": ["object", "null"], "additionalProperties": number}, "set": labels},
        "label-set": {"scores": {"type": ["object", "null"], "additionalProperties": number}},
        "cluster": {"scores": {"type": ["object", "null"], "additionalProperties": number}},
    }  # fmt: skip
    return {f.name: _field(f)} | {f"{f.name}.{k}": v for k, v in beside.get(f.kind, {}).items()}


def _field(f: Field) -> dict[str, Any]:
    shape = dict(SHAPES.get(f.kind, {}))
    if f.labels and len(f.labels) <= 100:
        shape["examples"] = f.labels[:5]
    return shape


def _param(p: Param) -> dict[str, Any]:
    shape: dict[str, Any] = {"type": TYPES[p.type], "default": p.default, "description": p.doc}
    bounds = {"minimum": p.low, "maximum": p.high, "enum": list(p.choices) if p.choices else None}
    return shape | {k: v for k, v in bounds.items() if v is not None}
