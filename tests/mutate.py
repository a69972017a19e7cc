"""Named operators that break project files and data files, each with what must be said about it.

`project_cases(n)` and `data_cases(n)` give `n` seeded cases; each operator is alone once, then most have a partner. An operator
that makes a file unreadable is alone in its file: its partner sits in another one.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CITIES = ("Oslo", "Lima", "Kyiv", "北京")
ROWS = {"train": 60, "test": 24}


@dataclass
class Part:
    """One table of a case, written as CSV unless an operator says otherwise."""

    name: str
    header: list[str]
    rows: list[list[str]]
    file: str = ""
    content: bytes | None = None
    """Bytes that replace the written table."""
    wrap: list[Callable[[bytes], bytes]] = field(default_factory=list)
    lines: dict[int, str] = field(default_factory=dict)
    """Raw lines by row number that replace the row."""
    absent: bool = False

    def raw(self) -> bytes:
        """The bytes of the file."""
        if self.content is not None:
            return self.content
        body = [self.lines.get(i, ",".join(row)) for i, row in enumerate(self.rows)]
        found = ("\n".join([",".join(self.header), *body]) + "\n").encode("utf-8")
        for step in self.wrap:
            found = step(found)
        return found


@dataclass
class Case:
    """A project folder to be, and what must be said about it."""

    name: str
    parts: dict[str, Part]
    settings: dict[str, Any]
    expected: list[str] = field(default_factory=list)
    """A pattern per fault, searched in all that was said."""
    aside: int = 0
    """Rows that must be set aside, where nothing else is wrong."""
    fatal: bool = False
    """Whether exit code 2 is due (else 0, with `aside` rows accounted for)."""
    text: list[Callable[[str], str | bytes]] = field(default_factory=list)
    """Changes of the project file's text."""
    files: dict[str, bytes] = field(default_factory=dict)
    verb: str = "check"
    """The command that must name the faults."""

    @property
    def rows(self) -> int:
        """Rows written, over all tables."""
        return sum(len(p.rows) for p in self.parts.values())

    def write(self, folder: Path) -> Path:
        """The folder on disk; returns the project file."""
        for part in self.parts.values():
            if not part.absent:
                (folder / part.file).write_bytes(part.raw())
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        text: str | bytes = _yaml(self.settings)
        for change in self.text:
            text = change(text) if isinstance(text, str) else text
        file = folder / "modelyard.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return file


