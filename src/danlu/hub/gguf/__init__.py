"""GGUF, the format of llama.cpp: one file with shape, weights and tokenizer.

In:  a file, or a model.
Out: the other of the two.
Left out: reward models (llama.cpp has no head for them), importance matrices, K-quants when writing: the package
``gguf`` cannot make them.
"""

from danlu.hub.gguf.read import open_gguf
from danlu.hub.gguf.write import TYPES, write_gguf

__all__ = ["TYPES", "open_gguf", "write_gguf"]
