"""What is compared: the model, each of its exports opened as its users would open it, and other models beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelyard.errors import ArtefactError, MissingExtra, ModelyardError, ParityError, Unsupported
from modelyard.runtime.answers import compare
from modelyard.runtime.model import Model, answers_from_json


def gathered(
    model: Model, folder: Path, forms: list[str], beside: list[str], place: Path, runs: Path, trust_code: bool,
    progress: Callable[[int, int, str], None] | None,
) -> tuple[list[dict[str, Any]], dict[str, Model]]:  # fmt: skip
    """(entries, what answers by the entry's name) of the model, of exports that are made in `place`, and of other models; those that are refused,
    or that nothing here runs, have an entry with the reason and no model."""
    whole = sum(e["size"] for e in model.manifest["files"].values())
    entries = [entry("model", model.backend, whole, parity=model.parity.to_json() if model.parity else None)]
    models = {"model": model}
    steps = len(forms) + len(beside)
    for i, form in enumerate(forms):
        if progress:
            progress(i, steps, form)
        found, opened = exported(model, folder, form, place / form, trust_code)
        entries.append(found)
        models |= {form: opened} if opened is not None else {}
    for i, name in enumerate(beside, len(forms)):
        if progress:
            progress(i, steps, name)
        other = _other(name, model, runs, trust_code)
        size = sum(e["size"] for e in other.manifest["files"].values())
        entries.append(entry(name, "another model", size, parity=differences(model, other)))
        models[name] = other
    if progress:
        progress(steps, steps, "timing")
    return entries, models


def entry(name: str, what: str, size: int = 0, **known: Any) -> dict[str, Any]:
    """One line of the comparison; `bytes` 0 where nothing was written."""
    return {"name": name, "what": what, "bytes": size, "one": None, "batch": None, "metrics": {}, "parity": None, "refused": None, **known}


def exported(model: Model, folder: Path, form: str, target: Path, trust_code: bool) -> tuple[dict[str, Any], Model | None]:
    """(entry, what answers) of one form; None where it is refused or nothing here runs it."""
    from modelyard.verbs.export import export, opened

    try:
        made = export(folder, form, trust_code=trust_code, into=target)
    except ParityError as error:
        found = error.result.to_json() if hasattr(error.result, "to_json") else None
        return entry(form, "export", parity=found, refused={"why": "parity", "reason": _said(error)}), None
    except (Unsupported, MissingExtra, ArtefactError) as error:
        return entry(form, "export", refused=_reason(error)), None
    parity = made.parity if "rows" in made.parity else None
    try:
        return entry(form, "export", made.bytes, parity=parity), opened(model, target, form)
    except (Unsupported, MissingExtra) as error:
        return entry(form, "export", made.bytes, parity=parity, refused=_reason(error)), None


def differences(model: Model, other: Model) -> dict[str, Any]:
    """How another model answers the stored examples of the first: it is another one, so that a difference is told and no fault."""
    stored = model._examples()
    now = other.predict(stored["rows"], stored["params"], stored["seed"])
    return compare(answers_from_json(stored["answers"], now), now, model.pipeline.scales()).to_json()


def _other(name: str, model: Model, runs: Path, trust_code: bool) -> Model:
    from modelyard.store.run import model_folder

    other = Model.load(model_folder(name, runs), trust_code=trust_code)
    ours, theirs = ({c.name: c.kind for c in m.pipeline.outputs} for m in (model, other))
    if ours != theirs:
        raise Unsupported(f"benchmark.beside names {name}, which answers {theirs}, and {model.name} answers {ours}; name models of the same outputs", "use")
    return other


def _reason(error: ModelyardError) -> dict[str, str]:
    if isinstance(error, MissingExtra):
        return {"why": "needs", "reason": _said(error)}
    return {"why": str(getattr(error, "why", "fault")), "reason": _said(error)}


def _said(error: ModelyardError) -> str:
    return " ".join(str(error.message).split())
