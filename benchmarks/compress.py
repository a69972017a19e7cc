"""Chains of distil, prune and int8 on MNIST, CIFAR-10, CLINC150 and Adult: bytes and milliseconds of one row against what is lost on the test rows.

    python benchmarks/compress.py [mnist] [cifar] [clinc150] [adult]

The first model is `modelyard train` with its defaults (Adult: 300 boosted trees of 31 leaves), measured as ONNX graphs; then `modelyard compress`
with the stages below, each judged on validation rows and taken or left. Test rows are judged once, at the end. Goals: at least 4 times smaller and
2 times faster for one row with at most 0.5 point lost. Data: `<repository>/../shared/data` or MODELYARD_SHARED.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from _record import SHARED, Clock, hardware, verdict

import modelyard

Job = tuple[dict[str, Any], Any, list[Any]]
"""(data settings, model, stages)."""


def mnist() -> Job:
    """A narrower CNN taught by the default one, pruned."""
    data = {"data.path": str(SHARED / "image_classification" / "mnist"), "data.target": "label", "data.split.valid": 0.1}
    return data, "auto", [{"distil": {"to": {"name": "cnn", "widths": [16, 32, 64]}, "epochs": 20}}, {"prune": {"share": 0.25}}, "quantise"]


def cifar() -> Job:
    """20,000 pictures; three tenths of the channels go, and what is left is taught nearly twice as long."""
    import vision

    train, labels, test, truth = vision.cifar10()
    for name, images, y in (("train", train, labels), ("test", test, truth)):
        pl.DataFrame({"image": images, "label": [f"c{v}" for v in y]}).write_parquet(f"{name}.parquet")
    data = {"data.path": "train.parquet", "data.test": "test.parquet", "data.split.valid": 0.1}
    kinds = {"data.inputs": {"image": "image"}, "data.outputs": {"label": "category"}}
    return data | kinds, "auto", [{"prune": {"share": 0.3, "epochs": 24}}, {"quantise": {"rows": 1024}}]


def clinc150() -> Job:
    """150 intents in scope; the student sums hashed pieces of the text."""
    import text

    words, labels, [(rows, test)] = text.clinc150()
    frame = pl.DataFrame({"text": words, "intent": labels})
    frame[rows].write_parquet("train.parquet")
    frame[test].write_parquet("test.parquet")
    data = {"data.path": "train.parquet", "data.test": "test.parquet", "data.split.valid": 0.1}
    kinds = {"data.inputs": {"text": "text"}, "data.outputs": {"intent": "category"}}
    return data | kinds, "text-cnn", [{"distil": {"to": {"name": "bag", "width": 48}, "inputs": {"text": {"encoding": "bag", "buckets": 12288}}}}, "quantise"]


def adult() -> Job:
    """The student of the trees is an MLP."""
    import _tables

    task = _tables.adult()
    task.frame[: task.test_from].write_parquet("train.parquet")
    task.frame[task.test_from :].write_parquet("test.parquet")
    data = {"data.path": "train.parquet", "data.test": "test.parquet", "data.target": task.target, "data.split.valid": 0.1}
    return data, {"name": "trees", "trees": 300}, [{"distil": {"to": {"name": "mlp", "hidden": [128, 64]}, "epochs": 20}}, "quantise"]


SETS = {"mnist": mnist, "cifar": cifar, "clinc150": clinc150, "adult": adult}


def main() -> None:
    """A block of lines for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], default=list(SETS))
    given = parser.parse_args()
    print(hardware(), flush=True)
    ok = True
    for name in given.sets or list(SETS):
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            ok &= one(name, *SETS[name]())
            os.chdir(Path(__file__).parent)
    sys.exit(0 if ok else 1)


def one(name: str, data: dict[str, Any], model: Any, stages: list[Any]) -> bool:
    """Trains, compresses, compares on the test rows."""
    with Clock() as clock:
        trained = modelyard.train(**data, model=model, name=name, quiet=True)
    print(f"\n{name}: trained, {clock}", flush=True)
    settings = {**data, "compress.stages": stages, "compress.favour": "both"}
    with Clock() as clock:
        found = modelyard.compress(str(trained.run), name=name, quiet=True, **settings)
    print(f"{found}\n  {clock}", flush=True)
    metric = next(iter(trained.metrics["test"]))
    before, after = trained.metrics["test"][metric], found.metrics["test"][metric]
    told = f"{metric} {before['value']:.4f} [{before['low']:.4f}, {before['high']:.4f}] to {after['value']:.4f} [{after['low']:.4f}, {after['high']:.4f}]"
    good = verdict(f"{name}: at most half a point lost on test rows", before["value"] - after["value"] <= 0.005, told)
    good &= verdict(f"{name}: 4 times smaller", found.smaller >= 4, f"{found.smaller:.1f}")
    return verdict(f"{name}: 2 times faster for one row", found.faster >= 2, f"{found.faster:.1f}") and good


if __name__ == "__main__":
    main()
