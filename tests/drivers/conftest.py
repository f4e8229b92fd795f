from tests.factories.api import app, client, people

__all__ = ["app", "client", "people"]
