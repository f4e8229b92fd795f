"""The API's documentation for people: Swagger UI out of this package, so that it works without the internet."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from litestar import MediaType, Request, Response, Router, get
from litestar.openapi.plugins import OpenAPIRenderPlugin

from api.guards import PUBLIC
from api.openapi import openapi_json

_FOLDER: Final = Path(__file__).parent / "docs_ui"
_FILES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "docs.js": "text/javascript",
}
#: Swagger UI sets style attributes and draws its icons from data addresses; nothing comes from elsewhere.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fairlead API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<noscript>This page needs JavaScript. It shows <a href="/api/v1/openapi.json">this document</a>.</noscript>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/docs.js"></script>
</body>
</html>
"""


class DocsPage(OpenAPIRenderPlugin):
    """Litestar wants a plugin to render at the root of its documentation; ours is one page of constant HTML."""

    def __init__(self) -> None:
        super().__init__(path="/", media_type=MediaType.HTML)

    def render(self, request: Any, openapi_schema: dict[str, Any]) -> bytes:
        return _PAGE


class DocsDocument(OpenAPIRenderPlugin):
    """Stands in for the plugin that Litestar would add, which serves its own document, without what we complete."""

    def __init__(self) -> None:
        super().__init__(path="/openapi.json", media_type=MediaType.JSON)

    def render(self, request: Any, openapi_schema: dict[str, Any]) -> bytes:
        return openapi_json(request.app)


@get(
    [f"/{name}" for name in _FILES],
    operation_id="DocsFile",
    include_in_schema=False,
    response_headers={"Cache-Control": "public, max-age=3600"},
)
async def docs_file(request: Request[Any, Any, Any]) -> Response[bytes]:
    name = request.scope["path"].rpartition("/")[2]
    return Response(_content(name), media_type=_FILES[name])


@get(
    "/api/v1/openapi.json",
    operation_id="OpenAPIDocument",
    opt=PUBLIC,
    include_in_schema=False,
    media_type=MediaType.JSON,
)
async def openapi_file(request: Request[Any, Any, Any]) -> bytes:
    return openapi_json(request.app)


@cache
def _content(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


def docs_router() -> Router:
    return Router(
        "/docs",
        route_handlers=[docs_file],
        include_in_schema=False,
        opt=PUBLIC,
        response_headers={"Content-Security-Policy": _POLICY},
    )
