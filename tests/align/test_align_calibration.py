"""Calibration by hand: predicted beside seen, and heads that disagree."""

from __future__ import annotations

import math

import pytest
import torch

from danlu.align.calibration import calibration, disagreement


def test_the_error_is_the_gap_between_predicted_and_seen_by_bin() -> None:
    surely = math.log(3)  # sigmoid: 3/4
    found = torch.tensor([[surely, 0.0], [surely, 0.0], [surely, 0.0], [0.0, surely], [5.0, 0.0]])
    ranks = torch.tensor([[0, 1]] * 5)
    measured = calibration(found, ranks)
    certain = 1 / (1 + math.exp(-5))
    assert measured["reliability"] == [
        {"pairs": 4, "predicted": 0.75, "seen": 0.75},
        {"pairs": 1, "predicted": round(certain, 4), "seen": 1.0},
    ]
    assert measured["calibration_error"] == pytest.approx((1 - certain) / 5, abs=1e-4)
    boastful = calibration(found * 3, ranks)
    assert boastful["calibration_error"] == pytest.approx(4 / 5 * (27 / 28 - 3 / 4), abs=1e-2)


def test_ties_predict_nothing() -> None:
    assert calibration(torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 0]])) == {
        "calibration_error": None, "reliability": [],
    }  # fmt: skip


def test_disagreement_is_the_deviation_of_leads_over_heads() -> None:
    found = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[1.0, -1.0], [0.0, 8.0]], [[0.0, 100.0], [-5.0, 95.0]]])
    ranks = torch.tensor([[0, 1], [0, 1], [0, 1]])
    measured = disagreement(found, ranks)
    # Leads 1 and 3; 1 and -9, wrongly; 5 and 5, for heads that only put zero elsewhere.
    assert measured["deviation"]["where_right"] == pytest.approx(math.sqrt(2) / 2, abs=1e-4)
    assert measured["deviation"]["where_wrong"] == pytest.approx(math.sqrt(50), abs=1e-4)
    assert measured["against"] == {"where_right": 0.0, "where_wrong": 0.5}
    assert disagreement(found[:1], ranks[:1])["against"]["where_wrong"] is None
