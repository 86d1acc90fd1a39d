"""Prompts as users write them (text, chats, ids) become token ids here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Message: TypeAlias = Mapping[str, str]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]


class Tokenizer:
    """A checkpoint's tokenizer, as far as the engine needs it.

    Args:
        inner: a `transformers` tokenizer.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    @property
    def size(self) -> int:
        """Ids it has tokens for; a model's table may be larger."""
        return len(self.inner)

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

    def vocabularies(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Ids of the pieces of sources and of targets; the same ones unless the checkpoint keeps two vocabularies."""
        source: Mapping[str, int] = self.inner.get_vocab()
        return source, getattr(self.inner, "target_encoder", source)

    def decode(self, ids: Sequence[int], /) -> str:
        """Text of the ids, without special tokens and without cleaning up spaces."""
        text: str = self.inner.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer | None, vocabulary: int) -> tuple[int, ...]:
    """Token ids of a prompt.

    Raises:
        UsageError: for an empty prompt, ids outside the vocabulary, or text without a tokenizer.
    """
    if _is_ids(prompt):
        ids = [int(token) for token in prompt]
    elif tokenizer is None:
        raise UsageError("this checkpoint has no tokenizer; pass the prompt as a list of token ids")
    else:
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.chat(prompt)
    if not ids:
        raise UsageError("the prompt is empty; give at least one token")
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise UsageError(f"prompt token id {wrong} is outside the model's vocabulary of {vocabulary}")
    return tuple(ids)


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many: a string, a chat, or a list of ids counts as one."""
    return [prompts] if _is_one(prompts) else list(prompts)


def _is_ids(prompt: Prompt) -> TypeIs[Sequence[int]]:
    return not isinstance(prompt, str) and not (len(prompt) > 0 and isinstance(prompt[0], Mapping))


def _is_one(prompts: Prompt | Sequence[Prompt]) -> TypeIs[Prompt]:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], (int, Mapping)))
