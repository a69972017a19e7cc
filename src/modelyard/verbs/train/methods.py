"""Settings of the methods that change what is trained (`lora`) or what is minimised (`dpo`, `kto`, `grpo`); each method is a file beside this one.

Imports nothing heavy: the schema of `train` is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from modelyard.settings import Between


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """`train.lora`: small matrices beside frozen ones (Hu et al. 2021); a number alone is the rank."""

    SHORTHAND: ClassVar[str] = "rank"

    rank: Annotated[int, Between(1, 4096)] = 16
    """Of the two small matrices of each layer."""
    alpha: Annotated[float, Between(0.001, 1e6)] = 32.0
    """What they say counts alpha / rank times."""
    dropout: Annotated[float, Between(0, 0.9)] = 0.0
    """Of what the small matrices read."""
    rslora: bool = False
    """alpha / √rank instead, so that high ranks learn as fast as low ones (Kalajdzievski 2023)."""
    dora: bool = False
    """Length and direction of each row are learnt apart (Liu et al. 2024)."""
    targets: list[str] | None = None
    """Ends of names of linear layers, e.g. [q_proj, v_proj]; all of the attention and feed-forward layers where it is left out."""
    base: Literal["float32", "int8", "nf4"] = "float32"
    """How the frozen matrices are kept: int8 for each row, or nf4 in blocks of 64 with double quantisation (QLoRA, Dettmers et al. 2023)."""
    merge: bool = True
    """Whether the model folder holds the base's weights with the adapter in them; false keeps the adapter alone, which needs its base to load."""
    adapter: str | None = None
    """Folder of an adapter in PEFT's layout with which training begins; rank, alpha and targets are then its own."""


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """`train.dpo`: learns from pairs `prompt`, `chosen`, `rejected` (Rafailov et al. 2023)."""

    SHORTHAND: ClassVar[str] = "beta"

    beta: Annotated[float, Between(1e-6, 1e3)] = 0.1
    """How strongly the model is held to the reference."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """sigmoid: of the paper; ipo: squared distance from a margin, over mean log-probabilities (Azar et al. 2023); hinge: SLiC (Zhao et al. 2023)."""
    label_smoothing: Annotated[float, Between(0, 0.499)] = 0.0
    """Share of pairs that are thought to be the wrong way round (cDPO, Mitchell 2023); of the sigmoid loss."""

    def __post_init__(self) -> None:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing goes with loss: sigmoid, not with {self.loss}")


@dataclass(frozen=True, kw_only=True)
class KtoConfig:
    """`train.kto`: learns from `prompt`, `completion`, `label` (good or bad), without pairs (Ethayarajh et al. 2024)."""

    SHORTHAND: ClassVar[str] = "beta"

    beta: Annotated[float, Between(1e-6, 1e3)] = 0.1
    """How strongly the model is held to the reference."""
    desirable: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of good answers."""
    undesirable: Annotated[float, Between(0, 1e3)] = 1.0
    """Weight of bad answers."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """`train.grpo`: writes answers, has them judged, and makes the better ones of a group likelier (Shao et al. 2024)."""

    SHORTHAND: ClassVar[str] = "reward"

    reward: str | list[str] = "exact"
    """exact, number, contains:TEXT, json, length:N (built in; see the how-to), `package/name`, or a list whose values are added."""
    group: Annotated[int, Between(2, 1024)] = 8
    """Answers to each prompt."""
    prompts: Annotated[int, Between(1, 65536)] = 8
    """Prompts of a round: an epoch of training is one round."""
    updates: Annotated[int, Between(1, 100)] = 1
    """Passes over the answers of a round."""
    max_tokens: Annotated[int, Between(1, 65536)] = 64
    """Tokens of an answer at most."""
    temperature: Annotated[float, Between(0.01, 10)] = 1.0
    """Of what is written; log-probabilities are of the same temperature."""
    clip: Annotated[float, Between(0.001, 10)] = 0.2
    """Ratios of probabilities beyond 1 ± clip teach nothing more (PPO, Schulman et al. 2017)."""
    beta: Annotated[float, Between(0, 100)] = 0.0
    """Weight of the distance to the reference (k3 estimator, Schulman 2020); 0 needs no reference."""
    scale: bool = True
    """Whether advantages are divided by the deviation within the group."""
    loss: Literal["grpo", "bnpo", "dr_grpo"] = "bnpo"
    """What is averaged: each answer over its tokens (grpo), all tokens alike (bnpo), or sums divided by max_tokens (dr_grpo, Liu et al. 2025)."""
