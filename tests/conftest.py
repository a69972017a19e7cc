"""Options of the test run, and servers that several tests ask."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh", action="store_true", help="write docs/matrix.md and tests/matrix_expected.json anew")


@pytest.fixture(scope="session")
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
    (secret := folder / "secret").write_text("s3cret", encoding="utf-8")
    shutil.chown(secret, user) if user else None
    bin_folder = Path(programs).resolve().parent
    asked = {"user": user, "cwd": folder, "check": True, "capture_output": True}
    subprocess.run([bin_folder / "initdb", "-D", "data", "-U", "me", "--pwfile=secret", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8"], **asked)  # type: ignore[call-overload]
    server = subprocess.Popen(
        [bin_folder / "postgres", "-D", "data", "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"], user=user, cwd=folder,
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        url = f"postgresql://me:s3cret@/postgres?host={folder}"
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
