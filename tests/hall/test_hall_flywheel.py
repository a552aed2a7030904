"""The flywheel from vote to promotion and back: a crowd over the real API, a machine that may be killed anywhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from live_server import DIALOGUES, build_model, build_tokenizer, learn_by_heart, one_thread, serving
from typer.testing import CliRunner

from danlu import hub
from danlu.align.rounds import STATES, Rounds
from danlu.cli import app
from danlu.console import Console
from danlu.errors import UserError
from danlu.files import hash_file
from danlu.flywheel import Flywheel, FlywheelSettings
from danlu.hub.weights import WEIGHTS
from danlu.pipeline import STAGES, _outside, execute, read_recipe
from danlu.places import votes_path
from danlu.recipe import load_section
from danlu.records import Answer, Message
from danlu.run import Run
from danlu.serve import Options, create_app, succession
from danlu.serve.worker import Setup

__all__ = ["one_thread"]  # a fixture
BENCH = Path(__file__).parents[2] / "bench"
QUIET = Console(quiet=True)
SETTINGS = FlywheelSettings(votes=1000, audit=False, share=1.0)  # nobody votes as often here: no second round


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory) -> dict[str, Path]:
    """``knows`` has begun to learn the dialogues, ``random`` has not."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    knows = build_model(tokenizer, 1)
    hub.save(build_model(tokenizer, 2), folder / "random", tokenizer, card={})
    learn_by_heart(knows, tokenizer, steps=120)
    hub.save(knows, folder / "knows", tokenizer, card={})
    return {name: folder / name for name in ("knows", "random")}


