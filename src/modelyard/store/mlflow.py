"""A mirror in MLflow: where `MLFLOW_TRACKING_URI` names a server, runs and registered versions are told there as well.

Plain HTTP by MLflow's REST API 2.0 (mlflow.org/docs/latest/rest-api.html), so that nothing need be installed. Read as MLflow's own client reads them:
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (else the project's name), MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN.

What Modelyard keeps is the truth: a run is told when it ends, a version when it is registered or given an alias, and nothing is read back but what is needed
not to tell it twice. A server that is down or refuses costs one warning and never the work.
"""

from __future__ import annotations

import base64
import calendar
import functools
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec
from urllib.parse import quote, urlencode, urlsplit

from modelyard.settings import without_password

if TYPE_CHECKING:
    from modelyard.store.run import Run

SERVER = "MLFLOW_TRACKING_URI"
STATES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
"""Our states that end a run → MLflow's."""
TIMEOUT = 10.0
"""Seconds for one request."""
METRICS, PARAMS, TAGS = 1000, 100, 100
"""Most of each in one `log-batch`."""
LONGEST_PARAM, LONGEST_TAG, LONGEST_KEY = 500, 5000, 250
"""Characters that servers take, old ones too."""
LARGEST = 64 * 2**20
"""Bytes of an answer that are read."""
NUMBER, VERSION = "modelyard.number", "modelyard.version"
"""Tags by which a version is known again: MLflow counts its own."""


class Refused(Exception):
    """The server answered with an error, or did not answer."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
        """MLflow's, such as `RESOURCE_ALREADY_EXISTS`."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the password along to another host."""

    def redirect_request(self, *given: Any) -> None:
        return None


class Server:
    """MLflow's REST API."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused("only servers are told (http://… or https://…)")
        self.root = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/api/2.0/mlflow/"
        self.headers = {"Content-Type": "application/json"}
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or urllib.request.unquote(parts.username or "")
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or urllib.request.unquote(parts.password or "")
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        if user or password:
            self.headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        elif token:
            self.headers["Authorization"] = f"Bearer {token}"
        self.opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """The answer to one request. Raises `Refused`."""
        url, data = self.root + path, None
        if method == "GET":
            url += "?" + urlencode(body)
        else:
            data = json.dumps(body, allow_nan=False).encode("utf-8")
        request = urllib.request.Request(url, data, self.headers, method=method)
        try:
            with self.opener.open(request, timeout=TIMEOUT) as response:
                text = response.read(LARGEST)
            found = json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            raise _refusal(path, error) from None
        except (OSError, ValueError) as error:  # no connection, no time, no JSON
            raise Refused(f"{path}: {getattr(error, 'reason', None) or error}") from None
        if not isinstance(found, dict):
            raise Refused(f"{path}: answered no object")
        return found


def _refusal(path: str, error: urllib.error.HTTPError) -> Refused:
    try:
        told = json.loads(error.read(65536))
        return Refused(f"{path}: {error.code} {str(told.get('message'))[:200]}", str(told.get("error_code") or ""))
    except (OSError, ValueError, AttributeError):
        return Refused(f"{path}: {error.code}")


P = ParamSpec("P")


def _mirrors(tell: Callable[P, None]) -> Callable[P, None]:
    """Does nothing where no server is named; turns whatever goes wrong into one warning."""

    @functools.wraps(tell)
    def told(*given: P.args, **named: P.kwargs) -> None:
        if not os.environ.get(SERVER):
            return
        try:
            tell(*given, **named)
        except Exception as error:  # a mirror must not cost the work, whatever a server answers
            why = " ".join(str(error).split()) if isinstance(error, Refused) else repr(error)
            warnings.warn(f"MLflow was not told ({SERVER}={without_password(os.environ[SERVER])}): {without_password(why)[:300]}", stacklevel=3)

    return told


def _server() -> Server:
    return Server(os.environ[SERVER])


# -- runs ------------------------------------------------------------------------------------------------------------------


@_mirrors
def tell_run(run: Run) -> None:
    """A run that ended: its settings as params, metrics with their intervals, losses by epoch. One that went on is told under the same number."""
    told = run.read("run.json")
    server, number = _server(), (told.get("mlflow") or {}).get("run_id")
    if number is None:
        experiment = _experiment(server, os.environ.get("MLFLOW_EXPERIMENT_NAME") or re.sub(r"-\d+$", "", run.name))
        begun = server.ask("POST", "runs/create", experiment_id=experiment, run_name=run.name, start_time=_milliseconds(told.get("started")))
        number = begun["run"]["info"]["run_id"]
        run.write("run.json", {**told, "mlflow": {"run_id": number, "experiment_id": experiment}})
    ended = _milliseconds(told.get("finished"))
    try:
        server.ask("POST", "runs/update", run_id=number, status="RUNNING")
        for part in _pieces("metrics", list(_metrics(run, ended)), METRICS):
            server.ask("POST", "runs/log-batch", run_id=number, **part)
        for part in _pieces("tags", _pairs(_tags(run, told), LONGEST_TAG), TAGS):
            server.ask("POST", "runs/log-batch", run_id=number, **part)
        for part in _pieces("params", _pairs(_flat((run.read("config.json") or {}).get("settings") or {}), LONGEST_PARAM), PARAMS):
            server.ask("POST", "runs/log-batch", run_id=number, **part)  # last: those of a run that went on with others are refused
    finally:
        server.ask("POST", "runs/update", run_id=number, status=STATES[told["state"]], end_time=ended)


def _experiment(server: Server, name: str) -> str:
    """Its number; made where there is none."""
    for _ in range(2):
        try:
            return str(server.ask("GET", "experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"])
        except Refused as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
        try:
            return str(server.ask("POST", "experiments/create", name=name)["experiment_id"])
        except Refused as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
    raise Refused(f"there is no experiment {name}, and none can be made: was it deleted there?")


def _metrics(run: Run, ended: int) -> Iterator[dict[str, Any]]:
    """Losses and scores of the events by epoch (or step), then what was judged at the end."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for event in run.events():
        step = event.get("epoch", event.get("round", event.get("step")))
        if isinstance(step, int):
            values = {k: v for k, v in event.items() if k not in ("epoch", "round", "step", "steps") and _finite(v)}
            found |= {(k, step): {"key": _key(k), "value": v, "step": step, "timestamp": _milliseconds(event.get("time"))} for k, v in values.items()}
    yield from found.values()
    for name, value in _flat(run.read("metrics.json")).items():
        if _finite(value):
            yield {"key": _key(name.removesuffix(".value")), "value": value, "step": 0, "timestamp": ended}


