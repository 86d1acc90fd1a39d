"""Documents as one long row of ids, and training batches as a pure function of how many tokens were seen.

Because a batch depends only on (seed, tokens seen, context), resuming needs no data-loader state: the counter is the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int
from torch import Tensor

from paceline.core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = npt.NDArray[np.uint16]


@dataclass(slots=True)
class PackedDocuments:
    """Tokenised documents, each ended by the end-of-text id, served as rows of fixed length.

    Each epoch shuffles the documents, joins them, cuts the joined row into windows of the context length and shuffles the windows:
    rows cross document borders but one batch mixes many documents.

    Args:
        documents: ids of each document, end-of-text included.
        seed: decides every order.
    """

    documents: Sequence[Ids]
    seed: int
    _cached: tuple[int, int] = field(default=(-1, -1), init=False)  # (epoch, context) of the two below
    _joined: Ids = field(default_factory=lambda: np.empty(0, np.uint16), init=False)
    _order: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), init=False)

    @property
    def tokens(self) -> int:
        """Tokens in one epoch."""
        return sum(map(len, self.documents))

    def batch(self, tokens_seen: int, rows: int, context: int) -> Int[Tensor, "rows context_plus_1"]:
        """Rows of `context + 1` ids: inputs are all but the last column, targets all but the first.

        Raises:
            UsageError: if the corpus is shorter than one row.
        """
        if self.tokens <= context:
            raise UsageError(f"the corpus has {self.tokens} tokens, fewer than one row of {context}; use more text or a shorter context")
        picked = []
        for row in range(rows):
            epoch, offset = divmod(tokens_seen + row * context, self.tokens)
            self._prepare(epoch, context)
            start = int(self._order[(offset // context) % len(self._order)]) * context
            picked.append(self._joined[start : start + context + 1])
        return torch.from_numpy(np.stack(picked).astype(np.int64))

    def _prepare(self, epoch: int, context: int) -> None:
        if self._cached == (epoch, context):
            return
        shuffle = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        self._joined = np.concatenate([self.documents[i] for i in shuffle.permutation(len(self.documents))])
        self._order = shuffle.permutation((len(self._joined) - 1) // context)
        self._cached = (epoch, context)


def encode_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """Ids of each text followed by end-of-text, as 16-bit integers (the vocabulary is far below 65,536)."""
    # The backend is asked directly: documents are longer than the model's context on purpose, which the wrapper would warn about.
    encodings = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [np.array([*encoding.ids, tokenizer.eos_token_id], dtype=np.uint16) for encoding in encodings]
