"""The main job on real data: check, train, export, serve one answer, and the report. Run by `make demo`."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import modelyard as my

EXAMPLE = Path(__file__).parent / "churn"


def main() -> int:
    """Runs in a copy of the example, so that the checkout stays clean; leaves `demo/` beside it with the report."""
    began = time.monotonic()
    work = Path(__file__).parent.parent / "demo"
    if work.exists():
        work = Path(tempfile.mkdtemp(prefix="demo-", dir=work.parent))
        work.rmdir()
    shutil.copytree(EXAMPLE, work, ignore=shutil.ignore_patterns("runs"))
    project = work / "modelyard.yaml"
    print("1 · modelyard check", flush=True)
    print(my.check(project))
    print("\n2 · modelyard train", flush=True)
    trained = my.train(project)
    print(trained)
    print("\n3 · modelyard export", flush=True)
    exported = my.export(trained.run, file=project)
    print(exported)
    print("\n4 · modelyard serve, and one answer over HTTP", flush=True)
    from modelyard.verbs.serve import serve

    with serve(exported.folder) as server:
        print(server.curl)
        body = json.dumps({"instances": server.model.examples[:1]}).encode("utf-8")
        url = f"{server.url}/v1/models/{server.model.name}:predict"
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as response:
            print(response.read().decode("utf-8"))
    here = work.relative_to(Path.cwd()) if work.is_relative_to(Path.cwd()) else work
    report = Path(trained.run) / "report.html"
    print(f"\n{time.monotonic() - began:.0f} s. The report: {report}\n\nNext:")
    print(f"  source .venv/bin/activate && cd {here}")
    print(f"  modelyard serve runs/{Path(trained.run).name}          # and open its page in a browser")
    print("  modelyard init mine --from your.csv --target your_column")
    return 0


if __name__ == "__main__":
    sys.exit(main())
