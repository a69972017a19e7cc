"""Every error that Modelyard raises on purpose.

    ModelyardError                 exit code, meaning
    ├── GateFailed                 1    it ran, and the result is not good enough
    │   └── ParityError            1    an export or a loaded model answers differently
    ├── UsageError                 2    the command line or a Python call is wrong
    │   ├── ConfigError            2    the project file is wrong (all mistakes at once)
    │   ├── DataError              2    the data cannot be used as asked
    │   ├── ArtefactError          2    a model or run folder is damaged, altered or too new
    │   └── Unsupported            2    this cannot be done here, and why: never | not yet | use | needs
    ├── MachineError               3    the machine lacks something (GPU, disk, memory)
    │   └── MissingExtra           3    an optional package is not installed
    └── NonFiniteError             1    training met NaN or infinity and stopped before the weights did

Anything else that escapes is our bug (exit code 101); Ctrl-C is 130.
A message says what came, what is allowed and what to do next; `details` lists every single problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, what came, what is allowed, what to do next."""

    message: str
    where: str = ""
    """`file:line`, `column`, `row 17` or a key such as `train.epochs`."""
    hint: str = ""
    """The next step, as an imperative sentence."""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        stop = "" if self.message.endswith((".", "?", "!")) or not self.hint else "."
        hint = f" {self.hint}" if self.hint else ""
        return f"{place}{self.message}{stop}{hint}"


class ModelyardError(Exception):
    """Base of all errors meant for the user."""

    exit_code = 2

    def __init__(self, message: str, details: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = list(details)

    @property
    def kind(self) -> str:
        """The class name: what `--json` prints as `error.kind`."""
        return type(self).__name__

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {problem}" for problem in self.details)])

    def to_json(self) -> dict[str, Any]:
        """`{kind, message, details}` as printed under `error` by `--json`."""
        return {"kind": self.kind, "message": self.message, "details": [asdict(d) for d in self.details]}


class GateFailed(ModelyardError):
    """A metric missed its gate, or a comparison failed. Carries the result that was produced."""

    exit_code = 1

    def __init__(self, message: str, details: Sequence[Problem] = (), result: Any = None) -> None:
        super().__init__(message, details)
        self.result = result


class ParityError(GateFailed):
    """A replay of stored examples gave another answer."""


class NonFiniteError(ModelyardError):
    """NaN or infinity appeared in training; the weights were left as they were."""

    exit_code = 1


class UsageError(ModelyardError):
    """A wrong command or call."""


class ConfigError(UsageError):
    """A wrong project file."""

    project: Any = None
    """What could be read of it, where its data section could: `check` looks at the data all the same."""


class DataError(UsageError):
    """Data that cannot be read or cannot train."""


class ArtefactError(UsageError):
    """A model or run folder that is damaged, altered or made by a newer version."""


class Unsupported(UsageError):
    """Something that does not go together, with the reason.

    `why` is `never` (makes no sense), `not yet`, `use` (another way exists) or `needs` (something is missing).
    """

    def __init__(
        self,
        message: str,
        why: Literal["never", "not yet", "use", "needs"] = "never",
        details: Sequence[Problem] = (),
    ) -> None:
        super().__init__(message, details)
        self.why = why


class MachineError(ModelyardError):
    """The machine lacks something."""

    exit_code = 3


class MissingExtra(MachineError):
    """An optional package is missing; names the line that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'modelyard[{extra}]'")
        self.package, self.extra = package, extra
