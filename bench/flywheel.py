"""Three rounds of the flywheel on ``tang``: does a crowd's taste, which no model ever sees, rise from round to round?

In:  time: a run with fewer simulated rankings, then rounds of votes over HTTP, training and a canary.
Out: ``results/flywheel-*.json`` and the table; the run stays in ``runs/bench-flywheel-SEED`` and is gone on with.
Left out: peers; no other project closes this loop.

    python bench/flywheel.py [--rounds 3] [--votes 600] [--seed 0] [--port 8421]

The crowd (``crowd``) judges by the poem metric with noise, a tenth of it against its taste. It ranks four answers: the
champion's while votes are collected, two of either while a candidate is tried. After the last round two bad candidates
have to be refused, much noise by the gate and a little, let past it, by the crowd, and a rollback has to bring back the
former champion, on disk and in what the server answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import torch

from crowd import Crowd
from danlu import hub
from danlu.align.champion import Registry
from danlu.align.rounds import STATES, Round
from danlu.align.tables import now
from danlu.console import Console
from danlu.evals import heldout_prompts, judge, judged, measure
from danlu.evals.exam import answer
from danlu.flywheel import Flywheel, FlywheelSettings
from danlu.hub.weights import WEIGHTS
from danlu.infer import Generator, Sampling
from danlu.pipeline import execute, read_recipe
from danlu.records import read_conversations
from table import row, save

POEMS = judge("poems")
TOKENS, EXAM = 40, 1200
ANSWERS = 4  # side by side
TIE = 0.3  # a person sees whether a poem rhymes, not whether it uses its title
TOGETHER, LOOK = 8, 50  # people at the same time, whose answers fit the queue; votes between two looks at a candidate
# A chat model of half the schooling and fewer rankings than the recipe's, so that there is something left to learn from
# people. GRPO, which has no critic that would begin anew in every round; near the distance from the SFT model that the
# gate allows, since rounds add up.
LITTLE = {
    "run": {"aligned": "grpo"},
    "sft": {"steps": 240},
    "rankings": {"prompts": 500, "endings": 3600},
    "reward": {"audit_share": 0.3, "near_misses": 330},
    "grpo": {"iterations": 16, "batch_size": 192, "probe_every": 8, "kl_budget": 9.5},
    "eval": {"prompts": 1000},  # what the gate asks both
}
# A crowd that votes as often as it is asked can afford to look for small gains.
WHEEL = {"start": "champion", "share": 1.0, "worthwhile": 0.525, "max_votes": 6000, "votes_per_rater": 200}
DRAWING = {"max_tokens": TOKENS, "temperature": 1.0, "top_p": 1.0}


@contextlib.contextmanager
def served(run: Path, port: int) -> Iterator[httpx.Client]:
    """``danlu serve`` in a process of its own."""
    command = [sys.executable, "-m", "danlu.cli", "serve", str(run), "--port", str(port)]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        if ready(http):
            raise SystemExit(f"bench/flywheel.py: another server answers at port {port}; choose another --port")
        with _started(command, http):
            yield http


@contextlib.contextmanager
def _started(command: list[str], http: httpx.Client) -> Iterator[None]:
    with subprocess.Popen(command) as server:
        try:
            while not ready(http):
                if server.poll() is not None:
                    raise SystemExit("bench/flywheel.py: the server did not start; what it said is above")
                time.sleep(0.5)
            yield
        finally:
            server.terminate()


def ready(http: httpx.Client) -> bool:
    """Whether the server answers."""
    with contextlib.suppress(httpx.TransportError):
        return http.get("/readyz").status_code == 200
    return False


@cache
def gold(run: Path, model: Path) -> dict[str, float]:
    """The hidden metric of a model's answers to held-out prompts, which nobody votes on, with its standard error."""
    weights, tokenizer = hub.load_pretrained(model)
    path = run / "sft" / "conversations" / "heldout.jsonl"
    prompts = heldout_prompts(path, POEMS, tokenizer, weights.config.max_seq_len - TOKENS, EXAM, 0)
    said = answer(Generator(weights, tokenizer), tokenizer, prompts, Sampling(max_new_tokens=TOKENS), 0)
    rows = judged(POEMS, prompts, said)
    totals = torch.tensor([one["scores"]["total"] for one in rows])
    found = {key: float(value) for key, value in measure(POEMS, rows).items() if isinstance(value, (int, float))}
    return {"gold": float(totals.mean()), "error": float(totals.std() / len(totals) ** 0.5), "prompts": len(totals)} | {
        key: round(found[key], 4) for key in ("form_rate", "rhyme_rate", "rhyme_by_chance", "distinct_2")
    }


