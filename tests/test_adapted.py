# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""Adapters from training to use: what is saved, merged, exported and served says the same; a wrong base and a killed run are caught."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import modelyard
from modelyard.data.source import DataConfig
from modelyard.errors import ArtefactError, ConfigError, Unsupported
from modelyard.nets import _adapters
from modelyard.runtime.backends.torch import rebuild
from modelyard.runtime.model import Model
from modelyard.verbs.export import export
from modelyard.verbs.export import gguf as written
from modelyard.verbs.train import Trained, train
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.methods import LoraConfig

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SMALL = {"name": "causal", "width": 32, "layers": 2, "heads": 4, "context": 48, "tokenizer": "bytes", "vocabulary": 300}
BASE = {"name": "causal", "base": "runs/base-0001"}
SOURCE = str(Path(modelyard.__file__).parent.parent)
ASKED = [{"prompt": f"{a} and {b} is "} for a in WORDS[:5] for b in WORDS[:5]]


def sums(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    pairs = np.random.default_rng(seed).integers(0, 5, (rows, 2)).tolist()
    return [{"prompt": f"{WORDS[a]} and {WORDS[b]} is ", "completion": WORDS[a + b]} for a, b in pairs]


def fit(folder: Path, rows: list[dict[str, Any]], model: Any, name: str, task: str = "text-generation", target: str | None = None, **config: Any) -> Trained:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    settings = TrainConfig(**{"batch": 16, "smoke": False, **config})
    return train(DataConfig(path=f"{name}.jsonl", target=target), task, model, settings, name=name, base=folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("adapted")
    fit(folder, sums(300), {**SMALL, "tokenizer": "characters"}, "base", epochs=6, lr=5e-3)
    return folder


def greedy(model: Model) -> list[str]:
    return [a["completion"] for a in model.predict(ASKED, {"max_tokens": 8, "temperature": 0.0}).to_json()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [{}, {"dora": True, "base": "nf4"}, {"rslora": True, "base": "int8", "targets": ["q_proj", "v_proj"]}])
def test_what_is_learnt_is_merged_and_lies_beside_it_for_peft(base: Path, shape: dict[str, Any]) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    name = f"lora{len(str(shape))}"
    found = fit(base, sums(60, 1), BASE, name, epochs=2, lr=2e-2, lora=LoraConfig(rank=4, **shape))
    start, model = Model.load(base / "runs/base-0001/model"), Model.load(found.model)
    tokens = torch.randint(4, 20, (2, 12))
    before, after = (rebuild(m.folder, m.manifest, m.pipeline).logits(tokens) for m in (start, model))
    assert (before - after).abs().max() > 0.05
    theirs = transformers.AutoModelForCausalLM.from_pretrained(found.model)
    assert torch.allclose(theirs(tokens).logits, after, atol=1e-5, rtol=1e-5)
    small = json.loads((found.model / "adapter" / _adapters.CONFIG).read_text(encoding="utf-8"))
    assert small["r"] == 4 and small["base_model_name_or_path"] == "base-0001" and _adapters.header(found.model / "adapter" / _adapters.WEIGHTS)["base_sha256"]
    if "base" not in shape:  # PEFT adds the adapter to the base itself, here it was learnt beside a rounded one
        plain = transformers.AutoModelForCausalLM.from_pretrained(start.folder)
        assert torch.allclose(peft.PeftModel.from_pretrained(plain, found.model / "adapter")(tokens).logits, after, atol=1e-5, rtol=1e-5)


def test_an_adapter_alone_needs_its_very_base(base: Path, tmp_path: Path) -> None:
    place = tmp_path / "project-of-somebody"
    place.mkdir()
    shutil.copytree(base / "runs", place / "runs")
    settings = {"epochs": 2, "lr": 2e-2, "lora": LoraConfig(rank=4, base="nf4", merge=False)}
    found = fit(place, sums(60, 1), BASE, "alone", **settings)
    whole = fit(place, sums(60, 1), BASE, "whole", **{**settings, "lora": LoraConfig(rank=4, base="nf4")})
    assert not (found.model / "model.safetensors").exists()
    model = Model.load(found.model)
    assert greedy(model) == greedy(Model.load(whole.model))
    assert model.manifest["model"]["adapter"]["base"] == "../../base-0001/model"
    assert place.name not in (found.model / "manifest.json").read_text(encoding="utf-8")
    moved = tmp_path / "moved"
    shutil.copytree(place, moved)
    assert greedy(Model.load(moved / found.model.relative_to(place))) == greedy(model)
    merged = export(found.model, "safetensors")
    assert merged.parity["rows"] and greedy(Model.load(merged.folder)) == greedy(model)
    other = fit(moved, sums(60, 2), BASE, "other", epochs=1, lr=1e-5)
    shutil.copyfile(other.model / "model.safetensors", moved / "runs/base-0001/model/model.safetensors")
    with pytest.raises(ArtefactError, match="fingerprint"):
        Model.load(moved / found.model.relative_to(place))
    shutil.rmtree(moved / "runs/base-0001")
    with pytest.raises(ArtefactError, match="does not exist"):
        Model.load(moved / found.model.relative_to(place))


def test_training_goes_on_from_an_adapter_and_not_on_another_base(base: Path) -> None:
    first = fit(base, sums(60, 1), BASE, "first", epochs=2, lr=2e-2, lora=LoraConfig(rank=4))
    again = fit(base, sums(60, 1), BASE, "again", epochs=1, lr=0.0, lora=LoraConfig(adapter=str(first.model)))
    a, b = (Model.load(f.model) for f in (first, again))
    tokens = torch.randint(4, 20, (2, 12))
    logits = [rebuild(m.folder, m.manifest, m.pipeline).logits(tokens) for m in (a, b)]
    assert torch.allclose(logits[0], logits[1], atol=1e-6)
    fit(base, sums(60, 2), BASE, "unlike", epochs=1, lr=1e-5)
    with pytest.raises(ArtefactError, match="another base"):
        fit(base, sums(60, 1), {**BASE, "base": "runs/unlike-0001"}, "wrong", lora=LoraConfig(adapter=str(first.model)))


@pytest.mark.filterwarnings("ignore")
def test_encoders_take_adapters_too(tmp_path: Path) -> None:
    """Classification: the head and the layer before it learn whole, as PEFT's `modules_to_save` have it."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    rows = [{"text": f"the {WORDS[i % 10]} of {WORDS[i % 7]}", "label": "even" if i % 2 else "odd"} for i in range(60)]
    words = {"name": "bert", "width": 16, "layers": 2, "heads": 2, "feedforward": 32}
    fit(tmp_path, rows, words, "encoder", task="classification", target="label", epochs=1)
    settings = {"task": "classification", "target": "label", "epochs": 2, "lr": 1e-2}
    found = fit(tmp_path, rows, {"name": "bert", "base": "runs/encoder-0001"}, "tuned", lora=LoraConfig(rank=4), **settings)
    config = json.loads((found.model / "adapter" / _adapters.CONFIG).read_text(encoding="utf-8"))
    assert config["modules_to_save"] == ["classifier", "pooler"]
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "runs/encoder-0001/model")
    tokens = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 9, 4, 2]])
    before = plain.eval()(tokens).logits
    theirs = peft.PeftModel.from_pretrained(plain, found.model / "adapter").eval()
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(found.model).eval()
    assert torch.allclose(theirs(tokens).logits, merged(tokens).logits, atol=1e-5) and (before - merged(tokens).logits).abs().max() > 1e-2
    with pytest.raises(Unsupported, match="a head beside it"):
        fit(tmp_path, rows, {"name": "bert", "base": "runs/encoder-0001"}, "alone", lora=LoraConfig(rank=4, merge=False), **settings)


def test_what_makes_no_sense_is_refused(base: Path) -> None:
    with pytest.raises(Unsupported, match=r"name it as model\.base"):
        fit(base, sums(20), SMALL, "none", lora=LoraConfig())
    with pytest.raises(ConfigError, match="freezes the base itself"):
        fit(base, sums(20), BASE, "none", lora=LoraConfig(), freeze=1)
    with pytest.raises(Unsupported, match="no adapter"):
        export(base / "runs/base-0001/model", "adapter")
    with pytest.raises(Unsupported, match=r"ONNX.*gguf or safetensors"):
        export(base / "runs/base-0001/model", "onnx")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "mistral", "gpt2"])
def test_gguf_is_read_by_others(kind: str, tmp_path: Path) -> None:
    transformers, gguf = pytest.importorskip("transformers"), pytest.importorskip("gguf")
    heads = {} if kind == "gpt2" else {"kv_heads": 2}
    found = fit(tmp_path, sums(40), {**SMALL, **heads, "architecture": kind, "tied": kind != "llama"}, "small", epochs=2, lr=3e-3)
    made = export(found.model, "gguf")
    path = Path(made.folder) / written.NAME
    read = gguf.GGUFReader(path)
    values = {k: f.contents() for k, f in read.fields.items()}
    name = written.ARCHITECTURES[kind]
    model = Model.load(found.model)
    state = model.pipeline.outputs[0].state
    assert values["general.architecture"] == name and values[f"{name}.block_count"] == 2 and values[f"{name}.context_length"] == 48
    assert values[f"{name}.attention.head_count"] == 4 and values[f"{name}.embedding_length"] == 32
    vocabulary = json.loads(state.tokenizer)["model"]["vocab"]
    assert values["tokenizer.ggml.tokens"][max(vocabulary.values())] == max(vocabulary, key=vocabulary.get) and len(values["tokenizer.ggml.merges"])
    assert values["tokenizer.ggml.pre"] == "gpt-2" and values["tokenizer.ggml.eos_token_id"] == state.ends[0]
    assert "im_start" in values["tokenizer.chat_template"]
    shapes = {t.name: tuple(t.shape.tolist()) for t in read.tensors}
    assert shapes["token_embd.weight"] == (32, state.size) and ("output.weight" in shapes) == (kind == "llama")
    assert shapes["blk.1.ffn_down.weight"][1] == 32 and all(t.tensor_type == gguf.GGMLQuantizationType.F32 for t in read.tensors)
    # its reader of GGUF passes over the width of heads and the places of GPT-2, which the config has
    config = transformers.AutoConfig.from_pretrained(found.model) if kind in ("qwen3", "gpt2") else None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, config=config)
    tokens = torch.randint(4, 200, (2, 12))
    net = rebuild(model.folder, model.manifest, model.pipeline)
    assert torch.allclose(theirs(tokens).logits, net.logits(tokens), atol=1e-5, rtol=1e-4)
    ids = model.encode_rows(ASKED[:3])[0].arrays["prompt.tokens"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.model)
    for i, row in enumerate(ASKED[:3]):
        prompt = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        assert prompt[0].tolist() == ids.values[ids.offsets[i] : ids.offsets[i + 1]].tolist()
        said = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, eos_token_id=state.ends, pad_token_id=0)
        text = tokenizer.decode(said[0, prompt.shape[1] :], skip_special_tokens=True)
        assert text == greedy(model)[i]


def test_gguf_says_what_it_cannot_hold(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    found = fit(tmp_path, sums(20), {**SMALL, "tokenizer": "characters"}, "letters", epochs=1)
    with pytest.raises(Unsupported, match="byte-level BPE, and this tokenizer is WordLevel; train with"):
        export(found.model, "gguf")
    steps = [{"type": "Split", "pattern": {"Regex": next(k for k, v in written.SPLITS.items() if v == "qwen2")}}, {"type": "ByteLevel", "use_regex": False}]
    tokenizer = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    assert written.split_of(tokenizer) == "qwen2"
    steps[0]["pattern"] = {"Regex": "."}
    with pytest.raises(Unsupported, match="none of gpt-2, qwen2, llama-bpe"):
        written.split_of(tokenizer)


def test_written_served_merged_and_exported_texts_are_equal(base: Path) -> None:
    openai = pytest.importorskip("openai")
    found = fit(base, sums(60, 3), BASE, "served", epochs=2, lr=2e-2, lora=LoraConfig(rank=4, merge=False))
    model = Model.load(found.model)
    texts = greedy(model)
    assert texts == greedy(Model.load(export(found.model, "safetensors").folder)) and len(set(texts)) > 2
    with modelyard.serve(found.model, slots=4) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)
        said = [client.completions.create(model="served", prompt=r["prompt"], max_tokens=8, temperature=0).choices[0].text for r in ASKED[:8]]
    assert said == texts[:8]


RUN = """
import sys
from pathlib import Path
from modelyard.data.source import DataConfig
from modelyard.verbs.train import train
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.methods import DpoConfig, GrpoConfig, LoraConfig
train(DataConfig(path="rows.jsonl"), "text-generation", {{"name": "causal", "base": {base!r}}}, TrainConfig(smoke=False, checkpoint_every=0.0, {settings}),
    name="rows", base=Path("."), resume=len(sys.argv) > 1)
"""
METHODS = {
    "dpo": "epochs=3, batch=4, lr=1e-3, threads=1, dpo=DpoConfig(), lora=LoraConfig(rank=4, dropout=0.1)",
    "grpo": "epochs=9, lr=1e-3, threads=1, lora=LoraConfig(rank=4), "
    "grpo=GrpoConfig(reward=['modelyard-probes/says:nine', 'length:9'], group=4, prompts=2, max_tokens=6)",
}


@pytest.mark.parametrize("method", METHODS)
def test_preferences_and_rewards_that_are_killed_end_in_the_same_bits(base: Path, tmp_path: Path, method: str) -> None:
    rows = [{"prompt": r["prompt"], **({"chosen": r["completion"], "rejected": "zero"} if method == "dpo" else {"completion": ""})} for r in sums(40, 1)]
    code = RUN.format(base=str(base / "runs/base-0001/model"), settings=METHODS[method])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    places = [tmp_path / "straight", tmp_path / "killed"]
    for place in places:
        place.mkdir()
        (place / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        (place / "go.py").write_text(code, encoding="utf-8")
    straight, killed = places
    process = subprocess.Popen([sys.executable, "go.py"], cwd=killed, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not list(killed.glob("runs/*/checkpoints/step-00000000[3-9]")):
        assert process.poll() is None and time.monotonic() < limit, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(killed.glob("runs/*/model"))
    for place, more in ((straight, []), (killed, ["resume"])):
        subprocess.run([sys.executable, "go.py", *more], cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL)
    one, other = (next(place.glob("runs/*/model")) for place in places)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert (one / "model.safetensors").read_bytes() != (base / "runs/base-0001/model/model.safetensors").read_bytes()
    stored = next((killed / "runs").glob("*/checkpoints/step-*/state.safetensors"))
    assert stored.stat().st_size < (other / "model.safetensors").stat().st_size  # the frozen base is in no checkpoint


OFFLINE = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("socket.") and event != "socket.gethostname" else None)
from pathlib import Path
from modelyard.cli import main
small = "{name: causal, width: 16, layers: 1, heads: 2, context: 48, tokenizer: bytes, vocabulary: 280}"
assert main(["train", "task=text-generation", "data=sums.jsonl", f"model={small}", "train={epochs: 1, smoke: false}", "name=small", "--quiet"]) == 0
assert main(["train", "task=text-generation", "data=sums.jsonl", "model={name: causal, base: runs/small-0001}", "train={epochs: 1, lora: 2, smoke: false}",
    "name=tuned", "--quiet"]) == 0
assert main(["predict", "runs/tuned-0001", "data=sums.jsonl", "--quiet"]) == 0
assert main(["export", "runs/tuned-0001", "export.format=safetensors", "--quiet"]) == 0
code = main(["train", "task=text-generation", "data=sums.jsonl", "model={name: causal, base: Qwen/Qwen3-0.6B}", "--quiet"])
print("SEEN", seen, "CODE", code)
"""


def test_without_a_network_no_socket_is_opened(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sums(30)), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", OFFLINE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "SEEN [] CODE 2" in done.stdout or "SEEN [] CODE 3" in done.stdout, done.stdout + done.stderr
    assert "hf download Qwen/Qwen3-0.6B" in done.stdout + done.stderr
