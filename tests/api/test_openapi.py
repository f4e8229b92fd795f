"""The OpenAPI document is complete, and its page works without the internet."""

from __future__ import annotations

import re
from typing import Any

import httpx
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from api.app import create_app
from api.openapi import openapi_document
from tests.factories.api import settings

DOCUMENT = openapi_document(create_app(settings(dev_mode=False), with_relay=False))
OPERATIONS = [
    (f"{method} {path}", operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]


def test_the_document_is_valid() -> None:
    validate(DOCUMENT, cls=OpenAPIV31SpecValidator)
    assert DOCUMENT["openapi"].startswith("3.1")


def test_every_operation_is_named_described_tagged_and_secured() -> None:
    names = [operation["operationId"] for _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    known = {tag["name"] for tag in DOCUMENT["tags"]}
    for where, operation in OPERATIONS:
        assert re.fullmatch(r"[A-Z]\w+", operation["operationId"]), where
        assert operation["summary"], where
        assert set(operation["tags"]) <= known, where
        assert operation.get("security", DOCUMENT["security"]) in ([{"bearer": []}], [{}]), where


def test_every_operation_lists_its_errors_in_our_shape() -> None:
    for where, operation in OPERATIONS:
        codes = set(operation["responses"])
        assert "500" in codes, where
        if "x-permission" in operation:
            assert {"401", "403", "503"} <= codes, where
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= codes, where
        for code, response in operation["responses"].items():
            if code.startswith(("4", "5")) and where != "get /health/ready":
                content = _resolved(response)["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}, (where, code)
                assert content.get("example") or content.get("examples"), (where, code)


def test_every_body_has_an_example() -> None:
    for where, operation in OPERATIONS:
        for body in (operation.get("requestBody"), *operation["responses"].values()):
            for content in _resolved(body or {}).get("content", {}).values():
                assert "example" in content or "examples" in content, where


def test_the_names_of_schemas_are_fit_for_generated_clients() -> None:
    assert all(re.fullmatch(r"[A-Z]\w*", name) for name in DOCUMENT["components"]["schemas"])


def test_production_has_no_development_pages() -> None:
    assert not [path for path in DOCUMENT["paths"] if path.startswith("/dev")]


async def test_the_document_is_served(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/v1/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert "/dev/outbox" in response.json()["paths"]
    assert (await client.get("/docs/openapi.json")).json() == response.json()


async def test_the_page_and_its_files_come_from_here(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "http" not in policy
    assert not re.findall(r"(?:https?:)?//", page.text)
    links = re.findall(r'(?:src|href)="(/docs/[^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        file = await client.get(link)
        assert file.status_code == 200
        assert file.headers["cache-control"] == "public, max-age=3600"
    assert "//" not in (await client.get("/docs/docs.js")).text.replace("// Signing in", "")
    assert (await client.get("/docs/none.js")).status_code == 404
    assert (await client.get("/docs/LICENSE")).status_code == 404


def _resolved(response: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in response:
        return response
    found: dict[str, Any] = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return found
