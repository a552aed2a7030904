"""Mistakes that would be found after hours are found before the first stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu import foresight
from danlu.align import PracticeSettings
from danlu.align.preferences import PreferenceStore
from danlu.console import Console
from danlu.errors import UserError
from danlu.pipeline import execute, read_recipe
from danlu.places import votes_path
from danlu.records import Answer, Message
from danlu.run import Run
from danlu.train.parallel import World
from danlu.train.task import LoopSettings, Task

RULES = "def polite(prompts, answers):\n    return [float('thanks' in answer) for answer in answers]\n"
POLITE = "ppo.rewards=[{source: 'manners:%s'}]"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (["ppo.rewards=[{kappa: 1.0}]"], "ppo.rewards: kappa asks how far heads disagree.* set reward.heads to 2"),
        (["ppo.rewards=[]"], "ppo.rewards is empty"),
        ([POLITE % "polit"], "unknown function 'polit' in module manners; did you mean 'polite'"),
        (["ppo.rewards=[{source: 'rude:polite'}]"], "'rude:polite' cannot be imported: ModuleNotFoundError"),
        (["ppo.rewards=[{source: 'mannerz:polite'}]"], "there is no module 'mannerz'"),
        (["ppo.prompts=votes"], "ppo.prompts=votes needs votes, and there are none yet"),
        (["ppo.prompts=askd.txt"], "ppo.prompts: askd.txt does not exist; did you mean 'asked.txt'"),
        (["run.goal=online_dpo", "online_dpo.prompts=votes"], "online_dpo.prompts=votes needs votes"),
        (["rankings.prompts=0"], "without rankings .*reward learns from votes alone, and there are none yet"),
        (["rankings.prompts=0", "run.goal=dpo"], "without rankings .*dpo learns from votes alone, and there are none"),
    ],
)
def test_one_sentence_before_the_first_stage(
    said: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manners.py").write_text(RULES, encoding="utf-8")
    (tmp_path / "rude.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    (tmp_path / "asked.txt").write_text("a\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem):
        execute(read_recipe("tiny", said), tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_what_is_there_or_not_needed_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manners.py").write_text(RULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    store = PreferenceStore(votes_path(out))
    check = read_recipe("tiny", ["ppo.prompts=votes", "ppo.rewards=[{kappa: 1}]", "reward.heads=2"])
    with pytest.raises(UserError, match="there are none yet"):  # a store, and nobody has voted
        foresight.check(check, ["reward", "ppo"], out)
    store.vote(store.record((Message("user", "?"),), [Answer("a"), Answer("b")]), [0, 1], "ann")
    store.close()
    foresight.check(check, ["reward", "ppo"], out)
    votes_alone = read_recipe("tiny", ["rankings.prompts=0"])
    foresight.check(votes_alone, ["rankings", "reward", "ppo"], out)
    foresight.check(votes_alone, ["rankings"], tmp_path / "elsewhere")
    frozen = tmp_path / "votes.jsonl"
    frozen.touch()
    with pytest.raises(UserError, match="votes alone"):
        foresight.check(votes_alone, ["reward"], out, frozen)
    kto = read_recipe("tiny", ["rankings.prompts=0", "dpo.loss=kto"])
    (tmp_path / "labels.jsonl").write_text("a thumb\n", encoding="utf-8")
    foresight.check(kto, ["rankings", "dpo"], out, frozen)
    with pytest.raises(UserError, match="there are none yet"):  # what was frozen is what is learnt from
        foresight.check(check, ["reward", "ppo"], out, frozen)
    foresight.check(read_recipe("tiny", [POLITE % "polite"]), ["ppo"], out)
    foresight.check(read_recipe("tiny", ["ppo.rewards=[{kappa: 1.0}]"]), ["reward", "grpo"], out)


@pytest.mark.parametrize("name", ["tang", "tiny", "guard"])
def test_every_shared_stage_of_a_bundled_recipe_has_work_for_several_processes(name: str) -> None:
    recipe = read_recipe(name, ["guard.data=texts.jsonl"])
    for stage in ("reward", "dpo", "guard"):
        section = recipe.sections[stage]
        assert isinstance(section, LoopSettings)
        assert section.rows() == (section.micro_batch or section.batch_size)
        for size in range(2, section.batch_size + 1):
            section.check_processes(World(0, size), stage)
            rows = section.rows(World(0, size))
            step = Task(lambda _, n=section.batch_size, rows=rows: [*range(0, n, rows)], lambda *_: None, lambda _: {})
            assert all(step.shared(World(rank, size), stage).batches(0) for rank in range(size))


def test_more_processes_than_rows_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    recipe, run = read_recipe("tiny", ["reward.batch_size=3", "dpo.batch_size=2"]), Run(tmp_path)
    foresight.check_processes(recipe, ["reward"], run, World(0, 3))
    with pytest.raises(UserError, match=r"reward.batch_size is 3 and 4 processes cannot share that; start at most 3"):
        foresight.check_processes(recipe, ["reward"], run, World(0, 4))
    foresight.check_processes(recipe, ["reward"], run, World())
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "manifest.json").write_text('{"state": "done"}', encoding="utf-8")
    foresight.check_processes(recipe, ["reward"], run, World(0, 4))


def test_practice_shares_a_step_evenly_and_refuses_an_engine_that_takes_no_part(tmp_path: Path) -> None:
    def rows(size: int, **said: int) -> int:
        return PracticeSettings(**said).rows(World(0, size))

    wanted = {"batch_size": 192, "mini_batch": 96, "micro_batch": 32}
    assert [rows(size, **wanted) for size in (1, 2, 3, 4, 100)] == [32, 24, 32, 24, 1]  # 4 of 24, not 3 of 32, for two
    assert rows(2, **wanted | {"batch_size": 10}) == 5  # there are no more in a step
    recipe, run = read_recipe("tiny", ["ppo.sampler=vllm"]), Run(tmp_path)
    foresight.check_processes(recipe, ["grpo", "online_dpo"], run, World(0, 2))
    foresight.check_processes(recipe, ["ppo"], run, World())
    with pytest.raises(UserError, match=r"ppo.sampler is vllm, which .* no part in 2 of ours; set it to danlu, or"):
        foresight.check_processes(recipe, ["ppo"], run, World(0, 2))


@pytest.mark.parametrize("stage", ["pretrain", "sft", "best_of"])
def test_a_batch_that_cannot_be_cut_evenly_names_its_setting_and_the_nearest_numbers(
    stage: str, tmp_path: Path
) -> None:
    recipe, run = read_recipe("tiny", [f"{stage}.batch_size=16"]), Run(tmp_path)
    foresight.check_processes(recipe, [stage], run, World(0, 4))
    problem = (
        f"{stage}.batch_size is 16, which 5 processes cannot share evenly; start 4 or 8, or make it a multiple of 5"
    )
    with pytest.raises(UserError, match=problem):
        foresight.check_processes(recipe, [stage], run, World(0, 5))
    foresight.check_processes(read_recipe("guard", ["guard.data=x"]), ["pretrain"], run, World(0, 5))  # is adopted
