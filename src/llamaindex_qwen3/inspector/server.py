"""Run the inspector: find a port, say where it is, open the browser."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable

import uvicorn

from ..errors import InvalidArgumentError
from .app import create_app
from .service import Inspector

DEFAULT_HOST = "127.0.0.1"


def serve(
    inspector: Inspector,
    listener: socket.socket,
    host: str = DEFAULT_HOST,
    *,
    open_browser: bool = True,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the page until interrupted.

    Args:
        inspector: What to serve.
        listener: Where to accept connections; see `listen`.
        host: The name or address that was listened on.
        open_browser: Open the page in the user's browser, where there is a desktop.
        on_ready: Called with the address of the page.

    Raises:
        KeyboardInterrupt: It was ended by Ctrl-C.
    """
    url = _url(host, listener.getsockname()[1])
    app = create_app(
        inspector, hosts=[host, socket.gethostname()], any_address=not is_loopback(host)
    )
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        lifespan="off",
    )
    if on_ready:
        on_ready(url)
    if open_browser and _has_desktop():
        # Connections wait until the server takes them. Some browsers only return when closed.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections.

    Args:
        host: Address or name to bind to; anything but a loopback address lets others in.
        port: Port, or 0 for one that is free.

    Raises:
        InvalidArgumentError: It cannot be bound to.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidArgumentError(
            f"host={host!r} is no address of this machine ({error.strerror}). Use 127.0.0.1."
        ) from error
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InvalidArgumentError(
            f"Cannot listen on {host}, port {port} ({error.strerror}). Choose another --port, or leave "
            "it out for one that is free."
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Say whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _url(host: str, port: int) -> str:
    # The wildcard addresses are for binding only.
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name and '[' not in name else name}:{port}/"


def _has_desktop() -> bool:
    # Without one, webbrowser would start a text browser in this terminal.
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True
