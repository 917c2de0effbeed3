"""Find out what a query engine would send to its language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms import CustomLLM


class PromptRecorder(CustomLLM):
    """Stands in for a language model: notes the messages of each call and answers with one word.

    Passages are packed as for the model whose size it is given.
    """

    context_window: int
    num_output: int
    is_chat_model: bool = True

    _calls: list[list[ChatMessage]] = PrivateAttr(default_factory=list)

    @property
    def calls(self) -> list[list[ChatMessage]]:
        """The messages of each call so far."""
        return self._calls

    @property
    def metadata(self) -> LLMMetadata:
        """Return the size of the model it stands in for."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.num_output,
            is_chat_model=self.is_chat_model,
        )

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Note the messages."""
        self._calls.append(list(messages))
        return ChatResponse(message=ChatMessage(role="assistant", content="recorded"))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Note the messages."""
        response = self.chat(messages)
        response.delta = "recorded"
        yield response

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Note the prompt as one message."""
        self._calls.append([ChatMessage(role="user", content=prompt)])
        return CompletionResponse(text="recorded")

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Note the prompt as one message."""
        response = self.complete(prompt)
        response.delta = "recorded"
        yield response
