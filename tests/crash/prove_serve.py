"""The proof of the server for `make prove`: nothing lost, nobody harmed, under signals, swaps, kills, poison, overload and slow callers.

    python tests/crash/prove_serve.py                                 # all parts whole
    python tests/crash/prove_serve.py --parts sigterm swaps --share 0.1

Servers are processes of the command line (or of `serve` with a pipe that tells them to swap), callers an asyncio program in this one. Every
request carries a number of its own, every answer is compared with what the version that it names must say. Parts and what they must show:

- sigterm: 200 servers are told to stop under 64 callers. A request that was accepted (the server logged its answer) was answered, once.
- swaps: 50 hot swaps in at least 20,000 requests; every one is answered, by the version that it names.
- kills: 100 model processes killed under 32 callers; every request is answered.
- poison: 10,000 requests of which 1 % carry what cannot be used, in the middle of good rows: all good rows get their answers.
- overload: callers ask for four times what the server can do at most; it answers at least 90 % of that, the others get 429 or 503 with Retry-After.
- slow: 1,300 connections that send a byte now and then or nothing; the p99 of 16 honest callers is at most twice what it was without.
- memory: at most 1 MiB more in 100,000 requests.

Prints a line a part, each fault, and exits 1 if there was any.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import modelyard

SLOPES = {"one": 1.0, "two": 2.0}
CLOSE = 0.01
"""Of an answer to the line that was learnt (with a little shrinkage); the two lines lie a slope of 1 apart."""


@dataclass
class Told:
    """One answer, or what came instead of one (`status` 0: the connection ended)."""

    x: float
    status: int
    version: str
    body: bytes
    seconds: float
    headers: dict[bytes, bytes] = field(default_factory=dict)


class Caller(asyncio.Protocol):
    """A connection that asks, waits for the answer and asks again; connects anew where the server closed it."""

    def __init__(self, load: Load) -> None:
        self.load, self.raw, self.x = load, b"", None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        if self.load.over.is_set():
            self.transport.close()
            return
        self.x, request = self.load.make()
        self.began = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.raw += data
        head, found, rest = self.raw.partition(b"\r\n\r\n")
        if not found:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if len(rest) < int(headers.get(b"content-length", b"0")):
            return
        version = headers.get(b"modelyard-version", b"").decode("ascii")
        self._tell(Told(self.x, int(head[9:12]), version, rest, time.perf_counter() - self.began, headers))
        self.raw = b""
        if headers.get(b"connection") == b"close":
            self.transport.close()
        elif self.load.pause:
            asyncio.get_running_loop().call_later(self.load.pause(), self._ask)
        else:
            self._ask()

    def _tell(self, told: Told) -> None:
        self.x = None
        self.load.told.append(told) if self.load.keep else self.load.count(told)

    def connection_lost(self, error: Exception | None) -> None:
        if self.x is not None:
            self._tell(Told(self.x, 0, "", self.raw, time.perf_counter() - self.began))
        self.load.lost(self)


class Load:
    """Callers of one server."""

    def __init__(self, port: int, clients: int, make: Callable[[], tuple[float, bytes]], *, keep: bool = True, pause: Any = None) -> None:
        self.port, self.clients, self.make, self.keep, self.pause = port, clients, make, keep, pause
        self.told: list[Told] = []
        self.seen: Counter[int] = Counter()
        self.over = asyncio.Event()
        self.again = True
        self.connecting: set[asyncio.Task[Any]] = set()

    def count(self, told: Told) -> None:
        """Where answers are not kept."""
        self.seen[told.status] += 1

    async def begin(self) -> None:
        """Connects all."""
        await asyncio.gather(*(self._connect() for _ in range(self.clients)))

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Caller(self), "127.0.0.1", self.port)
        except OSError:
            self.again = False

    def lost(self, caller: Caller) -> None:
        """A connection ended: another one takes its place while the server listens."""
        if self.again and not self.over.is_set():
            task = asyncio.ensure_future(self._connect())
            self.connecting.add(task)
            task.add_done_callback(self.connecting.discard)

    async def end(self) -> None:
        """No more requests; waits for the answers of those that were sent."""
        self.over.set()
        await asyncio.sleep(0.3)


def request(rows: list[Any]) -> bytes:
    body = json.dumps({"instances": rows}).encode("utf-8")
    head = f"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def asker(seed: int) -> Callable[[], tuple[float, bytes]]:
    """Requests of one row with a number of its own."""
    draw = random.Random(seed)

    def make() -> tuple[float, bytes]:
        x = round(draw.choice((-1, 1)) * draw.uniform(2, 90), 9)
        return x, request([{"x": x}])

    return make


class Running:
    """A server process."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start: {self.process.stderr.read() if self.process.stderr else ''}")
        self.port = int(json.loads(line)["url"].rsplit(":", 1)[1])

    def stop(self) -> int:
        """Tells it to stop; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        try:
            self.process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return -9
        return self.process.returncode

    def resident(self) -> int:
        """Bytes in memory."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8"))
        assert found is not None
        return int(found[1]) * 1024


