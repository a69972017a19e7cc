"""OpenAPI 3.1 of a served model, made from its signature: what a client may send, and what comes back."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from modelyard.runtime.answers import Field, Param
from modelyard.runtime.model import Model
from modelyard.verbs.serve.body import ROWS, SIGNATURE
from modelyard.verbs.serve.inference import TYPES as DATATYPES

Schema = dict[str, Any]

SHAPES: dict[str, Schema] = {
    "number": {"type": ["number", "string", "boolean", "null"], "description": "a finite number; null is missing"},
    "category": {"type": ["string", "number", "boolean", "null"], "description": "a label; null is missing, others count as unseen"},
    "label-set": {"type": ["array", "string", "null"], "items": {"type": ["string", "number", "boolean"]}},
    "text": {"type": ["string", "null"]},
    "image": {"type": ["string", "array"], "description": "base64 of a PNG or JPEG file, a data URL, or pixels 0 to 255 by row"},
    "timestamp": {"type": ["string", "number", "null"], "description": "ISO 8601, or seconds since 1970"},
    "cluster": {"type": ["integer", "null"]},
    "words": {"type": ["array", "string"], "items": {"type": ["string", "number"]}, "description": "words, or a text that is cut at blanks"},
}
ANSWERS: dict[str, Schema] = {
    "number": {"type": ["number", "null"]},
    "category": {"type": ["string", "null"]},
    "label-set": {"type": ["array", "null"], "items": {"type": "string"}},
    "timestamp": {"type": ["string", "null"]},
    "cluster": {"type": ["integer", "null"]},
    "tags": {"type": ["array", "null"], "items": {"type": "string"}, "description": "one for each word"},
}
ENTITIES: Schema = {
    "type": "array",
    "description": "start and end count words, the end is the one behind the last",
    "items": {
        "type": "object",
        "properties": {"start": {"type": "integer"}, "end": {"type": "integer"}, "type": {"type": "string"}, "text": {"type": "string"}},
    },
}
TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}
TEXT = {"type": "string"}
WRONG = {
    "400": "what is wrong with the body, in a sentence", "401": "a token is needed", "404": "no such model or version",
    "413": "the body or the number of rows is too large", "415": "another content type or encoding is needed",
    "429": "too many requests of this caller", "503": "too much waits, or the machine lacks something",
}  # fmt: skip
REASON: Schema = {"type": "object", "required": ["column", "reason"], "properties": {"column": TEXT, "reason": TEXT, "value": {}}}
ROW_ERROR: Schema = {
    "type": "object", "required": ["error"], "additionalProperties": False, "properties": {"error": REASON},
}  # fmt: skip


def document(model: Model, name: str, token: bool = False) -> Schema:
    """The description that `/openapi.json` answers."""
    path = f"/v1/models/{quote(name, safe='')}"
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "examples": [model.version, "1"]}}
    found = {
        f"{path}:predict": {"post": _predict(model, "predict")},
        f"{path}/versions/{{version}}:predict": {"parameters": [version], "post": _predict(model, "predictVersion")},
        path: _get("Status of the model", "status"),
        f"{path}/metadata": _get("Signature of the model", "metadata"),
        **_examined(model, path),
        "/v2": _get("The server, of the Open Inference Protocol", "server"),
        f"/v2{path[3:]}": _get("Tensors of the model", "tensors"),
        f"/v2{path[3:]}/ready": _get("Whether the model answers", "ready_model"),
        f"/v2{path[3:]}/infer": {"post": _post("Predict tensors", "infer", "InferRequest", "InferResponse")},
        "/v1/models": _get("The models served here", "models"),
        "/v2/health/live": _get("Whether the process lives", "live", public=True),
        "/v2/health/ready": _get("Whether requests are answered", "ready", public=True),
        "/healthz": _get("Whether the process lives", "healthz", public=True),
        "/metrics": _get("Prometheus metrics", "metrics", "text/plain"),
    }
    outputs = ", ".join(f.name for f in model.signature.outputs)
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": model.version, "description": f"Predicts {outputs}."},
        "servers": [{"url": "/"}],
        "paths": found,
        "components": {
            "schemas": _schemas(model),
            **({"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}} if token else {}),
        },
        **({"security": [{"token": []}]} if token else {}),
    }


def _schemas(model: Model) -> dict[str, Schema]:
    signature = model.signature
    row: Schema = {
        "type": "object",
        "properties": {f.name: _field(f, SHAPES) for f in signature.inputs},
        "required": [f.name for f in signature.inputs if f.required],
    }
    instance: Schema = {"$ref": "#/components/schemas/Row"}
    columns: Schema = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "array", "maxItems": ROWS}}
    if len(signature.inputs) == 1:
        instance = {"anyOf": [instance, _field(signature.inputs[0], SHAPES)]}
        columns = {"anyOf": [columns, {"type": "array", "maxItems": ROWS}]}
    answer: Schema = {"type": "object", "properties": _answers(signature.outputs), "required": [f.name for f in signature.outputs]}
    if len(signature.outputs) == 1:
        answer = {"anyOf": [answer, _field(signature.outputs[0], ANSWERS)]}
    params = {p.name: _param(p) for p in signature.params}
    rest = {
        "params": {"type": ["object", "null"], "properties": params, "additionalProperties": False},
        "seed": {"type": ["integer", "null"], "minimum": 0, "description": "fixes the random numbers of programs that draw any"},
        "strict": {"type": "boolean", "default": False, "description": "true turns a failed row into status 400"},
        "signature_name": {"enum": [SIGNATURE, "", None]},
    }
    shared: Schema = {"type": "object", "additionalProperties": False}
    return {
        "Row": row,
        "Instances": {
            **shared, "required": ["instances"],
            "properties": {"instances": {"type": "array", "maxItems": ROWS, "items": instance}, **rest},
        },
        "Inputs": {**shared, "required": ["inputs"], "properties": {"inputs": columns, **rest}},
        "Answer": answer,
        "RowError": ROW_ERROR,
        "Predictions": {
            **shared, "required": ["predictions"],
            "properties": {"predictions": {"type": "array", "items": _either("RowError", "Answer")}},
        },
        "Outputs": {
            **shared, "required": ["outputs"],
            "properties": {"outputs": {"type": ["array", "object"], "additionalProperties": {"type": "array"}}},
        },
        "Error": {"type": "object", "required": ["error"], "properties": {"error": TEXT}},
        "Examples": {
            **shared, "required": ["examples"],
            "properties": {
                "examples": {"type": "array", "maxItems": ROWS, "items": {"type": "object"}}, "context": {"type": ["object", "null"]},
                "signature_name": {"type": ["string", "null"]},
            },
        },
        "Results": {**shared, "required": ["results"], "properties": {"results": {"type": "array"}}},
        "Tensor": {
            "type": "object", "required": ["name", "shape", "datatype"],
            "properties": {
                "name": {"enum": [f.name for f in signature.inputs]}, "datatype": {"enum": ["BYTES", *DATATYPES]}, "data": {"type": "array"},
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
                "parameters": {"type": "object"},
            },
        },
        "InferRequest": {
            "type": "object", "required": ["inputs"],
            "properties": {
                "id": TEXT, "parameters": {"type": "object"}, "inputs": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Tensor"}},
                "outputs": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": TEXT}}},
            },
        },
        "InferResponse": {
            "type": "object", "required": ["model_name", "outputs"],
            "properties": {"model_name": TEXT, "model_version": TEXT, "id": TEXT, "outputs": {"type": "array", "items": {"type": "object"}}},
        },
    }  # fmt: skip


def _examined(model: Model, path: str) -> dict[str, Schema]:
    """TensorFlow Serving's other methods, where the model has an output that they can tell."""
    outputs = model.signature.outputs
    methods = [m for m, there in (("classify", any(f.labels for f in outputs)), ("regress", any(f.kind == "number" for f in outputs))) if there]
    return {f"{path}:{m}": {"post": _post(f"{m.capitalize()} examples", m, "Examples", "Results")} for m in methods}


