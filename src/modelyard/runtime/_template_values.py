"""Values that a chat template may touch, and what may be done with them: every operation says its price before it runs.

A template is somebody else's code. No Python attribute is ever looked up by a template's name, so there is nothing to escape through;
what remains is time and memory, and both are spent from a `Budget`: a step is a node that is evaluated or 128 characters that are made.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from modelyard.errors import UsageError

CHARACTERS = 128
"""Characters that are made or read for one step: copying them takes about as long as evaluating a node (0.3 µs)."""
CLOCK = 256
"""Steps between two looks at the clock."""
WIDTH = 1_000
"""Largest width of padding and indenting, and largest parts of `batch` and `slice`."""
INTEGER = 2**64
"""Whole numbers beyond it are refused: templates count messages."""
DEPTH = 60
"""Nesting of lists and objects."""


class TemplateError(UsageError):
    """A chat template that cannot be read, asks for too much, or refuses these messages."""


class Budget:
    """Steps, characters of output and processor seconds that one rendering may spend. Processor time of this thread: a busy
    machine does not make a good template fail, and no signal or second thread is needed."""

    def __init__(self, steps: int, characters: int, seconds: float) -> None:
        self.steps, self.characters = steps, characters
        self.until, self.next = time.thread_time() + seconds, steps - CLOCK
        self.depth = 0

    def spend(self, steps: int = 1) -> None:
        """Raises `TemplateError` where more is asked than is left."""
        self.steps -= steps
        if self.steps < self.next:
            if self.steps < 0 or time.thread_time() > self.until:
                raise TemplateError("the chat template does too much work for these messages and was stopped")
            self.next = self.steps - CLOCK

    def text(self, characters: int) -> None:
        """Pays for so many characters."""
        self.spend(1 + characters // CHARACTERS)

    def weigh(self, value: Any) -> int:
        """Pays for a walk through all of a value, shared parts as often as they occur; characters it holds.

        Writing, comparing and sorting walk like this: 30 lists of two, each twice the one before, are 2^30 values.
        """
        total, todo, self.depth = 0, [(value, 0)], 0
        while todo:
            item, depth = todo.pop()
            if isinstance(item, str):
                total += len(item)
                self.text(len(item))
            elif isinstance(item, list | tuple):
                self.spend(1 + len(item))
                total += 4 * len(item)
                todo += [(x, depth + 1) for x in item]
            elif isinstance(item, dict):
                self.spend(1 + 2 * len(item))
                total += 8 * len(item)
                todo += [(x, depth + 1) for pair in item.items() for x in pair]
            else:
                self.spend()
                total += 20
            self.depth = max(self.depth, depth)
            if depth > DEPTH:
                raise TemplateError(f"the chat template nests lists deeper than {DEPTH} levels")
        return total


class Undefined:
    """What a name or key without a value gives: empty text, false, nothing to go through; anything else is an error."""

    def __init__(self, hint: str) -> None:
        self.hint = hint

    def fail(self) -> TemplateError:
        """The error of using it."""
        return TemplateError(f"the chat template uses {self.hint}, which is not defined")

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Undefined)

    def __hash__(self) -> int:
        return 0

    def __str__(self) -> str:
        return ""


class Namespace:
    """`namespace(…)`: attributes that inner loops may set."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


class Stream:
    """What `map`, `select` and their like give: passed through once, and true even when empty, as a generator is."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self.items


class Function:
    """Something a template may call: `call(budget, args, keywords)`."""

    def __init__(self, name: str, call: Callable[[Budget, list[Any], dict[str, Any]], Any]) -> None:
        self.name, self.call = name, call


def number(value: Any) -> Any:
    """A number within bounds."""
    if isinstance(value, complex) or (isinstance(value, int) and abs(value) > INTEGER):
        raise TemplateError("the chat template computes a number beyond 2^64")
    return value


def to_text(budget: Budget, value: Any) -> str:
    """As `{{ value }}` writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float) or value is None:
        return str(value)
    if isinstance(value, Undefined):
        return ""
    if isinstance(value, list | tuple | dict | range):
        budget.text(budget.weigh(value))
        _plain(budget, value)
        return str(value)
    return f"<{type(value).__name__.lower()}>"


