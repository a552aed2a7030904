"""Learning from preferences and from own answers beside TRL: seconds an iteration of PPO, GRPO and DPO.

In:  nothing; models have random weights, the same on both sides, and so are prompts and pairs.
Out: ``results/rl-SIDE-*.json`` and the table; with ``--record FILE``, TRL's DPO losses with all that is needed to
    repeat them.
Left out: quality. What each side runs is in ``rl_ours``, ``rl_ppo``, ``rl_grpo`` and ``rl_dpo``.

    python bench/rl.py ppo|grpo|dpo [--rounds 2] [--rows 32] [--epochs N ..] [--steps 2] [--dtype auto] [--bf16]
        [--shape 14M]

PPO wants trl 1.12.0, the last that has it; the others the newest. Ours and theirs run in turn in one process, the first
round thrown away. An iteration of PPO or GRPO is all of it: sampling answers of 64 tokens to prompts of 64, what is
known of them before the update (old, reference, values, rewards), and every epoch. A step of DPO is everything that a
pair costs in one epoch: the reference, which we read before the first step and TRL in every step, forward, backward,
clip and AdamW. TRL comes with bf16 and with gradient checkpointing, which cost time where neither is needed: see
``ways`` (its PPO ignores both). Our process keeps big blocks of memory from going back to the system (``device``), and
TRL, being in it, gains from that too.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from torch.utils.flop_counter import FlopCounterMode

from danlu import device, hub
from danlu.train.compiled import compile_blocks
from rl_ours import Ours, grpo, ppo
from rl_setup import NEW, SHAPES, decoder, draw, store, tokenizer_of
from table import row, save

PROMPT, GROUP = 64, 4
Run = Callable[[], dict[str, float]]  # seconds of the whole, and of parts if they are known
PLAIN = "without gradient checkpointing"


def in_turn(rounds: int, make: Callable[[], Mapping[str, Run]]) -> dict[str, list[dict[str, float]]]:
    """What every run tells, by name; they are made anew for every round, on a GPU once: it has room for all of them.

    The first round is thrown away but for what it counts on a CPU: operations of matrix products. They tell how much of
    a ratio can come from doing less, and how much from doing it faster.
    """
    seen: dict[str, list[dict[str, float]]] = {}
    counted: dict[str, float] = {}
    on_gpu = torch.cuda.is_available()
    runs: dict[str, Run] = {}
    for turn in range(rounds + 1):
        runs = runs or dict(make())
        for name in list(runs):
            count = not turn and not on_gpu
            with FlopCounterMode(display=False) if count else contextlib.nullcontext() as counter:
                told = (runs[name] if on_gpu else runs.pop(name))()
            gc.collect()
            print(turn, name, {key: round(value, 3) for key, value in told.items()}, flush=True)
            if counter is not None:
                counted[name] = counter.get_total_flops() / told.pop("iterations", 1.0)
            if turn:
                seen.setdefault(name, []).append(told | ({"flops": counted[name]} if counted else {}))
    return seen


def rows_of(
    what: str, unit: str, times: float, tokens: int, seen: Mapping[str, list[dict[str, float]]], place: device.Device
) -> list[dict[str, Any]]:
    """A row of the table for every way in which TRL was run.

    Args:
        what: was measured.
        unit: of its seconds.
        times: as fast as TRL is the target.
        tokens: of an iteration, prompts and answers.
        seen: from ``in_turn``; "ours", and TRL's ways by name.
        place: where.
    """
    middle = {
        name: {key: statistics.median(one[key] for one in told) for key in told[0]} for name, told in seen.items()
    }
    mine, found = middle.pop("ours"), []
    speed, computed = device.matmul_flops(torch.float32, place.kind), str(place.compute_dtype).removeprefix("torch.")
    for name, other in middle.items():
        found.append(row(
            f"{what}, {computed}", [one["seconds"] for one in seen["ours"]], unit, f"{times:g} x TRL's speed",
            other["seconds"] >= times * mine["seconds"], other["seconds"], f"TRL {trl.__version__}, {name}",
            "; ".join(notes(tokens, mine, other, speed)),
        ))  # fmt: skip
    return found


def notes(tokens: int, mine: dict[str, float], other: dict[str, float], speed: float) -> list[str]:
    """Tokens a second, where the seconds went, and how many operations there were to do at how many a second."""
    found = [f"{tokens / mine['seconds']:,.0f} against {tokens / other['seconds']:,.0f} tokens/s"]
    parts = [f"{key} {mine[key]:.3g}" for key in ("sampling", "scoring", "update") if key in mine]
    found += [f"our seconds: {', '.join(parts)}"] if parts else []
    found += [f"TRL's sampling {other['sampling']:.3g}"] if "sampling" in other else []
    if "flops" in mine:
        found.append(
            f"matrix products of {mine['flops'] / 1e12:.3g} against {other['flops'] / 1e12:.3g} TFLOP; this machine "
            f"does {speed / 1e9:,.0f} GFLOP/s in float32"
        )
    return [*found, f"transformers {transformers.__version__}"]


def our_iteration(ours: Ours) -> dict[str, float]:
    """One iteration, and where its seconds went."""
    before = dict(ours.seconds)
    return {"seconds": ours.run()} | {key: value - before[key] for key, value in ours.seconds.items()}


def speeds_ppo(
    size: str, rounds: int, n: int, epochs: int, place: device.Device, scratch: Path
) -> list[dict[str, Any]]:  # fmt: skip
    """Seconds an iteration of PPO, with a reward model and a critic of the policy's size."""
    if find_spec("trl.experimental.ppo") is None:
        raise SystemExit(f"TRL {trl.__version__} has no PPO; install trl 1.12.0, the last that has it")
    from rl_ppo import theirs

    config, half = SHAPES[size], place.compute_dtype == torch.bfloat16
    tokenizer = tokenizer_of(config["vocab_size"])
    policy = store(decoder(config, 0.02), scratch / "policy", tokenizer)
    reward = store(decoder(config, 0.02, "scalar"), scratch / "reward", tokenizer)
    ways = {"as it comes": (half, False)} | ({"weights in bfloat16": (half, True)} if half else {})
    prompts = draw(n, tokenizer, PROMPT)

    def make() -> dict[str, Run]:
        return {
            "ours": partial(our_iteration, ppo(policy, reward, tokenizer, prompts, epochs, place)),
        } | {name: theirs(policy, reward, scratch, prompts, epochs, *options) for name, options in ways.items()}

    seen = in_turn(rounds, make)
    return rows_of(
        f"PPO, {n} answers of {PROMPT} + {NEW}, epochs: {epochs}, {size}", "s/iteration", 5.0, n * (PROMPT + NEW),
        seen, place,
    )  # fmt: skip


