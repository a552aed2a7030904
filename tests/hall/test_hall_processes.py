"""What is for one process says so to several."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from danlu import cli
from danlu.errors import UserError
from danlu.train import parallel


@pytest.mark.parametrize("words", [["lab", "methods"], ["lab", "goodhart"], ["flywheel"]])
def test_what_is_for_one_process_refuses_several(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["danlu", *words, str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert f"danlu {words[0]} is for one process and 2 were started" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_world_of_which_nobody_says_who_is_who_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="unset WORLD_SIZE"):
        parallel.join()