def _plain(budget: Budget, value: Any) -> None:
    """Only JSON's values are written inside lists: our own objects have no text."""
    todo = [value]
    while todo:
        item = todo.pop()
        budget.spend()
        if isinstance(item, list | tuple):
            todo += item
        elif isinstance(item, dict):
            todo += item.values()
        elif not (item is None or isinstance(item, str | int | float | range)):
            raise TemplateError(f"the chat template writes a {type(item).__name__.lower()}, which has no text")


def to_list(budget: Budget, value: Any) -> list[Any]:
    """All items of what can be gone through, paid for."""
    if isinstance(value, str | list | tuple | dict | range):
        budget.spend(1 + len(value) // 8)
        return list(value)
    if isinstance(value, Undefined):
        return []
    if isinstance(value, Stream):
        found = []
        for item in value:
            budget.spend()
            found.append(item)
        return found
    raise TemplateError(f"the chat template goes through {_kind(value)}")


def attribute(budget: Budget, value: Any, name: Any) -> Any:
    """`value.name`: a method of the lists below, else the key; `Undefined` where there is neither."""
    budget.spend()
    if isinstance(value, Undefined):
        raise value.fail()
    if isinstance(value, Namespace):
        return value.values.get(name, Undefined(f"the attribute {str(name)[:40]!r} of a namespace"))
    if hasattr(value, "template_attribute"):  # a loop or a macro of ours, never a template's wish
        return value.template_attribute(name)
    if isinstance(name, str) and name in METHODS.get(type(value), {}):
        method = METHODS[type(value)][name]
        return Function(name, lambda b, args, keywords: method(b, value, *args, **keywords))
    if isinstance(value, dict):
        return value[name] if isinstance(name, str) and name in value else Undefined(f"the key {str(name)[:40]!r}")
    return Undefined(f"{str(name)[:40]!r} of {_kind(value)}")


def item(budget: Budget, value: Any, key: Any) -> Any:
    """`value[key]`; a text key that is no key is a method, as in Jinja."""
    budget.spend()
    if isinstance(value, dict):
        if key is not None and not isinstance(key, str | int | float):
            raise TemplateError(f"the chat template looks up {_kind(key)} in an object")
        if key in value:
            return value[key]
    elif isinstance(value, str | list | tuple | range):
        if isinstance(key, slice):
            found = value[key]
            budget.text(len(found) * (1 if isinstance(found, str) else 16))
            return found
        if isinstance(key, int):
            return value[key] if -len(value) <= key < len(value) else Undefined(f"item {key}")
    return attribute(budget, value, key)


def _kind(value: Any) -> str:
    return {"NoneType": "none", "str": "a text", "list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__.lower())


def _find_cost(budget: Budget, text: str, part: str) -> None:
    """Searching may be quadratic: `'aaa…b'` in `'aaa…'`."""
    budget.spend(1 + len(text) * max(1, len(part)) // 4096)


def _texts(*values: Any) -> None:
    for value in values:
        if isinstance(value, Undefined):
            raise value.fail()
        if not isinstance(value, str):
            raise TemplateError(f"the chat template takes {_kind(value)} where a text is needed")


def _made(budget: Budget, text: str) -> str:
    budget.text(len(text))
    return text


def replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> str:
    """`text.replace`, its length paid before it is made."""
    _texts(text, old, new)
    _find_cost(budget, text, old)
    found = text.count(old) if old else len(text) + 1
    found = found if count < 0 else min(found, count)
    budget.text(len(text) + found * max(0, len(new) - len(old)))
    return text.replace(old, new, count)


def _split(name: str) -> Callable[..., Any]:
    def split(budget: Budget, text: str, sep: Any = None, maxsplit: int = -1) -> list[str]:
        _texts(*([] if sep is None else [sep]))
        _find_cost(budget, text, sep or " ")
        budget.spend((text.count(sep) if sep else len(text)) // 4)
        return getattr(text, name)(sep, maxsplit)  # type: ignore[no-any-return]

    return split


def _strip(name: str) -> Callable[..., Any]:
    def strip(budget: Budget, text: str, chars: Any = None) -> str:
        _texts(*([] if chars is None else [chars]))
        _find_cost(budget, text, chars or " ")
        return _made(budget, getattr(text, name)(chars))

    return strip


def _search(name: str) -> Callable[..., Any]:
    def search(budget: Budget, text: str, part: Any, *rest: Any) -> Any:
        parts = part if isinstance(part, tuple) else (part,)
        _texts(*parts)
        for p in parts:
            _find_cost(budget, text, p)
        try:
            return getattr(text, name)(part, *rest)
        except ValueError:
            raise TemplateError("the chat template looks for a text that is not there") from None

    return search


def _pad(name: str) -> Callable[..., Any]:
    def padded(budget: Budget, text: str, width: int, *fill: str) -> str:
        if not isinstance(width, int) or width > WIDTH:
            raise TemplateError(f"the chat template pads to {str(width)[:20]} characters; at most {WIDTH}")
        return _made(budget, getattr(text, name)(width, *fill))

    return padded


def _simple(name: str) -> Callable[..., Any]:
    def simple(budget: Budget, text: str) -> Any:
        budget.text(len(text))
        return getattr(text, name)()

    return simple


def join(budget: Budget, separator: Any, items: Iterable[Any]) -> str:
    """`separator.join`, paid for before it is made."""
    parts = [to_text(budget, x) for x in to_list(budget, items)]
    separator = to_text(budget, separator)
    budget.text(sum(map(len, parts)) + len(separator) * len(parts))
    return str(separator).join(parts)


def _get(budget: Budget, value: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return value.get(key, default) if key is None or isinstance(key, str | int | float) else default


def _count(budget: Budget, value: Any, wanted: Any) -> int:
    budget.weigh(value)
    budget.weigh(wanted)
    return int(value.count(wanted))


def _index(budget: Budget, value: Any, wanted: Any) -> int:
    if not _count(budget, value, wanted):
        raise TemplateError("the chat template looks for a value that is not in the list")
    return int(value.index(wanted))


_LIST: dict[str, Callable[..., Any]] = {"index": _index, "count": _count}
METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    str: {
        **{n: _simple(n) for n in ("lower", "upper", "title", "capitalize", "swapcase", "casefold", "isdigit", "isalpha", "isalnum",
                                   "isspace", "isupper", "islower", "isnumeric", "isdecimal", "splitlines")},
        **{n: _strip(n) for n in ("strip", "lstrip", "rstrip")},
        **{n: _split(n) for n in ("split", "rsplit")},
        **{n: _search(n) for n in ("startswith", "endswith", "find", "rfind", "index", "rindex", "count", "partition", "rpartition",
                                   "removeprefix", "removesuffix")},
        **{n: _pad(n) for n in ("ljust", "rjust", "center", "zfill")},
        "replace": replace, "join": join,
    },
    dict: {
        "get": _get,
        "items": lambda b, d: [*map(tuple, to_list(b, [*d.items()]))],
        "keys": lambda b, d: to_list(b, d),
        "values": lambda b, d: to_list(b, [*d.values()]),
    },
    list: _LIST, tuple: _LIST,
}  # fmt: skip
"""Methods a template may call, by the type of the value."""


def add(budget: Budget, a: Any, b: Any) -> Any:
    """`a + b`."""
    if isinstance(a, str) and isinstance(b, str):
        budget.text(len(a) + len(b))
        return a + b
    if (isinstance(a, list) and isinstance(b, list)) or (isinstance(a, tuple) and isinstance(b, tuple)):
        budget.spend(1 + (len(a) + len(b)) // 8)
        return a + b  # type: ignore[operator]
    return arithmetic(budget, "+", a, b)


def times(budget: Budget, a: Any, b: Any) -> Any:
    """`a * b`."""
    if isinstance(a, int) and isinstance(b, str | list | tuple):
        a, b = b, a
    if isinstance(a, str | list | tuple) and isinstance(b, int):
        budget.text(len(a) * max(0, b) * (1 if isinstance(a, str) else 16))
        return a * b
    return arithmetic(budget, "*", a, b)


SPEC = re.compile(r"%(?:[sdif%]|\.\d{1,2}f|0?\d{1,2}d)")


def modulo(budget: Budget, a: Any, b: Any) -> Any:
    """`a % b`; of texts only plain specifications (%s, %d, %.2f), since a width is a wish for memory."""
    if not isinstance(a, str):
        return arithmetic(budget, "%", a, b)
    if "%" in SPEC.sub("", a):
        raise TemplateError("the chat template formats a text with more than %s, %d and %.2f")
    values = tuple(to_text(budget, x) if not isinstance(x, int | float) else x for x in (b if isinstance(b, tuple) else (b,)))
    budget.text(len(a) + sum(len(v) if isinstance(v, str) else 400 for v in values))
    return a % values


OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "//": lambda a, b: a // b, "%": lambda a, b: a % b, "**": lambda a, b: a**b,
}  # fmt: skip


def arithmetic(budget: Budget, operator: str, a: Any, b: Any) -> Any:
    """Numbers only, and only small ones."""
    budget.spend()
    for value in (a, b):
        if isinstance(value, Undefined):
            raise value.fail()
        if not isinstance(value, int | float):
            raise TemplateError(f"the chat template computes {_kind(a)} {operator} {_kind(b)}")
    if operator == "**" and isinstance(a, int) and isinstance(b, int) and b * max(1, abs(a).bit_length()) > 128:
        raise TemplateError("the chat template computes a number beyond 2^64")
    return number(OPERATORS[operator](a, b))


def compare(budget: Budget, operator: str, a: Any, b: Any) -> bool:
    """`==`, `in`, `<` and their like; both sides are paid for, since equal lists are walked to the end."""
    if operator in ("in", "notin"):
        return _contains(budget, a, b) == (operator == "in")
    if isinstance(a, str | list | tuple | dict) and type(a) is type(b):
        budget.weigh(a)
        budget.weigh(b)
    else:
        budget.spend()
    if operator in ("eq", "ne"):
        return (a == b) == (operator == "eq")
    for value in (a, b):
        if isinstance(value, Undefined):
            raise value.fail()
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    if not numbers and not (type(a) is type(b) and isinstance(a, str | list | tuple)):
        raise TemplateError(f"the chat template puts {_kind(a)} and {_kind(b)} in order")
    return bool({"lt": a < b, "lteq": a <= b, "gt": a > b, "gteq": a >= b}[operator])


def _contains(budget: Budget, a: Any, b: Any) -> bool:
    if isinstance(b, str):
        _texts(a)
        _find_cost(budget, b, a)
        return a in b
    if isinstance(b, dict):
        budget.spend()
        return (a is None or isinstance(a, str | int | float)) and a in b
    if isinstance(b, range):
        return isinstance(a, int) and a in b
    items = to_list(budget, b)
    budget.weigh(a)
    budget.weigh(items)
    return a in items


def to_json(budget: Budget, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    """`tojson` as `transformers` defines it: no HTML escapes."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise TemplateError("the chat template indents JSON by more than 16")
    weight = budget.weigh(value)
    budget.text(6 * weight + (indent or 0) * budget.depth * weight // 4)
    _plain(budget, value)
    try:
        return _made(budget, json.dumps(value, ensure_ascii=bool(ensure_ascii), indent=indent, separators=separators, sort_keys=bool(sort_keys)))
    except (TypeError, ValueError):
        raise TemplateError("the chat template writes as JSON what JSON cannot hold") from None


def whole(value: Any, default: Any = 0, base: int = 10) -> Any:
    """`int`."""
    try:
        return number(int(value[:40], base) if isinstance(value, str) else int(value))
    except (TypeError, ValueError, OverflowError):
        try:
            return number(int(float(value)))
        except (TypeError, ValueError, OverflowError):
            return default


def real(value: Any, default: Any = 0.0) -> Any:
    """`float`."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return default


def rounded(value: Any, precision: Any = 0, method: str = "common") -> float:
    """`round`."""
    if not isinstance(value, int | float) or not isinstance(precision, int) or abs(precision) > 20:
        raise TemplateError("the chat template rounds what is no number, or to more than 20 digits")
    if method == "common":
        return float(round(float(value), precision))
    scale = 10.0**precision
    return (math.ceil if method == "ceil" else math.floor)(value * scale) / scale
