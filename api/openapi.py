"""The OpenAPI 3.1 document: what Litestar reads off the handlers, completed by what holds for all of them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Litestar, Router
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Components, Example, License, SecurityScheme, Tag
from litestar.routes import HTTPRoute

from api.errors import BY_STATUS, STATUS, ErrorBody
from api.examples import example_of
from api.guards import permission_of, takes_key
from api.idempotency import HEADER, REPLAYED
from models.idempotency.rules import KEY_PATTERN, LONGEST_KEY, IdempotencyInProgress, IdempotencyKeyReused
from models.identity.permissions import MATRIX
from models.kit.errors import PreconditionFailed, PreconditionRequired, Refusal

VERSION: Final = "0.1.0"
_BEARER: Final = "bearer"
_REQUEST_ID: Final = "0198a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"
_RETRY_AFTER: Final = {"schema": {"type": "integer"}, "description": "Seconds"}
#: Litestar's words for a success.
_EMPTY_WORDS: Final = {HTTPStatus(status).description for status in (200, 201)}
_INTRODUCTION: Final = """\
Fairlead offers field work to the people who do it, in an order everyone can see is fair.

Sign in with `POST /api/v1/auth/login` and send the access token as `Authorization: Bearer ..`. Every operation names
the permission it needs and the roles that have it. Times are RFC 3339 in UTC, ids are UUIDv7, and every error, from
every layer, is `{"error", "code", "details", "request_id"}`.
"""
_TAGS: Final = {
    "Sign-in": "Tokens, and who one is.",
    "Users": "People, their roles and, for drivers, their status.",
    "Work orders": "Work of every kind on one board.",
    "Enrollments": "Premise visits by energy specialists.",
    "Jobs": "Site service for customers.",
    "Orders": "Deliveries.",
    "Routes": "Planned assignments of several stops, each for one driver.",
    "Offers": "Invitations to take work, why each was made, and their answers.",
    "Drivers": "The people in the field; under `/drivers/me`, what they do themselves.",
    "Policies": "How work of each kind is offered.",
    "Reports": "The board's figures, and how evenly work was shared.",
    "Audit": "Who changed what, when and why.",
    "Health": "For load balancers and those on call.",
    "Development": "Only in development mode.",
}


def openapi_config(router: Router, pages: Sequence[OpenAPIRenderPlugin]) -> OpenAPIConfig:
    """`router` serves the documentation, `pages` render it."""
    return OpenAPIConfig(
        title="Fairlead",
        version=VERSION,
        description=_INTRODUCTION,
        license=License(name="Apache-2.0", identifier="Apache-2.0"),
        tags=[Tag(name=name, description=description) for name, description in _TAGS.items()],
        components=Components(
            security_schemes={
                _BEARER: SecurityScheme(
                    type="http",
                    scheme="bearer",
                    bearer_format="JWT",
                    description="The access token of `POST /api/v1/auth/login`",
                )
            }
        ),
        security=[{_BEARER: []}],
        use_handler_docstrings=True,
        openapi_router=router,
        render_plugins=pages,
    )


def refuses(*refusals: type[Refusal]) -> dict[int, ResponseSpec]:
    """For `responses=` of a handler: its own refusals, by their status. What every operation may answer with (400, 401,
    403, 404, 413, 415, 503, 500) is added to all of them."""
    by_status: dict[int, list[type[Refusal]]] = defaultdict(list)
    for refusal in refusals:
        by_status[next(STATUS[kind] for kind in refusal.__mro__ if kind in STATUS)].append(refusal)
    return {
        status: ResponseSpec(
            ErrorBody,
            generate_examples=False,
            description="; ".join(f"`{kind.code}`: {kind.message}" for kind in kinds),
            examples=[Example(summary=kind.code, value=_example(kind.code, kind.message)) for kind in kinds],
        )
        for status, kinds in by_status.items()
    }


#: Of a handler that wants If-Match.
VERSIONED: Final = (PreconditionRequired, PreconditionFailed)
#: Of every handler that takes an Idempotency-Key.
KEYED: Final = (IdempotencyInProgress, IdempotencyKeyReused)


def openapi_document(app: Litestar) -> dict[str, Any]:
    """The complete document."""
    document: dict[str, Any] = msgspec.to_builtins(app.openapi_schema.to_schema(), enc_hook=str)
    components = document["components"]
    components["responses"] = {_component(status): _shared_response(status) for status in (*BY_STATUS, 500)}
    components["responses"] |= {_name(kind.code): _refusal_response(kind) for kind in KEYED}
    components["schemas"].setdefault("ErrorBody", _error_schema())
    for operation, handler in _operations(app, document):
        _complete(operation, handler)
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            for content in body.get("content", {}).values():
                if "example" not in content and "examples" not in content:
                    content["example"] = example_of(content["schema"], components["schemas"])
    return _with_plain_names(document)


def _operations(app: Litestar, document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], HTTPRouteHandler]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute) and route.path_format in document["paths"]:
            for method, (handler, _) in route.route_handler_map.items():
                operation = document["paths"][route.path_format].get(method.lower())
                if operation is not None:
                    yield operation, handler


def _complete(operation: dict[str, Any], handler: HTTPRouteHandler) -> None:
    permission = permission_of(handler)
    responses = operation["responses"]
    # Litestar documents its own shape for bad input, which no client ever sees.
    if "ErrorBody" not in str(responses.get("400")):
        responses.pop("400", None)
    if takes_key(handler):
        _take_key(operation)
    # Health says by itself what is out.
    shared = {500} if "Health" in operation.get("tags", ()) else {500, 503}
    if operation.get("requestBody"):
        shared |= {400, 413, 415}
    if operation.get("parameters"):
        shared.add(400)
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", ())):
        shared.add(404)
    if permission == "public":
        operation["security"] = [{}]
    else:
        shared |= {401, 403}
        roles = sorted(MATRIX[permission or ""])
        operation["x-permission"] = permission
        text = f"Needs `{permission}`: {', '.join(roles)}."
        operation["description"] = "\n\n".join(filter(None, [operation.get("description"), text]))
    for status in sorted(shared):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{_component(status)}"})
    operation["responses"] = dict(sorted(responses.items()))
    for status, response in responses.items():
        if response.get("description") in _EMPTY_WORDS:
            response["description"] = "Created" if status == "201" else "OK"


def _take_key(operation: dict[str, Any]) -> None:
    """A POST may be sent again under the key that it was sent with."""
    operation.setdefault("parameters", []).append(
        {
            "name": HEADER,
            "in": "header",
            "required": False,
            "description": "Yours, new for each request. Sent again with it within 24 hours, the same request has no "
            "second effect, and gets the first answer again.",
            "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY, "pattern": KEY_PATTERN},
            "example": _REQUEST_ID,
        }
    )
    responses = operation["responses"]
    for status, response in responses.items():
        if status.startswith("2"):
            response.setdefault("headers", {})[REPLAYED] = {
                "schema": {"type": "string", "const": "true"},
                "description": "Only on an answer that is given again",
            }
    for kind in KEYED:
        status = str(STATUS.get(kind, STATUS[Refusal]))
        if status in responses:
            # The operation's own refusals with this status, and this one.
            response, shared = responses[status], _refusal_response(kind)
            response["description"] += f"; {shared['description']}"
            response["headers"] = shared["headers"]
            response["content"]["application/json"]["examples"][kind.code] = {
                "summary": kind.code,
                "value": _example(kind.code, kind.message),
            }
        else:
            responses[status] = {"$ref": f"#/components/responses/{_name(kind.code)}"}


def _component(status: int) -> str:
    return _name(BY_STATUS[status][0] if status in BY_STATUS else "INTERNAL_ERROR")


def _name(code: str) -> str:
    return "".join(word.capitalize() for word in code.split("_"))


def _refusal_response(kind: type[Refusal]) -> dict[str, Any]:
    response = _error_response(kind.code, kind.message)
    if kind is IdempotencyInProgress:
        response["headers"] = {"Retry-After": _RETRY_AFTER | {"description": f"Seconds, with `{kind.code}`"}}
    return response


def _shared_response(status: int) -> dict[str, Any]:
    code, message = BY_STATUS.get(status, ("INTERNAL_ERROR", "Internal server error"))
    details = {"fieldErrors": {"full_name": ["Required"]}} if status == 400 else {}
    response = _error_response(code, message, details)
    if status in (429, 503):
        response["headers"] = {"Retry-After": _RETRY_AFTER}
    return response


def _error_response(code: str, message: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "description": f"`{code}`: {message}",
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/ErrorBody"},
                "example": _example(code, message, details),
            }
        },
    }


def _example(code: str, message: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"error": message, "code": code, "details": details or {}, "request_id": _REQUEST_ID}


def _with_plain_names(document: dict[str, Any]) -> dict[str, Any]:
    """`Paged_api.users.User_` as `PagedUser`: generated clients make type names of these."""
    schemas = document["components"]["schemas"]
    renamed = {key: re.sub(r"\W", "", schema.get("title", key)) for key, schema in schemas.items()}
    if len(set(renamed.values())) != len(renamed):
        doubles = sorted(name for name in renamed.values() if list(renamed.values()).count(name) > 1)
        raise ValueError(f"two structs of the API share a name: {', '.join(doubles)}")

    def rewrite(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: f"#/components/schemas/{renamed[value.rpartition('/')[2]]}"
                if key == "$ref" and isinstance(value, str) and value.startswith("#/components/schemas/")
                else rewrite(value)
                for key, value in node.items()
            }
        return [rewrite(item) for item in node] if isinstance(node, list) else node

    renewed: dict[str, Any] = rewrite(document)
    renewed["components"]["schemas"] = {renamed[key]: rewrite(schema) for key, schema in schemas.items()}
    return renewed


def _error_schema() -> dict[str, Any]:
    schema: dict[str, Any] = msgspec.json.schema_components([ErrorBody])[1]["ErrorBody"]
    return schema


def openapi_json(app: Litestar) -> bytes:
    """The document as it is served; made at the first request for it."""
    document: bytes | None = app.state.get("openapi_json")
    if document is None:
        document = app.state.openapi_json = msgspec.json.encode(openapi_document(app))
    return document
