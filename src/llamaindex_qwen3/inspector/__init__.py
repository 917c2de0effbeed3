"""The inspector: a local page that shows how a question is embedded, searched, reranked, answered."""

from .app import create_app
from .server import is_loopback, listen, serve
from .service import Inspector, Settings

__all__ = ["Inspector", "Settings", "create_app", "is_loopback", "listen", "serve"]
