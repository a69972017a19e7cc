"""The command line: lists `verbs/`, parses the few flags, calls the verb, prints its result.

Results go to stdout, everything else to stderr. Nothing but the standard library is imported before a verb is chosen.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.errors import ModelyardError, UsageError
from modelyard.options import SCHEMA_VERSION, Options, dumps

ALIASES = {"fit": "train", "val": "evaluate", "infer": "predict"}
SWITCHES = {"--json": "json", "-q": "quiet", "--quiet": "quiet", "--dry-run": "dry_run", "--offline": "offline",
            "--debug": "debug", "--trust-code": "trust_code", "-y": "yes", "--yes": "yes"}  # fmt: skip
VALUES = {"--device": "device", "--lang": "lang"}
SUGAR = ("--from", "--target", "--out")
"""Flags that are keys: `--target y` is `target=y`."""

EXAMPLES = """\
  modelyard init --from customers.csv --target churned   # look at the data, write modelyard.yaml
  modelyard train data=customers.csv target=churned      # train, test and save a model, no file needed
  modelyard predict runs/customers-0001 data=new.csv     # answers for new rows"""

FLAGS_HELP = """\
  -f FILE          project file (modelyard.yaml here, where there is one)
  key=value        any setting: train.epochs=3, data.split.test=0.1, or epochs=3 where the name is unique
  --json           one JSON object on stdout
  -q, --quiet      no notices and no progress
  --dry-run        say what would be done
  --offline        no network access
  --device D       cpu, cuda, mps
  --resume [RUN]   go on with a run (the latest)
  --trust-code     run Python code that a model names
  --lang LANG      language of reports: en, zh
  --yes            no questions
  --debug          tracebacks"""


