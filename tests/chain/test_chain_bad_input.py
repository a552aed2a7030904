"""Bad input ends in one clear sentence and exit code 2; nothing is lost or half-written."""

import sys

import pytest
from person import danlu

from danlu import cli

pytestmark = pytest.mark.slow


def sentence(done) -> str:
    return sentence_in(done.stderr)


def sentence_in(said: str) -> str:
    assert "Traceback" not in said
    last = [line for line in said.splitlines() if line.strip()][-1]
    assert last.startswith("danlu: ")
    return last


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "tinny"], "did you mean 'tiny'"),
        (["run", "tiny", "pretrain.stps=4"], "did you mean 'steps'"),
        (["run", "tiny", "pretrian.steps=4"], "did you mean 'pretrain'"),
        (["run", "tiny", "pretrain.steps=many"], "pretrain.steps"),
        (["run", "tiny", "pretrain.steps"], "section.key=value"),
        (["run", "tiny", "pretrain.model.n_layer=2"], "did you mean 'n_layers'"),
        (["run", "tiny", "pretrain.model.preset=lama-tiny"], "did you mean 'llama-tiny'"),
        (["run", "tiny", "corpus.source=/nowhere/at/all"], "/nowhere/at/all"),
        (["run", "tiny", "--until", "sftt"], "did you mean 'sft'"),
        (["run", "tiny", "sft.source=missing.jsonl"], "missing.jsonl"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["chat", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["feedback", "export", "nowhere"], "no votes"),
        (["run", "tiny", "base=nowhere"], "nowhere"),
        (["run", "tiny", "run.votes=nowhere.db"], "nowhere.db"),
    ],
)
def test_one_clear_sentence(words, expected, tmp_path, monkeypatch, capsys):
    """In this process: sixteen starts of Python would take a minute and a half."""
    out = ["--out", str(tmp_path / "run")] if words[0] == "run" else []
    monkeypatch.setattr(sys, "argv", ["danlu", *words, *out])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert expected in sentence_in(capsys.readouterr().err)
    assert not (tmp_path / "run" / "corpus").exists()


def test_a_path_of_the_wrong_kind(tiny_run, tmp_path):
    (tmp_path / "file").touch()
    assert "is a file; choose another --out" in sentence(danlu("run", "tiny", "--out", tmp_path / "file", code=2))
    assert "is a folder" in sentence(danlu("eval", tiny_run, "--text", tmp_path, code=2))


def test_a_run_inside_its_own_source(tmp_path):
    (tmp_path / "a.txt").write_text("The ferry crossed the river at dawn.\n" * 30)
    said = sentence(danlu("run", "tiny", f"corpus.source={tmp_path}", "--out", tmp_path / "runs" / "mine", code=2))
    assert "choose another --out" in said
    assert not (tmp_path / "runs").exists()


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    said = sentence(danlu("run", "tiny", f"corpus.source={tmp_path / 'empty'}", "--out", tmp_path / "run", code=2))
    assert "empty" in said


def test_a_folder_of_binary_files(tmp_path):
    folder = tmp_path / "binary"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_bytes(bytes(range(256)) * 10)
    said = sentence(danlu("run", "tiny", f"corpus.source={folder}", "--out", tmp_path / "run", code=2))
    assert "3" in said


def test_a_missing_package(tmp_path):
    source = "corpus.source=npm:no-such-package-of-danlu@1.0.0"
    said = sentence(danlu("run", "tiny", source, "--out", tmp_path / "run", code=2, DANLU_CACHE=str(tmp_path / "c")))
    assert "no-such-package-of-danlu" in said


def test_no_network(tmp_path):
    """A registry that refuses connections, as an unplugged machine would see it."""
    environment = {"npm_config_registry": "http://127.0.0.1:9/", "npm_config_fetch_retries": "0"}
    source = "corpus.source=npm:left-pad@1.3.0"
    said = sentence(
        danlu("run", "tiny", source, "--out", tmp_path / "run", code=2, DANLU_CACHE=str(tmp_path / "c"), **environment)
    )
    assert "left-pad" in said
