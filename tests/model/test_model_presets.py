"""The published shapes have the published sizes."""

from __future__ import annotations

import pytest

from danlu.model import PRESETS, kv_bytes, parameters, preset

# Summed from published shapes, and equal to the published totals where those are exact.
TOTALS = {
    "gpt1": 116_534_784,
    "bert-base": 109_514_298,  # with the head for masked tokens
    "bert-large": 335_174_458,
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1558m": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
    "qwen2-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "mixtral-8x7b": 46_702_792_704,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200 - 58 * 256,  # published with router biases, which are buffers here
}
NAMED = {  # billions that the names promise
    "gpt3-125m": 0.125, "gpt3-350m": 0.356, "gpt3-760m": 0.760, "gpt3-1.3b": 1.316, "gpt3-2.7b": 2.65,
    "gpt3-6.7b": 6.66, "gpt3-13b": 12.85, "gpt3-175b": 174.6, "llama2-13b": 13.0, "llama2-70b": 69.0,
    "llama3-70b": 70.6, "llama3.1-8b": 8.03, "llama3.1-405b": 405.9, "llama3.2-1b": 1.24, "llama3.2-3b": 3.21,
    "smollm2-360m": 0.362, "smollm2-1.7b": 1.711, "qwen2-1.5b": 1.54, "qwen2-7b": 7.62, "qwen2-72b": 72.7,
    "qwen3-1.7b": 1.72, "qwen3-4b": 4.02, "qwen3-8b": 8.19, "qwen3-14b": 14.8, "qwen3-32b": 32.8,
    "qwen3-30b-a3b": 30.5, "qwen3-235b-a22b": 235.1, "mixtral-8x22b": 140.6,
    "grok-1": 315.7,  # announced as 314
}  # fmt: skip
ACTIVE = {"grok-1": 83.8, "mixtral-8x7b": 12.88, "deepseek-v2": 21.4, "deepseek-v3": 37.6, "qwen3-30b-a3b": 3.35}


@pytest.mark.parametrize("name", TOTALS)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert parameters(preset(name)).total == TOTALS[name]


@pytest.mark.parametrize("name", NAMED)
def test_parameters_are_what_the_name_says(name: str) -> None:
    assert parameters(preset(name)).total / 1e9 == pytest.approx(NAMED[name], rel=0.01)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters(name: str) -> None:
    assert parameters(preset(name)).active / 1e9 == pytest.approx(ACTIVE[name], rel=0.01)


def test_the_cache_of_latents_is_small() -> None:
    assert kv_bytes(preset("deepseek-v3"), 1) == 35_136
    assert kv_bytes(preset("llama3-8b")) == 131_072


def test_every_published_preset_is_counted_here() -> None:
    own = {name for name in PRESETS if name.endswith(("-tiny", "-tang"))}
    assert set(PRESETS) - own - TOTALS.keys() - NAMED.keys() == {"llama3.1-70b"}
