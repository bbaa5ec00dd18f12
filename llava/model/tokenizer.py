"""Tokenizers that give the ids that the language model was pretrained on.

transformers 5 rebuilds Llama-style tokenizers from SentencePiece files and differs from them in three ways:
text that begins with a space loses it, runs of spaces merge too early, and no BOS is added unless
tokenizer_config.json asks for it. This module corrects the pipeline in a form that stays correct when the
tokenizer is saved and loaded.
"""

from __future__ import annotations

import os
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from llava.errors import UserError
from llava.model.files import AGAIN, check_present, first_line, read_json

SPACE = "▁"  # SentencePiece's spelling of a space
JSON_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)


def load_tokenizer(
    path: str | os.PathLike, padding_side: str, model_max_length: int | None = None
) -> PreTrainedTokenizerFast:
    """Load a folder's (or hub repository's) tokenizer; a SentencePiece one gives exactly SentencePiece's ids.

    A tokenizer.json is used as it is, whatever class tokenizer_config.json names; without one,
    tokenizer.model is used. The padding token is the folder's own, else the unknown token, else the
    end-of-sequence token, so that the embeddings need no new row.

    Args:
        padding_side: "left" for generation, either side for training.
        model_max_length: in tokens, image tokens included; by default the folder's.
    Raises:
        UserError: if a file is missing or damaged, the tokenizer is a slow one, or has no token to pad with.
    """
    options: dict = {"padding_side": padding_side}
    if model_max_length is not None:
        options["model_max_length"] = model_max_length
    for name in JSON_FILES:
        if (Path(path) / name).is_file():
            read_json(Path(path) / name)
    if file := _find(path, "tokenizer.json"):
        tokenizer = _from_tokenizers(path, file, options)
    elif file := _find(path, "tokenizer.model"):
        tokenizer = _from_sentencepiece(path, file, options)
    else:
        tokenizer = _from_others(path, options)
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer of {path} is a {type(tokenizer).__name__}, a slow one, which does not give the "
            "positions of tokens in the text; add a tokenizer.json to the folder."
        )
    _keep_leading_spaces(tokenizer.backend_tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(
            f"The tokenizer of {path} has no pad, unknown or end-of-sequence token; name one in "
            "tokenizer_config.json."
        )
    return tokenizer


def separator_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Ids of the separators between tiles and after a row of tiles (`slice`): the pieces "," and "\\n".

    A SentencePiece vocabulary has no piece "\\n", and published checkpoints were trained with the unknown
    token for it. If another vocabulary spells a separator differently, as byte-level BPE does for a newline,
    the separator is encoded.
    """
    vocabulary = tokenizer.get_vocab()

    def look_up(word: str) -> int:
        if word in vocabulary:
            return vocabulary[word]
        if _is_sentencepiece(tokenizer.backend_tokenizer) and tokenizer.unk_token_id is not None:
            return tokenizer.unk_token_id
        return tokenizer.encode(word, add_special_tokens=False)[-1]

    return [look_up(","), look_up("\n")]


def _is_sentencepiece(backend: Tokenizer) -> bool:
    return isinstance(backend.model, BPE) and backend.model.byte_fallback


def _find(path: str | os.PathLike, filename: str) -> str | None:
    return cached_file(path, filename, _raise_exceptions_for_missing_entries=False)


def _from_tokenizers(path: str | os.PathLike, file: str, options: dict) -> PreTrainedTokenizerFast:
    try:
        return PreTrainedTokenizerFast.from_pretrained(path, **options)
    except Exception as error:
        # tokenizers raises the class Exception itself; transformers raises KeyError for a missing part
        if type(error) not in (Exception, KeyError):
            raise
        raise UserError(f"{file} is not a tokenizer ({first_line(error)}); {AGAIN}") from error


def _from_others(path: str | os.PathLike, options: dict) -> PreTrainedTokenizerBase:
    """Load from the files of a family, such as vocab.json and merges.txt."""
    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The tokenizer of {path} cannot be loaded ({first_line(error)}); copy tokenizer.json or "
            "tokenizer.model from the source of the language model."
        ) from error


def _from_sentencepiece(path: str | os.PathLike, model_file: str, options: dict) -> PreTrainedTokenizerFast:
    """Build from tokenizer.model, with transformers' special tokens and SentencePiece's order of merges."""
    check_present(Path(model_file))
    try:
        pieces = SentencePieceProcessor(model_file=model_file)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{model_file} is not a SentencePiece model ({first_line(error)}); {AGAIN}"
        ) from error
    config = get_tokenizer_config(path)
    llama = LlamaTokenizer.from_pretrained(path, **options)
    llama.add_bos_token = config.get("add_bos_token", True)
    backend = llama.backend_tokenizer
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    # transformers 5 orders merges by id, but runs of spaces have low ids and the lowest score
    backend.model = BPE(vocab, generate_merges(vocab, scores), fuse_unk=True, byte_fallback=True)
    # folders from before this setting existed lack it, and are legacy
    _set_prepending(backend, every_section=config.get("legacy") is not False)
    # this class loads a saved tokenizer.json as it is; LlamaTokenizer would rebuild its own pipeline
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=llama.bos_token,
        eos_token=llama.eos_token,
        unk_token=llama.unk_token,
        pad_token=llama.pad_token,
        chat_template=llama.chat_template,
        padding_side=llama.padding_side,
        model_max_length=llama.model_max_length,
        clean_up_tokenization_spaces=False,
    )


def _keep_leading_spaces(backend: Tokenizer) -> None:
    """Replace a Metaspace pre-tokenizer, which unlike SentencePiece adds no space if one is already there."""
    metaspace = backend.pre_tokenizer
    if not _is_sentencepiece(backend) or not isinstance(metaspace, pre_tokenizers.Metaspace):
        return
    if metaspace.prepend_scheme != "never":
        _set_prepending(backend, every_section=metaspace.prepend_scheme == "always")


def _set_prepending(backend: Tokenizer, every_section: bool) -> None:
    """Put a space before each section between special tokens ("legacy"), or only before the text's first."""
    to_pieces = normalizers.Replace(" ", SPACE)
    if every_section:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), to_pieces])
        backend.pre_tokenizer = None
        return
    backend.normalizer = to_pieces
    # the text has no spaces now, so the first step always adds one, which the second spells as in pieces
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
        ]
    )
