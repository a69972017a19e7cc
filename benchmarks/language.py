"""Language models from nothing: Tiny Shakespeare within ten minutes, and tokens/s beside `transformers`' Trainer.

    python benchmarks/language.py quality [--budget 5m]
    python benchmarks/language.py speed [--seconds 60] [--threads 2] [--precision auto|float32|bf16] [--dropout 0.1]
    python benchmarks/language.py gpu [--seconds 60]
    python benchmarks/language.py gpu-lora [--seconds 60]

`quality` is `modelyard train` with the project file of examples/shakespeare on the whole of Tiny Shakespeare: nats per character of
the last tenth, which is never trained on, after at most 10 minutes of two cores (5 are asked for), and again by `transformers` from the
saved folder. The limit is 1.65, the goal 1.55.

`speed` trains one GPT-2 of the usual small shape (4 layers, 192 wide, 6 heads, 24 rows of 128 characters) twice, from the same weights,
over the same batches, with the same fused AdamW, clipping and schedule: once in the house's loop, once in Trainer, in turns of ten
steps. Start-up counts on neither side and Trainer gets its batches ready-made. The losses of all turns must agree to 1e-3 without
dropout (where both sides draw their own, the mean of the last five turns to 2 %); the ratio is that of the summed times, its 95 %
interval from resampled turns. The limit is 1.5, the goal 2. Time is that of the CPU with one thread and that of the wall with two.
`auto` is what each side does by itself: ours takes bfloat16 where the processor computes in it, Trainer float32; the other two set both
sides to the same. GPT-2's own dropout is 0.1.

`gpu` is the same for the 124M shape (12 layers, 768 wide, 1,024 tokens, bfloat16, torch.compile on both sides) with the share of the
card's peak that the model's arithmetic takes (MFU: 6 N + 12 L D T operations a token, Chowdhery et al. 2022); goals 1.5 and 50 %.
`gpu-lora` trains rank 16 on a shape of a billion weights (22 layers, 2,048 wide) beside PEFT + Trainer; goals 1.8 times the tokens/s
and 0.6 of the peak memory. Both say why where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _record import SHARED, Clock, hardware, need_data, verdict

TEXT = SHARED / "language_modelling" / "tiny_shakespeare" / "input.txt"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "shakespeare"
LIMIT, GOAL, MINUTES = 1.65, 1.55, 10.0
TURN = 10
EXACT, LIKE = 1e-3, 0.02
SMALL = {"architecture": "gpt2", "width": 192, "layers": 4, "heads": 6, "context": 128}
GPT2 = {"architecture": "gpt2", "width": 768, "layers": 12, "heads": 12, "context": 1024}
BILLION = {"architecture": "llama", "width": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "feedforward": 5632, "context": 2048}
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12, "3090": 71e12, "A10": 125e12, "T4": 65e12}
"""Dense operations a second in bfloat16 (T4: float16), of the makers' data sheets."""


def quality(budget: str) -> bool:
    """Nats per character of the held-out tenth after `modelyard train` of the example."""
    asked = [f"data.path={TEXT}", "data.split.valid=0.1", "data.split.test=0", f"train.budget={budget}"]
    with tempfile.TemporaryDirectory() as folder, Clock() as clock:
        work = shutil.copytree(EXAMPLE, Path(folder) / "shakespeare", ignore=shutil.ignore_patterns("runs"))
        subprocess.run([sys.executable, "-m", "modelyard", "train", *asked], cwd=work, check=True)
        found = json.loads(next(work.glob("runs/*/metrics.json")).read_text(encoding="utf-8"))
        nats = _again(next(work.glob("runs/*/model")))
    for name, entry in found["valid"].items():
        print(f"valid {name} {entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]")
    said = found["valid"]["nats_per_token"]["value"]
    print(f"by transformers from the saved folder, the same blocks: {nats:.4f}")
    print(f"the command and this check took {clock}; goal {GOAL}: {'met' if nats <= GOAL else 'missed'}")
    ok = max(nats, said) <= LIMIT and abs(nats - said) < 1e-3 and clock.wall <= 60 * MINUTES
    return verdict(f"{LIMIT} nats a character within {MINUTES:.0f} minutes", ok, f"{said:.4f} in {clock.wall / 60:.1f} min")


