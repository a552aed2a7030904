"""The run directory: stages in their order, metrics that rewind, random streams by address."""

import os
from pathlib import Path

from danlu.align import ALIGNED
from danlu.files import write_json
from danlu.hub import hf_config
from danlu.model.count import parameters
from danlu.pipeline import STAGES, disk_needed, read_recipe, shape_of
from danlu.run import Metrics, Run
from danlu.streams import stream_seed


def finish(run: Run, name: str, *parents: str, output: str = "0") -> None:
    run.begin(name, {"parents": dict.fromkeys(parents, "0")})
    run.finish(name, output, {}, 1.0)


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


def test_the_disk_a_stage_needs_grows_with_the_model(tmp_path: Path):
    small, large = (read_recipe("tang", [f"pretrain.model.n_layers={n}"]) for n in (2, 8))
    needed = {
        recipe: {spec.name: disk_needed(spec, sized, Run(tmp_path)) for spec in STAGES}
        for recipe, sized in (("small", small), ("large", large))
    }
    grows = {name for name, size in needed["small"].items() if needed["large"][name] > size}
    assert grows == {"pretrain", "sft", "reward", *ALIGNED, "compress", "guard"}
    weights = 4 * parameters(shape_of(large)).total
    ppo = next(spec for spec in STAGES if spec.name == "ppo")
    # Three checkpoints at most, each of two models with their moments and of the best weights; and what is made.
    assert needed["large"]["ppo"] == ppo.disk + (3 * (2 * 3 + 1) + 1) * weights
    adopted = read_recipe("tang", ["base=elsewhere"])
    assert disk_needed(ppo, adopted, Run(tmp_path)) == ppo.disk, "nobody knows its size yet"
    (tmp_path / "pretrain" / "model").mkdir(parents=True)
    write_json(tmp_path / "pretrain" / "model" / "config.json", hf_config(shape_of(large)))
    assert disk_needed(ppo, adopted, Run(tmp_path)) == needed["large"]["ppo"]


def test_streams_differ_by_every_part_of_their_address():
    seeds = {stream_seed(0, "ppo", 1), stream_seed(0, "ppo", 2), stream_seed(1, "ppo", 1), stream_seed(0, "pp", "o", 1)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed(0, "ppo", 1) == 3959432056231859761


def test_what_was_made_from_an_older_parent_is_not_finished(tmp_path: Path):
    run = Run(tmp_path)
    finish(run, "pretrain")
    finish(run, "sft", "pretrain")
    finish(run, "compress", "sft")
    assert run.finished("compress")
    finish(run, "pretrain", output="1")
    assert run.finished("pretrain")
    assert not run.finished("sft")
    assert not run.finished("compress"), "its grandparent is new"
    assert list(run.stages()) == ["pretrain"]


def test_the_time_of_a_killed_session_is_counted(tmp_path: Path):
    run = Run(tmp_path)
    run.begin("sft", {"parents": {}})
    noted = (tmp_path / "sft" / "manifest.json").stat().st_mtime
    (tmp_path / "sft" / "ckpt").touch()
    os.utime(tmp_path / "sft" / "ckpt", (noted + 90, noted + 90))
    run.recover_seconds("sft")
    assert abs(run.manifest("sft")["seconds"] - 90) < 0.1
    os.utime(tmp_path / "sft" / "ckpt", (noted, noted))
    run.recover_seconds("sft")
    assert abs(run.manifest("sft")["seconds"] - 90) < 0.1


def test_metrics_hold_no_number_that_json_does_not_know(tmp_path: Path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.log(1, loss=float("nan"), norm=float("inf"), lr=0.5)
    assert metrics.read() == [{"step": 1, "loss": None, "norm": None, "lr": 0.5}]
