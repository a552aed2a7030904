"""The flywheel: votes become a candidate, and a candidate that proves itself becomes the champion. Again and again.

In:  a run with an aligned model, and the votes in its store.
Out: rounds on disk (``align.rounds``), versions and the pointer that the server follows (``align.champion``).
Left out: training (``pipeline``), statistics (``align.gate``, ``align.trial``), showing answers and taking votes
(``serve``).

    collect -> freeze -> reward -> reward_gate -> policy -> policy_gate -> canary -> verdict

A state's result is written before the next state begins, and what a state does may be done twice: training goes on from
its checkpoints, versions and the pointer take the same change once. So a process may be killed at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from danlu.align import gate, redlines
from danlu.align.answering import PracticeSettings
from danlu.align.champion import Registry
from danlu.align.database import is_url
from danlu.align.gate import Comparison, Condition, GateSettings, as_rows
from danlu.align.judgements import VOTES
from danlu.align.preferences import PreferenceStore
from danlu.align.quality import audit_proven
from danlu.align.rounds import FLYWHEEL, Round, Rounds
from danlu.align.tables import now
from danlu.align.trial import Contestants, trial
from danlu.align.trunk import START
from danlu.console import Console
from danlu.errors import UserError
from danlu.evals.evaluate import EvalSettings
from danlu.files import atomic_write, hash_file, read_json, write_json
from danlu.pipeline import aligned_of, execute, read_recipe
from danlu.places import snapshot_path, votes_path
from danlu.recipe import Recipe
from danlu.run import RESOLVED, Metrics, Run, Stage
from danlu.snapshots import freeze_votes

_VOTES, _PROPOSED, _ABANDONED = "votes.jsonl", "proposed.json", "abandoned"
_TAKEN = Condition("still the candidate", 0.0, "> 0", False, "the operator rolled back, which takes a candidate away")
_OVERTAKEN = Condition("the champion that it was held against", 0.0, "> 0", False, "another one reigns since the gate")


class FlywheelSettings(GateSettings):
    """``RUN/flywheel.yaml``."""

    votes: int = Field(50, ge=1)
    """New votes that start a round."""
    start: Literal["sft", "champion"] = "sft"
    """Where practice sets out from in each round: the SFT model again, or the champion, which goes on from what it has
    learnt. Either is held to the SFT model by its KL. Stages of practice only (ppo, grpo, online_dpo)."""
    share: float = Field(0.5, gt=0, le=1)
    """Of comparisons of the champion with itself, pairs or rankings, how many are with the candidate instead while
    there is one, which then has every second answer."""
    store: str = ""
    """Preference store, a file or a database's URL; the recipe's run.votes, or else the run's own, if empty."""
    red_lines: str = ""
    """A file of red lines; none if empty."""
    proven_reward: bool = True
    """Whether a reward model has to beat every baseline on held-out comparisons before a policy is trained by it."""
    poll: float = Field(5.0, gt=0)
    """Seconds between two looks at the votes."""


@dataclass(frozen=True)
class Waiting:
    """Nothing can be done now.

    Attributes:
        what: is waited for, in words.
        votes: about so many more; None if it cannot be said.
        found: what was seen, as plain data.
    """

    what: str
    votes: int | None
    found: dict[str, Any]