def _again(folder: Path) -> float:
    """Nats per character of the last tenth, by `transformers` from the saved folder alone: an independent count of the same loss."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = TEXT.read_text(encoding="utf-8")
    ids = torch.tensor([*tokenizer(text[int(0.9 * len(text)) :])["input_ids"], tokenizer.eos_token_id])
    total, length = 0.0, net.config.max_position_embeddings
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, length):
            block = ids[start : start + length + 1]
            logits = net(block[None, :-1]).logits[0].float()
            total += float(torch.nn.functional.cross_entropy(logits, block[1:], reduction="sum"))
    return total / (len(ids) - 1)


def characters() -> tuple[np.ndarray, int]:
    """(ids of the first nine tenths, number of ids)."""
    text = TEXT.read_text(encoding="utf-8")
    known = {c: i + 4 for i, c in enumerate(sorted(set(text)))}
    return np.array([known[c] for c in text[: int(0.9 * len(text))]], np.int64), len(known) + 4


class Ours:
    """The house's loop over blocks of a corpus."""

    def __init__(self, ids: np.ndarray, words: int, shape: dict[str, Any], rows: int, steps: int, device: str, **settings: Any) -> None:
        import torch

        from modelyard.data.blocks import Blocks
        from modelyard.kinds._contract import Head, Ragged
        from modelyard.losses import token_nll
        from modelyard.nets import causal
        from modelyard.verbs.train.config import TrainConfig, resolve
        from modelyard.verbs.train.loop import Fit, Term

        torch.manual_seed(0)
        self.network = causal.Network(causal.Config(**shape), {}, [Head("y", "text", "tokens", words)], "x")
        given = TrainConfig(batch=rows, lr=1e-3, weight_decay=0.1, clip=1.0, schedule="constant", warmup=0.1, **settings)
        self.config = resolve(given, causal.TRAIN)[0]
        self.blocks = Blocks(Ragged(ids, np.array([0, len(ids)])), "y", length=shape.get("length", shape["context"]), batch=rows)
        self.start = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.steps, self.made = steps, lambda where: Fit(
            self.network, [Term("y.tokens", "y.ids", token_nll.loss)], self.blocks, None, self.config, device=where
        )
        self.begin(device)

    def begin(self, device: str) -> None:
        """Makes the loop anew: after what learns has changed."""
        self.fit = self.made(device)
        self.fit.steps, self.optimiser = self.steps, self.fit.optimiser
        self.network.train()

    def turn(self, batches: list[Any], clock: Callable[[], float]) -> tuple[float, float]:
        """(seconds, loss of a token) of one step a batch."""
        began, sums = clock(), np.zeros(2)
        for batch in batches:
            sums += self.fit.update(batch, 0)
        return clock() - began, float(sums[0] / sums[1])


class Theirs:
    """Trainer with `transformers`' net of the same shape and weights."""

    def __init__(self, ours: Ours, device: str, precision: str, compiled: bool, dropout: float = 0.0, wrap: Callable[[Any], Any] = lambda net: net) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from modelyard.nets._huggingface import to_huggingface, to_settings
        from modelyard.verbs.train.optimisers import factor, make

        net, words = ours.network, ours.network.lm_head.out_features
        settings = to_settings(net.config, words, {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0})
        settings |= {k: dropout for k in ("resid_pdrop", "embd_pdrop", "attn_pdrop") if net.config.architecture == "gpt2"}
        self.network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), attn_implementation="sdpa")
        weights = to_huggingface(ours.start, net.config)
        self.network.load_state_dict({**weights, "lm_head.weight": ours.start["lm_head.weight"]}, strict=True)
        self.network = wrap(self.network).to(device)
        self.optimiser = make(self.network, ours.config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: factor(ours.config, step, ours.fit.steps))
        self.device, self.precision, self.compiled = device, precision, compiled

    def turn(self, batches: list[Any], clock: Callable[[], float]) -> tuple[float, float]:
        """As of `Ours`."""
        import torch
        from transformers import Trainer, TrainerCallback, TrainingArguments

        ready = [{"input_ids": b.targets["y.ids"][:, :-1].contiguous(), "labels": b.targets["y.ids"][:, 1:].contiguous()} for b in batches]

        class Watch(TrainerCallback):  # type: ignore[misc]
            began = ended = 0.0
            losses: list[float] = []  # noqa: RUF012

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.began = self.began or clock()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                self.ended = clock()

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
                self.losses.extend([logs["loss"]] if "loss" in logs else [])

        class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
            def __iter__(self) -> Iterator[Any]:
                return iter(ready)

        def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
            """Their own cross-entropy of given labels, which here are the next tokens already (they would shift them again)."""
            return torch.nn.functional.cross_entropy(outputs["logits"].float().flatten(0, 1), labels.flatten())

        watch = Watch()
        watch.losses = []
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, max_steps=len(ready), per_device_train_batch_size=1, max_grad_norm=1.0, logging_steps=len(ready),
                save_strategy="no", report_to=[], use_cpu=self.device == "cpu", bf16=self.precision == "bf16", torch_compile=self.compiled,
                remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = Trainer(
                self.network, arguments, train_dataset=Stream(), data_collator=lambda items: items[0], callbacks=[watch],
                optimizers=(self.optimiser, self.schedule), compute_loss_func=loss,
            )  # fmt: skip
            trainer.train()
        return watch.ended - watch.began, float(np.mean(watch.losses))