def _tags(run: Run, told: Mapping[str, Any]) -> dict[str, Any]:
    data, model = told.get("data") or {}, told.get("model") or {}
    found = {
        "mlflow.source.name": "modelyard", "mlflow.source.type": "LOCAL", "modelyard.run": run.name, VERSION: told.get("version"),
        "modelyard.data": data.get("fingerprint"), "modelyard.task": model.get("task"), "modelyard.model": model.get("model"),
        "modelyard.error": (told.get("error") or {}).get("message"),
    }  # fmt: skip
    versions = (told.get("machine") or {}).get("versions") or {}
    return {k: v for k, v in {**found, **{f"modelyard.with.{k}": v for k, v in versions.items()}}.items() if v is not None}


# -- versions --------------------------------------------------------------------------------------------------------------


@_mirrors
def tell_version(name: str, number: int, version: str, facts: Mapping[str, Any], model: Path) -> None:
    """A version that was registered. Registered again it is found again."""
    server = _server()
    try:
        server.ask("POST", "registered-models/create", name=name)
    except Refused as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise
    if _theirs(server, name, number) is not None:
        return
    above = next((p / "run.json" for p in model.resolve().parents if (p / "run.json").is_file()), None)
    told = json.loads(above.read_text(encoding="utf-8")).get("mlflow") if above else None
    given = {NUMBER: number, VERSION: version, "modelyard.run": facts.get("run"), "modelyard.data": (facts.get("data") or {}).get("fingerprint")}
    scores = {f"modelyard.metric.{k.removesuffix('.value')}": v for k, v in _flat(facts.get("metrics") or {}).items() if _finite(v)}
    tags = _pairs({k: v for k, v in {**given, **scores}.items() if v is not None}, LONGEST_TAG)
    linked = {"run_id": told["run_id"]} if told else {}
    server.ask("POST", "model-versions/create", name=name, source=f"modelyard:/{quote(name)}/{number}", tags=tags[:TAGS], **linked)


@_mirrors
def tell_alias(name: str, alias: str, number: int | None) -> None:
    """An alias that moved, or was taken away (None)."""
    server = _server()
    if number is None:
        server.ask("DELETE", "registered-models/alias", name=name, alias=alias)
        return
    theirs = _theirs(server, name, number)
    if theirs is None:
        raise Refused(f"{name} {number} is not there; register it again")
    server.ask("POST", "registered-models/alias", name=name, alias=alias, version=theirs)


def _theirs(server: Server, name: str, number: int) -> str | None:
    """MLflow's number of our version."""
    asked: dict[str, Any] = {"filter": f"name='{name}'", "max_results": 1000}
    while True:
        found = server.ask("GET", "model-versions/search", **asked)
        for entry in found.get("model_versions") or []:
            if {"key": NUMBER, "value": str(number)} in (entry.get("tags") or []):
                return str(entry["version"])
        if not found.get("next_page_token"):
            return None
        asked["page_token"] = found["next_page_token"]


# -- values ----------------------------------------------------------------------------------------------------------------


def _flat(value: Any, above: str = "") -> dict[str, Any]:
    """Dotted key → value that is no mapping; empty ones and None left out."""
    if isinstance(value, Mapping):
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{above}.{name}" if above else str(name)).items()}
    return {} if value is None or not above else {above: value}


def _pairs(values: Mapping[str, Any], longest: int) -> list[dict[str, str]]:
    text = lambda v: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str)  # noqa: E731
    return [{"key": _key(k), "value": text(v)[:longest]} for k, v in values.items()]


def _pieces(what: str, values: list[Any], size: int) -> Iterator[dict[str, list[Any]]]:
    for start in range(0, len(values), size):
        yield {what: values[start : start + size]}


def _key(text: str) -> str:
    """With the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", text, flags=re.ASCII)[:LONGEST_KEY]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _milliseconds(moment: Any) -> int:
    """Of a time as `store.run.now` writes it; the present where there is none."""
    try:
        return calendar.timegm(time.strptime(str(moment), "%Y-%m-%dT%H:%M:%SZ")) * 1000
    except ValueError:
        return round(time.time() * 1000)
