"""Multi30k English-German from nothing: BLEU after a time budget, and tokens/s beside a `transformers` Seq2SeqTrainer.

    python benchmarks/translation.py quality [--budget 54m]
    python benchmarks/translation.py speed [--seconds 60]

`quality` is `modelyard train` on the 29,000 pairs with a budget, then beam search with 4 beams over test 2016 (flickr), judged by
sacreBLEU on cased, untokenised text; the goal is 30 (35) BLEU within 60 minutes of two cores. `speed` trains the same shape of net
(4 + 4 layers before which norms stand, width 128, hidden 256, 4 heads, 6,000 shared sub-words, tied embeddings, dropout 0.1, label
smoothing 0.1, the same fused AdamW, clipping, schedule) on the same batches of 4,096 tokens, one thread each, in turns of 10 steps;
theirs is MBart, and gets its batches ready-made. Start-up counts on neither side, time is that of the CPU, the loss is that of the
last turn. The goal is 1.3 times their tokens/s at equal loss.
Data: `<repository>/../shared/data/translation/multi30k_en_de` or MODELYARD_SHARED.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _record import SHARED, Clock, hardware, need_data, verdict

from modelyard.data.source import DataConfig

ROOT = SHARED / "translation" / "multi30k_en_de"
NET = {"name": "seq2seq", "width": 128, "layers": 4, "feedforward": 256, "heads": 4, "dropout": 0.2}
TOKENS, TURN = 4096, 10


def data() -> DataConfig:
    """The folder's train, validation and first test files."""
    return DataConfig(path=str(ROOT), inputs={"en": "text"}, outputs={"de": {"kind": "text", "vocabulary": 6000}})


def quality(budget: float) -> bool:
    """BLEU of one run within `budget` seconds of training."""
    from modelyard.runtime.model import Model
    from modelyard.verbs.train import train
    from modelyard.verbs.train.config import TrainConfig

    config = TrainConfig(budget=budget, epochs=60, batch_tokens=TOKENS, lr=4e-3)
    with tempfile.TemporaryDirectory() as folder, Clock() as clock:
        found = train(data(), "translation", NET, config, base=Path(folder))
        size = sum(a.size for a in _weights(Model.load(found.model)))
    for split, scores in found.metrics.items():
        for name, entry in scores.items():
            print(f"{split} {name} {entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}] {entry.get('signature', '')}")
    print(f"{size:,} weights; {clock}")
    bleu = found.metrics["test"]["bleu"]["value"]
    return verdict("30 BLEU within 60 minutes", bleu >= 30 and clock.wall <= 3600, f"{bleu:.2f} in {clock.wall / 60:.1f} min")


def _weights(model: Any) -> Iterator[np.ndarray]:
    from modelyard.store.state import read_arrays

    yield from read_arrays(model.folder / "model.safetensors").values()


class Ours:
    """The house's loop over its own batches."""

    def __init__(self, steps: int) -> None:
        import torch

        from modelyard.data.batches import Batches
        from modelyard.nets import _network
        from modelyard.tasks._binding import bind
        from modelyard.verbs.train import fit_net, learner
        from modelyard.verbs.train.config import TrainConfig, resolve
        from modelyard.verbs.train.loop import Fit

        torch.set_num_threads(1)
        bound = bind(data(), "translation", Path())
        choice = learner.choose({**NET, "dropout": 0.1}, bound.pipeline, bound.tasks, bound.rows["train"])
        learner.set_encodings(choice, bound.pipeline)
        bound.pipeline.fit([bound.splits["train"]])
        encoded = bound.pipeline.encode(bound.splits["train"])
        targets = bound.pipeline.targets(bound.splits["train"], encoded.contexts)
        spec, families = fit_net.describe(choice, bound.pipeline, bound.rows["train"])
        given = TrainConfig(batch_tokens=TOKENS, lr=2e-3, schedule="constant", warmup=0.2, ema=0.0)
        self.config = resolve(given, *families)[0]
        self.network = _network.build(spec, bound.pipeline.parts(), [], bound.pipeline.heads(), seed=0)
        self.batches = Batches(encoded.arrays, targets, batch=1, tokens=TOKENS)
        term = fit_net.term(bound.pipeline, bound.tasks["de"], "de", "de.tokens", self.config, targets)
        self.fit = Fit(self.network, [term], self.batches, None, self.config)
        self.fit.steps = steps
        self.network.train()

    def turn(self, first: int) -> tuple[float, float, int]:
        """(CPU seconds, loss of a token, tokens) of the next steps."""
        began, sums, tokens, steps = time.process_time(), np.zeros(2), 0, self.batches.epoch(0, first)
        for _ in range(TURN):
            batch = next(steps)
            sums += self.fit.update(batch, 0)
            tokens += _tokens(batch)
        return time.process_time() - began, float(sums[0] / sums[1]), tokens