def questions(wheel: Flywheel, seed: int) -> list[str]:
    """What the crowd asks: training prompts, each once, drawn from the whole book and not from its first chapters."""
    conversations, _ = read_conversations(wheel.run.dir / "sft" / "conversations" / "train.jsonl")
    asked = dict.fromkeys(c.messages[-2].content for c in conversations)
    found = [question for question in asked if POEMS.accepts(question)]
    random.Random(seed).shuffle(found)
    return found


def halt(wheel: Flywheel, rounds: int) -> None:
    """Let no round begin after the last: the canary's votes would be enough for another."""
    current = wheel.rounds.current()
    if len(ended(wheel)) >= rounds or (current.number > rounds - 1 and current.state != STATES[0]):
        wheel.settings = wheel.settings.model_copy(update={"votes": sys.maxsize})


def turn(wheel: Flywheel, crowd: Crowd, rounds: int) -> None:
    """Rounds: the crowd votes whenever the flywheel waits for votes."""
    while len(ended(wheel)) < rounds:
        halt(wheel, rounds)
        waiting = wheel.go()
        if wheel.rounds.current().state == "canary":
            crowd.vote(LOOK, "champion", ANSWERS, **DRAWING)
        elif len(ended(wheel)) < rounds:
            crowd.vote(min(waiting.votes or LOOK, 10 * LOOK), "champion", ANSWERS, **DRAWING)
        print(waiting.what, time.strftime("%H:%M:%S"), flush=True)


def ended(wheel: Flywheel) -> list[Round]:
    """Rounds with a verdict."""
    return [one for one in wheel.rounds.all() if one.result("verdict")]


def found(wheel: Flywheel, rounds: int) -> list[dict[str, Any]]:
    """The first champion's gold, and of every round its verdict, minutes by state and the gold of who reigned after."""
    standing = wheel.registry.standing()
    champion = standing.history[0].model if standing.history else standing.champion
    run, place = wheel.run.dir, wheel.registry.place
    rows = [{"round": 0, "promoted": True, **gold(run, place(champion))}]
    for one in ended(wheel)[:rounds]:
        verdict, canary, votes = one.result("verdict"), one.result("canary") or {}, one.result("collect")["votes"]
        champion = verdict["candidate"] if verdict["promoted"] else champion
        rows.append({
            "round": one.number, "promoted": verdict["promoted"], "why": verdict.get("why", ""), "votes": votes,
            "canary": [canary.get(name) for name in ("wins", "ties", "losses")], "minutes": minutes(one),
            "conditions": one.conditions(), **gold(run, place(champion)),
        })  # fmt: skip
    return rows


def minutes(one: Round) -> dict[str, float]:
    """How long every state of a round took, from when there were votes enough."""
    times = {state: datetime.fromisoformat(result["ended"]) for state in STATES if (result := one.result(state))}
    return {after: round((times[after] - times[before]).total_seconds() / 60, 1) for before, after in pairwise(times)}


def plant(wheel: Flywheel, model: Path, passed: int) -> Round:
    """A round whose candidate is a model from elsewhere, and which has gone through so many states."""
    bad, round_ = wheel.registry.add(model, {"stage": "planted"}), wheel.rounds.current()
    for state in STATES[:passed]:
        done = {"passed": True, "votes": wheel.store.count(), "until": now(), "conditions": [], "candidate": bad}
        round_.write(state, done)
    return round_


def refused(wheel: Flywheel, crowd: Crowd, round_: Round) -> str:
    """By which gate a planted candidate was refused; nothing if it was promoted or the champion is another one."""
    champion = wheel.registry.standing().champion
    wheel.go()
    while round_.result("verdict") is None:
        crowd.vote(LOOK, "champion", ANSWERS, **DRAWING)
        wheel.go()
    print(json.dumps([round_.result("verdict"), round_.conditions()], ensure_ascii=False), flush=True)
    same = wheel.registry.standing().champion == champion
    return (round_.failed() or "") if same and not round_.result("verdict")["promoted"] else ""


def noise(wheel: Flywheel, share: float) -> Path:
    """The champion with noise on its weights, as a share of their deviation."""
    model, tokenizer = hub.load_pretrained(wheel.registry.place(wheel.registry.standing().champion))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(share * parameter.std() * torch.randn_like(parameter))
    hub.save(model, wheel.run.dir / "noise", tokenizer, card={"title": "noise"})
    return wheel.run.dir / "noise"


