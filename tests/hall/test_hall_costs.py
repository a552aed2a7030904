"""What stages are said to take: counted by hand, and beside what they really write."""

from __future__ import annotations

from danlu import costs
from danlu.align import GRPOSettings, PPOSettings, RewardSettings
from danlu.model.config import ModelConfig
from danlu.model.count import activation_bytes, flops_per_token, parameters
from danlu.train import SFTSettings
from danlu.train.adapters import footprint

SHAPE = ModelConfig(
    vocab_size=320, n_layers=2, d_model=32, max_seq_len=64, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=64
)
LORA = {"kind": "lora", "rank": 4, "targets": ("q", "down")}
THIN = 2 * 4 * ((32 + 32) + (64 + 32))  # two layers; q is 32 by 32, down 32 by 64
WHOLE = 4 * parameters(SHAPE).total


def practised(
    settings: type[PPOSettings] | type[GRPOSettings] = PPOSettings, reward: object = None, **told: object
) -> int:
    """Bytes without activations."""
    stage = settings(dtype="float32", micro_batch=2, **told)
    return costs.practice_memory(SHAPE, stage, RewardSettings(**(reward or {}))) - activation_bytes(SHAPE, 2, 64)


def test_an_adapter_is_what_is_trained():
    adapter = SFTSettings(adapter=LORA | {"base_bits": 16}, dtype="float32")
    found = footprint(SHAPE, adapter.adapter)
    matrices = 320 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64)  # the embedding is the head
    norms = parameters(SHAPE).total - matrices
    assert found == (THIN, 2 * matrices + 4 * norms)
    dora = SFTSettings(adapter=LORA | {"kind": "dora"}).adapter
    assert footprint(SHAPE, dora) == (THIN + 2 * (32 + 32), WHOLE)
    full = flops_per_token(SHAPE, 64)
    assert costs.learning_flops(SHAPE, SFTSettings(), 64) == full
    assert costs.learning_flops(SHAPE, adapter, 64) == full - 2 * matrices + 6 * THIN
    assert costs.forward_flops(SHAPE, adapter, 64) == full / 3 + 2 * THIN
    # Weight, gradient, two moments of the adapter and of three rows, for tokens that open a turn; the base, and each of
    # its matrices once as the products want it.
    assert costs.training_memory(SHAPE, adapter, 100, 64) == (
        16 * (THIN + 3 * 32) + found.frozen + 4 * matrices + activation_bytes(SHAPE, 100, 64)
    )


def test_practice_holds_four_models_or_one_trunk():
    assert practised() == (16 + 16 + 4 + 4 + 4) * WHOLE // 4  # policy, critic, reference, reward model, best so far
    assert practised(GRPOSettings, ema=0.9) == (16 + 4 + 4 + 4 + 4) * WHOLE // 4
    assert practised(GRPOSettings, rewards=[{"source": "m:f"}]) == (16 + 4 + 4) * WHOLE // 4
    assert practised(reward={"audit_share": 0.2}) == practised() + WHOLE
    alone = practised(adapter=LORA)  # the reward model is whole
    assert alone == 2 * WHOLE + (16 + 16 + 4) * THIN
    assert practised(adapter=LORA, reward={"adapter": LORA}) == alone - WHOLE + 4 * THIN
    assert practised(adapter=LORA, reward={"adapter": LORA | {"base_bits": 16}}) == alone


def test_a_base_in_few_bits_was_whole_once():
    small = SFTSettings(adapter=LORA | {"base_bits": 4}, dtype="float32")
    assert costs.training_memory(SHAPE, small, 1, 1) == footprint(SHAPE, small.adapter).frozen + WHOLE
