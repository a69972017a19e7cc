"""Real servers on this machine for tests: PostgreSQL over a Unix socket, moto's S3 on loopback. Each skips with its reason where it is absent."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "s3cret"


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of its own, which is asked over a Unix socket and stopped at the end."""
    psycopg = pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    programs = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True)), None)
    if programs is None:
        pytest.skip("needs the programs of PostgreSQL (initdb, postgres)")
    user = "postgres" if hasattr(os, "geteuid") and os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # the path of a socket has 107 characters at most
    if user is not None:
        try:
            shutil.chown(folder, user)
        except LookupError:
            pytest.skip("PostgreSQL does not run as root and there is no user postgres")
    (secret := folder / "secret").write_text(PASSWORD, encoding="utf-8")
    shutil.chown(secret, user) if user else None
    bin_folder = Path(programs).resolve().parent
    asked = {"user": user, "cwd": folder, "check": True, "capture_output": True}
    subprocess.run([bin_folder / "initdb", "-D", "data", "-U", "me", "--pwfile=secret", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8"], **asked)  # type: ignore[call-overload]
    server = subprocess.Popen(
        [bin_folder / "postgres", "-D", "data", "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"], user=user, cwd=folder,
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"postgresql://me:{PASSWORD}@/postgres?host={folder}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(url).close()
                break
            except psycopg.OperationalError:  # it listens before it answers
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
        shutil.rmtree(folder)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(server: subprocess.Popen[bytes], port: int, seconds: float = 60) -> None:
    """Waits until a server listens; fails where it ends before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{server.args} does not listen")


@contextmanager
def s3(bucket: str) -> Iterator[str]:
    """The endpoint of an S3-compatible server with an empty bucket; its keys are set in the environment while it runs."""
    boto3 = pytest.importorskip("boto3", reason="needs the extra 's3'")
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("needs moto[server]")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        listening(server, port)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": PASSWORD, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint,
            }.items():  # fmt: skip
                patch.setenv(name, value)
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
            yield endpoint
    finally:
        server.kill()
        server.wait()
