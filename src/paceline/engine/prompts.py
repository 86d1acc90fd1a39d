"""Prompts as users write them (text, chats, ids) become token ids here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from operator import index
from typing import TYPE_CHECKING, Any, TypeAlias

from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Message: TypeAlias = Mapping[str, str]
Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]

SHAPES = "a prompt is a text, a list of token ids, or a chat (a list of messages with role and content)"


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
            UsageError: if the checkpoint has no chat template, or its template refuses the messages (roles that do not alternate).
        """
        if not getattr(self.inner, "chat_template", None):
            raise UsageError("this model's tokenizer has no chat template; pass the prompt as text instead")
        from jinja2 import TemplateError

        try:
            ids = self.inner.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)
        except TemplateError as error:
            raise UsageError(f"this model's chat template refuses the messages: {error}") from None
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
        UsageError: for an empty prompt, ids outside the vocabulary, text without a tokenizer, or anything that is no prompt.
    """
    if isinstance(prompt, str):
        ids = _required(tokenizer).encode(prompt)
    elif _is_chat(prompt):
        ids = _required(tokenizer).chat([_message(entry) for entry in prompt])
    else:
        ids = [_token_id(entry) for entry in _listed(prompt)]
    if not ids:
        raise UsageError("the prompt is empty; give at least one token")
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise UsageError(f"prompt token id {wrong} is outside the model's vocabulary of {vocabulary}")
    return tuple(ids)


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many: a string, a chat, or a list of ids counts as one.

    Raises:
        UsageError: for anything else that is no list.
    """
    return [prompts] if _is_one(prompts) else list(_listed(prompts))


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Strings that end an output; a single one may stand alone.

    Raises:
        UsageError: for an empty string, or something else than strings.
    """
    if not isinstance(stop, Iterable) or not all(isinstance(text, str) for text in stop):
        raise UsageError(f"stop={stop!r} must be a string or a list of strings; ids go to stop_ids")
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(texts):
        raise UsageError("a stop string is empty; remove it")
    return texts


def end_ids(stop_ids: Sequence[int], vocabulary: int) -> frozenset[int]:
    """Ids that end an output.

    Raises:
        UsageError: for an id that the model never generates, or something else than ids.
    """
    if not isinstance(stop_ids, Iterable) or isinstance(stop_ids, str):
        raise UsageError(f"stop_ids={stop_ids!r} must be a list of token ids")
    found = frozenset(_token_id(entry, "stop_ids must be token ids") for entry in stop_ids)
    if wrong := [token for token in found if not 0 <= token < vocabulary]:
        raise UsageError(f"stop id {wrong[0]} is outside the model's vocabulary of {vocabulary}")
    return found


def _is_chat(prompt: Prompt) -> TypeIs[Sequence[Message]]:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _is_one(prompts: Prompt | Sequence[Prompt]) -> TypeIs[Prompt]:
    if isinstance(prompts, str) or getattr(prompts, "ndim", 0) == 1:  # an array of one dimension holds ids
        return True
    entries = _listed(prompts)
    return len(entries) > 0 and isinstance(entries[0], (Mapping, Number))


def _listed(prompt: Any) -> Any:
    """The same, if it has entries in an order; arrays of ids have.

    Raises:
        UsageError: otherwise.
    """
    array = getattr(prompt, "ndim", 0) > 0
    if array or (isinstance(prompt, Sequence) and not isinstance(prompt, bytes)):
        return prompt
    raise UsageError(f"{SHAPES}, not a {type(prompt).__name__}")


def _token_id(entry: Any, wanted: str = SHAPES) -> int:
    """A token id: a Python integer, or a NumPy or torch one."""
    try:
        if not isinstance(entry, bool):
            return index(entry)
    except TypeError:
        pass
    raise UsageError(f"{wanted}; a list of ids cannot hold {entry!r}")


def _message(entry: object) -> Message:
    if not isinstance(entry, Mapping) or "role" not in entry or "content" not in entry:
        raise UsageError(f"every message of a chat needs a 'role' and a 'content', and {entry!r} is none")
    return entry


def _required(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise UsageError("this checkpoint has no tokenizer; pass the prompt as a list of token ids")
    return tokenizer