class _Asked(Exception):
    """Help or version was asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see errors.py)."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(args)
    except BrokenPipeError:
        # the reader (`head`) has gone: point stdout elsewhere, or the interpreter complains again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def _main(args: list[str]) -> int:
    began = time.perf_counter()
    output = _Output("--json" in args)
    options = Options(json=output.json, debug="--debug" in args)
    options.emit = (lambda body: output.body(body, began, options)) if output.json else None
    try:
        verb, file, overrides = _parse(args, options)
        with output, _collected_warnings(options):
            from modelyard.calls import call

            result = call(verb, options, file, overrides, {})
        output.result(result, began, options)
        return 0
    except _Asked as asked:
        print(asked)
        return 0
    except KeyboardInterrupt as stopped:
        message = str(stopped) or "stopped by Ctrl-C"
        return output.error({"kind": "Interrupted", "message": message, "details": []}, 130, began, options)
    except ModelyardError as error:
        if options.debug:
            _traceback_to_stderr()
        return output.error(error.to_json(), error.exit_code, began, options, error)
    except BrokenPipeError:
        raise
    except Exception as error:
        return output.error(_our_bug(error, options), 101, began, options)


def _our_bug(error: Exception, options: Options) -> dict[str, Any]:
    import tempfile
    import traceback

    if options.debug:
        _traceback_to_stderr()
        where = "the traceback is above"
    else:
        handle, path = tempfile.mkstemp(prefix="modelyard-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"modelyard {' '.join(sys.argv[1:])}\n\n{traceback.format_exc()}")
        where = f"the traceback is in {path}"
    text = " ".join(str(error).split())[:300]
    message = f"this is a bug in Modelyard ({type(error).__name__}: {text}); {where}"
    return {"kind": type(error).__name__, "message": message, "details": []}


def _traceback_to_stderr() -> None:
    import traceback

    traceback.print_exc(file=sys.stderr)


class _collected_warnings:
    """Python warnings become notices: collected for `--json`, one line each for people."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def __enter__(self) -> None:
        import warnings

        self.saved = warnings.catch_warnings()
        self.saved.__enter__()
        warnings.simplefilter("default")
        for noise in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", noise)
        warnings.showwarning = self.show

    def show(self, message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in self.options.warnings:
            self.options.notice(text)

    def __exit__(self, *error: Any) -> None:
        self.saved.__exit__(*error)


class _Output:
    """stdout for results only: while a verb runs, whatever prints to stdout (libraries in C too) goes to stderr."""

    def __init__(self, json: bool) -> None:
        self.json, self.printed = json, False
        self.real: int | None = 1 if json else None

    def __enter__(self) -> None:
        self.python, sys.stdout = sys.stdout, sys.stderr
        if not self.json:
            return
        try:
            self.python.flush()
            self.real = os.dup(1)
            os.dup2(2, 1)
        except OSError:  # no file descriptors (a notebook); Python's own stdout is all there is
            self.real = None

    def __exit__(self, *_: Any) -> None:
        sys.stdout = self.python
        if self.real not in (None, 1):
            os.dup2(self.real, 1)
            os.close(self.real)
            self.real = 1

    def body(self, body: Mapping[str, Any], began: float, options: Options) -> None:
        """The one JSON object."""
        if self.printed:
            return
        self.printed = True
        head = {
            "schema_version": SCHEMA_VERSION,
            "seconds": round(time.perf_counter() - began, 3),
            "warnings": options.warnings,
        }
        line = (dumps({**head, **body}) + "\n").encode("utf-8")
        if self.real is None:
            getattr(self, "python", sys.stdout).write(line.decode("utf-8"))
            return
        while line:
            line = line[os.write(self.real, line) :]

    def result(self, result: Any, began: float, options: Options) -> None:
        """What a verb returned: its JSON, or `show()` / `str()` for people."""
        if self.json:
            self.body(result.to_json() if hasattr(result, "to_json") else result or {}, began, options)
        elif hasattr(result, "show"):
            shown = result.show()
            if isinstance(shown, str):
                print(shown)
        elif result is not None:
            print(result)
        sys.stdout.flush()

    def error(
        self, error: Mapping[str, Any], code: int, began: float, options: Options, raised: ModelyardError | None = None
    ) -> int:
        """The error as JSON on stdout, or a few lines on stderr; a failed gate still shows what was measured."""
        result: Any = getattr(raised, "result", None)
        if self.json:
            body = result.to_json() if hasattr(result, "to_json") else {}
            self.body({**body, "error": error}, began, options)
            return code
        if result is not None:
            self.result(result, began, options)
        text = str(raised) if raised is not None else error["message"]
        print(f"{_red('error:')} {text}", file=sys.stderr)
        return code


def _red(text: str) -> str:
    from modelyard.progress import colours

    return f"\033[31;1m{text}\033[0m" if colours(sys.stderr) else text


# --- the command line ------------------------------------------------------------------------------------------------


def _parse(args: list[str], options: Options) -> tuple[str, str | None, list[str]]:
    """(verb, file, `key=value` texts); flags land in `options`. Raises `UsageError`."""
    if not args or args[0] == "help" or (args[0] in ("-h", "--help") and len(args) == 1):
        raise _Asked(verb_help(args[1]) if len(args) > 1 else help_text())
    if args[0] in ("--version", "-V", "version"):
        from modelyard import __version__

        raise _Asked(f"modelyard {__version__}")
    takes = {"-f", "--file", *VALUES, *SUGAR}
    position = next(
        (i for i, a in enumerate(args) if not a.startswith("-") and (i == 0 or args[i - 1] not in takes)), None
    )
    if position is None:
        raise (
            UsageError("no verb is given; see: modelyard --help")
            if "-h" not in args and "--help" not in args
            else _Asked(help_text())
        )
    verb = _verb(args.pop(position))
    if "-h" in args or "--help" in args:
        raise _Asked(verb_help(verb))
    return verb, *_flags(args, options)


def _flags(args: list[str], options: Options) -> tuple[str | None, list[str]]:
    file: str | None = None
    overrides: list[str] = []
    rest = iter(range(len(args)))
    for i in rest:
        arg = args[i]
        flag, equals, value = arg.partition("=")
        if not arg.startswith("-") or arg == "-":
            (overrides if _is_pair(arg) else options.args).append(arg)
        elif flag in SWITCHES and not equals:
            setattr(options, SWITCHES[flag], True)
        elif flag == "--resume":
            follows = i + 1 < len(args) and not args[i + 1].startswith("-") and not _is_pair(args[i + 1])
            options.resume = value if equals else args[next(rest)] if follows else True
        elif flag in ("-f", "--file") or flag in VALUES or flag in SUGAR:
            if not equals:
                if i + 1 >= len(args):
                    raise UsageError(f"{flag} needs a value")
                value = args[next(rest)]
            if flag in SUGAR:
                overrides.append(f"{flag[2:]}={value}")
            elif flag in VALUES:
                setattr(options, VALUES[flag], value)
            else:
                file = value
        else:
            raise _unknown_flag(arg)
    return file, overrides


def _is_pair(arg: str) -> bool:
    import re

    return bool(re.match(r"[A-Za-z_][\w.\-/]*=", arg))


def _unknown_flag(arg: str) -> UsageError:
    import difflib

    flag = arg.partition("=")[0]
    near = difflib.get_close_matches(flag, [*SWITCHES, *VALUES, *SUGAR, "--file", "--resume"], n=1)
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"settings are written {flag.lstrip('-') or 'key'}=value; see modelyard --help"
    )
    return UsageError(f"unknown flag {flag}; {hint}")


