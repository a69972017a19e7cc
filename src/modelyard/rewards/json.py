"""1 where the answer is JSON; with keys behind the colon (`json:name,age`) an object that has them."""

from __future__ import annotations

import json


def reward(text: str, truth: str, prompt: str, argument: str) -> float:
    """1 or 0."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return 0.0
    wanted = [k.strip() for k in argument.split(",") if k.strip()]
    return float(not wanted or (isinstance(found, dict) and all(k in found for k in wanted)))
