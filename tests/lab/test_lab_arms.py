"""Every method spends the same, whatever it is; what cannot be divided or is no method is refused in a sentence."""

from __future__ import annotations

import pytest

from danlu.errors import UserError
from danlu.lab.arms import KNOWN, Budget, budget_of, refuse_overruled, settings, stage_of
from danlu.lab.goodhart import of_size
from danlu.pipeline import read_recipe

SAID = ("ppo.lr=3e-4", "best_of.n=4")
TANG = read_recipe("tang", SAID)
BUDGET = Budget(answers=768, per_step=64, looks=2)


@pytest.mark.parametrize("method", KNOWN)
def test_every_method_samples_as_many_answers_and_takes_as_many_steps(method):
    said = settings(method, TANG, BUDGET)
    own = read_recipe("tang", [*SAID, said]).sections[stage_of(method)].model_dump()
    if own.get("iterations"):
        sampled = own["iterations"] * own["batch_size"]
        steps = sampled / own["mini_batch"]
        assert own["iterations"] // own["probe_every"] <= own["checkpoints"]
        assert own["lr"] == 3e-4, "what methods of practice have in common is ppo's"
    else:
        ranked = said.get("rankings", {})
        sampled = ranked["prompts"] * len(ranked["temperatures"]) if ranked else own["most_prompts"] * own["n"]
        steps = own["steps"]
        assert own["steps"] // own["save_every"] <= own["checkpoints"]
    assert (sampled, steps) == (768, 12)
    assert own["max_new_tokens"] == 40


def test_what_a_method_does_not_read_is_overruled_wherever_it_was_said():
    own = ["ppo.clip=0.3", "grpo.clip_high=0.28", "grpo.approx_kl_limit=0.1"]
    held = read_recipe("tang", own)
    sections = {method: settings(method, held, BUDGET) for method in ("rloo", "reinforce")}
    rloo, reinforce = (read_recipe("tang", [*own, one]).sections["grpo"] for one in sections.values())
    assert (rloo.clip, rloo.clip_high) == (0.3, 0.28)
    assert (reinforce.clip, reinforce.clip_high, reinforce.approx_kl_limit) == (0.2, None, 0.05)
    refuse_overruled(["grpo.clip_high=0.28"], list(sections.values()))  # rloo reads it
    with pytest.raises(UserError, match="clip_high would change nothing"):
        refuse_overruled(["grpo.clip_high=0.28"], [sections["reinforce"]])


def test_a_budget_is_the_recipes_unless_it_is_said_and_has_to_be_whole():
    assert budget_of(TANG, 0, 4) == Budget(24 * 192, 64, 4)
    assert budget_of(TANG, 384, 4).steps == 6
    with pytest.raises(UserError, match=r"500 answers are no whole number of ppo.batch_size=192"):
        budget_of(TANG, 500, 4)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UserError, match="unknown method 'rlo'; did you mean 'rloo'"):
        stage_of("rlo")


def test_fewer_rankings_are_of_both_kinds_in_proportion():
    said = of_size(660, TANG)
    assert said == {"rankings": {"prompts": 140, "endings": 520}, "reward": {"near_misses": 45}}
    with pytest.raises(UserError, match="teaches by simulated rankings, and the run has none"):
        of_size(660, read_recipe("tang", ["rankings.prompts=0", "rankings.endings=0"]))
