# ruff: noqa: E402 (imports after the skip: torch is an extra)
"""Preference and reward methods: losses and gradients equal to TRL's on the same rows, and whole trainings from rows to answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")

from modelyard.data.frames import language
from modelyard.data.source import DataConfig
from modelyard.errors import ArtefactError, DataError, Unsupported, UsageError
from modelyard.kinds._contract import pad
from modelyard.nets import _adapters
from modelyard.runtime.backends.torch import rebuild
from modelyard.runtime.model import Model
from modelyard.verbs.evaluate import judge
from modelyard.verbs.train import Trained, align, dpo, grpo, kto, train
from modelyard.verbs.train.config import TrainConfig
from modelyard.verbs.train.methods import DpoConfig, GrpoConfig, KtoConfig, LoraConfig

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SMALL = {"name": "causal", "width": 32, "layers": 2, "heads": 2, "context": 48, "tokenizer": "characters"}


def sums(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    pairs = np.random.default_rng(seed).integers(0, 5, (rows, 2)).tolist()
    return [{"prompt": f"{WORDS[a]} and {WORDS[b]} is ", "completion": WORDS[a + b]} for a, b in pairs]


PAIRS = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": WORDS[(i * 7) % 10]} for i, r in enumerate(sums(24, 1))]
MARKED = [{"prompt": r["prompt"], "completion": WORDS[(i * 3) % 10], "label": i % 3 == 0} for i, r in enumerate(sums(24, 2))]


def fit(folder: Path, rows: list[dict[str, Any]], model: Any, name: str, task: str = "text-generation", target: str | None = None, **config: Any) -> Trained:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    settings = TrainConfig(**{"batch": 8, "smoke": False, **config})
    return train(DataConfig(path=path.name, target=target), task, model, settings, name=name, base=folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that adds a little, in `runs/base-0001` of the folder that is returned."""
    folder: Path = tmp_path_factory.mktemp("methods")
    fit(folder, sums(300), SMALL, "base", epochs=3, lr=3e-3, batch=16)
    return folder


BASE = {"name": "causal", "base": "runs/base-0001"}


def model_of(base: Path) -> Model:
    return Model.load(base / "runs/base-0001/model")


def network_of(model: Model, moved: bool = False) -> Any:
    """The net of a model; `moved` by a little, so that it is no longer its own reference."""
    net = rebuild(model.folder, model.manifest, model.pipeline)
    if moved:
        torch.manual_seed(5)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return net


def asked(model: Model, rows: pl.DataFrame, **config: Any) -> align.Asked:
    return align.Asked({}, model.pipeline, {"train": rows}, TrainConfig(**{"batch": 64, **config}))


