"""The records that cross rooms: ``Document``, ``Conversation``, ``Preference``. One definition, reader and writer each.

In:  Parquet shards, JSONL files.
Out: frozen dataclasses.
Left out: the token shard (``tokens.shards``), the model directory (``hub.directory``) and the preference store
(``align.preferences``), which live where their bytes are made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from danlu.errors import UserError
from danlu.files import atomic_directory, atomic_write, read_lines

_Row = TypeVar("_Row")

ROLES = ("system", "user", "assistant")

# ---------------------------------------------------------------------------------------------- Document


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its origin.

    Attributes:
        id: stable identity, a hash of (source, place in the source); never changes between runs.
        text: NFC, newlines normalised, control characters removed, nothing else.
        source: where it came from, as written in the recipe.
        language: ``"zh"``, ``"en"`` or ``"other"``.
        licence: the source's licence, as far as it says.
        attributes: values measured or carried along (title, author, n_chars ...), never verdicts.
    """

    id: str
    text: str
    source: str
    language: str = ""
    licence: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


_DOCUMENT_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "source", "language", "licence", "attributes")]
)


def write_documents(folder: Path, documents: Iterable[Document], shard_rows: int = 100_000) -> int:
    """Write documents as Parquet shards ``part-00000.parquet`` ..., atomically as one directory.

    Returns:
        How many documents were written.
    """
    count = 0
    with atomic_directory(folder) as beside:
        for index, rows in enumerate(_chunks(documents, shard_rows)):
            columns = {
                "id": [d.id for d in rows],
                "text": [d.text for d in rows],
                "source": [d.source for d in rows],
                "language": [d.language for d in rows],
                "licence": [d.licence for d in rows],
                "attributes": [json.dumps(dict(d.attributes), ensure_ascii=False, sort_keys=True) for d in rows],
            }
            table = pa.table(columns, schema=_DOCUMENT_SCHEMA)
            pq.write_table(table, beside / f"part-{index:05d}.parquet", compression="zstd")
            count += len(rows)
    return count


def read_documents(folder: Path) -> Iterator[Document]:
    """Every document of a directory of shards, in order.

    Raises:
        UserError: the directory holds no shards, or one is damaged.
    """
    shards = sorted(folder.glob("part-*.parquet"))
    if not shards:
        raise UserError(f"no document shards (part-*.parquet) in {folder}; run the corpus stage first")
    for shard in shards:
        try:
            rows = pq.read_table(shard, schema=_DOCUMENT_SCHEMA).to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"document shard {shard} is damaged ({error}); delete {folder} and run again") from None
        for row in rows:
            yield Document(**{**row, "attributes": json.loads(row["attributes"])})


# ---------------------------------------------------------------------------------------- Conversation


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: ``role`` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue to learn from; ``source`` says where it came from and, for made tasks, which document."""

    messages: tuple[Message, ...]
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """The OpenAI ``messages`` form."""
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        return {"messages": messages, "source": self.source}


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> int:
    """Write JSONL in the OpenAI ``messages`` form; returns how many."""
    count = 0
    with atomic_write(path) as handle:
        for conversation in conversations:
            handle.write(json.dumps(conversation.to_json(), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_conversations(path: Path) -> tuple[list[Conversation], list[str]]:
    """Read JSONL in the OpenAI, ShareGPT or Alpaca form, line by line; a bad line is reported, not fatal.

    Returns:
        The conversations, and one sentence per line that could not be read (file and line number).

    Raises:
        UserError: the file does not exist, or not one line of it is a conversation.
    """
    if not path.is_file():
        raise UserError(f"no conversation file at {path}")
    good: list[Conversation] = []
    bad: list[str] = []
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:  # with or without a byte order mark; bytes in another encoding are a bad line and not taught
                good.append(parse_conversation(json.loads(line.decode("utf-8-sig")), str(path)))
            except json.JSONDecodeError as error:
                bad.append(f"{path}:{number}: not JSON ({error})")
            except KeyError as error:
                bad.append(f"{path}:{number}: a turn has no {error}")
            except (ValueError, TypeError, AttributeError) as error:
                bad.append(f"{path}:{number}: {error}")
    if not good:
        why = f"; first problem: {bad[0]}" if bad else ""
        raise UserError(f"{path} holds no conversation in the OpenAI, ShareGPT or Alpaca form{why}")
    return good, bad


def parse_conversation(row: Mapping[str, Any], source: str) -> Conversation:
    """One JSON object in any of the three known forms.

    Raises:
        ValueError: the object is none of them, or has no assistant turn with text.
    """
    if "messages" in row:
        pairs = [(m["role"], m["content"]) for m in row["messages"]]
    elif "conversations" in row:
        names = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
        pairs = [(names.get(m["from"], m["from"]), m["value"]) for m in row["conversations"]]
        if row.get("system"):
            pairs.insert(0, ("system", row["system"]))
    elif "instruction" in row and "output" in row:
        asked = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        pairs = [("user", asked), ("assistant", row["output"])]
        if row.get("system"):
            pairs.insert(0, ("system", row["system"]))
    else:
        raise ValueError("neither 'messages' (OpenAI), 'conversations' (ShareGPT) nor 'instruction' (Alpaca)")
    return Conversation(check_messages([Message(str(r), _text(c)) for r, c in pairs], answered=True), source)


def check_messages(messages: Sequence[Message], answered: bool) -> tuple[Message, ...]:
    """Check roles and order: an optional system turn, then user and assistant in turn.

    Args:
        messages: the turns.
        answered: whether the last turn must be the assistant's (a conversation) or the user's (a prompt).

    Raises:
        ValueError: an unknown role, a wrong order, or nothing said.
    """
    for message in messages:
        if message.role not in ROLES:
            raise ValueError(f"unknown role '{message.role}'; valid: {', '.join(ROLES)}")
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if not turns or [m.role for m in turns] != expected:
        raise ValueError("turns must go user, assistant, user, ... after an optional system turn")
    last = "assistant" if answered else "user"
    if turns[-1].role != last or not turns[-1].content.strip():
        raise ValueError(f"the last turn must be the {last}'s and say something")
    return tuple(messages)


def _text(content: Any) -> str:
    """A message's content as text: a string, or OpenAI's list of text parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(part["text"] for part in content)
    raise ValueError("content must be text")


