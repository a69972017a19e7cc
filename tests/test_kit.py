"""Every kind, task, net, estimator and metric of the house passes the kit; so do the outsiders' of tests/probes."""

from __future__ import annotations

import pytest

from modelyard import registry
from modelyard.errors import MissingExtra
from modelyard.testing import check_estimator, check_kind, check_net, check_task


@pytest.mark.parametrize("name", registry.names("kinds"))
def test_kind(name: str) -> None:
    check_kind(name)


@pytest.mark.parametrize("name", registry.names("tasks"))
def test_task(name: str) -> None:
    check_task(name)


@pytest.mark.parametrize("name", ["tagging", "forecasting"])
def test_task_from_outside(name: str) -> None:
    check_task(f"modelyard-probes/{name}")


@pytest.mark.parametrize("name", [*registry.names("nets"), "modelyard-probes/wide"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of torch's exporter
def test_net(name: str) -> None:
    check_net(name)


@pytest.mark.parametrize("name", registry.names("estimators"))
def test_estimator(name: str) -> None:
    try:
        check_estimator(name)
    except MissingExtra as absent:
        pytest.skip(str(absent))


def test_the_kit_finds_faults() -> None:
    """A kind whose answer depends on its neighbours, and one whose check is not idempotent, are refused."""
    import polars as pl

    from modelyard.kinds.number import Raw, Scaled
    from modelyard.testing import check_encoding

    class Leaky(Raw):
        def encode(self, column, state, context):  # type: ignore[no-untyped-def]
            x = column.to_numpy()
            return {"value": (x - x.mean()).astype("float32")}

    class Forgetful(Scaled):
        def merge(self, a, b):  # type: ignore[no-untyped-def]
            return a if a.count else b

    column = pl.Series("c", [1.0, 2.0, 4.0, 8.0])
    with pytest.raises(AssertionError, match="alone"):
        check_encoding(Leaky(), column)
    with pytest.raises(AssertionError, match="merged"):
        check_encoding(Forgetful(), column)
