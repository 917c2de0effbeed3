"""Record what LlamaIndex's observers see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent


class Events(BaseEventHandler):
    """Keep every instrumentation event."""

    events: list[BaseEvent] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """Return the handler's name."""
        return "Events"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        """Keep an event."""
        self.events.append(event)

    def names(self) -> list[str]:
        """Return the names of the events, in order."""
        return [event.class_name() for event in self.events]


@contextmanager
def recorded_events() -> Iterator[Events]:
    """Record the instrumentation events of a block."""
    dispatcher, handler = get_dispatcher(), Events()
    dispatcher.add_event_handler(handler)
    try:
        yield handler
    finally:
        dispatcher.event_handlers.remove(handler)


class Callbacks(BaseCallbackHandler):
    """Keep every event of the older callback interface."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.starts: list[tuple[CBEventType, dict[str, Any], str]] = []
        self.ends: list[tuple[CBEventType, dict[str, Any], str]] = []

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **_: Any,
    ) -> str:
        """Keep a start."""
        self.starts.append((event_type, payload or {}, event_id))
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **_: Any,
    ) -> None:
        """Keep an end."""
        self.ends.append((event_type, payload or {}, event_id))

    def start_trace(self, trace_id: str | None = None) -> None:
        """Ignore the start of a trace."""

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        """Ignore the end of a trace."""

    def manager(self) -> CallbackManager:
        """Return a manager that reports here."""
        return CallbackManager([self])

    def pairs(self) -> list[CBEventType]:
        """Return the types of the events, having asserted that each start has its end."""
        assert [(kind, name) for kind, _, name in self.starts] == [
            (kind, name) for kind, _, name in self.ends
        ]
        return [kind for kind, _, _ in self.starts]
