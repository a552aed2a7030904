"""The train room: from random weights to a base model, from a base model to one that answers.

In:  token shards, documents, conversations, model directories.
Out: the stages ``pretrain`` and ``sft``; the one training loop with its optimizers and checkpoints; instruction tasks.
Left out: preferences and reinforcement (``align``), which use the same loop and checkpoints.
"""

from danlu.train.checkpoint import Checkpoint, load_latest, save_checkpoint
from danlu.train.instructions import PoemMix, PoemRequest, parse_request
from danlu.train.language import next_token_loss
from danlu.train.loop import run_loop, train_step
from danlu.train.muon import Muon
from danlu.train.optim import Optimizer, build_optimizer
from danlu.train.pretrain import PretrainSettings, pretrain
from danlu.train.schedule import learning_rate
from danlu.train.sft import SFTSettings, sft
from danlu.train.task import LoopSettings, LossOutput, Task

__all__ = [
    "Checkpoint",
    "LoopSettings",
    "LossOutput",
    "Muon",
    "Optimizer",
    "PoemMix",
    "PoemRequest",
    "PretrainSettings",
    "SFTSettings",
    "Task",
    "build_optimizer",
    "learning_rate",
    "load_latest",
    "next_token_loss",
    "parse_request",
    "pretrain",
    "run_loop",
    "save_checkpoint",
    "sft",
    "train_step",
]
