"""Files are whole or not there, whatever happens in the middle."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from danlu import cli, files
from danlu.errors import UserError


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_directory_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "model"
    with files.atomic_directory(place) as beside:
        (beside / "weights").write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"), files.atomic_directory(place) as beside:
        (beside / "weights").write_text("new")
    assert (place / "weights").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_run_on_a_full_disk_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["danlu", "run", "tiny", "--until", "corpus", "--out", str(tmp_path / "run")])
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("danlu: No space left on device")
    assert not list(tmp_path.rglob("*.tmp")), "something half-written was left"


def test_a_stage_that_would_not_fit_does_not_start(tmp_path: Path):
    with pytest.raises(UserError, match="free and this needs"):
        files.free_space(tmp_path / "not" / "made", 1 << 60)


def test_a_disk_that_ends_in_the_middle_of_weights_is_an_ordinary_error(tmp_path: Path):
    """safetensors raises an error of its own; the limit on the size of a file is a full disk that a test can have."""
    tensors = {"a": torch.zeros(100_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as told, files.atomic_directory(tmp_path / "m") as beside:
            save_file(tensors, beside / "weights")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(tmp_path / "m"))
    assert not list(tmp_path.iterdir()), "something half-written was left"


def test_other_complaints_of_safetensors_stay_what_they_are(tmp_path: Path):
    with pytest.raises(SafetensorError, match="no such dtype"), files.atomic_directory(tmp_path / "m"):
        raise SafetensorError("no such dtype")


def test_hashes_see_bytes_and_names_only(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "f").write_text("same")
    assert files.hash_paths(tmp_path / "a", ("x",)) == files.hash_paths(tmp_path / "b", ("x",))
    (tmp_path / "b" / "x" / "f").write_text("other")
    assert files.hash_paths(tmp_path / "a", ("x",)) != files.hash_paths(tmp_path / "b", ("x",))


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with files.atomic_write(pipe) as handle:
        handle.write("words")
    assert os.read(reader, 99) == b"words"
    assert pipe.is_fifo()
    os.close(reader)
