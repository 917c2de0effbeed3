"""A real HTTP server that answers chat completions in OpenAI's documented shapes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = ["Milvus keeps ", "[segments] in ", "object storage."]


class _Handler(BaseHTTPRequestHandler):
    requests: list[dict[str, Any]]
    answer: Sequence[str]
    hold: threading.Event | None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
        if self.headers.get("Authorization") == "Bearer wrong":
            self._error(401, "Incorrect API key provided", "invalid_api_key")
        elif body["model"] == "no-such-model":
            self._error(404, "The model `no-such-model` does not exist", "model_not_found")
        elif body.get("stream"):
            self._stream(body["model"], _deltas(body, self.answer))
        else:
            self._whole(body["model"])

    def _error(self, status: int, message: str, code: str) -> None:
        self._json(status, {"error": {"message": message, "type": "x", "code": code}})

    def _whole(self, model: str) -> None:
        message = {"role": "assistant", "content": "".join(self.answer)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        completion = {
            "id": "c", "object": "chat.completion", "created": 0, "model": model,
            "choices": [choice],
        }  # fmt: skip
        self._json(200, completion)

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, model: str, deltas: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        end = "tool_calls" if "tool_calls" in deltas[0] else "stop"
        for i, delta in enumerate([*deltas, {}]):
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else end}
            chunk = {
                "id": "c", "object": "chat.completion.chunk", "created": i, "model": model,
                "choices": [choice],
            }  # fmt: skip
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            if self.hold and i == 1:  # the first piece is on its way
                self.hold.wait(30)
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args: object) -> None:
        pass


def _deltas(body: dict[str, Any], answer: Sequence[str]) -> list[dict[str, Any]]:
    """Call the first tool there is with the question, and answer once a tool has been called."""
    messages = body["messages"]
    if body.get("tools") and messages[-1]["role"] == "user":
        function = {
            "name": body["tools"][0]["function"]["name"],
            "arguments": json.dumps({"input": messages[-1]["content"]}),
        }
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}]
    return [{"role": "assistant", "content": ""}, *({"content": piece} for piece in answer)]


@contextmanager
def serve(
    answer: Sequence[str] = ANSWER, hold: threading.Event | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the base URL of a running server and the requests it gets.

    Args:
        answer: The pieces it answers with.
        hold: Waited for after the first piece.
    """
    requests: list[dict[str, Any]] = []
    settings = {"requests": requests, "answer": answer, "hold": hold}
    handler = type("Handler", (_Handler,), settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
