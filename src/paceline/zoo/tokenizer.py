"""The one tokenizer of the pocket models: byte-level BPE over Python source, shared so that any of them can draft for any other.

Pre-tokenisation keeps line structure out of the merges: a run of newlines, a run of indentation and a word are separate pieces. A
prompt that ends after a colon, after a newline or after the indentation is therefore cut at a token boundary, and its completion is
not biased by the cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
MASK = "<|mask|>"
CHAT_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
END_OF_TURN = "<|end|>"

# Fixed ids 0..15. The unused ones wait for later models (sequence to sequence, fill in the middle, images): one vocabulary for all.
SPECIALS = (
    END_OF_TEXT,
    PAD,
    MASK,
    *CHAT_ROLES,
    END_OF_TURN,
    "<|bos|>",
    "<|sep|>",
    "<|prefix|>",
    "<|middle|>",
    "<|suffix|>",
    "<|image|>",
    "<|extra_0|>",
    "<|extra_1|>",
)

# Words with an optional leading space or dot and their underscores (`_name`, `__init__`, `.append`), runs of punctuation, single
# digits, then newlines and spaces in runs of their own. Every character matches some alternative: the round trip is lossless.
PIECES = r"[ .]?_*[^\W\d_]+(?:_+(?![^\W\d_]))?| ?[^\s\w]+| ?\d| ?_+|\n+| +|\s"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerBase:
    """Learn merges from `texts`; the result depends on nothing else.

    Args:
        vocabulary: total ids: 16 specials, 256 bytes, the rest merges.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(byte_fallback=False))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer=trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        mask_token=MASK,
        additional_special_tokens=[token for token in SPECIALS if token not in (END_OF_TEXT, PAD, MASK)],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a tokenizer that `save_pretrained` wrote.

    Raises:
        CheckpointError: if the folder has no `tokenizer.json`.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder.name}/tokenizer.json is missing; rebuild it with `paceline zoo build`")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer
