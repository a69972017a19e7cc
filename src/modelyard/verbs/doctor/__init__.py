"""Says what this machine has: Python, packages of each extra, cores, memory, disk, GPU, environment. No network.

modelyard doctor
modelyard doctor --json
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from modelyard import registry
from modelyard.errors import UsageError
from modelyard.options import Options

NEEDS_PROJECT = False
CORE = ("numpy", "polars", "onnxruntime", "pillow", "tokenizers", "ruamel.yaml", "starlette", "uvicorn", "rich")
"""What `pip install modelyard` brings; used where the package runs from a checkout and has no metadata."""

DISTRIBUTIONS = {"sklearn": "scikit-learn"}
"""Where the importable name is not the distribution's."""

ENVIRONMENT = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "LANG", "LC_ALL", "PYTHONUTF8", "NO_COLOR", "FORCE_COLOR", "TERM",
)  # fmt: skip


@dataclass
class Findings:
    """What was found."""

    modelyard: str
    python: str
    executable: str
    system: str
    packages: dict[str, dict[str, str | None]]
    """By extra (`core` first): package → version, null where missing."""
    cores: int
    memory_gb: float | None
    """Physical memory, or the container's limit where that is lower; 10^9 bytes."""
    disk_free_gb: float
    gpu: str | None
    """Name of the GPU that torch sees; null without one or without torch."""
    encoding: dict[str, str]
    environment: dict[str, str]
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def show(self) -> str:
        """For people."""
        memory = f"{self.memory_gb:.1f} GB" if self.memory_gb else "unknown"
        lines = [
            f"modelyard  {self.modelyard} on Python {self.python} ({self.system})",
            f"machine    {self.cores} cores, {memory} memory, {self.disk_free_gb:.1f} GB free disk, "
            f"GPU: {self.gpu or 'none'}",
        ]
        for extra, packages in self.packages.items():
            lines.append(f"{extra:<10} " + ", ".join(f"{n} {v or 'MISSING'}" for n, v in packages.items()))
        lines.append("encoding   " + ", ".join(f"{k} {v}" for k, v in self.encoding.items()))
        lines += [f"{k}={v}" for k, v in self.environment.items()]
        return "\n".join(
            [*lines, *(f"! {p}" for p in self.problems)] if self.problems else [*lines, "nothing is missing"]
        )


def run(project: None, *, model: str | None, options: Options) -> Findings:
    """Raises `UsageError` for keys: it has none."""
    if options.values or model:
        raise UsageError("doctor takes no arguments; write: modelyard doctor [--json]")
    from modelyard import __version__

    found = {extra: {name: _version(name) for name in names} for extra, names in _needed().items()}
    encoding = {"filesystem": sys.getfilesystemencoding(), "stdout": getattr(sys.stdout, "encoding", None) or "none"}
    problems = []
    for extra, packages in found.items():
        missing = [name for name, version in packages.items() if version is None]
        if missing:
            line = "pip install modelyard" if extra == "core" else f"pip install 'modelyard[{extra}]'"
            problems.append(f"{', '.join(missing)} missing ({extra}): {line}")
    if not all(e.lower().replace("-", "") == "utf8" for e in encoding.values()):
        problems.append("texts are not UTF-8 here; set PYTHONUTF8=1")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < 1:
        problems.append(f"only {free:.1f} GB of disk are free here; checkpoints and models may not fit")
    return Findings(
        modelyard=__version__, python=platform.python_version(), executable=sys.executable, system=platform.platform(),
        packages=found, cores=_cores(), memory_gb=_memory(), disk_free_gb=free, gpu=_gpu(), encoding=encoding,
        environment=_environment(), problems=problems,
    )  # fmt: skip


def _needed() -> dict[str, list[str]]:
    """Distributions by extra, from the metadata of the installed package."""
    try:
        lines = metadata.requires("modelyard") or []
    except metadata.PackageNotFoundError:
        lines = [*CORE, *(f"{DISTRIBUTIONS.get(p, p)}; extra == '{extra}'" for p, extra in registry.EXTRAS.items())]
    found: dict[str, list[str]] = {"core": []}
    for line in lines:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", line)
        name = re.match(r"[\w.-]+", line)
        if name and name[0] != "modelyard" and (not extra or extra[1] not in ("dev", "all")):
            found.setdefault(extra[1] if extra else "core", []).append(name[0])
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    """Cores this process may use (a container or taskset may allow fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> float | None:
    found = []
    if hasattr(os, "sysconf"):
        with contextlib.suppress(ValueError, OSError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            text = limit.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found) / 1e9 if found else None


def _gpu() -> str | None:
    try:
        import torch
    except (ImportError, OSError):
        return None
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return "Apple MPS" if torch.backends.mps.is_available() else None


def _environment() -> dict[str, str]:
    found = {
        k: v for name in ENVIRONMENT for k, v in ((name, os.environ.get(name) or os.environ.get(name.lower())),) if v
    }
    return {k: _without_password(v) if "PROXY" in k else v for k, v in found.items()}


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)
