"""Who may reach the inspector, and what its pages may do."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from llamaindex_qwen3.errors import InvalidArgumentError
from llamaindex_qwen3.inspector import is_loopback, listen
from llamaindex_qwen3.inspector.guard import Guard

HERE = "127.0.0.1:8000"


def guarded(method: str = "GET", headers: dict[str, str] | None = None, **options: object) -> int:
    """Return the status that a request gets from behind the guard."""
    return respond(method, headers or {}, **options).status_code


def respond(method: str, headers: dict[str, str], **options: object) -> httpx.Response:
    """Return the response to a request, of which 200 comes from behind the guard."""

    async def reached(_: Request) -> PlainTextResponse:
        return PlainTextResponse("reached")

    app = Guard(Starlette(routes=[Route("/", reached, methods=["GET", "POST"])]), **options)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.request(method, f"http://{HERE}/", headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize(
    "host", [HERE, "127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.5.5.5:1"]
)
def test_hosts_of_this_machine(host: str) -> None:
    """Answer under the loopback addresses and localhost, at any port."""
    assert guarded(headers={"Host": host}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8000", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example",
        "192.168.1.5:8000", "0.0.0.0:8000", "[::1", "",
    ],
)  # fmt: skip
def test_other_hosts(host: str) -> None:
    """Refuse names that another site could give this address: DNS rebinding."""
    assert guarded(headers={"Host": host}) == 421
    assert guarded("POST", {"Host": host, "Content-Type": "application/json"}) == 421


def test_hosts_of_a_server_for_others() -> None:
    """Answer under every address, and the names given, where more than loopback is listened on."""
    options = {"any_address": True, "hosts": ["Workstation"]}
    assert guarded(headers={"Host": "192.168.1.5:8000"}, **options) == 200
    assert guarded(headers={"Host": "workstation:8000"}, **options) == 200
    assert guarded(headers={"Host": "evil.example"}, **options) == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": f"http://{HERE}"},
        {},  # no browser
        {"Origin": f"http://{HERE}", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_posts_of_the_page(headers: dict[str, str]) -> None:
    """Take what the page itself sends."""
    assert guarded("POST", {"Content-Type": "application/json", **headers}) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9000"},  # another program's page on this machine
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_posts_of_other_sites(headers: dict[str, str]) -> None:
    """Refuse what a page of another site makes a browser send."""
    assert guarded("POST", {"Content-Type": "application/json", **headers}) == 403


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_types_that_browsers_send_unasked(kind: str | None) -> None:
    """Take JSON only: what a form of another site can send is refused."""
    assert guarded("POST", {"Content-Type": kind} if kind else {}) == 415


@pytest.mark.parametrize("host", [HERE, "evil.example"])
def test_headers(host: str) -> None:
    """Let the page load and reach this server alone, on refusals as well."""
    headers = respond("GET", {"Host": host}).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_listening() -> None:
    """Take a free port, and say so when the one asked for is taken."""
    with listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with socket.create_connection((host, port), timeout=5):
            pass
        with pytest.raises(InvalidArgumentError, match=f"port {port}.*--port"):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine() -> None:
    """Say that the address cannot be listened on."""
    with pytest.raises(InvalidArgumentError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    """Tell addresses that only this machine reaches from others."""
    assert is_loopback(host) is expected