def _post(text: str, operation: str, asked: str, answered: str) -> Schema:
    wrong = {code: {"description": says, "content": _json({"$ref": "#/components/schemas/Error"})} for code, says in WRONG.items()}
    good = {"description": text, "content": _json({"$ref": f"#/components/schemas/{answered}"})}
    return {
        "summary": text, "operationId": operation,
        "requestBody": {"required": True, "content": _json({"$ref": f"#/components/schemas/{asked}"})}, "responses": {"200": good, **wrong},
    }  # fmt: skip


def _predict(model: Model, operation: str) -> Schema:
    wrong = {code: {"description": text, "content": _json({"$ref": "#/components/schemas/Error"})} for code, text in WRONG.items()}
    body = _json(_either("Instances", "Inputs"))
    body["application/json"]["example"] = {"instances": model.examples[:1]}
    good = {"description": "one answer a row, in order", "content": _json(_either("Predictions", "Outputs"))}
    return {
        "summary": "Predict rows", "operationId": operation, "requestBody": {"required": True, "content": body},
        "responses": {"200": good, **wrong},
    }  # fmt: skip


def _get(text: str, operation: str, kind: str = "application/json", public: bool = False) -> Schema:
    schema = {"type": "object"} if kind == "application/json" else TEXT
    found: Schema = {
        "summary": text,
        "operationId": operation,
        "responses": {"200": {"description": text, "content": {kind: {"schema": schema}}}},
    }
    return {"get": found | ({"security": []} if public else {})}


def _either(*names: str) -> Schema:
    return {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _field(f: Field, shapes: dict[str, Schema]) -> Schema:
    shape = dict(shapes.get(f.kind, {}))
    if f.labels and f.kind == "category":
        shape["examples"] = f.labels[:5]
    return shape


def _answers(outputs: list[Field]) -> dict[str, Schema]:
    found: dict[str, Schema] = {}
    for f in outputs:
        found[f.name] = _field(f, ANSWERS)
        if f.kind == "tags":
            found |= {f"{f.name}.entities": ENTITIES, f"{f.name}.score": {"type": ["number", "null"], "description": "of the tags as a whole"}}
            continue
        found[f"{f.name}.scores"] = {
            "type": "object",
            "additionalProperties": {"type": ["number", "null"]},
            "description": "score of each label",
        }
        if coverage := f.summary.get("coverage"):
            says = f"holds the truth in {coverage:.4g} of all rows"
            more = {"set": {"type": ["array", "null"], "items": TEXT, "description": f"labels; {says}"}} if f.kind == "category" else {
                end: {"type": ["number", "null"], "description": f"{end} end of the interval that {says}"} for end in ("low", "high")
            }  # fmt: skip
            found |= {f"{f.name}.{part}": shape for part, shape in more.items()}
    return found


def _param(p: Param) -> Schema:
    shape: Schema = {"type": TYPES[p.type], "default": p.default, "description": p.doc}
    bounds = {"minimum": p.low, "maximum": p.high, "enum": list(p.choices) if p.choices else None}
    return shape | {k: v for k, v in bounds.items() if v is not None}
