"""Pictures say what they show in the units in which it was measured."""

import re

from danlu.report import pictures
from danlu.report.page import TRAINED


def test_every_picture_of_a_loss_has_the_unit_of_its_stage(monkeypatch):
    monkeypatch.setitem(pictures._STYLE, "svg.fonttype", "none")  # words as words, not as outlines
    rows = [{"step": step, "loss": 1.0 / step, "val_loss": 1.0} for step in (1, 2)]
    assert "comparison" in TRAINED["reward"]
    drawn = "".join(pictures.loss(stage, rows, unit) for stage, unit in TRAINED.items())
    assert re.findall(r">((?:nats )?per [a-z ]+)<", drawn) == list(TRAINED.values())
    assert pictures.loss("pretrain", [], "nats per token") == ""


def test_over_optimisation_is_a_panel_a_method_with_a_dashed_proxy_beside_every_gold(monkeypatch):
    monkeypatch.setitem(pictures._STYLE, "svg.fonttype", "none")
    rows = [(0.0, 0.0, 0.0), (1.0, 1.0, 0.5)]
    few, many = "250 rankings", "2,000 rankings"
    svg = pictures.over_optimisation({"ppo": {few: rows, many: rows}, "best_of": {few: rows}})
    assert svg.count("stroke-dasharray") == 3
    assert all(f">{words}<" in svg for words in ("ppo", "best_of", few, many))
    marked = pictures.over_optimisation({"ppo": {few: rows, many: rows}, "best_of": {few: rows}}, {"ppo": {few: 1}})
    assert len(marked) > len(svg), "where the alarm rings is a cross"
    assert pictures.over_optimisation({}) == ""
