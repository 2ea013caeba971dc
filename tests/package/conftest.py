"""A package of an engine made by hand, and a running server of it."""

from collections.abc import Iterator

import pytest
from hand_engine import by_hand
from serving import Running, served

from slmc.package.package import Package, package


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Package:
    place = tmp_path_factory.mktemp("a place")
    return package(by_hand(place, top_k=3), place / "the package")


@pytest.fixture(scope="session")
def running(packed: Package) -> Iterator[Running]:
    with served(packed.path) as server:
        yield server
