"""What every table shares: one MetaData with named constraints, and the columns that repeat."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, Column, DateTime, Double, ForeignKeyConstraint, MetaData, Text, Uuid, text
from sqlalchemy.dialects.postgresql import CITEXT, JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Timestamp = DateTime(timezone=True)
Json = JSONB(none_as_null=True)
CaseInsensitive = CITEXT()


def id_column(**options: Any) -> Column[Any]:
    """The primary key. The application makes the value; `uuidv7()` stands in for rows written by hand."""
    return Column("id", Uuid, primary_key=True, server_default=text("uuidv7()"), **options)


def tenant_column() -> Column[Any]:
    return Column("organization_id", Uuid, nullable=False)


def created_at(**options: Any) -> Column[Any]:
    return Column("created_at", Timestamp, nullable=False, server_default=text("clock_timestamp()"), **options)


def updated_at() -> Column[Any]:
    return Column("updated_at", Timestamp, nullable=False, server_default=text("clock_timestamp()"))


def status_column(
    values: type[StrEnum] | Iterable[str], *, name: str = "status", **options: Any
) -> tuple[Column[Any], CheckConstraint]:
    """A text column and its named CHECK, made from the one enumeration that rules and API read."""
    listed = ", ".join(f"'{value}'" for value in values)
    return (
        Column(name, Text, nullable=options.pop("nullable", False), **options),
        CheckConstraint(f"{name} IN ({listed})", name=name),
    )


def tenant_key(column: str, parent: str, parent_column: str = "id", **options: Any) -> ForeignKeyConstraint:
    """A foreign key that carries the organization, so that no row can point into another tenant."""
    return ForeignKeyConstraint(
        ["organization_id", column], [f"{parent}.organization_id", f"{parent}.{parent_column}"], **options
    )


def latitude_longitude(prefix: str = "", *, nullable: bool = True) -> list[Any]:
    """`lat` and `lng` in WGS 84 degrees, both or neither, within range."""
    lat, lng = f"{prefix}lat", f"{prefix}lng"
    return [
        Column(lat, Double, nullable=nullable),
        Column(lng, Double, nullable=nullable),
        CheckConstraint(
            f"({lat} IS NULL) = ({lng} IS NULL) AND {lat} BETWEEN -90 AND 90 AND {lng} BETWEEN -180 AND 180",
            name=f"{prefix}location",
        ),
    ]
