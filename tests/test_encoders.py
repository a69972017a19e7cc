"""Encoders: the same numbers as `transformers`, hidden tokens, layers that learn slower or not at all, text vectors, long documents."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from modelyard import registry
from modelyard.data.batches import Batches
from modelyard.data.frames import slices
from modelyard.data.source import DataConfig
from modelyard.errors import ArtefactError, ConfigError, DataError, Unsupported
from modelyard.kinds._contract import Head, Part, Ragged
from modelyard.kinds.text import Pretrained, PretrainedConfig
from modelyard.losses import info_nce
from modelyard.nets import _network
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import dense
from modelyard.store.state import read_arrays
from modelyard.testing import toy_data
from modelyard.verbs.train import train
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.freeze import prepare
from modelyard.verbs.train.loop import Fit, Term
from modelyard.verbs.train.masking import Masking

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of torch's exporter

TEXTS = ["anna eats bread every day", "bob reads the news", "carl drives old trucks at night", "dora eats", "who reads letters?", "每天 eats soup"]
SMALL = {"name": "bert", "width": 16, "heads": 2, "layers": 2, "feedforward": 32}
ONCE = TrainConfig(epochs=1, batch=16, smoke=False)


def labelled(n: int = 60) -> pl.DataFrame:
    """Sentences whose verb tells the label."""
    random = np.random.default_rng(0)
    labels = random.choice(["food", "words", "road"], n)
    verb = {"food": "eats bread", "words": "reads news", "road": "drives cars"}
    return pl.DataFrame({"text": [f"{random.choice(['anna', 'bob'])} {verb[k]} every day {i}" for i, k in enumerate(labels)], "topic": labels.tolist()})


def texts_of(table: pl.DataFrame, target: str | None = "topic", **more: Any) -> DataConfig:
    return DataConfig(path=table, target=target, inputs={"text": {"kind": "text"}}, **more)


def tokenizer_files(folder: Path) -> None:
    """A word-piece tokenizer in Hugging Face's files."""
    state = Pretrained().fit(pl.Series(TEXTS * 3), PretrainedConfig(vocabulary=90))
    (folder / "tokenizer.json").write_text(state.tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(state.settings, encoding="utf-8")


def theirs(family: str, kind: str, folder: Path, **changes: Any) -> Any:
    """A tiny model of `transformers` with random weights, saved with a tokenizer."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
    name = {"bert": "Bert", "roberta": "Roberta"}[family]
    config = getattr(transformers, f"{name}Config")(vocab_size=100, **shape, **changes)
    torch.manual_seed(1)
    model = getattr(transformers, f"{name}{kind}")(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # norms and biases that are not ones and zeros
            p.add_(0.05 * torch.randn_like(p))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer_files(folder)
    return model


def ours(base: Path, head: Head) -> tuple[Any, dict[str, np.ndarray]]:
    """(our network with the base's weights, its arrays of TEXTS)."""
    module = registry.load("nets", "bert")
    config = module.settled(module.Config(base=str(base)))
    coder = Pretrained()
    state = coder.fit(pl.Series(TEXTS), module.encoding(config, PretrainedConfig()))
    spec = {"nets": {"text": {"name": "bert", "config": config}}}
    network = _network.build(spec, {"text": coder.parts(state)}, [], [head])
    _network.begin(network, spec)
    return network.eval(), dense({f"text.{k}": v for k, v in coder.encode(pl.Series(TEXTS), state, {}).items()})


# -- the same numbers as transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_masked_language_model_is_loaded_whole_and_stored_whole(family: str, tied: bool, tmp_path: Path) -> None:
    """Logits at every place equal theirs; what is stored again has every tensor of the file, bit for bit, under its name."""
    model = theirs(family, "ForMaskedLM", tmp_path, tie_word_embeddings=tied)
    network, arrays = ours(tmp_path, Head("fill", "fill", "logits", 0))
    length = arrays["text.tokens"].shape[1]
    fed = {**arrays, "text.places": np.tile(np.arange(length), (len(TEXTS), 1))}
    real_BL = np.arange(length) < arrays["text.length"][:, None]
    with torch.no_grad():
        mine = network({k: torch.from_numpy(v) for k, v in fed.items()})["fill.logits"].numpy()
        padded = np.where(real_BL, arrays["text.tokens"], model.config.pad_token_id)
        other = model(input_ids=torch.from_numpy(padded).long(), attention_mask=torch.from_numpy(real_BL).long()).logits.numpy()
    assert np.abs(mine - other)[real_BL].max() <= 1e-5
    file = read_arrays(tmp_path / "model.safetensors")
    stored = {k: v.numpy() for k, v in network.stored().items()}
    unread = () if tied else ("cls.predictions.bias", "lm_head.bias")  # which they do not read where there is a decoder.bias
    assert stored.keys() == file.keys() and all(np.array_equal(stored[k], file[k]) for k in file if k not in unread)
    again = {k: torch.from_numpy(v.copy()) for k, v in stored.items()}
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.restore(again)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("kind", ["category", "label-set", "number", "tags"])
def test_what_is_saved_loads_in_transformers(family: str, kind: str, tmp_path: Path) -> None:
    """From a base, with a head of ours, through the files that a model folder holds."""
    transformers = pytest.importorskip("transformers")
    theirs(family, "Model", tmp_path / "base")
    network, arrays = ours(tmp_path / "base", Head("y", kind, "value" if kind == "number" else "logits", 1 if kind == "number" else 3))
    from modelyard.nets import _layout
    from modelyard.store.state import write_arrays

    folder = tmp_path / "saved"
    folder.mkdir()
    write_arrays(folder / "model.safetensors", {k: v.numpy() for k, v in network.stored().items()}, _layout.METADATA)
    labels = None if kind == "number" else ["a", "b", "c"]
    for name, text in network.layout.files(labels, 90).items():
        (folder / name).write_text(text, encoding="utf-8")
    auto = transformers.AutoModelForTokenClassification if kind == "tags" else transformers.AutoModelForSequenceClassification
    model, told = auto.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    real_BL = np.arange(arrays["text.tokens"].shape[1]) < arrays["text.length"][:, None]
    padded = np.where(real_BL, arrays["text.tokens"], model.config.pad_token_id)
    with torch.no_grad():
        mine = next(iter(network({k: torch.from_numpy(v) for k, v in arrays.items()}).values())).numpy()
        other = model.eval()(input_ids=torch.from_numpy(padded).long(), attention_mask=torch.from_numpy(real_BL).long()).logits.numpy()
    assert mine.shape == other.shape
    assert np.abs(mine - other)[real_BL if kind == "tags" else slice(None)].max() <= 1e-5
    if kind != "number":
        assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_trained_model_folder_is_a_hugging_face_folder(tmp_path: Path) -> None:
    """Train on a base, load in transformers with its own tokenizer, load back, export: four times the same answers."""
    transformers = pytest.importorskip("transformers")
    theirs("bert", "ForMaskedLM", tmp_path / "base", hidden_dropout_prob=0.0)
    frame = labelled()
    found = train(texts_of(frame), "text-classification", {"name": "bert", "base": "base"}, ONCE, base=tmp_path)
    model = Model.load(found.model)
    rows = [{"text": t} for t in TEXTS]
    encoded, _ = model.encode_rows(rows)
    mine = model.run(encoded)["topic.logits"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.model)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(found.model)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=40, return_tensors="pt")
    assert [row[: int(m.sum())].tolist() for row, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)] == [
        encoded.arrays["text.tokens"].take(np.array([i])).values.tolist() for i in range(len(TEXTS))
    ]
    with torch.no_grad():
        assert np.abs(mine - other.eval()(**batch).logits.numpy()).max() <= 1e-5
    assert list(other.config.id2label.values()) == model.signature.outputs[0].labels
    assert (found.model / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()
    manifest = json.loads((found.model / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["layout"] == "huggingface" and manifest["model"]["bases"]["text"]["name"] == "base"
    assert str(tmp_path) not in (found.model / "manifest.json").read_text(encoding="utf-8")
    from modelyard.runtime.backends.torch import rebuild

    stored = {k: v.numpy() for k, v in rebuild(found.model, manifest, model.pipeline).stored().items()}
    file = read_arrays(found.model / "model.safetensors")
    assert stored.keys() == file.keys() and all(np.array_equal(stored[k], file[k]) for k in file)
    from modelyard.verbs.export import export

    exported = export(found.model)
    assert exported.parity["max_difference"] <= 1e-5


def test_dropout_of_a_base_is_kept_and_old_names_are_known(tmp_path: Path) -> None:
    """Halves are widened exactly; `gamma` and `beta` of BERT's first port are weight and bias."""
    safetensors = pytest.importorskip("safetensors.torch")
    theirs("bert", "Model", tmp_path, hidden_dropout_prob=0.3)
    file = {k: torch.from_numpy(v.copy()).bfloat16() for k, v in read_arrays(tmp_path / "model.safetensors").items()}
    renamed = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in file.items()}
    safetensors.save_file({f"bert.{k}": v for k, v in renamed.items()}, tmp_path / "model.safetensors")
    network, _ = ours(tmp_path, Head("y", "category", "logits", 2))
    encoder = network.encoders["text"]
    assert encoder.config.dropout == 0.3
    own = encoder.state_dict()
    assert all(torch.equal(own[k], v.float()) for k, v in file.items())


# -- where a base comes from ------------------------------------------------------------------------------------------------


def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    theirs("bert", "Model", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtefactError, match="save_file") as told:
        ours(tmp_path, Head("y", "category", "logits", 2))
    assert str(tmp_path) in told.value.message


def test_bases_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    theirs("bert", "Model", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    load = lambda **changes: (tmp_path / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")  # noqa: E731
    load(model_type="t5")
    with pytest.raises(Unsupported, match="bert, roberta"):
        ours(tmp_path, Head("y", "category", "logits", 2))
    load(hidden_size=24)
    with pytest.raises(ArtefactError, match="do not fit"):
        ours(tmp_path, Head("y", "category", "logits", 2))
    load(hidden_size=-8)
    with pytest.raises(ArtefactError, match="no net that can be built"):
        ours(tmp_path, Head("y", "category", "logits", 2))
    load(vocab_size=20)
    with pytest.raises(ArtefactError, match="tokenizer has"):
        ours(tmp_path, Head("y", "category", "logits", 2))


def test_offline_no_socket_is_opened(tmp_path: Path) -> None:
    """A hub's name with --offline: the error names the command; the same name works once it lies in the cache. No socket either way."""
    theirs("bert", "Model", tmp_path / "tiny")
    labelled(30).write_csv(tmp_path / "data.csv")
    script = """
import sys
touched = []
sys.addaudithook(lambda event, args: touched.append((event, args)) if event.startswith("socket.") else None)
from pathlib import Path
from modelyard import cli
code = cli.main(sys.argv[1:])
entry = Path("cache/hub/models--org--tiny")
(entry / "refs").mkdir(parents=True)
(entry / "refs" / "main").write_text("abc123", encoding="utf-8")
(entry / "snapshots").mkdir()
Path("tiny").rename(entry / "snapshots" / "abc123")
from modelyard.nets import bert
assert bert.settled(bert.Config(base="org/tiny")).width == 16
touched = [t for t in touched if t[0] not in ("socket.gethostname",)]
assert not touched, touched
sys.exit(code)
"""
    command = ["train", "--offline", "data.path=data.csv", "data.target=topic", "data.inputs={text: text}", "model.name=bert", "model.base=org/tiny",
               "train.epochs=1", "train.smoke=false"]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")} | {"HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script, *command], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 2 and "hf download org/tiny" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_word_pieces_trained_here_are_the_same_every_time() -> None:
    column = pl.Series(TEXTS * 3)
    states = [Pretrained().fit(column, PretrainedConfig(vocabulary=80)) for _ in range(3)]
    assert len({s.tokenizer for s in states}) == 1 and states[0].special.keys() == {"pad_token", "unk_token", "cls_token", "sep_token", "mask_token"}
    found = Pretrained().encode(pl.Series(["anna eats [MASK] " + "bread " * 500, None]), states[0], {})["tokens"]
    assert isinstance(found, Ragged) and found.lengths_B.tolist() == [256, 2]  # cut with its ends, and an empty text has them too
    special = states[0].special
    assert found.values[0] == special["cls_token"] and found.values[255] == special["sep_token"] and special["mask_token"] in found.values[:256]


# -- hidden tokens ----------------------------------------------------------------------------------------------------------


def test_hiding_is_a_function_of_seed_epoch_and_example() -> None:
    """The same alone and in a batch, other in another epoch; 15 % chosen, of those 80 % hidden, 10 % replaced; special tokens never."""
    masking = Masking("text", "fill", 4, np.array([0, 1, 2, 3, 4]), np.arange(5, 1000), 0.15, 7)
    random = np.random.default_rng(0)
    tokens = random.integers(5, 1000, (400, 60))
    tokens[:, 0], length = 2, random.integers(2, 61, 400)
    tokens[np.arange(400), length - 1] = 3
    ids = random.permutation(4000)[:400]
    hidden, places, count, truth = masking.hide(tokens, length, ids, 3)
    other, *_ = masking.hide(tokens, length, ids, 4)
    assert (hidden != other).any()
    fixed, again = (masking.hide(tokens, length, ids, None) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(fixed, again, strict=True))
    total = kept = masked = 0
    for i in range(400):
        n = int(length[i])
        alone, at, k, was = masking.hide(tokens[i : i + 1, :n], length[i : i + 1], ids[i : i + 1], 3)
        assert np.array_equal(alone[0], hidden[i, :n]) and k[0] == count[i] and np.array_equal(at[0, : k[0]], places[i, : k[0]])
        assert np.array_equal(was[0, : k[0]], tokens[i, at[0, : k[0]]]) and np.array_equal(truth[i, : k[0]], was[0, : k[0]])
        changed = set(np.flatnonzero(hidden[i] != tokens[i]).tolist())
        assert changed <= set(places[i, : count[i]].tolist()) and not changed & {0, n - 1} and (n == 2 or count[i] >= 1)
        total += n - 2
        kept += int((hidden[i, places[i, : count[i]]] == truth[i, : count[i]]).sum())
        masked += int((hidden[i, places[i, : count[i]]] == 4).sum())
    chosen = int(count.sum())
    assert abs(chosen / total - 0.15) < 0.012 and abs(masked / chosen - 0.8) < 0.04 and abs(kept / chosen - 0.1) < 0.03


def test_masked_language_model_answers_as_transformers_does(tmp_path: Path) -> None:
    """Pretraining from nothing: the answers, their probabilities and pseudo-likelihoods against a loop over transformers' own model."""
    transformers = pytest.importorskip("transformers")
    toy = registry.load("tasks", "fill-mask").TASK.toy(120, 0)
    found = train(toy_data(toy), "fill-mask", SMALL, TrainConfig(epochs=4, batch=16, lr=5e-3), base=tmp_path)
    assert set(found.metrics["test"]) == {"masked_accuracy", "pseudo_perplexity"}
    folder = found.model
    model, net = Model.load(folder), transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["anna eats [MASK] every [MASK]", "[MASK] reads books", "no mask here"]
    answers = model.predict([{"text": t} for t in texts], {"top": 3})
    for i, text in enumerate(texts):
        batch = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            chance = net(**batch).logits[0].softmax(-1)
        at = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
        assert len(answers["fill"][i]) == len(at)
        for place, top in zip(at, answers["fill.top"][i].to_list(), strict=True):
            best = chance[place].topk(3)
            assert [t["token"] for t in top] == tokenizer.convert_ids_to_tokens(best.indices.tolist())
            assert np.allclose([t["score"] for t in top], best.values.numpy(), atol=1e-5)
    assert answers["fill.text"][2] == "no mask here" or "[" not in answers["fill.text"][2]
    rows = ["anna eats bread every day", "bob drives cars every day"]
    judged = model.predict([{"text": t} for t in rows], {"mask": 0.4}, seed=5)
    for i, text in enumerate(rows):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        said = dict(zip(judged["fill.truth"][i].to_list(), judged["fill.chance"][i].to_list(), strict=True))
        tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
        assert len(said) == round(0.4 * (len(tokens) - 2))
        asked = ids.clone()
        for k, token in enumerate(tokens):
            asked[0, k] = tokenizer.mask_token_id if token in said else ids[0, k]
        with torch.no_grad():
            logs = net(input_ids=asked).logits[0].log_softmax(-1)
        for k, token in enumerate(tokens):
            assert token not in said or abs(said[token] - float(logs[k, ids[0, k]])) < 1e-4
    assert model.predict([{"text": rows[0]}], {"mask": 0.4}, seed=5)["fill.truth"][0].to_list() == judged["fill.truth"][0].to_list()


def test_a_run_is_a_base(tmp_path: Path) -> None:
    """Fine-tuning begins with the very weights of the pretraining, and says which base it had."""
    toy = registry.load("tasks", "fill-mask").TASK.toy(60, 0)
    first = train(toy_data(toy), "fill-mask", SMALL, ONCE, base=tmp_path, name="words")
    frozen = TrainConfig(epochs=1, batch=16, smoke=False, freeze="encoders")
    second = train(texts_of(labelled()), "classification", {"name": "bert", "base": "words-0001"}, frozen, base=tmp_path)
    before, after = (read_arrays(f.model / "model.safetensors") for f in (first, second))
    body = [k for k in before if k.startswith("bert.")]
    assert body and all(np.array_equal(before[k], after[k]) for k in body) and np.abs(after["classifier.weight"]).max() > 0
    manifest = json.loads((second.model / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["bases"]["text"]["name"] == "words-0001"
    with pytest.raises(Unsupported, match="fill"):
        train(toy_data(toy), "fill-mask", "text-cnn", ONCE, base=tmp_path)


# -- layers that learn slower or not at all -----------------------------------------------------------------------------------


def small_fit(tmp: Path | None = None, **settings: Any) -> tuple[Any, Fit]:
    """A text-cnn, a transformer or a bert on random tokens, ready to train."""
    name = settings.pop("net", "transformer")
    random = np.random.default_rng(0)
    arrays = {"c.tokens": Ragged.from_lists([random.integers(2, 50, n).tolist() for n in random.integers(2, 9, 48)], np.int32)}
    targets = {"y.index": random.integers(0, 3, 48)}
    shape = {"width": 16, "heads": 2} if name == "transformer" else {k: v for k, v in SMALL.items() if k != "name"}
    config = registry.load("nets", name).Config(**shape)
    spec = {"nets": {"c": {"name": name, "config": config}}}
    network = _network.build(spec, {"c": {"tokens": Part((None,), "int32", 50)}}, [], [Head("y", "category", "logits", 3)], seed=0)
    plain = {"epochs": 4, "batch": 16, "lr": 0.05, "optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    train_config = TrainConfig(**{**plain, **settings})
    module = registry.load("losses", "cross_entropy")
    term = Term("y.logits", "y.index", module.loss)
    batches = Batches(arrays, targets, batch=int(train_config.batch or 16), seed=0)
    return network, Fit(network, [term], batches, None, train_config, before=prepare(network, train_config))


def trained(network: Any, fit: Fit, folder: Path | None = None, resume: bool = False, stop: threading.Event | None = None) -> dict[str, Any]:
    fit.run(folder, lambda event: None, stop or threading.Event(), resume=resume)
    return {k: v.clone() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("net", ["transformer", "bert"])
def test_frozen_layers_stay_and_stand_in_evaluation_mode(net: str) -> None:
    for freeze, still in (("encoders", "encoders."), (1, {"transformer": "encoders.c.table", "bert": "encoders.c.embeddings"}[net])):
        network, fit = small_fit(net=net, freeze=freeze)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        after = trained(network, fit)
        moved = {k for k in after if not torch.equal(before[k], after[k])}
        expected = {k for k, p in network.named_parameters() if not k.startswith(still)}
        assert moved == expected
        network.train()
        held = network.get_submodule(still.rstrip("."))
        assert not any(m.training for m in held.modules()) and network.heads.training
    with pytest.raises(ConfigError, match="encoders"):
        small_fit(net=net, freeze=["encoders.nothing"])
    with pytest.raises(ConfigError, match="levels"):
        small_fit(net=net, freeze=99)
    with pytest.raises(Unsupported, match="nothing to learn"):
        small_fit(net=net, freeze=["encoders", "heads"])


def test_gradual_unfreezing_goes_from_the_top_down() -> None:
    """In epoch e the heads and e blocks learn: what moved after each epoch, against the order of bert's modules."""
    network, fit = small_fit(net="bert", unfreeze=1, epochs=4)
    order = ["heads.", "encoders.c.pooler", "encoders.c.encoder.layer.1", "encoders.c.encoder.layer.0"]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    seen: list[set[str]] = []

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            seen.append({k for k, v in network.state_dict().items() if not torch.equal(v, state[k])})
            state.update({k: v.clone() for k, v in network.state_dict().items()})

    fit.run(None, note, threading.Event())
    named = {k for k, _ in network.named_parameters()}
    assert seen == [{k for k in named if k.startswith(tuple(order[: e + 1]))} for e in range(4)]


def test_each_layer_learns_at_a_share_of_the_rate_above_it() -> None:
    """One step of gradient descent: the change of every parameter is the plain step's times decay^depth."""
    steps = {}
    for decay in (None, 0.5):
        network, fit = small_fit(net="bert", layer_decay=decay, epochs=1, batch=48)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        after = trained(network, fit)
        steps[decay] = {k: after[k] - before[k] for k in after}
    depth = {"heads": 0, "pooler": 1, "layer.1": 2, "layer.0": 3, "embeddings": 4}
    for name, plain in steps[None].items():
        power = next(d for part, d in depth.items() if part in name)
        assert torch.allclose(steps[0.5][name], plain * 0.5**power, rtol=1e-3, atol=2e-7), name


@pytest.mark.parametrize("settings", [{"unfreeze": 1, "layer_decay": 0.7}, {"freeze": 1}])
def test_resumed_in_the_middle_the_weights_are_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    common = {"net": "bert", "optimiser": "adamw", "lr": 1e-2, "epochs": 5, **settings}
    whole = trained(*small_fit(**common))
    stop = threading.Event()
    network, fit = small_fit(**common)
    plain = fit.update

    def update(batch: Any, epoch: int) -> list[float]:
        if fit.step == 7:  # in the third epoch of three steps
            stop.set()
        return plain(batch, epoch)

    fit.update = update  # type: ignore[method-assign]
    trained(network, fit, tmp_path, stop=stop)
    network, fit = small_fit(**common)
    again = trained(network, fit, tmp_path, resume=True)
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_methods_by_depth_refuse_what_has_no_depth(tmp_path: Path) -> None:
    frame = labelled()
    with pytest.raises(Unsupported, match="is for nets"):
        train(texts_of(frame), "classification", "linear", TrainConfig(freeze="encoders"), base=tmp_path)
    (tmp_path / "own.py").write_text(
        "import torch\nclass Own(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = torch.nn.Linear(2, 3)\n"
        "    def forward(self, x):\n        return {'y.logits': self.a(x['table.numbers'])}\n", encoding="utf-8",
    )  # fmt: skip
    numbers = pl.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0) % 3, "y": ["u", "v", "w", "u"] * 10})
    data, own = DataConfig(path=numbers, target="y", inputs=["a", "b"]), {"module": f"{tmp_path}/own.py:Own"}
    with pytest.raises(Unsupported, match="your own module"):
        train(data, None, own, TrainConfig(unfreeze=1, epochs=1), base=tmp_path)


# -- text vectors ------------------------------------------------------------------------------------------------------------


def test_info_nce_against_a_loop() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(5, 3, 4))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    weight = np.array([1.0, 0.5, 0.0, 1.0, 2.0])
    value, units = info_nce.loss(torch.tensor(vectors), torch.tensor(weight), temperature=0.1)
    for i in range(5):
        scores = [math.exp(vectors[i, 0] @ vectors[j, c] / 0.1) for c in (1, 2) for j in range(5)]
        own = math.exp(vectors[i, 0] @ vectors[i, 1] / 0.1)
        assert math.isclose(float(value[i]), -weight[i] * math.log(own / sum(scores)), rel_tol=1e-9, abs_tol=1e-12)
    assert units.tolist() == weight.tolist() and info_nce.couples == "batch"


def test_retrieval_metrics_against_a_loop() -> None:
    scipy = pytest.importorskip("scipy.stats")
    from modelyard.metrics import Predicted, evaluate_output

    random = np.random.default_rng(0)
    anchors, near = random.normal(size=(40, 6)), random.normal(size=(40, 6))
    near[3], score = near[7], random.integers(0, 5, 40).astype(float)
    truth = np.empty(40, object)
    truth[:] = list(zip(near, score, strict=True))
    found = evaluate_output("vector", truth, Predicted(values=anchors), ["recall_at_1", "recall_at_10", "mrr", "spearman"])
    cosine = lambda a, b: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))  # noqa: E731
    ranks = [1 + sum(cosine(anchors[i], n) > cosine(anchors[i], near[i]) + 1e-6 for n in near) for i in range(40)]
    assert math.isclose(found["recall_at_1"]["value"], np.mean([r <= 1 for r in ranks]))
    assert math.isclose(found["recall_at_10"]["value"], np.mean([r <= 10 for r in ranks]))
    assert math.isclose(found["mrr"]["value"], np.mean([1 / r for r in ranks]))
    assert math.isclose(found["spearman"]["value"], scipy.spearmanr([cosine(a, n) for a, n in zip(anchors, near, strict=True)], score)[0], rel_tol=1e-9)


def test_text_vectors_are_the_mean_of_transformers_last_states(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    toy = registry.load("tasks", "text-embedding").TASK.toy(80, 0)
    data = toy_data(toy)
    found = train(data, "text-embedding", SMALL, ONCE, base=tmp_path)
    model, net = Model.load(found.model), transformers.AutoModel.from_pretrained(found.model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.model)
    vectors = np.array(model.predict([{"anchor": t} for t in TEXTS])["vector"].to_list())
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            mean = net(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert np.abs(vector - (mean / mean.norm()).numpy()).max() <= 1e-5
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    tokens = json.loads((found.model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert "sells" in tokens  # a word of the positives alone
    with pytest.raises(Unsupported, match="accumulate"):
        train(data, "text-embedding", SMALL, TrainConfig(epochs=1, accumulate=2), base=tmp_path)


def test_pairs_with_scores_and_negatives_and_none_at_all(tmp_path: Path) -> None:
    """Scores are compared by rank, negatives join the batch's, and a text alone is its own companion (SimCSE)."""
    random = np.random.default_rng(0)
    words = ["bread", "soup", "cars", "trucks", "books", "news"]
    left = [f"{random.choice(words)} {random.choice(words)} today" for _ in range(60)]
    frame = pl.DataFrame({"q": left, "a": [t.replace("today", "now") for t in left], "hard": [f"{random.choice(words)} never" for _ in left],
                          "score": random.uniform(0, 5, 60)})  # fmt: skip
    inputs = {"q": {"kind": "text"}}
    names = {"anchor": "q", "positive": "a", "negative": "hard"}
    found = train(DataConfig(path=frame, inputs=inputs, frame=names), "text-embedding", "bag", TrainConfig(epochs=8), base=tmp_path)
    assert -1 <= found.metrics["test"]["spearman"]["value"] <= 1 and found.metrics["test"]["recall_at_10"]["value"] > 0.9
    alone = train(DataConfig(path=frame.select("q"), inputs=inputs, frame={"anchor": "q"}), "text-embedding", SMALL, ONCE, base=tmp_path)
    assert math.isnan(alone.metrics["test"]["mrr"]["value"])  # finding itself would measure nothing
    assert len(Model.load(alone.model).predict({"q": "soup"})["vector"][0]) == 16
    broken = frame.with_columns(pl.when(pl.col("q") == left[0]).then(None).otherwise("a").alias("a"))
    with pytest.raises(DataError, match="no positive"):
        train(DataConfig(path=broken, inputs=inputs, frame=names), "text-embedding", "bag", ONCE, base=tmp_path)


# -- long documents ----------------------------------------------------------------------------------------------------------


def test_slices_cover_every_word_in_order() -> None:
    """Against a loop over words: every slice but the last has `length` words, begins `length - overlap` after the one before."""
    random = np.random.default_rng(0)
    for n in range(30):
        words = [random.choice(["one", "two,", "城"]) for _ in range(n)]
        text = "  ".join(words)
        found = slices.slices(text, 7, 3)
        expected, start = [], 0
        while True:
            expected.append(words[start : start + 7])
            if start + 7 >= n:
                break
            start += 4
        assert [slices.WORD.findall(s or "") for s in found] == expected
    assert slices.slices("明天天气很好", 3, 1) == ["明天天", "天气很", "很好"] and slices.slices(None, 3, 1) == [None]


@pytest.mark.parametrize("merge", ["mean", "max", "vote"])
def test_a_document_gets_one_answer_made_of_its_slices(merge: str, tmp_path: Path) -> None:
    """The answer to a document equals what a loop makes of the answers to its slices, asked one by one."""
    random = np.random.default_rng(0)
    marks = {"food": "bread", "road": "trucks"}
    labels = random.choice(list(marks), 80).tolist()
    rows = []
    for k in labels:
        words = random.choice(["the", "a", "of", "and"], random.integers(0, 40)).tolist()
        words.insert(int(random.integers(0, len(words) + 1)), marks[k])
        rows.append(" ".join(words))
    data = texts_of(pl.DataFrame({"text": rows, "topic": labels}), frame={"name": "slices", "length": 8, "overlap": 2, "merge": merge})
    found = train(data, "classification", "text-cnn", TrainConfig(epochs=2, smoke=False), base=tmp_path)
    model = Model.load(found.model)
    manifest = json.loads((found.model / "manifest.json").read_text(encoding="utf-8"))
    assert sum(manifest["data"]["rows"].values()) == 80 and manifest["frame"]["config"]["column"] == "text"
    answers = model.predict([{"text": t} for t in rows])
    assert len(answers) == 80
    for i, text in enumerate(rows[:12]):
        words = text.split()
        pieces = [" ".join(words[s : s + 8]) for s in range(0, max(1, len(words) - 2), 6)]
        single = np.array([list(model.predict({"text": p})["topic.scores"][0].values()) for p in pieces])
        if merge == "vote":
            single = np.eye(2)[single.argmax(1)]
        whole = single.max(0) if merge == "max" else single.mean(0)
        assert np.allclose(list(answers["topic.scores"][i].values()), whole / whole.sum(), atol=1e-5)


def test_slices_refuse_what_they_cannot_merge(tmp_path: Path) -> None:
    frame = labelled(40).with_columns(pl.Series("size", np.arange(40.0)))
    with pytest.raises(DataError, match="overlap"):
        train(texts_of(frame, frame={"name": "slices", "length": 5, "overlap": 5}), "classification", "linear", ONCE, base=tmp_path)
    with pytest.raises(Unsupported, match="merged by vote"):
        train(texts_of(frame, "size", frame={"name": "slices", "merge": "vote"}), "regression", "bag", ONCE, base=tmp_path)
    with pytest.raises(DataError, match="text input"):
        train(DataConfig(path=frame, target="topic", inputs=["size"], frame={"name": "slices"}), "classification", "linear", ONCE, base=tmp_path)
