"""The run directory: stages in their order, metrics that rewind, random streams by address."""

from pathlib import Path

from danlu.run import Metrics, Run
from danlu.streams import stream_seed


def finish(run: Run, name: str, *parents: str) -> None:
    run.begin(name, {"parents": dict.fromkeys(parents, "0")})
    run.finish(name, "0", {}, 1.0)


def test_stages_come_in_the_order_of_their_needs(tmp_path: Path):
    run = Run(tmp_path)
    finish(run, "a-last", "m-middle", "z-first")
    finish(run, "m-middle", "z-first")
    finish(run, "z-first")
    run.begin("b-running", {"parents": {}})
    assert list(run.stages()) == ["z-first", "m-middle", "a-last"]


def test_a_stage_whose_parent_was_deleted_is_still_listed(tmp_path: Path):
    finish(Run(tmp_path), "child", "gone")
    assert list(Run(tmp_path).stages()) == ["child"]


def test_metrics_rewind_to_a_step_and_drop_half_a_line(tmp_path: Path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        metrics.log(step, loss=1.0 / step)
    with open(metrics.path, "a", encoding="utf-8") as handle:
        handle.write('{"step": 4, "lo')
    metrics.rewind(2)
    assert [row["step"] for row in metrics.read()] == [1, 2]


def test_streams_differ_by_every_part_of_their_address():
    seeds = {stream_seed(0, "ppo", 1), stream_seed(0, "ppo", 2), stream_seed(1, "ppo", 1), stream_seed(0, "pp", "o", 1)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed(0, "ppo", 1) == 3959432056231859761
