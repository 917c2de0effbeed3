"""Generation: the prompt, the language model, and its failures in plain words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import openai
from llama_index.core.llms import ChatMessage, LLMMetadata, MessageRole
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.llms.openai import OpenAI

from .errors import GenerationError

DEFAULT_LLM = "gpt-4o"

ANSWER_PROMPT = ChatPromptTemplate(
    [
        ChatMessage(
            role=MessageRole.SYSTEM,
            content="You answer questions from the passages you are given, and from nothing else. "
            "Name what the passages name. If they do not hold the answer, say so.",
        ),
        ChatMessage(
            role=MessageRole.USER,
            content="<context>\n{context_str}\n</context>\n\n<question>\n{query_str}\n</question>\n\n"
            "Answer the question from the context.",
        ),
    ]
)


class ChatModel(OpenAI):
    """LlamaIndex's OpenAI class, also for model names that only a server of one's own knows."""

    @property
    def metadata(self) -> LLMMetadata:
        """Return what is known of the model; a small context is assumed of unknown ones."""
        try:
            return super().metadata
        except ValueError:
            return LLMMetadata(context_window=8192, is_chat_model=True, model_name=self.model)


def chat_model(model: str = DEFAULT_LLM, base_url: str | None = None, **kwargs: Any) -> ChatModel:
    """Return the language model that answers, at OpenAI or at a server that speaks its protocol."""
    if base_url is not None:
        # Servers of one's own seldom want a key, but the client insists on having one.
        kwargs.setdefault("api_key", os.environ.get("OPENAI_API_KEY") or "none")
    return ChatModel(
        model=model, api_base=base_url, **{"max_retries": 2, "timeout": 60.0, **kwargs}
    )


def stream_answer(
    engine: RetrieverQueryEngine, question: str, nodes: Sequence[NodeWithScore]
) -> Iterator[str]:
    """Yield the answer to a question from ranked nodes, as it is written.

    Args:
        engine: A streaming query engine; see `pipeline.query_engine`.
        question: The question.
        nodes: The passages to answer from, best first.

    Raises:
        GenerationError: The language model gave no answer.
    """
    try:
        response = engine.synthesize(QueryBundle(question), nodes=list(nodes))
        empty = True
        for piece in getattr(response, "response_gen", None) or [str(response)]:
            empty = empty and not piece.strip()
            yield piece
        if empty:
            raise GenerationError(
                "The language model answered nothing. Check that --llm-base-url is the address of "
                "an OpenAI-compatible API (it often ends in /v1)."
            )
    except openai.AuthenticationError as error:
        raise GenerationError("The API key was refused. Check OPENAI_API_KEY.") from error
    except openai.NotFoundError as error:
        raise GenerationError(
            f"The server knows no such model or address: {error.message}. Check --llm and --llm-base-url."
        ) from error
    except openai.RateLimitError as error:
        raise GenerationError(
            f"Too many requests, or the quota is used up: {error.message}. Try again later."
        ) from error
    except openai.APIConnectionError as error:
        reason = error.__cause__ or error
        raise GenerationError(
            f"Cannot reach {error.request.url.host}: {reason}. Check the network and --llm-base-url."
        ) from error
    except httpx.HTTPError as error:
        raise GenerationError(f"The connection broke off in mid-answer: {error}") from error
    except openai.APIError as error:
        raise GenerationError(f"The language model failed: {error.message}") from error
