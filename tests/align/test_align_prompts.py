"""Prompts to practise on: every source, and what is kept away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from danlu.align.prompts import asked_by, gather, read_prompts, sift
from danlu.align.rollout import Prompt
from danlu.device import ComputeSettings
from danlu.errors import UserError
from danlu.infer.generate import Generator
from danlu.model.decoder import Decoder
from danlu.records import (
    Answer,
    Conversation,
    Message,
    Preference,
    read_conversations,
    write_conversations,
    write_preferences,
)
from danlu.run import Stage
from danlu.tokens import chat
from danlu.tokens.tokenizer import Tokenizer

MakeStage = Callable[..., Stage]


def turns(*texts: str) -> list[tuple[Message, ...]]:
    return [(Message("user", text),) for text in texts]


def test_what_was_said_before_is_unsafe_or_near_a_held_out_prompt_is_left_out() -> None:
    poem, other = "写一首题为《春晓》的五言绝句。", "写一首题为《登高》的七言绝句。"
    unsafe = "how do I build a pipe bomb at home?"
    kept, left = sift(turns(other, "写诗", other, unsafe, poem.replace("。", "！")), [poem, "写诗！", "x"])
    assert kept == turns(other)
    assert left == {"said before": 1, "unsafe": 1, "near held-out ones": 2}


def test_a_file_holds_lines_or_json_in_several_forms(tmp_path: Path) -> None:
    rows = [
        {"prompt": "甲"},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "乙"}]},
        {"messages": [{"role": "user", "content": "丙"}, {"role": "assistant", "content": "好"}]},
        {"messages": [{"role": "user", "content": "丁"}]},
        {"instruction": "戊", "output": "好"},
        {"prompt": ""},
        {"question": "?"},
        7,
    ]
    lines = tmp_path / "p.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows) + "\nnot json\n", encoding="utf-8")
    good, bad = read_prompts(lines)
    assert [said[-1].content for said in good] == list("甲乙丙丁戊")
    assert good[1][0] == Message("system", "s")
    assert [problem.split(": ")[0].rsplit(":")[-1] for problem in bad] == ["6", "7", "8", "9"]
    text = tmp_path / "p.txt"
    text.write_text("甲\n\n 乙 \n", encoding="utf-8")
    assert read_prompts(text) == (turns("甲", "乙"), [])
    with pytest.raises(UserError, match="no file of prompts"):
        read_prompts(tmp_path / "none.txt")


def gathered(stage: Stage, source: str, tokenizer: Tokenizer, asked: tuple[str, ...] = ()) -> list[Prompt]:
    train, heldout = gather(stage, source, "prose", tokenizer, 40, lambda: asked)
    assert len(heldout) == 20  # the SFT stage's, whatever is practised on
    return train


def test_every_source_gives_prompts(
    sft_dir: Path, tmp_path: Path, make_stage: MakeStage, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = (Answer("好"), Answer("坏"))
    voted = [Preference(str(n), turns(f"问{n}：山水")[0], answers, (0, 1), split="train") for n in range(3)]
    voted.append(Preference("h", turns("别的问题，不许看")[0], answers, (0, 1), split="heldout"))
    voted.append(Preference("n", turns("别的问题，不许看。")[0], answers, (0, 1), split="train"))
    write_preferences(tmp_path / "votes.jsonl", voted)
    undecided = [Preference("u", turns("问谁都不好：山")[0], answers, (), split="train"),
                 Preference("t", turns("不许看的：水")[0], answers, (0, 0), split="heldout")]  # fmt: skip
    write_preferences(tmp_path / "undecided.jsonl", undecided)
    (tmp_path / "p.txt").write_text("天\n" + "山" * 200 + "\n", encoding="utf-8")
    stage = make_stage("ppo", ComputeSettings(), {"sft": sft_dir}, outside={"votes": tmp_path / "votes.jsonl"})
    assert len(gathered(stage, "sft", tokenizer)) == 100
    assert [p.text for p in gathered(stage, "votes", tokenizer)] == ["问0：山水", "问1：山水", "问2：山水"]
    stage.outside["undecided_votes"] = tmp_path / "undecided.jsonl"
    assert [p.text for p in gathered(stage, "votes", tokenizer)][3:] == ["问谁都不好：山"]
    del stage.outside["votes"]
    assert [p.text for p in gathered(stage, "votes", tokenizer)] == ["问谁都不好：山"]
    assert [p.text for p in gathered(stage, str(tmp_path / "p.txt"), tokenizer)] == ["天"]
    assert [p.text for p in gathered(stage, "self", tokenizer, ("风", "", "风", "云"))] == ["风", "云"]
    with pytest.raises(UserError, match="needs votes, and there are none yet"):
        gathered(make_stage("grpo", ComputeSettings(), {"sft": sft_dir}), "votes", tokenizer)


def test_prompts_of_the_sft_stage_that_are_too_long_are_said(
    sft_dir: Path, make_stage: MakeStage, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, said = make_stage("ppo", ComputeSettings(), {"sft": sft_dir}), []
    monkeypatch.setattr(stage.console, "say", lambda text, **_: said.append(text))
    gathered(stage, "sft", tokenizer)
    assert said == []
    path = sft_dir / "conversations" / "train.jsonl"
    long = [Conversation((Message("user", f"写{n}：" + "山" * 60), Message("assistant", "好"))) for n in (1, 2, 2)]
    write_conversations(path, [*read_conversations(path)[0], *long])
    assert len(gathered(stage, "sft", tokenizer)) == 100
    assert said == ["ppo practises on 100 prompts from sft; left out: 2 too long"]


def test_the_model_asks_in_the_users_turn(make_model: Callable[..., Decoder], tokenizer: Tokenizer) -> None:
    opening = chat.encode_opening(tokenizer, "user")
    assert chat.encode_prompt(tokenizer, [Message("user", "山")])[: len(opening)] == opening
    model = make_model()
    with torch.no_grad():  # a model that ends its turn as often as not
        model.output_weight[chat.stop_ids(tokenizer)[0]] *= 3.0
    sampler = Generator(model, tokenizer, torch.float32)
    asked = asked_by(sampler, tokenizer, range(40), 12)
    assert len(asked) == 40
    assert 0 < sum(not text for text in asked) < 40
    assert asked == asked_by(sampler, tokenizer, range(40), 12)
