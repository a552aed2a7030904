"""What a stage takes, before it runs: FLOPs a token, memory, disk.

In:  a stage's settings, the shape of its model; of practice also how its reward model is made.
Out: numbers that follow from these. Memory is an estimate, the rest is counted.
Left out: time, which is a machine's (``plan``); whether the disk has the room (``pipeline``).

A stage with an adapter trains that alone: gradients, moments and checkpoints are the adapter's, and the backward
computes no gradient of frozen weights, a third of a step's products.
"""

from __future__ import annotations

from danlu.align import PPOSettings, PracticeSettings, RewardSettings
from danlu.align.rewards import MODEL
from danlu.compress import CompressSettings
from danlu.device import ComputeSettings
from danlu.model.config import ModelConfig
from danlu.model.count import STATE_BYTES, activation_bytes, flops_per_token, parameters
from danlu.recipe import Settings
from danlu.records import ROLES
from danlu.train import LoopSettings, PretrainSettings, SFTSettings
from danlu.train.adapters import Adaptable, AdapterSettings, Footprint, footprint

_FP32 = 4  # bytes
_ADAM = 3  # copies of what is trained in a checkpoint: the weights and two moments
_COMPRESSED = 4  # models that the stage compress writes, 8-bit ones among them


def adapter_of(settings: Settings) -> AdapterSettings:
    """What a stage trains in place of all weights; kind none if nothing."""
    return settings.adapter if isinstance(settings, Adaptable) else AdapterSettings()


def footprint_of(config: ModelConfig, settings: Settings) -> Footprint:
    """What of its model a stage trains, and what it only reads.

    With an adapter ``sft`` trains the rows of what opens a turn, one of each role; a base from elsewhere may need a few
    rows more, or none.
    """
    return footprint(config, adapter_of(settings), len(ROLES) if isinstance(settings, SFTSettings) else 0)


# ----------------------------------------------------------------------------------------------- FLOPs


def forward_flops(config: ModelConfig, settings: Settings, length: int) -> float:
    """FLOPs a token of reading ``length`` tokens, an adapter's among them."""
    return flops_per_token(config, length) / 3 + 2 * _thin(config, settings)


def learning_flops(config: ModelConfig, settings: Settings, length: int) -> float:
    """FLOPs a token of the forward and backward of what a stage trains."""
    spared = 2 * parameters(config).matmul if _thin(config, settings) else 0
    return flops_per_token(config, length) - spared + 6 * _thin(config, settings)


def _thin(config: ModelConfig, settings: Settings) -> int:
    """Numbers of the adapter that a token is multiplied with, if there is one; rows stand where others stood."""
    adapter = adapter_of(settings)
    return footprint(config, adapter).trained if adapter.kind != "none" else 0


# ---------------------------------------------------------------------------------------------- memory


def training_memory(config: ModelConfig, settings: ComputeSettings, rows: int, length: int) -> int:
    """Bytes of training a model on ``rows`` rows of ``length`` tokens at once."""
    found = footprint_of(config, settings)
    kept = found.frozen + STATE_BYTES * found.trained + _cast(config, settings)
    return _at_least(config, found.frozen, kept + activation_bytes(config, rows, length))


def practice_memory(config: ModelConfig, settings: PracticeSettings, reward: RewardSettings) -> int:
    """Bytes of practice: the policy and its best weights so far, perhaps their mean, the reference, what scores
    answers, for PPO a critic.

    Args:
        config: of all of them.
        settings: of the stage.
        reward: of the reward model, which stands on the trunk of a policy with an adapter if it has one too, in the
            same bits.
    """
    found, whole = footprint(config, settings.adapter), _FP32 * parameters(config).total
    learners = 2 if isinstance(settings, PPOSettings) else 1
    kept = (STATE_BYTES * learners + _FP32 * (1 + bool(settings.ema))) * found.trained
    kept += found.frozen or whole  # the trunk; or the reference, a model of its own
    if any(term.source == MODEL for term in settings.rewards):
        shared = found.frozen and reward.adapter.kind != "none" and _bits(reward) == _bits(settings)
        kept += _FP32 * footprint(config, reward.adapter).trained if shared else whole
    kept += whole if reward.audit_share else 0
    kept += 2 * _cast(config, settings)  # the sampler's, and those of an update
    return _at_least(config, found.frozen, kept + activation_bytes(config, settings.micro_batch, config.max_seq_len))


def _bits(settings: Adaptable) -> int:
    return settings.adapter.base_bits


def _at_least(config: ModelConfig, frozen: int, wanted: int) -> int:
    """A model comes whole and is written whole: beside a base in few bits there is once one in 32."""
    return max(wanted, frozen + _FP32 * parameters(config).total) if frozen else wanted


def _cast(config: ModelConfig, settings: ComputeSettings) -> int:
    """Copies of the weights in the dtype of the products, which the backward reads; of 4-bit ones none is kept."""
    width, bits = settings.machine().compute_dtype.itemsize, adapter_of(settings).base_bits
    return 0 if bits in (4, 8 * width) else width * parameters(config).matmul


# ------------------------------------------------------------------------------------------------ disk


def stored(config: ModelConfig, settings: Settings) -> int:
    """Bytes of the checkpoints and models that a stage has on disk at most; 0 for one that makes none.

    Muon keeps one moment of hidden matrices where Adam keeps two: with it, somewhat less is written.
    """
    whole = _FP32 * parameters(config).total
    if isinstance(settings, CompressSettings):
        return _COMPRESSED * whole
    if isinstance(settings, PretrainSettings) and settings.base:
        return whole
    if not isinstance(settings, (LoopSettings, PracticeSettings)):
        return 0
    adapter = adapter_of(settings)
    trained = _FP32 * footprint_of(config, settings).trained
    made = whole + (trained if adapter.kind != "none" else 0)  # model/ and adapter/
    if isinstance(settings, LoopSettings):
        once = _ADAM * trained * _at_once(settings.steps, settings.save_every, settings.checkpoints) + made
        return once * (2 if isinstance(settings, RewardSettings) and settings.audit_share else 1)
    learners = 2 if isinstance(settings, PPOSettings) else 1
    copies = _ADAM * learners + 1 + bool(settings.ema)  # the best weights so far, and the mean of all
    handed_over = 2 * whole if settings.sampler == "vllm" else 0  # the next while the last is still there
    at_once = _at_once(settings.iterations, settings.probe_every, settings.checkpoints)
    return copies * trained * at_once + handed_over + made


def _at_once(steps: int, every: int, kept: int) -> int:
    """Checkpoints on disk at most: those that are kept and the one being written, or all that there will be."""
    return min(kept + 1, -(-steps // every)) if steps else kept + 1
