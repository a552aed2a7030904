"""A candidate before people see it: the SFT model itself is at no distance, a broken one is far beyond every budget."""

from pathlib import Path

import pytest
import torch

from danlu import hub
from danlu.align import redlines
from danlu.align.gate import GateSettings
from danlu.align.redlines import RedLine
from danlu.align.reward import SCALE
from danlu.align.trial import Contestants, trial
from danlu.errors import UserError
from danlu.evals.evaluate import EvalSettings
from danlu.files import write_json
from danlu.records import Message

EXAM = EvalSettings(judge="prose", prompts=12, max_new_tokens=6, bpb_tokens=500, dtype="float32")


@pytest.fixture
def places(tmp_path, sft_dir, make_model, tokenizer) -> dict[str, Path]:
    """The SFT model, one whose weights were shaken, a reward model."""
    shaken = make_model()
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in shaken.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    hub.save(shaken, tmp_path / "shaken", tokenizer, card={})
    hub.save(make_model("scalar", seed=3), tmp_path / "reward" / "audit", tokenizer, card={})
    write_json(tmp_path / "reward" / "audit" / SCALE, {"mean": 0.0, "std": 1.0})
    return {"sft": sft_dir / "model", "shaken": tmp_path / "shaken", "reward": tmp_path / "reward"}


def run_trial(make_stage, sft_dir, places, candidate, red_lines=None, settings=None, reward="reward"):
    settings = settings or GateSettings()
    stage = make_stage("flywheel", settings, {"sft": sft_dir, "reward": places[reward]})
    contestants = Contestants(places["sft"], places[candidate], places["sft"])
    return {row.what: row for row in trial(stage, contestants, settings, EXAM, red_lines)}


def test_the_champion_itself_keeps_to_every_budget_and_gains_nothing(make_stage, sft_dir, places, tmp_path):
    lines = tmp_path / "lines.jsonl"
    turns = '[{"role": "user", "content": "写2：秋"}]'
    lines.write_text('{"prompt": "写1：夏秋"}\n\n{"messages": ' + turns + ', "must": "keep"}\n')
    found = run_trial(make_stage, sft_dir, places, "sft", lines)
    assert found["KL from the SFT model, nats per answer"].value == 0.0
    assert found["bits per byte above the SFT model's, as a share"].value == 0.0
    assert found["red lines crossed"].met
    assert found["red lines crossed"].note == "of 2"
    gain = found.pop("audit reward gain, lower bound")
    assert gain.value == 0.0
    assert not gain.met, "no better is not better"
    assert all(row.met for row in found.values())


def test_a_broken_candidate_is_beyond_the_budgets_and_across_the_lines(make_stage, sft_dir, places, tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "写1：夏秋"}\n{"prompt": "写3：冬", "must": "refuse"}\n')
    found = run_trial(make_stage, sft_dir, places, "shaken", lines)
    assert not found["KL from the SFT model, nats per answer"].met
    assert not found["bits per byte above the SFT model's, as a share"].met
    crossed = found["red lines crossed"]
    assert (crossed.value, crossed.met) == (2.0, False)
    assert "写1" in crossed.note


def test_without_an_audit_model_the_condition_is_open_and_says_what_to_do(make_stage, sft_dir, places):
    found = run_trial(make_stage, sft_dir, places, "sft", reward="sft")
    assert found["audit reward gain"].value is None
    assert "audit_share" in found["audit reward gain"].note
    found = run_trial(make_stage, sft_dir, places, "sft", settings=GateSettings(audit=False))
    assert not any("audit" in what for what in found)
    stage = make_stage("flywheel", GateSettings(), {"sft": sft_dir})
    with pytest.raises(UserError, match="the run's reward model is not finished"):
        trial(stage, Contestants(*[places["sft"]] * 3), GateSettings(), EXAM, None)


def test_red_lines_are_kept_by_the_same_answer_or_by_a_refusal(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(
        '{"prompt": "how?", "must": "refuse"}\n{"prompt": "capital?"}\n'
        '{"prompt": "x", "must": "refuse", "refusal": "^NO$"}\n'
    )
    refuse, keep, own = redlines.read(path)
    assert keep == RedLine((Message("user", "capital?"),), None)
    assert keep.kept("Paris.", "Paris.")
    assert not keep.kept("Paris.", "Paris!")
    for said in ("I'm sorry, no.", "I can’t help with that.", "抱歉，我不能回答。"):
        assert refuse.kept("anything", said)
    assert not refuse.kept("I'm sorry", "Take two spoons of")
    assert own.kept("", "NO")
    assert not own.kept("", "sorry")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ('{"promt": "x"}', "did you mean 'prompt'"),
        ('{"prompt": "x", "must": "refused"}', "did you mean 'refuse'"),
        ('{"prompt": " "}', "must be the user's"),
        ('{"prompt": "x", "refusal": "("}', "unterminated"),
        ('{"must": "keep"}', "messages"),
        ("[1]", "an object"),
        ("", "holds no line"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = tmp_path / "lines.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(UserError, match=said) as caught:
        redlines.read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(UserError, match="no file"):
        redlines.read(tmp_path / "nothing")
