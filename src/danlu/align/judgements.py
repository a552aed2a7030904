"""What people and the simulated human said, as training reads it: comparisons, and answers called good or bad.

In:  a stage that has ``rankings`` among its inputs and, outside, frozen votes and labels; a preference store.
Out: ``Preference``s that prefer something; ``Label``s, and whose they are; a frozen file of labels.
Left out: token ids (``comparisons``, ``unpaired``), the store (``preferences``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.align import lessons
from danlu.align.preferences import PreferenceStore
from danlu.errors import UserError
from danlu.files import atomic_write
from danlu.records import Answer, Message, Preference
from danlu.run import Stage

VOTES, LABELS = "votes", "labels"  # among what a stage reads from outside


@dataclass(frozen=True, slots=True)
class Label:
    """One answer, called good or bad by itself.

    Attributes:
        prompt: the turns before it.
        answer: the answer.
        good: what it was called.
        split: "train" or "heldout", by hash of the prompt.
    """

    prompt: tuple[Message, ...]
    answer: Answer
    good: bool
    split: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, read back by ``from_json``."""
        prompt = [{"role": m.role, "content": m.content} for m in self.prompt]
        return {"prompt": prompt, "answer": self.answer.to_json(), "good": self.good, "split": self.split}

    @staticmethod
    def from_json(row: dict[str, Any]) -> Label:
        """The inverse of ``to_json``."""
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        return Label(prompt, Answer.from_json(row["answer"]), bool(row["good"]), row["split"])


def read_comparisons(stage: Stage) -> tuple[list[Preference], int]:
    """Simulated rankings and people's votes that say something, and how many votes there were."""
    found = lessons.read(stage.inputs["rankings"] / "preferences.jsonl", stage.outside.get(VOTES))
    return [*found.preferences], found.votes


def read_labels(stage: Stage) -> list[Label]:
    """People's thumbs, and the answers of comparisons in which they called all of them bad.

    Raises:
        UserError: a line of the frozen file is damaged, naming it.
    """
    if LABELS not in stage.outside:
        return []
    path, result = stage.outside[LABELS], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            result.append(Label.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number} is not a label ({error}); delete the file and run again") from None
    return result


def labels_of(preference: Preference) -> Iterator[Label]:
    """The labels that an order stands for: good is what beats more answers than beat it, bad the opposite.

    Of two answers these are the better and the worse (Ethayarajh et al., arXiv 2402.01306, section 4); what is in the
    middle has no label.
    """
    balance = [0] * len(preference.answers)
    for better, worse in preference.pairs():
        balance[better] += 1
        balance[worse] -= 1
    for answer, won in zip(preference.answers, balance, strict=True):
        if won:
            yield Label(preference.prompt, answer, won > 0, preference.split)


def labels_in(store: PreferenceStore) -> list[tuple[str, Label]]:
    """(rater, what was called good or bad by itself): thumbs, then all answers of comparisons that were "all bad"."""
    thumbs = [(one.rater, Label(one.prompt, one.answer, one.up, one.split)) for one in store.thumbs()]
    lots = [preference for preference in store.all() if not preference.ranks]
    return thumbs + [(p.rater, Label(p.prompt, answer, False, p.split)) for p in lots for answer in p.answers]


def label_line(label: Label) -> str:
    """A line of the frozen file."""
    return json.dumps(label.to_json(), ensure_ascii=False, sort_keys=True)


def freeze_labels(store: PreferenceStore, path: Path) -> int:
    """Write what people called good or bad by itself as JSONL, the same bytes for the same words; returns how many."""
    labels = [label for _, label in labels_in(store)]
    with atomic_write(path) as handle:
        for label in labels:
            handle.write(label_line(label) + "\n")
    return len(labels)
