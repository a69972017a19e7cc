"""What a request in OpenAI's form asks for: every knob is checked against its cap before anything is admitted, all mistakes at once."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modelyard.errors import ModelyardError
from modelyard.runtime import constraint
from modelyard.runtime._grammar import Constrained, Rule
from modelyard.runtime.answers import Randomness
from modelyard.runtime.desk import Desk
from modelyard.runtime.engine import Ask
from modelyard.verbs.serve.body import Refused

CHOICES = 16
"""Texts of one request: prompts times `n`."""
STOPS, STOP = 16, 256
"""Stop strings, and characters of one."""
BIASES = 1_024
MESSAGES = 2_000
TOP = 20
SCHEMA = 64 * 1024
"""Characters of a schema."""
WRITTEN = 1_024
"""Tokens of a chat's answer where `max_tokens` is left out; the context may hold fewer."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

NUMBERS: dict[str, tuple[type, float, float, Any]] = {
    "temperature": (float, 0, 5, 1.0), "top_p": (float, 0, 1, 1.0), "min_p": (float, 0, 1, 0.0), "top_k": (int, -1, 10**6, 0),
    "presence_penalty": (float, -2, 2, 0.0), "frequency_penalty": (float, -2, 2, 0.0), "repetition_penalty": (float, 0.1, 10, 1.0),
    "n": (int, 1, CHOICES, 1), "seed": (int, -(2**63), 2**63 - 1, None), "top_logprobs": (int, 0, TOP, None),
    "max_tokens": (int, 1, 10**9, None), "max_completion_tokens": (int, 1, 10**9, None), "best_of": (int, 1, CHOICES, None),
}  # fmt: skip
"""(type, least, most, value where it is left out)."""
SWITCHES = ("stream", "ignore_eos", "echo", "return_token_ids")
IGNORED = {
    "user", "store", "metadata", "service_tier", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "verbosity", "modalities",
    "prediction", "reasoning_effort", "web_search_options", "audio", "functions", "function_call", "suffix", "prompt_cache_retention",
}  # fmt: skip
"""Known to OpenAI's clients; null or without effect here."""
BOTH = {
    *NUMBERS, *SWITCHES, "model", "stop", "stop_token_ids", "logit_bias", "logprobs", "stream_options", "response_format", "guided_regex",
    "guided_json", "structured_outputs",
}  # fmt: skip


@dataclass
class Wanted:
    """One request that was understood."""

    chat: bool
    asks: list[Ask]
    """One for each choice."""
    prompts: list[np.ndarray]
    stream: bool = False
    usage: bool = False
    logprobs: bool = False
    echo: list[str] = field(default_factory=list)
    ids: bool = False
    """Whether the ids are told (vLLM's `return_token_ids`)."""


