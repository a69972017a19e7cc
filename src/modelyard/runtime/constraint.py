"""What an answer may be made to follow: any JSON object, a JSON schema, or a regular expression, as grammars over bytes.

Schemas are read as OpenAI's and vLLM's structured outputs use them: an object has its `properties` in the order of the schema, the
required ones always; keywords that would not be obeyed are refused, so that an answer always validates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modelyard.runtime._expression import expression
from modelyard.runtime._grammar import Grammar, GrammarError, Node, alt, byte_set, characters, literal, optional, reference, repeat, seq

__all__ = ["GrammarError", "json_object", "json_schema", "regex"]

NODES = 5_000
"""Subschemas of a schema, references opened once each."""
NEST = 32
"""Nesting of a schema."""
LONG = 10_000
"""Largest `minLength`, `maxItems` and the like."""

DIGIT, NONZERO = byte_set(b"0123456789"), byte_set(b"123456789")
ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "deprecated", "readOnly",
               "writeOnly", "$comment", "format"}  # fmt: skip
"""Keywords that say nothing about validity (`format` is an annotation since draft 2019-09)."""
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"}, "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"}, "number": set(), "integer": set(), "boolean": set(), "null": set(),
}  # fmt: skip


def space() -> Node:
    """At most two blanks or line breaks, so that a model cannot write blanks for ever."""
    return repeat(byte_set(b" \n"), 0, 2)


def character() -> Node:
    """One character inside a JSON string: as it is, or escaped. Halves of surrogate pairs are not escaped: no UTF-8 text holds them."""
    hexa, plain = byte_set(b"0123456789abcdefABCDEF"), characters([(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF)])
    high = alt(seq(byte_set(b"0123456789abcefABCEF"), hexa), seq(byte_set(b"dD"), byte_set(b"01234567")))
    return alt(plain, seq(literal("\\"), alt(byte_set(b'"\\/bfnrt'), seq(literal("u"), high, hexa, hexa))))


def string(one: Node, least: int = 0, most: int | None = None) -> Node:
    """A string of so many characters; `one` is `character()`, made once for each grammar since it has 30 nodes."""
    return seq(literal('"'), repeat(one, least, most), literal('"'))


def integer() -> Node:
    """A whole number of at most 15 digits, which every reader holds exactly."""
    return seq(optional(literal("-")), alt(literal("0"), seq(NONZERO, repeat(DIGIT, 0, 14))))


def number() -> Node:
    """A number, with at most 15 digits after the point and 2 in the exponent."""
    power = seq(byte_set(b"eE"), optional(byte_set(b"+-")), repeat(DIGIT, 1, 2))
    return seq(integer(), optional(seq(literal("."), repeat(DIGIT, 1, 15))), optional(power))


def between(opening: str, inner: Node, closing: str) -> Node:
    """Brackets with blanks inside."""
    return seq(literal(opening), space(), inner, space(), literal(closing))


def comma() -> Node:
    """Between two members."""
    return seq(space(), literal(","), space())


def member(key: Node, value: Node) -> Node:
    """`"key": value`."""
    return seq(key, space(), literal(":"), space(), value)


def listed(item: Node, least: int = 0, most: int | None = None) -> Node:
    """Items with commas."""
    if most == 0:
        return seq()
    rest = seq(item, repeat(seq(comma(), item), max(0, least - 1), None if most is None else most - 1))
    return rest if least else optional(rest)


def anything(one: Node) -> Node:
    """Any JSON value."""
    value = reference()
    value.parts = (
        alt(
            between("{", listed(member(string(one), value)), "}"), between("[", listed(value), "]"), string(one), number(),
            literal("true"), literal("false"), literal("null"),
        ),
    )  # fmt: skip
    return value


def json_object(whole: frozenset[bytes] | None = None) -> Grammar:
    """Any JSON object; `whole` are the short tokens of the vocabulary that will write it (`Tokens.whole`)."""
    one = character()
    return Grammar(between("{", listed(member(string(one), anything(one))), "}"), whole)


def json_schema(schema: Any, whole: frozenset[bytes] | None = None) -> Grammar:
    """Values of a JSON schema. Raises `GrammarError` naming what is not read."""
    return Grammar(Schema(schema).node(schema, "schema", 0), whole)


def regex(pattern: str, whole: frozenset[bytes] | None = None) -> Grammar:
    """Texts that match a regular expression as a whole; see `_expression.py` for what is read."""
    return Grammar(expression(pattern), whole)


class Schema:
    """Reads one schema; references are opened once each, so a schema may contain itself."""

    def __init__(self, root: Any) -> None:
        self.root, self.count = root, 0
        self.opened: dict[str, Node] = {}
        self.character = character()
        self.anything = anything(self.character)

    def node(self, schema: Any, where: str, depth: int) -> Node:
        """The grammar of a subschema."""
        self.count += 1
        if self.count > NODES or depth > NEST:
            raise GrammarError(f"the schema has more than {NODES} parts, or nests deeper than {NEST}")
        if schema is True or schema == {}:
            return self.anything
        if not isinstance(schema, Mapping):
            raise GrammarError(f"{where} must be an object")
        known = {k: v for k, v in schema.items() if k not in ANNOTATIONS}
        for name, read in (("$ref", self._reference), ("enum", self._values), ("const", self._values), ("anyOf", self._any), ("allOf", self._all)):
            if name in known:
                return read(name, known, where, depth)
        kinds = known.get("type")
        if isinstance(kinds, list) and kinds:
            rest = {k: v for k, v in known.items() if k != "type"}
            allowed = set().union(*(KEYWORDS.get(str(k), set()) for k in kinds))
            _refuse(set(rest) - allowed, where)
            return alt(*(self._typed(str(k), {x: v for x, v in rest.items() if x in KEYWORDS.get(str(k), set())}, where, depth) for k in kinds))
        if kinds is None and set(known) & KEYWORDS["object"]:
            raise GrammarError(f'{where} needs "type": "object"')
        if not isinstance(kinds, str):
            raise GrammarError(f"{where} needs a type, enum, const, anyOf or $ref; it has {', '.join(map(str, known))[:80] or 'none'}")
        return self._typed(kinds, {k: v for k, v in known.items() if k != "type"}, where, depth)

    def _typed(self, kind: str, rest: Mapping[str, Any], where: str, depth: int) -> Node:
        if kind not in KEYWORDS:
            raise GrammarError(f"{where}.type is {kind[:40]!r}; expected one of {', '.join(KEYWORDS)}")
        _refuse(set(rest) - KEYWORDS[kind], where)
        if kind == "object":
            return self._object(rest, where, depth)
        if kind == "array":
            least, most = _bounds(rest, "minItems", "maxItems", where)
            inner = self.node(rest.get("items", True), f"{where}.items", depth + 1)
            return between("[", listed(inner, least, most), "]")
        if kind == "string":
            if "pattern" in rest:
                _refuse(set(rest) - {"pattern"}, where)
                return seq(literal('"'), expression(str(rest["pattern"]), inside_json=True), literal('"'))
            return string(self.character, *_bounds(rest, "minLength", "maxLength", where))
        simple = {"number": number, "integer": integer, "boolean": lambda: alt(literal("true"), literal("false")), "null": lambda: literal("null")}
        return simple[kind]()

    def _object(self, rest: Mapping[str, Any], where: str, depth: int) -> Node:
        properties, required = rest.get("properties") or {}, rest.get("required") or []
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise GrammarError(f"{where}: properties must be an object and required a list")
        if lacking := [r for r in required if r not in properties]:
            raise GrammarError(f"{where} requires {', '.join(map(repr, lacking))[:80]}, which properties does not describe")
        if not properties:
            more = rest.get("additionalProperties", True)
            return literal("{}") if more is False else between("{", listed(member(string(self.character), self.node(more, f"{where}.*", depth + 1))), "}")
        parts = [
            (member(literal(json.dumps(str(name), ensure_ascii=False)), self.node(value, f"{where}.{name}"[:200], depth + 1)), name in required)
            for name, value in properties.items()
        ]
        # from the end: what may follow the members from i on, where one came before (tail) and where none did (head)
        tail, head = seq(), seq()
        for part, needed in reversed(parts):
            after = seq(part, tail)
            tail, head = seq(comma(), after) if needed else alt(seq(comma(), after), tail), after if needed else alt(after, head)
        return between("{", head, "}")

    def _values(self, name: str, known: Mapping[str, Any], where: str, depth: int) -> Node:
        values = known[name] if name == "enum" else [known[name]]
        _refuse(set(known) - {name, "type"}, where)
        if not isinstance(values, list) or not 1 <= len(values) <= 1000:
            raise GrammarError(f"{where}.enum must be a list of 1 to 1000 values")
        texts = [json.dumps(v, ensure_ascii=False) for v in values if _is(v, known.get("type"))]
        self.count += sum(map(len, texts)) // 10
        if not texts:
            raise GrammarError(f"{where}: none of the values is of its type")
        return alt(*(literal(t) for t in texts))

    def _any(self, name: str, known: Mapping[str, Any], where: str, depth: int) -> Node:
        _refuse(set(known) - {name}, where)
        choices = known[name]
        if not isinstance(choices, list) or not choices:
            raise GrammarError(f"{where}.anyOf must be a list")
        return alt(*(self.node(c, f"{where}.anyOf[{i}]", depth + 1) for i, c in enumerate(choices)))

    def _all(self, name: str, known: Mapping[str, Any], where: str, depth: int) -> Node:
        if set(known) != {name} or not isinstance(known[name], list) or len(known[name]) != 1:
            raise GrammarError(f"{where}.allOf is read with one part and nothing beside it")
        return self.node(known[name][0], where, depth + 1)

    def _reference(self, name: str, known: Mapping[str, Any], where: str, depth: int) -> Node:
        _refuse(set(known) - {name}, where)
        path = known[name]
        if not isinstance(path, str) or not path.startswith("#"):
            raise GrammarError(f"{where}.$ref is {str(path)[:60]!r}; only places in the same schema are read (#/$defs/…)")
        if path not in self.opened:
            place = self.opened[path] = reference()
            found = self.root
            for part in path.removeprefix("#").strip("/").split("/") if path != "#" else []:
                if not isinstance(found, Mapping) or (key := part.replace("~1", "/").replace("~0", "~")) not in found:
                    raise GrammarError(f"{where}.$ref names {path[:60]!r}, which is not in the schema")
                found = found[key]
            place.parts = (self.node(found, path[:200], depth + 1),)
        return self.opened[path]


def _bounds(rest: Mapping[str, Any], low: str, high: str, where: str) -> tuple[int, int | None]:
    least, most = rest.get(low, 0), rest.get(high)
    for value in (least, most):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LONG):
            raise GrammarError(f"{where}: {low} and {high} must be whole numbers from 0 to {LONG}")
    if most is not None and least > most:
        raise GrammarError(f"{where}: {low} {least} is above {high} {most}")
    return least, most


def _refuse(names: set[str], where: str) -> None:
    if names:
        raise GrammarError(f"{where}: {', '.join(sorted(map(str, names)))[:120]} cannot be obeyed while writing; leave it out")


def _is(value: Any, kind: Any) -> bool:
    types: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool, "null": type(None),
    }  # fmt: skip
    kinds = [kind] if isinstance(kind, str) else kind if isinstance(kind, list) else []
    if not kinds:
        return True
    return any(isinstance(value, types.get(str(k), ())) and (k == "boolean" or not isinstance(value, bool)) for k in kinds)
