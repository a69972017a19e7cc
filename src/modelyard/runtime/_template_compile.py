"""The tree of a chat template as closures: one function for each kind of node, each paying for what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelyard.runtime import _template_filters as filters
from modelyard.runtime._template_values import (
    Function,
    Namespace,
    TemplateError,
    Undefined,
    add,
    arithmetic,
    attribute,
    compare,
    item,
    modulo,
    number,
    times,
    to_list,
    to_text,
)

CALLS = 60
"""Macros within macros."""

Body = Callable[[Any, "Scope"], Any]
"""A statement: (run, scope) → `BREAK`, `CONTINUE` or None."""
Value = Callable[[Any, "Scope"], Any]

BREAK, CONTINUE = "break", "continue"


class Scope:
    """Names of a block and, behind them, those of the blocks around it."""

    __slots__ = ("around", "names")

    def __init__(self, around: Scope | None, names: dict[str, Any]) -> None:
        self.around, self.names = around, names

    def get(self, name: str) -> Any:
        """The innermost value."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.around
        return Undefined(f"{name[:60]!r}")


class Loop:
    """`loop` inside a for."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.index = items, 0
        self.seen: Any = self

    def template_attribute(self, name: Any) -> Any:
        """What a template may ask."""
        i, n = self.index, len(self.items)
        known: dict[Any, Any] = {
            "index": i + 1, "index0": i, "revindex": n - i, "revindex0": n - i - 1, "first": i == 0, "last": i == n - 1, "length": n,
            "depth": 1, "depth0": 0,  # Jinja counts recursion, not nesting
        }  # fmt: skip
        if name in known:
            return known[name]
        if name in ("previtem", "nextitem"):
            at = i - 1 if name == "previtem" else i + 1
            return self.items[at] if 0 <= at < n else Undefined(f"loop.{name}")
        if name == "cycle":
            return Function("loop.cycle", lambda budget, args, keywords: filters.cycled(args, i))
        if name == "changed":
            return Function("loop.changed", self._changed)
        return Undefined(f"loop.{str(name)[:40]}")

    def _changed(self, budget: Any, args: list[Any], keywords: dict[str, Any]) -> bool:
        budget.weigh(args)
        same, self.seen = self.seen == args, args
        return not same


class Macro:
    """A template's own function: its text is what its body writes."""

    def __init__(self, node: Any) -> None:
        self.name = getattr(node, "name", "caller")
        self.names = [a.name for a in node.args]
        self.defaults = [expression(d) for d in node.defaults]
        self.body = compile_body(node.body)

    def at(self, scope: Scope) -> Bound:
        """The macro with the names around it."""
        return Bound(self, scope)


class Bound:
    """A macro that can be called."""

    def __init__(self, macro: Macro, scope: Scope) -> None:
        self.macro, self.scope = macro, scope

    def template_attribute(self, name: Any) -> Any:
        """Its name and arguments."""
        known = {"name": self.macro.name, "arguments": tuple(self.macro.names)}
        return known[name] if name in known else Undefined(f"{str(name)[:40]!r} of a macro")

    def template_call(self, run: Any, args: list[Any], keywords: dict[str, Any]) -> str:
        """What the body writes."""
        macro, names = self.macro, dict(zip(self.macro.names, args, strict=False))
        names |= {k: v for k, v in keywords.items() if k in macro.names}
        rest = {k: v for k, v in keywords.items() if k not in macro.names}
        inner = Scope(self.scope, {"varargs": tuple(args[len(macro.names) :]), "kwargs": {k: v for k, v in rest.items() if k != "caller"}})
        if "caller" in rest:
            inner.names["caller"] = rest["caller"]
        inner.names |= names
        first = len(macro.names) - len(macro.defaults)
        for i, name in enumerate(macro.names):
            if name not in names:
                inner.names[name] = macro.defaults[i - first](run, inner) if i >= first else Undefined(f"{name[:60]!r}")
        depth = run.__dict__.setdefault("depth", 0)
        if depth >= CALLS:
            raise TemplateError(f"the chat template calls macros within macros more than {CALLS} deep")
        run.depth = depth + 1
        try:
            return captured(run, macro.body, inner)
        finally:
            run.depth = depth


def captured(run: Any, body: Body, scope: Scope) -> str:
    """What a body writes, as a text."""
    outer, length = run.written, run.length
    run.written, run.length = [], 0
    try:
        body(run, scope)
        run.budget.text(run.length)
        return "".join(run.written)
    finally:
        run.written, run.length = outer, length


