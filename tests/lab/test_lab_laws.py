"""Curves of over-optimisation: read at a distance, fitted, their peak, and what a stop keeps of it; all by hand."""

from __future__ import annotations

import math

import pytest
import torch

from danlu.errors import UserError
from danlu.lab import laws
from danlu.lab.best_of_n import curve, weights
from danlu.lab.goodhart import alarms, panels
from danlu.lab.laws import Law
from danlu.lab.methods import caption, join, summary, table


def look(iteration: int, kl: float, judge: float, reward: float = 0.0, **more: float) -> laws.Look:
    return {"iteration": iteration, "kl": kl, "judge": judge, "judge_error": 0.01, "reward": reward, **more}


RISES_AND_FALLS = [look(0, 0.0, 1.0, 0.0), look(2, 1.0, 1.4, 0.5), look(4, 4.0, 1.6, 1.0), look(6, 9.0, 1.1, 1.5)]


def test_gold_at_a_distance_is_linear_in_the_root_between_looks_and_never_beyond_them():
    assert laws.at_kl(RISES_AND_FALLS, 2.25) == pytest.approx(1.5)  # sqrt 1.5 lies half-way between 1 and 2
    assert laws.at_kl(RISES_AND_FALLS, 0.0) == 1.0
    assert laws.at_kl(RISES_AND_FALLS, 9.0) == 1.1
    assert laws.at_kl(RISES_AND_FALLS, 9.01) is None
    there_and_back = [look(0, 0.0, 0.0), look(1, 4.0, 2.0), look(2, 1.0, 9.0), look(3, 4.0, 3.0)]
    assert laws.at_kl(there_and_back, 1.0) == pytest.approx(1.0), "where the path first passes"
    assert laws.at_kl([look(0, 0.0, 0.0), look(1, -0.01, 5.0), look(2, 1.0, 7.0)], 0.25) == pytest.approx(6.0)


def test_a_law_is_found_again_from_its_own_curve():
    for sampled in (True, False):
        law = Law(sampled, 0.8, 0.3, 0.0)
        path = [look(i, kl, 2.0 + law(kl)) for i, kl in enumerate((0.0, 0.25, 1.0, 4.0, 9.0))]
        found = laws.fit(path, sampled)
        assert (found.alpha, found.beta) == pytest.approx((0.8, 0.3))
        assert found.error == pytest.approx(0.0, abs=1e-9)
    assert Law(True, 0.8, 0.3, 0.0)(4.0) == pytest.approx(2 * (0.8 - 0.6))
    assert Law(False, 0.8, 0.3, 0.0)(math.e**2) == pytest.approx(math.e * 0.5)


def test_a_law_peaks_where_its_slope_is_zero_or_nowhere():
    assert Law(True, 0.8, 0.2, 0.0).peak_kl == pytest.approx(4.0)  # d = alpha / (2 beta) = 2
    assert Law(False, 0.6, 0.3, 0.0).peak_kl == pytest.approx(math.e**2)  # d = exp(alpha / beta - 1) = e
    for law in (Law(True, 0.8, 0.2, 0.0), Law(False, 0.6, 0.3, 0.0)):
        assert law(law.peak_kl) > max(law(law.peak_kl - 0.1), law(law.peak_kl + 0.1))
    assert Law(True, 0.8, -0.2, 0.0).peak_kl is None
    assert Law(True, -0.8, 0.2, 0.0).peak_kl is None


def test_one_distance_makes_no_law():
    assert laws.fit(RISES_AND_FALLS[:2], sampled=True) is None


def test_what_a_stop_keeps_of_the_peak():
    assert laws.peak(RISES_AND_FALLS)["iteration"] == 4
    before = laws.stopped_by_alarm(RISES_AND_FALLS)
    assert [one["iteration"] for one in before] == [0, 2, 4]
    shares = [laws.kept(before), laws.kept(RISES_AND_FALLS), laws.kept(RISES_AND_FALLS, kl_budget=2.0)]
    assert [laws.recovered(RISES_AND_FALLS, one) for one in shares] == pytest.approx([1.0, 1 / 6, 2 / 3])
    assert laws.stopped_by_alarm(RISES_AND_FALLS[:3]) == RISES_AND_FALLS[:3]
    assert laws.alarm(RISES_AND_FALLS) == {
        "place": 3, "iteration": 6, "kl": 9.0, "fallen": pytest.approx(0.5), "lost": 0.0
    }  # fmt: skip
    assert laws.alarm(RISES_AND_FALLS[:3]) is None
    noise = [look(0, 0.0, 1.0), look(2, 1.0, 1.028), look(4, 2.0, 0.5)]
    assert laws.recovered(noise, noise[2]) is None, "two errors of 0.01 are 0.0283 apart"


