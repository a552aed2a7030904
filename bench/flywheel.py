"""Three rounds of the flywheel on ``tang``: does a crowd's taste, which no model ever sees, rise from round to round?

In:  time: a run with few simulated rankings, then rounds of votes over HTTP, training and a canary.
Out: ``results/flywheel-*.json`` and the table; the run stays in ``runs/bench-flywheel-SEED``.
Left out: peers; no other project closes this loop.

    python bench/flywheel.py [--rounds 3] [--votes 600] [--seed 0] [--port 8421]

The crowd (``crowd``) judges by the poem metric with noise, a tenth of it against its taste. After the last round a
candidate with noise on its weights has to be refused, and a rollback has to bring back the former champion's bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import torch

from crowd import Crowd
from danlu import hub
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
TOKENS, EXAM = 40, 600
# Few simulated rankings, so that there is something left to learn from people; an audit that sees other prompts.
LITTLE = {"rankings": {"prompts": 300, "endings": 600}, "reward": {"audit_share": 0.2, "near_misses": 50}}


@contextlib.contextmanager
def served(run: Path, port: int) -> Iterator[httpx.Client]:
    """``danlu serve`` in a process of its own."""
    command = [sys.executable, "-m", "danlu.cli", "serve", str(run), "--port", str(port)]
    with subprocess.Popen(command) as server, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/readyz").status_code == 200:
                        break
                if server.poll() is not None:
                    raise SystemExit("bench/flywheel.py: the server did not start; what it said is above")
                time.sleep(0.5)
            yield http
        finally:
            server.terminate()


def gold(wheel: Flywheel, model: Path) -> float:
    """The hidden metric of a model's answers to held-out prompts, which nobody votes on."""
    weights, tokenizer = hub.load_pretrained(model)
    path = wheel.run.dir / "sft" / "conversations" / "heldout.jsonl"
    prompts = heldout_prompts(path, POEMS, tokenizer, weights.config.max_seq_len - TOKENS, EXAM, 0)
    said = answer(Generator(weights, tokenizer), tokenizer, prompts, Sampling(max_new_tokens=TOKENS), 0)
    return float(measure(POEMS, judged(POEMS, prompts, said))["score"])


def questions(wheel: Flywheel) -> list[str]:
    """What the crowd asks: training prompts, each once."""
    conversations, _ = read_conversations(wheel.run.dir / "sft" / "conversations" / "train.jsonl")
    asked = dict.fromkeys(c.messages[-2].content for c in conversations)
    return [question for question in asked if POEMS.accepts(question)]


def turn(wheel: Flywheel, crowd: Crowd, rounds: int) -> list[dict[str, Any]]:
    """Rounds: the crowd votes whenever the flywheel waits for votes; the champion's gold before, and after each."""
    waiting = wheel.go()
    found = [{"round": 0, "gold": gold(wheel, wheel.registry.place(wheel.registry.standing().champion))}]
    while len(found) <= rounds:
        crowd.vote(min(waiting.votes or 100, 100), "champion", max_tokens=TOKENS, temperature=1.0, top_p=1.0)
        waiting = wheel.go()
        ended = [one for one in wheel.rounds.all() if one.result("verdict")]
        for one in ended[len(found) - 1 :]:
            verdict = one.result("verdict")
            champion = wheel.registry.standing().champion
            found.append({"round": one.number, "gold": gold(wheel, wheel.registry.place(champion)), **verdict})
            print(found[-1], flush=True)
    return found


def refuses_noise(wheel: Flywheel, crowd: Crowd) -> bool:
    """Whether a candidate with noise on its weights is refused, by the gate or by the crowd."""
    champion = wheel.registry.standing().champion
    model, tokenizer = hub.load_pretrained(wheel.registry.place(champion))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    hub.save(model, wheel.run.dir / "noise", tokenizer, card={"title": "noise"})
    bad, round_ = wheel.registry.add(wheel.run.dir / "noise", {"stage": "noise"}), wheel.rounds.current()
    for state in ("collect", "freeze", "reward", "reward_gate", "policy"):
        round_.write(state, {"passed": True, "votes": wheel.store.count(), "conditions": [], "candidate": bad})
    wheel.go()
    while round_.result("verdict") is None:
        crowd.vote(50, "champion", max_tokens=TOKENS, temperature=1.0)
        wheel.go()
    return not round_.result("verdict")["promoted"] and wheel.registry.standing().champion == champion


def restores(wheel: Flywheel) -> bool:
    """Whether a rollback brings back the former champion's bytes."""
    before = wheel.registry.standing().before()
    kept = (wheel.registry.place(before) / WEIGHTS).read_bytes() if before else b""
    standing = wheel.registry.roll_back("bench")
    return standing.champion == before and (wheel.registry.place(standing.champion) / WEIGHTS).read_bytes() == kept


def main() -> None:
    """Make the run, turn the flywheel, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--votes", type=int, default=600, help="new votes that start a round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=8421)
    words = parser.parse_args()
    run = Path("runs") / f"bench-flywheel-{words.seed}"
    execute(read_recipe("tang", [LITTLE, f"seed={words.seed}"]), run, Console(), until="ppo")
    wheel = Flywheel(run, FlywheelSettings(votes=words.votes, bpb_budget=0.15), Console())
    wheel.go()
    with served(run, words.port) as http:
        crowd = Crowd(http, lambda q, a: POEMS.score(q, a)["total"], questions(wheel), raters=40, seed=words.seed)
        found = turn(wheel, crowd, words.rounds)
        refused = refuses_noise(wheel, crowd)
    restored = restores(wheel) if any(one.get("promoted") for one in found) else False
    rises = [later["gold"] - earlier["gold"] for earlier, later in pairwise(found)]
    note = "gold by round: " + ", ".join(f"{one['gold']:.3f}" for one in found)
    print(save("flywheel", [
        row("flywheel: gold gained, least of the rounds", [min(rises)], "points", "> 0", min(rises) > 0, note=note),
        row("flywheel: noise refused", [float(refused)], "", "1", refused),
        row("flywheel: former champion restored", [float(restored)], "", "1", restored),
    ]))  # fmt: skip


if __name__ == "__main__":
    main()
