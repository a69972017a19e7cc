"""Requests that schemathesis makes up from our own /openapi.json: none is answered by a 5xx, and every answer is as the document says.

    python tests/crash/prove_schema.py                      # 50,000 requests
    python tests/crash/prove_schema.py --requests 2000

They are counted by the server (`/metrics`), not by the tool. Two models are asked in turn: three columns with a label, one number with another.
Prints the counts by status; exit code 1 where an answer was a 5xx or not as described.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import modelyard

sys.path.insert(0, str(Path(__file__).parents[1] / "protocol"))
from models import train

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ROUND = 100
"""Seconds of one run of the tool; it is started again with another seed until there were enough requests."""


def counted(url: str) -> Counter[str]:
    """Requests answered so far, by status."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode("utf-8")
    found: Counter[str] = Counter()
    for line in text.splitlines():
        if match := re.match(r'modelyard_requests_total\{.*(?:code|status)="(\d+)".*\} (\d+)', line):
            found[match[1]] += int(match[2])
    return found


def main() -> None:
    """Runs the tool until enough was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=3600, help="no further run is begun after these")
    given = parser.parse_args()
    total: Counter[str] = Counter()
    failed, seed, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        models = train(Path(place))
        while sum(total.values()) < given.requests and time.monotonic() - began < given.seconds:
            name = ("loan", "half_plus_two")[seed % 2]
            with modelyard.serve(models[name]) as server:
                command = [
                    sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--phases", "coverage,fuzzing",
                    "--max-examples", "1000", "--max-time", str(ROUND), "--seed", str(seed), "--continue-on-failure",
                    "--no-color", "--generation-database", "none",
                ]  # fmt: skip
                done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=place)
                found = counted(server.url)
            total += found
            seed += 1
            print(f"{sum(total.values()):6d} requests, {dict(sorted(total.items()))}", flush=True)
            if done.returncode != 0:
                failed += 1
                print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
                if failed >= 3:
                    break
    errors = sum(n for code, n in total.items() if code.startswith("5"))
    print(f"{sum(total.values())} requests in {time.monotonic() - began:.0f} s, {errors} answered by a 5xx, {failed} of {seed} runs found a difference")
    sys.exit(1 if errors or failed else 0)


if __name__ == "__main__":
    main()