def compile_body(nodes: Any) -> Body:
    """A list of statements (or a whole template) as one function."""
    statements = [statement(n) for n in (getattr(nodes, "body", nodes) if not isinstance(nodes, list) else nodes)]

    def body(run: Any, scope: Scope) -> Any:
        spend = run.budget.spend
        for step in statements:
            spend()
            left = step(run, scope)
            if left is not None:
                return left
        return None

    return body


def statement(node: Any) -> Body:
    """One statement. Raises `TemplateError` for those that chat templates have no use for."""
    make = STATEMENTS.get(type(node).__name__)
    if make is None:
        raise TemplateError(f"the chat template has a statement that is not read: {type(node).__name__} in line {node.lineno}")
    return make(node)


def expression(node: Any) -> Value:
    """One expression."""
    make = EXPRESSIONS.get(type(node).__name__)
    if make is None:
        raise TemplateError(f"the chat template has an expression that is not read: {type(node).__name__} in line {node.lineno}")
    return make(node)


def _output(node: Any) -> Body:
    parts: list[str | Value] = [n.data if type(n).__name__ == "TemplateData" else expression(n) for n in node.nodes]

    def output(run: Any, scope: Scope) -> None:
        for part in parts:
            run.write(part if isinstance(part, str) else to_text(run.budget, part(run, scope)))

    return output


def _if(node: Any) -> Body:
    branches = [(expression(n.test), compile_body(n.body)) for n in (node, *node.elif_)]
    other = compile_body(node.else_)

    def branch(run: Any, scope: Scope) -> Any:
        for test, body in branches:
            run.budget.spend()
            if test(run, scope):
                return body(run, scope)
        return other(run, scope)

    return branch


def _for(node: Any) -> Body:
    if node.recursive:
        raise TemplateError(f"the chat template has a recursive loop in line {node.lineno}, which is not read")
    target, items, body, other = assigner(node.target), expression(node.iter), compile_body(node.body), compile_body(node.else_)
    test = expression(node.test) if node.test else None

    def loop(run: Any, scope: Scope) -> Any:
        found = to_list(run.budget, items(run, scope))
        if test is not None:
            kept = []
            for value in found:
                run.budget.spend()
                inner = Scope(scope, {})
                target(run, inner, value)
                if test(run, inner):
                    kept.append(value)
            found = kept
        state = Loop(found)
        for i, value in enumerate(found):
            run.budget.spend()
            state.index = i
            inner = Scope(scope, {"loop": state})
            target(run, inner, value)
            if body(run, inner) == BREAK:
                break
        return None if found else other(run, Scope(scope, {}))

    return loop


def assigner(node: Any) -> Callable[[Any, Scope, Any], None]:
    """What stores a value in a name, several names, or an attribute of a namespace."""
    kind = type(node).__name__
    if kind == "Name":
        name = node.name
        return lambda run, scope, value: scope.names.__setitem__(name, value)
    if kind == "NSRef":

        def store(run: Any, scope: Scope, value: Any) -> None:
            space = scope.get(node.name)
            if not isinstance(space, Namespace):
                raise TemplateError(f"the chat template sets {node.name[:40]}.{node.attr[:40]}, but {node.name[:40]} is no namespace")
            space.values[node.attr] = value

        return store
    if kind == "Tuple":
        parts = [assigner(n) for n in node.items]

        def spread(run: Any, scope: Scope, value: Any) -> None:
            values = to_list(run.budget, value)
            if len(values) != len(parts):
                raise TemplateError(f"the chat template takes {len(values)} values apart into {len(parts)} names")
            for part, one in zip(parts, values, strict=True):
                part(run, scope, one)

        return spread
    raise TemplateError(f"the chat template assigns to a {kind}")


def _assign(node: Any) -> Body:
    target, value = assigner(node.target), expression(node.node)
    return lambda run, scope: target(run, scope, value(run, scope))


def _assign_block(node: Any) -> Body:
    target, body = assigner(node.target), compile_body(node.body)
    chain = _filtered(node.filter) if node.filter is not None else None

    def assign(run: Any, scope: Scope) -> None:
        text = captured(run, body, Scope(scope, {}))
        target(run, scope, text if chain is None else chain(run, scope, text))

    return assign


def _filtered(node: Any) -> Callable[[Any, Scope, Any], Any]:
    """A chain of filters whose innermost value is a block's text."""
    inner = _filtered(node.node) if node.node is not None else None
    args, name = arguments(node), _known(node, filters.FILTERS, "filter")

    def apply(run: Any, scope: Scope, value: Any) -> Any:
        value = value if inner is None else inner(run, scope, value)
        positional, keywords = args(run, scope)
        return filters.call(run.budget, name, filters.FILTERS, [value, *positional], keywords)

    return apply


