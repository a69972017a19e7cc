"""Takes whole channels (hidden units) out of a net, those with the smallest weights, and teaches what is left the answers of before.

Li et al. 2017, Pruning Filters for Efficient ConvNets (arXiv:1608.08710). The layers shrink, so files and time do; single weights set to zero would
leave both as they are, since neither ONNX Runtime nor torch skips zeros on a CPU: `pattern: 2:4` (Mishra et al. 2021, arXiv:2104.08378) is refused with
what that comes to here. Families that can be narrowed say so by
`narrow(config, weights, share, …)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from modelyard import registry, settings
from modelyard.errors import Unsupported
from modelyard.runtime.model import Model
from modelyard.settings import Between
from modelyard.verbs.compress import distil

if TYPE_CHECKING:
    import torch

    from modelyard.verbs.compress._work import Work

NET = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """`prune`."""

    SHORTHAND: ClassVar[str] = "share"

    share: Annotated[float, Between(0.01, 0.95)] = 0.5
    """Of the channels (hidden units) of each layer that goes; channels of images to the nearest 16."""
    pattern: Literal["channels", "2:4"] = "channels"
    """2:4: two zeros among every four neighbours, which a CPU multiplies like any other numbers; refused with the times measured here."""
    epochs: Annotated[int, Between(0)] | None = None
    """Of teaching what is left; without it half of the family's. 0: none."""
    temperature: Annotated[float, Between(0.1, 20)] = 2.0
    alpha: Annotated[float, Between(0, 1)] = 0.7
    sensitivity: bool = True
    """Draw what the metric comes to where units of one layer alone are taken out and nothing is taught after."""
    seed: int = 0


SHARES = (0.25, 0.5, 0.75)
LAYERS, ROWS = 8, 256
"""Layers that the picture shows at most (spread over the net), and validation rows it is measured on: 24 predictions of 256 rows."""


