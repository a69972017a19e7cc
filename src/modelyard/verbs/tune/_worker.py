"""A worker process of a parallel search: reads the course, then jobs, one JSON line each; answers one line each."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading


def main() -> None:
    """Ends with its parent: when stdin closes, even in the middle of a trial."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print must not reach the parent as an answer
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    from modelyard.verbs.tune._trial import unpack

    course = unpack(lines.get())
    while True:
        job = json.loads(lines.get())
        found = course.advance(job["number"], job["params"], job["rung"], job["left"])
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