class Flywheel:
    """The flywheel of a run.

    Args:
        run: the run directory, in which the aligned model is finished.
        settings: thresholds and patience.
        console: where progress goes.

    Raises:
        UserError: there is no run, or settings name a file that is not there.
    """

    def __init__(self, run: Path, settings: FlywheelSettings, console: Console) -> None:
        if not (run / RESOLVED).is_file():
            raise UserError(f"{run} is not a run; make one first: danlu run tang --out {run}")
        self.run, self.settings, self._console = Run(run), settings, console
        self.registry, self.rounds = Registry(run), Rounds(run)
        self.recipe = _recipe_of(run)
        self._aligned = aligned_of(self.recipe)
        self._compared: tuple[tuple[Any, ...], Comparison] | None = None
        self._red_lines = Path(settings.red_lines).expanduser() if settings.red_lines else None
        if self._red_lines is not None:
            redlines.read(self._red_lines)  # now, and not after hours of training
        self._states: dict[str, Callable[[Round], dict[str, Any] | Waiting]] = {
            "collect": self._collect,
            "freeze": self._freeze,
            "reward": self._reward,
            "reward_gate": self._reward_gate,
            "policy": self._policy,
            "policy_gate": self._policy_gate,
            "canary": self._canary,
            "verdict": self._verdict,
        }

    @cached_property
    def store(self) -> PreferenceStore:
        """The votes; opened when they are asked for, because to look where it is should make no store."""
        return PreferenceStore(self._store_place)

    def go(self) -> Waiting:
        """Go as far as it can be gone now; returns what is waited for.

        Raises:
            UserError: another process turns this flywheel, the run has no aligned model, or a stage was refused.
        """
        with Run(self.rounds.dir).locked():
            self._check()
            while True:
                done = self._step(self.rounds.current())
                if done is not None:
                    return done

    def abandon(self) -> Round:
        """Give up the round that is under way; its votes go into the next one.

        Raises:
            UserError: none is, or another process turns this flywheel.
        """
        with Run(self.rounds.dir).locked():
            round_ = self.rounds.current()
            if round_.result("collect") is None:
                raise UserError(f"no round of {self.run.dir} is under way: it collects votes")
            candidate, standing = (round_.result("policy") or {}).get("candidate"), self.registry.standing()
            if candidate is not None:
                if standing is not None and candidate == standing.champion:
                    raise UserError(f"round {round_.number}'s candidate reigns; danlu flywheel {self.run.dir} ends it")
                self.registry.withdraw(candidate)
            verdict = _refused(candidate, f"operator: given up in {round_.state}")
            round_.write("verdict", verdict | {_ABANDONED: True})
            return round_

    def look(self) -> dict[str, Any]:
        """Where it is, as plain data; nothing is done."""
        standing, seen = self.registry.standing(), self.rounds.summary()
        if seen["state"] == "collect":
            seen |= self._gathered(seen)
        return {**seen, "standing": asdict(standing) if standing else None}

    def _gathered(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """The new votes of now, of as many as whoever turns it last wanted; by the last look if there is no store."""
        wanted, new = seen["votes_wanted"] or self.settings.votes, seen["new_votes"] or 0
        if is_url(self._store_place) or Path(self._store_place).is_file():
            _, new = self._count(self.rounds.current())
        needed = max(wanted - new, 0)
        waits_for = f"{needed} more votes" if needed else None
        return {"waits_for": waits_for, "votes_needed": needed, "new_votes": new, "votes_wanted": wanted}

    def _step(self, round_: Round) -> Waiting | None:
        """One state; None if it is done."""
        state = cast(str, round_.state)
        came = self._states[state](round_)
        where = {"round": round_.number, "state": state}
        if isinstance(came, Waiting):
            self.rounds.note_look({**where, "waits_for": came.what, "votes_needed": came.votes, **came.found})
            return came
        round_.write(state, came)
        self.rounds.note_look({"round": round_.number, "state": round_.state})
        self._console.say(f"round {round_.number}, {state:<11} {came.get('said', 'done')}")
        return None

    def _check(self) -> None:
        """Crown the run's model if nobody reigns yet; refuse what would be found out after hours."""
        aligned = self._aligned
        if self.settings.audit and not self._said("reward", "audit_share"):
            raise UserError(
                f"the gate compares audit rewards, and the recipe of {self.run.dir} keeps no reward model apart; make "
                "it again with reward.audit_share=0.2, or give the flywheel audit=false"
            )
        if self.settings.start == "champion":
            section = self.recipe.sections[aligned]
            if not isinstance(section, PracticeSettings):
                raise UserError(f"stage '{aligned}' sets out from the SFT model; give the flywheel start=sft")
            if section.adapter.kind != "none":
                raise UserError("an adapter stands on the SFT model, which all share; give the flywheel start=sft")
        if self.registry.standing() is None:
            if not self.run.finished(aligned):
                raise UserError(f"{self.run.dir} has no finished model of stage '{aligned}'; danlu run makes it")
            lineage = {"stage": aligned, "round": 0, **self._learnt_before()}
            first = self.registry.add(self.run.stage_dir(aligned) / "model", lineage)
            self.registry.crown(first, "the model that the run made")

    def _collect(self, round_: Round) -> dict[str, Any] | Waiting:
        votes, new = self._count(round_)
        missing = self.settings.votes - new
        if missing > 0:
            found = {"votes": votes, "new": new, "wanted": self.settings.votes}
            return Waiting(f"{missing} more votes", missing, found)
        return {"votes": votes, "new": new, "said": f"{new} new votes, {votes} in all"}

    def _count(self, round_: Round) -> tuple[int, int]:
        """Votes in all, and those since the last freeze before this round that was not of a round given up."""
        before = [one for one in self.rounds.all() if one.number < round_.number]
        earlier = [one.result("freeze") for one in before if not (one.result("verdict") or {}).get(_ABANDONED)]
        since = max((result.get("until", "") for result in earlier if result), default="")
        votes, new = self.store.count(), self.store.count(since)
        if self._said("dpo", "loss") == "kto":  # which learns from thumbs too
            votes, new = votes + self.store.count_thumbs(), new + self.store.count_thumbs(since)
        return votes, new

    def _freeze(self, round_: Round) -> dict[str, Any]:
        """A copy of the votes that no later vote changes: what is trained on is known, and stays so."""
        path, until = round_.dir / _VOTES, now()
        votes, kept = self.store.count(), freeze_votes(self.recipe, self.store, path)
        if not kept + self._said("rankings", "prompts") + self._said("rankings", "endings"):  # nothing is simulated
            return _gate([Condition("votes that prefer something", 0, "> 0", False)], False) | {"until": until}
        return {
            "votes": votes, "until": until, "preferences": kept, "hash": hash_file(path), "champion": self._champion,
            "said": f"{kept} votes prefer something",
        }  # fmt: skip

    def _reward(self, round_: Round) -> dict[str, Any]:
        self._make("reward", round_)
        figures = _manifest(self.run, "reward")["figures"]
        return {"figures": figures, "said": f"accuracy {figures['accuracy']}"}

    def _reward_gate(self, round_: Round) -> dict[str, Any]:
        conditions = gate.proven_reward((round_.result("reward") or {})["figures"])
        return _gate(conditions, all(c.met for c in conditions) or not self.settings.proven_reward)

    def _policy(self, round_: Round) -> dict[str, Any]:
        self._make(self._aligned, round_)
        manifest, frozen = _manifest(self.run, self._aligned), round_.result("freeze") or {}
        lineage = {
            "stage": self._aligned, "round": round_.number, "parents": manifest["parents"], "votes": frozen["hash"],
            "settings": manifest["settings"], "versions": manifest["versions"],
            "start": frozen.get("champion", "") if START in manifest["outside"] else "",
        }  # fmt: skip
        candidate = self.registry.add(self.run.stage_dir(self._aligned) / "model", lineage)
        return {"candidate": candidate, "figures": manifest["figures"], "said": f"candidate {candidate[:12]}"}

    def _policy_gate(self, round_: Round) -> dict[str, Any]:
        candidate, champion = self._candidate(round_), self._champion
        if candidate == champion:
            same = Condition("differs from the champion", 0.0, "> 0", False, "training changed nothing")
            return _gate([same], False)
        sft = self.run.stage_dir("sft") / "model"
        contestants = Contestants(self.registry.place(champion), self.registry.place(candidate), sft)
        exam = cast(EvalSettings, self.recipe.sections["eval"])
        proven = audit_proven((round_.result("reward") or {}).get("figures", {}))
        conditions = trial(self._stage(round_), contestants, self.settings, exam, self._red_lines, proven)
        return _gate(conditions, all(condition.met for condition in conditions)) | {"champion": champion}

    def _canary(self, round_: Round) -> dict[str, Any] | Waiting:
        """Let people compare the two, blind, until the votes decide or patience ends."""
        candidate, marker = self._candidate(round_), round_.dir / _PROPOSED
        if not marker.exists():
            if self._champion != (round_.result("policy_gate") or {}).get("champion", self._champion):
                return _gate([_OVERTAKEN], False)
            self.registry.propose(candidate, self.settings.share)
            proof = self.settings.model_dump(include=set(gate.PROOF))
            write_json(marker, {"candidate": candidate, "champion": self._champion, "proof": proof})
        standing = self.registry.standing()
        if standing is None or standing.candidate != candidate:
            return _gate([_TAKEN], False)
        proof = read_json(marker).get("proof", {})
        found = self._compare(standing.champion, candidate, self.settings.model_copy(update=proof))
        if not (found.met or found.hopeless):
            more = {"conditions": as_rows(found.conditions), **found.to_json()}
            return Waiting(found.waits_for() + self._held_to(proof), found.votes_needed, more)
        return _gate(found.conditions, found.met) | found.to_json() | {"proof": proof}

    def _held_to(self, proof: Mapping[str, Any]) -> str:
        """What was asked for since and begins with the next round."""
        today = self.settings.model_dump()
        later = ", ".join(f"{name}={today[name]}" for name in proof if today[name] != proof[name])
        return f"; {later} from the next round on" if later else ""

    def _compare(self, champion: str, candidate: str, settings: FlywheelSettings) -> Comparison:
        """What the votes say; they are read again when there are others than at the last look."""
        looked = (self.store.stamp(), champion, candidate)
        if self._compared is None or self._compared[0] != looked:
            votes = self.store.all(first=True)
            self._compared = looked, gate.compare(votes, champion, candidate, settings)
        return self._compared[1]

    def _verdict(self, round_: Round) -> dict[str, Any]:
        candidate, failed = (round_.result("policy") or {}).get("candidate"), round_.failed()
        standing = self.registry.standing()
        if failed is None and standing and candidate in (standing.candidate, standing.champion):
            self.registry.promote(candidate, f"round {round_.number}: every condition was met")
            return {"promoted": True, "candidate": candidate, "said": f"{candidate[:12]} is the champion"}
        if candidate is not None:
            self.registry.withdraw(candidate)
        result = round_.result(failed) if failed else None
        rows = result["conditions"] if result else [vars(_TAKEN)]
        why = f"{failed or 'operator'}: {', '.join(row['what'] for row in rows if not row['met'])}"
        return _refused(candidate, why)

    def _make(self, until: str, round_: Round) -> None:
        """The run's own stages, with what was frozen; what is up to date is passed over."""
        execute(self.recipe, self.run.dir, self._console, until, self._frozen(round_))

    def _frozen(self, round_: Round) -> dict[str, Path]:
        """What the stages of a round read, as it was at one moment: a rollback meanwhile makes no other stage of it."""
        votes = {VOTES: round_.dir / _VOTES}
        if self.settings.start == "sft":
            return votes
        champion = (round_.result("freeze") or {}).get("champion", self._champion)
        if not self._untouched(champion):
            self._console.say("the champion learnt from votes that were erased since: practice sets out from sft")
            return votes
        return votes | {START: self.registry.place(champion)}

    def _learnt_before(self) -> dict[str, str]:
        """The hash of the votes that the run itself learnt from. They are kept: it freezes others in their place."""
        votes = snapshot_path(self.run.dir)
        if not votes.is_file():
            return {}
        with atomic_write(self._first) as kept:
            kept.write(votes.read_text(encoding="utf-8"))
        return {"votes": hash_file(self._first)}

    @property
    def _first(self) -> Path:
        return self.rounds.dir / "rounds" / "first" / _VOTES

    def _untouched(self, version: str) -> bool:
        """Whether the votes that a version learnt from are still all there: whoever was forgotten is not to be learnt
        from by way of a champion. What a round freezes holds all that was frozen before, so no ancestor is asked."""
        lineage = self.registry.lineage(version)
        number, learnt = lineage.get("round", 0), lineage.get("votes")
        votes = self.rounds.place(number) / _VOTES if number else self._first
        return learnt is None or (votes.is_file() and hash_file(votes) == learnt)

    def _stage(self, round_: Round) -> Stage:
        """What ``trial`` works in: it is no stage of the pipeline, but reads and writes like one."""
        folder = round_.dir / "trial"
        folder.mkdir(parents=True, exist_ok=True)
        inputs = {name: self.run.stage_dir(name) for name in ("sft", "tokens", "reward") if self.run.finished(name)}
        seed = int(self._said("run", "seed"))
        metrics = Metrics(folder / "metrics.jsonl")
        return Stage(FLYWHEEL, folder, self.settings, inputs, {}, seed, metrics, self._console)

    def _candidate(self, round_: Round) -> str:
        return str((round_.result("policy") or {})["candidate"])

    def _said(self, section: str, key: str) -> Any:
        """A setting of the recipe."""
        return self.recipe.sections[section].model_dump().get(key)

    @property
    def _store_place(self) -> str:
        return str(self.settings.store or self._said("run", "votes") or votes_path(self.run.dir))

    @property
    def _champion(self) -> str:
        standing = self.registry.standing()
        assert standing is not None, "crowned by _check"
        return standing.champion


def _recipe_of(run: Path) -> Recipe:
    """The recipe that a run was made by."""
    path = run / "recipe.yaml"
    return replace(read_recipe(str(path)), name=read_json(run / RESOLVED)["recipe"])


def _manifest(run: Run, stage: str) -> dict[str, Any]:
    manifest = run.manifest(stage)
    assert manifest is not None, "the pipeline has just made it"
    return manifest


def _refused(candidate: str | None, why: str) -> dict[str, Any]:
    return {"promoted": False, "candidate": candidate, "why": why, "said": f"refused by {why}"}


def _gate(conditions: Sequence[Condition], passed: bool) -> dict[str, Any]:
    """A gate's result."""
    unmet = [condition.what for condition in conditions if not condition.met]
    said = ("passed" if passed else "not passed") + (f"; not met: {', '.join(unmet)}" if unmet else "")
    return {"passed": passed, "conditions": as_rows(conditions), "said": said}