def _filter_block(node: Any) -> Body:
    body, chain = compile_body(node.body), _filtered(node.filter)
    return lambda run, scope: run.write(to_text(run.budget, chain(run, scope, captured(run, body, Scope(scope, {})))))


def _macro(node: Any) -> Body:
    macro = Macro(node)
    return lambda run, scope: scope.names.__setitem__(macro.name, macro.at(scope))


def _call_block(node: Any) -> Body:
    if type(node.call.node).__name__ == "ExtensionAttribute":  # {% generation %}
        inside = compile_body(node.body)

        def generation(run: Any, scope: Scope) -> None:
            began = run.length
            inside(run, Scope(scope, {}))
            run.spans.append((began, run.length))

        return generation
    macro, function, args = Macro(node), expression(node.call.node), arguments(node.call)

    def block(run: Any, scope: Scope) -> None:
        positional, keywords = args(run, scope)
        made = invoke(run, function(run, scope), positional, {**keywords, "caller": macro.at(scope)})
        run.write(to_text(run.budget, made))

    return block


def _with(node: Any) -> Body:
    names = [(assigner(t), expression(v)) for t, v in zip(node.targets, node.values, strict=True)]
    body = compile_body(node.body)

    def inside(run: Any, scope: Scope) -> Any:
        inner = Scope(scope, {})
        for target, value in names:
            target(run, inner, value(run, scope))
        return body(run, inner)

    return inside


def _scope(node: Any) -> Body:
    body = compile_body(node.body)
    return lambda run, scope: body(run, Scope(scope, {}))


STATEMENTS: dict[str, Callable[[Any], Body]] = {
    "Output": _output, "If": _if, "For": _for, "Assign": _assign, "AssignBlock": _assign_block, "FilterBlock": _filter_block,
    "Macro": _macro, "CallBlock": _call_block, "With": _with, "Scope": _scope,
    "Break": lambda node: lambda run, scope: BREAK, "Continue": lambda node: lambda run, scope: CONTINUE,
}  # fmt: skip


def arguments(node: Any) -> Callable[[Any, Scope], tuple[list[Any], dict[str, Any]]]:
    """Positional and named arguments of a call, a filter or a test."""
    args, keywords = [expression(a) for a in node.args], [(k.key, expression(k.value)) for k in node.kwargs]
    more = expression(node.dyn_args) if node.dyn_args is not None else None
    named = expression(node.dyn_kwargs) if node.dyn_kwargs is not None else None

    def both(run: Any, scope: Scope) -> tuple[list[Any], dict[str, Any]]:
        run.budget.spend(len(args) + len(keywords))
        positional = [a(run, scope) for a in args]
        found = {k: v(run, scope) for k, v in keywords}
        if more is not None:
            positional += to_list(run.budget, more(run, scope))
        if named is not None:
            extra = named(run, scope)
            if not isinstance(extra, dict):
                raise TemplateError("the chat template spreads ** over what is no object")
            run.budget.spend(len(extra))
            found |= {str(k): v for k, v in extra.items()}
        return positional, found

    return both


def invoke(run: Any, function: Any, args: list[Any], keywords: dict[str, Any]) -> Any:
    """Calls a macro, a method or one of our functions; nothing else can be called."""
    run.budget.spend(2)
    if isinstance(function, Bound):
        return function.template_call(run, args, keywords)
    if isinstance(function, Function):
        return filters.checked(function.name, lambda budget: function.call(budget, args, keywords), run.budget, [], {})
    raise function.fail() if isinstance(function, Undefined) else TemplateError("the chat template calls what is no function")


def _call(node: Any) -> Value:
    function, args = expression(node.node), arguments(node)

    def call(run: Any, scope: Scope) -> Any:
        found = function(run, scope)
        positional, keywords = args(run, scope)
        return invoke(run, found, positional, keywords)

    return call


def _known(node: Any, table: dict[str, Any], kind: str) -> str:
    if node.name not in table:
        raise TemplateError(f"the chat template uses the {kind} {node.name[:40]!r} in line {node.lineno}, which does not exist here")
    return str(node.name)


def _applied(table: dict[str, Callable[..., Any]], kind: str) -> Callable[[Any], Value]:
    def make(node: Any) -> Value:
        value, args, name = expression(node.node), arguments(node), _known(node, table, kind)

        def apply(run: Any, scope: Scope) -> Any:
            first = value(run, scope)
            positional, keywords = args(run, scope)
            return filters.call(run.budget, name, table, [first, *positional], keywords)

        return apply

    return make


def _constant(node: Any) -> Value:
    value = number(node.value)
    return lambda run, scope: value


def _name(node: Any) -> Value:
    name = node.name
    return lambda run, scope: scope.get(name)


