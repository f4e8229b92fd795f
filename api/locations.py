"""Places on earth, as every body and answer writes them."""

from __future__ import annotations

from typing import Annotated

import msgspec


class Location(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """WGS 84 degrees."""

    lat: Annotated[float, msgspec.Meta(ge=-90, le=90)]
    lng: Annotated[float, msgspec.Meta(ge=-180, le=180)]


def location_of(lat: float | None, lng: float | None) -> Location | None:
    """A row's two columns, which are both null or both given."""
    return None if lat is None or lng is None else Location(lat, lng)
