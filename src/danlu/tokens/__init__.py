"""The tokens room: documents to a tokenizer, token shards, packed rows and batches; conversations to ids.

In:  documents and conversations.
Out: ``Tokenizer``, the ``chat`` template, shards, pack indices, batches; the stages ``tokenizer`` and ``tokens``.
Left out: cleaning (``corpus``), models.
"""

from danlu.tokens import chat
from danlu.tokens.loader import Batch, Loader, one_pass
from danlu.tokens.pack import PackIndex, pack
from danlu.tokens.shards import Shards, read_shards, write_shards
from danlu.tokens.stages import TokenizerSettings, TokensSettings, build_shards, build_tokenizer
from danlu.tokens.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "Loader",
    "PackIndex",
    "Shards",
    "Tokenizer",
    "TokenizerSettings",
    "TokensSettings",
    "build_shards",
    "build_tokenizer",
    "chat",
    "one_pass",
    "pack",
    "read_shards",
    "write_shards",
]