def framed(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return language.examples(pl.DataFrame(rows), language.Config(), training=True)[0]


def whole(batches: Any) -> dict[str, torch.Tensor]:
    """All rows in their order."""
    batches.shuffle = False
    batch = next(iter(batches.epoch(0)))
    return {**batch.inputs, **batch.targets}


def mean_and_gradients(net: Any, value_B2: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    value = value_B2[:, 0].sum() / value_B2[:, 1].sum()
    net.zero_grad()
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def theirs_of(model: Model, net: Any) -> Any:
    """`transformers`' model with the weights of our net."""
    transformers = pytest.importorskip("transformers")
    found = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
    found.load_state_dict(net.stored(), strict=False)
    return found


def assert_same(ours: tuple[float, dict[str, torch.Tensor]], loss: torch.Tensor, theirs: Any) -> None:
    """Equal losses and gradients; the tied last matrix is one parameter on both sides."""
    theirs.zero_grad()
    loss.backward()
    assert ours[0] == pytest.approx(loss.item(), abs=1e-5)
    other = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert set(other) == set(ours[1]) and len(other) > 10
    for name, gradient in ours[1].items():
        assert torch.allclose(gradient, other[name], atol=1e-5, rtol=1e-4), name


def trainer_of(kind: str, model: Model, policy: Any, rows: list[dict[str, Any]], folder: Path, reference: Any = None, **options: Any) -> Any:
    trl, transformers, datasets = pytest.importorskip("trl"), pytest.importorskip("transformers"), pytest.importorskip("datasets")
    common = {"output_dir": str(folder), "per_device_train_batch_size": len(rows), "report_to": [], "bf16": False, "use_cpu": True,
              "gradient_checkpointing": False, "disable_tqdm": True}  # fmt: skip
    arguments = getattr(trl, f"{kind}Config")(**common, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.folder)
    given = {} if reference is None else {"ref_model": reference}
    return getattr(trl, f"{kind}Trainer")(
        model=policy, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, **given
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["sigmoid", "ipo", "hinge"])
def test_dpo_is_trls(base: Path, tmp_path: Path, form: Any) -> None:
    model = model_of(base)
    net, settings = network_of(model, moved=True), DpoConfig(beta=0.3, loss=form)
    made = dpo.arrange(network_of(model), asked(model, framed(PAIRS), dpo=settings))
    ours = mean_and_gradients(net, made.objective(net, whole(made.batches)))
    policy = theirs_of(model, net)
    trainer = trainer_of("DPO", model, policy, PAIRS, tmp_path, theirs_of(model, network_of(model)), beta=0.3, loss_type=[form])
    batch = next(iter(trainer.get_train_dataloader()))
    assert_same(ours, trainer.compute_loss(trainer.model, batch), policy)


@pytest.mark.filterwarnings("ignore")
def test_kto_is_trls(base: Path, tmp_path: Path) -> None:
    model, rows = model_of(base), framed(MARKED)
    net, settings = network_of(model, moved=True), KtoConfig(beta=0.3, desirable=1.3, undesirable=0.7)
    made = kto.arrange(network_of(model), asked(model, rows, kto=settings))
    inputs = whole(made.batches)
    assert not any(torch.equal(a, b) for a, b in zip(inputs["completion.ids"], inputs["other.ids"], strict=False) if a.shape == b.shape)
    # TRL puts the answer of the row before behind a prompt, ours that of a row drawn once: given the same partner they are the same
    order = np.roll(np.arange(len(MARKED)), 1)
    own, other = align.sequences(model.pipeline, rows, 49), align.sequences(model.pipeline, rows, 49, rows["completion"][order])
    fixed = network_of(model)
    inputs["other.ids"], inputs["other.mask"] = (torch.from_numpy(pad(x)[0]) for x in (other.ids, other.mask))
    inputs["completion.reference"] = torch.from_numpy(np.stack([align.reference(fixed, r) for r in (own, other)], 1))
    ours = mean_and_gradients(net, made.objective(net, inputs))
    policy = theirs_of(model, net)
    options = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer = trainer_of("KTO", model, policy, MARKED, tmp_path, theirs_of(model, fixed), **options)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(MARKED))])
    assert_same(ours, trainer.compute_loss(trainer.model, batch), policy)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["grpo", "bnpo", "dr_grpo"])
def test_grpo_is_trls(base: Path, tmp_path: Path, form: Any) -> None:
    model = model_of(base)
    settings = GrpoConfig(group=4, prompts=3, max_tokens=8, beta=0.2, updates=2, loss=form, temperature=0.8, clip=0.1, reward="length:4")
    start, net = network_of(model), network_of(model, moved=True)
    made = grpo.arrange(start, asked(model, framed(sums(9)), grpo=settings))
    batch = made.batches.write(0)
    inputs = {**batch.inputs, **batch.targets}
    assert float(inputs["completion.advantage"].abs().max()) > 0.1
    ours = mean_and_gradients(net, made.objective(net, inputs))
    policy = theirs_of(model, net)
    trainer = _grpo_trainer(model, policy, tmp_path, form)
    tokens, mask = inputs["completion.ids"], inputs["completion.mask"].long()
    first = mask.argmax(1)
    longest = int((mask.sum(1)).max())
    place = first[:, None] + torch.arange(longest)
    real = torch.arange(longest) < mask.sum(1)[:, None]
    cut = lambda x: torch.where(real, x.gather(1, place.clamp(max=x.shape[1] - 1)), torch.zeros((), dtype=x.dtype))  # noqa: E731
    front = int(first.max())
    prompts = torch.zeros(len(tokens), front, dtype=torch.long)
    seen = torch.zeros_like(prompts)
    for row, (ids, n) in enumerate(zip(tokens, first.tolist(), strict=True)):
        prompts[row, front - n :], seen[row, front - n :] = ids[:n], 1
    given = {
        "prompt_ids": prompts, "prompt_mask": seen, "completion_ids": cut(tokens), "completion_mask": real.long(),
        "advantages": inputs["completion.advantage"], "old_per_token_logps": cut(inputs["completion.old"]),
        "ref_per_token_logps": cut(inputs["completion.reference"]),
    }  # fmt: skip
    assert_same(ours, trainer.compute_loss(trainer.model, given), policy)


