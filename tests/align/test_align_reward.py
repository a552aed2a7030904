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
from danlu.align import heads
from danlu.align.comparisons import RankedBatch, Ranking, batch_of
from danlu.align.heads import with_scalar_head
from danlu.align.quality import quality
from danlu.align.reward import RewardSettings, read_scale, reward
from danlu.errors import UserError
from danlu.files import hash_paths
from danlu.model.decoder import Decoder
from danlu.records import Answer, Message, Preference, write_preferences
from danlu.run import Metrics, Stage
from danlu.train.task import Task

SETTINGS = RewardSettings(
    batch_size=16, lr=3e-3, warmup=2, scale_prompts=16, max_new_tokens=6, dtype="float32", steps=40, save_every=20
)


def planted(n: int, start: int = 0, rater: str = "judge:planted") -> list[Preference]:
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
    first, *others = planted(20, start=1000, rater="person")
    theirs = replace(first, answers=tuple(replace(answer, token_ids=(1, 2)) for answer in first.answers))
    write_preferences(tmp_path / "votes.jsonl", [theirs, *others])
    with_votes = Stage(**{**vars(stage), "outside": {"votes": tmp_path / "votes.jsonl"}})
    figures = reward(with_votes)
    assert figures["votes"] == 20
    assert figures["comparisons"] == 120 + 16
    assert (figures["heldout"], figures["votes_heldout"]) == (34, 4)
    assert figures["answers_read_anew"] == 3
    assert "prompts_cut" not in figures


def test_votes_alone_can_be_all_there_is(stage: Stage, tmp_path: Path) -> None:
    """As many steps as they are, a scale from their prompts, and no model that held-out ones would change."""
    write_preferences(stage.inputs["rankings"] / "preferences.jsonl", [])
    votes = planted(40, start=1000, rater="person")
    made = []
    for n, given in enumerate((votes, [vote for vote in votes if vote.split == "train"])):
        write_preferences(tmp_path / f"{n}.jsonl", given)
        settings = SETTINGS.model_copy(update={"steps": 0})
        folder = tmp_path / f"reward-{n}"
        one = replace(stage, dir=folder, settings=settings, outside={"votes": tmp_path / f"{n}.jsonl"},
                      metrics=Metrics(folder / "metrics.jsonl"))  # fmt: skip
        figures = reward(one)
        assert (figures["comparisons"], figures["votes"]) == (32, len(given))
        assert figures["heldout"] == figures["votes_heldout"] == len(given) - 32
        assert [row["step"] for row in one.metrics.read() if "loss" in row] == [1, 2], "32 comparisons, 16 a step"
        made.append(hash_paths(folder, ("model",)))
    assert made[0] == made[1]
    with pytest.raises(
        UserError, match="no comparison prefers one answer to another; rank more, lower tie_width or vote"
    ):
        reward(stage)


def test_a_scale_comes_from_one_prompt_too(stage: Stage) -> None:
    one = [replace(p, prompt=planted(1)[0].prompt, id=f"{i}", split="train") for i, p in enumerate(planted(40))]
    write_preferences(stage.inputs["rankings"] / "preferences.jsonl", one)
    figures = reward(Stage(**{**vars(stage), "settings": SETTINGS.model_copy(update={"steps": 2})}))
    assert math.isfinite(figures["std"])
    assert figures["std"] > 1e-3


def test_heads_ties_and_an_audit_all_at_once(stage: Stage, tmp_path: Path) -> None:
    """The exported models are ordinary classifiers of one label, whatever was trained beside them."""
    transformers = pytest.importorskip("transformers")
    tied = [replace(p, id=f"tied-{p.id}", ranks=(0, 0, 0), rater="fair") for p in planted(30, start=3000)]
    write_preferences(tmp_path / "votes.jsonl", [*planted(20, start=1000, rater="person"), *tied])
    changes = {
        "heads": 3, "ties": "davidson", "margin": 0.1, "centring": 0.01, "audit_share": 0.4, "vote_weight": 2.0,
        "rater_share": 0.5, "steps": 25,
    }  # fmt: skip
    settings = RewardSettings(**SETTINGS.model_dump() | changes)
    made = Stage(**{**vars(stage), "settings": settings, "outside": {"votes": tmp_path / "votes.jsonl"}})
    figures = reward(made)
    json.dumps(figures, allow_nan=False)
    assert figures["accuracy"] > 0.8
    assert figures["audit"]["accuracy"] > 0.8
    assert figures["audit"]["beats_baselines"]
    assert figures["comparisons"] + figures["audit"]["comparisons"] == 120 + 16 + 24
    assert len(figures["accuracy_by_head"]) == 3
    assert figures["raters_held_back"] == 1
    assert [group["comparisons"] for group in figures["accuracy_by_rater"]] == [30, 4]
    assert figures["nu"] > 0
    every = heads.read(made.dir / "model")
    assert every is not None
    for name in ("model", "audit"):
        ours, tokenizer = hub.load_pretrained(made.dir / name)
        found, info = transformers.AutoModelForSequenceClassification.from_pretrained(
            made.dir / name, dtype=torch.float32, output_loading_info=True
        )
        assert not any(info.values())
        assert found.config.num_labels == 1
        tokens = torch.tensor([tokenizer.encode("写：春花花花")])
        with torch.no_grad():
            torch.testing.assert_close(found(tokens).logits[:, 0], ours(tokens), rtol=1e-5, atol=1e-5)
        assert read_scale(made.dir / name)[1] > 0
    one = hub.load(made.dir / "model").score.weight
    torch.testing.assert_close(every.weight.mean(0, keepdim=True), one.detach())
    before = hash_paths(made.dir, ("model", "audit"))
    reward(made)  # goes on from the last checkpoints, and has nothing left to do but the end
    assert hash_paths(made.dir, ("model", "audit")) == before


