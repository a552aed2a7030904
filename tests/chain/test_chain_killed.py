"""Learning from what people prefer, ended by kill -9 at a moment that nobody chose, ends with the same bytes."""

import signal
import time

import pytest
import stages
import warm

from danlu import align

pytestmark = pytest.mark.slow
LONGEST, STEPS = 120, 8  # seconds; iterations, or optimizer steps
PRACTICE = {
    "judge": "prose", "iterations": STEPS, "batch_size": 8, "mini_batch": 4, "micro_batch": 4, "epochs": 2, "lr": 1e-3,
    "max_new_tokens": 6, "probe_every": 3, "probe_prompts": 2, "dtype": "float32",
}  # fmt: skip
WAYS = {
    "ppo": (align.ppo, align.PPOSettings(**PRACTICE, critic_lr=1e-3)),
    "grpo": (align.grpo, align.GRPOSettings(**PRACTICE, group_size=4)),
    "dpo": (
        align.dpo,
        align.DPOSettings(
            batch_size=8, micro_batch=4, lr=1e-3, warmup=2, steps=STEPS, eval_every=4, save_every=3, log_every=1,
            probe_prompts=4, max_new_tokens=4, dtype="float32",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_kill_9_at_a_random_iteration_and_go_on_gives_the_same_bytes(name, tmp_path, sft_dir, reward_dir, rankings):
    function, settings = WAYS[name]
    inputs = {"sft": sft_dir, "reward": reward_dir, "rankings": rankings}
    after = 1 + time.time_ns() // 1000 % (STEPS - 2)

    def run(folder, **fate):
        process = warm.start(stages.run_stage, function, tmp_path / folder, settings, inputs, name, **fate)
        process.join(LONGEST)
        return process.exitcode

    assert run("whole") == 0
    killed = run("killed", dies_once=str(tmp_path / "killed" / "metrics.jsonl"), lines=after)
    assert killed == -signal.SIGKILL, f"killed after line {after}"
    assert not (tmp_path / "killed" / "model").exists(), f"finished though killed after line {after}"
    assert run("killed") == 0, f"killed after line {after}"
    for file in ("model/model.safetensors", f"ckpt/{STEPS:06d}/tensors.safetensors"):
        whole, again = ((tmp_path / folder / file).read_bytes() for folder in ("whole", "killed"))
        assert whole == again, f"{file} differs, killed after line {after}"