def restores(wheel: Flywheel, crowd: Crowd) -> bool:
    """Whether a rollback brings back the former champion's bytes, and its answers from the server."""
    before = wheel.registry.standing().before()
    kept = (wheel.registry.place(before) / WEIGHTS).read_bytes() if before else b""
    standing = wheel.registry.roll_back("bench")
    time.sleep(10)  # the server looks once a second, and loads
    crowd.met.clear()
    crowd.vote(LOOK, "champion", **DRAWING)
    same = standing.champion == before and (wheel.registry.place(standing.champion) / WEIGHTS).read_bytes() == kept
    return same and crowd.met.keys() == {before}


def claims(
    rows: list[dict[str, Any]], by_gate: str, by_crowd: str, restored: bool, said: str
) -> list[dict[str, Any]]:  # fmt: skip
    """What was promised, and beside it what a round costs and what the crowd's votes decided."""
    promoted = [one for one in rows if one["promoted"]]
    rises = [after["gold"] - before["gold"] for before, after in pairwise(promoted)]
    note = f"gold by reign {_listed(promoted, 'gold')}, standard error {rows[0]['error']:.3f}"
    taken = sum(
        "still the candidate" in one.get("why", "") for one in rows
    )  # by hand, whatever the votes would have said
    note += f" on {rows[0]['prompts']} held-out prompts; of {len(rows) - 1} rounds {len(rows) - len(promoted) - taken} "
    note += f"refused, {taken} withdrawn by hand"
    bad = f"much noise on the weights by {by_gate or 'nobody'}, a little by {by_crowd or 'nobody'}"
    rounds = rows[1:]
    return [
        row("flywheel: gold gained in a promoted round", rises, "points", "> 0 in each", bool(rises) and min(rises) > 0,
            note=note + (said and f"; {said}")),
        row("flywheel: rounds promoted", [float(len(promoted) - 1)], f"of {len(rounds)}", "3", len(promoted) > 3),
        row("flywheel: bad candidates refused", [float(bool(by_gate)) + float(bool(by_crowd))], "of 2", "2",
            bool(by_gate and by_crowd), note=bad),
        row("flywheel: former champion restored, on disk and over HTTP", [float(restored)], "", "1", restored),
        row("flywheel: form rate by round", [one["form_rate"] for one in rows], "", "reported", True,
            note=_listed(rows, "form_rate")),
        row("flywheel: rhyme rate by round", [one["rhyme_rate"] for one in rows], "", "reported", True,
            note=f"{_listed(rows, 'rhyme_rate')}; by chance {_listed(rows, 'rhyme_by_chance')}"),
        row("flywheel: minutes of a round from enough votes to the verdict",
            [sum(one["minutes"].values()) for one in rounds], "min", "reported", True,
            note="; ".join(f"{one['round']}: {one['minutes']}" for one in rounds)),
        row("flywheel: votes until the crowd had decided", [float(sum(map(int, one["canary"])))
            for one in rounds if one["canary"][0] is not None], "votes", "reported", True),
    ]  # fmt: skip


def _listed(rows: list[dict[str, Any]], key: str) -> str:
    return ", ".join(f"{one[key]:.3f}" for one in rows)


def taste(question: str, text: str) -> float:
    """What the crowd likes."""
    return float(POEMS.score(question, text)["total"])


def main() -> None:
    """Make the run, turn the flywheel, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--votes", type=int, default=600, help="new votes that start a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8421)
    parser.add_argument("--note", default="", help="what a reader of the table should know about this run")
    words = parser.parse_args()
    run = Path("runs") / f"bench-flywheel-{words.seed}"
    if Registry(run).standing() is None:  # afterwards the stages belong to the flywheel
        execute(read_recipe("tang", [LITTLE, f"seed={words.seed}"]), run, Console(), until="rankings")
    wheel = Flywheel(run, FlywheelSettings(votes=words.votes, **WHEEL), Console())
    wheel.registry.crown(wheel.registry.add(run / "sft" / "model", {"stage": "sft"}), "nobody has voted yet")
    halt(wheel, words.rounds)
    wheel.go()
    with served(run, words.port) as http:
        crowd = Crowd(
            http, taste, questions(wheel, words.seed), raters=40, tie_width=TIE, seed=words.seed, together=TOGETHER
        )
        crowd.asked = wheel.store.count()  # a run that was interrupted goes on with what nobody has asked yet
        turn(wheel, crowd, words.rounds)
        rows = found(wheel, words.rounds)
        print(json.dumps(rows, ensure_ascii=False, indent=1), flush=True)
        by_gate = refused(wheel, crowd, plant(wheel, noise(wheel, 0.5), 5))
        by_crowd = refused(wheel, crowd, plant(wheel, noise(wheel, 0.25), 6))
        restored = restores(wheel, crowd)
    print(save("flywheel", claims(rows, by_gate, by_crowd, restored, words.note)))


if __name__ == "__main__":
    main()
