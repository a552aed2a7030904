"""The look from outside: when it calls over-optimisation, and what it never uses to choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danlu.align.monitor import choose, fallen, over_optimised
from danlu.align.quality import audit_proven_in
from danlu.files import write_json
from danlu.run import MANIFEST


def look(iteration: int, reward: float, judge: float, kl: float = 1.0) -> dict[str, Any]:
    return {"iteration": iteration, "reward": reward, "judge": judge, "judge_error": 0.05, "kl": kl}


def test_the_alarm_needs_a_rising_reward_and_a_clear_fall_of_the_judge() -> None:
    rising = [look(0, 0.0, 0.2), look(10, 1.0, 0.6)]
    assert not over_optimised([])
    assert not over_optimised(rising)
    assert not over_optimised([*rising, look(20, 1.5, 0.5)])  # a fall within two standard errors
    assert not over_optimised([*rising, look(20, 0.8, 0.1)])  # both fall: bad, but not over-optimisation
    assert over_optimised([*rising, look(20, 1.5, 0.3)])


def test_the_choice_goes_by_reward_and_kl_within_the_budget_and_ignores_the_judge() -> None:
    looks = [
        look(0, 0.0, 0.9, kl=0.0),
        look(10, 1.0, 0.1, kl=4.0),
        look(20, 1.1, 0.8, kl=9.0),
        look(30, 9.0, 1.0, 13.0),
    ]
    assert choose(looks, kl_coefficient=0.05, kl_budget=12.0) == 10
    assert choose(looks, kl_coefficient=0.01, kl_budget=12.0) == 20
    assert choose(looks, kl_coefficient=0.01, kl_budget=20.0) == 30
    assert choose([{**row, "judge": -row["judge"]} for row in looks], 0.05, 12.0) == 10
    assert choose(looks[:1], 0.05, 0.0) == 0
    beyond = [look(0, 9.0, 1.0, kl=14.0), look(10, 1.0, 0.8, kl=13.0)]
    assert choose(beyond, 0.0, 12.0) == 10, "a champion beyond the budget: the nearest, whatever it earns"


def test_an_audit_that_falls_raises_the_alarm_as_the_judge_does() -> None:
    audited = [{**look(i, r, 0.5), "audit": a, "audit_error": 0.1} for i, r, a in [(0, 0.0, 1.0), (10, 1.0, 0.5)]]
    assert over_optimised(audited, "audit")
    assert not over_optimised(audited, "judge")
    assert not over_optimised([look(0, 0.0, 1.0), look(10, 1.0, 0.5)], "audit")  # there is none
    assert fallen(audited) == ["audit"]
    assert fallen(audited, ["judge"]) == []


@pytest.mark.parametrize("figures", [{}, {"audit": {}}, {"audit": {"beats_baselines": True}}, None])
def test_an_audit_is_watched_unless_it_is_known_to_beat_no_baseline(figures: dict | None, tmp_path: Path) -> None:
    if figures is not None:
        write_json(tmp_path / MANIFEST, {"figures": figures})
    assert audit_proven_in(tmp_path)
    write_json(tmp_path / MANIFEST, {"figures": {"audit": {"beats_baselines": False}}})
    assert not audit_proven_in(tmp_path)


def test_a_look_without_a_score_chooses_nothing_and_raises_no_alarm() -> None:
    looks = [
        {"iteration": 0, "reward": 0.0, "kl": 0.0, "judge": 0.9, "judge_error": 0.01},
        {"iteration": 5, "kl": 1.0, "judge": 0.1, "judge_error": 0.01},
    ]
    assert choose(looks, 0.0, 5.0) == 0
    assert not over_optimised(looks)
