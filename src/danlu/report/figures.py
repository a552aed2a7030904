"""Key figures of a run, gathered from the manifests of its stages.

In:  a run directory.
Out: one JSON object with the keys documented in ``figures``, and a summary for a terminal.
Left out: pictures (``pictures``) and the page (``page``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.align import ALIGNED
from danlu.errors import UserError
from danlu.files import read_json
from danlu.report.targets import targets
from danlu.run import Run

BY_LIFE = ("bpb", "form_rate", "rhyme_rate", "rhyme_by_chance", "copy_rate", "distinct_2", "score")

GUARD = ("accuracy", "precision", "recall", "false_positive_rate", "auc", "tested", "baselines")


def open_run(path: Path) -> Run:
    """The run at ``path``.

    Raises:
        UserError: there is none.
    """
    if not (path / "resolved.json").is_file():
        raise UserError(f"{path} is not a run directory (no resolved.json); make one: danlu run tang")
    return Run(path)


def figures(run: Run) -> dict[str, Any]:
    """Key figures; a stage that is not finished leaves its keys out.

    Keys:
        recipe, directory: names.
        aligned: the stage that learned from preferences, such as ppo; empty if there is none.
        minutes: stage -> minutes of work; minutes_total: their sum.
        documents: ``in`` (records read), ``kept``, ``duplicates`` (exact and near together).
        tokens: ``train`` and ``val`` in the shards, ``pretrain`` seen in training (padding excluded).
        parameters: ``total`` and ``active`` (per token).
        bpb, form_rate, rhyme_rate, rhyme_by_chance, copy_rate, distinct_2, score: stage of life (base, sft, the
            aligned one, compress) -> value. ``rhyme_rate`` counts answers of the right form whose lines 2 and 4 rhyme,
            ``rhyme_by_chance`` those that would if last lines were dealt out anew; ``score`` is the judge's mean.
        prompts: held-out prompts that those rates were measured on.
        reward: ``accuracy`` on held-out rankings, ``low`` and ``high`` of its 95 % interval, ``baselines`` by name,
            ``calibration_error``; where votes of people were held out ``votes``: ``heldout``, how many, and
            ``accuracy``, ``low`` and ``high`` on them alone.
        kl: nats per answer between the aligned policy and the chat model at the end.
        guard: ``precision``, ``recall``, ``false_positive_rate``, ``auc`` on texts it never saw; ``baselines``.
        compression: variant (dense, int8, magnitude, sparsegpt) -> bits per byte.
        bytes: model -> bytes of its weights.
        targets: list of ``{what, target, value, met}`` for the targets that this run can be held against.
    """
    done = run.stages()
    facts = {name: manifest["figures"] for name, manifest in done.items()}
    resolved = read_json(run.dir / "resolved.json")
    aligned = next((name for name in ALIGNED if name in resolved.get("stages", done)), "")
    result: dict[str, Any] = {"recipe": resolved["recipe"], "directory": str(run.dir), "aligned": aligned}
    result["minutes"] = {name: round(manifest["seconds"] / 60, 2) for name, manifest in done.items()}
    asked = resolved.get("stages", done)  # a stage of an earlier recipe is no part of this one
    result["minutes_total"] = round(sum(one["seconds"] for name, one in done.items() if name in asked) / 60, 2)
    if "corpus" in facts:
        corpus = facts["corpus"]
        duplicates = corpus["exact_duplicates"] + corpus["near_duplicates"]
        result["documents"] = {"in": corpus["records"], "kept": corpus["documents"], "duplicates": duplicates}
    if "tokens" in facts:
        result["tokens"] = {key: facts["tokens"][f"{key}_tokens"] for key in ("train", "val")}
    if "pretrain" in facts:
        school = facts["pretrain"]
        result["parameters"] = {"total": school["parameters_total"], "active": school["parameters_active"]}
        if "tokens" in result and "tokens" in school:
            result["tokens"]["pretrain"] = school["tokens"]
    if "eval" in facts:
        exam = read_json(run.dir / "eval" / "figures.json")
        result |= {key: exam[key] for key in (*BY_LIFE, "prompts") if key in exam}
    if "reward" in facts:
        result["reward"] = _reward(facts["reward"])
    if "guard" in facts:
        result["guard"] = {key: facts["guard"][key] for key in GUARD}
    if "after" in facts.get(aligned, {}):
        result["kl"] = facts[aligned]["after"]["kl"]
    if "compress" in facts:
        squeezed = facts["compress"]
        result["compression"] = {key[len("bpb_") :]: squeezed[key] for key in squeezed if key.startswith("bpb_")}
    result["bytes"] = _model_bytes(run)
    result["targets"] = [target.as_row() for target in targets(result)]
    return result


def _reward(facts: Mapping[str, Any]) -> dict[str, Any]:
    low, high = facts["accuracy_interval"]
    found = {"accuracy": facts["accuracy"], "low": low, "high": high, "baselines": facts["baselines"]}
    if "calibration_error" in facts:
        found["calibration_error"] = facts["calibration_error"]
    if facts.get("votes_heldout"):  # older runs did not tell them apart
        low, high = facts["votes_accuracy_interval"]
        votes = {"heldout": facts["votes_heldout"], "accuracy": facts["votes_accuracy"], "low": low, "high": high}
        found["votes"] = votes
    return found


def _model_bytes(run: Run) -> dict[str, int]:
    """Weights of every model of the run, by the directory's place in it."""
    found = {}
    for weights in sorted(run.dir.glob("*/*/model.safetensors")):
        if not weights.parts[len(run.dir.parts)].startswith("."):
            found[weights.parent.relative_to(run.dir).as_posix()] = weights.stat().st_size
    return found


