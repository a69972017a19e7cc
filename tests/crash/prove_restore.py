"""The restore drill for `make prove`: a backup to an S3-compatible server on loopback is killed again and again, then restored on an empty host.

    python tests/crash/prove_restore.py                        # 100 kills; needs boto3 and moto[server]
    python tests/crash/prove_restore.py --kills 10 --seed 3

The server is a process of its own. A child that backs up is killed with SIGKILL at a random moment of the time that a whole backup takes, after which
whatever the newest index names must be there with its hash. Every fifth kill a new version is registered and the champion moves, so that there is always
something left to copy. At the end one backup runs through, and a process that has seen nothing but the bucket restores it: every file and every row of
versions, aliases and history must be the same. The uploads that kills left half done must have been ended (`Place.tidy`; moto dates every upload 2010, so that
each backup that runs through ends all of them).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.store import folder as store
from modelyard.store.records import NAMES as TABLES
from modelyard.store.registry import Registry

BUCKET = "drill"
LARGE = 12 * 2**20
"""Bytes of a version's weights: above boto3's 8 MiB, so that uploads go in parts and a kill falls between two of them."""


def serve(port: int) -> subprocess.Popen[bytes]:
    """moto's server, once it answers."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.1)
    raise SystemExit("moto's server did not start: pip install 'moto[server]' boto3")


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def model(place: Path, seed: int) -> Path:
    """A model folder of random bytes; a backup copies folders and loads none."""
    draw = np.random.default_rng(seed)

    def fill(folder: Path) -> None:
        (folder / "model.bin").write_bytes(draw.bytes(LARGE))
        (folder / "parts").mkdir()
        for i in range(3):
            (folder / "parts" / f"{i}.bin").write_bytes(draw.bytes(20_000 * i))

    return store.write(place / f"m{seed}", {"name": "drilled", "model": {"backend": "numpy"}, "seed": seed}, fill)


def do(*words: str, registry: Path) -> subprocess.Popen[bytes]:
    """A `modelyard models` process on a registry."""
    environment = os.environ | {"MODELYARD_REGISTRY": str(registry)}
    command = [sys.executable, "-m", "modelyard", "models", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for a process that must succeed."""
    output, _ = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"{process.args}: {process.returncode}\n{output.decode('utf-8', 'replace')}")


def named_is_there(client: Any, indexes: bool, seen: dict[str, str]) -> int:
    """Objects named by the newest index, each of which is there with its hash; 0 where there is no index.

    `seen` holds the ETag of what was hashed before: an object is fetched once for each content that it has had.
    """
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="r/backups/")
    keys = sorted(o["Key"] for page in pages for o in page.get("Contents", []))
    if not keys:
        assert not indexes
        return 0
    index = json.loads(client.get_object(Bucket=BUCKET, Key=keys[-1])["Body"].read())
    wanted = {digest for files in index["files"].values() for digest in files.values()}
    for digest in wanted:
        etag = client.head_object(Bucket=BUCKET, Key=f"r/objects/{digest}")["ETag"]
        if seen.get(digest) == etag:
            continue
        body = client.get_object(Bucket=BUCKET, Key=f"r/objects/{digest}")["Body"].read()
        assert hashlib.sha256(body).hexdigest() == digest, f"{keys[-1]} names {digest}, which is something else"
        seen[digest] = etag
    return len(wanted)


def content(registry: Path) -> dict[str, str]:
    """SHA-256 of every file of every version."""
    root = registry / "models"
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


def rows(registry: Path) -> dict[str, list[Any]]:
    """Every row of the registry's tables."""
    connection = sqlite3.connect(registry / "registry.sqlite")
    try:
        return {t: connection.execute(f"select * from {t} order by 1, 2").fetchall() for t in TABLES}
    finally:
        connection.close()


def drill(kills: int, seed: int, place: Path) -> None:
    """All of it; raises `AssertionError` where a byte is lost."""
    import boto3
    from botocore.config import Config

    draw, here = random.Random(seed), place / "registry"
    # moto answers with a checksum of parts that boto3 takes for the whole file's; SHA-256 is checked below
    hashed_here = Config(response_checksum_validation="when_required")
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], config=hashed_here)
    client.create_bucket(Bucket=BUCKET)
    registry, target = Registry(here), f"out=s3://{BUCKET}/r"
    registry.point(registry.register(model(place, seed)), "champion", "drill")
    start = time.monotonic()
    finish(do("backup", f"out=s3://{BUCKET}/rehearsal", registry=here))
    whole = time.monotonic() - start
    killed = unfinished = checked = through = ended = 0
    seen: dict[str, str] = {}
    while killed < kills:
        if killed % 5 == 0:
            fresh = registry.register(model(place, seed + 1 + killed + 1000 * through))
            registry.point(fresh, "champion", "drill")
        process = do("backup", target, registry=here)
        time.sleep(draw.uniform(0.3, 1.0) * whole)  # before that Python still imports
        parts = len(client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed, unfinished = killed + 1, unfinished + (parts > 0)
        else:
            through += 1
        process.communicate()
        if killed % 5 == 4:  # so that later kills fall beside an index that must stay good
            ended += len(client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))
            start = time.monotonic()
            finish(do("backup", target, registry=here))
            whole, through = time.monotonic() - start, through + 1  # a larger registry takes longer to hash
        checked += named_is_there(client, through > 0, seen)
    ended += len(client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))
    finish(do("backup", target, registry=here))
    away = place / "elsewhere"
    finish(do("restore", f"s3://{BUCKET}/r", f"path={away}", registry=place / "nothing"))
    assert content(away) == content(here) and rows(away) == rows(here) and not Registry(away).verify()
    assert not client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
    size = sum(p.stat().st_size for p in (away / "models").rglob("*") if p.is_file())
    print(f"{killed} kills ({unfinished} within an upload in parts), {through} ran through, {checked} objects of indexes checked")
    print(f"{ended} abandoned uploads ended; restored")
    print(f"{len(content(away))} files of {len(registry.versions())} versions, {size / 2**20:.0f} MiB, and all rows: the same")


def main() -> None:
    """Reads the arguments, starts the server and runs the drill."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    port = free_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "drill", "AWS_SECRET_ACCESS_KEY": "drill", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    server = serve(port)
    try:
        with tempfile.TemporaryDirectory() as place:
            drill(args.kills, args.seed, Path(place))
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    main()