def _verb(name: str) -> str:
    from modelyard import registry

    name = ALIASES.get(name, name)
    if name in registry.names("verbs") or ("/" in name and name in registry.plugins("verbs")):
        return name
    if "=" in name:
        raise UsageError(f"no verb is given before {name}; write for example: modelyard train {name}")
    raise registry.unknown(
        "verb", name, [*registry.names("verbs"), *(a for a, v in ALIASES.items() if v in registry.names("verbs"))]
    )


def help_text() -> str:
    """`modelyard --help`: examples first, then verbs by their docstrings, then flags."""
    from modelyard import registry

    names = registry.names("verbs")
    width = max((len(n) for n in names), default=0)
    verbs = "\n".join(f"  {name:<{width}}  {_short(registry.describe('verbs', name))}" for name in names)
    return f"""\
Modelyard trains, evaluates, exports and serves models.

{EXAMPLES}

usage: modelyard VERB [MODEL or RUN] [-f FILE] [key=value ...] [flags]

verbs (modelyard VERB --help says more):
{verbs}

flags:
{FLAGS_HELP}"""


def _short(text: str) -> str:
    first = text.split(". ")[0].rstrip(".")
    return first if len(first) <= 100 else first[:99].rsplit(" ", 1)[0] + " …"


def verb_help(verb: str) -> str:
    """`modelyard VERB --help`: the docstring and the keys of its section, read as text."""
    import ast
    import textwrap

    from modelyard import registry
    from modelyard.project import TOP, section_keys

    verb = _verb(verb)
    path = registry.ROOT / "verbs" / verb.replace("-", "_") / "__init__.py"
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") if path.is_file() else ""
    keys = section_keys(verb)
    lines = [f"usage: modelyard {verb} [MODEL or RUN] [-f FILE] [key=value ...] [flags]", "", text]
    for title, entries in (
        (f"keys ({verb}.KEY=value):", keys),
        ("other keys:", {k: v for k, v in TOP.items() if keys}),
    ):
        if entries:
            lines += ["", title]
        for key, meaning in entries.items():
            wrapped = textwrap.wrap(meaning, 96) or [""]
            lines += [f"  {key:<18} {wrapped[0]}".rstrip(), *(" " * 21 + more for more in wrapped[1:])]
    return "\n".join([*lines, "", "flags:", FLAGS_HELP])
