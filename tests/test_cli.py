"""The command line as a process: exit codes, one JSON object, quiet streams, lazy imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modelyard
from modelyard import cli, options
from modelyard.errors import GateFailed, MachineError
from modelyard.store.run import Run

SOURCE = Path(modelyard.__file__).parent.parent


def modelyard_(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **env}
    return subprocess.run(
        [sys.executable, "-m", "modelyard", *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_import_and_help_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, modelyard, modelyard.cli as c; c.main(['--help']); c.main(['train', '--help']); modelyard.load;"
        "heavy = ('torch','numpy','polars','rich','ruamel.yaml','onnxruntime','importlib.metadata');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "modelyard init --from" in done.stdout.splitlines()[2]


def test_public_names_are_pinned() -> None:
    assert set(modelyard.__all__) <= set(dir(modelyard))
    assert modelyard.Project.__name__ == "Project" and modelyard.train.__name__ == "train"
    assert modelyard.project.load_project is modelyard.load
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        modelyard.trian  # noqa: B018


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["docter"], 2, "'doctor'"),
        (["doctor", "--jsno"], 2, "did you mean --json?"),
        (["doctor", "extra"], 2, "takes no arguments"),
        (["init", "--from"], 2, "needs a value"),
        (["data=x.csv"], 2, "no verb is given"),
        (["runs", "compare", "a"], 2, "runs compare A B"),
        (["runs", "compare", "a", "b"], 2, "there are: none"),
        (["init", "--from", "nowhere.csv"], 2, "nowhere.csv"),
        (["init", "no-such-example"], 2, "unknown example"),
    ],
)
def test_errors_are_sentences_and_json(
    args: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == code
    out, error = capfd.readouterr()
    assert out == "" and said in error and "Traceback" not in error
    assert cli.main(["--json", *args]) == code
    body = json.loads(capfd.readouterr().out)
    assert set(body) == {"schema_version", "seconds", "warnings", "error"}
    assert set(body["error"]) == {"kind", "message", "details"} and said in json.dumps(body["error"])


def _fake_verb(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Stands in for a verb behind `calls.call`, the one way into it."""
    monkeypatch.setattr("modelyard.calls.call", lambda verb, options, *_: run(options))  # type: ignore[operator]


class Result:
    def to_json(self) -> dict[str, object]:
        return {"metrics": {"loss": float("nan")}, "text": "中文"}


def test_exit_codes_follow_the_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def failed(options: object) -> object:
        raise GateFailed("f1 is 0.5, the gate is 0.8", result=Result())

    def lacking(options: object) -> object:
        raise MachineError("no GPU")

    def stopped(options: object) -> object:
        raise KeyboardInterrupt

    def broken(options: object) -> object:
        raise ZeroDivisionError("oops")

    for run, code, kind in (
        (failed, 1, "GateFailed"),
        (lacking, 3, "MachineError"),
        (stopped, 130, "Interrupted"),
        (broken, 101, "ZeroDivisionError"),
    ):
        _fake_verb(monkeypatch, run)
        assert cli.main(["doctor", "--json"]) == code
        body = json.loads(capfd.readouterr().out)
        assert body["error"]["kind"] == kind
        if run is failed:
            assert body["metrics"] == {"loss": None} and body["text"] == "中文"
    trace = Path(body["error"]["message"].rsplit("is in ", 1)[1])
    assert "ZeroDivisionError: oops" in trace.read_text(encoding="utf-8")
    trace.unlink()