def test_the_best_of_n_counts_every_choice_once():
    assert weights(2, 4).tolist() == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert weights(1, 4).tolist() == pytest.approx([0.25] * 4)
    proxy = torch.tensor([[3.0, 1.0, 2.0, 4.0], [0.0, 0.0, 1.0, float("nan")]])
    gold = torch.tensor([[10.0, 0.0, 20.0, 0.0], [5.0, 5.0, 7.0, 1.0]])
    rows = curve(proxy, gold)
    assert [row["iteration"] for row in rows] == [1, 2, 4]
    # Of two: by the proxy 1 < 2 < 3 < 4 with gold 0, 20, 10, 0; and nan < 0 <= 0 < 1 with gold 1, 5, 5, 7.
    assert rows[1]["judge"] == pytest.approx((20 / 6 + 10 * 2 / 6 + (5 + 5 * 2 + 7 * 3) / 6) / 2)
    assert rows[2]["judge"] == pytest.approx((0.0 + 7.0) / 2)
    assert rows[2]["reward"] == pytest.approx((4.0 + 1.0) / 2)
    assert rows[1]["kl"] == pytest.approx(math.log(2) - 0.5)


def test_a_caption_says_what_was_spent_and_how_sure_a_look_is():
    sft = [{"length": 26.4, "judge_error": 0.033}]
    budget = {"answers": 1536, "per_step": 64, "steps": 24}
    said = caption({"runs": ["a"], "budget": budget, "sft": sft, "most_tokens": 40, "judge": "poems", "prompts": 300})
    for words in (
        "1 run. ",
        "1,536 sampled answers (of 26 tokens",
        "24 steps.",
        "300 held-out prompts",
        "look 0.033",
    ):
        assert words in said


def ended(kl: float, judge: float) -> laws.Look:
    return look(2, kl, judge, form=0.5, rhyme=0.25, distinct_2=0.9)


def test_methods_are_read_at_the_distance_that_the_shortest_reached_and_the_table_says_what_was_not():
    start = look(0, 0.0, 1.0, form=0.4, rhyme=0.2, distinct_2=1.0)
    paths = {"ppo": [[start, ended(4.0, 2.0)], [start, ended(1.0, 1.4)]], "dpo": [[start, ended(1.0, 1.2)]] * 2}
    found = summary(paths, [1.0, 4.0]) | {"seconds": {"ppo": [60.0, 90.0], "dpo": [7.0, 7.0]}}
    assert found["shared_kl"] == [1.0, 1.0]
    assert found["methods"]["ppo"]["at"] == {"1": pytest.approx([1.5, 1.4]), "4": [2.0, None]}
    assert found["methods"]["dpo"]["at_shared"] == pytest.approx([1.2, 1.2])
    lines = table(found, ("form", "rhyme")).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| sft | – | – | – | 1.00 [1.00..1.00] | 0.00")
    assert lines[3].startswith("| ppo | 1.45 [1.40..1.50] | 2.00 [2.00..2.00] (1 of 2) | 1.45 [1.40..1.50] | 1.70")
    assert lines[3].endswith("| 75.00 [60.00..90.00] |")
    assert "| dpo | 1.20 [1.20..1.20] | – |" in lines[4]


def part(run: str, gold: float, **differs: object) -> dict[str, object]:
    start = look(0, 0.0, 1.0, form=0.4, rhyme=0.2, distinct_2=1.0)
    facts = {"runs": [run], "budget": {"answers": 64}, "prompts": 8, "most_tokens": 40, "judge": "poems"}
    return {**facts, "seconds": {"ppo": [gold]}, "paths": {"ppo": [[start, ended(4.0, gold)]]}, **differs}


def test_results_of_runs_that_were_compared_apart_are_joined_and_what_was_not_compared_alike_is_refused():
    parts = [part("a", 2.0), part("b", 1.4, prompts=6)]
    found = join(parts, [1.0])
    assert (found["runs"], found["prompts"], found["seconds"]) == (["a", "b"], 6, {"ppo": [2.0, 1.4]})
    assert found["methods"]["ppo"]["at"]["1"] == pytest.approx([1.5, 1.2])
    assert join([found], [1.0]) == found, "and joining again changes nothing"
    assert join([found, part("c", 1.8)], [1.0]) == join([*parts, part("c", 1.8)], [1.0])
    with pytest.raises(UserError, match="results of b and of a differ in judge, prose and poems"):
        join([parts[0], part("b", 1.4, judge="prose")], [1.0])
    with pytest.raises(UserError, match=r"differ in methods, \['dpo'\] and \['ppo'\]"):
        join([parts[0], part("b", 1.4, paths={"dpo": []})], [1.0])


def test_a_panel_counts_gold_in_deviations_of_the_first_answers():
    arm = {
        "method": "ppo",
        "rankings": 2000,
        "looks": [{**one, "sqrt_kl": one["kl"] ** 0.5} for one in RISES_AND_FALLS],
        "alarm": laws.alarm(RISES_AND_FALLS),
    }
    drawn = panels({"sft": {"judge_error": 0.02}, "prompts": 100, "arms": [arm]})
    assert drawn["ppo"]["2,000 rankings"][2] == pytest.approx((2.0, 1.0, 0.6 / 0.2))
    assert alarms({"arms": [arm, {**arm, "rankings": 9, "alarm": None}]}) == {"ppo": {"2,000 rankings": 3}}
