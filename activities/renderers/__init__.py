"""Turning what we know into documents and messages."""