class Wrong(Refused):
    """Status 400 with OpenAI's `param`."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__(400, "; ".join(f"{name}: {text}" for name, text in problems[:20]))
        self.param = problems[0][0]


class Reader:
    """Reads one body against one desk."""

    def __init__(self, body: Mapping[str, Any], desk: Desk, chat: bool) -> None:
        self.body, self.desk, self.chat = body, desk, chat
        self.problems: list[tuple[str, str]] = []

    def wrong(self, name: str, text: str) -> None:
        """Notes a mistake."""
        self.problems.append((name[:80], text[:400]))

    def wanted(self) -> Wanted:
        """The request. Raises `Wrong` with every mistake."""
        known = BOTH | ({"messages", "tools", "tool_choice", "chat_template_kwargs", "add_generation_prompt"} if self.chat else {"prompt"})
        for name in sorted(map(str, set(self.body) - known - IGNORED))[:20]:
            self.wrong(name, "unknown key")
        numbers = {name: self.number(name) for name in NUMBERS}
        switches = {name: self.switch(name) for name in SWITCHES}
        if switches["echo"] and self.chat:
            self.wrong("echo", "is for /v1/completions")
        stops, ends = self.stops(), self.ends(bool(switches["ignore_eos"]))
        bias, logprobs, usage = self.bias(), self.logprobs(numbers["top_logprobs"]), self.usage(bool(switches["stream"]))
        if numbers["best_of"] is not None and numbers["best_of"] != numbers["n"]:
            self.wrong("best_of", "must equal n; other texts are not judged")
        rule = self.rule()
        prompts = self._safely("messages", self.messages) if self.chat else self._safely("prompt", self.texts)
        if len(prompts) * (numbers["n"] or 1) > CHOICES:
            self.wrong("n", f"{len(prompts)} prompt(s) times n is more than {CHOICES} texts")
        rooms = self.rooms(prompts, numbers)
        if rule is not None and rooms and min(rooms) < (least := rule.text(self.desk.vocabulary.pieces).least):
            self.wrong("max_tokens", f"{min(rooms)} tokens cannot hold what response_format asks for: {least} may be needed")
        if self.problems:
            raise Wrong(self.problems)
        random = Randomness(secrets.randbits(63) if numbers["seed"] is None else numbers["seed"])
        shared: dict[str, Any] = {
            "temperature": float(numbers["temperature"]), "top_p": float(numbers["top_p"]), "top_k": max(0, numbers["top_k"]),
            "min_p": float(numbers["min_p"]), "repetition": float(numbers["repetition_penalty"]), "ends": ends, "stop": stops,
            "frequency": float(numbers["frequency_penalty"]), "presence": float(numbers["presence_penalty"]), "bias": bias,
            "logprobs": logprobs,
        }  # fmt: skip
        asks = [
            Ask(prompt=prompt, max_tokens=room, generator=random.generator(p * numbers["n"] + i), constraint=self._constraint(rule), **shared)
            for p, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
            for i in range(numbers["n"])
        ]
        echo = [self.desk.vocabulary.text(p.tolist()) for p in prompts] if switches["echo"] else []
        return Wanted(self.chat, asks, prompts, bool(switches["stream"]), usage, logprobs is not None, echo, bool(switches["return_token_ids"]))

    def _constraint(self, rule: Rule | None) -> Constrained | None:
        return None if rule is None else rule.text(self.desk.vocabulary.pieces)

    def _safely(self, name: str, read: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
        try:
            return read()
        except ModelyardError as error:
            self.wrong(name, error.message)
            return []

    def number(self, name: str) -> Any:
        """A number within its bounds, or its value where it is left out."""
        kind, low, high, default = NUMBERS[name]
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, float) and kind is int and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
            self.wrong(name, f"got {json.dumps(value)[:60]}; expected {'a number' if kind is float else 'a whole number'} from {low} to {high}")
            return default
        if not (low <= value <= high and math.isfinite(value)):
            self.wrong(name, f"got {str(value)[:40]}; expected {low} to {high}")
            return default
        return value

    def switch(self, name: str) -> bool:
        """true or false."""
        value = self.body.get(name)
        if value is not None and not isinstance(value, bool):
            self.wrong(name, f"got {json.dumps(value)[:60]}; expected true or false")
        return value is True

    def stops(self) -> tuple[str, ...]:
        """Stop strings."""
        value = self.body.get("stop")
        value = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(s, str) and 1 <= len(s) <= STOP for s in value) or len(value) > STOPS:
            self.wrong("stop", f"expected a text, or a list of at most {STOPS} texts of 1 to {STOP} characters")
            return ()
        return tuple(value)

    def ends(self, ignore: bool) -> tuple[int, ...] | None:
        """Ids that end a text; None: the model's own."""
        value = self.body.get("stop_token_ids") or []
        if not isinstance(value, list) or len(value) > STOPS or not all(self._id(v) for v in value):
            self.wrong("stop_token_ids", f"expected a list of at most {STOPS} ids from 0 to {self.desk.decoder.vocabulary - 1}")
            return None
        return None if not value and not ignore else (*(() if ignore else self.desk.decoder.ends), *value)

    def _id(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < self.desk.decoder.vocabulary

    def bias(self) -> dict[int, float]:
        """Id → what is added to its logit."""
        value = self.body.get("logit_bias") or {}
        good = isinstance(value, dict) and len(value) <= BIASES
        found = {}
        for key, add in value.items() if good else ():
            token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10 else -1
            if not self._id(token) or isinstance(add, bool) or not isinstance(add, int | float) or not -100 <= add <= 100:
                good = False
                break
            found[token] = float(add)
        if not good:
            self.wrong("logit_bias", f"expected an object of at most {BIASES} ids (below {self.desk.decoder.vocabulary}) to numbers from -100 to 100")
        return found

    def logprobs(self, top: int | None) -> int | None:
        """How many likely tokens are told; None: none, not even the chosen one."""
        value = self.body.get("logprobs")
        if self.chat:
            if value is not None and not isinstance(value, bool):
                self.wrong("logprobs", "expected true or false; top_logprobs says how many")
            if top is not None and value is not True:
                self.wrong("top_logprobs", "needs logprobs: true")
            return (top or 0) if value is True else None
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOP):
            self.wrong("logprobs", f"expected a whole number from 0 to {TOP}")
            return None
        return value

    def usage(self, stream: bool) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        value = self.body.get("stream_options")
        if value is None:
            return False
        known = {"include_usage", "include_obfuscation", "continuous_usage_stats"}
        if not isinstance(value, dict) or set(value) - known or not all(isinstance(v, bool) for v in value.values()):
            self.wrong("stream_options", 'expected {"include_usage": true}')
            return False
        if not stream:
            self.wrong("stream_options", "needs stream: true")
        return bool(value.get("include_usage"))

    def rule(self) -> Rule | None:
        """What the answer must follow, from `response_format` or vLLM's keys for it."""
        wishes: list[tuple[str, str, Any]] = []
        form = self.body.get("response_format")
        if form is not None:
            kind = form.get("type") if isinstance(form, dict) else None
            if kind == "json_object":
                wishes.append(("response_format", "object", None))
            elif kind == "json_schema" and isinstance(form.get("json_schema"), dict) and "schema" in form["json_schema"]:
                wishes.append(("response_format", "schema", form["json_schema"]["schema"]))
            elif kind != "text":
                self.wrong("response_format", 'expected {"type": "text"}, "json_object", or "json_schema" with json_schema: {name, schema}')
        more = self.body.get("structured_outputs")
        if more is not None and (not isinstance(more, dict) or set(more) - {"regex", "json", "json_object"} or len(more) != 1):
            self.wrong("structured_outputs", "expected an object with one of regex, json and json_object")
            more = None
        more = more or {}
        wishes += [("guided_json", "schema", self.body["guided_json"])] if self.body.get("guided_json") is not None else []
        wishes += [("guided_regex", "regex", self.body["guided_regex"])] if self.body.get("guided_regex") is not None else []
        names = {"json": "schema", "json_object": "object", "regex": "regex"}
        wishes += [("structured_outputs", names[k], v) for k, v in more.items()]
        if len(wishes) > 1:
            self.wrong(wishes[1][0], "only one of response_format, structured_outputs, guided_json and guided_regex can be obeyed")
        return self._rule(*wishes[0]) if len(wishes) == 1 else None

    def _rule(self, name: str, kind: str, wish: Any) -> Rule | None:
        text = json.dumps(wish, sort_keys=False)
        if len(text) > SCHEMA:
            self.wrong(name, f"has {len(text)} characters; at most {SCHEMA} are read")
            return None
        make: dict[str, Callable[[frozenset[bytes]], Any]] = {
            "object": constraint.json_object, "schema": lambda whole: constraint.json_schema(wish, whole),
            "regex": lambda whole: constraint.regex(wish, whole),
        }  # fmt: skip
        try:
            return self.desk.rule(kind, text, make[kind])
        except ModelyardError as error:
            self.wrong(name, error.message)
            return None

    def texts(self) -> list[np.ndarray]:
        """`prompt`: a text, ids, or several of either."""
        value = self.body.get("prompt")
        if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, int) for v in value)):
            value = [value]
        if not isinstance(value, list) or not 1 <= len(value) <= CHOICES:
            self.wrong("prompt", f"expected a text, a list of ids, or 1 to {CHOICES} of them")
            return []
        found = []
        for one in value:
            if isinstance(one, str):
                found.append(self._short(one) and self.desk.prompt(one))
            elif isinstance(one, list) and one and len(one) <= self.desk.length and all(self._id(i) for i in one):
                found.append(np.array(one, np.int64))
            else:
                self.wrong("prompt", f"holds what is neither a text nor 1 to {self.desk.length} ids below {self.desk.decoder.vocabulary}")
        return [p for p in found if isinstance(p, np.ndarray)]

    def _short(self, text: str) -> bool:
        """A text of 64 characters a token of the context is refused before it is cut into tokens."""
        if len(text) > 64 * self.desk.length:
            self.wrong("messages" if self.chat else "prompt", f"has {len(text):,} characters; the model reads {self.desk.length} tokens")
            return False
        return True

    def messages(self) -> list[np.ndarray]:
        """The conversation as ids."""
        value = self.body.get("messages")
        if not isinstance(value, list) or not 1 <= len(value) <= MESSAGES:
            self.wrong("messages", f"expected a list of 1 to {MESSAGES} messages")
            return []
        found = [self._message(i, m) for i, m in enumerate(value)]
        tools, values = self.body.get("tools"), self.body.get("chat_template_kwargs") or {}
        if tools is not None and not (isinstance(tools, list) and len(tools) <= 128 and all(isinstance(t, dict) for t in tools)):
            self.wrong("tools", "expected a list of at most 128 objects")
        if self.body.get("tool_choice") not in (None, "none", "auto"):
            self.wrong("tool_choice", "expected none or auto; the answer is not forced into a call")
        if not isinstance(values, dict) or set(values) & {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}:
            self.wrong("chat_template_kwargs", "expected an object of further names of the template")
        size = sum(len(m.get("content") or "") for m in found if m)
        if self.problems or not self._short("x" * min(size, 64 * self.desk.length + 1)):
            return []
        more = {"tools": tools} if tools and self.body.get("tool_choice") != "none" else {}
        prompt = self.body.get("add_generation_prompt")
        return [self.desk.conversation(found, **{**values, **more, **({} if prompt is None else {"add_generation_prompt": bool(prompt)})})]

    def _message(self, index: int, message: Any) -> dict[str, Any]:
        where = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            self.wrong(where, f"expected an object with a role of {', '.join(ROLES)} and a content")
            return {}
        content = message.get("content")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) and p.get("type") in ("text", "input_text") else None for p in content]
            if not all(isinstance(p, str) for p in parts):
                self.wrong(f"{where}.content", "holds a part that is no text")
                return {}
            content = "".join(str(p) for p in parts)
        if content is None and message["role"] == "assistant":
            content = ""
        if not isinstance(content, str):
            self.wrong(f"{where}.content", "expected a text")
            return {}
        rest = {k: message[k] for k in ("name", "tool_calls", "tool_call_id", "reasoning_content") if message.get(k) is not None}
        return {"role": "system" if message["role"] == "developer" else message["role"], "content": content, **rest}

    def rooms(self, prompts: list[np.ndarray], numbers: Mapping[str, Any]) -> list[int]:
        """Tokens that each answer may have; a prompt that leaves no room is a mistake."""
        asked = numbers["max_completion_tokens"] or numbers["max_tokens"]
        found = []
        for prompt in prompts:
            room = self.desk.length - len(prompt)
            if room < 1 or (asked or 1) > room:
                name = "messages" if self.chat and room < 1 else "prompt" if room < 1 else "max_tokens"
                more = f" and {asked} to write" if asked else ""
                self.wrong(name, f"{len(prompt)} tokens to read{more} are more than the {self.desk.length} that the model has room for")
            found.append(max(1, min(room, asked or (WRITTEN if self.chat else 16))))
        return found
