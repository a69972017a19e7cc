"""NaN and infinity never reach the weights: the check of every step, and who is to blame.

Policy: the step is not applied, buffers (running means of batch normalisation) go back to what they were, and training
stops with the examples named. Nothing is skipped silently, so a run that ends has used every example it says it used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from modelyard.data.batches import Batch
from modelyard.errors import NonFiniteError, Problem

NAMED = 8
"""Examples named in the message."""
ALONE = 512
"""Examples of a batch whose gradient is looked at one by one, once everything has stopped anyway."""

Values = Callable[[Batch], Sequence[Tensor]]
"""Loss of each example, `(B,)` for each term, in evaluation mode."""


class Guard:
    """Watches one network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.buffers = list(network.buffers())
        self.before = [b.clone() for b in self.buffers]

    def remember(self) -> None:
        """Copies the buffers: a forward pass in training mode changes them before its loss is known."""
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)

    def forget(self) -> None:
        """Drops the gradients; `Optimizer.zero_grad` takes 20 µs to do so, as much as the check of a small net."""
        for p in self.parameters:
            p.grad = None

    def facts(self, sums: Sequence[Tensor | float]) -> tuple[float, list[float]]:
        """(norm of the gradient, `sums` as numbers): one transfer for all of them."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # a list of norms in one call, their root of squares in float64 on the host: no further kernels
        norms = torch._foreach_norm(gradients) if gradients else ()
        found: list[float] = torch.stack([*norms, *(x for x in sums if isinstance(x, Tensor))]).tolist()
        norm = math.sqrt(sum(x * x for x in found[: len(gradients)]))
        if math.isinf(norm) and all(bool(torch.isfinite(g).all()) for g in gradients):  # squares overflow above 1.8e19
            norm = math.sqrt(sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in gradients))
        told = iter(found[len(gradients) :])
        return norm, [next(told) if isinstance(x, Tensor) else x for x in sums]

    def stop(self, batch: Batch, step: int, norm: float, losses: Sequence[float], values: Values) -> NonFiniteError:
        """The error to raise; buffers and gradients are put back as they were before the step."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.before)
        self.network.zero_grad(set_to_none=True)
        what = "the gradient" if all(map(math.isfinite, losses)) else "the loss"
        where, ids = self.blame(batch, values)
        message = f"{what} became NaN or infinite at step {step}; the weights are as they were before it"
        if len(ids):
            more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
            named = f"{where}training example(s) {', '.join(map(str, ids[:NAMED].tolist()))}{more}"
        else:
            named = "no single training example does it: the step is too large"
        return NonFiniteError(message, [Problem(named, f"step {step}", "Look at them, lower train.lr, or set train.clip to 1.")])

    def blame(self, batch: Batch, values: Values) -> tuple[str, np.ndarray]:
        """(what is wrong with them, numbers of the examples that do it): by their inputs, their loss, their gradient."""
        for name, tensor in {**batch.inputs, **batch.targets}.items():
            if tensor.is_floating_point() and bool((bad_B := ~_finite(tensor)).any()):
                return f"{name} is NaN or infinite in ", batch.index[bad_B.cpu().numpy()]
        was = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                bad_B = torch.stack([~_finite(v) for v in values(batch)]).any(0)
            ids = batch.index[bad_B.cpu().numpy()]
            return ("", ids) if len(ids) else ("", self._gradients(batch, values))
        finally:
            self.network.train(was)
            self.network.zero_grad(set_to_none=True)

    def _gradients(self, batch: Batch, values: Values) -> np.ndarray:
        bad = []
        for i in range(min(len(batch), ALONE)):
            self.network.zero_grad(set_to_none=True)
            sum(v.sum() for v in values(cut(batch, i, i + 1))).backward()  # type: ignore[union-attr]
            if not all(bool(torch.isfinite(p.grad).all()) for p in self.parameters if p.grad is not None):
                bad.append(i)
        return batch.index[bad]

    def weights(self, step: int) -> None:
        """Refuses to let weights be saved that a too large step has driven to infinity."""
        total = [*self.parameters, *(b for b in self.buffers if b.is_floating_point())]
        if total and not bool(torch.isfinite(torch.stack(torch._foreach_norm(total, math.inf))).all()):  # type: ignore[arg-type]
            message = f"the weights became NaN or infinite before step {step}; the last checkpoint is as it was"
            raise NonFiniteError(message, [Problem("the step is too large", f"step {step}", "Lower train.lr or set train.clip to 1.")])


def _finite(tensor: Tensor) -> Tensor:
    """(B,) whether every value of an example is finite."""
    return torch.isfinite(tensor).reshape(len(tensor), -1).all(1)


def cut(batch: Batch, low: int, high: int) -> Batch:
    """Examples `low` to `high` of a batch."""
    part: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = lambda arrays: {k: v[low:high] for k, v in arrays.items()}  # noqa: E731
    weights_B = None if batch.weights_B is None else batch.weights_B[low:high]
    return Batch(part(batch.inputs), part(batch.targets), weights_B, batch.index[low:high])
