"""Examples for the OpenAPI document: one for every body, made from its schema, so that none is forgotten or stale."""

from __future__ import annotations

from typing import Any, Final

_OF_FORMAT: Final = {
    "uuid": "0198a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b",
    "date-time": "2026-01-15T08:30:00Z",
    "date": "2026-01-15",
}
#: Where the name says more than the type.
_OF_NAME: Final[dict[str, Any]] = {
    "email": "ada@example.com",
    "phone": "+14155552671",
    "full_name": "Ada Field",
    "access_token": "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIwMTk4In0.c2ln",
    "refresh_token": "mX2vT8p0Qb7sYc1nLr5wKd9eHg3jFu6aZi4oBt-_NqE",
    "expires_in": 900,
    "permissions": ["work:create", "work:read"],
    "permission": "work:create",
    "action": "WORK_ORDER_CREATED",
    "entity_type": "work_order",
    "nextCursor": None,
    "ip": "203.0.113.7",
    "lat": 39.7392,
    "lng": -104.9903,
    "address": "200 E Colfax Ave, Denver",
    "total": 1,
    "page": 1,
    "limit": 20,
    "totalPages": 1,
    "version": 1,
    "out": {},
}
_OF_TYPE: Final[dict[str, Any]] = {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "null": None}


def example_of(schema: dict[str, Any], schemas: dict[str, Any], name: str = "") -> Any:
    """A value that fits `schema`; `schemas` are the document's, for references; `name` is the field's."""
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].rpartition("/")[2]], schemas, name)
    if schema.get("examples"):
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    if name in _OF_NAME:
        return _OF_NAME[name]
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            options = [option for option in schema[choice] if option.get("type") != "null"]
            return example_of(options[0], schemas, name)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next(option for option in kind if option != "null")
    if kind == "object" or "properties" in schema:
        return {key: example_of(value, schemas, key) for key, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [example_of(schema["items"], schemas, name)] if schema.get("items") else []
    if kind in ("integer", "number") and "minimum" in schema:
        return schema["minimum"]
    return _OF_FORMAT.get(schema.get("format", ""), _OF_TYPE.get(str(kind)))
