"""Channels: one adapter each, chosen by the credentials that are set."""

from activities.channels.base import adapters_from

__all__ = ["adapters_from"]
