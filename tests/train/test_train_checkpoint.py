import pytest
import torch

from danlu.console import Console
from danlu.train.checkpoint import checkpoints, load_latest, save_checkpoint


class Said(Console):
    """A console whose lines can be read."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, message, style=""):
        self.lines.append(message)


def save(folder, step):
    save_checkpoint(folder, step, {"w": torch.full((3, 2), float(step)), "n": torch.tensor(step)}, {"step": step})


def test_round_trip_keeps_the_newest_two(tmp_path):
    assert load_latest(tmp_path) is None
    for step in (9, 10, 100):
        save(tmp_path, step)
    step, tensors, state = load_latest(tmp_path)
    assert step == 100
    assert state == {"step": 100}
    assert torch.equal(tensors["w"], torch.full((3, 2), 100.0))
    assert tensors["n"].item() == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000010", "000100"]


@pytest.mark.parametrize("how", ["truncated", "flipped", "no state", "half a state", "no tensors"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, how):
    save(tmp_path, 1)
    save(tmp_path, 2)
    tensors, state = tmp_path / "000002" / "tensors.safetensors", tmp_path / "000002" / "state.json"
    data = tensors.read_bytes()
    if how == "truncated":
        tensors.write_bytes(data[:-5])
    elif how == "flipped":
        tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "no tensors":
        tensors.unlink()
    elif how == "no state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:10])
    said = Said()
    found = load_latest(tmp_path, said)
    assert found.step == 1
    assert found.tensors["w"][0, 0] == 1.0
    assert len(said.lines) == 1
    assert "000002" in said.lines[0]


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / ".000002.99999.tmp"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    assert load_latest(tmp_path).step == 1
    save(tmp_path, 2)
    assert not leftover.exists()
    assert load_latest(tmp_path).step == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    save_checkpoint(tmp_path, 1, {"w": torch.zeros(1)}, {"again": True})
    assert load_latest(tmp_path).state == {"again": True}


def test_as_many_are_kept_as_are_wanted(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"w": torch.zeros(1)}, {}, keep=4)
    assert [place.name for place in checkpoints(tmp_path)] == ["000002", "000003", "000004", "000005"]
