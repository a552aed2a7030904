"""What people and the simulated human said, as training reads it: comparisons, and answers called good or bad.

In:  a stage that has ``rankings`` among its inputs and, outside, frozen votes and labels; a preference store.
Out: ``Preference``s that prefer something; ``Label``s; a frozen file of labels, and one of votes that prefer nothing.
Left out: token ids (``comparisons``, ``unpaired``), the store (``preferences``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.align import lessons
from danlu.align.lessons import Lessons, VoteSettings
from danlu.align.preferences import PreferenceStore
from danlu.files import atomic_write
from danlu.records import Answer, Message, Preference, read_frozen, write_preferences
from danlu.run import Stage

VOTES, LABELS, UNDECIDED = "votes", "labels", "undecided_votes"  # among what a stage reads from outside


@dataclass(frozen=True, slots=True)
class Label:
    """One answer, called good or bad by itself.

    Attributes:
        prompt: the turns before it.
        answer: the answer.
        good: what it was called.
        split: "train" or "heldout", by hash of the prompt.
        rater: pseudonym of who called it so.
    """

    prompt: tuple[Message, ...]
    answer: Answer
    good: bool
    split: str
    rater: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, read back by ``from_json``."""
        prompt = [{"role": m.role, "content": m.content} for m in self.prompt]
        return {"prompt": prompt, "answer": self.answer.to_json(), "good": self.good, "split": self.split,
                "rater": self.rater}  # fmt: skip

    @staticmethod
    def from_json(row: dict[str, Any]) -> Label:
        """The inverse of ``to_json``."""
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        return Label(prompt, Answer.from_json(row["answer"]), bool(row["good"]), row["split"], row["rater"])


def read_comparisons(stage: Stage, settings: VoteSettings) -> Lessons:
    """Simulated rankings and people's votes that say something, with what each counts for."""
    return lessons.read(
        stage.inputs["rankings"] / "preferences.jsonl", stage.outside.get(VOTES),
        vote_weight=settings.vote_weight, rater_share=settings.rater_share,
    )  # fmt: skip


def read_labels(path: Path) -> list[Label]:
    """People's thumbs, and the answers of comparisons in which they called all of them bad, from a frozen file.

    Raises:
        UserError: a line of it is damaged, naming it.
    """
    return read_frozen(path, Label.from_json, "a label ({}); delete the file and run again")


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
            yield Label(preference.prompt, answer, won > 0, preference.split, preference.rater)


def freeze_labels(store: PreferenceStore, path: Path) -> int:
    """Write what people called good or bad by itself as JSONL, the same bytes for the same words; returns how many."""
    labels = [Label(thumb.prompt, thumb.answer, thumb.up, thumb.split, thumb.rater) for thumb in store.thumbs()]
    labels += [
        Label(p.prompt, answer, False, p.split, p.rater) for p in store.all() if not p.ranks for answer in p.answers
    ]
    return write_labels(path, [label for label in labels if label.answer.text.strip()])  # no words teach nothing


def freeze_undecided(store: PreferenceStore, path: Path, ties: bool) -> int:
    """Write the votes that ``PreferenceStore.snapshot`` leaves out, since people asked there too; returns how many."""
    return write_preferences(path, [vote for vote in store.all() if not lessons.decided(vote, ties)])


def write_labels(path: Path, labels: Sequence[Label]) -> int:
    """Write labels as JSONL, the same bytes for the same labels; returns how many."""
    with atomic_write(path) as handle:
        for label in labels:
            handle.write(json.dumps(label.to_json(), ensure_ascii=False, sort_keys=True) + "\n")
    return len(labels)