def beside(ours: Ours, theirs: Theirs, seconds: float, clock: Callable[[], float], exact: bool) -> tuple[float, float, float, float]:
    """(ratio of the times, low, high, our tokens/s) of interleaved turns; ends the program where the losses disagree."""
    times: list[tuple[float, float]] = []
    losses: list[tuple[float, float]] = []
    step = 0
    epoch, rows = 0, ours.blocks.epoch(0)
    per_step = ours.blocks.batch * ours.blocks.length
    while not times or min(sum(t[0] for t in times), sum(t[1] for t in times)) < seconds:
        batches = []
        while len(batches) < TURN:
            if (one := next(rows, None)) is None:
                epoch += 1
                rows = ours.blocks.epoch(epoch)
                continue
            batches.append(one)
        order = (ours, theirs) if step % (2 * TURN) == 0 else (theirs, ours)
        with contextlib.redirect_stdout(io.StringIO()):
            found = {id(side): side.turn(batches, clock) for side in order}
        mine, other = found[id(ours)], found[id(theirs)]
        step += TURN
        rates = [per_step * TURN / side[0] for side in (mine, other)]
        print(f"step {step}: {rates[0]:,.0f} and {rates[1]:,.0f} tokens/s, loss {mine[1]:.4f} and {other[1]:.4f}", flush=True)
        losses.append((mine[1], other[1]))
        apart = abs(mine[1] - other[1]) if exact else abs(float(np.diff(np.mean(losses[-5:], axis=0))[0])) / mine[1]
        if apart > (EXACT if exact else LIKE):
            raise SystemExit(f"the losses differ by {apart:.4f} after {step} steps: not the same training")
        if step > TURN:  # the first turn allocates and compiles
            times.append((mine[0], other[0]))
    table = np.array(times)
    drawn = table[np.random.default_rng(0).integers(0, len(table), (1000, len(table)))].sum(1)
    low, high = np.percentile(drawn[:, 1] / drawn[:, 0], [2.5, 97.5])
    total = table.sum(0)
    rate = per_step * TURN * len(table) / total[0]
    print(f"ours {rate:,.0f} tokens/s, theirs {rate * total[0] / total[1]:,.0f}; {len(table)} turns of {TURN} steps, losses agree")
    return float(total[1] / total[0]), float(low), float(high), float(rate)


def speed(seconds: float, threads: int, precision: str, dropout: float) -> bool:
    """Tokens/s on a CPU."""
    import torch

    torch.set_num_threads(threads)
    ids, words = characters()
    ours = Ours(ids, words, {**SMALL, "dropout": dropout}, 24, 4000, "cpu", precision=precision)
    theirs = Theirs(ours, "cpu", precision, False, dropout)
    sizes = [sum(p.numel() for p in side.network.parameters()) for side in (ours, theirs)]
    own = "bf16" if ours.fit.bf16 else "float32"
    print(f"weights: ours {sizes[0]:,}, theirs {sizes[1]:,}; {threads} thread(s), {precision} (ours: {own}), dropout {dropout}")
    clock = time.process_time if threads == 1 else time.perf_counter
    ratio, low, high, _ = beside(ours, theirs, seconds, clock, dropout == 0)
    print(f"goal 2: {'met' if ratio >= 2 else 'missed'}")
    return verdict(f"1.5 times Trainer's tokens/s ({precision}, dropout {dropout})", ratio >= 1.5, f"{ratio:.2f} [{low:.2f}, {high:.2f}]")