def command(folder: str, *more: str) -> Running:
    """`modelyard serve`."""
    return Running([sys.executable, "-m", "modelyard", "serve", folder, "serve.port=0", "serve.name=m", "--json", *more])


def child(folder: str, *more: str) -> Running:
    """This file as a server that swaps when told by a line on stdin."""
    return Running([sys.executable, __file__, "--child", folder, *more])


def serve_child(folder: str, keys: list[str]) -> None:
    """What `child` runs."""
    settings = {k: int(v) if v.isdecimal() else v for k, v in (key.split("=", 1) for key in keys)}
    with modelyard.serve(folder, name="m", **settings) as server:
        print(json.dumps({"url": server.url}), flush=True)
        for line in sys.stdin:
            server.swap(line.strip())


def wrong(told: Told, versions: dict[str, float]) -> bool:
    """Whether an answer is not the one of the version that it names."""
    if told.status != 200 or told.version not in versions:
        return True
    expected = versions[told.version] * told.x
    return bool(abs(json.loads(told.body)["predictions"][0] - expected) > CLOSE * (1 + abs(expected)))


class Proof:
    """Models and the parts."""

    def __init__(self, place: Path, share: float) -> None:
        self.place, self.share = place, share
        os.chdir(place)
        self.folders, self.versions = {}, {}
        x = np.random.default_rng(0).uniform(-100, 100, 400)
        for name, slope in SLOPES.items():
            frame = pl.DataFrame({"x": x, "y": slope * x})
            trained = modelyard.train(data=frame, target="y", model={"name": "linear", "numbers": "scaled"}, name=name, quiet=True)
            self.folders[name] = str(Path(modelyard.export(str(trained.run)).folder).resolve())
            self.versions[modelyard.load_model(self.folders[name]).version] = slope

    def part(self, count: int) -> int:
        """So many, or the share of them."""
        return max(1, round(count * self.share))

    async def sigterm(self) -> list[str]:
        """Servers that are told to stop under load."""
        faults, answered, doors, codes = [], 0, 0, Counter[int]()
        draw = random.Random(1)
        for turn in range(self.part(200)):
            log = self.place / f"log{turn}.jsonl"
            server = command(self.folders["one"], f"serve.log={log}")
            load = Load(server.port, 64, asker(turn))
            await load.begin()
            await asyncio.sleep(draw.uniform(0.02, 0.4))
            server.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(server.wait)
            await load.end()
            codes[code] += 1
            logged = Counter(row["x"] for line in log.read_text(encoding="utf-8").splitlines() for row in json.loads(line)["rows"])
            good = Counter(t.x for t in load.told if t.status == 200)
            faults += [f"sigterm {turn}: exit status {code}"] if code else []
            faults += [f"sigterm {turn}: {t.x} is answered {t.status} {t.body[:80]!r}" for t in load.told if t.status == 200 and wrong(t, self.versions)]
            faults += [f"sigterm {turn}: {t.x} got {t.status}" for t in load.told if t.status not in (0, 200, 503)]
            faults += [f"sigterm {turn}: {x} was answered in the log and not to its caller" for x in logged if x not in good]
            faults += [f"sigterm {turn}: {x} was answered {n} times" for x, n in (logged + good).items() if logged[x] != 1 or good[x] != 1]
            answered += sum(good.values())
            doors += sum(t.status == 0 for t in load.told)
            log.unlink()
        print(f"sigterm: {self.part(200)} stops, {answered} requests answered, {doors} met a closed door (not accepted), exits {dict(codes)}")
        return faults

    async def swaps(self) -> list[str]:
        """Versions that change under load."""
        count, least = self.part(50), self.part(20_000)
        server = child(self.folders["one"])
        load = Load(server.port, 32, asker(2))
        await load.begin()
        assert server.process.stdin is not None
        for i in range(count):
            before = len(load.told)
            server.process.stdin.write(self.folders["two" if i % 2 == 0 else "one"] + "\n")
            server.process.stdin.flush()
            while len(load.told) < before + least // count + 1:
                await asyncio.sleep(0.01)
        await load.end()
        server.process.kill()
        server.process.wait()
        seen = Counter(t.version for t in load.told)
        print(f"swaps: {count} in {len(load.told)} requests, by version {dict(seen)}")
        return [f"swaps: {t.x} got {t.status} {t.body[:80]!r} of {t.version}" for t in load.told if wrong(t, self.versions)]

    async def kills(self) -> list[str]:
        """Model processes that die."""
        server = child(self.folders["one"], "workers=2")
        load = Load(server.port, 32, asker(3))
        await load.begin()
        draw, killed = random.Random(3), 0
        while killed < self.part(100):
            await asyncio.sleep(draw.uniform(0.05, 0.5))
            found = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=False).stdout.split()
            if len(found) == 2:  # both live: the death of both at once is no accident that two processes can survive
                os.kill(int(draw.choice(found)), signal.SIGKILL)
                killed += 1
                await asyncio.sleep(0.1)
        await load.end()
        server.process.kill()
        server.process.wait()
        print(f"kills: {killed} in {len(load.told)} requests")
        return [f"kills: {t.x} got {t.status} {t.body[:120]!r}" for t in load.told if wrong(t, self.versions)]

    async def poison(self) -> list[str]:
        """Rows that cannot be used, among others."""
        server = command(self.folders["one"])
        draw = random.Random(4)
        bad: list[Any] = [
            {"x": "no number"}, {"x": None}, {}, {"y": 3}, {"x": [1, 2]}, {"x": {"a": 1}}, {"x": "Infinity"}, {"x": "x" * 5000}, 7, "row", None, [],
            {"x": True, "z": 1}, {"x": "NaN"}, {"x": "１２"}, {"": 1},
        ]  # fmt: skip
        rows: dict[float, list[Any]] = {}

        def make() -> tuple[float, bytes]:
            key = float(len(rows))
            good: list[Any] = [{"x": round(draw.uniform(-90, 90), 6)} for _ in range(draw.randint(1, 4))]
            if draw.random() < 0.01:
                good.insert(draw.randrange(len(good) + 1), draw.choice(bad))
            rows[key] = good
            return key, request(good)

        load = Load(server.port, 16, make)
        await load.begin()
        while len(load.told) < self.part(10_000):
            await asyncio.sleep(0.02)
        await load.end()
        server.stop()
        faults, poisoned, harmed = [], 0, 0
        for told in load.told:
            sent = rows[told.x]
            innocent = [isinstance(r, dict) and set(r) == {"x"} and isinstance(r["x"], float) and abs(r["x"]) < 100 for r in sent]
            poisoned += not all(innocent)
            whole = told.status == 200 and len(found := json.loads(told.body)["predictions"]) == len(sent)
            pairs = [(a, r["x"]) for a, r, i in zip(found, sent, innocent, strict=True) if i] if whole else []
            fine = whole and all(isinstance(a, float) and abs(a - x) < CLOSE * (1 + abs(x)) for a, x in pairs)
            if not fine and not (told.status == 400 and not all(innocent)):
                faults.append(f"poison: {sent} got {told.status} {told.body[:200]!r}")
            harmed += not fine
        print(f"poison: {len(load.told)} requests, {poisoned} with a row that cannot be used; {len(faults)} with a harmed neighbour")
        return faults + ([f"poison: {harmed} requests were refused as a whole"] if harmed else [])

    async def overload(self) -> list[str]:
        """More than can be done: a net of which one row takes milliseconds."""
        x = np.random.default_rng(0).normal(size=(600, 8))
        frame = pl.DataFrame({**{f"n{i}": x[:, i] for i in range(8)}, "y": x.sum(1)})
        wide = {"name": "mlp", "hidden": [3000, 3000], "numbers": "plain"}
        trained = modelyard.train(data=frame, target="y", model=wide, name="wide", quiet=True, **{"train.epochs": 1})
        folder = str(Path(modelyard.export(str(trained.run)).folder).resolve())
        body = request([{f"n{i}": float(x[0, i]) for i in range(8)}] * 16)
        make = lambda: (1.0, body)  # noqa: E731
        seconds = max(4.0, 12 * self.share)

        async def rate(port: int, clients: int, pause: Any) -> tuple[float, list[Told]]:
            load = Load(port, clients, make, pause=pause)
            await load.begin()
            await asyncio.sleep(1)
            load.told.clear()
            await asyncio.sleep(seconds)
            found = list(load.told)
            load.again = False
            await load.end()
            return sum(t.status == 200 for t in found) / seconds, found

        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:-1] or cores)  # callers elsewhere take nothing from a server's cores: here they have one of their own
        server = command(folder)
        os.sched_setaffinity(0, cores[-1:])
        peak = max([(await rate(server.port, clients, None))[0] for clients in (8, 32, 64)])
        clients = 1200
        draw = random.Random(5)
        goodput, found = await rate(server.port, clients, lambda: draw.expovariate(4 * peak / clients))
        server.stop()
        os.sched_setaffinity(0, cores)
        offered = len(found) / seconds
        seen = Counter(t.status for t in found)
        print(f"overload: at most {peak:.0f} requests/s; {offered:.0f} asked and told a second, {goodput:.0f} answered ({goodput / peak:.0%}): {dict(seen)}")
        faults = [] if goodput >= 0.9 * peak else [f"overload: goodput is {goodput / peak:.0%} of the peak"]
        faults += [f"overload: {t.status} {t.body[:100]!r}" for t in found if t.status not in (200, 429, 503)][:5]
        faults += ["overload: refused without Retry-After" for t in found if t.status in (429, 503) and b"retry-after" not in t.headers][:1]
        return faults

    async def slow(self) -> list[str]:
        """Connections that hold on to the server."""
        server = command(self.folders["one"])
        count = self.part(1300)

        async def p99(seconds: float) -> tuple[float, list[Told]]:
            load = Load(server.port, 16, asker(6), pause=lambda: 0.01)
            await load.begin()
            await asyncio.sleep(seconds)
            await load.end()
            return float(np.percentile([t.seconds for t in load.told], 99)), load.told

        seconds = max(5.0, 20 * self.share)
        before, first = await p99(seconds)
        end = threading.Event()
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(count)]
        for i, s in enumerate(held):
            s.setblocking(False)
            if i % 2:
                s.send(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nX-")

        def drip() -> None:
            while not end.wait(1.0):
                for s in held[1::2]:
                    with contextlib.suppress(OSError):
                        s.send(b"a")

        thread = threading.Thread(target=drip)
        thread.start()
        after, then = await p99(seconds)
        end.set()
        thread.join()
        for s in held:
            s.close()
        server.stop()
        print(f"slow: p99 of honest callers {1e3 * before:.2f} ms, beside {count} slow ones {1e3 * after:.2f} ms ({after / before:.2f} x)")
        faults = [f"slow: {t.x} got {t.status}" for t in [*first, *then] if wrong(t, self.versions)]
        return faults + ([f"slow: p99 grew {after / before:.2f} x"] if after > 2 * before else [])

    async def memory(self) -> list[str]:
        """Requests that leave nothing behind."""
        server = command(self.folders["one"])
        load = Load(server.port, 16, asker(7), keep=False)
        await load.begin()
        step, points = self.part(50_000), []
        for turn in range(8):
            while sum(load.seen.values()) < (turn + 1) * step:
                await asyncio.sleep(0.05)
            points.append((sum(load.seen.values()), server.resident()))
        await load.end()
        server.stop()
        counts, sizes = np.array(points[2:], float).T
        slope = float(np.polyfit(counts, sizes, 1)[0]) * 100_000 / 2**20
        total = sum(load.seen.values())
        print(f"memory: {slope:+.2f} MiB in 100,000 requests over {total} (from {sizes[0] / 2**20:.0f} to {sizes[-1] / 2**20:.0f} MiB), {dict(load.seen)}")
        return [f"memory: {slope:.2f} MiB in 100,000 requests"] if slope > 1 else []


PARTS = ("sigterm", "swaps", "kills", "poison", "overload", "slow", "memory")


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--share", type=float, default=1.0, help="of the counts")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        serve_child(given.child[0], given.child[1:])
        return
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(Path(folder), given.share)
        for name in given.parts:
            began = time.monotonic()
            found = asyncio.run(getattr(proof, name)())
            print(f"  {name}: {len(found)} fault(s), {time.monotonic() - began:.0f} s", flush=True)
            faults += found
    for fault in faults[:50]:
        print(fault)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
