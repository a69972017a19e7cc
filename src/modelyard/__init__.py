"""Modelyard: from raw data to a model that is trained, evaluated, exported and served with the same answers everywhere.

    import modelyard
    result = modelyard.train(data="customers.csv", target="churned")
    modelyard.load_model(result.model).predict([{"age": 41, "plan": "basic"}])

Every verb of the command line is a function here with the same settings as keywords (`train(epochs=3)` or
`train({"train.epochs": 3})`). Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard import project
    from modelyard.errors import ModelyardError
    from modelyard.project import Project
    from modelyard.project import load_project as load
    from modelyard.runtime.model import Model
    from modelyard.store.registry import Registry

    train: Any
    tune: Any
    predict: Any
    prepare: Any
    evaluate: Any
    report: Any
    export: Any
    serve: Any
    run: Any
    check: Any
    plan: Any
    init: Any
    runs: Any
    doctor: Any
    chat: Any
    compress: Any
    benchmark: Any
    load_model: Any

__version__ = "0.1.0"

__all__ = [
    "Model", "ModelyardError", "Project", "Registry", "__version__", "benchmark", "chat", "check", "compress", "doctor", "evaluate", "export", "init", "load",
    "load_model", "plan", "predict", "prepare", "project", "report", "run", "runs", "serve", "train", "tune",
]  # fmt: skip

_PLACES = {
    "Model": "modelyard.runtime.model:Model",
    "ModelyardError": "modelyard.errors:ModelyardError",
    "Project": "modelyard.project:Project",
    "Registry": "modelyard.store.registry:Registry",
    "load": "modelyard.project:load_project",
    "load_model": "modelyard.runtime.model:Model.load",
    "project": "modelyard.project",
    "serve": "modelyard.verbs.serve:serve",  # a context manager: the verb itself would not return
}
_VERBS = (
    "benchmark", "chat", "check", "compress", "doctor", "evaluate", "export", "init", "plan", "predict", "prepare", "report", "run", "runs", "train", "tune",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    import importlib

    if name in _VERBS:
        value: Any = importlib.import_module("modelyard.calls").function(name)
    elif name in _PLACES:
        module, _, path = _PLACES[name].partition(":")
        value = importlib.import_module(module)
        for part in path.split(".") if path else ():
            value = getattr(value, part)
    else:
        raise AttributeError(f"module 'modelyard' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