def _yaml(tree: dict[str, Any], indent: int = 0) -> str:
    """Block YAML; leaves as JSON, which YAML 1.2 contains."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            lines.append(f"{' ' * indent}{key}:\n{_yaml(value, indent + 2)}".rstrip("\n"))
        else:
            lines.append(f"{' ' * indent}{key}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def whole(seed: int) -> Case:
    """A project that trains: two CSV files without a fault."""
    chance = random.Random(seed)
    parts = {}
    number = 0
    for name, rows in ROWS.items():
        table = []
        for _ in range(rows):
            number += 1
            age, city = chance.randint(18, 80), chance.choice(CITIES)
            table.append(
                [
                    f"r{number}",
                    str(age),
                    f"{chance.gauss(50, 9):.3f}",
                    city,
                    f"{age * 3 + chance.gauss(0, 9):.2f}",
                    "yes" if chance.random() < 0.5 else "no",
                ]
            )
        parts[name] = Part(name, ["key", "age", "income", "city", "price", "label"], table, f"{name}.csv")
    settings: dict[str, Any] = {
        "task": "classification",
        "data": {
            "train": "train.csv", "test": "test.csv", "target": "label", "id": "key", "split": {"valid": 0.2},
            "inputs": {"age": "number", "income": "number", "city": "category"},
        },
        "model": {"name": "mlp"},
        "train": {"epochs": 2, "batch": 16},
        "evaluate": {"metrics": ["accuracy"]},
    }  # fmt: skip
    return Case("whole", parts, settings)


# --- data ------------------------------------------------------------------------------------------------------------

DataFault = Callable[[Case, Part, random.Random], None]
DATA: dict[str, tuple[str, DataFault]] = {}
"""Name → (slot, operator). Two faults of a case have different slots in one table, or sit in different tables."""


def data_fault(name: str, slot: str = "file") -> Callable[[DataFault], DataFault]:
    """Register an operator; slot `file` makes the whole table unusable, `project` needs the whole case."""

    def keep(operator: DataFault) -> DataFault:
        DATA[name] = (slot, operator)
        return operator

    return keep


def _fatal(case: Case, *expected: str) -> None:
    case.fatal = True
    case.expected += expected


def _aside(case: Case, rows: int, *expected: str) -> None:
    case.aside += rows
    case.expected += expected


def _content(name: str, said: str, make: Callable[[Part, random.Random], tuple[str, bytes]]) -> None:
    """An operator that replaces the file of a table by other bytes under a suffix."""

    def operator(case: Case, part: Part, chance: random.Random) -> None:
        suffix, part.content = make(part, chance)
        part.file = f"{part.name}{suffix}"
        case.settings["data"][part.name] = part.file
        _fatal(case, said.replace("FILE", part.name))

    DATA[name] = ("file", operator)


_content("empty file", r"FILE\.csv is empty", lambda p, c: (".csv", b""))
_content("only blank lines", r"FILE\.csv holds no rows", lambda p, c: (".csv", b"\n \n\n"))
_content("UTF-16 cut short", r"FILE\.csv.* is not utf-16; it is cut short", lambda p, c: (".csv", p.raw().decode().encode("utf-16")[:-1]))
_content(
    "UTF-16 cut short without a mark",
    r"FILE\.csv.* is not utf-16-le; it is cut short",
    lambda p, c: (".csv", p.raw().decode().encode("utf-16-le")[:-1]),
)
_content("binary junk", r"FILE\.csv.*(neither UTF-8 nor GB18030|NUL|binary)", lambda p, c: (".csv", c.randbytes(4000)))
_content(
    "bad bytes",
    r"FILE\.csv:\d+: byte 0xff is neither UTF-8 nor GB18030",
    lambda p, c: (".csv", p.raw().replace(b",yes", b",\xff\xff\xff", 1)),
)
_content("gzip cut short", r"FILE\.csv\.gz is no whole gzip file", lambda p, c: (".csv.gz", gzip.compress(p.raw())[: -c.randint(5, 200)]))
_content("gzip that is none", r"FILE\.csv\.gz is no whole gzip file", lambda p, c: (".csv.gz", p.raw()))
_content("gzip bomb", r"FILE\.csv\.gz unpacks to more than", lambda p, c: (".csv.gz", gzip.compress(b"a,b\n" * 2**20)))
_content("Parquet junk", r"FILE\.parquet is no readable Parquet file", lambda p, c: (".parquet", b"PAR1" + c.randbytes(500)))
_content("xz bomb", r"FILE\.csv\.xz unpacks to more than", lambda p, c: (".csv.xz", lzma.compress(b"a,b\n" * 2**20)))
_content("bzip2 cut short", r"FILE\.csv\.bz2 is no whole bzip2 file", lambda p, c: (".csv.bz2", bz2.compress(p.raw())[: -c.randint(5, 200)]))
_content("unknown type", r"FILE\.docx is of no known type", lambda p, c: (".docx", p.raw()))
_content("workbook that is none", r"FILE\.xlsx is no \.xlsx workbook", lambda p, c: (".xlsx", p.raw()))
_content(
    "workbook bomb",
    r"FILE\.xlsx unpacks to more than",
    lambda p, c: (".xlsx", _zip({"[Content_Types].xml": b"<a/>", "xl/worksheets/sheet1.xml": b" " * 2**22})),
)
_content("JSON of numbers", r"FILE\.json: none of its 3 elements is an object", lambda p, c: (".json", b"[1, 2, 3]"))
_content(
    "JSON columns of two lengths",
    r"FILE\.json: the columns have different lengths",
    lambda p, c: (".json", b'{"age": [1, 2], "label": [1]}'),
)
_content("JSON lines without objects", r"FILE\.jsonl holds no JSON objects", lambda p, c: (".jsonl", b"1\n2\nthree\n"))
_content("zip cut short", r"FILE\.zip is no readable zip", lambda p, c: (".zip", _zip({"a/1.png": png(4, 4)})[: -c.randint(20, 60)]))
_content("zip without images", r"FILE\.zip holds no images", lambda p, c: (".zip", _zip({"notes/readme.md": b"x"})))
_content("zip bomb", r"FILE\.zip unpacks to more than", lambda p, c: (".zip", _zip({"rows.csv": b"a,b\n" * 2**20})))
_content("zip bomb of images", r"FILE\.zip unpacks to more than", lambda p, c: (".zip", _zip({f"a/{i}.png": bytes(2**19) for i in range(4)})))
_content("zip in a zip", r"inner\.zip: is an archive in the archive", lambda p, c: (".zip", _zip({"inner.zip": _zip({"a.csv": b"x"})})))
_content("zip that leads outside", r"\.\./rows\.csv: leads outside", lambda p, c: (".zip", _zip({"../rows.csv": p.raw()})))
_content("zip of two tables", r"FILE\.zip holds 2 tables", lambda p, c: (".zip", _zip({"a.csv": p.raw(), "b.csv": p.raw()})))


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def png(width: int, height: int, said: tuple[int, int] | None = None, value: int = 128) -> bytes:
    """A grey PNG; `said` is the size its header claims."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    head = struct.pack(">IIBBBBB", *(said or (width, height)), 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes([value]) * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@data_fault("missing file")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.absent = True
    _fatal(case, rf"{part.name}\.csv does not exist")


