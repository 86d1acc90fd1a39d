"""What all recipes of a build share: the corpus by split, its tokenizer, and the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.zoo.corpus import Manifest, SourceFile, Split, manifest, stdlib_files
from paceline.zoo.packing import Ids, encode_documents
from paceline.zoo.tokenizer import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUICK_VALIDATION_TOKENS = 40_000  # scored now and then during training; the card's figure covers every validation file


@dataclass(slots=True)
class Material:
    """Corpus, tokenizer and tokenised splits."""

    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase
    train: list[Ids]
    train_texts: list[str]
    validation: list[Ids]
    validation_texts: list[str]
    held_out: list[SourceFile]

    def quick_validation(self) -> tuple[list[Ids], int]:
        """The first validation files up to a token limit, with their bytes."""
        chosen: list[Ids] = []
        for document in self.validation:
            if chosen and sum(map(len, chosen)) + len(document) > QUICK_VALIDATION_TOKENS:
                break
            chosen.append(document)
        return chosen, sum(len(text.encode()) for text in self.validation_texts[: len(chosen)])


def prepare(work_dir: Path, vocabulary: int, max_files: int | None = None, parent: Path | None = None) -> Material:
    """Read the corpus, get the tokenizer (the one in `work_dir`, else a parent's, else a new one) and tokenise.

    Args:
        vocabulary: ids of a tokenizer that has yet to be learnt.
        parent: folder of a finished model that every model to be made descends from. Its tokenizer is taken: one learnt from another
            interpreter's library would number other pieces than its weights do.
        max_files: use only so many training files and a tenth as many validation files, for smoke builds.
    """
    by_split: dict[Split, list[SourceFile]] = {split: [] for split in Split}
    for file in stdlib_files():
        by_split[file.split].append(file)
    if max_files is not None:
        by_split[Split.TRAIN] = by_split[Split.TRAIN][:max_files]
        by_split[Split.VALIDATION] = by_split[Split.VALIDATION][: max(1, max_files // 10)]
    train, validation = ([file.text for file in by_split[split]] for split in (Split.TRAIN, Split.VALIDATION))
    folder = work_dir / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        (train_tokenizer(train, vocabulary) if parent is None else load_tokenizer(parent)).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    return Material(
        manifest=manifest(file for files in by_split.values() for file in files),
        tokenizer=tokenizer,
        train=encode_documents(train, tokenizer),
        train_texts=train,
        validation=encode_documents(validation, tokenizer),
        validation_texts=validation,
        held_out=by_split[Split.HELD_OUT],
    )
