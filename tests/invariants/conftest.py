"""A Temporal of these tests' own: what runs there is held against their databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.cli.services import EmbeddedTemporal


@pytest.fixture
def own_temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTemporal]:
    server = EmbeddedTemporal(None, log=tmp_path_factory.mktemp("temporal") / "temporal.log")
    server.start()
    yield server
    server.kill()
