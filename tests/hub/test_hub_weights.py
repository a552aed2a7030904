"""safetensors: shards, FP8, layers too many, and files that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from danlu import hub
from danlu.errors import UserError
from danlu.hub.weights import INDEX, WEIGHTS, TensorFiles, write_weights
from danlu.model import Decoder, preset

BLOCK = (16, 24)


def random_model(name: str) -> Decoder:
    torch.manual_seed(1)
    return Decoder(preset(name, vocab_size=320))


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((n,), float(i)) for i, n in enumerate((100, 100, 300, 50, 50))}
    write_weights(tmp_path, tensors.items(), shard_bytes=1000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == 2400
    found = TensorFiles(tmp_path)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in tensors.items())
    assert index["weight_map"] == {name: path.name for name, path in found.where.items()}


def test_one_small_model_is_one_file(tmp_path: Path) -> None:
    write_weights(tmp_path, [("a", torch.ones(3))])
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def in_fp8(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Matrices of the layers as DeepSeek-V3 stores them, and what they are when multiplied out."""
    stored, exact = {}, {}
    for name, weight in tensors.items():
        if weight.ndim != 2 or ".layers." not in name or "gate.weight" in name:
            stored[name] = exact[name] = weight.bfloat16()
            continue
        low, factors = torch.empty_like(weight, dtype=torch.float8_e4m3fn), []
        exact[name] = torch.empty_like(weight, dtype=torch.bfloat16)
        for top in range(0, weight.shape[0], BLOCK[0]):
            row = []
            for left in range(0, weight.shape[1], BLOCK[1]):
                cut = slice(top, top + BLOCK[0]), slice(left, left + BLOCK[1])
                factor = weight[cut].abs().max() / 448 + 1e-12
                low[cut] = (weight[cut] / factor).to(torch.float8_e4m3fn)
                exact[name][cut] = (low[cut].float() * factor).bfloat16()
                row.append(factor)
            factors.append(torch.stack(row))
        stored[name], stored[f"{name}_scale_inv"] = low, torch.stack(factors)
    return stored, exact


@pytest.fixture
def fp8(tmp_path: Path) -> Path:
    """A small DeepSeek-V3 as the large one is published: FP8, and a layer more for multi-token prediction."""
    hub.save(random_model("deepseek-tiny"), tmp_path / "v3", None, card={"title": "t"})
    config = json.loads((tmp_path / "v3" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(BLOCK),
                                     "activation_scheme": "dynamic"}  # fmt: skip
    config["num_nextn_predict_layers"] = 1
    (tmp_path / "v3" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stored, exact = in_fp8(load_file(tmp_path / "v3" / WEIGHTS))
    beyond = f"model.layers.{config['num_hidden_layers']}.enorm.weight"
    save_file({**stored, beyond: torch.ones(64)}, tmp_path / "v3" / WEIGHTS)
    save_file(exact, tmp_path / "exact.safetensors")
    return tmp_path / "v3"


def test_fp8_is_multiplied_out(fp8: Path, tmp_path: Path) -> None:
    exact = load_file(tmp_path / "exact.safetensors")
    hub.save(hub.load(fp8, torch.bfloat16), tmp_path / "back", None, card={"title": "t"})
    back = load_file(tmp_path / "back" / WEIGHTS)
    assert back.keys() == exact.keys()
    assert all(torch.equal(tensor, back[name].to(tensor.dtype)) for name, tensor in exact.items())


def test_fp8_without_its_factors_is_refused(fp8: Path) -> None:
    tensors = load_file(fp8 / WEIGHTS)
    name = next(name for name in tensors if name.endswith("kv_b_proj.weight_scale_inv"))
    save_file({**tensors, name: torch.ones(1, 1)}, fp8 / WEIGHTS)
    with pytest.raises(UserError, match=rf"'{name}'.* has shape \(1, 1\) and not"):
        hub.load(fp8)
    del tensors[name]
    save_file(tensors, fp8 / WEIGHTS)
    with pytest.raises(UserError, match="is FP8 and has no factors"):
        hub.load(fp8)


@pytest.mark.parametrize("change", [{"fmt": "e5m2"}, {"weight_block_size": None}, {"weight_block_size": [128]}])
def test_other_kinds_of_fp8_are_refused(fp8: Path, change: dict[str, Any]) -> None:
    config = json.loads((fp8 / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] |= change
    (fp8 / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="is FP8, but not e4m3 with one factor per block"):
        hub.load(fp8)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    hub.save(random_model("llama-tiny"), folder / "model", None, card={"title": "t"})
    return folder / "model"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_damaged_files_end_in_a_sentence(data: st.DataObject, sound: Path, tmp_path_factory: Any) -> None:
    """Bytes of the header changed, or the file cut: a model, or one sentence, and never anything else."""
    whole = (sound / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 8) | st.integers(0, header))
        new = data.draw(st.binary(min_size=1, max_size=6) | st.sampled_from([b'"', b"9" * 6, b"[[[[", b"BF16", b"-1"]))
        damaged[place : place + len(new)] = new
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "config.json").write_bytes((sound / "config.json").read_bytes())
    (folder / WEIGHTS).write_bytes(damaged)
    said = ""
    try:
        hub.load(folder)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