def speeds_grpo(
    size: str, rounds: int, n: int, epochs: int, bf16: bool, place: device.Device, scratch: Path
) -> list[dict[str, Any]]:  # fmt: skip
    """Seconds an iteration of GRPO, with a reward that costs nothing."""
    from rl_grpo import theirs

    config = SHAPES[size]
    tokenizer = tokenizer_of(config["vocab_size"])
    policy = store(decoder(config, 0.02), scratch / "policy", tokenizer)
    prompts = draw(n // GROUP, tokenizer, PROMPT)

    def make() -> dict[str, Run]:
        return {"ours": partial(our_iteration, grpo(policy, tokenizer, prompts, GROUP, epochs, place))} | {
            name: theirs(policy, scratch, prompts, GROUP, epochs, *options)
            for name, options in ways(place, bf16).items()
        }

    what = f"GRPO, {n // GROUP} groups of {GROUP} answers of {PROMPT} + {NEW}, epochs: {epochs}, {size}"
    return rows_of(what, "s/iteration", 2.5, n * (PROMPT + NEW), in_turn(rounds, make), place)


def speeds_dpo(
    size: str, rounds: int, n: int, steps: int, bf16: bool, place: device.Device, scratch: Path
) -> list[dict[str, Any]]:  # fmt: skip
    """Seconds a step of DPO."""
    from rl_dpo import draw, loop_settings, ours, theirs

    config = SHAPES[size]
    pairs = draw(n * steps, config["vocab_size"], PROMPT, NEW, varied=False)
    settings, micro = loop_settings(steps, n, 1e-5), 8 if place.kind == "cpu" else 0
    folder = store(decoder(config, 0.02), scratch / "policy", tokenizer_of(config["vocab_size"]))

    def seconds(run: Callable[[], tuple[list[float], float]]) -> dict[str, float]:
        return {"seconds": run()[1] / steps, "iterations": float(steps)}

    def make() -> dict[str, Run]:
        policy = hub.load(folder, device=place.kind).compute_in(place.compute_dtype)
        compile_blocks(policy, settings.model_copy(update={"steps": 10**6}), place.kind)  # as a whole run would be
        mine = partial(ours, policy, pairs, settings, "dpo", micro)
        runs = {"ours": mine} | {
            name: theirs(folder, scratch, pairs, settings, "dpo", *options)
            for name, options in ways(place, bf16).items()
        }
        return {name: partial(seconds, run) for name, run in runs.items()}

    what = f"DPO, {n} pairs of {PROMPT} + {NEW}, {size}"
    return rows_of(what, "s/step", 2.5, 2 * n * (PROMPT + NEW), in_turn(rounds, make), place)


def ways(place: device.Device, bf16: bool) -> dict[str, tuple[bool, bool]]:
    """How TRL is run: whether with bf16, and whether with gradient checkpointing.

    It comes with both. A CPU without bf16 is several times slower in it, and that is measured only if asked for.
    """
    half = place.compute_dtype == torch.bfloat16
    found = {"as it comes": (True, True)} if half or bf16 else {}
    if not half:
        found["float32"] = (False, True)
    return found | {PLAIN if half else f"float32, {PLAIN}": (half, False)}


def curves(scratch: Path, record: Path | None) -> list[dict[str, Any]]:
    """Whether DPO's loss goes the way it goes in TRL; TRL's is written into a file if one is named."""
    from rl_dpo import apart
    from rl_dpo import curves as recorded_curves

    recorded = recorded_curves(scratch)
    if record:
        record.write_text(json.dumps(recorded) + "\n", encoding="utf-8")
    return [
        row(f"{loss}: our loss beside TRL's, 20 steps", [difference], "largest difference", "<= 1e-3",
            difference <= 1e-3, note=f"TRL {trl.__version__}")
        for loss, difference in apart(recorded).items()
    ]  # fmt: skip


def speeds(asked: argparse.Namespace, size: str, place: device.Device, scratch: Path) -> list[dict[str, Any]]:
    """Rows of one shape."""
    rounds, n, epochs = asked.rounds, asked.rows, asked.epochs or ((4,) if asked.side == "ppo" else (1,))
    match asked.side:
        case "dpo":
            return speeds_dpo(size, rounds, n, asked.steps, asked.bf16, place, scratch)
        case "grpo":
            each = [speeds_grpo(size, rounds, n, times, asked.bf16, place, scratch) for times in epochs]
        case _:
            each = [speeds_ppo(size, rounds, n, times, place, scratch) for times in epochs]
    return [row for rows in each for row in rows]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=("ppo", "grpo", "dpo"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32, help="answers of an iteration, pairs of a step")
    parser.add_argument("--epochs", type=int, nargs="+", help="of an update: 4 for ppo, 1 for grpo")
    parser.add_argument("--steps", type=int, default=2, help="of dpo")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["14M"], help="of the models")
    parser.add_argument("--dtype", default="auto", help="of our matrix products")
    parser.add_argument("--bf16", action="store_true", help="TRL with bf16 too where the CPU has none: slow")
    parser.add_argument("--record", type=Path, help="write TRL's DPO losses into this file")
    asked = parser.parse_args()
    place = device.choose(dtype=asked.dtype)
    with tempfile.TemporaryDirectory() as folder:
        scratch, rows = Path(folder), []
        if asked.side == "dpo":
            rows = curves(scratch, asked.record)
        for size in asked.shape:
            rows += speeds(asked, size, place, scratch)
            print(save(f"rl-{asked.side}", rows))  # what is known is kept, however the next shape ends


if __name__ == "__main__":
    main()
