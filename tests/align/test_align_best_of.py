"""Rejection sampling: the best of n is kept, learnt from, and found again after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mortal import Killed

from danlu import hub
from danlu.align import scoring
from danlu.align.best_of import BestOfSettings, best_of, choose
from danlu.align.rollout import Experience, Prompt, Rollouts
from danlu.errors import UserError
from danlu.run import Stage

SETTINGS = BestOfSettings(
    judge="prose", most_prompts=40, n=4, max_new_tokens=8, batch_size=4, lr=5e-3, epochs=2, warmup=0, probe_prompts=4,
    log_every=1, save_every=2, dtype="float32", seq_len=64,
)  # fmt: skip
MakeStage = Callable[..., Stage]


def test_the_best_that_ended_is_kept_and_what_has_no_score_never_is(prompts: list[Prompt]) -> None:
    nan = math.nan
    scores = torch.tensor([1.0, 3.0, nan, 2.0, 9.0, 1.0, nan, nan, nan])
    finished = torch.tensor([True, True, True, True, False, True, True, True, True])
    sequences = scoring.pad([p.ids for p in prompts[:3] for _ in range(3)], [[20 + i] for i in range(9)], 0)
    asked = tuple(p for p in prompts[:3] for _ in range(3))
    experience = Experience(sequences, finished, asked, tuple("abcdefghi"), torch.zeros(9, 1), scores)
    first, cut_off, unscored = choose(experience, 3)
    assert (first.text, first.response, first.scores) == ("b", (21,), (1.0, 3.0))
    assert first.prompt == prompts[0].ids
    assert (cut_off.response, cut_off.scores) == ((), (2.0, 9.0, 1.0))
    assert (unscored.response, unscored.scores) == ((), ())


def test_tuning_on_the_best_raises_their_likelihood(sft_dir: Path, reward_dir: Path, make_stage: MakeStage) -> None:
    stage = make_stage("best_of", SETTINGS, {"sft": sft_dir, "reward": reward_dir})
    figures = best_of(stage)
    rows = [json.loads(line) for path in (stage.dir / "samples").iterdir() for line in path.open(encoding="utf-8")]
    assert len(rows) == figures["prompts"] == 40
    assert figures["reward_best"] > figures["reward_mean"]
    assert figures["best_of_n_kl"] == pytest.approx(math.log(4) - 0.75, abs=1e-4)
    learnt = [row for row in rows if row["response"]]
    assert len(learnt) == figures["learnt_from"] > 0
    kept = scoring.pad([row["prompt"] for row in learnt], [row["response"] for row in learnt], 0)
    before, after = (
        float(scoring.response_logprobs(hub.load(folder / "model"), kept).detach().sum())
        for folder in (sft_dir, stage.dir)
    )
    assert after > before + 1.0
    looks = json.loads((stage.dir / "monitor.json").read_text(encoding="utf-8"))["looks"]
    assert looks[0]["kl"] == 0.0 != looks[1]["kl"]


def test_a_killed_run_goes_on_to_the_same_bytes(
    sft_dir: Path, reward_dir: Path, make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"sft": sft_dir, "reward": reward_dir}
    whole = make_stage("best_of", SETTINGS, inputs, folder="whole")
    best_of(whole)
    collect, calls = Rollouts.collect, iter([True, False])

    def dies(self: Rollouts, *args: object) -> Experience:
        if not next(calls):
            raise Killed
        return collect(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Rollouts, "collect", dies)
        with pytest.raises(Killed):  # in the second part of the samples
            best_of(make_stage("best_of", SETTINGS, inputs, folder="killed"))
    killed = make_stage("best_of", SETTINGS, inputs, folder="killed")
    first = killed.dir / "samples" / "00000.jsonl"
    made = first.stat().st_mtime_ns
    best_of(killed)
    assert first.stat().st_mtime_ns == made  # not sampled anew
    for file in ("model/model.safetensors", "monitor.json"):
        assert (whole.dir / file).read_bytes() == (killed.dir / file).read_bytes()


def test_nothing_to_learn_from_is_said(sft_dir: Path, reward_dir: Path, make_stage: MakeStage) -> None:
    settings = SETTINGS.model_copy(update={"max_new_tokens": 1, "most_prompts": 2})
    stage = make_stage("best_of", settings, {"sft": sft_dir, "reward": reward_dir})
    with pytest.raises(UserError, match="none of 2 best answers ended within 1 tokens"):
        best_of(stage)