@data_fault("header only")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.rows = []
    _fatal(case, rf"{part.name}.*(no rows|holds no row)")


@data_fault("duplicate header names")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.header[2] = "age"
    _fatal(case, r"age: appears more than once")


@data_fault("nameless column")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.header[chance.choice((1, 2))] = " "
    _fatal(case, r"column \d: has no name")


@data_fault("no target column", "target")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.header[5] = "answer"
    _fatal(case, r"label: (is not a column|the table test lacks the target)")


@data_fault("no input column", "city")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.header[3] = "town"
    _fatal(case, r"city: (is not a column|.*lacks the input column)")


@data_fault("no id column", "id")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.header[0] = "nr"
    _fatal(case, r"key: (is not a column|.*lacks)")


@data_fault("duplicate ids", "id")
def _(case: Case, part: Part, chance: random.Random) -> None:
    a, b = chance.sample(range(len(part.rows)), 2)
    part.rows[a][0] = part.rows[b][0]
    _fatal(case, rf"key: .*{part.rows[b][0]}")


@data_fault("ids shared between splits", "project")
def _(case: Case, part: Part, chance: random.Random) -> None:
    shared = case.parts["train"].rows[chance.randrange(60)][0]
    case.parts["test"].rows[chance.randrange(24)][0] = shared
    _fatal(case, rf"key: .*{shared}\b")


@data_fault("rows without a target", "target")
def _(case: Case, part: Part, chance: random.Random) -> None:
    chosen = sorted(chance.sample(range(len(part.rows)), 3))
    for i in chosen:
        part.rows[i][5] = ""
    _fatal(case, rf"label: 3 row\(s\) of {part.name}: has no target.*row {chosen[0] + 1}")


@data_fault("one class", "target")
def _(case: Case, part: Part, chance: random.Random) -> None:
    for row in case.parts["train"].rows:
        row[5] = "yes"
    _fatal(case, r"label: has only one value in the training rows")


def _regression(case: Case) -> None:
    case.settings["task"], case.settings["data"]["target"] = "regression", "price"
    case.settings["evaluate"]["metrics"] = ["mae"]


@data_fault("infinite target", "project")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _regression(case)
    row = chance.randrange(len(part.rows))
    part.rows[row][4] = chance.choice(("inf", "-inf", "1e999"))
    _fatal(case, rf"price: 1 row\(s\) of {part.name}: is not a finite number.*row {row + 1}")


@data_fault("NaN target", "project")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _regression(case)
    row = chance.randrange(len(part.rows))
    part.rows[row][4] = "NaN"
    _fatal(case, rf"price: 1 row\(s\) of {part.name}: has no target.*row {row + 1}")


@data_fault("word as a number target", "project")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _regression(case)
    row = chance.randrange(len(part.rows))
    part.rows[row][4] = "cheap"
    _fatal(case, rf"price: 1 row\(s\) of {part.name}: is not a finite number.*row {row + 1} .*cheap")


@data_fault("every row unusable", "age")
def _(case: Case, part: Part, chance: random.Random) -> None:
    for row in part.rows:
        row[1] = "old"
    _fatal(case, rf"age: all \d+ rows of {part.name} are unusable")


