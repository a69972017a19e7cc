"""400 broken project and data files: exit code 2 with every mistake named, or every lost row accounted for."""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

import mutate
from modelyard import cli
from modelyard.data import packed, xlsx

SHARDS = 20
EACH = 200 // SHARDS
DATA_CASES = list(mutate.data_cases(200))
PROJECT_CASES = list(mutate.project_cases(200))


def ask(verb: str, file: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """(exit code, JSON answer, stderr)."""
    code = cli.main([verb, "-f", str(file), "--json", "-q"])
    out, err = capfd.readouterr()
    return code, json.loads(out), err


def said(answer: dict[str, Any]) -> str:
    """All sentences of an answer, one a line."""
    error = answer.get("error", {})
    lines = [error.get("message", "")]
    lines += [f"{d['where']}: {d['message']} {d['hint']}" for d in error.get("details", [])]
    aside = answer.get("set_aside")
    aside = aside if isinstance(aside, list) else []  # `plan` gives their number only
    lines += [f"{s['file']}:{s['line']} {s['column']} {s['reason']}" for s in aside]
    return "\n".join(lines)


def judge(case: mutate.Case, code: int, answer: dict[str, Any], err: str) -> list[str]:
    """What is wrong with an answer to a broken case."""
    text = said(answer)
    faults = [f"not said: {p}" for p in case.expected if not re.search(p, text)]
    if "Traceback" in err or "Traceback" in text:
        faults.append("a traceback")
    if case.fatal and code != 2:
        faults.append(f"exit {code}, not 2")
    if not case.fatal:
        if code != 0:
            faults.append(f"exit {code}, not 0")
        written = case.rows or sum(n.startswith("pictures/") for n in case.files)
        kept, aside = sum(answer.get("rows", {}).values()), answer.get("set_aside_count", 0)
        if kept + aside != written or aside != case.aside:
            faults.append(f"{written} rows written, {kept} kept and {aside} set aside (expected {case.aside})")
    return [f"{case.name}: {f}\n    {text[:700]}" for f in faults]


@pytest.fixture(autouse=True)
def small_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb of 4 MiB against a limit of 1 MiB is the same as one of 32 GiB against 8 GiB, and quicker."""
    monkeypatch.setattr(packed, "SIZE_LIMIT", 2**20)
    monkeypatch.setattr(xlsx, "LIMIT", 2**20)


def test_a_whole_project_has_no_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The ground that the operators break; without it they could all be right for a wrong reason."""
    for verb in ("check", "plan"):
        code, answer, _ = ask(verb, mutate.whole(1).write(tmp_path), capfd)
        assert code == 0, said(answer)
        assert sum(answer["rows"].values()) == 84


def test_there_are_a_hundred_operators_and_most_cases_are_double() -> None:
    assert len(mutate.DATA) + len(mutate.SETTINGS) + len(mutate.BINDING) + len(mutate.TEXT) >= 100
    for cases in (DATA_CASES, PROJECT_CASES):
        assert len(cases) == 200
        assert sum(" + " in c.name for c in cases) >= 100
    assert sum(" in t" in c.name for c in PROJECT_CASES) >= 30, "faults in the project file and in the data at once"
    assert {c.name.split(": ", 1)[1].split(" in t")[0] for c in DATA_CASES} >= {*mutate.DATA} - {c.name for c in DATA_CASES}


@pytest.mark.parametrize("shard", range(SHARDS))
def test_broken_data(shard: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    faults = []
    for i, case in enumerate(DATA_CASES[shard * EACH : (shard + 1) * EACH]):
        folder = tmp_path / str(i)
        folder.mkdir()
        faults += judge(case, *ask("check", case.write(folder), capfd))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_broken_projects(shard: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    faults = []
    for i, case in enumerate(PROJECT_CASES[shard * EACH : (shard + 1) * EACH]):
        folder = tmp_path / str(i)
        folder.mkdir()
        faults += judge(case, *ask(case.verb, case.write(folder), capfd))
    assert not faults, "\n".join(faults)


def test_training_refuses_as_check_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`train` shares the reading and the binding; no model is written for a project that cannot train."""
    for i, case in enumerate([*DATA_CASES[:60:12], *PROJECT_CASES[:60:12]]):
        if not case.fatal:
            continue
        folder = tmp_path / str(i)
        folder.mkdir()
        code, answer, err = ask("train", case.write(folder), capfd)
        assert judge(case, code, answer, err) == []
        assert not list(folder.glob("runs/*/model"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model", ["mlp", "trees", "linear", "forest"])
@pytest.mark.parametrize("labels", ["two", "three"])
def test_a_label_that_only_the_validation_rows_have(model: str, labels: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No model can answer it and no loss takes it; the row counts as wrong."""
    case = mutate.whole(3)
    rows = case.parts["train"].rows
    if labels == "three":
        for row in rows[::3]:
            row[5] = "perhaps"
    judged = [[*r[:5], "never seen"] if i == 2 else r for i, r in enumerate(rows[-12:])]
    case.parts["valid"] = mutate.Part("valid", case.parts["train"].header, judged, "valid.csv")
    case.parts["train"].rows = rows[:-12]
    case.settings["data"] |= {"valid": "valid.csv"}
    case.settings["model"] = {"name": model, **({"trees": 9} if model != "mlp" and model != "linear" else {})}
    code, answer, err = ask("train", case.write(tmp_path), capfd)
    assert code == 0 and "Traceback" not in err, said(answer)
    assert answer["metrics"]["valid"]["accuracy"]["value"] <= 11 / 12 + 1e-9


def test_memory_stays_bounded() -> None:
    """After all cases (bombs and giants among them) the process never held 3 GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    assert peak < 3
