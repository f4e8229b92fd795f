"""The connection to Temporal, and the names that both ends agree on."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from datetime import timedelta
from typing import Any

import msgspec
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, GrpcCompression
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    EncodingPayloadConverter,
    JSONPlainPayloadConverter,
)
from temporalio.service import RetryConfig

from models.kit.settings import Settings

log = logging.getLogger(__name__)

DISPATCH_QUEUE = "dispatch"
NOTIFICATIONS_QUEUE = "notifications"
#: How long one call to Temporal may take. A dead server must cost seconds, not the default's many.
RPC_TIMEOUT = timedelta(seconds=3)


class MsgspecConverter(EncodingPayloadConverter):
    """Plain JSON by msgspec: structs of ours on one side, readable in the UI and by other SDKs on the other."""

    _encoder = msgspec.json.Encoder()

    @property
    def encoding(self) -> str:
        return "json/plain"

    def to_payload(self, value: Any) -> Payload | None:
        return Payload(metadata={"encoding": b"json/plain"}, data=self._encoder.encode(value))

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        return msgspec.json.decode(payload.data, type=type_hint or Any)


class PayloadConverter(CompositePayloadConverter):
    def __init__(self) -> None:
        super().__init__(
            *[
                MsgspecConverter() if isinstance(converter, JSONPlainPayloadConverter) else converter
                for converter in DefaultPayloadConverter.default_encoding_payload_converters
            ]
        )


DATA_CONVERTER = dataclasses.replace(DataConverter.default, payload_converter_class=PayloadConverter)


async def connect(settings: Settings, *, lazy: bool = False) -> Client:
    """A client. `lazy` returns at once and connects at the first call."""
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        api_key=settings.temporal_api_key or None,
        tls=settings.temporal_tls or bool(settings.temporal_api_key),
        lazy=lazy,
        data_converter=DATA_CONVERTER,
        # Towards a server beside us compressing costs more than it saves.
        grpc_compression=GrpcCompression.NONE if settings.temporal_is_local else GrpcCompression.GZIP,
        retry_config=RetryConfig(
            initial_interval_millis=100, max_interval_millis=1000, max_elapsed_time_millis=3000, max_retries=2
        ),
    )


async def connect_when_up(settings: Settings) -> Client:
    """Wait for Temporal to come up, however long it takes, then connect."""
    delay = 0.2
    while True:
        try:
            return await connect(settings)
        except RuntimeError as error:
            log.warning("temporal_unreachable address=%s error=%s", settings.temporal_address, error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5)
