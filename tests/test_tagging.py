"""Tagging: schemes, counting and chains against seqeval and brute force; files, alignment, nets and answers end to end."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from modelyard import metrics
from modelyard.data.conll import ConllConfig
from modelyard.data.read import Reading, read
from modelyard.data.source import DataConfig, open_source
from modelyard.data.split import SplitConfig
from modelyard.data.typing import guess, target_kind
from modelyard.errors import ConfigError, DataError, Unsupported, UsageError
from modelyard.kinds._contract import Head
from modelyard.kinds.tags import KIND as TAGS
from modelyard.kinds.tags import TagIdsConfig, _chain, _schemes
from modelyard.kinds.words import KIND as WORDS
from modelyard.kinds.words import cut, joined
from modelyard.losses import crf, token_cross_entropy
from modelyard.metrics._entities import by_type, counts_B3
from modelyard.nets import bilstm
from modelyard.nets._network import build
from modelyard.nets._recurrent import Pool, Recurrent
from modelyard.runtime.answers import compare
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import dense
from modelyard.tasks._binding import bind
from modelyard.tasks.token_classification import TASK
from modelyard.testing import random_inputs, toy_data
from modelyard.verbs.evaluate import score
from modelyard.verbs.train import train
from modelyard.verbs.train.config import TrainConfig

exporting = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def made(rows: int, letters: str = "BI", kinds: tuple[str, ...] = ("PER", "LOC"), seed: int = 0) -> list[list[str]]:
    """Random tags, most of them illegal somewhere."""
    rng = random.Random(seed)
    some = ["O", "O", *(f"{letter}-{kind}" for letter in letters for kind in kinds)]
    return [[rng.choice(some) for _ in range(rng.randint(1, 9))] for _ in range(rows)]


def other(truth: list[list[str]], letters: str) -> list[list[str]]:
    """Answers of the same lengths: half of them right, half with random tags."""
    rng = random.Random(9)
    some = sorted({t for row in truth for t in row})
    return [row if i % 2 else [rng.choice(some) for _ in row] for i, row in enumerate(truth)]


def column(rows: list[list[str]]) -> np.ndarray:
    return TAGS.evidence(pl.Series("y", rows, dtype=pl.List(pl.String)), TAGS.encodings["tag_ids"], None)


SEQEVAL = json.loads((Path(__file__).parent / "seqeval_counts.json").read_text(encoding="utf-8"))
"""What seqeval 1.2.2 counted of these very tags (`rows`: their hash). It is no dependency: it is built from source, by tools that change under it."""


def same_rows(truth: list[list[str]], said: list[list[str]]) -> str:
    return sha256(json.dumps([truth, said]).encode()).hexdigest()[:12]


@pytest.mark.parametrize("letters", ["BI", "I", "BIES"])
def test_entities_are_counted_as_seqeval_counts_them(letters: str) -> None:
    truth = made(300, letters)
    said, theirs = other(truth, letters), SEQEVAL[letters]
    assert same_rows(truth, said) == theirs["rows"]
    found = metrics.evaluate_output("tags", column(truth), metrics.Predicted(labels=column(said)))
    for name in ("entity_f1", "entity_precision", "entity_recall"):
        assert found[name]["value"] == pytest.approx(theirs[name], abs=1e-12)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    pairs = [(a, b) for x, y in zip(truth, said, strict=True) for a, b in zip(x, y, strict=True)]
    assert found["tag_accuracy"]["value"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    own = by_type(truth, said)
    assert own.keys() == theirs["types"].keys()
    for kind, (right, true, _) in own.items():
        assert theirs["types"][kind]["support"] == true and theirs["types"][kind]["recall"] == pytest.approx(right / true)


@pytest.mark.parametrize(("letters", "scheme"), [("BI", "IOB2"), ("BIES", "IOBES")])
def test_strict_counting_is_seqevals(letters: str, scheme: str) -> None:
    truth = made(300, letters, seed=2)
    said = other(truth, letters)
    assert same_rows(truth, said) == SEQEVAL[scheme]["rows"]
    found = metrics.evaluate_output("tags", column(truth), metrics.Predicted(labels=column(said)), ["entity_f1_strict"], intervals=False)
    assert found["entity_f1_strict"]["value"] == pytest.approx(SEQEVAL[scheme]["entity_f1_strict"], abs=1e-12)


def test_undefined_entities_say_why() -> None:
    nothing = column([["O", "O"]])
    found = metrics.evaluate_output("tags", nothing, metrics.Predicted(labels=nothing))
    assert np.isnan(found["entity_f1"]["value"]) and "neither" in found["entity_f1"]["note"] and found["tag_accuracy"]["value"] == 1.0
    plain = column([["NOUN", "VERB"]])
    found = metrics.evaluate_output("tags", plain, metrics.Predicted(labels=plain))
    assert "mark no entities" in found["entity_f1"]["note"]
    with pytest.raises(metrics.Undefined):
        counts_B3(plain, plain)


@pytest.mark.parametrize("scheme", ["bio", "bioes", "bilou"])
def test_what_a_scheme_writes_is_legal_and_read_back(scheme: str) -> None:
    labels = _schemes.classes(["O", "B-PER", "I-LOC"], scheme)
    first, last, step = _schemes.legal(labels, scheme)
    at = {t: i for i, t in enumerate(labels)}
    for row in made(300, "BI", seed=4):
        found = _schemes.entities(row)
        tags = _schemes.write(found, len(row), scheme)
        assert _schemes.entities(tags) == found == _schemes.strict(tags, scheme if scheme == "bio" else "bioes")
        ids = [at[t] for t in tags]
        assert first[ids[0]] and last[ids[-1]] and all(step[a, b] for a, b in itertools.pairwise(ids))


@pytest.mark.parametrize("scheme", ["bio", "bioes", "bilou"])
def test_legal_sequences_are_those_that_are_their_own_repair(scheme: str) -> None:
    """Every sequence of three tags: the tables allow exactly those that reading and writing leave as they are."""
    labels = _schemes.classes(["B-a", "B-b"], scheme)
    first, last, step = _schemes.legal(labels, scheme)
    for ids in itertools.product(range(len(labels)), repeat=3):
        tags = [labels[i] for i in ids]
        allowed = bool(first[ids[0]] and last[ids[2]] and step[ids[0], ids[1]] and step[ids[1], ids[2]])
        assert allowed == (_schemes.write(_schemes.entities(tags), 3, scheme) == tags), tags


def test_the_best_sequence_and_its_probability_against_all_of_them() -> None:
    labels = _schemes.classes(["B-a"], "bioes")
    size, legal = len(labels), _schemes.legal(labels, "bioes")
    rng = np.random.default_rng(0)
    lengths = np.array([4, 1, 3, 0])
    potentials = rng.normal(size=(4, size + 2 + 4, size)).astype(np.float32) * 2
    ids_BL, log_B = _chain.best(potentials, lengths, legal)
    first, last, step, words = _chain.split(potentials)
    for b, n in enumerate(lengths[:3]):
        scores = {}
        for ids in itertools.product(range(size), repeat=int(n)):
            if legal[0][ids[0]] and legal[1][ids[-1]] and all(legal[2][x, y] for x, y in itertools.pairwise(ids)):
                steps = sum(step[b, x, y] for x, y in itertools.pairwise(ids))
                scores[ids] = first[b, ids[0]] + last[b, ids[-1]] + steps + sum(words[b, i, k] for i, k in enumerate(ids))
        best = max(scores, key=lambda k: scores[k])
        assert tuple(ids_BL[b, :n]) == best and not ids_BL[b, n:].any()
        assert log_B[b] == pytest.approx(scores[best] - np.log(np.exp(list(scores.values())).sum()), abs=1e-9)
    assert log_B[3] == 0.0


def test_the_loss_of_a_chain_against_all_sequences() -> None:
    size, length = 3, 4
    potentials = torch.randn(3, size + 2 + length, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 0], [1, -1, 0, 0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, True, False, False]])
    value_B, words_B = crf.loss(potentials, target, mask)
    for b, n in enumerate((4, 2)):
        p = potentials[b].detach().numpy()
        score = lambda ids, p=p: (  # noqa: E731
            p[0, ids[0]] + p[1, ids[-1]] + sum(p[2 + x, y] for x, y in itertools.pairwise(ids)) + sum(p[5 + i, k] for i, k in enumerate(ids))
        )
        every = [score(ids) for ids in itertools.product(range(size), repeat=n)]
        assert value_B[b].item() == pytest.approx(np.log(np.exp(every).sum()) - score(target[b, :n].tolist()), abs=1e-9)
    assert value_B[2] == 0 and words_B.tolist() == [4, 2, 0]  # an unknown tag: the sentence says nothing
    assert torch.autograd.gradcheck(lambda x: crf.loss(x, target, mask)[0].sum(), potentials)


def test_words_decided_alone_are_torchs_cross_entropy() -> None:
    potentials = torch.randn(2, 3 + 2 + 5, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[0, 1, 2, 2, 1], [1, -1, 0, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    value_B, words_B = token_cross_entropy.loss(potentials, target, mask)
    emitted = potentials[:, 5:]
    assert value_B[0] == pytest.approx(torch.nn.functional.cross_entropy(emitted[0], target[0], reduction="sum"))
    assert value_B[1] == pytest.approx(torch.nn.functional.cross_entropy(emitted[1, [0, 2]], target[1, [0, 2]], reduction="sum"))
    assert words_B.tolist() == [5, 2]


def test_an_illegal_sequence_never_leaves() -> None:
    """Scores that beg for an inside tag behind O are answered by the best legal sequence, in the scheme of the data."""
    coder = TAGS.encodings["tag_ids"]
    state = coder.fit(pl.Series([["B-a", "I-a", "O"], ["O", "B-b"]]), TagIdsConfig(scheme="bioes"))
    assert state.given == "bio" and state.learnt == "bioes" and state.labels == ["O", "B-a", "I-a", "B-b", "I-b"]
    rng = np.random.default_rng(1)
    size = len(state.classes)
    potentials = rng.normal(size=(200, size + 2 + 6, size)) * 5
    context = {"length": rng.integers(1, 7, 200), "words": [["w"] * 6] * 200}
    answers = coder.decode({"potentials": potentials}, state, context)
    for row, told in zip(answers[""].to_list(), answers["entities"].to_list(), strict=True):
        assert _schemes.write(_schemes.entities(row), len(row), "bio") == row
        assert [(e["start"], e["end"], e["type"]) for e in told] == _schemes.entities(row)


def test_iob1_and_bilou_are_read() -> None:
    coder = TAGS.encodings["tag_ids"]
    state = coder.fit(pl.Series([["I-a", "I-a", "B-a", "O"]]))
    ids = coder.encode(pl.Series([["I-a", "I-a", "B-a", "O"]]), state, {})["ids"].values
    assert [state.classes[i] for i in ids] == ["B-a", "I-a", "B-a", "O"]
    assert _schemes.scheme_of(["B-a", "L-a", "U-a", "O"]) == "bilou" and _schemes.entities(["U-a", "B-a", "L-a"]) == [(0, 1, "a"), (1, 3, "a")]


def test_texts_are_cut_and_joined() -> None:
    assert cut("我爱 Paris, 真的！") == ["我", "爱", "Paris,", "真", "的", "！"]
    assert joined(["New", "York"]) == "New York" and joined(["北", "京", "is", "big"]) == "北京is big"
    clean, errors = WORDS.check(pl.Series("t", [["a"], [], None, ["a", ""], ["b", 3]], dtype=pl.Object))
    assert clean.to_list() == [["a"], None, None, None, ["b", "3"]] and [e.row for e in errors] == [1, 3] and "place 2" in errors[1].reason


def test_every_line_of_a_conll_file_is_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    lines = ["-DOCSTART- O O", "", "# id 7 of 9", "EU NNP B-ORG", "rejects VBZ O", "", "# x B-misc", "bad line", "x y O", "", "", "Rome NNP B-LOC"]
    path.write_text("\n".join(lines), encoding="utf-8")
    table = read(path, Reading(conll=ConllConfig(columns={"tokens": 1, "pos": 2, "tags": -1})))
    assert table.data.to_dicts() == [
        {"tokens": ["EU", "rejects"], "pos": ["NNP", "VBZ"], "tags": ["B-ORG", "O"]}, {"tokens": ["Rome"], "pos": ["NNP"], "tags": ["B-LOC"]},
    ]  # fmt: skip
    assert [(s.line, "2 columns" in s.reason) for s in table.set_aside] == [(8, True)]
    note = table.notes[0]
    words = 6  # "# x B-misc" has three columns: it is a word, of the sentence that is set aside
    assert f"{len(lines)} lines are {words} words, 1 comments, 1 documents, 4 between sentences; 2 sentences" in note
    (tmp_path / "b.bio").write_text("I\tO\n\tO\n\nam\tO\n", encoding="utf-8")
    table = read(tmp_path / "b.bio")
    assert table.data["tokens"].to_list() == [["am"]] and "nothing in tokens" in table.set_aside[0].reason
    with pytest.raises(DataError, match="no such column"):
        read(tmp_path / "b.bio", Reading(conll=ConllConfig(columns={"tokens": 1, "tags": 5})))


def test_numbers_get_their_names(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"tokens": ["Anna", "sings"], "ner_tags": [1, 0]}, {"tokens": ["so", "so"], "ner_tags": [0, 0]}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    data = DataConfig(path=str(path), target="ner_tags", names={"ner_tags": ["O", "B-PER"]})
    bound = bind(data, "ner", tmp_path, source=open_source(data, tmp_path), whole=True)
    assert bound.splits["test"]["ner_tags"].to_list() == [["B-PER", "O"], ["O", "O"]]
    assert [c.kind for c in bound.pipeline.inputs] == ["words"] and bound.pipeline.outputs[0].of == "tokens"
    with pytest.raises(DataError) as refused:
        open_source(DataConfig(path=str(path), names={"ner_tags": ["O"]}), tmp_path)
    assert "holds 1" in str(refused.value.details[0])


def test_lists_are_guessed_by_what_they_say() -> None:
    tokens, tags = [["the", "dog", "the", "cat"], ["a", "a"]] * 30, [["O", "B-x", "O", "O"], ["O", "O"]] * 30
    assert guess(pl.Series("w", tokens)).kind == "words" and target_kind(pl.Series("y", tags)).kind == "tags"
    assert guess(pl.Series("s", [["x", "y"], ["y"]] * 30)).kind == "label-set" == target_kind(pl.Series("s", [["x", "y"], ["y"]] * 30)).kind
    bound = bind(DataConfig(path=pl.DataFrame({"w": tokens, "y": tags}), target="y"), None, Path(), whole=True)
    assert bound.tasks["y"] is TASK and "task is token-classification" in bound.notes[0]


def test_tags_that_do_not_fit_their_words_are_refused() -> None:
    frame = pl.DataFrame({"tokens": [["a", "b"], ["c"], ["d", "d"]], "tags": [["O", "B-x"], ["O", "O"], ["O", "O"]]})
    with pytest.raises(DataError) as refused:
        bind(DataConfig(path=frame, target="tags"), "token-classification", Path(), whole=True)
    assert "2 tags for 1 words of tokens" in str(refused.value.details[0])


@exporting
def test_recurrent_layers_do_not_see_padding_and_export() -> None:
    from modelyard.runtime.backends.onnx import session
    from modelyard.verbs.export.onnx import export_module

    torch.manual_seed(0)
    shapes = {"rnn": (2, 1), "gru": (1, 2), "lstm": (1, 2)}
    layers = {c: Recurrent(c, 5, 4, *shape, 0.0).eval() for c, shape in shapes.items()}  # type: ignore[arg-type]

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.ModuleDict(layers)

        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {cell: layer(inputs["c.x"], inputs["c.length"]) for cell, layer in self.inner.items()}

    rng = np.random.default_rng(0)
    example = {"c.x": rng.normal(size=(3, 4, 5)).astype(np.float32), "c.length": np.array([4, 2, 3])}
    graph = session(export_module(Named(), example, {"c.x"}))
    for rows, length in ((1, 1), (4, 7)):
        x, lengths = rng.normal(size=(rows, length, 5)).astype(np.float32), rng.integers(1, length + 1, rows)
        answered = graph({"c.x": x, "c.length": lengths})
        for cell, layer in layers.items():
            with torch.inference_mode():
                whole = layer(torch.from_numpy(x), torch.from_numpy(lengths)).numpy()
                for i, n in enumerate(lengths):
                    alone = layer(torch.from_numpy(x[i : i + 1, :n]), torch.tensor([n])).numpy()[0]
                    assert np.abs(alone - whole[i, :n]).max() < 1e-6 and not whole[i, n:].any()
            assert np.abs(answered[cell] - whole).max() < 1e-5, cell


def test_one_layer_is_torchs_packed_one() -> None:
    torch.manual_seed(0)
    ours, theirs = Recurrent("lstm", 5, 4, 1, 2, 0.0), torch.nn.LSTM(5, 4, bidirectional=True, batch_first=True)
    for place, suffix in enumerate(("", "_reverse")):
        for name, value in ours.layers[0][place].named_parameters():  # type: ignore[index]
            getattr(theirs, name + suffix).data.copy_(value.data)
    x, lengths = torch.randn(4, 6, 5), torch.tensor([6, 5, 2, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    assert torch.allclose(ours(x, lengths), expected, atol=1e-6)


@pytest.mark.parametrize("how", ["max", "mean", "last", "attention"])
def test_pooling_against_each_text_alone(how: str) -> None:
    torch.manual_seed(0)
    pool, states = Pool(how, 6, 2), torch.randn(3, 5, 6)  # type: ignore[arg-type]
    lengths = torch.tensor([5, 2, 0])
    states = states * (torch.arange(5)[None, :, None] < lengths[:, None, None])
    found = pool(states, lengths)
    for i, n in enumerate((5, 2)):
        own = states[i, :n]
        weights = (torch.tanh(pool.project(own)) @ pool.query).softmax(0) if how == "attention" else None
        last = torch.cat([own[-1, :3], own[0, 3:]])
        expected = {"max": own.amax(0), "mean": own.mean(0), "last": last, "attention": own.T @ weights if weights is not None else last}[how]
        assert torch.allclose(found[i], expected, atol=1e-6)
    assert not found[2].any()


def test_a_tagger_answers_alone_as_in_a_batch_and_learns_every_weight() -> None:
    parts, arrays, _ = random_inputs("spelled", 5)
    spec = {"nets": {"c": {"name": "bilstm", "config": bilstm.Config(layers=2)}}}
    network = build(spec, {"c": parts}, [], [Head("y", "tags", "potentials", 4)], seed=0)
    batch = {k: torch.from_numpy(v) for k, v in dense({f"c.{k}": v for k, v in arrays.items()}).items()}
    network(batch)["y.potentials"].square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]
    network.eval()
    with torch.inference_mode():
        whole = network(batch)["y.potentials"]
        for i, n in enumerate(batch["c.length"].tolist()):
            one = network({k: v[i : i + 1, :n] if v.dim() > 1 else v[i : i + 1] for k, v in batch.items()})["y.potentials"]
            assert torch.allclose(one[0], whole[i, : n + 6], atol=1e-5)
    with pytest.raises(Unsupported, match="reads one input"):
        build({"nets": {n: spec["nets"]["c"] for n in "ab"}}, {"a": parts, "b": parts}, [], [Head("y", "tags", "potentials", 4)])


@exporting
def test_from_a_file_to_answers_that_every_backend_gives(tmp_path: Path) -> None:
    """Trained with the best epoch by entity F1, saved, exported: torch and ONNX agree, and the report marks the entities."""
    import modelyard

    toy = TASK.toy(160, 3).tables["train"]
    lines = ["\n".join(f"{w}\t{t}" for w, t in zip(*row, strict=True)) for row in toy.iter_rows()]
    (tmp_path / "names.conll").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    text = "version: 1\nname: names\ntask: ner\ndata: {path: names.conll, target: tags}\ntrain: {epochs: 12, batch: 8, watch: entity_f1}\n"
    (tmp_path / "modelyard.yaml").write_text(text, encoding="utf-8")
    trained = modelyard.train(str(tmp_path / "modelyard.yaml"), quiet=True)
    assert trained.metrics["test"]["entity_f1"]["value"] > 0.9
    model = Model.load(trained.model)
    answer = model.predict([{"tokens": "Zelda Berg lives in New York"}]).to_json()[0]
    assert len(answer["tags"]) == 6 and 0 < answer["tags.score"] <= 1
    assert {"start": 4, "end": 6, "type": "place", "text": "New York"} in answer["tags.entities"]
    report = (trained.run / "report.html").read_text(encoding="utf-8")
    assert "<mark>" in report and "entity_f1" in report
    exported = modelyard.export(str(trained.run), quiet=True)
    other = Model.load(exported.folder)
    rows = [{"tokens": r} for r in toy["tokens"].to_list()[:40]]
    parity = compare(model.predict(rows), other.predict(rows), {}, 1e-5)
    assert other.backend == "onnx" and parity.ok and parity.max_difference < 1e-5


def test_finding_more_entities_is_tuned_on_validation_rows(tmp_path: Path) -> None:
    """After one epoch hardly an entity is found; taking from the score of O mends that, in a child model that answers by itself."""
    import modelyard

    lines = ["\n".join(f"{w}\t{t}" for w, t in zip(*row, strict=True)) for row in TASK.toy(200, 4).tables["train"].iter_rows()]
    (tmp_path / "names.conll").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    text = "version: 1\nname: names\ntask: ner\ndata: {path: names.conll, target: tags}\ntrain: {epochs: 3, batch: 16}\n"
    file = tmp_path / "modelyard.yaml"
    file.write_text(text, encoding="utf-8")
    trained = modelyard.train(str(file), quiet=True)
    found = modelyard.evaluate(str(trained.run), file=str(file), quiet=True, **{"evaluate.threshold": "entity_f1"})
    steps = Model.load(found.child).manifest["post"]
    assert [s["step"] for s in steps] == ["outside"] and steps[0]["value"] > 0
    bound = bind(DataConfig(path=str(tmp_path / "names.conll"), target="tags"), "ner", tmp_path, seed=0)
    before, after = (score(Model.load(m), bound, "valid", "entity_f1", "tags")["value"] for m in (trained.model, found.child))
    assert after >= before


def test_watching_a_metric_needs_one_that_is_measured(tmp_path: Path) -> None:
    data = toy_data(TASK.toy(60, 0))
    for watch, match in (("rmse", "rmse cannot be measured"), ("nothing", "unknown metrics name 'nothing'")):
        with pytest.raises(UsageError, match=match):
            train(data, "token-classification", config=TrainConfig(watch=watch), base=tmp_path)
    data = dataclasses.replace(data, split=SplitConfig(valid=0))
    with pytest.raises(ConfigError, match="needs validation rows"):
        train(data, "token-classification", config=TrainConfig(watch="entity_f1"), base=tmp_path)


def test_classifying_words_with_every_pooling(tmp_path: Path) -> None:
    """The same net reads a sentence as a whole: who is spoken of, told by one word."""
    toy = TASK.toy(120, 5).tables["train"]
    label = ["place" if any("place" in t for t in tags) else "none" for tags in toy["tags"].to_list()]
    frame = pl.DataFrame({"tokens": toy["tokens"], "label": label})
    data = DataConfig(path=frame, target="label", inputs={"tokens": "words"})
    found = train(data, model={"name": "bilstm", "pooling": "attention", "cell": "gru", "hidden": 16}, config=TrainConfig(epochs=6), base=tmp_path)
    assert found.metrics["test"]["accuracy"]["value"] > 0.9
