"""The recipe ``tiny`` from raw documents to a compressed, aligned model, as a person runs it."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from person import MODELS, STAGES, danlu, weights

import danlu as package
from danlu.run import Run

pytestmark = pytest.mark.slow
QUICK = ("sft.epochs=1", "ppo.iterations=2")  # where the way is what matters, not where it leads


def test_every_stage_is_done_and_documented_figures_are_there(tiny_run):
    assert [name for name in STAGES if Run(tiny_run).finished(name)] == STAGES
    assert list(json.loads((tiny_run / "resolved.json").read_text())["stages"]) == STAGES
    assert {Run(tiny_run).manifest(name)["why"] for name in STAGES} == {"not made yet"}
    figures = json.loads(danlu("report", tiny_run, "--json").stdout)
    assert figures["minutes"].keys() == set(STAGES)
    assert figures["documents"]["in"] >= figures["documents"]["kept"] + figures["documents"]["duplicates"]
    assert figures["documents"]["duplicates"] > 0
    assert figures["parameters"]["active"] <= figures["parameters"]["total"]
    for key in ("bpb", "distinct_2", "copy_rate"):
        assert figures[key].keys() == {"base", "sft", "ppo", "compress"}
    assert 0 < figures["bpb"]["base"] < 8
    assert {"accuracy", "baselines"} <= figures["reward"].keys()
    assert figures["bytes"]["compress/int8"] < figures["bytes"]["ppo/model"]
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")
    assert "<script" not in page


def test_each_stage_improves_its_own_metric(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    figures = json.loads(danlu("report", tiny_run, "--json").stdout)
    assert figures["score"]["sft"] > figures["score"]["base"]
    assert figures["reward"]["accuracy"] > 0.5


def test_a_second_run_does_nothing(tiny_run):
    before = {name: (tiny_run / name / "manifest.json").read_bytes() for name in STAGES}
    said = danlu("run", "tiny", "--out", tiny_run).stderr
    assert said.count("up to date") == len(STAGES)
    assert before == {name: (tiny_run / name / "manifest.json").read_bytes() for name in STAGES}


@pytest.mark.parametrize("name", MODELS[:4])
def test_transformers_loads_every_model_and_agrees(tiny_run, name):
    import transformers

    reward = name.startswith("reward")
    kind = transformers.AutoModelForSequenceClassification if reward else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(tiny_run / name, dtype=torch.float32).eval()
    ours, tokenizer = package.load(tiny_run / name)
    ids = torch.tensor([tokenizer.encode("The lamp was lit. 春眠不觉晓")])
    with torch.no_grad():
        expected, got = theirs(ids).logits.squeeze(-1), ours(ids)
    assert got.shape == ((1,) if reward else (1, ids.shape[1], ours.config.vocab_size))
    assert (got - expected[..., : got.shape[-1]] if not reward else got - expected).abs().max() < 1e-5
    hub_tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_run / name)
    assert hub_tokenizer.encode("春眠不觉晓", add_special_tokens=False) == tokenizer.encode("春眠不觉晓")


def test_the_compressed_model_loads_in_transformers(tiny_run):
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_run / "compress/model", dtype=torch.float32).eval()
    ours, tokenizer = package.load(tiny_run / "compress/model")
    ids = torch.tensor([tokenizer.encode("The lamp was lit.")])
    with torch.no_grad():
        difference = (theirs(ids).logits - ours(ids)).abs().max()
    assert difference < 1e-3


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo"])
def test_kill_9_and_go_on_gives_the_same_bytes(tiny_run, tmp_path, stage):
    """Start from a copy of what came before, be killed in the middle of the stage, go on: nothing may differ."""
    out = tmp_path / "tiny"
    out.mkdir()
    for name in STAGES[: STAGES.index(stage)]:
        shutil.copytree(tiny_run / name, out / name)
    danlu("run", "tiny", "--out", out, "--until", stage, code=-signal.SIGKILL, dies_once=out / stage / "ckpt/[0-9]*")
    assert not Run(out).finished(stage), "finished before it could be killed"
    said = danlu("run", "tiny", "--out", out, "--until", stage).stderr
    assert "was interrupted, going on" in said
    assert "goes on after" in said
    name = f"{stage}/model"
    assert (out / name / "model.safetensors").read_bytes() == weights(tiny_run)[name]


def test_changing_an_option_remakes_that_stage_and_says_why(tiny_run, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(tiny_run, out)
    said = danlu("run", "tiny", "compress.keep=sparsegpt", "--out", out).stderr
    assert "keep changed from auto to sparsegpt" in said
    assert {line.split()[0] for line in said.splitlines() if " done in " in line} == {"compress", "eval"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_any_folder_of_text_files(language, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    words = {
        "en": ["The {} ferry crossed the river at dawn.", "Old Tom counted {} lanterns.", "It rained for {} days."],
        "zh": ["渡船在清晨过了第{}条河。", "老人数着岸边的{}盏灯笼。", "雨一连下了{}天，街上没有人。"],
    }[language]  # fmt: skip
    n_files, n_lines = {"en": (60, 12), "zh": (5, 300)}[language]  # a few long files are the other thing people have
    for i in range(n_files):
        lines = [words[(i + j) % 3].format(i * 7919 + j * 31) for j in range(n_lines)]
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "picture.png").write_bytes(bytes(range(256)) * 20)
    out = tmp_path / "run"
    danlu("run", "tiny", f"corpus.source={folder}", "pretrain.steps=20", *QUICK, "--out", out)
    figures = json.loads(danlu("report", out, "--json").stdout)
    assert figures["minutes"].keys() == set(STAGES)
    assert 0.8 * n_files <= figures["documents"]["kept"] <= n_files
    asked = {"en": "Continue: The ferry crossed the river at dawn.", "zh": "续写：渡船在清晨过了第七条河。"}[language]
    assert danlu("chat", out, asked).stdout.strip()


WITHOUT = {"corpus", "tokenizer", "tokens"}  # a base model brings its own


def test_from_a_base_model_with_ones_own_conversations(tiny_run, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"What is drug {i}?"}, {"role": "assistant", "content": "A herb."}]}
        for i in range(60)
    ] + [{"instruction": f"Name root {i}.", "output": "Ginseng."} for i in range(60)]
    source = tmp_path / "own.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n", encoding="utf-8")
    out = tmp_path / "run"
    base = tiny_run / "sft" / "model"
    done = danlu("run", "tiny", f"base={base}", f"sft.source={source}", *QUICK, "--out", out)
    assert not (out / "corpus").exists()
    assert "own.jsonl:121" in done.stderr
    assert json.loads(danlu("report", out, "--json").stdout)["minutes"].keys() == set(STAGES) - WITHOUT
    assert danlu("chat", out, "Name root 3.").stdout.strip()


def test_python_api(tiny_run):
    model, tokenizer = package.load(tiny_run, stage="reward")
    assert model(torch.tensor([tokenizer.encode("A small lamp.")])).shape == (1,)
    assert isinstance(package.Chat(tiny_run).say("Continue: The lamp was lit."), str)
    (tiny_run / "report.html").unlink()
    assert package.run("tiny", out=tiny_run, pretrain={}, corpus=None).finished("eval")
    assert (tiny_run / "report.html").is_file()


def test_two_runs_in_one_directory(tiny_run):
    with Run(tiny_run).locked():
        said = danlu("run", "tiny", "--out", tiny_run, code=2).stderr
    assert "in use by process" in said
    assert "Traceback" not in said


@pytest.fixture
def broken(tiny_run, tmp_path) -> Path:
    out = tmp_path / "broken"
    shutil.copytree(tiny_run, out)
    return out


def test_a_truncated_model_file_is_named(broken):
    weights_file = broken / "sft" / "model" / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:1000])
    said = danlu("chat", broken, "hello", "--stage", "sft", code=2).stderr
    assert "model.safetensors" in said
    assert "Traceback" not in said
