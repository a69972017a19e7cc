"""An image's file set: Dockerfile, compose file, requirements of the light runtime, this package's own files, and the model that the core serves.

`docker build` needs nothing but the folder. The image holds no torch; who asks it must carry the token in `MODELYARD_TOKEN`.
"""

from __future__ import annotations

import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from modelyard import __version__
from modelyard.errors import MachineError, Unsupported
from modelyard.registry import ROOT
from modelyard.runtime.model import Model

TAKES = ("trust_code", "image")
PORT = 8000
USER = 10001
"""Of the process in the image: nobody that the host knows."""
DOCKERFILE = """\
# {name} {version}, served by Modelyard {package} with the light runtime
FROM python:{python}-slim
RUN useradd --uid {user} --no-create-home --shell /usr/sbin/nologin modelyard
COPY requirements.txt /app/requirements.txt
RUN pip install --no-cache-dir --disable-pip-version-check --requirement /app/requirements.txt
COPY modelyard /app/modelyard
COPY serve.yaml /app/serve.yaml
COPY model /app/model
WORKDIR /app
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE
USER {user}
EXPOSE {port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \\
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/v2/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "modelyard", "serve", "/app/model", "--file", "/app/serve.yaml"]
"""
COMPOSE = """\
services:
  {name}:
    image: {image}
    build: .
    environment:
      MODELYARD_TOKEN: ${{MODELYARD_TOKEN:?who asks the server must carry this token}}
    ports: ["127.0.0.1:{port}:{port}"]
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    stop_grace_period: 30s
    restart: unless-stopped
"""
SERVE = """\
version: 1
serve:
  host: 0.0.0.0
  port: {port}
  token: ${{env:MODELYARD_TOKEN}}
"""


def make(model: Model, target: Path, *, trust_code: bool = False, image: str | None = None) -> dict[str, Any]:
    """Writes the build's folder. Raises `Unsupported` where the model needs torch or a plug-in package."""
    from modelyard.verbs.export import light

    _house(model)
    found = light(model, target / "model", trust_code)
    facts = {
        "name": label(model.name), "image": image or f"{label(model.name)}:{model.version}", "version": model.version, "package": __version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}", "port": PORT, "user": USER,
    }  # fmt: skip
    shutil.copytree(ROOT, target / "modelyard", ignore=shutil.ignore_patterns("__pycache__", "_examples", "*.pyc"))
    for name, text in (("Dockerfile", DOCKERFILE), ("compose.yaml", COMPOSE), ("serve.yaml", SERVE)):
        (target / name).write_text(text.format(**facts), encoding="utf-8")
    (target / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
    return found


def label(name: str) -> str:
    """A name as DNS and image registries take it: small letters, digits and hyphens, at most 50."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "model"


def _house(model: Model) -> None:
    """Raises `Unsupported` where a plug-in package is needed: the image holds this package alone."""
    pipeline = [*model.pipeline.inputs, *model.pipeline.outputs]
    names = [*model.tasks.values(), *(c.kind for c in pipeline), str(model.manifest["model"]["program"]), str(model.frame["name"])]
    if found := sorted({n for n in names if "/" in n}):
        reason = f"{', '.join(found)} belong{'s' if len(found) == 1 else ''} to a plug-in package"
        raise Unsupported(f"an image holds Modelyard alone, and {reason}; export.format: onnx and a Dockerfile of your own can hold both", "use")


def requirements() -> list[str]:
    """`name==version` of what the core needs, with all that those need, as they are installed here.

    Raises `MachineError` where this package was not installed and nothing says what it needs.
    """
    found: dict[str, str] = {}
    try:
        waiting = _needs("modelyard")
    except metadata.PackageNotFoundError:
        raise MachineError("what the light runtime needs is read from the installed package, and modelyard is not installed: pip install .") from None
    while waiting:
        name = waiting.pop()
        if name not in found:
            try:
                found[name] = metadata.version(name)
                waiting += _needs(name)
            except metadata.PackageNotFoundError:  # for another system
                continue
    return [f"{name}=={version.partition('+')[0]}" for name, version in sorted(found.items())]


def _needs(name: str) -> list[str]:
    """Normalised names of what a distribution needs without extras."""
    lines = (line.partition(";") for line in metadata.requires(name) or [])
    names = [re.match(r"[\w.-]+", line) for line, _, marker in lines if "extra ==" not in marker.replace("'", '"')]
    return [re.sub(r"[-_.]+", "-", n[0]).lower() for n in names if n]
