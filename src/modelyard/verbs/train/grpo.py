"""Group-relative policy optimisation: the net answers, a rule rewards, and answers better than others to the same prompt become likelier.

Shao et al. 2024 (arXiv 2402.03300, eqs. 3 and 4): the advantage of an answer is its reward against the mean of its group, divided by the
group's deviation unless `scale` is off; ratios of probabilities are clipped as in PPO (Schulman et al. 2017, arXiv 1707.06347); the
distance to the reference is the k3 estimator, times the ratio (DeepSeek-AI 2025, arXiv 2512.02556). What is averaged: Liu et al. 2025
(Dr. GRPO, arXiv 2503.20783).

An epoch is a round: `prompts` prompts are drawn, `group` answers to each written with the weights as they are, and `updates` steps made.
What is drawn is a function of (seed, round, place); a run that is resumed within the updates of a round writes its answers anew.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from modelyard import registry
from modelyard.data.batches import Batch
from modelyard.errors import ConfigError, DataError, Problem, Unsupported, UsageError
from modelyard.kinds._contract import Ragged, pad
from modelyard.nets import _adapters
from modelyard.runtime.answers import Randomness
from modelyard.runtime.engine import SLOTS, Ask, Engine
from modelyard.runtime.programs import complete
from modelyard.verbs.train import align, texts
from modelyard.verbs.train.methods import GrpoConfig

COLUMNS: tuple[str, ...] = ()
LAYOUT = ("prompt (or messages)", "completion")
TRAIN: dict[str, object] = {"epochs": 50, "lr": 1e-6, "schedule": "constant", "warmup": 0.0, "patience": 0}
EPS = 1e-4
"""Added to the deviation of a group's rewards."""

Reward = Callable[[str, str, str], float]
"""(answer, true text, prompt) → how good it is."""


def rewards(given: str | list[str]) -> list[Reward]:
    """The rules by their names, with what stands behind the colon. Raises `UsageError` naming those there are."""
    found: list[Reward] = []
    for one in [given] if isinstance(given, str) else given:
        name, _, argument = one.partition(":")
        known = {*registry.names("rewards"), *registry.plugins("rewards")}
        if name not in known:
            raise registry.unknown("train.grpo.reward", name, sorted(known))
        found.append(_rule(registry.load("rewards", name).reward, argument))
    if not found:
        raise UsageError("train.grpo.reward is an empty list; name one rule at least")
    return found


def _rule(reward: Callable[[str, str, str, str], float], argument: str) -> Reward:
    return lambda text, truth, prompt: float(reward(text, truth, prompt, argument))


def advantages(reward_GN: np.ndarray, scale: bool) -> np.ndarray:
    """(groups, answers) → the same: each reward against its group, by the deviation (of a sample) where `scale`."""
    gap = reward_GN - reward_GN.mean(1, keepdims=True)
    return gap / (reward_GN.std(1, ddof=1, keepdims=True) + EPS) if scale else gap


def loss(
    logp_N: Tensor, old_N: Tensor, reference_N: Tensor | None, row_N: Tensor, advantage_B: Tensor, settings: GrpoConfig
) -> Tensor:
    """(B, 2): value and units of each answer from the log-probabilities of its tokens, now, when written, and by the reference; `row_N`
    tells whose token it is. An answer without tokens counts nothing."""
    rows = len(advantage_B)
    ratio_N, own_N = (logp_N - old_N).exp(), advantage_B[row_N]
    value_N = -torch.minimum(ratio_N * own_N, ratio_N.clamp(1 - settings.clip, 1 + settings.clip) * own_N)
    if reference_N is not None:
        gap_N = reference_N - logp_N
        value_N = value_N + settings.beta * ratio_N * (gap_N.exp() - gap_N - 1)  # the ratio makes its gradient that of the true distance
    total_B = torch.zeros(rows, device=logp_N.device, dtype=logp_N.dtype).index_add(0, row_N, value_N)
    many_B = torch.zeros_like(total_B).index_add(0, row_N, torch.ones_like(value_N))
    if settings.loss == "grpo":
        return torch.stack([total_B / many_B.clamp_min(1), torch.ones_like(total_B)], 1)
    if settings.loss == "dr_grpo":
        return torch.stack([total_B / settings.max_tokens, torch.ones_like(total_B)], 1)
    return torch.stack([total_B, many_B], 1)


