"""Builds and trains a network on the encoded examples and wraps it for the model folder."""

from __future__ import annotations

import copy
import hashlib
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelyard import registry, settings
from modelyard.data.batches import Batches
from modelyard.errors import ConfigError, Problem, Unsupported
from modelyard.kinds._contract import Array, take
from modelyard.nets import _network
from modelyard.runtime.pipeline import Pipeline
from modelyard.tasks._contract import Task
from modelyard.verbs.train import monotone
from modelyard.verbs.train.config import TrainConfig, resolve
from modelyard.verbs.train.learner import Choice, answerable
from modelyard.verbs.train.loop import Augment, Fit, Result, Term
from modelyard.verbs.train.weights import class_weights

Arrays = tuple[dict[str, Array], dict[str, Array]]
"""(inputs, targets)."""


def describe(choice: Choice, pipeline: Pipeline, rows: int) -> tuple[dict[str, Any], list[dict[str, object]]]:
    """(the `net` section of the manifest, training defaults of the families). Families with a `recipe` suit it to the data."""
    monotone.options(choice, pipeline)
    if choice.user:
        user = dict(choice.user)
        path = Path(str(user["module"]).rpartition(":")[0])
        if path.suffix == ".py" and path.is_file():
            user["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"user": user}, []
    nets, families = {}, []
    parts = pipeline.parts()
    for name, entry in choice.nets.items():
        module = registry.load("nets", entry["name"])
        config, defaults = entry["config"], dict(getattr(module, "TRAIN", {}))
        if hasattr(module, "recipe"):
            known = {"kinds": [c.kind for c in pipeline.outputs]} if "kinds" in inspect.signature(module.recipe).parameters else {}
            advised, defaults = module.recipe(parts[name], rows, **known)
            if config == module.Config():
                config = advised
        nets[name] = {"name": entry["name"], "config": settings.plain(config)}
        families.append(defaults)
    # with several inputs the slowest-learning family decides: images and texts need more care than a table
    order = sorted(families, key=lambda d: "epochs" not in d)
    return {"nets": nets, "fusion": settings.plain(choice.fusion)}, order


def fit(
    spec: Mapping[str, Any],
    families: list[dict[str, object]],
    pipeline: Pipeline,
    tasks: Mapping[str, Task],
    train: Arrays,
    valid: Arrays | None,
    config: TrainConfig,
    *,
    weights: np.ndarray | None,
    folder: Path | None,
    resume: bool,
    events: Callable[[dict[str, Any]], None],
    stop: threading.Event,
    progress: Callable[[int, int, str], None] | None,
    device: str,
    judge: Callable[[torch.nn.Module], float] | None = None,
) -> tuple[dict[str, Any], torch.nn.Module, dict[str, np.ndarray], Result, TrainConfig, dict[str, str]]:
    """(manifest section, network, weights, result, resolved settings, their origins)."""
    config, origins = resolve(config, *families)
    if config.loss == "focal" and not any(c.kind in ("category", "label-set") for c in pipeline.outputs):
        raise Unsupported("the focal loss is about labels; leave train.loss out to predict numbers", "never")
    if config.loss == "focal" and config.label_smoothing and origins.get("train.label_smoothing") is None:
        raise ConfigError("train.loss: focal and train.label_smoothing exclude each other; set one of them")
    if config.threads:
        torch.set_num_threads(config.threads)
    spec = dict(spec)
    if config.dropout and "nets" in spec:
        spec["fusion"] = {**spec["fusion"], "dropout": config.dropout}
    heads = pipeline.heads()
    if unknown := sorted(set(config.output_weights or {}) - {h.output for h in heads}):
        allowed = ", ".join(h.output for h in heads)
        details = [Problem(f"is no output; expected {allowed}", f"train.output_weights.{name}") for name in unknown]
        raise ConfigError(f"train.output_weights names {', '.join(unknown)}", details)
    network = _network.build(
        spec, pipeline.parts(), pipeline.cardinalities(), heads, seed=config.seed, statistics=statistics(pipeline), trust_code=True
    )
    terms = [term(pipeline, tasks[h.output], h.output, h.key, config, train[1]) for h in heads]
    rows = len(next(iter(train[0].values())))
    batches = Batches(
        train[0], train[1], batch=int(config.batch or 1), seed=config.seed, weights=weights, drop_last=rows > 2 * int(config.batch or 1)
    )
    valid = answerable(valid)
    checks = None if valid is None else Batches(valid[0], valid[1], batch=512, shuffle=False)
    hook = augmentation(config, pipeline)
    if config.smoke and not resume:
        _smoke(network, terms, batches, checks, config, hook, device)
    job = Fit(network, terms, batches, checks, config, augment=hook, device=device, judge=judge)
    result = job.run(folder, events, stop, resume=resume, progress=progress)
    network.to("cpu").eval()
    stored = network.stored() if hasattr(network, "stored") else network.state_dict()  # type: ignore[operator]
    state = {k: v.detach().cpu().contiguous().numpy() for k, v in stored.items()}
    return {"backend": "torch", "net": spec}, network, state, result, config, origins


def statistics(pipeline: Pipeline) -> dict[str, Any]:
    """What encodings know and nets may start from: the mean and deviation of image channels."""
    found = {}
    for column in pipeline.inputs:
        if hasattr(column.state, "statistics"):
            found[column.name] = column.state.statistics()
    return found


def term(pipeline: Pipeline, task: Task, output: str, key: str, config: TrainConfig, targets: Mapping[str, Array]) -> Term:
    """The loss of one output with its options."""
    column = next(c for c in pipeline.outputs if c.name == output)
    chosen = task.losses.get(column.kind)
    if chosen is None:
        raise Unsupported(f"no net learns outputs of kind {column.kind}; choose an estimator", "use")
    name, options = chosen.name, {}
    if config.loss == "focal" and column.kind in ("category", "label-set"):
        name, options = "focal", {"gamma": config.gamma}
    elif config.loss in chosen.others:
        name = chosen.others[str(config.loss)]
    elif config.loss == "crf":
        raise Unsupported(f"train.loss: crf is about tags that follow each other; {output} is of kind {column.kind}", "never")
    if name == "cross_entropy" and config.label_smoothing:
        options["label_smoothing"] = config.label_smoothing
    weights_K = class_weights(config, column, targets.get(f"{output}.{chosen.target}"))
    weights = None if weights_K is None else torch.tensor(weights_K, dtype=torch.float32)
    module, weight = registry.load("losses", name), (config.output_weights or {}).get(output, 1.0)
    return Term(key, f"{output}.{chosen.target}", module.loss, options, weight, weights, getattr(module, "total", None))


def augmentation(config: TrainConfig, pipeline: Pipeline) -> Augment | None:
    """What training images go through; None where nothing is switched on or no input is an image."""
    images = [c for c in pipeline.inputs if c.kind == "image"]
    if not images or (config.augment in (None, "none") and not config.mixup):
        return None
    from modelyard.verbs.train.augment import ImageAugment, read

    parts = pipeline.parts()
    names = [f"{column}.{part}" for column, found in parts.items() for part in found]
    channels = {c.name: int(parts[c.name]["pixels"].shape[0] or 3) for c in images}
    configs = {name: read(config.augment, n, config.mixup or 0.0) for name, n in channels.items()}
    return ImageAugment(configs, names, config.seed, None if config.budget else config.epochs)


def _smoke(
    network: torch.nn.Module,
    terms: list[Term],
    train: Batches,
    valid: Batches | None,
    config: TrainConfig,
    hook: Augment | None,
    device: str,
) -> None:
    """Two steps, a validation and a save on a copy: what would fail after the first epoch fails now."""
    state = torch.random.get_rng_state()
    some = np.arange(min(train.rows, 2 * train.batch))
    pick = lambda group: {k: take(v if not isinstance(v, torch.Tensor) else v.numpy(), some) for k, v in group.items()}  # noqa: E731
    small = Batches(pick(train.inputs), pick(train.targets), batch=train.batch, seed=config.seed)
    job = Fit(
        copy.deepcopy(network), terms, small, None, replace(config, epochs=1, budget=None, compile=False), augment=hook, device=device
    )
    job.run(None, lambda event: None, threading.Event())
    torch.random.set_rng_state(state)
