"""Versions never change, and the pointer goes forth and back."""

from pathlib import Path

import pytest

from danlu import hub
from danlu.align.champion import Registry
from danlu.errors import UserError
from danlu.hub.weights import WEIGHTS


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def versions(run, make_model, tokenizer) -> list[str]:
    """Three models that a stage made in turn, each in the place of the one before."""
    registry, found = Registry(run), []
    for seed in range(3):
        hub.save(make_model(seed=seed), run / "ppo" / "model", tokenizer, card={"stage": "ppo"})
        found.append(registry.add(run / "ppo" / "model", {"stage": "ppo", "round": seed}))
    return found


def weights(registry: Registry, identity: str) -> bytes:
    return (registry.place(identity) / WEIGHTS).read_bytes()


def test_a_version_keeps_its_bytes_when_its_stage_is_made_again(run, versions):
    registry = Registry(run)
    assert len({weights(registry, one) for one in versions}) == 3
    assert [hub.model_hash(registry.place(one)) for one in versions] == versions
    assert registry.add(run / "ppo" / "model", {"stage": "again"}) == versions[2]
    assert registry.lineage(versions[2])["stage"] == "ppo", "what is kept already stays as it is"
    assert hub.load(registry.place(versions[0])) is not None


def test_promotion_and_rollback_restore_the_former_champion(run, versions):
    registry, (first, second, third) = Registry(run), versions
    before = weights(registry, first)
    registry.crown(first, "made by the run")
    registry.crown(second, "too late")
    assert registry.standing().champion == first
    registry.propose(second, 0.5)
    assert (registry.standing().candidate, registry.standing().share) == (second, 0.5)
    registry.promote(second, "round 1")
    registry.promote(second, "said twice")
    registry.propose(third, 0.5)
    registry.withdraw(second)
    assert registry.standing().candidate == third, "somebody else's candidate stays"
    registry.promote(third, "round 2")
    standing = registry.standing()
    assert (standing.champion, standing.candidate) == (third, "")
    assert [(reign.model, reign.ended) for reign in standing.history] == [(first, "promoted"), (second, "promoted")]
    registry.propose(second, 0.5)
    assert registry.roll_back("worse").champion == second
    assert registry.standing().candidate == ""
    assert registry.roll_back("worse still").champion == first, "to roll back twice goes back twice"
    assert weights(registry, registry.standing().champion) == before
    with pytest.raises(UserError, match="no other champion"):
        registry.roll_back("once more")


def test_what_is_not_there_is_said(run, versions, tmp_path):
    registry = Registry(run)
    assert registry.standing() is None
    with pytest.raises(UserError, match="no version '0123'"):
        registry.crown("0123", "a guess")
    with pytest.raises(UserError, match="has no champion yet"):
        registry.propose(versions[0], 0.5)
    with pytest.raises(UserError, match="does not exist"):
        Registry(tmp_path / "nowhere").roll_back("why not")
    registry.pointer.write_text('{"champion": "x"}')
    with pytest.raises(UserError, match="damaged"):
        registry.standing()