@data_fault("two rows", "project")
def _(case: Case, part: Part, chance: random.Random) -> None:
    case.parts["train"].rows = [case.parts["train"].rows[0]]
    _fatal(case, r"1 (example|row)\(s\)")


@data_fault("time split without times", "project")
def _(case: Case, part: Part, chance: random.Random) -> None:
    table = case.parts["train"]
    table.header.append("day")
    for i, row in enumerate(table.rows):
        row.append("" if i == 7 else f"2024-01-{i % 28 + 1:02d}")
    case.settings["data"]["split"]["time"] = "day"
    _fatal(case, r"data\.split\.time: day is missing in 1 row")


@data_fault("split column with another word", "project")
def _(case: Case, part: Part, chance: random.Random) -> None:
    table = case.parts["train"]
    table.header.append("part")
    for i, row in enumerate(table.rows):
        row.append("holdout" if i == 5 else "train" if i % 4 else "valid")
    case.settings["data"]["split"] = {"column": "part"}
    _fatal(case, r"data\.split\.column: part holds 'holdout' in 1 row")


@data_fault("bad weights", "project")
def _(case: Case, part: Part, chance: random.Random) -> None:
    table = case.parts["train"]
    table.header.append("w")
    bad = chance.choice(("-1", "heavy", "inf"))
    for i, row in enumerate(table.rows):
        row.append(bad if i == 9 else "1.5")
    case.settings["data"]["weight"] = "w"
    _fatal(case, rf"w: 1 row\(s\) of train.*row 10 .*{bad}")


@data_fault("row too short", "line 3")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.lines[3] = ",".join(part.rows[3][:4])
    _aside(case, 1, r"has 4 fields where the header has 6")


@data_fault("row too long", "line 4")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.lines[4] = ",".join([*part.rows[4], "more", "more"])
    _aside(case, 1, r"has 8 fields where the header has 6")


@data_fault("quote never closed", "line 5")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.lines[5] = ",".join([*part.rows[5][:3], '"' + part.rows[5][3], *part.rows[5][4:]])
    _aside(case, 1, r"quote")


@data_fault("NUL byte", "line 6")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.lines[6] = ",".join([*part.rows[6][:3], "Os\x00lo", *part.rows[6][4:]])
    _aside(case, 1, r"NUL")


@data_fault("giant field", "line 7")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.lines[7] = ",".join([*part.rows[7][:3], '"' + "x" * 140_000 + '"', *part.rows[7][4:]])
    _aside(case, 1, r"more than 131,072 characters")


@data_fault("word in a number column", "line 8")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.rows[8][1] = chance.choice(("old", "12 years", "1,5".replace(",", ";"), "--"))
    _aside(case, 1, r"age.*is not a finite number|is not a finite number.*age")


@data_fault("infinity in a number column", "line 9")
def _(case: Case, part: Part, chance: random.Random) -> None:
    part.rows[9][2] = chance.choice(("inf", "-Infinity", "1e400"))
    _aside(case, 1, r"income.*is not a finite number|is not a finite number.*income")


def _pictures(case: Case, chance: random.Random) -> None:
    for part in case.parts.values():
        part.rows, part.absent = [], True
    files = {f"pictures/{label}/{i}.png": png(6, 6, value=chance.randrange(256)) for label in ("cat", "dog") for i in range(12)}
    case.files |= files
    case.settings["data"] = {"path": "pictures", "target": "label", "split": {"test": 0.2, "valid": 0.2}}
    case.settings["model"] = {"name": "cnn"}


@data_fault("oversized image", "pictures")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _pictures(case, chance)
    case.files["pictures/cat/3.png"] = png(6, 6, said=(90_000, 90_000))
    _aside(case, 1, r"pixels|large")


@data_fault("broken image", "pictures")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _pictures(case, chance)
    case.files["pictures/dog/5.png"] = chance.choice((b"", b"GIF89a", png(6, 6)[:30], chance.randbytes(99)))
    _aside(case, 1, r"image")


@data_fault("no class folders", "pictures")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _pictures(case, chance)
    case.files = {f"pictures/{i}.png": png(6, 6) for i in range(5)}
    _fatal(case, r"holds no images in class folders")