def _grpo_trainer(model: Model, policy: Any, folder: Path, form: str) -> Any:
    trl, transformers, datasets = pytest.importorskip("trl"), pytest.importorskip("transformers"), pytest.importorskip("datasets")
    arguments = trl.GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=12, report_to=[], bf16=False, use_cpu=True, gradient_checkpointing=False, num_generations=4,
        max_completion_length=8, beta=0.2, loss_type=form, temperature=0.8, epsilon=0.1, num_iterations=2,
    )  # fmt: skip
    found = trl.GRPOTrainer(
        model=policy, args=arguments, reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=datasets.Dataset.from_list([{"prompt": r["prompt"]} for r in sums(12)]),
        processing_class=transformers.AutoTokenizer.from_pretrained(model.folder),
    )  # fmt: skip
    found.current_gradient_accumulation_steps = 1
    return found


@pytest.mark.filterwarnings("ignore")
def test_fine_tuning_is_trls(base: Path, tmp_path: Path) -> None:
    """Answers alone count, the token that ends them included."""
    model, rows = model_of(base), sums(16, 3)
    net = network_of(model, moved=True)
    encoded = align.sequences(model.pipeline, framed(rows), 49)
    tokens, mask = (torch.from_numpy(pad(x)[0]) for x in (encoded.ids, encoded.mask))
    ours = mean_and_gradients(net, net.sums(tokens.long(), mask > 0))
    policy = theirs_of(model, net)
    trainer = trainer_of("SFT", model, policy, rows, tmp_path, completion_only_loss=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert_same(ours, trainer.compute_loss(trainer.model, batch), policy)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [{}, {"dora": True}, {"rslora": True}])
def test_gradients_of_adapters_are_pefts(base: Path, tmp_path: Path, shape: dict[str, bool]) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    from safetensors.torch import save_file

    model = model_of(base)
    net = network_of(model)
    where = _adapters.places(net)
    _adapters.attach(net, _adapters.Shape(rank=4, alpha=6.0, **shape))
    torch.manual_seed(0)
    for layer in _adapters.adapted(net).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    config, tensors = _adapters.to_peft(net, where, str(model.folder))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    plain = transformers.AutoModelForCausalLM.from_pretrained(model.folder)
    policy = peft.PeftModel.from_pretrained(plain, tmp_path, is_trainable=True)
    encoded = align.sequences(model.pipeline, framed(sums(16, 3)), 49)
    tokens, mask = (torch.from_numpy(pad(x)[0]).long() for x in (encoded.ids, encoded.mask))
    value, gradients = mean_and_gradients(net, net.sums(tokens, mask > 0))
    loss = policy(input_ids=tokens, labels=tokens.masked_fill(mask == 0, -100)).loss
    loss.backward()
    assert value == pytest.approx(loss.item(), abs=1e-5)
    other = {n.replace(".default", "").removeprefix(_adapters.PREFIX): p.grad for n, p in policy.named_parameters() if p.grad is not None}
    assert len(other) == len(gradients) == len(_adapters.adapted(net)) * (3 if "dora" in shape else 2)
    for name, layer in _adapters.adapted(net).items():
        assert torch.allclose(gradients[f"{name}.lora_A"], other[f"{name}.lora_A.weight"], atol=1e-5, rtol=1e-4)
        assert torch.allclose(gradients[f"{name}.lora_B"], other[f"{name}.lora_B.weight"], atol=1e-5, rtol=1e-4)
        if layer.magnitude is not None:
            length = next(v for k, v in other.items() if k.startswith(f"{name}.lora_magnitude_vector"))
            assert torch.allclose(gradients[f"{name}.magnitude"], length, atol=1e-5, rtol=1e-4)


# -- rows -------------------------------------------------------------------------------------------------------------------------------

