"""What the command line and Python calls hand to a verb beside the project: the few flags, arguments and notices."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
"""Of every object that `--json` prints."""


@dataclass
class Options:
    """The flags of DESIGN §7. Verbs get one; only the command line fills it from text."""

    json: bool = False
    quiet: bool = False
    dry_run: bool = False
    offline: bool = False
    debug: bool = False
    device: str | None = None
    """`cpu`, `cuda`, `mps` …; None lets the verb choose."""
    resume: str | bool | None = None
    """A run to go on with, True for the latest, None for a new one."""
    trust_code: bool = False
    lang: str | None = None
    """Language of reports: `en`, `zh`."""
    yes: bool = False
    args: list[str] = field(default_factory=list)
    """All positional arguments (`runs compare A B` has three); the first is also `model`."""
    values: dict[str, Any] = field(default_factory=dict)
    """`key=value` pairs of verbs that take no project (`init`, `doctor`, `runs`), parsed."""
    warnings: list[str] = field(default_factory=list)
    """Notices so far; printed under `warnings` by `--json`."""
    emit: Callable[[Mapping[str, Any]], None] | None = None
    """Prints the one JSON object early, for a verb that does not end (`serve`); None unless `--json`."""

    def notice(self, text: str) -> None:
        """Tells people on stderr (not with `-q`) and keeps it for `--json`."""
        self.warnings.append(text)
        if not self.quiet and not self.json:
            print(f"note: {text}", file=sys.stderr, flush=True)


def clean(value: Any) -> Any:
    """JSON values of a result: NaN and infinity, which JSON lacks, become null; arrays become lists; the rest text."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return clean(value.tolist())
    return clean(value.to_json()) if hasattr(value, "to_json") else str(value)


def dumps(value: Mapping[str, Any]) -> str:
    """One line of strict JSON; every script unescaped."""
    return json.dumps(clean(value), ensure_ascii=False, allow_nan=False)
