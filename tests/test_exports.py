"""Forms of export: what each folder holds, that it answers as the model does when it is read by others' rules, and what is refused with which reason."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import modelyard
from modelyard.errors import ArtefactError, MissingExtra, ParityError, Unsupported
from modelyard.runtime.model import Model
from modelyard.verbs.export import docker, export, kubernetes, replayed, torch_export, triton

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of torch's exporter


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`net` (torch, a table), `line` (an estimator), `Two Words` (a text, linear)."""
    folder = tmp_path_factory.mktemp("exports")
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 200))
    table = pl.DataFrame({"a": a, "b": b, "y": np.where(a > b, "yes", "no")})
    texts = [" ".join(random.choice(["rice", "soup"] if y == "yes" else ["train", "hotel"], 5)) for y in table["y"]]
    with contextlib.chdir(folder):
        net = modelyard.train(data=table, target="y", model="mlp", name="net", **{"train.epochs": 2})
        line = modelyard.train(data=table, target="y", model="linear", name="line")
        text = modelyard.train(data=pl.DataFrame({"t": texts, "y": table["y"]}), target="y", model="linear", name="Two Words", **{"data.inputs": {"t": "text"}})
    return {"net": folder / net.model, "line": folder / line.model, "text": folder / text.model}


def test_the_image_holds_what_it_needs_and_no_more(models: dict[str, Path]) -> None:
    made = export(models["net"], "docker")
    folder = Path(made.folder)
    assert made.parity["rows"] > 0 and Model.load(folder / "model").backend == "onnx"
    lines = (folder / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert all((folder / name).exists() for name in copied) and {"modelyard", "model", "requirements.txt", "serve.yaml"} == set(copied)
    assert any(line.startswith("USER ") for line in lines) and not any("root" in line for line in lines if line.startswith("USER"))
    command = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).split(" ", 1)[1])
    assert command[:4] == ["python", "-m", "modelyard", "serve"] and (folder / "modelyard/__main__.py").is_file()
    names = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text(encoding="utf-8").split()}
    assert {"numpy", "polars", "onnxruntime", "tokenizers", "starlette", "uvicorn"} <= names
    assert not names & {"torch", "lightgbm", "scikit-learn", "scipy", "onnx", "onnxscript", "pandas", "modelyard"}
    assert "env:MODELYARD_TOKEN" in (folder / "serve.yaml").read_text(encoding="utf-8")  # a token is asked for, and none is in the image
    assert not list(folder.rglob("__pycache__"))