def _several(kind: Callable[[list[Any]], Any]) -> Callable[[Any], Value]:
    def make(node: Any) -> Value:
        parts = [expression(n) for n in node.items]

        def several(run: Any, scope: Scope) -> Any:
            run.budget.spend(1 + len(parts))
            return kind([p(run, scope) for p in parts])

        return several

    return make


def _dict(node: Any) -> Value:
    parts = [(expression(p.key), expression(p.value)) for p in node.items]

    def make(run: Any, scope: Scope) -> dict[Any, Any]:
        run.budget.spend(1 + 2 * len(parts))
        found = {}
        for key, value in parts:
            k = key(run, scope)
            if k is not None and not isinstance(k, str | int | float):
                raise TemplateError("the chat template makes an object whose keys are no texts or numbers")
            found[k] = value(run, scope)
        return found

    return make


def _getattr(node: Any) -> Value:
    value, name = expression(node.node), node.attr
    return lambda run, scope: attribute(run.budget, value(run, scope), name)


def _getitem(node: Any) -> Value:
    value, key = expression(node.node), expression(node.arg)
    return lambda run, scope: item(run.budget, value(run, scope), key(run, scope))


def _slice(node: Any) -> Value:
    ends = [expression(x) if x is not None else None for x in (node.start, node.stop, node.step)]

    def make(run: Any, scope: Scope) -> slice:
        found = [None if e is None else e(run, scope) for e in ends]
        if any(x is not None and not isinstance(x, int) for x in found) or found[2] == 0:
            raise TemplateError("the chat template cuts at what is no whole number")
        return slice(*found)

    return make


def _binary(operator: str) -> Callable[[Any], Value]:
    special = {"+": add, "*": times, "%": modulo}.get(operator)

    def make(node: Any) -> Value:
        left, right = expression(node.left), expression(node.right)
        if special is not None:
            return lambda run, scope: special(run.budget, left(run, scope), right(run, scope))
        return lambda run, scope: arithmetic(run.budget, operator, left(run, scope), right(run, scope))

    return make


def _compare(node: Any) -> Value:
    first, rest = expression(node.expr), [(o.op, expression(o.expr)) for o in node.ops]

    def chain(run: Any, scope: Scope) -> bool:
        left = first(run, scope)
        for operator, right in rest:
            value = right(run, scope)
            if not compare(run.budget, operator, left, value):
                return False
            left = value
        return True

    return chain


def _and(node: Any) -> Value:
    left, right = expression(node.left), expression(node.right)

    def both(run: Any, scope: Scope) -> Any:
        run.budget.spend()
        return left(run, scope) and right(run, scope)

    return both


def _or(node: Any) -> Value:
    left, right = expression(node.left), expression(node.right)

    def either(run: Any, scope: Scope) -> Any:
        run.budget.spend()
        return left(run, scope) or right(run, scope)

    return either


def _unary(kind: str) -> Callable[[Any], Value]:
    def make(node: Any) -> Value:
        value = expression(node.node)

        def one(run: Any, scope: Scope) -> Any:
            run.budget.spend()
            found = value(run, scope)
            return not found if kind == "not" else arithmetic(run.budget, "-" if kind == "-" else "+", 0, found)

        return one

    return make


def _condition(node: Any) -> Value:
    test, yes = expression(node.test), expression(node.expr1)
    no = expression(node.expr2) if node.expr2 is not None else None

    def choose(run: Any, scope: Scope) -> Any:
        run.budget.spend()
        if test(run, scope):
            return yes(run, scope)
        return Undefined("an inline if without else") if no is None else no(run, scope)

    return choose


def _concat(node: Any) -> Value:
    parts = [expression(n) for n in node.nodes]

    def joined(run: Any, scope: Scope) -> str:
        texts = [to_text(run.budget, p(run, scope)) for p in parts]
        run.budget.text(sum(map(len, texts)) + 128 * len(texts))
        return "".join(texts)

    return joined


EXPRESSIONS: dict[str, Callable[[Any], Value]] = {
    "Const": _constant, "Name": _name, "List": _several(list), "Tuple": _several(tuple), "Dict": _dict, "Getattr": _getattr,
    "Getitem": _getitem, "Slice": _slice, "Call": _call, "Filter": _applied(filters.FILTERS, "filter"),
    "Test": _applied(filters.TESTS, "test"), "Compare": _compare, "And": _and, "Or": _or, "Not": _unary("not"), "Neg": _unary("-"),
    "Pos": _unary("+"), "CondExpr": _condition, "Concat": _concat, "Add": _binary("+"), "Sub": _binary("-"), "Mul": _binary("*"),
    "Div": _binary("/"), "FloorDiv": _binary("//"), "Mod": _binary("%"), "Pow": _binary("**"),
}  # fmt: skip
