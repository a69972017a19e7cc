"""Kahneman-Tversky optimisation: answers marked good or bad, one by one, become likelier or less so than they are to the reference.

Ethayarajh et al. 2024 (arXiv 2402.01306, eqs. 7 and 8). Where the value function has its middle, z0, is the distance of the net from the
reference, estimated without gradient from answers put behind other rows' prompts: each row is given the answer of another one, drawn once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from modelyard.data.batches import Batches
from modelyard.errors import DataError, Problem, Unsupported
from modelyard.kinds._contract import Array
from modelyard.verbs.train import align
from modelyard.verbs.train.methods import KtoConfig

COLUMNS = ("label",)
LAYOUT = ("prompt (or messages)", "completion", "label")
TRAIN: dict[str, object] = {"epochs": 1, "lr": 5e-6, "batch": 16}


def loss(ratio_B: Tensor, good_B: Tensor, other_B: Tensor, settings: KtoConfig) -> Tensor:
    """(B,) of log π / π_ref of the answers, whether they are good, and the same ratio of answers to other prompts."""
    middle = other_B.mean().clamp_min(0).detach()
    sign_B = 2 * good_B - 1
    weight_B = settings.desirable * good_B + settings.undesirable * (1 - good_B)
    return weight_B * (1 - torch.sigmoid(settings.beta * sign_B * (ratio_B - middle)))


def objective(settings: KtoConfig, output: str) -> align.Objective:
    """Answers with a gradient, the others without one."""

    def call(network: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        known, good_B = inputs[f"{output}.reference"], inputs[f"{output}.good"]
        with torch.no_grad():
            other_B = -network.sums(inputs["other.ids"].long(), inputs["other.mask"] > 0)[:, 0] - known[:, 1]  # type: ignore[operator]
        ratio_B = -network.sums(inputs[f"{output}.ids"].long(), inputs[f"{output}.mask"] > 0)[:, 0] - known[:, 0]  # type: ignore[operator]
        value_B = loss(ratio_B, good_B, other_B, settings)
        return torch.stack([value_B, torch.ones_like(value_B)], 1)

    return call


def labels(column: pl.Series) -> np.ndarray:
    """1 for good and 0 for bad answers; (B,) float32."""
    words = {"true": 1.0, "1": 1.0, "good": 1.0, "yes": 1.0, "false": 0.0, "0": 0.0, "bad": 0.0, "no": 0.0, "1.0": 1.0, "0.0": 0.0}
    found = [words.get(str(v).strip().lower()) for v in column.to_list()]
    if bad := [i for i, v in enumerate(found) if v is None]:
        shown = ", ".join(f"row {i + 1} ({column[i]!r})" for i in bad[:3])
        raise DataError(f"{len(bad)} label(s) are neither good nor bad", [Problem(f"expected true or false: {shown}", "label")])
    return np.array(found, np.float32)


def arrange(network: nn.Module, asked: align.Asked) -> align.Arranged:
    """Answers as batches, each with another row's answer to its prompt, and what the reference says of both."""
    assert asked.config.kto is not None and asked.rows is not None
    if asked.config.accumulate > 1:
        raise Unsupported("train.kto estimates its middle from the whole batch and takes no parts; leave train.accumulate out", "never")
    output, most, notes = asked.output, int(network.config.row) + 1, []  # type: ignore[union-attr,arg-type]

    def batches(frame: pl.DataFrame, teach: bool) -> Batches:
        good_B = labels(frame["label"])
        order = np.random.Generator(np.random.Philox(key=asked.config.seed)).permutation(frame.height)
        partner = np.empty(frame.height, np.int64)
        partner[order] = np.roll(order, 1)  # one cycle: nobody has his own answer
        own = align.sequences(asked.pipeline, frame, most)
        other = align.sequences(asked.pipeline, frame, most, frame[output][partner])
        known = np.stack([align.reference(network, r, asked.device) for r in (own, other)], 1)
        if own.cut:
            notes.append(f"{own.cut} answers were cut to {most} tokens: what is read loses its beginning first")
        inputs: dict[str, Array] = {
            f"{output}.mask": own.mask, "other.ids": other.ids, "other.mask": other.mask, f"{output}.reference": known, f"{output}.good": good_B,
        }  # fmt: skip
        return asked.batches(inputs, own.ids, teach=teach)

    rows, valid = asked.rows["train"], asked.rows.get("valid")
    if rows.height < 2:
        raise DataError("train.kto needs two rows at least")
    checks = batches(valid, False) if valid is not None and valid.height > 1 else None
    train, good = batches(rows, True), float(labels(rows["label"]).mean())
    notes += [] if 0 < good < 1 else ["all labels are alike: there is nothing to hold the answers against"]
    return align.Arranged(objective(asked.config.kto, output), train, checks, notes)