ASKED = [{"role": "user", "content": "two and two is "}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_layouts_of_preferences_are_read_as_one() -> None:
    plain = framed([{"prompt": "a", "chosen": "b", "rejected": "c", "n": 1}])
    assert plain.to_dicts() == [{"prompt": "a", "completion": "b", "rejected": "c", "n": 1}]
    talks = [
        {"prompt": ASKED, "chosen": said("four"), "rejected": said("five")},
        {"chosen": ASKED + said("four"), "rejected": ASKED + said("five")},
        {"prompt": json.dumps(ASKED), "chosen": said("four"), "rejected": said("five")},
        {"messages": ASKED, "chosen": "four", "rejected": "five"},
    ]
    for row in talks:
        found = framed([row]).to_dicts()[0]
        assert json.loads(found["messages"]) == ASKED and (found["completion"], found["rejected"]) == ("four", "five")
    marked = framed([{"prompt": ASKED, "completion": said("four"), "label": True}]).to_dicts()[0]
    assert json.loads(marked["messages"]) == ASKED and marked["completion"] == "four" and marked["label"] is True
    with pytest.raises(DataError, match="cannot be compared") as raised:
        framed([{"chosen": ASKED + said("x"), "rejected": [{"role": "user", "content": "other"}, *said("y")]}])
    assert "row 1" in str(raised.value.details)


def test_labels_are_good_or_bad() -> None:
    assert kto.labels(pl.Series(["true", "bad", "1", "No"])).tolist() == [1, 0, 1, 0]
    assert kto.labels(pl.Series([True, False])).tolist() == [1, 0]
    with pytest.raises(DataError) as raised:
        kto.labels(pl.Series(["yes", "perhaps", None]))
    assert "2 label(s)" in raised.value.message and "row 2 ('perhaps')" in str(raised.value.details)


def test_rewards_say_what_they_say() -> None:
    cases = {
        "exact": [(" four\n", "four", 1), ("fourteen", "four", 0)],
        "number": [("so it is 1,234.50.", "#### 1234.5", 1), ("5 or 6", "6", 1), ("6 or 5", "6", 0), ("none", "6", 0), ("so\n#### 7 euros", "7", 1)],
        "number:marked": [("it is 7", "7", 0), ("#### 7", "7", 1)],
        "pattern:<a>*</a>*": [("<a>x</a> y", "", 1), ("<a>x", "", 0), ("z<a></a>", "", 0)],
        "json": [('{"a": 1}', "", 1), ("{a}", "", 0), ("[" * 100_000, "", 0)],
        "json:a, b": [('{"a": 1, "b": 2}', "", 1), ('{"a": 1}', "", 0), ("[1]", "", 0)],
        "length:4": [("abcd", "", 1), ("ab", "", 0.5), ("", "", 0), ("abcdefghij", "", 0)],
        "length": [("abc", "xyz", 1)],
    }
    for name, rows in cases.items():
        rule = grpo.rewards(name)[0]
        assert [rule(text, truth, "") for text, truth, _ in rows] == [value for *_, value in rows], name
    assert [rule("nine or ten", "", "") for rule in grpo.rewards(["modelyard-probes/says:nine", "length:11"])] == [1 / 3, 1]  # one from outside
    with pytest.raises(UsageError, match="exact, json, length, modelyard-probes/says, number, pattern"):
        grpo.rewards(["exact", "exacting"])
    with pytest.raises(UsageError, match="such as length:80"):
        grpo.rewards("length:x")[0]("a", "b", "c")


def test_advantages_are_of_a_group() -> None:
    rewards = np.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert grpo.advantages(rewards, False).tolist() == [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]]
    deviation = float(torch.tensor(rewards[0]).std())
    assert np.allclose(grpo.advantages(rewards, True)[0], (rewards[0] - 0.5) / (deviation + 1e-4))


# -- whole trainings ----------------------------------------------------------------------------------------------------------------


