"""Texts to learn to write: an example is what is read (`prompt`, or `messages`) and what is to be written (`completion`).

Rows come as in TRL and its kin: `text` (a corpus: nothing is read); `prompt`, `completion`; `messages` or `conversations` (the last
answer is written, earlier ones count by a mask); alpaca's `instruction`, `input`, `output`; `chosen` and `rejected` with a `prompt` or
`messages`, or as two conversations that differ in their last answer (the chosen one is the completion). A corpus of a few long texts is cut into
pieces (`PIECE` characters, at ends of lines), of which all but the first go on from the one before (a missing prompt), and is divided by
position: its beginning trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from modelyard.data import stream
from modelyard.data.read import Reading
from modelyard.data.split import SplitConfig
from modelyard.data.table import SetAside
from modelyard.data.texts import SUFFIXES
from modelyard.errors import DataError, Problem
from modelyard.kinds.messages import ANSWERS, conversation

TEXTS = True
"""A .txt file is one text, and a folder of them one text each."""
KINDS = {"prompt": "text", "messages": "messages"}
"""Inputs that a frame of this form has, with their kinds."""
CARRIED = ("rejected", "label")
"""Columns that methods of training and metrics read beside inputs and outputs."""
PART = "part"
"""Column of corpora of a few texts: `train`, `valid` or `test`."""
FEW = 20
"""Texts below which a corpus is divided by position."""
PIECE = 2_000
HELD = 5_000
"""Most rows of valid, of test and of the sample of a corpus larger than memory: ten million characters of one text."""
READ = 2**22
"""Characters of a text in hand at once."""
SCHEMA = {"prompt": pl.String, "completion": pl.String, PART: pl.String}
LAYOUTS = "text; prompt and completion; messages (or conversations); instruction, input and output; prompt, chosen and rejected"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which columns are read, and how a corpus of a few texts is divided."""

    prompt: str | None = None
    """Column that is read, where it has none of the usual names."""
    completion: str | None = None
    """Column that is written, where it has none of the usual names."""
    valid: float = 0.1
    """Share of a few long texts that comes before the end and judges while training."""
    test: float = 0.0
    """Share at their end, for the final judgement."""


def config_of(data: Any) -> dict[str, Any]:
    """The frame's settings from the `data` section."""
    plain = data.split == SplitConfig()
    valid = 0.0 if data.valid is not None else 0.1 if plain else data.split.valid
    test = 0.0 if data.test is not None or plain else data.split.test
    target = data.target if isinstance(data.target, str) else next(iter(data.outputs or data.target or []), None)
    named = [c for c in data.inputs or [] if c not in KINDS]
    return {"prompt": named[0] if named else None, "completion": target if target != "completion" else None, "valid": valid, "test": test}


def split(given: SplitConfig, examples: pl.DataFrame) -> SplitConfig:
    """The split of framed examples: by position where the frame divided them."""
    return replace(given, column=PART) if PART in examples.columns else given


