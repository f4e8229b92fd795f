"""Reading JSON bodies: strict, straight into the struct, and where that fails, every wrong field by name."""

from __future__ import annotations

import re
import types
from functools import cache
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
from litestar import Request
from litestar.datastructures import State

from models.identity.permissions import Caller
from models.kit.errors import Refusal, ValidationFailed

#: Requests beyond it get 413; uploads go straight to the storage.
MAX_BODY_BYTES: Final = 1024 * 1024

FieldErrors = dict[str, list[str]]
#: The key for what is wrong with the body as a whole.
BODY: Final = "body"

_AT: Final = re.compile(r"^(?P<text>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING: Final = re.compile(r"^Object missing required field `(?P<name>.*)`$")
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(?P<name>.*)`$")


class UnsupportedMediaType(Refusal):
    message = "Send application/json"


class JsonRequest(Request[Caller, None, State]):
    """Litestar's request, with the body decoded once and into the very type the handler asks for.

    Litestar itself decodes to plain values and converts them leniently, so that "5" passes for 5, and it names only
    the first error.
    """

    async def json(self) -> Any:
        media_type = self.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMediaType()
        field = self.route_handler.parsed_data_field
        return decode_body(await self.body(), Any if field is None else field.annotation)


def decode_body(body: bytes, expected: Any) -> Any:
    """The body as `expected`, a type that msgspec knows. Raises ValidationFailed naming each wrong field."""
    try:
        try:
            value = _decoder(expected).decode(body)
        except msgspec.ValidationError as error:
            found = errors_in(msgspec.json.decode(body), expected)
            raise ValidationFailed(found or dict([_named(str(error))])) from None
        # A NUL can only arrive escaped, and Postgres has no text that holds one.
        if b"\\u0000" in body and (paths := _with_nul(msgspec.json.decode(body))):
            raise ValidationFailed({path: ["Must not contain the NUL character"] for path in paths})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValidationFailed({BODY: [f"Not valid JSON: {error}"]}) from None
    return value


@cache
def _decoder(expected: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(expected)


def errors_in(value: Any, expected: Any, path: str = "") -> FieldErrors:
    """Everything wrong with a decoded JSON value, by dotted path; where msgspec stops at the first."""
    found: FieldErrors = {}
    struct = _struct_in(expected)
    if struct is None or not isinstance(value, dict):
        items = _items_in(expected)
        if items is not None and isinstance(value, list):
            for index, item in enumerate(value):
                found |= errors_in(item, items, _join(path, str(index)))
            if found:
                return found
        return _conversion_errors(value, expected, path)
    known = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    for name, field in known.items():
        if name in value:
            found |= errors_in(value[name], field.type, _join(path, name))
        elif field.required:
            found[_join(path, name)] = ["Required"]
    if struct.__struct_config__.forbid_unknown_fields:
        found |= {_join(path, str(name)): ["Unknown field"] for name in value if name not in known}
    # Right in each field, and still refused: a rule over several of them (`__post_init__`).
    return found or _conversion_errors(value, expected, path)


def _conversion_errors(value: Any, expected: Any, path: str) -> FieldErrors:
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError as error:
        name, messages = _named(str(error))
        return {path if name == BODY and path else _join(path, name): messages}
    return {}


def _named(message: str) -> tuple[str, list[str]]:
    """A msgspec message as (dotted path, [text])."""
    parts = _AT.match(message)
    text, path = (message, "") if parts is None else (parts["text"], dotted(parts["path"] or ""))
    if missing := _MISSING.match(text):
        return _join(path, missing["name"]), ["Required"]
    if unknown := _UNKNOWN.match(text):
        return _join(path, unknown["name"]), ["Unknown field"]
    return path or BODY, [text]


def dotted(path: str) -> str:
    """`.stops[0].address` as `stops.0.address`."""
    return re.sub(r"\[(\d+|\.\.\.)\]", r".\1", path).strip(".")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _members(expected: Any) -> list[Any]:
    """The types of a union, or the one type, without their annotations."""
    while get_origin(expected) is Annotated:
        expected = get_args(expected)[0]
    if get_origin(expected) in (Union, types.UnionType):
        return [member for option in get_args(expected) for member in _members(option)]
    return [expected]


def _struct_in(expected: Any) -> type[msgspec.Struct] | None:
    structs = [
        origin
        for member in _members(expected)
        if isinstance(origin := get_origin(member) or member, type) and issubclass(origin, msgspec.Struct)
    ]
    return structs[0] if len(structs) == 1 else None


def _items_in(expected: Any) -> Any:
    lists = [member for member in _members(expected) if get_origin(member) is list]
    return get_args(lists[0])[0] if lists else None


def _with_nul(value: Any, path: str = "") -> list[str]:
    if isinstance(value, str):
        return [path or BODY] if "\0" in value else []
    if isinstance(value, dict):
        keys = [path or BODY] if any("\0" in key for key in value) else []
        return keys + [found for name, item in value.items() for found in _with_nul(item, _join(path, name))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _with_nul(item, _join(path, str(index)))]
    return []