def _digits(case: Case, images: bytes, labels: bytes) -> None:
    for part in case.parts.values():
        part.rows, part.absent = [], True
    case.files |= {"digits/train-images-idx3-ubyte": images, "digits/train-labels-idx1-ubyte": labels}
    case.settings["data"] = {"path": "digits", "target": "label"}
    case.settings["model"] = {"name": "cnn"}


def idx(shape: tuple[int, ...], content: bytes, kind: int = 8) -> bytes:
    """An IDX file that says `shape`."""
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + content


@data_fault("IDX that is none", "pictures")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _digits(case, chance.choice((b"", b"PK\3\4", b"\0\0\x08", idx((2,), b"", kind=0x42))), idx((20,), bytes(20)))
    _fatal(case, r"train-images-idx3-ubyte (is no IDX file|is cut short)")


@data_fault("IDX that says more than it holds", "pictures")
def _(case: Case, part: Part, chance: random.Random) -> None:
    shape = chance.choice(((21, 4, 4), (2**31, 2**31, 2**31), (20, 4, 5)))
    _digits(case, idx(shape, bytes(20 * 16)), idx((20,), bytes(20)))
    _fatal(case, r"train-images-idx3-ubyte says .* and holds 320 bytes")


@data_fault("IDX with fewer labels than images", "pictures")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _digits(case, idx((20, 4, 4), bytes(320)), idx((19,), bytes(19)))
    _fatal(case, r"IDX files of train do not pair up: .*20.*19")


@data_fault("IDX bomb", "pictures")
def _(case: Case, part: Part, chance: random.Random) -> None:
    _digits(case, b"", b"")
    case.files = {"digits/train-images-idx3-ubyte.gz": gzip.compress(idx((4096, 32, 32), bytes(2**22)))}
    _fatal(case, r"train-images-idx3-ubyte\.gz unpacks to more than")


def data_cases(count: int, seed: int = 0) -> Iterator[Case]:
    """`count` cases; every operator alone once, then with a second fault in the other table."""
    chance = random.Random(seed)
    names = list(DATA)
    for i in range(count):
        case = whole(1000 * seed + i)
        first = names[i % len(names)]
        slot, operator = DATA[first]
        part = case.parts[chance.choice(("train", "test")) if slot not in ("project", "pictures") else "train"]
        operator(case, part, chance)
        case.name = f"{i}: {first} in {part.name}"
        if i >= len(names) and slot not in ("project", "pictures"):
            other = case.parts["test" if part.name == "train" else "train"]
            second = chance.choice([n for n, (s, _) in DATA.items() if s not in ("project", "pictures") and n != first])
            DATA[second][1](case, other, chance)
            case.name += f" + {second} in {other.name}"
        elif i >= len(names) and slot == "project":
            second = chance.choice([n for n, (s, _) in DATA.items() if s.startswith("line")])
            DATA[second][1](case, case.parts["test"], chance)
            case.name += f" + {second} in test"
        yield case


# --- project files ---------------------------------------------------------------------------------------------------

