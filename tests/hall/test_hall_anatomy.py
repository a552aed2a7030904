"""``danlu presets`` and ``danlu inspect``: every number is there and the sums are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from danlu import anatomy, hub
from danlu.errors import UserError
from danlu.model import PRESETS, Decoder, parameters, preset


@pytest.mark.parametrize(("name", "head"), [("gpt1", "lm"), ("qwen3-0.6b", "scalar"), ("deepseek-v2-lite", "lm")])
def test_the_parts_are_the_whole(name: str, head: str) -> None:
    config = preset(name)
    found = anatomy.parts(config, head)
    with torch.device("meta"):
        model = Decoder(config, head)
    assert sum(part.numbers for part in found) == sum(p.numel() for p in model.parameters())
    assert found[0].room == "tables"


def test_where_175_billion_come_from() -> None:
    shown = anatomy.explain("gpt3-175b")
    assert f"{parameters(preset('gpt3-175b')).total:,}" in shown
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.startswith(("attention", "feed"))}
    assert lines["attention"][1] == f"{96 * 4 * (12288 * 12288 + 12288):,}"
    assert lines["feed-forward"][1] == f"{96 * (2 * 12288 * 49152 + 49152 + 12288):,}"
    assert "layers 0-95" in shown


def test_layers_of_two_kinds_are_told_apart() -> None:
    shown = anatomy.explain("deepseek-v3")
    assert "layers 0-2" in shown
    assert "layers 3-60" in shown
    assert "active for a token" in shown


def test_every_preset_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PRESETS.keys() - {"gpt1", "llama-tang", "deepseek-v2-lite"}:
        monkeypatch.delitem(PRESETS, name)  # all of them take half a minute to count
    lines = [line.split()[0] for line in anatomy.table().splitlines()[1:-1]]
    assert lines == list(PRESETS)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(UserError, match=r"did you mean 'qwen3-0\.6b'"):
        anatomy.explain("qwen3-0.6")


def test_a_directory_is_inspected(tmp_path: Path) -> None:
    hub.save(Decoder(preset("llama-tiny", vocab_size=64)), tmp_path / "model", None, card={"title": "t"})
    shown = anatomy.inspect(tmp_path / "model")
    assert "(float32)" in shown
    assert f"{parameters(preset('llama-tiny', vocab_size=64)).total:,}" in shown
    with pytest.raises(UserError, match=r"no config\.json"):
        anatomy.inspect(tmp_path)


def test_layers_that_foresee_are_shown(tmp_path: Path) -> None:
    config = preset("deepseek-tiny", vocab_size=64, n_mtp=1)
    assert sum(part.numbers for part in anatomy.parts(config)) == parameters(config).total
    assert "foresight" in {part.where for part in anatomy.parts(config)}
    hub.save(Decoder(config), tmp_path / "model", None, card={"title": "t"})
    assert "foresight" in anatomy.inspect(tmp_path / "model", (2, 64))
