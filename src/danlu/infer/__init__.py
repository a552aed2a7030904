"""Inference: sampling, continuous batching over cached keys and values, streaming, chat.

In:  a model and its tokenizer, prompts as token ids.
Out: completions with log-probabilities, or text piece by piece.
Left out: prompts' templates (``tokens.chat``), HTTP (``serve``).
"""

from danlu.infer.answer import Completion, Request, Token
from danlu.infer.batching import Event
from danlu.infer.chat import Chat
from danlu.infer.engine import Engine
from danlu.infer.fitting import fit, reserve
from danlu.infer.generate import Generator, Sampler
from danlu.infer.sampler import Sampling
from danlu.infer.shots import left_out, read_shots, with_shots

__all__ = [
    "Chat",
    "Completion",
    "Engine",
    "Event",
    "Generator",
    "Request",
    "Sampler",
    "Sampling",
    "Token",
    "fit",
    "left_out",
    "read_shots",
    "reserve",
    "with_shots",
]
