"""Chat templates: messages to the one text that a model continues, as `transformers` renders them, and safe to take from anybody.

A template is a program in Jinja that comes with a model. Jinja's own sandbox guards attributes but neither time nor memory, so only its
parser is used: the tree becomes closures over plain values, each of which pays a step from a budget (`_template_values.py`). Nothing is
compiled to Python, no attribute of an object is looked up, and 50 ms are never passed for ordinary messages.

What is read: output, if, for (with `loop`, else, if, break, continue), set, with, macro, call, filter blocks, `generation`, and the
filters and tests of `_template_filters.py`. What is not (include, import, extends, recursive loops) is refused by name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from modelyard.errors import MissingExtra
from modelyard.runtime._template_compile import Body, Scope, compile_body
from modelyard.runtime._template_filters import checked, ranged
from modelyard.runtime._template_values import DEPTH, Budget, Function, Namespace, TemplateError, to_text

__all__ = ["Template", "TemplateError", "read", "render"]

SOURCE = 64 * 1024
"""Characters of a template; the longest known one (gpt-oss) has 16,000."""
TOKENS = 10_000
"""Words and signs of a template."""
PARSING = 0.032
"""Processor seconds for reading one; Qwen3's takes 5 ms."""
STEPS, STEPS_EACH = 24_000, 2_000
"""Steps, and those for each message beyond the first 20."""
SECONDS, SECONDS_EACH = 0.014, 0.002
"""Processor time, and that for each message beyond the first 20."""
OUTPUT = 1_000_000
"""Characters of output, beside 16 for each one of the messages."""
DATE = re.compile(r"(?:[^%]|%-?[aAbBcdDeFHIjmMpSTuUwWxXyYzZ%])*")


@dataclass
class Run:
    """One rendering: its budget, what was written, and where answers of the assistant lie in it."""

    budget: Budget
    written: list[str] = field(default_factory=list)
    length: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)

    def write(self, text: str) -> None:
        """Adds to the output."""
        self.length += len(text)
        self.budget.text(len(text))
        if self.length > self.budget.characters:
            raise TemplateError(f"the chat template writes more than {self.budget.characters:,} characters")
        self.written.append(text)


class Template:
    """A template that was read. Raises `TemplateError` where it cannot be."""

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self.body: Body = compile_body(parse(source))
        except RecursionError:
            raise TemplateError("the chat template is nested too deeply") from None

    def render(self, messages: Sequence[Mapping[str, Any]], **values: Any) -> str:
        """The text; see `render` below."""
        return self.pieces(messages, **values)[0]

    def pieces(self, messages: Sequence[Mapping[str, Any]], **values: Any) -> tuple[str, list[tuple[int, int]]]:
        """(text, characters [from, to) that the assistant wrote, where the template marks them by `generation`)."""
        size = [0]
        given = {name: plain(value, size) for name, value in {"messages": list(messages), **values}.items()}
        more = max(0, len(messages) - 20)
        budget = Budget(
            STEPS + STEPS_EACH * more + size[0] // 4, OUTPUT + 16 * size[0], SECONDS + SECONDS_EACH * more + size[0] * 1e-7
        )  # fmt: skip
        run = Run(budget)
        try:
            self.body(run, Scope(None, {**GLOBALS, **given}))
        except RecursionError:
            raise TemplateError("the chat template calls itself too deeply") from None
        except (MemoryError, OverflowError, ZeroDivisionError) as error:
            raise TemplateError(f"the chat template cannot be rendered: {type(error).__name__}") from None
        return "".join(run.written), run.spans


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    **values: Any,
) -> str:
    """The text of `messages` (`{role, content, …}`, JSON values) as the template writes it.

    `add_generation_prompt` ends it where the assistant begins to answer; `values` are further names the template knows
    (`enable_thinking`). Equal to `transformers`' `apply_chat_template(tokenize=False)`. Raises `TemplateError` where the template
    cannot be read, refuses the messages (`raise_exception`) or does too much work.
    """
    return read(template).render(
        messages, add_generation_prompt=add_generation_prompt, bos_token=bos_token, eos_token=eos_token,
        tools=None if tools is None else list(tools), **{"documents": None, **values},
    )  # fmt: skip