def asked(framed: pl.DataFrame) -> pl.DataFrame:
    """Examples as somebody would ask: where nothing is read, the beginning of the text is the prompt."""
    if "prompt" not in framed.columns or "completion" not in framed.columns or (framed["prompt"].fill_null("") != "").any():
        return framed
    text = framed["completion"].str
    begin = text.head(pl.Series((text.len_chars() // 4).clip(4, 60))) if framed.height else framed["completion"]
    return framed.with_columns(begin.alias("prompt"))


def examples(table: pl.DataFrame, config: Config, *, training: bool, whole: bool = False) -> tuple[pl.DataFrame, np.ndarray]:
    """(`prompt` or `messages`, `completion`, and what else the rows have; the row each example comes from). `whole` cuts no text."""
    has = set(table.columns)
    origin = np.arange(table.height)
    if config.completion is not None:
        if missing := [c for c in (config.prompt, config.completion) if c is not None and c not in has]:
            raise DataError("column(s) named for the texts are not there", [Problem(f"the data has {', '.join(table.columns)}", c) for c in missing])
        if config.prompt is None and not {"prompt", "messages"} & has:
            return _corpus(table.rename({config.completion: "text"}) if config.completion != "text" else table, config, whole)
        names = {config.completion: "completion"} | ({config.prompt: "prompt"} if config.prompt is not None else {})
        table = table.drop("completion", strict=False).rename(names)
        return (_pairs(table) if "prompt" in table.columns else table), origin
    if {"chosen", "rejected"} <= has:
        return _preferences(table), origin
    if {"messages", "completion"} <= has:
        return table, origin
    for name in ("messages", "conversations", "conversation"):
        if name in has:
            return _conversations(table, name), origin
    if {"instruction", "output"} <= has:
        return _alpaca(table), origin
    if {"prompt", "completion"} <= has:
        return _pairs(table), origin
    texts = [c for c in table.columns if table[c].dtype == pl.String]
    if "text" in has or len(texts) == 1 == len(has):
        return _corpus(table if "text" in has else table.rename({texts[0]: "text"}), config, whole)
    message = f"the columns {', '.join(table.columns)} are no texts to learn from; expected {LAYOUTS}"
    raise DataError(message, [Problem("name the column to write", "data.target", "and the one to read as data.inputs=[NAME]")])


def pieces(path: Path, reading: Reading, config: Config) -> Iterator[tuple[pl.DataFrame, list[SetAside]]]:
    """(examples, set aside) of a file larger than memory, piece by piece: rows as they come, one text divided by position."""
    if path.with_suffix("").suffix.lower() in SUFFIXES or path.suffix.lower() in SUFFIXES:
        yield from ((frame, []) for frame in _long(path, reading, config))
        return
    for table, aside in stream.chunks(path, reading):
        yield examples(table, config, training=True, whole=True)[0], aside


def _long(path: Path, reading: Reading, config: Config) -> Iterator[pl.DataFrame]:
    """`prompt`, `completion` and `part` of one text: all but the first go on from the piece before."""
    total = sum(map(len, _characters(path, reading)))
    held = [min(int(share * total), HELD * PIECE) for share in (config.valid, config.test)]
    marks, start = {"train": total - sum(held), "valid": total - held[1], "test": total}, 0
    for text in _characters(path, reading):
        rows, low = [], 0
        for part, mark in marks.items():
            high = min(max(mark - start, low), len(text))
            rows += [("" if start + a == 0 else None, text[a:b], part) for a, b in _pieces(text, low, high)]
            low = high
        start += len(text)
        yield pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _characters(path: Path, reading: Reading) -> Iterator[str]:
    """The text of a file in pieces that end with a line, unless lines are longer than `READ`."""
    try:
        with stream.opened(path, reading.encoding) as file:
            rest = ""
            while read := file.read(READ):
                cut = read.rfind("\n") + 1
                if cut:
                    yield (rest + read[:cut]).replace("\r\n", "\n")
                    rest = read[cut:]
                elif len(rest) > READ:
                    yield rest
                    rest = read
                else:
                    rest += read
            if rest:
                yield rest
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read to its end: {error}; name data.encoding, or repair the file") from None


def _pairs(table: pl.DataFrame) -> pl.DataFrame:
    """Prompts and completions as they are; lists of messages become a conversation."""
    if not any(isinstance(table[c].dtype, pl.List | pl.Object) for c in ("prompt", "completion")):
        return table
    rows = [_both(p, c) for p, c in zip(table["prompt"].to_list(), table["completion"].to_list(), strict=True)]
    return _conversations(table.drop("prompt", "completion").with_columns(pl.Series("messages", rows, dtype=pl.String)), "messages")


def _both(prompt: Any, completion: Any) -> str | None:
    read, written = conversation(prompt)[0], conversation(completion)[0]
    return json.dumps([*read, *written], ensure_ascii=False) if read and written else None


def _preferences(table: pl.DataFrame) -> pl.DataFrame:
    """The chosen answer as the completion, the other one beside it; what both answer is the prompt, or what their conversations share."""
    read = next((c for c in ("prompt", "messages") if c in table.columns), None)
    sides = [table[c].to_list() for c in ("chosen", "rejected")]
    given = table[read].to_list() if read is not None else [None] * table.height
    talks = read != "prompt" or any(not isinstance(v, str | None) for v in (*given, *sides[0], *sides[1]))
    if not talks:
        return table.rename({"chosen": "completion"})
    rows: list[tuple[str | None, str | None, str | None]] = []
    bad: list[str] = []
    for number, (before, *answers) in enumerate(zip(given, *sides, strict=True), 1):
        whole = [_answered(before, a) for a in answers]
        if None in answers:
            rows.append((None, None, None))
            continue
        if not (whole[0] and whole[1]) or whole[0][:-1] != whole[1][:-1]:
            bad.append(str(number))
            continue
        rows.append((json.dumps(whole[0][:-1], ensure_ascii=False), whole[0][-1]["content"], whole[1][-1]["content"]))
    if bad:
        detail = Problem("chosen and rejected must be two answers of the assistant to the same messages", f"row {', '.join(bad[:5])}")
        raise DataError(f"{len(bad)} pair(s) of answers cannot be compared", [detail])
    made = pl.DataFrame(rows, schema={"messages": pl.String, "completion": pl.String, "rejected": pl.String}, orient="row")
    return table.drop([c for c in ("prompt", "messages", "chosen", "rejected", "completion") if c in table.columns]).hstack(made)


def _answered(before: Any, answer: Any) -> list[dict[str, Any]] | None:
    """What was asked and the answer, a text or messages; None where they are no conversation that ends with an answer."""
    asked = [] if before is None else conversation(before)[0] or [{"role": "user", "content": str(before)}]
    said = conversation(answer)[0] or ([{"role": ANSWERS, "content": answer}] if isinstance(answer, str) and asked else [])
    whole = [*asked, *said]
    return whole if len(whole) > 1 and said and said[-1]["role"] == ANSWERS else None


def _conversations(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """The last answer apart from what comes before it; a conversation without one has no completion."""
    before: list[Any] = []
    last: list[str | None] = []
    for value in table[name].to_list():
        found, _ = conversation(value)
        whole = found is not None and found[-1]["role"] == ANSWERS
        before.append(json.dumps(found[:-1] if whole else found, ensure_ascii=False) if found is not None else None if value is None else str(value))
        last.append(found[-1]["content"] if found is not None and whole else "" if found is None else None)
    made = [pl.Series("messages", before, dtype=pl.String), pl.Series("completion", last, dtype=pl.String)]
    return table.drop(name).with_columns(*made)


def _alpaca(table: pl.DataFrame) -> pl.DataFrame:
    """An instruction and its input as one message of the user."""
    rows = []
    systems = table["system"].to_list() if "system" in table.columns else [None] * table.height
    inputs = table["input"].to_list() if "input" in table.columns else [None] * table.height
    for system, instruction, given in zip(systems, table["instruction"].to_list(), inputs, strict=True):
        asked = f"{instruction}\n\n{given}" if given else str(instruction)
        first = [{"role": "system", "content": str(system)}] if system else []
        rows.append(json.dumps([*first, {"role": "user", "content": asked}], ensure_ascii=False))
    taken = [c for c in ("instruction", "input", "output", "system") if c in table.columns]
    return table.drop(taken).with_columns(pl.Series("messages", rows, dtype=pl.String), table["output"].alias("completion"))


def _corpus(table: pl.DataFrame, config: Config, whole: bool) -> tuple[pl.DataFrame, np.ndarray]:
    """Nothing is read and every text is written; a few long ones are cut and divided by position."""
    if whole or table.height >= FEW or table["text"].null_count():
        return table.rename({"text": "completion"}).with_columns(pl.lit("").alias("prompt")), np.arange(table.height)
    texts = table["text"].cast(pl.String).to_list()
    ends = np.cumsum([len(t) for t in texts])
    marks = {"train": int(ends[-1] * (1 - config.valid - config.test)), "valid": int(ends[-1] * (1 - config.test)), "test": int(ends[-1])}
    rows: list[tuple[str | None, str, str]] = []
    origin: list[int] = []
    for number, text in enumerate(texts):
        start, low = int(ends[number]) - len(text), 0
        for part, mark in marks.items():
            high = min(max(mark - start, low), len(text))
            for a, b in _pieces(text, low, high):
                rows.append(("" if a == 0 else None, text[a:b], part))
                origin.append(number)
            low = high
    return pl.DataFrame(rows, schema=SCHEMA, orient="row"), np.array(origin, np.int64)


def _pieces(text: str, low: int, high: int) -> list[tuple[int, int]]:
    """[from, to) of pieces of `text[low:high]`, cut behind the last line break or blank of each."""
    found = []
    while low < high:
        end = min(low + PIECE, high)
        if end < high:
            cut = max(text.rfind("\n", low + PIECE // 2, end), -1)
            cut = cut if cut >= 0 else text.rfind(" ", low + PIECE // 2, end)
            end = cut + 1 if cut >= 0 else end
        found.append((low, end))
        low = end
    return found
