"""Message classes of a .proto file, made when it is read: no generated code that a newer protobuf would refuse.

What `protoc` writes names the version that it was written for, and a runtime two majors newer does not load it. The descriptors that it writes
have been the same for ten years, so they are made here: of messages in messages, scalars, `repeated`, `map`, `oneof` and `service`. The
classes live in a pool of their own; a client's classes of the same names, in the same process, do not meet them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(r"[\w.]+|[{}();=<>,]")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/|\"[^\"\n]*\"", re.DOTALL)
SCALARS = ("double", "float", "int64", "uint64", "int32", "fixed64", "fixed32", "bool", "string", "bytes", "uint32")


@dataclass(frozen=True)
class Wire:
    """What a file says."""

    service: str
    """Full name of its service."""
    methods: dict[str, tuple[Any, Any]]
    """Classes of the request and of the answer by method."""
    messages: dict[str, Any]
    """Classes by name in the package."""


def load(text: str) -> Wire:
    """The classes of a proto3 file. Raises `ValueError` where it holds what is not read here, `ImportError` without protobuf."""
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    file, methods = parse(text)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    classes = {m.name: GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{m.name}")) for m in file.message_type}
    service = f"{file.package}.{file.service[0].name}"
    return Wire(service, {name: (classes[a], classes[b]) for name, (a, b) in methods.items()}, classes)


def parse(text: str) -> tuple[Any, dict[str, tuple[str, str]]]:
    """(the `FileDescriptorProto`, request and answer by method) of a proto3 file."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name="modelyard.proto", syntax="proto3")
    methods: dict[str, tuple[str, str]] = {}
    tokens = iter(TOKEN.findall(COMMENT.sub("", text)))
    for word in tokens:
        if word == "package":
            file.package = next(tokens)
        elif word == "message":
            _message(file.message_type.add(), tokens)
        elif word == "service":
            methods = _service(file.service.add(), tokens)
        elif word not in ("syntax", "=", ";"):
            raise ValueError(f"{word!r} is not read here")
    for message in file.message_type:
        _resolve(message, f".{file.package}", [f".{file.package}.{m.name}" for m in file.message_type])
    for method in file.service[0].method if file.service else []:
        method.input_type, method.output_type = (f".{file.package}.{name}" for name in methods[method.name])
    return file, methods


def _take(tokens: Iterator[str], *expected: str) -> None:
    for want in expected:
        if (found := next(tokens, "")) != want:
            raise ValueError(f"{want!r} was expected, not {found!r}")


def _service(service: Any, tokens: Iterator[str]) -> dict[str, tuple[str, str]]:
    service.name = next(tokens)
    _take(tokens, "{")
    found = {}
    while (word := next(tokens)) != "}":
        if word != "rpc":
            raise ValueError(f"{word!r} is not read here")
        method = service.method.add(name=next(tokens), options={})
        _take(tokens, "(")
        asked = next(tokens)
        _take(tokens, ")", "returns", "(")
        found[method.name] = (asked, next(tokens))
        _take(tokens, ")", "{", "}")
    return found


def _message(message: Any, tokens: Iterator[str]) -> None:
    message.name = next(tokens)
    _take(tokens, "{")
    while (word := next(tokens)) != "}":
        if word == "message":
            _message(message.nested_type.add(), tokens)
        elif word == "oneof":
            message.oneof_decl.add(name=next(tokens))
            _take(tokens, "{")
            while (kind := next(tokens)) != "}":
                _field(message, kind, tokens).oneof_index = len(message.oneof_decl) - 1
        elif word == "map":
            _map(message, tokens)
        else:
            repeated = word == "repeated"
            field = _field(message, next(tokens) if repeated else word, tokens)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL


def _field(message: Any, kind: str, tokens: Iterator[str]) -> Any:
    field = message.field.add(name=next(tokens))
    field.label = field.LABEL_OPTIONAL
    _take(tokens, "=")
    field.number = int(next(tokens))
    _take(tokens, ";")
    _typed(field, kind)
    return field


def _typed(field: Any, kind: str) -> None:
    if kind in SCALARS:
        field.type = getattr(field, f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = field.TYPE_MESSAGE, kind


def _map(message: Any, tokens: Iterator[str]) -> None:
    """A map is a list of entries with a key and a value (Protocol Buffers' language guide, "Maps")."""
    _take(tokens, "<")
    kinds = [next(tokens)]
    _take(tokens, ",")
    kinds.append(next(tokens))
    _take(tokens, ">")
    name = next(tokens)
    entry = message.nested_type.add(name="".join(p.capitalize() for p in name.split("_")) + "Entry")
    entry.options.map_entry = True
    for number, (part, kind) in enumerate(zip(("key", "value"), kinds, strict=True), 1):
        field = entry.field.add(name=part, number=number)
        field.label = field.LABEL_OPTIONAL
        _typed(field, kind)
    _take(tokens, "=")
    field = message.field.add(name=name, number=int(next(tokens)), type_name=entry.name)
    field.label, field.type = field.LABEL_REPEATED, field.TYPE_MESSAGE
    _take(tokens, ";")


def _resolve(message: Any, scope: str, known: list[str]) -> None:
    """Full names of the messages that fields hold: the innermost of that name."""
    own = f"{scope}.{message.name}"
    known = [*(f"{own}.{m.name}" for m in message.nested_type), *known]
    for field in message.field:
        if field.type_name:
            field.type_name = next(name for name in known if name.rpartition(".")[2] == field.type_name)
    for inner in message.nested_type:
        _resolve(inner, own, known)
