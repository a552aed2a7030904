"""What ``danlu plan`` measures: the device and the dtype in which the recipe's own stages would compute."""

import re

import pytest
import torch

from danlu import device
from danlu.errors import UserError
from danlu.pipeline import read_recipe
from danlu.plan import describe


def minutes(said: str, stage: str) -> float:
    row = re.search(rf"^{stage} .*B +([\d.]+) ", said, re.M)
    assert row is not None
    return float(row[1])


def memory(said: str, stage: str) -> float:
    """In megabytes."""
    row = re.search(rf"^{stage} .* ([\d.]+)([MG])B ", said, re.M)
    assert row is not None
    return float(row[1]) * {"M": 1, "G": 1000}[row[2]]


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose bf16 is four times its fp32."""
    speeds = {torch.float32: 1e11, torch.bfloat16: 4e11}
    monkeypatch.setattr(device, "matmul_flops", lambda dtype, kind: speeds[dtype])


@pytest.mark.usefixtures("clocked")
def test_a_plan_goes_by_the_recipes_own_dtype():
    slow, quick = (
        describe(read_recipe("tang", [f"pretrain.dtype={d}", "ppo.dtype=float32"])) for d in ("float32", "bfloat16")
    )
    assert minutes(slow, "pretrain") == pytest.approx(4 * minutes(quick, "pretrain"), abs=0.3)
    assert minutes(slow, "ppo") == minutes(quick, "ppo")
    on = [line for line in quick.splitlines() if " GFLOP/s expected" in line]
    assert any("pretrain" in line and "220 GFLOP/s" in line and "bfloat16 (asked for)" in line for line in on)
    assert any("ppo" in line and "55 GFLOP/s" in line and "float32 (asked for)" in line for line in on)


@pytest.mark.usefixtures("clocked")
def test_one_machine_is_one_line():
    said = describe(read_recipe("tang"))
    assert said.count(" GFLOP/s expected") == 1
    assert said.startswith("recipe tang on ")


@pytest.mark.usefixtures("clocked")
def test_a_plan_knows_that_an_adapter_is_small():
    lora = {"kind": "lora", "rank": 8, "targets": ["q", "v"]}
    whole, thin = (
        describe(read_recipe("tang", [f"{stage}.adapter={told}" for stage in ("sft", "ppo")])) for told in ({}, lora)
    )
    assert minutes(thin, "sft") == pytest.approx(minutes(whole, "sft") * 2 / 3, rel=0.1)
    assert minutes(thin, "pretrain") == minutes(whole, "pretrain")
    for stage in ("sft", "ppo"):
        assert memory(thin, stage) < memory(whole, stage)
    # Four layers of 128 wide: q makes 128 of 128, v what its heads take; rank 8 reads the one and writes the other.
    width = read_recipe("tang").sections["pretrain"].model
    made = width["n_heads"] * width["head_dim"], width["n_kv_heads"] * width["head_dim"]
    numbers = width["n_layers"] * 8 * sum(width["d_model"] + out for out in made)
    numbers += 3 * width["d_model"]  # rows of the three tokens for turns; the head is the embedding
    assert f"sft trains lora of rank 8 on a base in 32 bits: {numbers:,} parameters, " in thin
    assert " trains " not in whole


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_plan_for_a_gpu_that_is_not_here_is_refused():
    with pytest.raises(UserError, match="no CUDA GPU"):
        describe(read_recipe("tang", ["pretrain.device=cuda"]))


def test_the_product_is_computed_where_the_plan_says():
    """Nothing is computed on the device ``meta``, which is quicker than anything that is."""
    cpu, meta = (device.matmul_flops(torch.float32, kind, seconds=0.02) for kind in ("cpu", "meta"))
    assert meta > 10 * cpu
