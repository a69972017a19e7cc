"""A client of the Open Inference Protocol over gRPC that takes and gives rows, for comparing them."""

from __future__ import annotations

import base64
import json
from typing import Any

import grpc
import numpy as np

from modelyard.runtime.answers import Answers
from modelyard.runtime.model import Model, answers_from_json
from modelyard.verbs.serve import inference, rpc


def over_grpc(address: str, name: str, model: Model, rows: list[dict[str, Any]], like: Answers, body: int, raw: bool = False) -> Answers:
    """Answers of a server's model `name` to all rows, `body` in a call, their tensors typed or raw; `like` and `model` say what is in them.

    Rows have a value in every column of texts: BYTES know no other."""
    messages = rpc.protocol().messages
    found: list[dict[str, Any]] = []
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        infer = channel.unary_unary(f"/{rpc.protocol().service}/ModelInfer", None, messages["ModelInferResponse"].FromString)
        for start in range(0, len(rows), body):
            piece = rows[start : start + body]
            asked = messages["ModelInferRequest"](model_name=name)
            for field in model.signature.inputs:
                values = [r[field.name] for r in piece]
                datatype = "FP64" if field.kind == "number" else "BYTES"
                tensor = asked.inputs.add(name=field.name, datatype=datatype, shape=[len(piece)])
                if datatype == "FP64":
                    values = [float("nan") if v is None else float(v) for v in values]
                    flat = np.array(values).tobytes()
                else:
                    values = [base64.b64decode(v) if field.kind == "image" else (v if isinstance(v, str) else json.dumps(v)).encode("utf-8") for v in values]
                    flat = b"".join(len(v).to_bytes(4, "little") + v for v in values)
                if raw:
                    asked.raw_input_contents.append(flat)
                else:
                    getattr(tensor.contents, rpc.CONTENTS[datatype]).extend(values)
            found += _rows(infer(asked.SerializeToString(), timeout=120), model, inference.TYPES)
    return answers_from_json(found, like)


def _rows(answer: Any, model: Model, types: dict[str, Any]) -> list[dict[str, Any]]:
    """Tensors as what `:predict` says of each row."""
    fields = {f.name: f for f in model.signature.outputs}
    columns: dict[str, list[Any]] = {}
    for i, tensor in enumerate(answer.outputs):
        if answer.raw_output_contents:
            piece = memoryview(answer.raw_output_contents[i])
            values = _texts(piece) if tensor.datatype == "BYTES" else np.frombuffer(piece, types[tensor.datatype]).tolist()
        else:
            values = [v for _, all_of in tensor.contents.ListFields() for v in all_of]
        name = tensor.name.removesuffix(".scores")
        if tensor.name != name:
            labels = fields[name].labels or []
            columns[tensor.name] = [dict(zip(labels, values[k : k + len(labels)], strict=True)) for k in range(0, len(values), len(labels))]
        elif tensor.datatype == "BYTES":
            texts = [v.decode("utf-8") for v in values]
            columns[name] = [json.loads(t) for t in texts] if fields[name].kind == "label-set" else texts
        else:
            columns[name] = values
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _texts(piece: memoryview) -> list[bytes]:
    """Elements of a raw BYTES tensor."""
    found, at = [], 0
    while at < len(piece):
        size = int.from_bytes(piece[at : at + 4], "little")
        found.append(bytes(piece[at + 4 : at + 4 + size]))
        at += 4 + size
    return found
