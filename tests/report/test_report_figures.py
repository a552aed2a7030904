"""The figures of a run say what its stages said, and no more."""

import json
from pathlib import Path

from danlu.report.figures import figures, summary
from danlu.run import Run


def test_what_the_reward_model_hears_of_people_is_told_apart(tmp_path: Path):
    (tmp_path / "resolved.json").write_text(json.dumps({"recipe": "mine", "stages": {"reward": "taste"}}))
    measured = {"accuracy": 0.8, "accuracy_interval": [0.7, 0.9], "baselines": {"longer": 0.5}}
    votes = {"votes_accuracy": 0.45, "votes_accuracy_interval": [0.3, 0.6], "votes_heldout": 40}
    run, told = Run(tmp_path), []
    for found in (measured | votes, measured, measured | {"votes_accuracy": None, "votes_heldout": 0}):
        run.begin("reward", {"stage": "reward", "parents": {}, "settings": {}})
        run.finish("reward", "made", found, 1.0)
        told.append(figures(run))
    assert told[0]["reward"]["votes"] == {"heldout": 40, "accuracy": 0.45, "low": 0.3, "high": 0.6}
    assert "45.0% of the 40 that people judged (95 % interval 30.0% to 60.0%)" in summary(told[0])
    assert all("votes" not in one["reward"] and "people" not in summary(one) for one in told[1:])