def test_preferences_move_the_model_and_the_win_rate_is_counted(base: Path) -> None:
    rows = [{"prompt": ASKED, "chosen": said("nine"), "rejected": said(w)} for w in ("four", "two") * 12]
    fit(base, [{"messages": [*r["prompt"], *r["rejected"]]} for r in rows], BASE, "chat", epochs=2, lr=1e-3)
    start = {"name": "causal", "base": "runs/chat-0001"}
    found = fit(base, rows, start, "dpo", epochs=6, lr=2e-3, dpo=DpoConfig(beta=0.5))
    tuned = fit(base, rows, start, "dpo-lora", epochs=6, lr=1e-2, dpo=DpoConfig(loss="hinge"), lora=LoraConfig(rank=4))
    for run in (found, tuned):
        assert run.metrics["test"]["win_rate"]["value"] == 1.0
        model = Model.load(run.model)
        net = rebuild(model.folder, model.manifest, model.pipeline)
        pair = [align.sequences(model.pipeline, framed(rows[:1]), 49, c) for c in (None, pl.Series(["four"]))]
        one, other = (align.reference(net, p)[0] for p in pair)
        assert one > other
    before = Model.load(base / "runs/chat-0001/model")
    from modelyard.tasks._binding import bind

    bound = bind(DataConfig(path="dpo.jsonl"), "text-generation", base, like=before.pipeline, tasks=before.tasks, whole=True)
    assert judge(before, bound, ["test"]).metrics()["test"]["win_rate"]["value"] < 1.0


def test_marked_answers_become_likelier_or_less_so(base: Path) -> None:
    rows = [{"prompt": "two and two is ", "completion": "four" if i % 2 else "nine", "label": bool(i % 2)} for i in range(32)]
    start = model_of(base)
    found = Model.load(fit(base, rows, BASE, "kto", epochs=6, lr=1e-3, kto=KtoConfig(beta=0.5)).model)
    changes = []
    for answer in ("four", "nine"):
        one = framed([{"prompt": "two and two is ", "completion": answer}])
        own, other = (align.reference(network_of(m), align.sequences(m.pipeline, one, 49))[0] for m in (found, start))
        changes.append(own - other)
    assert changes[0] > 0.2 > -0.2 > changes[1]


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)])
def test_rewarded_answers_become_more_frequent(base: Path, lora: LoraConfig | None) -> None:
    rows = [{"prompt": r["prompt"], "completion": ""} for r in sums(30, 5)]
    settings = GrpoConfig(reward="length:9", group=8, prompts=4, max_tokens=12, beta=0.01, updates=1 if lora is None else 2)
    found = fit(base, rows, BASE, f"grpo-{lora is None}", epochs=12, lr=6e-3, grpo=settings, lora=lora)
    lines = [json.loads(line) for line in (found.run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    reward = [e["reward"] for e in lines if e["event"] == "round"]
    assert len(reward) == 12 and np.mean(reward[-4:]) > np.mean(reward[:2]) + 0.1


def test_rounds_use_every_row_before_any_comes_again(base: Path) -> None:
    model = model_of(base)
    made = grpo.arrange(network_of(model), asked(model, framed(sums(7)), grpo=GrpoConfig(group=2, prompts=3, max_tokens=4, reward="length:3")))
    drawn = np.concatenate([made.batches.chosen(e) for e in range(7)])
    assert all(sorted(drawn[i : i + 7]) == list(range(7)) for i in range(0, 21, 7))
    one, again = (made.batches.write(3) for _ in range(2))
    assert torch.equal(one.targets["completion.ids"], again.targets["completion.ids"])


def test_what_a_method_cannot_do_is_said(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="no column rejected"):
        fit(base, sums(20), BASE, "no", dpo=DpoConfig())
    with pytest.raises(Unsupported, match=r"name it as model\.base"):
        fit(base, PAIRS, SMALL, "no", dpo=DpoConfig())
    with pytest.raises(Unsupported, match="set one of them"):
        fit(base, PAIRS, BASE, "no", dpo=DpoConfig(), kto=KtoConfig())
    with pytest.raises(Unsupported, match=r"leave train\.pack out"):
        fit(base, PAIRS, BASE, "no", dpo=DpoConfig(), pack=True)
    with pytest.raises(UsageError, match="expected one of"):
        fit(base, sums(20), BASE, "no", grpo=GrpoConfig(reward="exakt"))
    with pytest.raises(Unsupported, match="causal language models"):
        rows = [{"x": float(i), "y": "ab"[i % 2]} for i in range(40)]
        fit(base, rows, "mlp", "no", task="classification", target="y", dpo=DpoConfig())
    with pytest.raises(ArtefactError, match="hf download some/model"):
        fit(base, PAIRS, {"name": "causal", "base": "some/model"}, "no", dpo=DpoConfig())
