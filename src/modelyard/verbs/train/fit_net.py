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
import polars as pl
import torch

from modelyard import registry, settings
from modelyard.data.batches import Batches
from modelyard.data.blocks import Blocks
from modelyard.errors import ConfigError, Problem, Unsupported
from modelyard.kinds._contract import Array
from modelyard.nets import _network
from modelyard.runtime.pipeline import Pipeline
from modelyard.store import hub
from modelyard.tasks._contract import Task
from modelyard.verbs.train import align, freeze, lora, monotone, preview, texts
from modelyard.verbs.train.config import TrainConfig, resolve
from modelyard.verbs.train.learner import Choice, answerable
from modelyard.verbs.train.loop import Augment, Fit, Result, Rewrite, Term
from modelyard.verbs.train.weights import class_weights

UNBOUNDED = 100_000
"""Epochs of nets that learn for as long as a budget lasts."""

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
        config = entry["config"]
        defaults = dict(module.training(config) if hasattr(module, "training") else getattr(module, "TRAIN", {}))
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
    rows: Mapping[str, pl.DataFrame] | None = None,
) -> tuple[dict[str, Any], torch.nn.Module, dict[str, np.ndarray], Result, TrainConfig, dict[str, str]]:
    """(manifest section, network, weights, result, resolved settings, their origins). `rows` are the examples behind the arrays, of which
    the methods of `align` read more columns."""
    families = [*align.defaults(config), *families]
    if config.budget and any(getattr(registry.load("nets", e["name"]), "FILLS_BUDGET", False) for e in spec.get("nets", {}).values()):
        families = [{**family, "epochs": UNBOUNDED} for family in families]
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
    if notes := _network.begin(network, spec):
        events({"event": "base", "notes": notes})
    adapter = lora.prepare(network, spec, config)
    terms = [term(pipeline, tasks[h.output], h.output, h.key, config, train[1]) for h in heads]
    # a batch that the user names counts before the tokens that the family names
    tokens = None if "train.batch" not in origins and "train.batch_tokens" in origins else config.batch_tokens
    valid = answerable(valid)
    arranged = align.arrange(network, align.Asked(spec, pipeline, rows, replace(config, batch_tokens=tokens), device, weights, events))
    trained: torch.nn.Module = network
    if arranged is not None:
        trained, batches, checks, notes = align.Aligned(network, arranged.objective), arranged.batches, arranged.checks, arranged.notes
    else:
        batches, checks, notes = _batches(network, train, valid, replace(config, batch_tokens=tokens), weights)
    seen = preview.preview(batches, pipeline, str(network.output)) if config.grpo is None and _writes(network) else []  # answers of a round are not there yet
    if notes or seen:
        events({"event": "texts", "notes": notes, "preview": seen})
    hook = augmentation(config, pipeline)
    rewrite = rewriting(tasks, pipeline, config)
    before = freeze.prepare(network, config)
    if config.smoke and not resume:
        _smoke(trained, terms, batches, checks, config, hook, device, rewrite)
    job = Fit(trained, terms, batches, checks, config, augment=hook, device=device, rewrite=rewrite, before=before, judge=judge)
    result = job.run(folder, events, stop, resume=resume, progress=progress)
    network.to("cpu").eval()
    if adapter is not None:
        network.learnt = adapter, lora.finish(network, adapter)  # type: ignore[assignment]
    stored = network.stored() if hasattr(network, "stored") else network.state_dict()  # type: ignore[operator]
    state = {k: v.detach().cpu().contiguous().numpy() for k, v in stored.items()}
    return section(spec, network), network, state, result, config, origins


def section(spec: Mapping[str, Any], network: torch.nn.Module) -> dict[str, Any]:
    """The manifest's section of a network, and the bases it began from."""
    found: dict[str, Any] = {"backend": "torch", "net": _network.without_bases(spec)}
    bases = {name: hub.told(Path(entry["config"]["base"])) for name, entry in spec.get("nets", {}).items() if entry["config"].get("base")}
    return {**found, "bases": bases} if bases else found


def _batches(
    network: torch.nn.Module, train: Arrays, valid: Arrays | None, config: TrainConfig, weights: np.ndarray | None
) -> tuple[Any, Any, list[str]]:
    """(training batches, those of the validation rows, what is to be told): texts for a net that writes them on are arranged by length."""
    if _writes(network):
        row, column, output = int(network.config.row), network.column, network.output  # type: ignore[union-attr,arg-type]
        made, notes = texts.arrange(train, str(column), str(output), row, config, weights=weights)
        checks = None if valid is None else texts.arrange(valid, str(column), str(output), row, config, teach=False)[0]
        return made, checks, notes
    rows = len(next(iter(train[0].values())))
    batches = Batches(
        train[0], train[1], batch=int(config.batch or 1), seed=config.seed, weights=weights, drop_last=rows > 2 * int(config.batch or 1),
        tokens=config.batch_tokens,
    )  # fmt: skip
    return batches, None if valid is None else Batches(valid[0], valid[1], batch=512, shuffle=False, tokens=config.batch_tokens), []


