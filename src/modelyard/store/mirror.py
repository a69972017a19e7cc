"""Tells an MLflow server of runs and registered versions, where MLFLOW_TRACKING_URI names one: a mirror, never the truth.

What is in the run folder and in the registry is told through MLflow's REST API 2.0 (mlflow.org/docs/latest/rest-api.html), without its package:
experiment = the project's name, parameters = the settings that somebody wrote, metrics = those of each split and the course of training, artefacts =
report, metrics and pictures where the server takes them; registered versions with the same aliases. A server that is gone or refuses costs a warning.
MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN, say who asks.
"""

from __future__ import annotations

import base64
import calendar
import contextlib
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelyard.settings import without_password
from modelyard.store import hub
from modelyard.store.registry import Registry, Version
from modelyard.store.run import Run

ADDRESS = "MLFLOW_TRACKING_URI"
PATIENCE = 10.0
"""Seconds for an answer."""
BATCH = {"metrics": 1000, "params": 100}
"""MLflow takes so many of each at once."""
LARGEST = 64 * 2**20
"""Bytes of an answer that are read."""
LONGEST = 6000
"""Characters of a parameter that MLflow keeps."""
TOLD = ("report.html", "report.zh.html", "metrics.json", "config.yaml", "model/manifest.json")
"""Files that go along, and all pictures; weights stay where they are."""


class Refused(Exception):
    """What the server, or the way to it, said."""

    def __init__(self, said: str, code: str = "") -> None:
        super().__init__(said)
        self.code = code


WRONG = (Refused, KeyError, TypeError, AttributeError, ValueError, OSError)
"""What may go wrong with a server that is another, or of another version, than it seems."""


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Refused) else f"its answer is not one of MLflow ({error!r})"[:200]


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would take the password along to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Server:
    """An MLflow server by its address."""

    def __init__(self, address: str) -> None:
        self.told = without_password(address)
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https"):
            raise Refused("it is no http:// or https:// address; start one with: mlflow server")
        if hub.offline():
            raise Refused("the network is out of bounds (--offline or HF_HUB_OFFLINE=1)")
        user, password = (urllib.parse.unquote(x) if x else os.environ.get(f"MLFLOW_TRACKING_{n}") for x, n in (
            (parts.username, "USERNAME"), (parts.password, "PASSWORD")))  # fmt: skip
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        self.headers = {"Content-Type": "application/json"}
        if user:
            self.headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password or ''}".encode()).decode("ascii")
        elif token:
            self.headers["Authorization"] = f"Bearer {token}"
        self.base = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Answer of `/api/2.0/mlflow/PATH`. Raises `Refused`."""
        url, data = f"{self.base}/api/2.0/mlflow/{path}", None
        if method == "GET":
            url += "?" + urllib.parse.urlencode(body or {})
        else:
            data = json.dumps(body or {}).encode("utf-8")
        raw = self._send(urllib.request.Request(url, data, self.headers, method=method))
        try:
            found = json.loads(raw or b"{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):  # the page of a proxy, such as a login
            raise Refused(f"{path} was answered with no JSON object: is it an MLflow server?")
        return found

    def upload(self, artefacts: str, name: str, path: Path) -> None:
        """Stores a file beside a run, where the server takes files (`mlflow-artifacts:`). Raises `Refused`."""
        place = urllib.parse.urlsplit(artefacts)
        where = urllib.parse.quote(f"{place.path.strip('/')}/{name}")
        headers = {k: v for k, v in self.headers.items() if k != "Content-Type"} | {"Content-Type": "application/octet-stream"}
        self._send(urllib.request.Request(f"{self.base}/api/2.0/mlflow-artifacts/artifacts/{where}", path.read_bytes(), headers, method="PUT"))

    def _send(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.build_opener(_Straight).open(request, timeout=PATIENCE) as answer:
                return bytes(answer.read(LARGEST))
        except urllib.error.HTTPError as error:
            with error:
                raw = error.read()[:2000]
            try:
                said = json.loads(raw)
                raise Refused(str(said.get("message"))[:300], str(said.get("error_code"))) from None
            except (ValueError, AttributeError):
                raise Refused(f"HTTP {error.code}") from None
        except (OSError, ValueError) as error:
            raise Refused(str(getattr(error, "reason", error))[:200]) from None


def run(folder: Path, project: str, say: Callable[[str], None]) -> None:
    """Tells of a finished run, once; what could not be told is said."""
    address = os.environ.get(ADDRESS)
    if not address or (kept := Run(folder)).read("run.json").get("mlflow"):
        return
    try:
        server = Server(address)
        told = _run(server, kept, project)
        kept.update(mlflow=told)
    except WRONG as error:
        say(f"MLflow at {without_password(address)} was not told of {folder}: {_said(error)}. The run itself is whole")


def _run(server: Server, kept: Run, project: str) -> dict[str, str]:
    facts = kept.read("run.json")
    experiment = _experiment(server, project)
    tags = {"mlflow.runName": kept.name, "mlflow.source.type": "LOCAL", "mlflow.source.name": "modelyard", "modelyard.folder": str(kept.folder.resolve())}
    tags |= {f"modelyard.{k}": str(v) for k, v in (("version", facts.get("version")), ("data", (facts.get("data") or {}).get("fingerprint"))) if v}
    start = {"experiment_id": experiment, "start_time": _milliseconds(facts.get("started")), "tags": [{"key": k, "value": v} for k, v in tags.items()]}
    info = server.ask("POST", "runs/create", start)["run"]["info"]
    try:
        _tell(server, info, kept, facts)
    except WRONG:
        with contextlib.suppress(*WRONG):
            server.ask("POST", "runs/update", {"run_id": info["run_id"], "status": "KILLED", "end_time": _milliseconds(None)})
        raise
    state = {"finished": "FINISHED", "failed": "FAILED"}.get(str(facts.get("state")), "KILLED")
    server.ask("POST", "runs/update", {"run_id": info["run_id"], "status": state, "end_time": _milliseconds(facts.get("finished"))})
    return {"run": info["run_id"], "experiment": experiment, "server": server.told}


def _tell(server: Server, info: Mapping[str, Any], kept: Run, facts: Mapping[str, Any]) -> None:
    """Settings, metrics and files."""
    for kind, entries in (("params", list(_params(kept))), ("metrics", [*_metrics(kept, facts), *_course(kept.events())])):
        for i in range(0, len(entries), BATCH[kind]):
            server.ask("POST", "runs/log-batch", {"run_id": info["run_id"], kind: entries[i : i + BATCH[kind]]})
    if str(info.get("artifact_uri", "")).startswith("mlflow-artifacts:"):
        for path in [kept.folder / n for n in TOLD] + sorted(kept.folder.glob("plots/*.svg")):
            if path.is_file():
                server.upload(info["artifact_uri"], path.relative_to(kept.folder).as_posix(), path)


def _experiment(server: Server, name: str) -> str:
    """Its number; made where there is none."""
    try:
        return str(server.ask("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]["experiment_id"])
    except Refused as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
    try:
        return str(server.ask("POST", "experiments/create", {"name": name})["experiment_id"])
    except Refused as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":  # else another run was faster
            raise
        return str(server.ask("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]["experiment_id"])


def _params(kept: Run) -> Iterator[dict[str, str]]:
    """Settings that somebody wrote, by dotted key."""
    config = kept.read("config.json")
    origins = config.get("origins") or {}
    for name, value in _flat(config.get("settings") or {}):
        if value is None or value == {} or value == []:
            continue
        above = [name.rsplit(".", i)[0] for i in range(name.count(".") + 1)]  # the key itself, then what holds it
        if next((origins[key] for key in above if key in origins), "default") != "default":
            yield {"key": name, "value": str(value)[:LONGEST]}


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _metrics(kept: Run, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Value and both ends of the interval of every metric: `test.roc_auc`, `test.roc_auc.low`, `test.roc_auc.high`."""
    when = _milliseconds(facts.get("finished"))
    for split, found in kept.read("metrics.json").items():
        for name, value in _flat(found if isinstance(found, Mapping) else {}, f"{split}."):
            path, _, end = name.rpartition(".")
            if end in ("value", "low", "high") and _finite(value):
                yield {"key": path if end == "value" else name, "value": value, "timestamp": when, "step": 0}


