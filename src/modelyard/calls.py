"""Verbs as Python functions: the same settings as the command line, as keywords."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modelyard import registry
from modelyard.errors import ConfigError, GateFailed, UsageError
from modelyard.options import Options

FLAGS = tuple(
    f.name for f in dataclasses.fields(Options) if f.name not in ("json", "args", "values", "warnings", "emit")
)


def call(verb: str, options: Options, file: str | Path | None, overrides: list[str], values: Mapping[str, Any]) -> Any:
    """Load the verb, read the project where it takes one, run. The one way into a verb, for both interfaces."""
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # what our own code and huggingface_hub both ask before a socket is opened
    module = registry.load("verbs", verb)
    if getattr(module, "NEEDS_PROJECT", True):
        from modelyard.project import load_project

        try:
            project = load_project(file, overrides, values, verb)
        except ConfigError as error:
            if error.project is not None and hasattr(module, "despite"):
                module.despite(error)
            raise
    else:
        from modelyard.project import override
        from modelyard.project_file import bare

        project = None
        pairs = [override(text) for text in overrides]
        options.values = {**values, **{key: bare(node) for key, node in pairs}}
        if file is not None:
            options.values.setdefault("file", str(file))
    try:
        result = module.run(project, model=options.args[0] if options.args else None, options=options)
    except GateFailed as error:  # it ran to its end
        _mirrored(error.result, project, options)
        raise
    _mirrored(result, project, options)
    return result


def _mirrored(result: Any, project: Any, options: Options) -> None:
    """Tells MLflow of a run that a verb has made, where it is asked for."""
    if os.environ.get("MLFLOW_TRACKING_URI") and project is not None and isinstance(getattr(result, "run", None), str | Path):
        from modelyard.store import mirror

        if (Path(result.run) / "run.json").is_file():
            mirror.run(Path(result.run), project.name, options.notice)


def function(verb: str) -> Callable[..., Any]:
    """The Python function of a verb: `f(*settings, model=None, file=None, <flags>, **keys)`.

    Positional arguments are a project file, or maps of dotted keys (`{"train.epochs": 3}`); keywords are keys or flags.
    """

    def run(*given: str | Path | Mapping[str, Any], **keys: Any) -> Any:
        file = keys.pop("file", None)
        # `model` is a section where models are made, and a folder where one is used
        folder = keys.pop("model", None) if _uses_model(verb) else None
        values: dict[str, Any] = {}
        for one in given:
            if isinstance(one, Mapping):
                values |= one
            elif _uses_model(verb) and folder is None:
                folder = one
            elif file is None:
                file = one
            else:
                raise UsageError(f"{verb}() takes one file; got {file!r} and {one!r}")
        options = Options(
            **{k: keys.pop(k) for k in FLAGS if k in keys}, args=[str(folder)] if folder is not None else []
        )
        return call(verb, options, file, [], {**values, **{k.replace("__", "."): v for k, v in keys.items()}})

    run.__name__ = run.__qualname__ = verb
    run.__doc__ = registry.describe("verbs", verb) if verb in registry.names("verbs") else None
    return run


def _uses_model(verb: str) -> bool:
    return verb in ("predict", "evaluate", "report", "export", "serve", "runs", "chat", "compress", "benchmark")