def test_manifests_fit_together(models: dict[str, Path]) -> None:
    from ruamel.yaml import YAML

    folder = Path(export(models["text"], "kubernetes", image="registry.example/shop/topics:7").folder)
    read = {p.name: YAML(typ="safe").load(p) for p in folder.glob("*.yaml")}
    assert set(read) == {"deployment.yaml", "service.yaml", "autoscaler.yaml", "inference-service.yaml"}
    deployment, service, scaler, kserve = (read[f"{n}.yaml"] for n in ("deployment", "service", "autoscaler", "inference-service"))
    assert {m["metadata"]["name"] for m in read.values()} == {"two-words"}
    pod = deployment["spec"]["template"]
    for selector in (service["spec"]["selector"], deployment["spec"]["selector"]["matchLabels"]):
        assert selector and selector.items() <= pod["metadata"]["labels"].items()
    (one,) = pod["spec"]["containers"]
    (served,) = kserve["spec"]["predictor"]["containers"]
    assert one["image"] == served["image"] == "registry.example/shop/topics:7" and served["name"] == "kserve-container"
    assert service["spec"]["ports"][0]["targetPort"] in {p["name"] for p in one["ports"]}
    assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "two-words"}
    assert one["env"][0]["valueFrom"] == served["env"][0]["valueFrom"] == {"secretKeyRef": {"name": "two-words-token", "key": "token"}}
    mounts = {m["name"] for m in one["volumeMounts"]}
    assert mounts == {v["name"] for v in pod["spec"]["volumes"]} == {v["name"] for v in kserve["spec"]["predictor"]["volumes"]}
    asked = {one[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    with modelyard.serve(str(models["line"]), token="secret") as server:  # what is asked without a token must be answered without one
        import urllib.request

        assert {urllib.request.urlopen(server.url + path).status for path in asked} == {200}
    assert (folder / "image/Dockerfile").is_file()
    validate = pytest.importorskip("kubernetes_validate", reason="the schemas of Kubernetes")
    for manifest in (deployment, service, scaler):
        validate.validate(manifest, "1.31", strict=True)


def test_a_triton_repository_says_what_its_graph_takes(models: dict[str, Path]) -> None:
    onnx = pytest.importorskip("onnx")
    for name in ("net", "text"):
        folder = Path(export(models[name], "triton").folder)
        (entry,) = (folder / "models").iterdir()
        config = (entry / "config.pbtxt").read_text(encoding="utf-8")
        graph = onnx.load(entry / "1/model.onnx").graph
        said = [n for n, _, _ in triton.FIELD.findall(config.replace(" reshape: { shape: [ ] }", ""))]
        assert said == [i.name for i in graph.input] + [o.name for o in graph.output] and f'name: "{entry.name}"' in config
        kept = Model.load(folder / "pipeline")  # the pipeline of a client, and a model of its own
        examples = Model.load(models[name]).examples
        encoded, failures = kept.encode_rows(examples)
        answers = kept.decode_rows(kept.run(encoded), encoded.contexts)
        assert not failures and answers["y"].to_list() == Model.load(models[name]).predict(examples)["y"].to_list()
        wrong = config.replace("TYPE_FP32", "TYPE_FP64")
        (entry / "config.pbtxt").write_text(wrong, encoding="utf-8")
        with pytest.raises(ArtefactError, match=r"config\.pbtxt says"):
            replayed(kept, {"main": triton.through(entry)}, "triton")


def test_a_pt2_holds_no_pickle_and_answers_alone(models: dict[str, Path]) -> None:
    import torch

    folder = Path(export(models["net"], "torch-export").folder)
    assert not torch_export.pickled(folder / "model.pt2")
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        assert not [n for n in archive.namelist() if archive.read(n)[:1] == b"\x80" and archive.read(n)[-1:] == b"."]  # PROTO … STOP
    named = json.loads((folder / "names.json").read_text(encoding="utf-8"))["main"]
    model = Model.load(models["net"])
    encoded, _ = model.encode_rows(model.examples)
    program = torch.export.load(folder / "model.pt2").module()
    found = program(*(torch.from_numpy(np.asarray(encoded.arrays[n])) for n in named["inputs"]))
    assert np.abs(found[named["outputs"].index("y.logits")].detach().numpy() - model.run(encoded)["y.logits"]).max() < 1e-5
    plain = torch.export.export(torch.nn.Linear(2, 1), (torch.zeros(3, 2),))
    torch.export.save(plain, folder / "plain.pt2")  # as torch writes it: with pickled sample inputs
    assert torch_export.pickled(folder / "plain.pt2")
    with pytest.raises(ArtefactError, match="unpickle"):
        torch_export.graph(folder / "plain.pt2", ["x"], ["y"])


def test_other_answers_are_no_export(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that rounds, and one that froze its batch, leave nothing behind."""
    original = torch_export.graph

    def rounded(*given: Any) -> Any:
        graph = original(*given)
        return lambda inputs: {k: np.round(v, 1) for k, v in graph(inputs).items()}

    monkeypatch.setattr(torch_export, "graph", rounded)
    before = set((models["net"].parent / "exports").glob("*"))
    with pytest.raises(ParityError):
        export(models["net"], "torch-export")
    assert set((models["net"].parent / "exports").glob("*")) == before


def test_refusals_say_why(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("torch-export", "litert", "executorch"):
        with pytest.raises(Unsupported, match="an estimator, which computes in NumPy"):
            export(models["line"], form)
    with pytest.raises(Unsupported, match="litert-torch"):
        export(models["net"], "litert")
    model = Model.load(models["line"])
    model.manifest["tasks"] = {"y": "somebody/task"}
    with pytest.raises(Unsupported, match="plug-in package"):
        docker.make(model, models["line"].parent / "never")
    assert not list((models["line"].parent).glob("exports/litert*"))
    assert docker.label("Ünïted  Shop_2!") == "n-ted-shop-2" and docker.label("客户") == "model"
    assert set(kubernetes.manifests("a", "r/a:1", "1")) == {"deployment.yaml", "service.yaml", "autoscaler.yaml", "inference-service.yaml"}


@pytest.mark.parametrize(("form", "package"), [("openvino", "openvino"), ("executorch", "executorch")])
def test_other_runtimes_answer_the_same(models: dict[str, Path], form: str, package: str) -> None:
    try:
        made = export(models["net"], form)
    except MissingExtra as missing:
        assert f"modelyard[{form}]" in str(missing)
        pytest.skip(f"{package} is not installed")
    loaded = Model.load(made.folder)
    assert loaded.backend == form and made.parity["max_difference"] <= 1e-5
    many = Model.load(models["net"]).examples * 40  # more than a program takes at once
    assert loaded.predict(many)["y"].to_list() == Model.load(models["net"]).predict(many)["y"].to_list()