def _course(events: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Losses by step."""
    for event in events:
        if event.get("event") == "epoch":
            for name in ("loss", "valid_loss", "lr"):
                if _finite(value := event.get(name)):
                    yield {"key": f"train.{name}", "value": value, "timestamp": _milliseconds(event.get("time")), "step": int(event.get("step") or 0)}


def _finite(value: Any) -> bool:
    """JSON has no NaN, which a loss that overflowed is."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def version(registry: Registry, found: Version, say: Callable[[str], None]) -> None:
    """Tells of a registered version and of where its name's aliases point; what could not be told is said."""
    address = os.environ.get(ADDRESS)
    if not address:
        return
    try:
        server = Server(address)
        number = _version(server, registry, found)
        there = {a["alias"]: a["version"] for a in _model(server, found.name).get("aliases") or []}
        for alias in set(there) - set(found.aliases):
            if there[alias] == number:
                server.ask("DELETE", "registered-models/alias", {"name": found.name, "alias": alias})
        for alias in found.aliases:
            server.ask("POST", "registered-models/alias", {"name": found.name, "alias": alias, "version": number})
    except WRONG as error:
        say(f"MLflow at {without_password(address)} was not told of {found.name} {found.number}: {_said(error)}. The registry itself is as it should be")


def _model(server: Server, name: str) -> dict[str, Any]:
    return dict(server.ask("GET", "registered-models/get", {"name": name})["registered_model"])


def _version(server: Server, registry: Registry, found: Version) -> str:
    """MLflow's number of a version, which may be another than ours; made where there is none."""
    try:
        server.ask("POST", "registered-models/create", {"name": found.name})
    except Refused as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise
    text = found.name.replace("'", "''")
    known = server.ask("GET", "model-versions/search", {"filter": f"name='{text}'", "max_results": 10_000}).get("model_versions") or []
    for one in known:
        if {t["key"]: t["value"] for t in one.get("tags") or []}.get("modelyard.version") == found.version:
            return str(one["version"])
    told = found.facts.get("mlflow") or {}
    linked = {"run_id": told["run"]} if told.get("server") == server.told else {}
    made = {
        "name": found.name, "source": _source(registry, found), **linked,
        "tags": [{"key": "modelyard.version", "value": found.version}, {"key": "modelyard.number", "value": str(found.number)},
                 {"key": "modelyard.registry", "value": registry.told}],
    }  # fmt: skip
    return str(server.ask("POST", "model-versions/create", made)["model_version"]["version"])


def _source(registry: Registry, found: Version) -> str:
    """Where the folder lies; a version in storage is named, since a copy of it here is of no use to others."""
    if registry.embedded:
        return f"modelyard://{registry.folder(found).resolve()}"
    return f"modelyard:/{urllib.parse.quote(found.name)}/{found.number}"


def _milliseconds(text: Any) -> int:
    """Of an ISO time; of now where there is none."""
    return 1000 * calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")) if isinstance(text, str) else round(1000 * time.time())
