"""Constrained writing: whatever a model of random weights prefers, its answer parses, validates and matches."""

from __future__ import annotations

import json
import random as chance
import re
import time
from typing import Any

import jsonschema
import numpy as np
import pytest

from modelyard.runtime._grammar import Constrained, GrammarError, Rule, Tokens
from modelyard.runtime.constraint import json_object, json_schema, regex

WORDS = ["name", '":', ' "', "true", "},", "[[", "]]", '{"', "12", "0.5", "null", "é", "你好", "好\"", "\\u00", "\\n", "<eos>", "ab", "--", "1e"]
PIECES = [b"", b"", *(bytes([b]) for b in range(256)), *(w.encode("utf-8") for w in WORDS if w != "<eos>")]
END = 1
TOKENS = Tokens(PIECES, len(PIECES) + 3, [END])  # three ids more than the tokenizer knows, as padded tables have


def written(rule: Rule, seed: int, most: int, sharp: float = 1.0) -> tuple[bytes, int]:
    """A text drawn from random logits, a fixed favourite among them."""
    random = np.random.default_rng(seed)
    text = Constrained(rule, PIECES)
    found, count = b"", 0
    favourite = random.normal(0, 3, TOKENS.size)
    for count in range(1, most + 1):
        allowed = text.allowed(most - count + 1)
        assert allowed.any() and allowed[[END]].all() == text.complete
        weights = np.where(allowed, np.exp(sharp * (favourite + random.normal(0, 2, TOKENS.size))), 0)
        token = int(random.choice(TOKENS.size, p=weights / weights.sum()))
        if token == END:
            return found, count
        text.take(token)
        found += PIECES[token]
        if text.exhausted:
            break
    assert text.complete
    return found, count


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name", "age"],
     "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "boolean"}, "c": {"type": ["string", "null"]}}, "required": ["b"]},
    {"type": "object", "properties": {"a": {"type": "null"}, "b": {"enum": [1, "x\"y", None, [1, {"k": "é"}], 2.5, True]}}},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}}},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "object", "properties": {"你": {"const": "好"}}, "required": ["你"]}]},
    {"$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                        "required": ["v", "next"], "additionalProperties": False}}, "$ref": "#/$defs/node"},
    {"type": "object", "title": "T", "properties": {"code": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"}, "list": {"type": "array"}},
     "required": ["code", "list"]},
    {"type": "object", "properties": {"x": {}, "empty": {"type": "object", "additionalProperties": False}}, "required": ["x", "empty"]},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_every_answer_validates(schema: dict[str, Any]) -> None:
    rule = Rule(json_schema(schema), TOKENS)
    least = Constrained(rule, PIECES).least
    validator = jsonschema.Draft202012Validator(schema)
    seen = set()
    for seed in range(12):
        most = least + [0, 1, 5, 40][seed % 4]
        text, count = written(rule, seed, most, sharp=[1.0, 3.0][seed % 2])
        assert count <= most
        validator.validate(json.loads(text.decode("utf-8")))
        seen.add(text)
    assert len(seen) > 3


def test_any_object_parses() -> None:
    rule = Rule(json_object(), TOKENS)
    for seed in range(15):
        found = json.loads(written(rule, seed, 2 + 6 * seed)[0].decode("utf-8"))
        assert isinstance(found, dict)


def test_optional_members_may_all_stand_or_none() -> None:
    grammar = json_schema(SCHEMAS[1])
    for text, whole in [
        ('{"b":true}', True), ('{ "a": 1.5, "b" : false , "c":null}', True), ('{"b":true,"c":"x"}', True), ('{"a":1,"b":true}', True),
        ('{"a":1}', False), ('{,"b":true}', False), ('{"b":true,}', False), ('{"c":"x","b":true}', False), ('{"b":true', False), ("{}", False),
    ]:  # fmt: skip
        assert grammar.matches(text.encode()) == whole, text


def test_strings_are_whole_utf8() -> None:
    grammar = json_schema({"type": "string"})
    for text in (b'"\xc3\xa9"', '"你😀"'.encode(), b'"\\u00e9\\n\\""', b'""'):
        assert grammar.matches(text)
    for text in (b'"\xc3"', b'"\xed\xa0\x80"', b'"\xf5\x80\x80\x80"', b'"\\ud800"', b'"\n"', b'"\\x"', b'"\xc0\x80"'):
        assert not grammar.matches(text)


EXPRESSIONS = [
    r"abc|ab|(?:x|y)+z?", r"[a-c]{2,3}b*", r"^\d{3}-\w+$", r"(a|aa|aaa){2}", r"[^ab\n]x?", r"\.\*[\]\-x]", r"a{,2}b{2}", r"(ab?)*?c", r"[é-ü你]+.",
    r"\x41\u0042[\d.]+", r"a{b}", r"()|x", r"((a*)*)*b", r"\S\s\D\W",
]  # fmt: skip


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_expressions_are_those_of_python(pattern: str) -> None:
    grammar, theirs = regex(pattern), re.compile(pattern.removeprefix("^").removesuffix("$"), re.ASCII)
    random = chance.Random(0)
    letters = [c for c in "abcxyz 019-.*]é你ABx_\n{}" if c]
    found = 0
    for _ in range(3000):
        text = "".join(random.choice(letters) for _ in range(random.randint(0, 6)))
        expected = theirs.fullmatch(text) is not None
        found += expected
        assert grammar.matches(text.encode("utf-8")) == expected, text
    rule = Rule(grammar, TOKENS)
    for seed in range(5):  # and what is written matches
        text = written(rule, seed, Constrained(rule, PIECES).least + 4)[0].decode("utf-8")
        assert theirs.fullmatch(text)


@pytest.mark.parametrize("pattern", [
    "(a", "a)", "[a", "*", "a{2000}", "((a{100}){100}){100}", "(?=a)", "(?P<n>a)", "(a)\\1", "\\b", "a^b", "[z-a]", "(" * 100 + ")" * 100, "a" * 3000,
    "\\", "a++", "(?i)a", "\\xZZ", "[]", "a{5,2}",
])  # fmt: skip
def test_expressions_that_are_refused(pattern: str) -> None:
    with pytest.raises(GrammarError):
        regex(pattern)


@pytest.mark.parametrize("schema", [
    {"type": "string", "format": "date", "pattern": "a"}, {"type": "integer", "minimum": 3}, {"type": "strange"}, {"oneOf": [{"type": "string"}]},
    {"type": "object", "patternProperties": {}}, {"type": "object", "required": ["x"]}, {"$ref": "http://example.org/x"}, {"$ref": "#/$defs/none"},
    {"$ref": "#"}, {"enum": []}, [], "x", 5, {"type": "array", "minItems": 10**9}, {"type": "array", "uniqueItems": True}, {"not": {}},
    {"type": "array", "minItems": 3, "maxItems": 2}, {"properties": {"a": True}}, {"enum": ["x"] * 2000}, {"type": "string", "enum": [1]},
    {"$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}, "$ref": "#/$defs/a"},
])  # fmt: skip
def test_schemas_that_are_refused(schema: Any) -> None:
    with pytest.raises(GrammarError):
        json_schema(schema)


def test_a_vocabulary_without_braces_is_told() -> None:
    few = Tokens([b"", b"", *(bytes([c]) for c in b'abc"')], 6, [1])
    with pytest.raises(GrammarError, match="no tokens for"):
        json_object(few.whole)
    some = [b"", b"", *(bytes([c]) for c in b'{}":,ab1'), "你".encode()]  # no backslash, no brackets, no true: those are no choice then
    rule = Rule(json_object(Tokens(some, 11, [1]).whole), Tokens(some, 11, [1]))
    text = Constrained(rule, some)
    for token in (2, 4):  # {"
        text.take(token)
    assert text.allowed(20)[[8, 9, 10]].all() and not text.allowed(20)[[0, 1]].any()


def test_hostile_grammars_end_soon() -> None:
    nested: Any = {"type": "string"}
    for _ in range(200):
        nested = {"type": "array", "items": nested}
    wide = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(20_000)}}
    many = {"anyOf": [{"anyOf": [{"anyOf": [{"type": "string"}] * 60}] * 60}] * 60}
    for make in (lambda: json_schema(nested), lambda: json_schema(wide), lambda: json_schema(many),
                 lambda: regex("(.*a){20}" * 20), lambda: regex("(a|b|ab|ba)*" * 100), lambda: regex("(.{0,100}){0,100}b")):  # fmt: skip
        began = time.thread_time()
        try:
            rule = Rule(make(), TOKENS)
            written(rule, 0, Constrained(rule, PIECES).least + 20)
        except GrammarError:
            pass
        assert time.thread_time() - began < 3
