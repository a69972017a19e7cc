"""Filters and tests of chat templates: those of Jinja that templates use, each with its price. What is not here does not exist."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable
from typing import Any

from modelyard.runtime._template_values import (
    METHODS,
    WIDTH,
    Budget,
    Function,
    Stream,
    TemplateError,
    Undefined,
    add,
    attribute,
    compare,
    item,
    join,
    modulo,
    real,
    replace,
    rounded,
    to_json,
    to_list,
    to_text,
    whole,
)


def path(budget: Budget, value: Any, name: Any) -> Any:
    """`a.b.0` of a value, as `map(attribute=…)` reads it."""
    for part in str(name).split(".") if isinstance(name, str) else [name]:
        value = item(budget, value, int(part) if isinstance(part, str) and part.isdigit() else part)
    return value


def _string(name: str) -> Callable[..., Any]:
    return lambda budget, value, *args, **keywords: METHODS[str][name](budget, to_text(budget, value), *args, **keywords)


def _default(budget: Budget, value: Any, default: Any = "", boolean: bool = False) -> Any:
    return default if isinstance(value, Undefined) or (boolean and not value) else value


def _length(budget: Budget, value: Any) -> int:
    if isinstance(value, Undefined):
        return 0
    if not isinstance(value, str | list | tuple | dict | range):
        raise TemplateError("the chat template asks for the length of what has none")
    return len(value)


def _first(budget: Budget, value: Any) -> Any:
    for found in value if isinstance(value, Stream) else to_list(budget, value)[:1]:
        return found
    return Undefined("the first item of an empty list")


def _last(budget: Budget, value: Any) -> Any:
    return next(iter(to_list(budget, value)[-1:]), Undefined("the last item of an empty list"))


def _reverse(budget: Budget, value: Any) -> Any:
    if isinstance(value, str):
        budget.text(len(value))
        return value[::-1]
    return Stream(to_list(budget, value)[::-1])


def _indent(budget: Budget, value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    space = width if isinstance(width, str) else " " * width if isinstance(width, int) and width <= WIDTH else None
    if space is None or len(space) > WIDTH:
        raise TemplateError(f"the chat template indents by more than {WIDTH}")
    text = to_text(budget, value)
    budget.text(len(text) + (text.count("\n") + 1) * len(space))
    lines = (text + "\n").splitlines()  # as Jinja does, so that a last line break stays
    head = (space if first else "") + lines.pop(0)
    return "\n".join([head, *(space + line if line or blank else line for line in lines)])


def _pieces(budget: Budget, value: Any, size: Any, fill: Any = None) -> Stream:
    """`batch`."""
    if not isinstance(size, int) or not 1 <= size <= WIDTH:
        raise TemplateError(f"the chat template cuts into pieces of {str(size)[:20]}; expected 1 to {WIDTH}")
    items = to_list(budget, value)
    rows = [items[i : i + size] for i in range(0, len(items), size)]
    if rows and fill is not None:
        rows[-1] += [fill] * (size - len(rows[-1]))
    return Stream(rows)


def _dictsort(budget: Budget, value: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False) -> list[Any]:
    if not isinstance(value, dict):
        raise TemplateError("the chat template sorts by key what is no object")
    place = 0 if by == "key" else 1
    return _sorted(budget, [*value.items()], bool(reverse), lambda pair: _fold(pair[place], case_sensitive))


def _fold(value: Any, case_sensitive: Any) -> Any:
    return value.lower() if isinstance(value, str) and not case_sensitive else value


def _sorted(budget: Budget, items: list[Any], reverse: bool, key: Callable[[Any], Any]) -> list[Any]:
    budget.spend(1 + len(items) * len(items).bit_length() * (1 + budget.weigh(items) // (1 + len(items)) // 128))
    try:
        return sorted(items, key=key, reverse=reverse)
    except TypeError:
        raise TemplateError("the chat template sorts values that have no order") from None


def _sort(budget: Budget, value: Any, reverse: bool = False, case_sensitive: bool = False, attribute: Any = None) -> list[Any]:
    names = str(attribute).split(",") if isinstance(attribute, str) else None
    key = (lambda x: _fold(x, case_sensitive)) if names is None else (
        lambda x: [_fold(path(budget, x, n), case_sensitive) for n in names])  # fmt: skip
    return _sorted(budget, to_list(budget, value), bool(reverse), key)


def _unique(budget: Budget, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Stream:
    found: dict[Any, Any] = {}
    for x in to_list(budget, value):
        key = _fold(x if attribute is None else path(budget, x, attribute), case_sensitive)
        if key is not None and not isinstance(key, str | int | float):
            raise TemplateError("the chat template asks for unique lists or objects")
        found.setdefault(key, x)
    return Stream(found.values())


def _extreme(chosen: Callable[..., Any], name: str) -> Callable[..., Any]:
    def extreme(budget: Budget, value: Any, case_sensitive: bool = False, attribute: Any = None) -> Any:
        items = to_list(budget, value)
        budget.weigh(items)
        try:
            key = lambda x: _fold(x if attribute is None else path(budget, x, attribute), case_sensitive)  # noqa: E731
            return chosen(items, key=key) if items else Undefined(f"the {name} of an empty list")
        except TypeError:
            raise TemplateError("the chat template compares values that have no order") from None

    return extreme


def _sum(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    for x in to_list(budget, value):
        start = add(budget, start, x if attribute is None else path(budget, x, attribute))
    return start


def _map(budget: Budget, value: Any, *args: Any, attribute: Any = None, default: Any = None, **keywords: Any) -> Stream:
    items = to_list(budget, value)
    if attribute is not None:
        found = (path(budget, x, attribute) for x in items)
        return Stream(default if isinstance(x, Undefined) and default is not None else x for x in found)
    if not args or args[0] not in FILTERS:
        raise TemplateError("the chat template maps with a filter that does not exist")
    return Stream(call(budget, args[0], FILTERS, [x, *args[1:]], keywords) for x in items)


def _select(wanted: bool, by_attribute: bool) -> Callable[..., Any]:
    def select(budget: Budget, value: Any, *args: Any, **keywords: Any) -> Stream:
        name, args = (args[0], args[1:]) if by_attribute and args else (None, args)
        if args and args[0] not in TESTS:
            raise TemplateError("the chat template selects with a test that does not exist")

        def holds(x: Any) -> bool:
            x = path(budget, x, name) if by_attribute else x
            return bool(call(budget, args[0], TESTS, [x, *args[1:]], keywords) if args else x)

        return Stream(x for x in to_list(budget, value) if holds(x) == wanted)

    return select


def _truncate(budget: Budget, value: Any, length: int = 255, killwords: bool = False, end: str = "...", leeway: int | None = 5) -> str:
    text = to_text(budget, value)
    budget.text(len(text))
    if len(text) <= length + (leeway or 0):
        return text
    cut = text[: max(0, length - len(end))]
    return cut + end if killwords else cut.rsplit(" ", 1)[0] + end


def _absolute(budget: Budget, value: Any) -> Any:
    if not isinstance(value, int | float):
        raise TemplateError("the chat template takes the absolute value of what is no number")
    return abs(value)


def _items(budget: Budget, value: Any) -> Stream:
    if isinstance(value, Undefined):
        return Stream(())
    if not isinstance(value, dict):
        raise TemplateError("the chat template asks for the items of what is no object")
    return Stream(METHODS[dict]["items"](budget, value))


def _escape(budget: Budget, value: Any) -> str:
    text = to_text(budget, value)
    budget.text(len(text) * 5)
    return html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _safe(budget: Budget, value: Any) -> str:
    return to_text(budget, value)


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": _absolute, "batch": _pieces, "capitalize": _string("capitalize"), "center": lambda b, v, width=80: METHODS[str]["center"](
        b, to_text(b, v), width),
    "count": _length, "default": _default, "d": _default, "dictsort": _dictsort, "e": _escape, "escape": _escape, "first": _first,
    "float": lambda b, v, default=0.0: real(v, default), "format": lambda b, v, *args: modulo(b, to_text(b, v), args),
    "indent": _indent, "int": lambda b, v, default=0, base=10: whole(v, default, base), "items": _items,
    "join": lambda b, v, d="", attribute=None: join(b, d, v if attribute is None else [path(b, x, attribute) for x in to_list(b, v)]),
    "last": _last, "length": _length, "list": to_list, "lower": _string("lower"), "map": _map, "max": _extreme(max, "max"),
    "min": _extreme(min, "min"), "reject": _select(False, False), "rejectattr": _select(False, True),
    "replace": lambda b, v, old, new, count=-1: replace(b, to_text(b, v), to_text(b, old), to_text(b, new), count),
    "reverse": _reverse, "round": lambda b, v, precision=0, method="common": rounded(v, precision, method), "safe": _safe,
    "select": _select(True, False), "selectattr": _select(True, True), "sort": _sort, "string": to_text, "sum": _sum,
    "title": _string("title"), "tojson": to_json, "trim": lambda b, v, chars=None: METHODS[str]["strip"](b, to_text(b, v), chars),
    "truncate": _truncate, "unique": _unique, "upper": _string("upper"), "wordcount": lambda b, v: len(_string("split")(b, v)),
}  # fmt: skip


def _compared(operator: str) -> Callable[..., Any]:
    return lambda budget, a, b: compare(budget, operator, a, b)


def _is_callable(budget: Budget, value: Any) -> bool:
    return isinstance(value, Function) or hasattr(value, "template_call")


TESTS: dict[str, Callable[..., Any]] = {
    "boolean": lambda b, v: isinstance(v, bool), "callable": _is_callable, "defined": lambda b, v: not isinstance(v, Undefined),
    "divisibleby": lambda b, v, n: modulo(b, v, n) == 0, "even": lambda b, v: modulo(b, v, 2) == 0,
    "odd": lambda b, v: modulo(b, v, 2) == 1, "false": lambda b, v: v is False, "true": lambda b, v: v is True,
    "float": lambda b, v: isinstance(v, float), "integer": lambda b, v: isinstance(v, int) and not isinstance(v, bool),
    "in": lambda b, v, box: compare(b, "in", v, box), "iterable": lambda b, v: isinstance(
        v, str | list | tuple | dict | range | Stream | Undefined),
    "lower": lambda b, v: to_text(b, v).islower(), "upper": lambda b, v: to_text(b, v).isupper(),
    "mapping": lambda b, v: isinstance(v, dict), "none": lambda b, v: v is None, "number": lambda b, v: isinstance(v, int | float),
    "sameas": lambda b, v, other: v is other, "sequence": lambda b, v: isinstance(v, str | list | tuple | dict | range | Undefined),
    "string": lambda b, v: isinstance(v, str), "undefined": lambda b, v: isinstance(v, Undefined),
    "filter": lambda b, v: isinstance(v, str) and v in FILTERS, "test": lambda b, v: isinstance(v, str) and v in TESTS,
    **dict.fromkeys(("eq", "equalto", "=="), _compared("eq")), **dict.fromkeys(("ne", "!="), _compared("ne")),
    **dict.fromkeys(("lt", "lessthan", "<"), _compared("lt")), **dict.fromkeys(("le", "<="), _compared("lteq")),
    **dict.fromkeys(("gt", "greaterthan", ">"), _compared("gt")), **dict.fromkeys(("ge", ">="), _compared("gteq")),
}  # fmt: skip


def call(budget: Budget, name: str, table: dict[str, Callable[..., Any]], args: list[Any], keywords: dict[str, Any]) -> Any:
    """A filter or a test; wrong arguments are the template's mistake."""
    budget.spend(2)
    return checked(name, table[name], budget, args, keywords)


def checked(name: str, function: Callable[..., Any], budget: Budget, args: list[Any], keywords: dict[str, Any]) -> Any:
    """The answer of `function`; what Python says of wrong types becomes a sentence."""
    try:
        return function(budget, *args, **keywords)
    except (TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError, MemoryError, KeyError, IndexError) as error:
        raise TemplateError(f"the chat template calls {name[:40]} wrongly: {str(error)[:120]}") from None


def ranged(budget: Budget, args: list[Any], keywords: dict[str, Any]) -> range:
    """`range`: an object without items until it is gone through, which is paid for."""
    if keywords or not all(isinstance(a, int) for a in args):
        raise TemplateError("the chat template calls range without whole numbers")
    found = range(*args)
    budget.spend(1 + len(found) // 8)
    return found


def cycled(items: list[Any], index: int) -> Any:
    """`loop.cycle(…)`."""
    return next(itertools.islice(items, index % max(1, len(items)), None), None)


__all__ = ["FILTERS", "TESTS", "attribute", "call", "checked", "cycled", "path", "ranged"]
