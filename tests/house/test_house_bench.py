"""The bench says when and from which source its figures were made, and what a reader should know about them."""

import sys
from pathlib import Path

import pytest

from danlu.errors import UserError
from danlu.run import Run

BENCH = Path(__file__).parents[2] / "bench"
LIVES = ("base", "sft", "ppo", "compress")


@pytest.fixture
def tang(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import tang

    yield tang
    for name in ("tang", "table"):
        sys.modules.pop(name)


def result(tang, day, accuracy):
    by_life = {key: dict.fromkeys(LIVES, 0.5) for key in tang.BY_LIFE}
    target = {"what": "minutes, all stages", "target": "<= 12", "value": 11.0, "met": True}
    return {**by_life, "targets": [target], "prompts": 600, "reward": {"accuracy": accuracy}, "kl": 4.0, "day": day}


def test_notes_dates_and_every_figure_are_in_the_records(tang):
    results = {0: result(tang, "2026-01-01", 0.7), 1: result(tang, "2026-01-03", 0.6)}
    found = {row["what"]: row for row in tang.rows(results, "seed 0 made in two sittings")}
    assert found["tang: minutes, all stages"]["note"] == "seeds 0, 1; 600 held-out prompts; seed 0 made in two sittings"
    assert {row["date"] for row in found.values()} == {"2026-01-03"}
    assert found["tang: reward accuracy"]["spread"] == [0.6, 0.7]
    assert found["tang: KL from chat to aligned model"]["ours"] == 4.0
    assert {"tang: copy rate, ppo", "tang: rhyme by chance, ppo"} <= found.keys()


def test_a_run_of_another_source_is_refused(tang, tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.begin("corpus", {})
    tang.check_source(run)
    monkeypatch.setattr(tang, "source_hash", lambda: "another")
    with pytest.raises(UserError, match=r"corpus was made by another version .* move .* away"):
        tang.check_source(run)


def test_results_are_named_after_the_day_of_their_runs(tang, tmp_path, monkeypatch):
    import table

    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(table, "HERE", tmp_path)
    path = table.save("tang", tang.rows({0: result(tang, "2026-01-03", 0.7)}, "beside light work"))
    assert path.name.endswith("-2026-01-03.json")
    assert "beside light work" in (tmp_path / "README.md").read_text(encoding="utf-8")
