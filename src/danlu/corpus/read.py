"""Files into records, tolerant record by record: what cannot be read is set aside with its place and the reason.

In:  a ``Source``: .txt, .md (and any other text), .json, .jsonl, .csv, .tsv, .parquet, each also as .gz or .zst.
Out: ``Record``s in file order, and a quarantine file with a line for everything that is not one.
Left out: PDF, HTML and office documents; convert them to text first.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from danlu.corpus.langid import HAN_LIMIT, Kind, count
from danlu.corpus.sources import Source

RECORD_LISTS = ("records", "data")  # keys under which a JSON file may hold its list
_FILES_TOLD = 3  # on a terminal
REPLACED_LIMIT = 0.01  # share of characters that may be unreadable before a file counts as binary
_DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)
_PACKINGS = {".gz": "gzip", ".zst": "zstd"}
_BLANK_LINES = re.compile(r"\n[ \t\u3000]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[。！？!?…])|(?<=\.)(?=\s)")


@dataclass(frozen=True, slots=True)
class Record:
    """What was read, before it is a document.

    Attributes:
        file: its file, relative to the source.
        place: where in the file, such as ``"line 7"``; with ``file`` its identity.
        fields: name -> value.
    """

    file: str
    place: str
    fields: Mapping[str, Any]


@dataclass
class Quarantine:
    """Where unreadable things go: one JSON object per line with file, place, reason and detail.

    Attributes:
        handle: the open file.
        counts: reason -> how many.
        files: file -> how many of its records, or 1 if it is the file itself.
        notes: remarks about files that were read in another way than plain UTF-8.
    """

    handle: IO[str]
    counts: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, file: str, place: str, reason: str, detail: str = "") -> None:
        """Set one thing aside."""
        self.counts[reason] += 1
        self.files[file] += 1
        row = {"file": file, "place": place, "reason": reason, "detail": _utf8(detail[:200])}
        self.handle.write(json.dumps(row, ensure_ascii=False) + "\n")

    def told(self) -> str:
        """What was set aside, why, and the files that most of it is from."""
        why = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        names = [f"{name} ({count})" for name, count in self.files.most_common(_FILES_TOLD)]
        others = f" and {len(self.files) - len(names)} more files" if len(self.files) > len(names) else ""
        return f"set aside unread ({why}): {', '.join(names)}{others}"


@dataclass(frozen=True)
class _File:
    """A file that is being read."""

    name: str
    path: Path
    split: str
    piece_chars: int
    quarantine: Quarantine

    def bad(self, place: str, reason: str, detail: object = "") -> None:
        self.quarantine.add(self.name, place, reason, str(detail))

    def open(self) -> IO[bytes]:
        """The file's bytes, decompressed."""
        stream = open(self.path, "rb")  # noqa: SIM115, the caller closes it
        packing = _PACKINGS.get(self.path.suffix.lower())
        # pyarrow's decompressor, because the zstandard package takes a file that is cut short for one that ends.
        return io.BufferedReader(pa.CompressedInputStream(stream, packing)) if packing else stream

    def text(self) -> str | None:
        """The whole file as text, or None after setting it aside."""
        with self.open() as stream:
            data = stream.read()
        try:
            text, note = decode(data)
        except ValueError as error:
            self.bad("file", "not text", error)
            return None
        if note:
            self.quarantine.notes.append(f"{self.name}: {note}")
        return text


def read_records(source: Source, split: str, piece_chars: int, quarantine: Quarantine) -> Iterator[Record]:
    """Every record of a source, file by file.

    Args:
        source: what to read.
        split: how text files become records: ``auto``, ``file`` or ``paragraphs``.
        piece_chars: length of pieces for ``auto``, in characters.
        quarantine: takes what cannot be read.
    """
    for path in source.files:
        name = _utf8(path.relative_to(source.folder).as_posix())
        file = _File(name, path, split, piece_chars, quarantine)
        suffixes = [s.lower() for s in path.suffixes if s.lower() not in _PACKINGS]
        reader = _READERS.get(suffixes[-1] if suffixes else "", _read_text)
        try:
            yield from reader(file)
        except _DAMAGE as error:
            file.bad("file", "damaged file", error)


def decode(data: bytes) -> tuple[str, str]:
    """Bytes of a text file as text, and a note if they were not plain UTF-8.

    Raises:
        ValueError: the bytes look binary.
    """
    for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if data.startswith(mark):
            return data.decode("utf-16", "replace"), "read as UTF-16"
    if b"\0" in data:
        raise ValueError("it holds NUL bytes, so it looks binary")
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        first = error.start
    chinese = data.decode("gb18030", "replace")
    if chinese.count("\ufffd") <= REPLACED_LIMIT * len(chinese) and _han_share(chinese) >= HAN_LIMIT:
        return chinese, "not UTF-8, read as GB18030"
    text = data.decode("utf-8-sig", "replace")
    replaced = text.count("\ufffd")
    if replaced > REPLACED_LIMIT * len(text):
        raise ValueError(f"{replaced} places from byte {first} on are not UTF-8, so it looks binary")
    return text, f"{replaced} places are not UTF-8 and were replaced, the first at byte {first}"