def objective(settings: GrpoConfig, output: str) -> align.Objective:
    """Answers of a round, whose log-probabilities when written came with the batch."""

    def call(network: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens, counted = inputs[f"{output}.ids"].long(), inputs[f"{output}.mask"] > 0
        nll_N, row_N = network.each(tokens, counted, settings.temperature)  # type: ignore[operator]
        here = counted[:, 1:]
        reference_N = inputs[f"{output}.reference"][:, 1:][here] if settings.beta else None
        old_N = inputs[f"{output}.old"][:, 1:][here] if f"{output}.old" in inputs else -nll_N.detach()
        return loss(-nll_N, old_N, reference_N, row_N, inputs[f"{output}.advantage"], settings)

    return call


class Rounds:
    """What `data.batches.Batches` is for rows that are there: `updates` batches of answers that are written when an epoch begins."""

    def __init__(self, network: nn.Module, asked: align.Asked, frame: pl.DataFrame, rules: list[Reward]) -> None:
        config = asked.config.grpo
        assert config is not None
        self.network, self.asked, self.frame, self.rules, self.settings, self.seed = network, asked, frame, rules, config, asked.config.seed
        self.prompts, _ = align.encoded(asked.pipeline, frame)
        self.most = int(network.config.row) + 1  # type: ignore[union-attr,arg-type]
        self.many = min(config.prompts, frame.height)
        self.batch, self.steps, self.rows = self.many * config.group, config.updates, frame.height
        self.reference: nn.Module | None = None
        """The net as it began; None where it is the net without its adapters."""

    def head(self, rows: int) -> Rounds:
        """A round of one prompt, two answers and few tokens: for the trial before training."""
        small = replace(self.settings, group=2, prompts=1, updates=1, max_tokens=min(4, self.settings.max_tokens))
        asked = replace(self.asked, config=replace(self.asked.config, grpo=small), events=lambda event: None)
        found = Rounds(self.network, asked, self.frame.head(1), self.rules)
        found.reference = self.reference
        return found

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The steps of a round from `start` on."""
        made = self.write(epoch)
        for _ in range(start, self.steps):
            yield made

    def chosen(self, epoch: int) -> np.ndarray:
        """Rows of a round: each row once before any comes again."""
        whole, place = divmod(epoch * self.many, self.rows)
        order = np.concatenate([self._order(whole), self._order(whole + 1)])
        return order[place : place + self.many]

    def _order(self, turn: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, turn])).permutation(self.rows)

    def write(self, epoch: int) -> Batch:
        """The answers of a round with their advantages, and where it is needed what their tokens' log-probabilities are now."""
        config, output = self.settings, self.asked.output
        rows = np.repeat(self.chosen(epoch), config.group)
        was = self.network.training
        ids, finished = self._answers(rows, epoch)
        self.network.train(was)
        reward_B, each = self._judge(rows, ids)
        reward_GN = reward_B.reshape(-1, config.group)
        joined = texts.joined(self.prompts.take(rows), ids, None, self.most)
        tokens, mask = (torch.from_numpy(pad(x)[0]) for x in (joined.ids, joined.mask))
        advantage_B = advantages(reward_GN, config.scale).reshape(-1).astype(np.float32)
        inputs = {f"{output}.mask": mask, f"{output}.advantage": torch.from_numpy(advantage_B)}
        if config.updates > 1:
            inputs[f"{output}.old"] = self._likely(self.network, tokens, mask)
        if config.beta:
            with _adapters.off(self.network) if self.reference is None else contextlib.nullcontext():
                inputs[f"{output}.reference"] = self._likely(self.network if self.reference is None else self.reference, tokens, mask)
        told = {"reward": float(reward_B.mean()), "deviation": float(reward_GN.std(1).mean()), "finished": finished}
        self.asked.events({"event": "round", "round": epoch + 1, **told, "tokens": float(ids.lengths_B.mean()), "rewards": each})
        return Batch(inputs, {f"{output}.ids": tokens.long()}, None, rows)

    def _answers(self, rows: np.ndarray, epoch: int) -> tuple[Ragged, float]:
        """(tokens of the answers with the one that ended them, share of those that came to an end)."""
        config, decoder = self.settings, self.network.decoder(self.asked.device)  # type: ignore[operator]
        most = min(config.max_tokens, decoder.context - 1)
        given = self.prompts.take(rows)
        prompts = [complete.begin(given.values[a:b], decoder, most) for a, b in pairwise(given.offsets.tolist())]
        random = Randomness((self.seed * 1_000_003 + epoch) % 2**63)
        engine = Engine(decoder, slots=min(SLOTS, len(prompts)), length=max(map(len, prompts)) + most)
        asks = [Ask(prompt=p, max_tokens=most, temperature=config.temperature, generator=random.generator(i)) for i, p in enumerate(prompts)]
        written = [engine.submit(ask) for ask in asks]
        engine.run()
        ids = [np.array([*t.ids, *([] if t.end is None else [t.end])], np.int64) for t in written]
        offsets = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
        return Ragged(np.concatenate(ids), offsets), sum(t.end is not None for t in written) / len(written)

    def _judge(self, rows: np.ndarray, ids: Ragged) -> tuple[np.ndarray, list[float]]:
        """(sum of the rules' rewards (B,), the mean of each rule)."""
        output, column = self.asked.pipeline.outputs[0], self.asked.pipeline.inputs[0].name
        answers = output.coder.decode({"ids": pad(ids, fill=output.state.ends[0])[0]}, output.state, {})[""].to_list()
        truths, prompts = (self.frame[c].cast(pl.String).fill_null("").to_list() for c in (output.name, column))
        made = np.array([[rule(t, truths[r], prompts[r]) for rule in self.rules] for t, r in zip(answers, rows.tolist(), strict=True)])
        if not np.isfinite(made).all():
            where = int(np.flatnonzero(~np.isfinite(made).all(1))[0])
            raise DataError("a reward is no finite number", [Problem(f"for the answer {answers[where][:80]!r}", f"training row {rows[where] + 1}")])
        return made.sum(1), made.mean(0).tolist()

    @torch.no_grad()
    def _likely(self, network: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L) log-probability of each counted token, 0 elsewhere."""
        was, out = network.training, torch.zeros(tokens.shape)
        network.eval()
        many = max(1, align.SCORED // tokens.shape[1])
        for low in range(0, len(tokens), many):
            counted = mask[low : low + many] > 0
            some = tokens[low : low + many].long().to(self.asked.device), counted.to(self.asked.device)
            nll_N, _ = network.each(*some, self.settings.temperature)  # type: ignore[operator]
            part = torch.zeros(counted.shape)
            part[:, 1:][counted[:, 1:]] = -nll_N.float().cpu()
            out[low : low + many] = part
        network.train(was)
        return out


def arrange(network: nn.Module, asked: align.Asked) -> align.Arranged:
    """Rounds over the training rows. Validation rows judge afterwards, by the task's own metrics: a round's loss says nothing of rewards."""
    config, rows = asked.config.grpo, asked.rows
    assert config is not None and rows is not None
    rules, output = rewards(config.reward), asked.pipeline.outputs[0].name
    room = min(int(network.config.row) + 1, int(network.config.context)) - 1  # type: ignore[union-attr,arg-type]
    if config.max_tokens > room:
        raise ConfigError(f"train.grpo.max_tokens is {config.max_tokens}, and a row of this net has {room} tokens at most; lower it")
    rounds = Rounds(network, asked, rows["train"], rules)
    if int(rounds.prompts.lengths_B.max(initial=0)) <= 1:
        detail = Problem("holds no prompts", asked.pipeline.inputs[0].name, f"give rows prompt (or messages) and {output}, the true answer or an empty text")
        raise DataError("train.grpo answers prompts, and the data has none", [detail])
    if config.beta and (asked.config.lora is None or asked.config.lora.adapter is not None):
        rounds.reference = copy.deepcopy(network).to(asked.device).eval()
    if asked.weights is not None:
        raise Unsupported("train.grpo draws its rows in turn and weighs none; leave data.weight out", "never")
    return align.Arranged(objective(config, output), rounds)