def _writes(network: torch.nn.Module) -> bool:
    """Whether a net writes texts on: its rows are arranged by `texts`."""
    return getattr(getattr(network, "config", None), "row", None) is not None


def previewed(network: torch.nn.Module, pipeline: Pipeline, rows: pl.DataFrame, config: TrainConfig) -> list[list[tuple[str, bool]]]:
    """What a net that writes would be taught with, from some of the training rows; nothing for others."""
    if not _writes(network) or not rows.height:
        return []
    encoded = pipeline.encode(rows)
    counted = align.chosen(config) is None  # methods look at the last answer alone
    arrays = {k: v for k, v in encoded.arrays.items() if counted or not k.endswith(".mask")}
    batches = _batches(network, (arrays, pipeline.targets(rows, encoded.contexts)), None, config, None)[0]
    return preview.preview(batches, pipeline, str(network.output))


def beside(network: torch.nn.Module, pipeline: Pipeline) -> dict[str, str | bytes]:
    """Files that a network wants beside its weights, by name (Hugging Face's layout), and those of its adapter."""
    states = {c.name: c.state for c in (*pipeline.inputs, *pipeline.outputs)}
    files: dict[str, str | bytes] = network.files(states) if hasattr(network, "files") else {}  # type: ignore[operator]
    learnt = _learnt(network)
    return files if learnt is None else {**files, **learnt[1]}


def alone(network: torch.nn.Module, target: Path) -> dict[str, Any]:
    """The manifest's word on an adapter that is saved without its base, for the model folder `target`; empty where the weights are saved."""
    learnt = _learnt(network)
    return {} if learnt is None or learnt[0].config.merge else {"adapter": lora.told(learnt[0], target)}


def _learnt(network: torch.nn.Module) -> tuple[lora.Adapter, dict[str, str | bytes]] | None:
    """What `fit` left of an adapter before it was merged."""
    return getattr(network, "learnt", None)


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
    if name in ("cross_entropy", "token_nll") and config.label_smoothing:
        options["label_smoothing"] = config.label_smoothing
    weights_K = class_weights(config, column, targets.get(f"{output}.{chosen.target}"))
    weights = None if weights_K is None else torch.tensor(weights_K, dtype=torch.float32)
    module, weight = registry.load("losses", name), (config.output_weights or {}).get(output, 1.0)
    if getattr(module, "couples", None) == "batch":
        if config.accumulate > 1:
            reason = f"the loss {name} compares the examples of a batch with each other, and train.accumulate would cut it into parts"
            raise Unsupported(f"{reason}; leave it out", "never")
        options |= {} if config.temperature is None else {"temperature": config.temperature}
    return Term(key, f"{output}.{chosen.target}", module.loss, options, weight, weights, getattr(module, "total", None))


def rewriting(tasks: Mapping[str, Task], pipeline: Pipeline, config: TrainConfig) -> Rewrite | None:
    """What changes batches before a step, where a task asks for it."""
    asked = [(output, task.rewrites) for output, task in tasks.items() if task.rewrites]
    if not asked:
        return None
    if len(tasks) > 1:
        raise Unsupported(f"{', '.join(o for o, _ in asked)} changes what the other outputs read; train it alone", "never")
    output, name = asked[0]
    return registry.load("verbs/train", name).make(config, pipeline, output)  # type: ignore[no-any-return]


def augmentation(config: TrainConfig, pipeline: Pipeline) -> Augment | None:
    """What training inputs go through: images are changed, padded texts moved; None where nothing is switched on."""
    from modelyard.verbs.train import shift

    moved = shift.make(pipeline)
    images = _images(config, pipeline)
    if moved is None or images is None:
        return images or moved

    def both(inputs: dict[str, torch.Tensor], index: np.ndarray, epoch: int) -> tuple[dict[str, torch.Tensor], Any]:
        inputs, mix = images(inputs, index, epoch)
        return moved(inputs, index, epoch)[0], mix

    return both


def _images(config: TrainConfig, pipeline: Pipeline) -> Augment | None:
    """What training images go through."""
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
    train: Batches | Blocks,
    valid: Batches | Blocks | None,
    config: TrainConfig,
    hook: Augment | None,
    device: str,
    rewrite: Rewrite | None,
) -> None:
    """Two steps, a validation and a save on a copy: what would fail after the first epoch fails now."""
    state = torch.random.get_rng_state()
    small = train.head(2 * train.batch)
    job = Fit(
        copy.deepcopy(network), terms, small, None, replace(config, epochs=1, budget=None, compile=False), augment=hook, device=device,
        rewrite=rewrite,
    )  # fmt: skip
    job.run(None, lambda event: None, threading.Event())
    torch.random.set_rng_state(state)