def _tokens(batch: Any) -> int:
    return int(batch.inputs["en.length"].sum() + batch.targets["de.length"].sum())


class Theirs:
    """Seq2SeqTrainer with MBart of the same shape, over our batches made ready."""

    def __init__(self, ours: Ours, steps: int) -> None:
        import torch
        from transformers import MBartConfig, MBartForConditionalGeneration

        from modelyard.verbs.train.optimisers import factor, make

        torch.manual_seed(0)
        shape = {
            "d_model": 128, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256,
            "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": ours.network.target.num_embeddings,  # type: ignore[union-attr]
            "activation_function": "relu", "dropout": 0.1, "activation_dropout": 0.1, "attention_dropout": 0.0, "scale_embedding": True,
            "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 0,
            "init_std": 128**-0.5,
        }  # fmt: skip
        self.network = MBartForConditionalGeneration(MBartConfig(**shape))
        self.batches, config = ours.batches, ours.config
        self.optimiser = make(self.network, config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: factor(config, step, steps))

    def turn(self, first: int) -> tuple[float, float, int]:
        """As of `Ours`."""
        import torch
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

        ready, tokens = [], 0
        for _, batch in zip(range(TURN), self.batches.epoch(0, first), strict=False):
            ids, real = batch.targets["de.ids"], torch.arange(batch.targets["de.ids"].shape[1]) < batch.targets["de.length"][:, None]
            source = batch.inputs["en.tokens"].long()
            seen = (torch.arange(source.shape[1]) < batch.inputs["en.length"][:, None]).long()
            before = torch.nn.functional.pad(ids[:, :-1], (1, 0), value=0)
            ready.append({"input_ids": source, "attention_mask": seen, "decoder_input_ids": before, "labels": ids.masked_fill(~real, -100)})
            tokens += _tokens(batch)

        class Watch(TrainerCallback):  # type: ignore[misc]
            began = ended = 0.0
            losses: list[float] = []  # noqa: RUF012

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.began = self.began or time.process_time()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                self.ended = time.process_time()

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
                self.losses.extend([logs["loss"]] if "loss" in logs else [])

        class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
            def __iter__(self) -> Iterator[Any]:
                return iter(ready)

        watch = Watch()
        watch.losses = []
        with tempfile.TemporaryDirectory() as folder:
            arguments = Seq2SeqTrainingArguments(
                output_dir=folder, max_steps=TURN, per_device_train_batch_size=1, label_smoothing_factor=0.1, max_grad_norm=1.0,
                logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
                dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = Seq2SeqTrainer(
                self.network, arguments, train_dataset=Stream(), data_collator=lambda items: items[0], callbacks=[watch],
                optimizers=(self.optimiser, self.schedule),
            )  # fmt: skip
            trainer.train()
        return watch.ended - watch.began, float(np.mean(watch.losses)), tokens


def speed(seconds: float) -> bool:
    """Interleaved turns until each side computed for `seconds`."""
    import contextlib
    import io

    steps = 400
    ours = Ours(steps)
    theirs = Theirs(ours, steps)
    count = [sum(p.numel() for p in side.network.parameters()) for side in (ours, theirs)]
    print(f"weights: ours {count[0]:,}, theirs {count[1]:,}")
    times, losses, tokens, first = np.zeros(2), np.zeros(2), 0, 0
    ratios = []
    while times.min() < seconds and first + TURN <= ours.batches.steps:
        with contextlib.redirect_stdout(io.StringIO()):
            turns = [side.turn(first) for side in (ours, theirs)]
        if first:  # the first turn allocates and compiles
            times += [t[0] for t in turns]
            tokens += turns[0][2]
            ratios.append(turns[1][0] / turns[0][0])
        losses = np.array([t[1] for t in turns])
        first += TURN
        rates = " and ".join(f"{t[2] / t[0]:,.0f}" for t in turns)
        print(f"step {first}: {rates} tokens/s, loss {losses[0]:.3f} and {losses[1]:.3f}", flush=True)
    ratio = float(times[1] / times[0])
    spread = f"{min(ratios):.2f} … {max(ratios):.2f} by turn"
    print(f"ours {tokens / times[0]:,.0f} tokens/s, theirs {tokens / times[1]:,.0f}; loss after {first} steps {losses[0]:.3f} and {losses[1]:.3f}")
    return verdict("1.3 times Seq2SeqTrainer's tokens/s", ratio >= 1.3 and losses[0] <= losses[1] * 1.02, f"{ratio:.2f} ({spread})")


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("--budget", default="54m")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    need_data()
    print(hardware())
    if args.what == "speed":
        return 0 if speed(args.seconds) else 1
    unit = {"s": 1, "m": 60, "h": 3600}[args.budget[-1]]
    return 0 if quality(float(args.budget[:-1]) * unit) else 1


if __name__ == "__main__":
    sys.exit(main())