@lru_cache(maxsize=64)
def read(template: str) -> Template:
    """The template, read once."""
    return Template(template)


def parse(source: str) -> Any:
    """Jinja's tree of a template: `trim_blocks`, `lstrip_blocks` and loop controls as in `transformers`."""
    if len(source) > SOURCE:
        raise TemplateError(f"the chat template has {len(source):,} characters; at most {SOURCE:,} are read")
    try:
        import jinja2
    except ModuleNotFoundError:
        raise MissingExtra("jinja2", "train") from None
    try:
        return _environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is not Jinja: line {error.lineno}: {str(error.message)[:200]}") from None
    except (RecursionError, ValueError, OverflowError, MemoryError):
        raise TemplateError("the chat template is nested too deeply, or holds a number too long to read") from None


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.lexer import TokenStream
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: what the assistant wrote."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("generation"), [], [], body).set_lineno(line)

    class Bounded(ImmutableSandboxedEnvironment):
        """Its parser gets the words one by one, and no more of them than there is time for."""

        def _tokenize(self, source: str, name: Any, filename: Any = None, state: Any = None) -> TokenStream:
            words = self.lexer.wrap(self.lexer.tokeniter(source, name, filename, state), name, filename)
            return TokenStream(_counted(words), name, filename)

    return Bounded(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[Generation, loopcontrols])


def _counted(words: Iterator[Any]) -> Iterator[Any]:
    until = time.thread_time() + PARSING
    for count, word in enumerate(words):
        if count > TOKENS or (count % 256 == 255 and time.thread_time() > until):
            raise TemplateError(f"the chat template has more than {TOKENS:,} words and signs, or takes too long to read")
        yield word


def plain(value: Any, size: list[int], depth: int = 0) -> Any:
    """A copy in plain JSON values; `size[0]` grows by its characters and items."""
    if isinstance(value, str):
        size[0] += len(value)
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth > DEPTH:
        raise TemplateError(f"the messages are nested deeper than {DEPTH} levels")
    size[0] += 8
    if isinstance(value, Mapping):
        return {str(k): plain(v, size, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, size, depth + 1) for v in value]
    raise TemplateError(f"a message holds a {type(value).__name__}; expected what JSON holds")


def _fail(budget: Budget, args: list[Any], keywords: dict[str, Any]) -> Any:
    raise TemplateError(to_text(budget, args[0])[:1000] if args else "the chat template refuses these messages")


def _now(budget: Budget, args: list[Any], keywords: dict[str, Any]) -> str:
    from datetime import datetime

    wanted = args[0] if args and isinstance(args[0], str) else ""
    if len(wanted) > 100 or not DATE.fullmatch(wanted):
        raise TemplateError("the chat template asks for the date in a form that is not known")
    budget.spend(10)
    return datetime.now().strftime(wanted)


def _namespace(budget: Budget, args: list[Any], keywords: dict[str, Any]) -> Namespace:
    return Namespace(_object(budget, args, keywords))


def _object(budget: Budget, args: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    budget.spend(1 + len(keywords) + sum(len(a) for a in args if isinstance(a, dict)))
    if not all(isinstance(a, dict) for a in args):
        raise TemplateError("the chat template makes an object of what is none")
    found: dict[str, Any] = {}
    for a in args:
        found |= a
    return found | keywords


def _function(name: str, call: Callable[[Budget, list[Any], dict[str, Any]], Any]) -> Function:
    return Function(name, lambda budget, args, keywords: checked(name, lambda b: call(b, args, keywords), budget, [], {}))


GLOBALS: dict[str, Any] = {
    f.name: f
    for f in (
        _function("range", ranged), _function("dict", _object), _function("namespace", _namespace),
        _function("raise_exception", _fail), _function("strftime_now", _now),
    )
}  # fmt: skip
