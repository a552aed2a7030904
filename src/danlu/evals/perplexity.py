"""Bits per byte on unseen text: how well a model foresees it, whatever its tokenizer.

In:  a run's held-out text (the validation shard, or for an adopted model the held-out conversations); any text.
Out: bits per UTF-8 byte.
Left out: perplexity per token, which changes with the vocabulary; the loss itself (``train.language``).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from danlu.errors import UserError
from danlu.model.decoder import Decoder
from danlu.records import read_conversations
from danlu.run import Stage
from danlu.tokens import chat
from danlu.tokens.pack import pack
from danlu.tokens.shards import Masked, read_shards, write_shards
from danlu.tokens.tokenizer import Tokenizer
from danlu.train.language import Text, evaluate_text
from danlu.train.parallel import ALONE, World

SEEN = "documents_bpb"
"""The figure of what practice only sees: it may change what is told of a model, not the model's directory."""
_ROW, _BATCH_TOKENS = 512, 8192


def heldout_text(
    stage: Stage, tokenizer: Tokenizer, max_seq_len: int, n_tokens: int, world: World = ALONE
) -> Text:  # fmt: skip
    """Held-out documents of a run, evenly spread over them, about ``n_tokens`` together; one at least, all if fewer.

    They are written to ``stage.dir/heldout`` as shards of their own, so that their bytes are counted exactly.

    Args:
        stage: with the input ``tokens``, or else ``sft``.
        tokenizer: the models'.
        max_seq_len: longest row that the models can read.
        n_tokens: how much text.
        world: the processes that ask for them; the first writes them down, all read that.
    """
    documents = [ids for ids in _documents(stage, tokenizer) if len(ids) > 1]
    chosen = _spread([len(ids) for ids in documents], n_tokens)
    kept = ((np.asarray(ids).tolist(), None) for ids in compress(documents, chosen))
    return _as_text(stage.dir / "heldout", kept, tokenizer, max_seq_len, world)


def heldout_answers(
    stage: Stage, tokenizer: Tokenizer, max_seq_len: int, n_tokens: int, world: World = ALONE
) -> Text:  # fmt: skip
    """Held-out conversations, of which only the answers count: what a chat model is for.

    Its bits per byte on documents say little. Tuning has made it forget them in part, and damage to a model that is bad
    at something may make it better at that by chance.

    Args:
        stage: with the input ``sft``.
        tokenizer: the models'.
        max_seq_len: longest row that the models can read.
        n_tokens: how much text, prompts included; whole conversations, one at least.
        world: the processes that ask for them; the first writes them down, all read that.
    """
    conversations, _ = read_conversations(stage.inputs["sft"] / "conversations" / "heldout.jsonl")
    encoded = [chat.encode_conversation(tokenizer, conversation) for conversation in conversations]
    kept = compress(encoded, _spread([len(ids) for ids, _ in encoded], n_tokens))
    return _as_text(stage.dir / "answers", kept, tokenizer, max_seq_len, world)


def heldout_texts(
    stage: Stage, tokenizer: Tokenizer, max_seq_len: int, n_tokens: int, world: World = ALONE
) -> dict[str, Text]:  # fmt: skip
    """What shows a model's forgetting, by the names of its bits per byte, each of about ``n_tokens``.

    ``heldout_bpb`` are held-out answers, ``documents_bpb`` held-out documents if the run has read any.

    Args:
        stage: with the input ``sft`` and perhaps ``tokens``.
        tokenizer, max_seq_len, n_tokens, world: as for ``heldout_answers``.
    """
    texts = {"heldout_bpb": heldout_answers(stage, tokenizer, max_seq_len, n_tokens, world)}
    if "tokens" in stage.inputs:
        texts[SEEN] = heldout_text(stage, tokenizer, max_seq_len, n_tokens, world)
    return texts


def bits_per_byte(model: Decoder, text: Text) -> float:
    """Bits that the model needs per UTF-8 byte of the text that counts, ends of documents or answers included."""
    return evaluate_text(model, text, max(1, _BATCH_TOKENS // text.pack.seq_len))["bpb"]


def text_bits_per_byte(model: Decoder, tokenizer: Tokenizer, text: str) -> dict[str, float]:
    """Bits per byte of one text, read as one document: ``bpb``, and the ``bytes`` and ``tokens`` that it has.

    Raises:
        UserError: the text is empty.
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise UserError("the text is empty; bits per byte need at least one")
    with tempfile.TemporaryDirectory() as folder:
        document = [tokenizer.bos, *ids, tokenizer.eos]
        laid_out = _as_text(Path(folder) / "text", [(document, None)], tokenizer, model.config.max_seq_len)
        return {"bpb": bits_per_byte(model, laid_out), "bytes": len(text.encode()), "tokens": len(ids)}


def _spread(lengths: Sequence[int], n_tokens: int) -> Iterator[bool]:
    """Which of the sequences to keep, spread evenly, about ``n_tokens`` together; one at least, all if fewer."""
    every = max(1, sum(lengths))
    kept = min(every, max(n_tokens, math.ceil(every / max(1, len(lengths)))))
    return ((place + 1) * kept // every > place * kept // every for place in range(len(lengths)))


def _as_text(
    folder: Path, sequences: Iterable[Masked], tokenizer: Tokenizer, max_seq_len: int, world: World = ALONE
) -> Text:  # fmt: skip
    if world.main:
        write_shards(folder, sequences, tokenizer)
    world.wait()
    shards = read_shards(folder, tokenizer)
    return Text(shards, pack(shards, min(max_seq_len, _ROW)))


def _documents(stage: Stage, tokenizer: Tokenizer) -> Iterable[Sequence[int] | npt.NDArray[Any]]:
    """Ids of every held-out document; those of shards stay on the disk until they are read."""
    if "tokens" in stage.inputs:
        shards = read_shards(stage.inputs["tokens"] / "shards" / "val", tokenizer)
        return np.split(np.asarray(shards.tokens), shards.ends[:-1].astype(np.int64))
    conversations, _ = read_conversations(stage.inputs["sft"] / "conversations" / "heldout.jsonl")
    return (chat.encode_conversation(tokenizer, conversation)[0] for conversation in conversations)
