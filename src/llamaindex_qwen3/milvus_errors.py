"""What Milvus and its transport raise, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from pymilvus.exceptions import MilvusException

from .errors import StoreError


@contextmanager
def plain_errors(uri: str, hybrid: bool = False) -> Iterator[None]:
    """Turn what Milvus and its transport raise into a StoreError in plain words."""
    try:
        yield
    # pymilvus passes some errors of the transport on as they are.
    except (MilvusException, grpc.RpcError, ConnectionError, OSError) as error:
        raise StoreError(_plain_reason(uri, error, hybrid)) from error


def _plain_reason(uri: str, error: BaseException, hybrid: bool) -> str:
    if "://" not in uri and "Open local milvus failed" in str(error):
        return (
            f"Cannot open the Milvus Lite database {uri!r}: {error}. Either another process has it "
            "open (one at a time may), or it was written by Milvus Lite 2 or is not a database; "
            "then give another path."
        )
    # A wrong token and a dead server have the same message; the gRPC status tells them apart.
    causes = _causes(error)
    status = {name for cause in causes if (name := _status(cause))}
    said = next((str(c.details()) for c in causes if hasattr(c, "details")), str(error))
    if "UNAUTHENTICATED" in status:
        return f"Milvus at {uri!r} refused the token. Give token='user:password' or an API key."
    if "PERMISSION_DENIED" in status or "PrivilegeNotPermitted" in str(error):
        return f"Milvus at {uri!r} does not permit this to the token's user: {said}"
    if "RESOURCE_EXHAUSTED" in status and "trying to send" in said:
        return f"The answer of Milvus at {uri!r} is too large. Ask for fewer rows. ({said})"
    if "RESOURCE_EXHAUSTED" in status:
        return f"One call to Milvus at {uri!r} is too large. Lower batch_size. ({said})"
    if "DEADLINE_EXCEEDED" in status:
        return f"Milvus at {uri!r} did not answer in time: {said}"
    if "UNAVAILABLE" in status or "Fail connecting" in str(error):
        return f"Milvus at {uri!r} cannot be reached. Check the address and that it runs."
    if hybrid:
        return (
            f"Milvus at {uri!r} cannot build the index of words that hybrid=True asks for (a server "
            f"needs version 2.5; Milvus Lite knows the standard analyzer only): {error}"
        )
    return f"Milvus at {uri!r} refused: {error}"


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop(0)
        # pymilvus raises errors from themselves.
        if cause is not None and not any(cause is seen for seen in chain):
            chain.append(cause)
            waiting += [cause.__cause__, cause.__context__]
    return chain


def _status(error: BaseException) -> str:
    """Return the name of a gRPC error's status."""
    code = error.code() if isinstance(error, grpc.RpcError) and hasattr(error, "code") else None
    return str(getattr(code, "name", ""))
