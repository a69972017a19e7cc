"""Where a base lies: a local folder in Hugging Face's layout, the cache of a hub, or, where the network is allowed, the hub itself.

A name (`bert-base-uncased`, `org/name`, `modelscope:org/name`) is looked up in the hub's cache on this machine first; only what is not
there is fetched, and nothing is with `--offline` or `HF_HUB_OFFLINE=1`: then no socket is opened and the error names the command that
fetches it. Layouts of the caches: huggingface_hub (`models--org--name/snapshots/…`), ModelScope (`hub/models/org/name`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from modelyard.errors import ArtefactError, MissingExtra, Problem

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MODELSCOPE = "modelscope:"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
FETCHED = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What is fetched from a hub: never a pickle, never code."""

CONVERT = (
    "python -c \"import torch; from safetensors.torch import save_file; "
    "save_file({{k: v.clone() for k, v in torch.load('{folder}/pytorch_model.bin', weights_only=True).items()}}, "
    "'{folder}/model.safetensors', metadata={{'format': 'pt'}})\""
)
"""The command that turns a pickle into safetensors, for people who trust where it came from."""


def offline() -> bool:
    """Whether the network is out of bounds."""
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def locate(base: str, files: Sequence[str] = ("config.json",)) -> Path:
    """The folder of a base: a path, or a name whose files are in a hub's cache or are fetched into it.

    Raises `ArtefactError` where it is not there (naming the command that fetches it) or lacks one of `files`.
    """
    folder = Path(base).expanduser()
    if folder.is_dir():
        return _whole(folder, files, f"put the files of the base into {base}")
    name = base.removeprefix(MODELSCOPE)
    if not NAME.fullmatch(name) or base.startswith((".", "/", "~")):
        raise ArtefactError(f"the base {base} does not exist; name a folder with config.json, model.safetensors and tokenizer.json, or a hub's name")
    scope = base.startswith(MODELSCOPE)
    command = f"modelscope download --model {name}" if scope else f"hf download {name}"
    found = _modelscope_cache(name) if scope else _hub_cache(name)
    if found is None and not offline():
        found = _fetch_modelscope(name) if scope else _fetch(name)
    if found is None:
        reason = "and the network is out of bounds (--offline or HF_HUB_OFFLINE=1)"
        hint = f"Fetch it where there is a network: {command}"
        raise ArtefactError(f"the base {base} is neither a folder nor in the cache of the hub, {reason}; {hint}", [Problem("is missing", base, hint)])
    return _whole(found, files, f"fetch it again: {command}")


def weights(folder: Path) -> list[Path]:
    """The safetensors files of a folder, all shards.

    Raises `ArtefactError` for a folder without; a pickle is refused, with the command that converts it.
    """
    single, index = (folder / name for name in WEIGHTS)
    if single.is_file():
        return [single]
    if index.is_file():
        import json

        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{index} cannot be read: {error!r}") from None
        wrong = [n for n in names if not isinstance(n, str) or Path(n).name != n or not n.endswith(".safetensors")]
        absent = [n for n in names if n not in wrong and not (folder / n).is_file()]
        if wrong or absent:
            problems = [Problem("is no safetensors file of this folder", str(n)) for n in wrong] + [Problem("is missing", n) for n in absent]
            raise ArtefactError(f"{folder} lacks weights that {index.name} names", problems)
        return [folder / n for n in names]
    if (folder / "pytorch_model.bin").is_file():
        hint = f"If you trust it, convert it once: {CONVERT.format(folder=folder)}"
        raise ArtefactError(f"{folder} has pytorch_model.bin alone, a form that can run code when it is read and is therefore refused. {hint}")
    raise ArtefactError(f"{folder} holds no weights: it has neither {' nor '.join(WEIGHTS)}")


def _whole(folder: Path, files: Sequence[str], hint: str) -> Path:
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        problems = [Problem("is missing", name) for name in absent]
        raise ArtefactError(f"{folder} is no base: it lacks {', '.join(absent)}; {hint}", problems)
    return folder


def _hub_cache(name: str) -> Path | None:
    """The snapshot that `main` points to in huggingface_hub's cache."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub").expanduser()
    entry = cache / f"models--{name.replace('/', '--')}"
    pointer = entry / "refs" / "main"
    if not pointer.is_file():
        return None
    commit = pointer.read_text(encoding="utf-8").strip()
    snapshot = entry / "snapshots" / commit
    return snapshot if re.fullmatch(r"[\w.-]+", commit) and (snapshot / "config.json").is_file() else None


def _modelscope_cache(name: str) -> Path | None:
    """The folder of a model in ModelScope's cache, which writes dots in names as `___`."""
    root = Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope" / "hub").expanduser()
    places = [root / "models" / name, root / name]
    places += [root / "models" / name.replace(".", "___"), root / name.replace(".", "___")]
    return next((p for p in places if (p / "config.json").is_file()), None)


def _fetch(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise MissingExtra("huggingface_hub", "hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except Exception as error:  # the library and its transport raise many classes, all meaning: it could not be fetched
        raise ArtefactError(f"the base {name} is no folder here and could not be fetched from the hub: {' '.join(str(error).split())[:300]}") from None


def _fetch_modelscope(name: str) -> Path:
    try:
        from modelscope import snapshot_download
    except ModuleNotFoundError:
        raise MissingExtra("modelscope", "modelscope") from None
    try:
        return Path(snapshot_download(name, allow_file_pattern=list(FETCHED)))
    except Exception as error:  # as above
        raise ArtefactError(f"the base {name} could not be fetched from ModelScope: {' '.join(str(error).split())[:300]}") from None


def told(folder: Path) -> dict[str, str]:
    """What a manifest says of a base: its name and the sha256 of its first file of weights, not where it lay."""
    from modelyard.store.atomic import sha256

    name = folder.parent.name if folder.name == "model" else folder.name
    return {"name": name, "sha256": sha256(weights(folder)[0])}
