"""What a column does with values that are not there: the settings; `runtime/imputation.py` fits and applies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from modelyard.settings import Between

Method = Literal["keep", "mean", "median", "mode", "constant", "knn", "iterative", "delete"]


@dataclass(frozen=True, kw_only=True)
class Missing:
    """How missing values of a column are filled; a text alone is the method. Everything is fitted on the training rows."""

    SHORTHAND: ClassVar[str] = "method"

    method: Method = "keep"
    """keep: as the model reads it (trees: a branch of its own; nets, linear: the mean and an indicator; categories: an id of their own).
    mean, median, mode, constant: that value. knn: the mean of the nearest training rows. iterative: a regression on the other number
    columns (van Buuren & Groothuis-Oudshoorn 2011). delete: such rows are set aside in training and refused in prediction."""
    value: Any = None
    """The value of constant."""
    indicator: bool = False
    """Give the model a further number that is 1 where the value was missing."""
    neighbours: Annotated[int, Between(1, 1000)] = 5
    """Training rows that knn takes the mean of."""
    donors: Annotated[int, Between(10, 1_000_000)] = 20_000
    """Training rows that knn keeps in the model; of more a seeded sample is drawn."""
    rounds: Annotated[int, Between(1, 100)] = 10
    """Rounds of iterative at most; it stops when no value moves by more than 0.001 of its column's deviation."""

    def __post_init__(self) -> None:
        if (self.method == "constant") != (self.value is not None):
            raise ValueError("value goes with method: constant, and only with it, e.g. {method: constant, value: 0}")
        if self.method == "delete" and self.indicator:
            raise ValueError("an indicator says nothing where rows with missing values are deleted")