@pytest.fixture
def crowd(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from crowd import Crowd

    yield Crowd
    sys.modules.pop("crowd")


@pytest.fixture
def run(tmp_path, model_dirs) -> Path:
    """A run that says its aligned model is finished: the one that has learnt nothing."""
    recipe = read_recipe("tiny")
    folder = tmp_path / "run"
    for stage, model in (("sft", "random"), ("ppo", "random")):
        Run(folder).begin(stage, {"stage": stage, "parents": {}, "settings": {}})
        hub.export_directory(model_dirs[model], folder / stage / "model")
        Run(folder).finish(stage, "made", {}, 1.0)
    (folder / "recipe.yaml").write_text(recipe.text)
    (folder / "resolved.json").write_text(json.dumps({"recipe": "tiny", "sections": recipe.resolved()}))
    return folder


def plant(wheel: Flywheel, model: Path) -> str:
    """A round that has trained a candidate and has passed the gates that need no people."""
    candidate, round_ = wheel.registry.add(model, {"stage": "ppo"}), wheel.rounds.current()
    for state in STATES[:6]:
        round_.write(state, {"passed": True, "candidate": candidate, "votes": 0, "conditions": []})
    return candidate


@pytest.fixture
def wheel(run) -> Iterator[Flywheel]:
    wheel = Flywheel(run, SETTINGS, QUIET)
    wheel.go()  # crowns the run's model
    yield wheel
    wheel.store.close()


def taste(question: str, answer: str) -> float:
    """The hidden metric: how much of the right answer is there."""
    right = DIALOGUES[question]
    return sum(a == b for a, b in zip(answer, right, strict=False)) / len(right)


def test_a_crowd_promotes_the_better_refuses_the_worse_and_a_rollback_restores(wheel, model_dirs, crowd, monkeypatch):
    monkeypatch.setattr(succession, "SECONDS", 0.02)
    first = wheel.registry.standing().champion
    before = (wheel.registry.place(first) / WEIGHTS).read_bytes()
    better = plant(wheel, model_dirs["knows"])
    server = create_app({}, wheel.store, Options(setup=Setup(rows=4), follow=wheel.run.dir))
    with serving(server, wheel.store) as live, httpx.Client(base_url=live.url, timeout=60) as http:
        people = crowd(http, taste, ["greet"], raters=10, adversarial=0.1)

        def vote(until: str, answers: int) -> int:
            """Let people compare so many answers until the round is over; returns how many votes it took."""
            for votes in range(0, 200, 8):
                waiting = wheel.go()
                if wheel.rounds.current().state == "collect":
                    return votes
                assert waiting.votes is None or waiting.votes > 0
                people.vote(8, "champion", answers, max_tokens=8, temperature=1.0)
            pytest.fail(f"200 votes do not decide on {until}")

        assert vote("the better one", 2) > 4, "a handful of votes is no proof"
        assert wheel.registry.standing().champion == better
        worse = plant(wheel, _shaken(model_dirs["knows"], wheel.run.dir / "shaken"))
        vote("the worse one", 4)
        assert wheel.rounds.last().result("canary")["losses"] > 4, "rankings count as well"
        standing = wheel.registry.standing()
        assert (standing.champion, standing.candidate) == (better, "")
        verdict = wheel.rounds.last().result("verdict")
        assert (verdict["promoted"], verdict["candidate"]) == (False, worse)
        assert "blind win rate" in verdict["why"]
    said = CliRunner().invoke(app, ["flywheel", str(wheel.run.dir), "rollback"])
    assert said.exit_code == 0
    assert wheel.registry.standing().champion == first
    assert (wheel.registry.place(first) / WEIGHTS).read_bytes() == before


def _shaken(source: Path, out: Path) -> Path:
    """A model with noise on its weights."""
    import torch

    model, tokenizer = hub.load_pretrained(source)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    hub.save(model, out, tokenizer, card={})
    return out


def test_a_rollback_while_a_candidate_is_tried_ends_its_round(wheel, model_dirs):
    first = wheel.registry.standing().champion
    wheel.registry.promote(wheel.registry.add(model_dirs["knows"], {}), "by hand")
    plant(wheel, _shaken(model_dirs["knows"], wheel.run.dir / "shaken"))
    assert "votes on the candidate" in wheel.go().what
    wheel.registry.roll_back("by hand")
    wheel.go()
    assert wheel.registry.standing().champion == first
    assert "still the candidate" in wheel.rounds.last().result("verdict")["why"]


def test_whoever_reigns_since_the_gate_has_not_been_held_against_the_candidate(wheel, model_dirs):
    first = wheel.registry.standing().champion
    candidate = plant(wheel, _shaken(model_dirs["knows"], wheel.run.dir / "shaken"))
    round_ = wheel.rounds.last()
    round_.write("policy_gate", {"passed": True, "conditions": [], "champion": first})
    wheel.registry.promote(wheel.registry.add(model_dirs["knows"], {}), "by hand")
    wheel.go()
    assert "the champion that it was held against" in round_.result("verdict")["why"]
    assert wheel.registry.standing().candidate != candidate


def test_a_proof_is_held_to_the_settings_with_which_people_were_first_asked(wheel, model_dirs):
    candidate = plant(wheel, model_dirs["knows"])
    wheel.go()
    wheel.settings = wheel.settings.model_copy(update={"error": 0.45, "worthwhile": 0.9})
    shown = [wheel.store.record(*_shown(wheel.registry.standing(), candidate)) for _ in range(3)]
    for comparison, rater in zip(shown, ("a", "b", "c"), strict=True):
        wheel.store.vote(comparison, (1, 0), rater)
    waiting = wheel.go()
    assert waiting.what.endswith("; error=0.45 from the next round on"), "patience may change at any time"
    assert waiting.found["wins"] == 3, "at an error of 0.45 that would have been enough"


def test_a_round_can_be_given_up_and_its_votes_go_into_the_next(wheel, model_dirs):
    said = CliRunner().invoke(app, ["flywheel", str(wheel.run.dir), "abandon", "audit=false"])
    assert "is under way" in str(said.exception)
    round_ = wheel.rounds.current()
    wheel.store.vote(wheel.store.record(*_shown(wheel.registry.standing(), "candidate")), (1, 0), "somebody")
    round_.write("collect", {})
    round_.write("freeze", wheel._freeze(round_))
    said = CliRunner().invoke(app, ["flywheel", str(wheel.run.dir), "abandon", "audit=false"])
    assert said.output.strip() == "round 1 ended: refused by operator: given up in reward"
    assert (wheel.rounds.current().number, wheel.rounds.current().state) == (2, "collect")
    assert wheel.look()["new_votes"] == 1
    plant(wheel, model_dirs["knows"])
    wheel.go()
    assert wheel.registry.standing().candidate
    wheel.abandon()
    assert wheel.registry.standing().candidate == ""
    assert [one["promoted"] for one in wheel.look()["rounds"]] == [False, False]
    wheel.registry.promote(plant(wheel, _shaken(model_dirs["knows"], wheel.run.dir / "shaken")), "and then it was gone")
    with pytest.raises(UserError, match="round 3's candidate reigns"):
        wheel.abandon()


def test_votes_alone_that_prefer_nothing_end_a_round(wheel):
    nothing = {"prompts": 0, "endings": 0}
    wheel.recipe.sections["rankings"] = wheel.recipe.sections["rankings"].model_copy(update=nothing)
    wheel.store.vote(wheel.store.record(*_shown(wheel.registry.standing(), "candidate")), (0, 0), "somebody")
    wheel.settings = wheel.settings.model_copy(update={"votes": 1})
    assert wheel.go().votes == 1, "the next round"
    assert "votes that prefer something" in wheel.rounds.last().result("verdict")["why"]


@pytest.mark.parametrize("killed_after", ["nothing", "proposed", "canary", "promoted"])
def test_a_round_goes_on_wherever_it_was_killed(wheel, model_dirs, killed_after):
    """What was done is done once: the candidate is promoted, and one reign has ended."""
    candidate = plant(wheel, model_dirs["knows"])
    if killed_after != "nothing":
        wheel.go()
    round_ = wheel.rounds.last()
    if killed_after in ("canary", "promoted"):
        round_.write("canary", {"passed": True, "conditions": []})
    if killed_after == "promoted":
        wheel.registry.promote(candidate, "and then the process was gone")
    again = Flywheel(wheel.run.dir, SETTINGS, QUIET)
    standing = again.registry.standing()
    for vote in range(10):
        shown = again.store.record(*_shown(standing, candidate))
        again.store.vote(shown, (1, 0), f"rater-{vote}")
    again.go()
    standing = again.registry.standing()
    assert (standing.champion, standing.candidate, len(standing.history)) == (candidate, "", 1)
    assert round_.result("verdict")["promoted"]
    again.store.close()


def _shown(standing, candidate):
    champion = standing.history[-1].model if standing.champion == candidate else standing.champion
    return (Message("user", "greet"),), (Answer("never", model=champion), Answer("Hello", model=candidate))


def test_settings_are_strict_and_what_is_missing_is_said(run, tmp_path):
    (run / "flywheel.yaml").write_text("votes: 7\nshare: 0.25\n")
    read = load_section(run / "flywheel.yaml", ["share=0.75"], "flywheel", FlywheelSettings)
    assert (read.votes, read.share, read.bar) == (7, 0.75, 0.5)
    with pytest.raises(UserError, match="did you mean 'votes'"):
        load_section(run / "flywheel.yaml", ["vote=3"], "flywheel", FlywheelSettings)
    with pytest.raises(UserError, match="share"):
        load_section(run / "flywheel.yaml", ["share=2"], "flywheel", FlywheelSettings)
    with pytest.raises(UserError, match="audit_share"):
        Flywheel(run, FlywheelSettings(), QUIET).go()
    with pytest.raises(UserError, match="is not a run"):
        Flywheel(tmp_path / "nowhere", SETTINGS, QUIET)
    with pytest.raises(UserError, match="no file"):
        Flywheel(run, SETTINGS.model_copy(update={"red_lines": "nothing.jsonl"}), QUIET)
    said = CliRunner().invoke(app, ["flywheel", str(run), "statu"])
    assert "did you mean 'status'" in str(said.exception)
    said = CliRunner().invoke(app, ["flywheel", str(run), "status", "rollback"])
    assert "status and rollback are 2 actions" in str(said.exception)


def test_new_votes_are_those_after_the_last_freeze_whatever_became_of_older_ones(wheel):
    shown = [wheel.store.record(*_shown(wheel.registry.standing(), "candidate")) for _ in range(4)]
    for comparison in shown[:2]:
        wheel.store.vote(comparison, (1, 0), "old")
    round_ = wheel.rounds.current()
    round_.write("collect", {})
    frozen = wheel._freeze(round_)
    assert (frozen["votes"], wheel._collect(wheel.rounds.current()).votes) == (2, 998)
    round_.write("freeze", frozen)
    for state, result in (("reward", {}), ("reward_gate", {"passed": False, "conditions": []}), ("verdict", {})):
        round_.write(state, result)
    wheel.store.forget("old")
    assert wheel.go().votes == 1000
    wheel.store.vote(shown[2], (1, 0), "new")
    assert wheel.go().votes == 999, "one vote is new, though there are fewer than there were"
    wheel.store.thumb(wheel.store.record([Message("user", "?")], [Answer("!")]), True, "new")
    assert wheel.go().votes == 999
    wheel.recipe.sections["dpo"] = wheel.recipe.sections["dpo"].model_copy(update={"loss": "kto"})
    assert wheel.go().votes == 998, "this recipe learns from thumbs too"


def test_a_round_sets_out_from_the_champion_of_its_freeze(wheel, model_dirs):
    first, frozen = wheel.registry.standing().champion, {"votes": wheel.run.dir / "none.jsonl"}
    wheel.settings = wheel.settings.model_copy(update={"start": "champion"})
    round_ = wheel.rounds.current()
    round_.write("freeze", wheel._freeze(round_))
    assert wheel.look()["since"] == round_.result("freeze")["ended"]
    wheel.registry.promote(wheel.registry.add(model_dirs["knows"], {}), "by hand")
    chosen = wheel._frozen(round_)
    assert chosen["champion"] == wheel.registry.place(first), "who reigns since then makes no other stage of it"
    ppo, reward = (next(spec for spec in STAGES if spec.name == name) for name in ("ppo", "reward"))
    assert _outside(wheel.run, ppo, wheel.recipe, frozen | chosen)["champion"] == wheel.registry.place(first)
    assert "champion" not in _outside(wheel.run, ppo, wheel.recipe, frozen)
    assert "champion" not in _outside(wheel.run, reward, wheel.recipe, frozen | chosen)
    taught = {"stage": "ppo", "round": 1, "votes": hash_file(round_.dir / "votes.jsonl")}
    second = wheel.registry.add(_shaken(model_dirs["knows"], wheel.run.dir / "shaken"), taught)
    round_.write("freeze", {"champion": second})
    assert wheel._frozen(round_)["champion"] == wheel.registry.place(second)
    (round_.dir / "votes.jsonl").write_text("as without a rater who was forgotten")
    assert "champion" not in wheel._frozen(round_), "who was forgotten teaches nobody by way of the champion"
    wheel._aligned = "dpo"
    with pytest.raises(UserError, match="stage 'dpo' sets out from the SFT model; give the flywheel start=sft"):
        wheel.go()


def test_the_canary_counts_first_words_and_reads_votes_when_there_are_others(wheel, model_dirs, monkeypatch):
    candidate = plant(wheel, model_dirs["knows"])
    asked = []
    everything = type(wheel.store).all
    monkeypatch.setattr(type(wheel.store), "all", lambda store, **how: asked.append(how) or everything(store, **how))
    wheel.go()
    wheel.go()
    assert len(asked) == 1, "nothing new was to be read"
    shown = wheel.store.record(*_shown(wheel.registry.standing(), candidate))
    wheel.store.vote(shown, (0, 1), "r")
    assert wheel.go().found["losses"] == 1
    wheel.store.vote(shown, (1, 0), "r")  # now they know who wrote what
    assert (wheel.go().found["losses"], wheel.go().found["wins"], len(asked)) == (1, 0, 3)
    said = CliRunner().invoke(app, ["flywheel", str(wheel.run.dir), "rollback"])
    assert "stays the champion" in said.output, "nobody reigned before: the candidate goes, and that is all"
    assert wheel.registry.standing().candidate == ""


def test_a_look_before_the_first_turn_counts_and_makes_no_store(run):
    look = Flywheel(run, SETTINGS, QUIET).look()
    assert (look["state"], look["new_votes"], look["votes_wanted"], look["votes_needed"]) == ("collect", 0, 1000, 1000)
    assert not (run / "feedback").exists()


def test_status_says_what_is_waited_for(wheel):
    said = CliRunner().invoke(app, ["flywheel", str(wheel.run.dir), "--once", "audit=false", "votes=3"])
    assert said.exit_code == 0, said.output
    assert "round 1, collect: 0 of 3 new votes" in said.output
    wheel.store.vote(wheel.store.record(*_shown(wheel.registry.standing(), "candidate")), (1, 0), "since")
    status = CliRunner().invoke(app, ["flywheel", str(wheel.run.dir), "status"]).stdout
    assert status.startswith("round 1, collect: 1 of 3 new votes"), "of now, not of the last look"
    look = json.loads(CliRunner().invoke(app, ["flywheel", str(wheel.run.dir), "status", "--json"]).stdout)
    assert (look["state"], look["votes_needed"], look["waits_for"]) == ("collect", 2, "2 more votes")
    assert look["standing"]["champion"] == wheel.registry.standing().champion


SMALL = {
    "tokenizer": {"vocab_size": 512},
    "pretrain": {"steps": 12, "warmup": 2},
    "sft": {"epochs": 1, "steps": 6},
    "rankings": {"prompts": 16, "max_new_tokens": 8},
    "reward": {"scale_prompts": 8, "max_new_tokens": 8, "audit_share": 0.4},
    "ppo": {"iterations": 2, "batch_size": 8, "mini_batch": 8, "probe_every": 1, "probe_prompts": 4,
            "max_new_tokens": 8},
    "eval": {"prompts": 8, "max_new_tokens": 8, "bpb_tokens": 500},
}  # fmt: skip


@pytest.mark.slow
def test_votes_go_through_the_whole_pipeline_to_a_candidate(tmp_path, crowd):
    """collect, freeze, reward, gate, policy, gate, canary, with the run's own stages."""
    out = tmp_path / "run"
    execute(read_recipe("tiny", [SMALL]), out, QUIET, until="ppo")
    loose = {"proven_reward": False, "audit": True, "audit_gain": -100.0, "kl_budget": 1e3, "bpb_budget": 10.0,
             "start": "champion"}  # fmt: skip
    settings = SETTINGS.model_copy(update={"votes": 6, **loose})
    wheel = Flywheel(out, settings, QUIET)
    first = wheel.registry.add(_shaken(out / "ppo" / "model", tmp_path / "shaken"), {})  # so that any candidate differs
    wheel.registry.crown(first, "from elsewhere")
    assert wheel.go().votes == 6
    server = create_app({}, wheel.store, Options(setup=Setup(rows=4), follow=out))
    with serving(server, wheel.store) as live, httpx.Client(base_url=live.url, timeout=60) as http:
        asked = ["Continue: The old man", "Tell me more.", "Why?"]
        people = crowd(http, lambda _, text: len(set(text)), asked, tie_width=0.0)
        people.vote(4, "champion", max_tokens=8, temperature=1.2)
        people.vote(4, "champion", answers=3, max_tokens=8, temperature=1.2)
        assert sum(people.met.values()) == 4 * 2 + 4 * 3
        assert "votes on the candidate" in wheel.go().what, wheel.rounds.last().result("verdict")
    round_ = Rounds(out).last()
    results = {state: round_.result(state) for state in STATES}
    assert [state for state in STATES if results[state] is None] == ["canary", "verdict"]
    assert results["freeze"]["votes"] == 8
    assert results["reward"]["figures"]["votes"] == results["freeze"]["preferences"] > 0
    candidate = wheel.registry.standing().candidate
    assert candidate == results["policy"]["candidate"] != first
    assert hub.model_hash(out / "ppo" / "model") == candidate
    assert wheel.registry.lineage(candidate)["votes"] == results["freeze"]["hash"]
    assert votes_path(out).exists()
    assert {row["what"] for row in results["policy_gate"]["conditions"]} == {
        "audit reward gain, lower bound", "KL from the SFT model, nats per answer",
        "bits per byte above the SFT model's, as a share",
    }  # fmt: skip
    wheel.store.close()