def split_text(text: str, split: str, piece_chars: int) -> list[str]:
    """A text file's documents.

    Args:
        text: the file.
        split: ``file`` (one document), ``paragraphs`` (blocks between blank lines) or ``auto`` (one, unless it is
            longer than twice ``piece_chars``: then blocks joined up to that length, long blocks cut at line ends and
            sentence ends).
        piece_chars: length of a piece, in characters.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if split == "file" or (split == "auto" and len(text) <= 2 * piece_chars):
        return [text]
    blocks = [block for block in _BLANK_LINES.split(text) if block.strip()]
    if split == "paragraphs":
        return blocks
    return list(_pieces(blocks, "\n\n", piece_chars))


# -------------------------------------------------------------------------------------------- the formats


def _read_text(file: _File) -> Iterator[Record]:
    text = file.text()
    if text is not None:
        for number, piece in enumerate(split_text(text, file.split, file.piece_chars), 1):
            yield Record(file.name, f"piece {number}", {"text": piece, "name": file.path.name.partition(".")[0]})


def _read_json(file: _File) -> Iterator[Record]:
    text = file.text()
    if text is None:
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = text.split("\n")  # and not at U+2028, which JSON may hold
        if _is_json(next((line for line in lines if line.strip()), "")):
            yield from _json_lines(file, lines)  # JSON lines under another name
        else:
            file.bad("file", "not JSON", error)
        return
    for key in RECORD_LISTS:
        if isinstance(value, dict) and isinstance(value.get(key), list):
            value = value[key]
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield from _record(file, f"record {number}", item)


def _read_jsonl(file: _File) -> Iterator[Record]:
    with file.open() as stream:
        yield from _json_lines(file, stream)


def _json_lines(file: _File, lines: Iterable[str | bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8") if isinstance(line, bytes) else line
            value = json.loads(text)
        except UnicodeDecodeError as error:
            file.bad(f"line {number}", "not UTF-8", error)
        except (ValueError, RecursionError) as error:
            file.bad(f"line {number}", "not JSON", error)
        else:
            yield from _record(file, f"line {number}", value)


def _read_csv(file: _File) -> Iterator[Record]:
    text = file.text()
    if text is None:
        return
    csv.field_size_limit(sys.maxsize)
    tab = ".tsv" in [suffix.lower() for suffix in file.path.suffixes]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",")
    header = next(rows, [])
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            file.bad(f"line {rows.line_num}", "not CSV", error)
            continue
        if len(row) == len(header):
            yield Record(file.name, f"line {rows.line_num}", dict(zip(header, row, strict=True)))
        elif row:
            file.bad(f"line {rows.line_num}", "wrong number of columns", f"{len(row)} instead of {len(header)}")


def _read_parquet(file: _File) -> Iterator[Record]:
    number = 0
    with file.open() as stream:
        data = pa.BufferReader(stream.read()) if file.path.suffix.lower() in _PACKINGS else file.path
        for batch in pq.ParquetFile(data).iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Record(file.name, f"record {number}", fields)


_READERS: dict[str, Callable[[_File], Iterator[Record]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def _record(file: _File, place: str, value: Any) -> Iterator[Record]:
    """A JSON value as a record: an object, or a bare string as its ``text``."""
    if isinstance(value, dict):
        yield Record(file.name, place, value)
    elif isinstance(value, str):
        yield Record(file.name, place, {"text": value})
    else:
        file.bad(place, "not a record", f"{type(value).__name__} instead of an object or a string")


def _utf8(text: str) -> str:
    """Text that can be written: a file name on Linux may be any bytes."""
    return text.encode("utf-8", "replace").decode()


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), (dict, str))
    except (ValueError, RecursionError):
        return False


def _han_share(text: str) -> float:
    counts = count([text])[0]
    return float(counts[Kind.HAN] / max(counts.sum() - counts[Kind.SPACE], 1))


def _pieces(blocks: Iterable[str], joint: str, limit: int) -> Iterator[str]:
    """Join neighbouring blocks up to ``limit`` characters; what is longer by itself is cut at ever smaller joints."""
    held = ""
    for block in itertools.chain.from_iterable(_cut(block, limit) for block in blocks):
        if held and len(held) + len(joint) + len(block) > limit:
            yield held
            held = ""
        held = f"{held}{joint}{block}" if held else block
    if held:
        yield held


def _cut(block: str, limit: int) -> Iterator[str]:
    """A block as pieces of at most ``limit`` characters: by lines, then by sentences, then anywhere."""
    if len(block) <= limit:
        yield block
    elif "\n" in block:
        yield from _pieces(block.split("\n"), "\n", limit)
    else:
        sentences = [part for part in _SENTENCE_END.split(block) if part]
        if len(sentences) > 1:
            yield from _pieces(sentences, "", limit)
        else:
            yield from (block[start : start + limit] for start in range(0, len(block), limit))
