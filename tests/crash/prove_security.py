"""The proof of what is loaded for `make prove`: models that were tampered with, and files made to run code or to read elsewhere.

    python tests/crash/prove_security.py                       # 5,000 tamperings, 500 hostile files
    python tests/crash/prove_security.py --tamperings 200 --hostile 50 --seed 3

A signed model is changed at random (bytes of any file, files added, removed and swapped, the manifest mended to fit, signatures cut, copied from
another model or made with another key): every copy must be refused when it is loaded, and every tenth when a server is told to swap to it. Hostile files
are model folders whose manifest and hashes are right and whose content is made to harm: an audit hook watches every open, import of code, process and socket.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import modelyard
from modelyard.errors import ModelyardError
from modelyard.runtime.model import Model
from modelyard.store import signature
from modelyard.store.atomic import sha256


def train(place: Path) -> tuple[Path, Path]:
    """(a net's model folder, its ONNX export)."""
    os.chdir(place)
    draw = np.random.default_rng(0)
    frame = pl.DataFrame({"a": draw.normal(size=200), "b": draw.choice(["x", "y"], 200), "t": ["good day", "bad night"] * 100})
    frame.with_columns(y=pl.Series(["yes" if v > 0 else "no" for v in frame["a"]])).write_parquet("rows.parquet")
    data = {"data.path": "rows.parquet", "data.inputs": {"a": "number", "b": "category", "t": "text"}, "data.outputs": {"y": "category"}}
    result = modelyard.train(**data, model={"table": "mlp", "t": "bag"}, quiet=True, **{"train.epochs": 1})
    return Path(result.model).resolve(), Path(modelyard.export(str(result.run)).folder).resolve()


def mend(folder: Path) -> None:
    """Lets the manifest say what the files are, as whoever may write the folder can."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name in list(manifest["files"]):
        path = folder / name
        if path.is_file():
            manifest["files"][name] = {"sha256": sha256(path), "size": path.stat().st_size}
        else:
            del manifest["files"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8")


def tamper(folder: Path, draw: random.Random) -> str:
    """One change of a signed folder; what it was."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("README.md",)]
    how = draw.randrange(8)
    if how in (0, 1):
        path = draw.choice(files)
        raw = bytearray(path.read_bytes())
        for _ in range(draw.choice((1, 1, 4))):
            at = draw.randrange(len(raw))
            raw[at] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
        if how == 1 and path.name not in ("manifest.json", "signature.json"):
            mend(folder)
        return f"bits of {path.name}{', mended' if how else ''}"
    manifest = folder / "manifest.json"
    if how == 2:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        found[draw.choice(["name", "created", "seed", "note"])] = draw.random()
        manifest.write_text(json.dumps(found), encoding="utf-8")
        return "a key of the manifest"
    if how == 3:
        (folder / "signature.json").unlink()
        return "no signature"
    body = json.loads((folder / "signature.json").read_text(encoding="utf-8"))
    entry = body["signatures"][0]
    raw = bytearray(base64.b64decode(entry["signature"]))
    if how == 4:
        raw[draw.randrange(64)] ^= 1 << draw.randrange(8)
    elif how == 5:
        del raw[draw.randrange(64) :]
    elif how == 6:
        raw = bytearray(draw.randbytes(64))
    else:
        entry["key"] = draw.randbytes(8).hex()
    entry["signature"] = base64.b64encode(bytes(raw)).decode("ascii")
    (folder / "signature.json").write_text(json.dumps(body), encoding="utf-8")
    return f"signature, way {how}"


def tamperings(model: Path, place: Path, count: int, draw: random.Random) -> list[str]:
    """Changes that a model with a trusted signature survived."""
    signature.keygen(place / "key.pem")
    signed = place / "signed"
    shutil.copytree(model, signed)
    signature.sign(signed, place / "key.pem")
    os.environ[signature.TRUST] = str(place / "key.pub")
    survived, swaps = [], 0
    try:
        with modelyard.serve(str(signed)) as server:
            for i in range(count):
                copy = place / "copy"
                shutil.copytree(signed, copy)
                what = tamper(copy, draw)
                for way in ("load", "swap") if i % 10 == 0 else ("load",):
                    swaps += way == "swap"
                    try:
                        Model.load(copy) if way == "load" else server.swap(copy)
                        survived.append(f"tampering {i} ({what}) was taken by {way}")
                    except ModelyardError:
                        pass
                shutil.rmtree(copy)
            Model.load(signed)
    finally:
        del os.environ[signature.TRUST]
    print(f"tamperings: {count} loads and {swaps} swaps, {len(survived)} taken")
    return survived


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def hostile(folder: Path, place: Path, draw: random.Random) -> str:
    """Makes a model folder harmful and its manifest fit; what was done."""
    mark, secret = place / "mark", place / "secret.txt"
    manifest_path = folder / "manifest.json"
    names = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".safetensors", ".onnx", ".json") and p.name != "manifest.json"]
    path = draw.choice(names)
    how = draw.randrange(12)
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    if how == 0:
        path.write_bytes(pickle.dumps(Bomb(mark)))
        done = f"a pickle as {path.name}"
    elif how == 1:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(mark)))
            archive.writestr("archive/version", "3")
        done = f"a torch file with a pickle as {path.name}"
    elif how == 2:
        path.unlink()
        path.symlink_to(secret)
        done = f"{path.name} is a link"
    elif how == 3:
        name = draw.choice(["../secret.txt", str(secret), "a/../../secret.txt", "./../secret.txt"])
        manifest["files"][name] = {"sha256": sha256(secret), "size": secret.stat().st_size}
        manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
        return f"the manifest names {name}"
    elif how == 4:
        (folder / "sub").symlink_to(place)
        manifest["files"]["sub/secret.txt"] = {"sha256": sha256(secret), "size": secret.stat().st_size}
        manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
        return "a linked folder"
    elif how == 5:
        path.write_bytes(struct.pack("<Q", draw.choice([2**63, 2**40, 2**32, 0])) + b"{" * 100)
        done = f"a head of impossible size in {path.name}"
    elif how == 6:
        path.write_text("[" * draw.choice([1000, 100_000, 2_000_000]), encoding="utf-8")
        done = f"deep nesting in {path.name}"
    elif how == 7:
        value = {"exec": f"__import__('os').system('touch {mark}')", "py/reduce": [{"py/type": "os.system"}, f"touch {mark}"], "!!python/object": "x"}
        path.write_text(json.dumps(value), encoding="utf-8")
        done = f"code as text in {path.name}"
    elif how == 8:
        key = draw.choice(["backend", "program"])
        manifest["model"][key] = draw.choice(["os", "../../evil", "modelyard.cli", f"{place}/evil", "..nets.mlp", "__main__", "evil"])
        manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
        done = f"model.{key} is {manifest['model'][key]}"
    elif how == 9:
        name = draw.choice(["evil.py:Net", f"{place}/evil.py:Net", "os:system"])
        manifest["model"] |= {"nets": {"table": {"name": name, "config": {}}}, "module": f"{place}/evil.py"}
        manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
        done = "a module of its own"
    elif how == 10:
        done = external(folder, secret, draw)
    else:
        raw = bytearray(path.read_bytes())
        for _ in range(draw.randrange(1, 200)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        path.write_bytes(raw)
        done = f"noise in {path.name}"
    mend(folder)
    return done


def external(folder: Path, secret: Path, draw: random.Random) -> str:
    """An ONNX graph whose weights are said to lie in another file."""
    import onnx

    files = list(folder.rglob("*.onnx"))
    if not files:
        return "nothing"
    graph = onnx.load(str(files[0]))
    where = draw.choice(["../secret.txt", str(secret), "../../secret.txt", "sub/../../secret.txt"])
    for tensor in graph.graph.initializer:
        if len(tensor.raw_data) >= 4 or tensor.float_data:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            del tensor.external_data[:]
            for key, value in (("location", where), ("offset", "0"), ("length", "16")):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            break
    files[0].write_bytes(graph.SerializeToString())
    return f"external data at {where}"


def attacks(folders: list[Path], place: Path, count: int, draw: random.Random) -> list[str]:
    """Hostile folders that ran code or read elsewhere."""
    (place / "secret.txt").write_text("secret " * 100, encoding="utf-8")
    (place / "evil.py").write_text(f"import pathlib; pathlib.Path({str(place / 'mark')!r}).touch()\nclass Net: pass\n", encoding="utf-8")
    inside = place / "hostile"
    events: list[str] = []
    watching = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(str(place)) and not path.startswith(str(inside)):
                events.append(f"open {path}")
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.fork", "socket.connect", "pickle.find_class", "shutil.rmtree"):
            events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)
    faults, loaded = [], 0
    for i in range(count):
        shutil.rmtree(inside, ignore_errors=True)
        shutil.copytree(folders[i % len(folders)], inside)
        done = hostile(inside, place, draw)
        watching = True
        try:
            Model.load(inside).predict([{"a": 1.0, "b": "x", "t": "good"}])
            loaded += 1
        except ModelyardError:
            pass
        except Exception as error:
            faults.append(f"hostile {i} ({done}): {error!r}"[:300])
        finally:
            watching = False
        if (place / "mark").exists():
            faults.append(f"hostile {i} ({done}): its code ran")
            (place / "mark").unlink()
        faults += [f"hostile {i} ({done}): {event}" for event in events]
        events.clear()
    print(f"hostile files: {count}, {loaded} loaded and answered (noise that changed nothing, keys that nobody reads), {len(faults)} faults")
    return faults


def main() -> None:
    """Runs both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tamperings", type=int, default=5000)
    parser.add_argument("--hostile", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()
        model, export = train(place)
        faults = attacks([model, export], place, given.hostile, random.Random(given.seed))
        faults += tamperings(export, place, given.tamperings, random.Random(given.seed))
    for fault in faults[:50]:
        print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
