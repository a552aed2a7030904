"""Rewards of other kinds: rules in a process of their own whatever they do, doubt, sums."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from danlu import hub
from danlu.align import PPOSettings, heads, scoring
from danlu.align.heads import Heads, with_heads, with_mean_head
from danlu.align.quality import refuse_unproven
from danlu.align.reward import AUDIT, SCALE
from danlu.align.rewards import Mixture, RewardScore, RewardTerm, audits, scorer
from danlu.align.rollout import Prompt, Sampled
from danlu.align.rules import RuleScore
from danlu.errors import UserError
from danlu.files import write_json
from danlu.model.decoder import Decoder
from danlu.pipeline import read_recipe
from danlu.records import Message
from danlu.run import Stage
from danlu.tokens.tokenizer import Tokenizer

RULES = '''
import os, time

calls = 0
with open("started", "a") as file:
    file.write("x")


def flowers(prompts, answers):
    print("counting flowers")
    assert prompts[0][-1] == {"role": "user", "content": "写：春"}
    return [answer.count("花") for answer in answers]


def partly(prompts, answers):
    return [float("nan"), 2.0, float("inf")]


def too_many(prompts, answers):
    return [1.0] * (len(answers) + 1)


def not_numbers(prompts, answers):
    return ["good", "bad", "good"]


def raises(prompts, answers):
    raise RuntimeError("没有分数")


def hangs(prompts, answers):
    time.sleep(60)


def dies(prompts, answers):
    os._exit(3)


def to_blame(answers):
    return [answer for answer in answers if answer.startswith("坏")]


def raises_at_bad(prompts, answers):
    if to_blame(answers):
        raise ValueError("坏")
    return [prompt[-1]["content"] == "写：春" and len(answer) for prompt, answer in zip(prompts, answers, strict=True)]


def forgets_bad(prompts, answers):
    return [len(answer) for answer in answers if not to_blame([answer])]


def dies_at_bad(prompts, answers):
    return os._exit(3) if to_blame(answers) else [len(answer) for answer in answers]


def hangs_at_bad(prompts, answers):
    if to_blame(answers):
        time.sleep(60)
    return [len(answer) for answer in answers]


def slow_with_many(prompts, answers):
    time.sleep(60 if len(answers) > 4 else 0)
    return [len(answer) for answer in answers]


def sometimes(prompts, answers):
    """Fails at every second call of this process."""
    global calls
    calls += 1
    return [calls * 1.0] * 3 if calls % 2 else [float("nan")] * 3
'''


@pytest.fixture
def sampled() -> Sampled:
    asked = Prompt((Message("user", "写：春"),), "写：春", (1,))
    sequences = scoring.pad([[1], [1, 2], [1]], [[3], [4, 6], [5]], 0)
    return Sampled(sequences, torch.tensor([True, False, True]), (asked,) * 3, ("花花", "山", "花"), torch.zeros(3, 2))


@pytest.fixture
def rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[RuleScore, list[str]]]]:
    """A function of a module in the working directory, and what is said of it."""
    (tmp_path / "rewarding").mkdir()
    (tmp_path / "rewarding" / "rules.py").write_text(RULES, encoding="utf-8")
    (tmp_path / "rewarding" / "broken.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:

        def make(name: str, timeout: float = 60.0) -> tuple[RuleScore, list[str]]:
            said: list[str] = []
            return stack.enter_context(closing(RuleScore(f"rewarding.rules:{name}", timeout, said.append))), said

        yield make


def test_a_rule_scores_answers_and_may_print(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled
) -> None:
    score, said = rule("flowers")
    for _ in range(2):
        assert score(sampled).tolist() == [2.0, 0.0, 1.0]
    assert not said


def test_an_answer_without_a_finite_score_is_not_a_number(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled
) -> None:
    score, said = rule("partly")
    torch.testing.assert_close(score(sampled), torch.tensor([math.nan, 2.0, math.nan]), equal_nan=True)
    assert not said


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("too_many", "gave 4 numbers for 3 answers"), ("raises", "raised RuntimeError: 没有分数"),
        ("not_numbers", "raised ValueError"), ("hangs", "said nothing within 0.05 seconds"),
        ("dies", "ended with exit code 3"),
    ],
)  # fmt: skip
def test_a_function_that_always_fails_ends_the_run_at_its_third_batch(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled, name: str, what: str
) -> None:
    score, said = rule(name, timeout=0.05 if name == "hangs" else 60.0)
    started = time.monotonic()
    for _ in range(2):
        assert score(sampled).isnan().all()
    with pytest.raises(UserError, match=f"'rewarding.rules:{name}' scored no answer of 3 batches in a row.* it {what}"):
        score(sampled)
    assert [what in sentence and "3 of 3 answers are left out" in sentence for sentence in said] == [True, True]
    assert time.monotonic() - started < 60


def test_a_process_that_sees_a_share_of_the_answers_ends_nothing(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled
) -> None:
    """Others may have had scores: whoever gathers the shares decides."""
    _, said = rule("raises")
    with closing(RuleScore("rewarding.rules:raises", 60.0, said.append, whole=False)) as score:
        assert all(score(sampled).isnan().all() for _ in range(4))
    assert len(said) == 4


def many(sampled: Sampled, texts: list[str]) -> Sampled:
    """As many answers as texts, to the same prompt."""
    return replace(
        sampled, texts=tuple(texts), prompts=sampled.prompts[:1] * len(texts), finished=torch.ones(len(texts)).bool()
    )


@pytest.mark.parametrize(
    ("name", "bad", "what"),
    [
        ("raises_at_bad", (0, 13), "raised ValueError: 坏"), ("forgets_bad", (7, 8), "gave 19 numbers for 21 answers"),
        ("dies_at_bad", (16,), "ended with exit code 3"),
    ],
)  # fmt: skip
def test_a_bad_answer_costs_itself_in_every_batch(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled, name: str, bad: tuple[int, ...], what: str
) -> None:
    """Were the batch lost, the third one would end the run."""
    score, said = rule(name)
    texts = ["花" * (1 + place % 4) for place in range(21)]
    wanted = [float(len(text)) for text in texts]
    for place in bad:
        texts[place], wanted[place] = "坏答案", math.nan
    for _ in range(3):
        torch.testing.assert_close(score(many(sampled, texts)), torch.tensor(wanted), equal_nan=True)
    assert said == [f"the reward 'rewarding.rules:{name}' {what}; {len(bad)} of 21 answers are left out"]


def test_a_batch_costs_twenty_processes_at_most(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled, tmp_path: Path
) -> None:
    score, said = rule("dies")
    assert score(many(sampled, ["花"] * 64)).isnan().all()
    assert (tmp_path / "started").read_text(encoding="utf-8") == 20 * "x"
    assert said == ["the reward 'rewarding.rules:dies' ended with exit code 3; 64 of 64 answers are left out"]


def test_an_answer_at_which_a_function_hangs_costs_few_others_and_a_bounded_time(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled
) -> None:
    score, said = rule("hangs_at_bad", timeout=1.0)
    texts = ["花花"] * 64
    texts[37] = texts[50] = "坏"
    started = time.monotonic()
    lost = score(many(sampled, texts)).isnan().nonzero().flatten().tolist()
    assert time.monotonic() - started < 60
    assert {37, 50} <= set(lost)
    assert len(lost) <= 32  # two, unless the machine is too busy to answer in an eighth of a second
    what = "said nothing within 1 seconds"
    assert said == [f"the reward 'rewarding.rules:hangs_at_bad' {what}; {len(lost)} of 64 answers are left out"]


def test_a_part_has_its_share_of_the_time_unless_answers_take_long(
    rule: Callable[..., tuple[RuleScore, list[str]]],
) -> None:
    score, _ = rule("hangs_at_bad", timeout=8.0)
    assert [score._patience(share) for share in (1.0, 0.5, 1 / 64)] == [8.0, 4.0, 1.0]
    score._slowest = 3.0
    assert [score._patience(share) for share in (1.0, 0.5, 1 / 64)] == [8.0, 6.0, 6.0]
    score._slowest = 7.0
    assert score._patience(0.5) == 8.0


def test_a_function_that_is_too_slow_for_a_whole_batch_is_asked_for_parts_from_then_on(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled, tmp_path: Path
) -> None:
    score, said = rule("slow_with_many", timeout=0.8)
    for _ in range(2):
        assert score(many(sampled, ["花"] * 8)).tolist() == [1.0] * 8
    assert (tmp_path / "started").read_text(encoding="utf-8") == "xx"  # none was too late in the second batch
    assert said == [
        "the reward 'rewarding.rules:slow_with_many' said nothing within 0.8 seconds; 0 of 8 answers are left out"
    ]


def test_the_size_of_parts_follows_what_was_in_time(rule: Callable[..., tuple[RuleScore, list[str]]]) -> None:
    score, said = rule("slow_with_many", timeout=4.0)
    score._learn(16, {range(4): 0.1, range(8, 10): 0.1}, late=False)  # it raised: its halves are no measure
    assert score._most > 16
    score._learn(16, {range(4): 0.1, range(8, 10): 0.1}, late=True)  # 16 would take 0.53 s: it hung somewhere
    assert score._most == 4
    assert not said
    score._learn(16, {range(4 * n, 4 * n + 4): 1.9 for n in range(4)}, late=False)
    assert score._most == 6
    score._learn(16, {range(6): 2.1, range(6, 12): 1.0, range(12, 16): 1.0}, late=False)
    assert score._most == 6
    score._learn(16, {}, late=True)
    assert score._most == 6
    score._learn(16, {range(4): 1.0, range(4, 8): 1.5}, late=True)
    assert score._most == 4
    assert ["needs about 5 seconds for 16 answers and has 4:" in sentence for sentence in said] == [True]


def test_a_process_that_cannot_be_started_again_is_told_with_the_way_on(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled, tmp_path: Path
) -> None:
    score, _ = rule("dies")
    (tmp_path / "rewarding" / "rules.py").write_text("def dies(:\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"rules:dies' had ended and cannot be started again: .*SyntaxError.*goes on"):
        score(sampled)


def test_failures_that_are_not_in_a_row_end_nothing(
    rule: Callable[..., tuple[RuleScore, list[str]]], sampled: Sampled
) -> None:
    score, said = rule("sometimes")
    found = [score(sampled)[0].item() for _ in range(7)]
    assert found[::2] == [1.0, 3.0, 5.0, 7.0]
    assert len(said) == 3


def test_what_is_not_there_is_refused_by_name(rule: Callable[..., tuple[RuleScore, list[str]]]) -> None:
    with pytest.raises(UserError, match=r"unknown function 'flower' in module rewarding.rules; did you mean 'flowers'"):
        rule("flower")
    with pytest.raises(UserError, match=r"cannot be imported: ModuleNotFoundError.*nothing_of_that_name"):
        RuleScore("rewarding.broken:x", 1.0, print)


def test_the_file_of_a_rule_is_read_by_the_stage(
    rule: Callable[..., tuple[RuleScore, list[str]]], tmp_path: Path
) -> None:
    recipe = read_recipe("tiny", ["ppo.rewards=[{}, {source: 'rewarding.rules:flowers', weight: 0.5}]"])
    assert [*recipe.sections["ppo"].reads().values()] == [tmp_path / "rewarding" / "rules.py"]
    assert PPOSettings().reads() == {}
    with pytest.raises(UserError, match="there is no module 'rewardin'"):
        PPOSettings(rewards=(RewardTerm(source="rewardin:x"),)).reads()
    with pytest.raises(UserError, match=r"give model, or a function as package.module:function"):
        read_recipe("tiny", ["ppo.rewards=[{source: rewarding.rules.flowers}]"])
    with pytest.raises(UserError, match=r"unknown key 'ppo.rewards.1.wieght'; did you mean 'weight'"):
        read_recipe("tiny", ["ppo.rewards=[{}, {wieght: 2}]"])
    with pytest.raises(UserError, match="kappa is for the reward model"):
        read_recipe("tiny", ["ppo.rewards=[{source: 'rewarding.rules:flowers', kappa: 1}]"])


def test_a_mixture_is_a_weighted_sum_less_one_penalty(sampled: Sampled) -> None:
    first, second = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, math.nan])
    mixed = Mixture(((0.5, lambda _: first), (-0.1, lambda _: second)), missing_end_penalty=4.0)
    torch.testing.assert_close(mixed(sampled), torch.tensor([-0.5, -5.0, math.nan]), equal_nan=True)


def test_doubt_is_taken_from_the_score(make_model: Callable[..., Decoder], sampled: Sampled, tmp_path: Path) -> None:
    model = with_heads(make_model(), seed=3, heads=3)
    states = scoring.last_states(model, sampled.sequences)
    every = model.score(states)  # 3 answers, 3 heads
    means = torch.tensor([5.0, -1.0, 0.0])  # constants: heads that differ by them agree
    heads.write(Heads(with_mean_head(model), means), tmp_path)
    read = heads.read(tmp_path)
    score = RewardScore(model, 0.5, 2.0, 2, missing_end_penalty=0.0, clip=100.0, heads=read, kappa=1.5)
    wanted = (every.mean(1) - 1.5 * (every - means).std(1) - 0.5) / 2.0
    torch.testing.assert_close(score(sampled), wanted.detach())
    assert heads.read(tmp_path / "elsewhere") is None


def test_what_practice_is_paid_for_is_put_together_from_its_section(
    rule: Callable[..., tuple[RuleScore, list[str]]], tmp_path: Path, make_stage: Callable[..., Stage],
    make_model: Callable[..., Decoder], tokenizer: Tokenizer, sampled: Sampled,
) -> None:  # fmt: skip
    folder, place = tmp_path / "reward" / "model", PPOSettings(dtype="float32").machine()
    hub.save(make_model("scalar"), folder, tokenizer, card={"stage": "reward"})
    write_json(folder / SCALE, {"mean": 0.1, "std": 0.5})
    stage = make_stage("ppo", PPOSettings(), {"reward": tmp_path / "reward"})
    plain = scorer((RewardTerm(),), stage, place, 2, 1.0)
    assert isinstance(plain, RewardScore)
    flowers = RewardTerm(source="rewarding.rules:flowers", weight=0.5)
    mixed = scorer((RewardTerm(weight=2.0), flowers), stage, place, 2, 1.0)
    unpunished = plain(sampled) + torch.tensor([0.0, 1.0, 0.0])
    expected = 2 * unpunished + 0.5 * torch.tensor([2.0, 0.0, 1.0]) - torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(mixed(sampled), expected)
    with pytest.raises(UserError, match=r"kappa asks how far heads disagree, and the reward model has one"):
        scorer((RewardTerm(kappa=1.0),), stage, place, 2, 1.0)
    with pytest.raises(UserError, match=r"ppo.rewards is empty"):
        scorer((), stage, place, 2, 1.0)
    assert audits(stage, place, 2, 1.0) == {}
    shutil.copytree(folder, tmp_path / "reward" / AUDIT)
    audit = audits(stage, place, 2, 1.0)["audit"]
    assert audit is not None
    torch.testing.assert_close(audit(sampled), plain(sampled))


def test_practice_is_refused_on_what_is_not_proven(
    tmp_path: Path, make_stage: Callable[..., Stage], make_model: Callable[..., Decoder]
) -> None:
    (tmp_path / "reward").mkdir()
    figures = {
        "accuracy": 0.61, "accuracy_interval": [0.52, 0.69], "best_baseline": "longer", "baselines": {"longer": 0.57},
        "beats_baselines": False,
    }  # fmt: skip
    manifest = {"settings": {"require": True}, "figures": figures}
    write_json(tmp_path / "reward" / "manifest.json", manifest)
    stage = make_stage("ppo", PPOSettings(), {"reward": tmp_path / "reward"})
    with pytest.raises(UserError, match=r"0.61 \(95 % interval 0.52 to 0.69\), not clearly .* 'longer', 0.57"):
        scorer((RewardTerm(),), stage, PPOSettings().machine(), 4, 1.0)
    for told in ({"settings": {}, "figures": figures}, {**manifest, "figures": figures | {"beats_baselines": True}}):
        write_json(tmp_path / "reward" / "manifest.json", told)
        refuse_unproven(tmp_path / "reward")