Setting = tuple[str, str, Any, str]
SETTINGS: list[Setting] = [
    # name, dotted key, value, what must be said
    ("wrong type: epochs", "train.epochs", "many", r"train\.epochs: got 'many', expected a whole number"),
    ("wrong type: list for a number", "train.batch", [1, 2], r"train\.batch: got \[1, 2\], expected a whole number"),
    ("wrong type: text for a map", "evaluate.gate", "high", r"evaluate\.gate: got 'high', expected a map"),
    ("wrong type: number for a name", "name", 7, r"name: got 7, expected a text"),
    ("wrong type: boolean for a number", "train.clip", True, r"train\.clip: got True, expected"),
    ("out of bounds: rate", "train.lr", -1, r"train\.lr: got -1, expected a number from 0 to 100"),
    ("out of bounds: epochs", "train.epochs", 0, r"train\.epochs: got 0, expected a number at least 1"),
    ("unknown key", "train.epohcs", 3, r"train\.epohcs: unknown key.*Did you mean 'epochs'"),
    ("unknown key of data", "data.targte", "label", r"data\.targte: unknown key.*Did you mean 'target'"),
    ("unknown section", "trian", {"epochs": 3}, r"trian: unknown section.*Did you mean 'train'"),
    ("unknown choice", "train.optimiser", "adamm", r"train\.optimiser: got 'adamm', expected one of"),
    ("bad duration", "train.budget", "five minutes", r"train\.budget: got 'five minutes', expected a duration"),
    ("bad gate", "evaluate.gate", {"accuracy": "about 0.9"}, r"gate\.accuracy: got 'about 0.9', expected a comparison"),
    ("bad split shares", "data.split", {"test": 0.6, "valid": 0.5}, r"leave less than 5 % to train on"),
    ("negative split share", "data.split", {"test": -0.1}, r"data\.split\.test: got -0\.1, expected a number from 0 to 0\.9"),
    ("unknown task", "task", "clasification", r"unknown task 'clasification'.*Did you mean 'classification'"),
    ("unknown model", "model", {"name": "resnt"}, r"unknown model 'resnt'.*Did you mean 'resnet'"),
    ("unknown model option", "model", {"name": "mlp", "widht": 3}, r"model\.widht: unknown key"),
    ("model of a wrong type", "model", 5, r"model: got 5, expected auto, a name, or a map"),
    ("unknown metric", "evaluate.metrics", ["acuracy"], r"evaluate\.metrics.*acuracy.*accuracy"),
    ("another version", "version", 9, r"version: got 9, expected 1"),
    ("negative seed", "seed", -4, r"seed: got -4, expected a whole number"),
    ("unset variable", "serve.token", "${env:MODELYARD_NOT_SET_ANYWHERE}", r"MODELYARD_NOT_SET_ANYWHERE is not set"),
    ("preset that is not there", "preset", "base.yaml", r"there is no file .*base\.yaml"),
    ("data as a list", "data", ["a.csv", 3], r"data: path came as list; expected one path"),
    ("port out of bounds", "serve.port", 70000, r"serve\.port: got 70000, expected a number from 0 to 65535"),
]  # fmt: skip

BINDING: list[Setting] = [
    ("wrong path", "data.train", "trian.csv", r"trian\.csv does not exist"),
    ("wrong test path", "data.test", "tset.csv", r"tset\.csv does not exist"),
    ("unknown target", "data.target", "lable", r"lable: is not a column.*Did you mean 'label'"),
    ("unknown input", "data.inputs.agee", "number", r"agee: is not a column.*Did you mean 'age'"),
    ("unknown kind", "data.inputs.city", "categry", r"city.*categry.*category"),
    ("unknown encoding", "data.inputs.age", {"kind": "number", "encoding": "scald"}, r"age.*scald.*scaled"),
    ("unknown encoding setting", "data.inputs.income", {"kind": "number", "width": 3}, r"data\.inputs\.income\.width: unknown key"),
    ("unknown ignored column", "data.ignore", ["ctiy"], r"ctiy: is not a column.*Did you mean 'city'"),
    ("unknown weight column", "data.weight", "wieght", r"wieght: is not a column"),
    ("unknown encoding of the file", "data.encoding", "utf-9", r"the encoding 'utf-9' is not known"),
]

TEXT: dict[str, tuple[bool, Callable[[str], str | bytes], str]] = {
    # name: (whether the file is still read to its end, change, what must be said)
    "duplicate key": (True, lambda t: t + "task: regression\n", r"task: is written twice"),
    "tag": (True, lambda t: t + "name: !!python/object:os.system x\n", r"the tag .*python/object.* is not allowed"),
    "merge key": (True, lambda t: t + "<<: {seed: 3}\n", r"merge keys"),
    "two documents": (True, lambda t: t + "---\nname: b\n", r"one document"),
    "list as a key": (True, lambda t: t + "? [a, b]\n: 3\n", r"a key must be a plain word"),
    "tab": (False, lambda t: t.replace("  epochs", "\tepochs"), r"modelyard\.yaml:\d+.*a tab stands in the indentation"),
    "open bracket": (False, lambda t: t + "name: [a, b\n", r"modelyard\.yaml:\d+: is not YAML"),
    "open quote": (False, lambda t: t + 'name: "a\n', r"modelyard\.yaml:\d+: is not YAML"),
    "wrong indentation": (
        False,
        lambda t: t.replace("  epochs", "     epochs").replace("  batch", " batch"),
        r"modelyard\.yaml:\d+: is not YAML",
    ),
    "list at the top": (False, lambda t: "- data\n- train\n", r"expected keys such as .*got a list"),
    "word at the top": (False, lambda t: "data.csv\n", r"expected keys such as .*got 'data\.csv'"),
    "Latin-1": (False, lambda t: (t + "name: caf\u00e9\n").encode("latin-1", "replace"), r"modelyard\.yaml:\d+: is not UTF-8"),
    "UTF-16 project": (False, lambda t: t.encode("utf-16"), r"is not UTF-8|UTF-16"),
    "binary project": (False, lambda t: bytes(range(256)) * 4, r"is not UTF-8|is not YAML"),
    "NUL in the project": (False, lambda t: t + "name: a\0b\n", r"is not YAML"),
    "nested too deeply": (False, lambda t: t + "name: " + "[" * 5000 + "]" * 5000 + "\n", r"nested too deeply"),
    "aliases without end": (False, lambda t: t + _laughs(), r"aliases expand to more than"),
    "a megabyte": (False, lambda t: t + "#" * 2**20, r"has \d+ bytes, at most"),
}


