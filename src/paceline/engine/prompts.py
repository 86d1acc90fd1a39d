"""Prompts as users write them (text, chats, ids) become token ids here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from paceline.core.errors import UsageError

Message: TypeAlias = Mapping[str, str]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]


class Tokenizer:
    """A checkpoint's tokenizer, as far as the engine needs it.

    Args:
        inner: a `transformers` tokenizer.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def encode(self, text: str) -> list[int]:
        """Ids of a plain prompt, with the special tokens the checkpoint puts around text (BOS)."""
        return list(self.inner.encode(text))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a chat up to where the assistant speaks.

        Raises:
            UsageError: if the checkpoint has no chat template.
        """
        if not getattr(self.inner, "chat_template", None):
            raise UsageError("this model's tokenizer has no chat template; pass the prompt as text instead")
        ids = self.inner.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)
        return list(ids)

    def decode(self, ids: Sequence[int], /) -> str:
        """Text of the ids, without special tokens and without cleaning up spaces."""
        text: str = self.inner.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer | None, vocabulary: int) -> tuple[int, ...]:
    """Token ids of a prompt.

    Raises:
        UsageError: for an empty prompt, ids outside the vocabulary, or text without a tokenizer.
    """
    if isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping)):
        if tokenizer is None:
            raise UsageError("this checkpoint has no tokenizer; pass the prompt as a list of token ids")
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.chat(prompt)  # type: ignore[arg-type]
    else:
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]
    if not ids:
        raise UsageError("the prompt is empty; give at least one token")
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise UsageError(f"prompt token id {wrong} is outside the model's vocabulary of {vocabulary}")
    return tuple(ids)


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many: a string, a chat, or a list of ids counts as one."""
    if isinstance(prompts, str) or not prompts:
        return [prompts] if isinstance(prompts, str) else []
    first = prompts[0]
    if isinstance(first, (int, Mapping)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