# ------------------------------------------------------------------------------------------ Preference


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer somebody could choose.

    Attributes:
        text: what was shown.
        token_ids: the response's token ids as sampled, without the prompt; empty for a text that was not sampled.
        model: hash or name of the model that wrote it, ``"corpus"`` for a person's own text.
        sampling: temperature, top_p ... as used.
        seed: the sample's seed.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    model: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, read back by ``from_json``."""
        return {
            "text": self.text, "token_ids": list(self.token_ids), "model": self.model, "sampling": dict(self.sampling),
            "seed": self.seed,
        }  # fmt: skip

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Answer:
        """The inverse of ``to_json``; only the text must be there."""
        ids, seed = tuple(row.get("token_ids", ())), int(row.get("seed", 0))
        return Answer(row["text"], ids, row.get("model", ""), row.get("sampling", {}), seed)


@dataclass(frozen=True, slots=True)
class Preference:
    """A judgement over K answers to one prompt.

    Attributes:
        id: unique.
        prompt: the turns before the answer, ending with the user's.
        answers: K >= 2 answers, in the order they were stored.
        ranks: one rank per answer, 0 the best; equal ranks are a tie. Empty means "all bad".
        rater: pseudonym.
        time: ISO 8601, UTC.
        display_order: which answer stood where on the screen.
        split: "train" or "heldout", by hash of the prompt.
    """

    id: str
    prompt: tuple[Message, ...]
    answers: tuple[Answer, ...]
    ranks: tuple[int, ...]
    rater: str = ""
    time: str = ""
    display_order: tuple[int, ...] = ()
    split: str = "train"

    def pairs(self) -> list[tuple[int, int]]:
        """Index pairs (better, worse) of every strict preference; ties and "all bad" give none."""
        n = range(len(self.ranks))
        return [(i, j) for i in n for j in n if self.ranks[i] < self.ranks[j]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, read back by ``from_json``."""
        return {
            "id": self.id,
            "prompt": [{"role": m.role, "content": m.content} for m in self.prompt],
            "answers": [answer.to_json() for answer in self.answers],
            "ranks": list(self.ranks),
            "rater": self.rater,
            "time": self.time,
            "display_order": list(self.display_order),
            "split": self.split,
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Preference:
        """The inverse of ``to_json``.

        Raises:
            ValueError: fewer than two answers, or ranks that do not match them.
        """
        answers = tuple(map(Answer.from_json, row["answers"]))
        ranks = tuple(int(r) for r in row["ranks"])
        if len(answers) < 2 or (ranks and len(ranks) != len(answers)):
            raise ValueError("a preference needs at least two answers and one rank for each (or none: all bad)")
        prompt = check_messages([Message(m["role"], m["content"]) for m in row["prompt"]], answered=False)
        return Preference(
            id=row["id"], prompt=prompt, answers=answers, ranks=ranks, rater=row.get("rater", ""),
            time=row.get("time", ""), display_order=tuple(row.get("display_order", ())),
            split=row.get("split", "train"),
        )  # fmt: skip


def write_preferences(path: Path, preferences: Iterable[Preference]) -> int:
    """Write a frozen snapshot, one JSON object per line; returns how many."""
    count = 0
    with atomic_write(path) as handle:
        for preference in preferences:
            handle.write(json.dumps(preference.to_json(), ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    return count


def read_preferences(path: Path) -> list[Preference]:
    """Read a frozen snapshot.

    Raises:
        UserError: the file is missing or a line is damaged, naming it.
    """
    if not path.is_file():
        raise UserError(f"no preference file at {path}; run the rankings stage or collect votes first")
    return read_frozen(path, Preference.from_json, "a preference ({})")


def read_frozen(path: Path, from_json: Callable[[dict[str, Any]], _Row], what: str) -> list[_Row]:
    """Rows of a JSONL file that we wrote ourselves; ``what`` each is, with a place for what is wrong with it.

    Raises:
        UserError: a line is damaged, naming it.
    """
    result = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            result.append(from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number} is not {what.format(error)}") from None
    return result


def _chunks(items: Iterable[Document], size: int) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