def _laughs() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    return "\n".join(lines) + "\n"


def set_key(settings: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key, making maps on the way."""
    *path, last = key.split(".")
    for part in path:
        settings = settings.setdefault(part, {})
    settings[last] = value


def project_cases(count: int, seed: int = 0) -> Iterator[Case]:
    """`count` cases; every fault alone once, then with a second one of the same stage under another key, or with one in the data.

    A fault of the project file and one in the data are named together by `check` alone, and only where the data section
    itself is whole: the other verbs refuse a broken file before they read anything.
    """
    chance = random.Random(seed)
    names = [*(s[0] for s in SETTINGS), *(b[0] for b in BINDING), *TEXT]
    by_name = {s[0]: s for s in [*SETTINGS, *BINDING]}
    readable = [n for n, (whole_file, *_) in TEXT.items() if whole_file]
    spoiling = _spoiling()
    for i in range(count):
        case = whole(5000 + 1000 * seed + i)
        case.fatal, chosen, suffix = True, [names[i % len(names)]], ""
        case.verb = "plan" if i % 2 else "check"
        group = _group(chosen[0], readable)
        if i >= len(names) and chosen[0] in by_name and _leaves_data(by_name[chosen[0]]) and chance.random() < 0.5:
            second, part = chance.choice(spoiling), case.parts[chance.choice(("train", "test"))]
            DATA[second][1](case, part, chance)
            case.verb, suffix = "check", f" + {second} in {part.name}"
        elif i >= len(names) and group:
            rest = [n for n in group if n != chosen[0] and not _clash(chosen[0], n, by_name)]
            chosen += [chance.choice(rest)] if rest else []
        for name in chosen:
            if name in TEXT:
                case.text.append(TEXT[name][1])
                case.expected.append(TEXT[name][2])
            else:
                _, key, value, said = by_name[name]
                set_key(case.settings, key, value)
                case.expected.append(said)
        case.name = f"{i}: " + " + ".join(chosen) + suffix
        yield case


def _spoiling() -> list[str]:
    """Faults of data that make one table unusable, wherever it sits."""
    found = []
    for name, (slot, operator) in DATA.items():
        if slot in ("project", "pictures"):
            continue
        case = whole(0)
        operator(case, case.parts["train"], random.Random(0))
        if case.fatal:
            found.append(name)
    return found


def _leaves_data(setting: Setting) -> bool:
    """Whether the data section and the task stay whole beside this fault."""
    return setting in SETTINGS and not setting[1].startswith("data") and setting[1] != "preset"


def _group(name: str, readable: list[str]) -> list[str]:
    """What a fault can be paired with: faults that are seen at the same stage."""
    bound = [b[0] for b in BINDING]
    if name in bound:
        return bound
    return [] if name in TEXT and name not in readable else [*(s[0] for s in SETTINGS), *readable]


def _clash(a: str, b: str, by_name: dict[str, Setting]) -> bool:
    """Two faults under one key, or one that hides the other's section."""
    if a in TEXT or b in TEXT:
        return {a, b} & set(TEXT) == {a, b}  # two appended texts could change each other's meaning
    first, second = by_name[a][1], by_name[b][1]
    if "unknown encoding of the file" in (a, b):
        return True
    if "wrong path" in (a, b):  # columns are known only where the first table could be read
        return "wrong test path" not in (a, b)
    return first == second or first.startswith(f"{second}.") or second.startswith(f"{first}.") or {first, second} == {"preset", "data"}
