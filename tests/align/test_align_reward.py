"""The reward model: it learns planted taste, is honest about baselines, and its scale goes with it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from danlu import hub
from danlu.align.comparisons import RankedBatch, Ranking, batch_of
from danlu.align.quality import quality
from danlu.align.reward import RewardSettings, read_scale, reward, with_scalar_head
from danlu.errors import UserError
from danlu.model.decoder import Decoder
from danlu.records import Answer, Message, Preference, write_preferences
from danlu.run import Stage

SETTINGS = RewardSettings(
    batch_size=16, lr=3e-3, warmup=2, scale_prompts=16, max_new_tokens=6, dtype="float32", steps=40, save_every=20
)


def planted(n: int, start: int = 0, rater: str = "planted") -> list[Preference]:
    """People who like flowers: of three answers of equal length the one with more 花 wins."""
    result = []
    for i in range(start, start + n):
        prompt = (Message("user", f"写{i}：春"),)
        texts = [("山" * 3), ("花" + "水" * 2), ("花" * 3)]
        shift = i % 3
        order = texts[shift:] + texts[:shift]
        ranks = tuple(3 - min(text.count("花"), 3) if text.count("花") else 3 for text in order)
        place = {count: position for position, count in enumerate(sorted(set(ranks)))}
        result.append(
            Preference(f"{rater}-{i}", prompt, tuple(Answer(t) for t in order), tuple(place[r] for r in ranks), rater,
                       split="heldout" if i % 5 == 0 else "train")
        )  # fmt: skip
    return result


@pytest.fixture
def stage(tmp_path: Path, sft_dir: Path, make_stage: Callable[..., Stage]) -> Stage:
    (tmp_path / "rankings").mkdir()
    write_preferences(tmp_path / "rankings" / "preferences.jsonl", planted(150))
    return make_stage("reward", SETTINGS, {"sft": sft_dir, "rankings": tmp_path / "rankings"})


def test_planted_taste_is_learned_and_the_model_can_be_used(stage: Stage) -> None:
    figures = reward(stage)
    assert figures["accuracy"] > 0.9
    assert figures["beats_baselines"]
    assert figures["comparisons"] == 120
    assert figures["heldout"] == 30
    assert figures["accuracy_by_length"].keys() == {"same_length"}
    assert figures["baselines"]["longer"] == 0.5
    model = hub.load(stage.dir / "model")
    assert model.head_kind == "scalar"
    assert read_scale(stage.dir / "model") == (figures["mean"], figures["std"])
    assert figures["std"] > 0


def test_near_misses_come_first(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    far = planted(100)
    near = [
        replace(p, id=f"near-{p.id}", answers=tuple(replace(a, text="水水水水" + a.text) for a in p.answers))
        for p in planted(50, start=200)
    ]
    write_preferences(stage.inputs["rankings"] / "preferences.jsonl", [*far, *near])
    widths: list[int] = []
    module = sys.modules[reward.__module__]

    def spy(rankings: Sequence[Ranking], padding: int, place: str) -> RankedBatch:
        widths.extend(ranking.near_miss() for ranking in rankings)
        return batch_of(rankings, padding, place)

    monkeypatch.setattr(module, "batch_of", spy)
    settings = SETTINGS.model_copy(update={"near_misses": 2, "steps": 4, "batch_size": 16, "micro_batch": 16})
    reward(Stage(**{**vars(stage), "settings": settings}))
    assert all(widths[:32])
    assert not all(widths[32:64])


def test_votes_are_learned_from_too(stage: Stage, tmp_path: Path) -> None:
    write_preferences(tmp_path / "votes.jsonl", planted(20, start=1000, rater="person"))
    with_votes = Stage(**{**vars(stage), "outside": {"votes": tmp_path / "votes.jsonl"}})
    figures = reward(with_votes)
    assert figures["votes"] == 20
    assert figures["comparisons"] == 120 + 16


def test_a_scale_comes_from_one_prompt_too(stage: Stage) -> None:
    one = [replace(p, prompt=planted(1)[0].prompt, id=f"{i}", split="train") for i, p in enumerate(planted(40))]
    write_preferences(stage.inputs["rankings"] / "preferences.jsonl", one)
    figures = reward(Stage(**{**vars(stage), "settings": SETTINGS.model_copy(update={"steps": 2})}))
    assert math.isfinite(figures["std"])
    assert figures["std"] > 1e-3


def test_a_reward_model_that_learned_a_baseline_says_so(make_model: Callable[..., Decoder]) -> None:
    longer = [Ranking(([1], [1]), ([5] * (2 + i % 4), [5]), (0, 1)) for i in range(40)]
    found = quality(make_model("scalar"), make_model(), longer, padding=0)
    assert found["baselines"]["longer"] == 1.0
    assert found["baselines"]["shorter"] == 0.0
    assert found["best_baseline"] == "longer"
    assert not found["beats_baselines"]
    assert found["accuracy_by_length"].keys() == {"better_is_longer"}
    json.dumps(found, allow_nan=False)


def test_without_held_out_comparisons_nothing_is_claimed(make_model: Callable[..., Decoder]) -> None:
    found = quality(make_model("scalar"), make_model(), [], padding=0)
    assert found["accuracy"] is None
    assert not found["beats_baselines"]


def test_the_head_is_fresh_and_the_trunk_is_the_models(make_model: Callable[..., Decoder]) -> None:
    model = make_model()
    scored = with_scalar_head(model, seed=3)
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(scored.hidden(tokens).states, model.hidden(tokens).states, rtol=0, atol=0)
    wide = [with_scalar_head(model, seed=seed).score.weight for seed in range(200)]
    assert float(torch.stack(wide).detach().std()) == pytest.approx(1 / math.sqrt(33), rel=0.03)


def test_rankings_without_a_preference_are_refused(stage: Stage) -> None:
    tied = [replace(preference, ranks=(0, 0, 0)) for preference in planted(20)]
    write_preferences(stage.inputs["rankings"] / "preferences.jsonl", tied)
    with pytest.raises(UserError, match="no comparison prefers one answer to another"):
        reward(stage)
    assert not (stage.dir / "model").exists()