def test_the_audit_learns_from_prompts_that_the_first_never_saw(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    seen: list[set[tuple[int, ...]]] = []
    module = sys.modules[reward.__module__]

    def spy(train: Sequence[Ranking], *others: object) -> Task:
        seen.append({tuple(ranking.prompts[0]) for ranking in train})
        return task(train, *others)

    task = module._task
    monkeypatch.setattr(module, "_task", spy)
    settings = SETTINGS.model_copy(update={"audit_share": 0.5, "steps": 1})
    reward(Stage(**{**vars(stage), "settings": settings}))
    assert not seen[0] & seen[1]
    assert len(seen[0]) + len(seen[1]) == 120
    assert min(map(len, seen)) > 40


def test_accuracy_is_told_by_writer_and_by_rater(make_model: Callable[..., Decoder]) -> None:
    model = make_model("scalar")
    better, worse = ([5], [9]) if model(torch.tensor([[1, 5]])) > model(torch.tensor([[1, 9]])) else ([9], [5])
    right = Ranking(([1], [1]), (better, worse), (0, 1), rater="a", models=("new", "corpus"))
    wrong = Ranking(([1], [1]), (worse, better), (0, 1), rater="b", models=("old", ""))
    found = quality(model, make_model(), [right, right, wrong], padding=0)
    assert found["accuracy"] == round(2 / 3, 4)
    assert found["accuracy_by_model"] == {
        "corpus + new": {"comparisons": 2, "accuracy": 1.0}, "old + unknown": {"comparisons": 1, "accuracy": 0.0},
    }  # fmt: skip
    assert found["accuracy_by_rater"] == [
        {"comparisons": 2, "accuracy": 1.0}, {"comparisons": 1, "accuracy": 0.0},
    ]  # fmt: skip
    assert found["calibration_error"] > 0


def test_accuracy_on_peoples_votes_is_told_apart(make_model: Callable[..., Decoder]) -> None:
    """A simulated human that is understood, and a file from elsewhere, hide nothing of people here, named or not."""
    model = make_model("scalar")
    better, worse = ([5], [9]) if model(torch.tensor([[1, 5]])) > model(torch.tensor([[1, 9]])) else ([9], [5])
    right, wrong = (Ranking(([1], [1]), pair, (0, 1)) for pair in ((better, worse), (worse, better)))
    simulated = [replace(right, rater=rater) for rater in ("judge:prose", "import:hh")]
    votes = [replace(wrong, rater="ann"), replace(right, rater="bob"), wrong, replace(right, ranks=(0, 0))]
    found = quality(model, make_model(), [*simulated, *votes], padding=0)
    assert found["accuracy"] == 0.6
    assert (found["votes_heldout"], found["votes_accuracy"]) == (3, 0.3333)
    low, high = found["votes_accuracy_interval"]  # Wilson's, of 1 in 3 at z = 1.96, by hand
    assert (round(low, 3), round(high, 3)) == (0.061, 0.792)
    alone = quality(model, make_model(), simulated, padding=0)
    assert (alone["votes_accuracy"], alone["votes_accuracy_interval"], alone["votes_heldout"]) == (None, [0.0, 1.0], 0)


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
    assert (found["accuracy"], found["votes_accuracy"]) == (None, None)
    assert not found["beats_baselines"]


def test_the_head_is_fresh_and_the_trunk_is_the_models(make_model: Callable[..., Decoder]) -> None:
    model = make_model()
    scored = with_scalar_head(model, seed=3)
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(scored.hidden(tokens).states, model.hidden(tokens).states, rtol=0, atol=0)
    wide = [with_scalar_head(model, seed=seed).score.weight for seed in range(200)]
    assert float(torch.stack(wide).detach().std()) == pytest.approx(1 / math.sqrt(33), rel=0.03)


def test_a_setting_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="nu is for ties 'davidson' and ties is 'skip'; leave it out"):
        RewardSettings(nu=0.5)
    assert RewardSettings(**RewardSettings().model_dump() | {"ties": "davidson", "nu": 0.5}).nu == 0.5


def test_rankings_without_a_preference_are_refused(stage: Stage) -> None:
    tied = [replace(preference, ranks=(0, 0, 0)) for preference in planted(20)]
    write_preferences(stage.inputs["rankings"] / "preferences.jsonl", tied)
    with pytest.raises(UserError, match="no comparison prefers one answer to another"):
        reward(stage)
    assert not (stage.dir / "model").exists()
