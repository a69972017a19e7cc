"""A model of random weights that writes, for tests of what stands around it: tokenizer, template and folder as training makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from modelyard.kinds._contract import Head, Part
from modelyard.kinds.text._language import LanguageState
from modelyard.nets import causal
from modelyard.nets._slots import Slots
from modelyard.runtime.answers import Parity, Randomness
from modelyard.runtime.model import Model
from modelyard.runtime.pipeline import Column, Pipeline
from modelyard.runtime.programs import complete

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<pad>", "<unk>", "<|im_end|>", "<|im_start|>"]
TEXTS = ["Hello there, how are you today?", "你好，世界！", '{"name": "value", "list": [1, 2, 3]}', "The cat sat on the mat. " * 3, "Straße größer é 😀"]


def tokenizer(size: int = 400) -> str:
    """Byte-level BPE."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [AddedToken(s, special=True, normalized=False) for s in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    found.train_from_iterator(TEXTS, trainer)
    return str(found.to_str())


def network(vocabulary: int, seed: int = 0, std: float = 0.2, column: str = "prompt", **shape: Any) -> causal.Network:
    """Random weights, large enough that texts differ."""
    torch.manual_seed(seed)
    config = causal.Config(**{"architecture": "qwen3", "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "context": 256, **shape})
    net = causal.Network(config, {"tokens": Part((None,), "int32", vocabulary)}, [Head("answer", "text", "tokens", vocabulary)], column)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=std) if p.ndim > 1 else torch.nn.init.ones_(p)
    net.ends = (2,)  # type: ignore[assignment]
    return net.eval()


class Made(Model):
    """A model that was never stored: it has no examples to replay."""

    @property
    def examples(self) -> list[dict[str, Any]]:
        """One row."""
        text = self.pipeline.inputs[0].kind == "text"
        return [{"prompt": "Hello"} if text else {"messages": [{"role": "user", "content": "Hello"}]}]

    def replay(self, tolerance: float | None = None) -> Parity:
        """Nothing to compare."""
        return Parity(0, 0.0, 0, [])


def writer(seed: int = 0, template: str | None = CHATML, kind: str = "text", **shape: Any) -> Made:
    """The model: it goes on with a `prompt`, or answers `messages`."""
    text = tokenizer()
    size = Tokenizer.from_str(text).get_vocab_size()
    state = LanguageState("bytes", tokenizer=text, settings="{}", template=template or "", ends=[2], size=size)
    column = Column("prompt" if kind == "text" else "messages", kind, "language", state=state)
    output = Column("answer", "text", "language", state=replace(state, target=True))
    params = [{**vars(p), "choices": p.choices} for p in complete.PARAMS]
    manifest = {
        "name": "small", "tasks": {"answer": "text-generation"}, "frame": {"name": "rows", "config": {}}, "files": {}, "pipeline": {},
        "model": {"backend": "torch", "program": "complete", "params": params},
    }  # fmt: skip
    graphs: dict[str, Any] = {"decoder": Slots(network(size, seed, column=column.name, **shape))}
    return Made(Path("made"), manifest, Pipeline([column], [output]), graphs, "torch", f"v{seed}")


def predicted(model: Made, prompt: str, seed: int = 0, **params: Any) -> list[int]:
    """Ids that `complete` writes behind a prompt."""
    from modelyard.runtime.answers import resolve

    encoded, _ = model.encode_rows([{"prompt": prompt}])
    row = model.run(encoded, resolve(complete.PARAMS, params), seed)["answer.ids"][0].tolist()
    return row[: row.index(2)] if 2 in row else row


__all__ = ["CHATML", "Made", "Randomness", "network", "predicted", "tokenizer", "writer"]