def apply(work: Work, folder: Path, config: Config, target: Path) -> Path:
    """The narrowed net's model folder."""
    import dataclasses

    from modelyard.runtime.backends.torch import rebuild

    if config.pattern == "2:4":
        raise Unsupported(two_of_four(), "needs")
    model = Model.load(folder, trust_code=work.trust_code)
    section = model.manifest["model"]
    nets = (section.get("net") or {}).get("nets") if section["backend"] == "torch" else None
    if not nets:
        raise Unsupported("what is pruned are nets of our families as they were trained (not exports, trees or your own module)", "never")
    network = rebuild(folder, model.manifest, model.pipeline)
    weights: dict[str, torch.Tensor] = {k: v.clone() for k, v in network.state_dict().items()}
    spec, families = {**section["net"], "nets": {}}, []
    for name, entry in nets.items():
        module = registry.load("nets", entry["name"])
        if not hasattr(module, "narrow"):
            raise Unsupported(f"the net {entry['name']} cannot be narrowed; distil it into a smaller one", "use")
        encoder = network.encoders[network.names[name]]  # type: ignore[index,union-attr]
        kept, prefix = settings.parse(module.Config, entry["config"], f"model.{name}", []), f"encoders.{network.names[name]}."  # type: ignore[index]
        mine = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        narrowed, changed = module.narrow(kept, mine, config.share, encoder)
        weights |= {prefix + k: v for k, v in changed.items()}
        spec["nets"][name] = {"name": entry["name"], "config": settings.plain(narrowed)}
        advised = module.recipe(model.pipeline.parts()[name], work.bound.splits["train"].height)[1] if hasattr(module, "recipe") else {}
        families.append(dict(advised or getattr(module, "TRAIN", {})))
    if config.sensitivity:
        work.pictures["sensitivity"] = sensitivity(work, model, network)
    own = dataclasses.replace(work.bound, pipeline=model.pipeline)
    epochs = config.epochs if config.epochs is not None else max(1, int(families[0].get("epochs", 10)) // 2)  # type: ignore[call-overload]
    taught = distil.Config(epochs=max(1, epochs), temperature=config.temperature, alpha=config.alpha, seed=config.seed)
    if not epochs:
        return _as_it_is(work, own, spec, weights, config, target)
    # it knows most already: a tenth of a fresh net's learning rate would be timid, the whole of it wipes out what was kept
    gentle: list[dict[str, Any]] = [{**f, "lr": float(f.get("lr", 1e-3)) / 2} for f in families]  # type: ignore[arg-type]
    return distil.learn(work, own, spec, gentle, taught, target, f"prune {config.share:g}", weights)


def sensitivity(work: Work, model: Model, network: torch.nn.Module) -> dict[str, Any]:
    """`{metric, better, limit, layers: [{name, shares, values}]}`: the metric on some validation rows where the units of one layer with the smallest
    weights answer 0 (Li et al. 2017, figure 2b). The network is as it was afterwards."""
    import dataclasses

    from modelyard.runtime.backends.torch import graphs

    rows = work.bound.splits["valid"].head(ROWS)
    fewer = dataclasses.replace(work, bound=dataclasses.replace(work.bound, splits={**work.bound.splits, "valid": rows}))
    layers = silent(network)
    chosen = [layers[i] for i in sorted({round(k * (len(layers) - 1) / max(1, LAYERS - 1)) for k in range(LAYERS)})] if layers else []
    whole, found = fewer.value(model), []
    for name, tensors in chosen:
        worth_C = tensors[0].detach().flatten(1).norm(dim=1)
        kept, values = [t.detach().clone() for t in tensors], [whole]
        for share in SHARES:
            gone = worth_C.topk(int(len(worth_C) * share), largest=False).indices
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.data.copy_(before).index_fill_(0, gone, 0.0)
            values.append(fewer.value(dataclasses.replace(model, graphs=graphs(network))))
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.data.copy_(before)
        found.append({"name": name, "shares": [0.0, *SHARES], "values": values})
    return {"metric": work.metric, "better": work.better, "limit": work.least, "layers": found}


def silent(network: torch.nn.Module) -> list[tuple[str, list[torch.Tensor]]]:
    """(name, what is zero where a unit is taken out) of the matrices and convolutions of the encoders: weight, bias, and those of a batch norm behind."""
    from torch import nn

    named = [(n, m) for n, m in network.named_modules() if n.startswith("encoders.") and not list(m.children())]
    found = []
    for (name, module), (_, after) in zip(named, [*named[1:], ("", nn.Identity())], strict=True):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and len(module.weight) > 3:
            normed = [after] if isinstance(after, nn.BatchNorm1d | nn.BatchNorm2d) and after.num_features == len(module.weight) else []
            owners: list[Any] = [module, *normed]
            found.append((name.removeprefix("encoders."), [t for o in owners for t in (o.weight, o.bias) if t is not None]))
    return found


def two_of_four(width: int = 1024, rows: int = 64) -> str:
    """Why zeros in the pattern 2:4 are not made: milliseconds of `rows` rows through a matrix with and without them, in turns, on this CPU."""
    import torch

    from modelyard.verbs.compress import _measure

    draw = torch.Generator().manual_seed(0)
    whole, x = torch.randn(width, width, generator=draw), torch.randn(rows, width, generator=draw)
    blocks = whole.view(-1, 4)
    smallest = blocks.abs().topk(2, dim=1, largest=False).indices
    zeros = blocks.scatter(1, smallest, 0.0).view(width, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR layout young
        listed = zeros.to_sparse_csr()
    works = [lambda: x @ whole.T, lambda: x @ zeros.T, lambda: listed @ x.T]
    dense, zeroed, sparse = _measure.in_turns(works, 0.2)
    return (
        f"no CPU kernel of ONNX Runtime or torch skips zeros in the pattern 2:4, and the file holds them like other numbers: {rows} rows through a matrix of "
        f"{width} x {width} take {dense:.2f} ms here, {zeroed:.2f} ms with half of it zero, {sparse:.2f} ms as a list of what is left. It needs a GPU of "
        "compute capability 8.0 or later with its sparse kernels; on a CPU prune channels, which shrinks both"
    )


def _as_it_is(work: Work, bound: Any, spec: Mapping[str, Any], weights: Mapping[str, Any], config: Config, target: Path) -> Path:
    """The narrowed net without further teaching."""
    from modelyard.nets import _network
    from modelyard.runtime.backends.torch import graphs
    from modelyard.verbs.train import fit_net
    from modelyard.verbs.train.save import save

    pipeline = bound.pipeline
    network = _network.build(spec, pipeline.parts(), pipeline.cardinalities(), pipeline.heads(), statistics=fit_net.statistics(pipeline))
    network.load_state_dict(dict(weights), strict=True)
    network.eval()
    state = {k: v.detach().contiguous().numpy() for k, v in network.state_dict().items()}
    facts = {"parents": [{"version": work.teacher.version, "relation": f"prune {config.share:g}"}]}
    return save(target, work.teacher.name, bound, fit_net.section(spec, network), graphs(network), state, {}, facts)
