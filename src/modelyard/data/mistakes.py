"""Mistakes gathered over several stages, so that one message names them all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from modelyard.errors import DataError, Problem, UsageError


@dataclass
class Mistakes:
    """Problems found so far; `raise_if_any` ends the gathering."""

    problems: list[Problem] = field(default_factory=list)
    errors: list[UsageError] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.problems or self.errors)

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Keeps a `UsageError` of the block and goes on after it."""
        try:
            yield
        except UsageError as error:
            self.errors.append(error)

    def raise_if_any(self, headline: str) -> None:
        """Raises the only error as it was, or one `DataError` with every problem."""
        if len(self.errors) == 1 and not self.problems:
            raise self.errors[0]
        found = list(self.problems)
        for error in self.errors:
            found += [Problem(error.message), *(d for d in error.details if d.message != error.message)]
        if found:
            raise DataError(f"{headline} ({len(found)} problem(s))", found)
