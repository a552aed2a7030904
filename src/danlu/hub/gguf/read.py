"""A GGUF file as a model without memory, its parameters still in the file, and its tokenizer.

In:  a file.
Out: ``Opened``.
Left out: what becomes of it (``convert``).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch

from danlu.errors import UserError
from danlu.hub.gguf.architectures import IGNORED, read_architecture
from danlu.hub.gguf.positions import FREQUENCIES, from_divisors
from danlu.hub.gguf.tensors import GGUFTensors
from danlu.hub.gguf.vocabulary import read_tokenizer
from danlu.hub.state import LazyState, without_memory
from danlu.model import Decoder
from danlu.tokens.tokenizer import Tokenizer

_TABLE = "token_embd.weight"


class Opened(NamedTuple):
    """What a file holds.

    Attributes:
        model: without memory.
        state: its parameters.
        tokenizer: the model's.
        facts: what the file says of its origin, for a model card.
    """

    model: Decoder
    state: LazyState
    tokenizer: Tokenizer
    facts: dict[str, Any]


def open_gguf(path: Path, dtype: torch.dtype | None = None) -> Opened:
    """Read everything but the weights.

    Args:
        path: the file.
        dtype: of the parameters; if None, that of the table of tokens, or float16 where that is in blocks.

    Raises:
        UserError: the file is damaged, of an unknown architecture, or its tensors are not those it describes.
    """
    files = GGUFTensors(path)
    try:
        architecture, metadata = read_architecture(files.metadata, files.where)
        config = architecture.config(metadata, files.shape(_TABLE)[0])
        if FREQUENCIES in files.where:
            found = from_divisors(dataclasses.asdict(config), files.read(FREQUENCIES))
            config = dataclasses.replace(config, rope_scaling=found)
        tokenizer = read_tokenizer(files.metadata)
    except (UserError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{path}: {error}") from None
    model = without_memory(config, "lm", files, path)
    assert isinstance(model, Decoder), "no architecture here is an encoder"
    state = LazyState(model, architecture.entries(config, files.where), files, dtype or files.dtype(_TABLE))
    state.refuse_rest(IGNORED)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path}: its tokenizer has {tokenizer.vocab_size} ids and its table {config.vocab_size} rows")
    return Opened(model, state, tokenizer, _facts(path, files.metadata))


def _facts(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    names = {"title": "general.name", "licence": "general.license", "organization": "general.organization"}
    facts = {fact: metadata[key] for fact, key in names.items() if isinstance(metadata.get(key), str)}
    return {**facts, "imported from": path.name}
