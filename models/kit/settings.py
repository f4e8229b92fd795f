"""Configuration: the environment (and `.env`), read once into one typed, frozen object.

A malformed or unknown value stops the start with a message that names the variable. See `.env.example` for the list.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from dotenv import dotenv_values

from models.kit.crashes import POINTS

DEVELOPMENT_SECRET = "development-only-secret-key-do-not-use-in-production"

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class SettingsError(Exception):
    """A variable is missing or malformed; the text names it and says what to do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename=str.upper, omit_defaults=True):
    """One field per environment variable; the variable's name is the field's in capitals."""

    database_url: str = ""
    #: For LISTEN and session locks, which a PgBouncer cannot carry. Falls back to `database_url`.
    database_direct_url: str = ""
    database_pool_size: Positive = 16
    port: Port = 8000
    host: str = "127.0.0.1"
    public_url: str = ""
    secret_key: str = ""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    cors_origins: str = ""

    temporal_address: str = "127.0.0.1:7233"
    temporal_namespace: str = "default"
    temporal_api_key: str = ""
    temporal_tls: bool = False
    temporal_ui_url: str = ""
    #: Open workflows that one worker keeps in memory, about 107 kB each; below the number open, CPU rises by half.
    worker_cached_workflows: Positive = 10_000

    twilio_account_sid: str = ""
    twilio_auth_token: str = ""
    twilio_from: str = ""
    twilio_base_url: str = "https://api.twilio.com"
    resend_api_key: str = ""
    resend_base_url: str = "https://api.resend.com"
    email_from: str = "Fairlead <dispatch@fairlead.invalid>"
    #: Write a message row for every offer, assignment and so on. Off only to measure what messages cost.
    messages_enabled: bool = True

    rate_limit_anon: Positive = 60
    rate_limit_user: Positive = 300
    rate_limit_auth: Positive = 10

    #: Set by `make dev` and the tests, never in production: allows the bundled secret, demo accounts and `/dev` pages.
    dev_mode: bool = False
    #: A point of models/kit/crashes.py at which the process dies.
    dev_crash_at: str = ""
    dev_temporal_port: Port = 7233
    dev_temporal_ui_port: Port = 8233
    #: 0 takes a free one.
    dev_postgres_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    dev_data_dir: str = ".data"

    @property
    def sqlalchemy_url(self) -> str:
        """`database_url` under the driver we use, whichever scheme the host's dashboard prints."""
        if not self.database_url:
            raise SettingsError("DATABASE_URL is not set: give a Postgres 18 address, or run `make dev`")
        _, _, rest = self.database_url.partition("://")
        return f"postgresql+asyncpg://{rest}"

    @property
    def temporal_is_local(self) -> bool:
        host = self.temporal_address.rsplit(":", 1)[0].strip("[]")
        return host in ("localhost", "::1") or host.startswith("127.")


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read `environ` (default: the process's, over `.env`). Raises SettingsError naming the variable at fault."""
    if environ is None:
        environ = {k: v for k, v in dotenv_values(Path(".env")).items() if v is not None} | dict(os.environ)
    known = {field.encode_name for field in msgspec.structs.fields(Settings)}
    given = {name: value.strip() for name, value in environ.items() if name in known and value.strip()}
    if "TEMPORAL_ADDRESS" not in given and "DEV_TEMPORAL_PORT" in given:
        given["TEMPORAL_ADDRESS"] = f"127.0.0.1:{given['DEV_TEMPORAL_PORT']}"
    try:
        settings = msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_name_the_variable(str(error))) from None
    return _checked(settings)


def _name_the_variable(message: str) -> str:
    text, _, path = message.partition(" - at `$.")
    return f"{path.rstrip('`') or 'configuration'}: {text}"


def _checked(settings: Settings) -> Settings:
    if settings.database_url and urlsplit(settings.database_url).scheme.split("+")[0] not in ("postgres", "postgresql"):
        raise SettingsError("DATABASE_URL: must start with postgresql://")
    if settings.dev_crash_at and not (settings.dev_mode and settings.dev_crash_at in POINTS):
        raise SettingsError("DEV_CRASH_AT: names a point of models/kit/crashes.py, and only with DEV_MODE=true")
    if not settings.secret_key:
        if not settings.dev_mode:
            raise SettingsError("SECRET_KEY is not set: use 32 random bytes or more, e.g. `openssl rand -hex 32`")
        return msgspec.structs.replace(settings, secret_key=DEVELOPMENT_SECRET)
    if not settings.dev_mode and (len(settings.secret_key) < 32 or settings.secret_key == DEVELOPMENT_SECRET):
        raise SettingsError("SECRET_KEY: too short or the bundled one; use 32 random bytes or more")
    return settings