def gpu(seconds: float, device: str = "cuda", shape: dict[str, Any] = GPT2, words: int = 50257, rows: int = 32) -> bool:
    """Tokens/s and MFU of the 124M shape."""
    ours = Ours(zipf(words), words, shape, rows, 4000, device, precision="bf16", compile=True)
    theirs = Theirs(ours, device, "bf16", True)
    ratio, low, high, rate = beside(ours, theirs, seconds, time.perf_counter, exact=False)
    weights = sum(p.numel() for p in ours.network.parameters())
    each = 6 * weights + 12 * shape["layers"] * shape["width"] * shape["context"]
    share = each * rate / peak(device)
    print(f"{weights:,} weights, {each / 1e9:.2f} GFLOP a token")
    met = verdict("1.5 times Trainer's tokens/s, 124M", ratio >= 1.5, f"{ratio:.2f} [{low:.2f}, {high:.2f}]")
    return verdict("MFU of 50 %", share >= 0.5, f"{100 * share:.1f} %") and met


def gpu_lora(seconds: float, device: str = "cuda", shape: dict[str, Any] = BILLION, words: int = 32000, rows: int = 4) -> bool:
    """Tokens/s and peak memory of LoRA with rank 16 on every linear layer of a shape of a billion weights."""
    from peft import LoraConfig, get_peft_model

    from modelyard.nets import _adapters

    shape = {**shape, "tied": False}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    ours = Ours(zipf(words), words, {**shape, "length": min(1024, shape["context"])}, rows, 4000, "cpu", precision="bf16", compile=device != "cpu")
    asked = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets)
    theirs = Theirs(ours, device, "bf16", device != "cpu", wrap=lambda net: get_peft_model(net, asked))
    _adapters.attach(ours.network, _adapters.Shape(rank=16, alpha=32.0, targets=tuple(targets)), seed=0)
    ours.begin(device)
    learn = [sum(p.numel() for p in side.network.parameters() if p.requires_grad) for side in (ours, theirs)]
    print(f"what learns: ours {learn[0]:,}, theirs {learn[1]:,}")
    memory = [_memory(side, other, ours.blocks, device) for side, other in ((ours, theirs), (theirs, ours))]
    ratio, low, high, _ = beside(ours, theirs, seconds, time.perf_counter, exact=False)
    met = verdict("1.8 times PEFT + Trainer's tokens/s, LoRA on a billion", ratio >= 1.8, f"{ratio:.2f} [{low:.2f}, {high:.2f}]")
    held = " and ".join(f"{m / 2**30:.1f}" for m in memory)
    return verdict("0.6 of their memory", memory[0] <= 0.6 * memory[1], f"{memory[0] / max(1, memory[1]):.2f} ({held} GiB)") and met


def _memory(side: Any, other: Any, blocks: Any, device: str) -> int:
    """Peak bytes of a turn, less what the other side holds meanwhile."""
    import torch

    if device == "cpu":
        return 0
    batches = [b for _, b in zip(range(3), blocks.epoch(0), strict=False)]
    side.turn(batches, time.perf_counter)
    torch.cuda.reset_peak_memory_stats()
    side.turn(batches, time.perf_counter)
    tensors = [*other.network.parameters(), *other.network.buffers()]
    tensors += [t for s in other.optimiser.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return int(torch.cuda.max_memory_allocated()) - sum(t.numel() * t.element_size() for t in tensors if t.is_cuda)


def zipf(words: int) -> np.ndarray:
    """Two million ids as frequent as words are: what they are changes no time."""
    return (np.random.default_rng(0).zipf(1.2, 2_000_000) % words).astype(np.int64)


def peak(device: str) -> float:
    """Operations a second in bfloat16 that the card's data sheet gives."""
    import torch

    name = torch.cuda.get_device_name() if device != "cpu" else ""
    return next((rate for key, rate in PEAK.items() if key in name), float("nan"))


def need_gpu() -> None:
    """Ends the program with a sentence where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(f"no GPU: torch {torch.__version__} sees none here, and these figures mean nothing on a CPU; run `speed` instead")
    print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed", "gpu", "gpu-lora"])
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "float32", "bf16"], default="auto")
    parser.add_argument("--dropout", type=float, default=0.0)
    args = parser.parse_args()
    need_data()
    print(hardware())
    if args.what.startswith("gpu"):
        need_gpu()
        return 0 if (gpu if args.what == "gpu" else gpu_lora)(args.seconds) else 1
    if args.what == "quality":
        return 0 if quality(args.budget) else 1
    return 0 if speed(args.seconds, args.threads, args.precision, args.dropout) else 1


if __name__ == "__main__":
    sys.exit(main())