def summary(result: Mapping[str, Any]) -> str:
    """The figures as a few lines for a terminal."""
    lines = [f"{result['recipe']}: {result['minutes_total']:.1f} minutes in {result['directory']}"]
    if "documents" in result:
        d = result["documents"]
        lines.append(f"documents   {d['in']:,} read, {d['duplicates']:,} duplicates, {d['kept']:,} kept")
    if "parameters" in result:
        p = result["parameters"]
        lines.append(f"parameters  {p['total']:,} ({p['active']:,} active per token)")
    lives = [*result.get("bpb", {})]
    if lives:
        lines.append(" " * 16 + "".join(f"{life:>10}" for life in lives))
        for key in BY_LIFE:
            row = result.get(key, {})
            if any(row.get(life) is not None for life in lives):
                lines.append(f"{key:<16}" + "".join(_cell(row.get(life)) for life in lives))
    if result.get("reward", {}).get("accuracy") is not None:
        baselines = ", ".join(f"{k} {v:.1%}" for k, v in result["reward"].get("baselines", {}).items())
        lines.append(f"reward      {result['reward']['accuracy']:.1%} of held-out comparisons right ({baselines})")
        if votes := result["reward"].get("votes"):
            lines.append(
                f"            {votes['accuracy']:.1%} of the {votes['heldout']:,} that people judged (95 % interval "
                f"{votes['low']:.1%} to {votes['high']:.1%})"
            )
    if "guard" in result:
        g = result["guard"]
        baselines = ", ".join(f"{k} {v:.1%}" for k, v in g["baselines"].items())
        lines.append(
            f"guard       {g['accuracy']:.1%} of {g['tested']:,} texts right ({baselines}); finds {g['recall']:.1%} of "
            f"the unsafe, calls {g['false_positive_rate']:.1%} of the safe unsafe"
        )
    for target in result.get("targets", []):
        verdict = "met" if target["met"] else "MISSED"
        lines.append(f"target      {target['what']} {target['target']}: {target['value']:.3g} ({verdict})")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:>10.3f}"
