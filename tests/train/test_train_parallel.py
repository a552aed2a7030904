import pytest
from torch.distributed import TCPStore

from danlu import hub
from danlu.train import pretrain


def test_two_processes_take_the_steps_of_one(tmp_path, inputs, make_stage, start_process, pretrain_settings):
    """A mixture of experts: loss, gradient and the experts' counts must all be summed over the processes."""
    settings = pretrain_settings(
        model={"preset": "deepseek-tiny", "d_model": 32}, steps=6, dtype="float32", micro_batch=2, lr=1e-3, warmup=0
    )
    # Held here, as torchrun holds it: nobody can take its port between the choice and the first process.
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    together = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port), "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    pair = [start_process(tmp_path / "two", settings, inputs, RANK=str(rank), **together) for rank in range(2)]
    alone = make_stage(tmp_path / "one", settings, inputs)
    figures = pretrain(alone)
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    one, two = ([r for r in make_stage(tmp_path / d, settings).metrics.read() if "loss" in r] for d in ("one", "two"))
    assert len(one) == len(two) == settings.steps == figures["steps"]
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], abs=1e-5)
        assert theirs["tokens"] == ours["tokens"]
    models = [hub.load(tmp_path / directory / "model") for directory in ("one", "two")]
    for name, ours in models[0].state_dict().items():
        assert (ours - models[1].state_dict()[name]).abs().max() < 1e-4, name