def test_stdout_holds_the_object_alone(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import warnings

    def noisy(options: options.Options) -> Result:
        print("python noise", flush=True)
        os.write(1, b"noise of a C library\n")
        warnings.warn("careful", stacklevel=1)
        options.notice("7 rows were set aside")
        return Result()

    _fake_verb(monkeypatch, noisy)
    assert cli.main(["doctor", "--json"]) == 0
    out, error = capfd.readouterr()
    assert json.loads(out)["warnings"] == ["careful", "7 rows were set aside"]
    assert "python noise" in error and "C library" in error


def test_emit_prints_early_and_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def serving(options: options.Options) -> None:
        assert options.emit is not None
        options.emit({"url": "http://127.0.0.1:1", "ready": True})
        raise KeyboardInterrupt

    _fake_verb(monkeypatch, serving)
    assert cli.main(["doctor", "--json"]) == 130
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["ready"] is True


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    command = f"{sys.executable} -m modelyard --help | head -1; true"
    done = subprocess.run(
        command,
        shell=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stderr == "" and done.stdout.startswith("Modelyard")


@pytest.mark.parametrize(
    ("env", "coloured"), [({"FORCE_COLOR": "1"}, True), ({}, False), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)]
)
def test_colours(env: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    env = {"TERM": "xterm", "NO_COLOR": "", "FORCE_COLOR": "", **env}
    assert ("\033[" in modelyard_("docter", cwd=tmp_path, **env).stderr) is coloured


def test_init_guesses_writes_and_never_overwrites(tmp_path: Path) -> None:
    rows = [f"{1000 + i},{20 + i * 7 % 50},{'basic' if i % 3 else 'pro'},{'yes' if i % 2 else 'no'}" for i in range(60)]
    (tmp_path / "c.csv").write_text("customer_id,age,plan,churned\n" + "\n".join(rows) + "\n", encoding="utf-8")
    wrong = modelyard_(
        "init", "--from", "c.csv", "--target", "churnd", cwd=tmp_path
    )  # a process: the exit code is the shell's
    assert wrong.returncode == 2 and "Did you mean 'churned'?" in wrong.stderr
    done = modelyard_("init", "--from", "c.csv", "--target", "churned", "--json", cwd=tmp_path)
    body = json.loads(done.stdout)
    assert body["task"] == "classification" and "2 different" in body["why"]
    text = (tmp_path / "modelyard.yaml").read_text(encoding="utf-8")
    assert 8 <= len(text.splitlines()) <= 15
    found = modelyard.load(tmp_path)
    assert (found.data.path, found.data.target, found.data.id, found.data.inputs) == (
        "c.csv", "churned", ["customer_id"], {"age": "number", "plan": "category"},
    )  # fmt: skip
    again = modelyard_("init", "from=c.csv", "target=age", cwd=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr
    assert (tmp_path / "modelyard.yaml").read_text(encoding="utf-8") == text


def test_runs_are_listed_and_compared(tmp_path: Path) -> None:
    for epochs, low in ((3, 0.7), (5, 0.9)):
        run = Run.create(tmp_path / "runs", "churn")
        (run.folder / "config.yaml").write_text(
            f"name: churn\ntrain: {{epochs: {epochs}, lr: 0.1}}\n", encoding="utf-8"
        )
        run.write("metrics.json", {"test": {"accuracy": {"value": low + 0.05, "low": low, "high": low + 0.1}}})
    Run.create(tmp_path / "runs", "churn")  # killed at once
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{", encoding="utf-8")
    listed = json.loads(modelyard_("runs", "--json", cwd=tmp_path).stdout)["runs"]
    assert [r["state"] for r in listed] == ["damaged", "started", "started", "started"]
    body = json.loads(modelyard_("runs", "compare", "churn-0001", "churn-0002", "--json", cwd=tmp_path).stdout)
    assert body["settings"] == {"train.epochs": {"a": 3, "b": 5}}
    assert body["metrics"]["test.accuracy"]["difference"] == pytest.approx(0.2)
    assert body["metrics"]["test.accuracy"]["overlap"] is False
    assert "intervals apart" in modelyard_("runs", "compare", "churn-0001", "churn-0002", cwd=tmp_path).stdout


def test_doctor_names_what_is_here(tmp_path: Path) -> None:
    done = modelyard_("doctor", "--json", cwd=tmp_path, HTTPS_PROXY="http://me:word@proxy:1")
    body = json.loads(done.stdout)
    import numpy

    assert body["packages"]["core"]["numpy"] == numpy.__version__ and body["cores"] >= 1
    assert body["environment"]["HTTPS_PROXY"] == "http://***@proxy:1"
