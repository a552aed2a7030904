"""Inference: sampling, batched generation over static caches, streaming, chat.

In:  a model and its tokenizer, prompts as token ids.
Out: completions with log-probabilities, or text piece by piece.
Left out: prompts' templates (``tokens.chat``), HTTP (``serve``).
"""

from danlu.infer.batch import Completion, Token
from danlu.infer.chat import Chat
from danlu.infer.fitting import fit, reserve
from danlu.infer.generate import Generator, Sampler
from danlu.infer.sampler import Sampling
from danlu.infer.shots import left_out, read_shots, with_shots

__all__ = [
    "Chat", "Completion", "Generator", "Sampler", "Sampling", "Token", "fit", "left_out", "read_shots", "reserve",
    "with_shots",
]  # fmt: skip
