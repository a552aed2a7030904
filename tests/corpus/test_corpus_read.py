from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from danlu.corpus.read import Quarantine, Record, decode, read_records, split_text
from danlu.corpus.sources import Source

ROWS = [{"title": "春晓", "text": "春眠不觉晓"}, {"title": "two, three", "text": 'a "quoted"\nline'}]


def read(folder: Path, split: str = "auto", piece_chars: int = 8000) -> tuple[list[Record], list[dict[str, Any]]]:
    handle = io.StringIO()
    files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    records = list(read_records(Source("here", folder, files, ""), split, piece_chars, Quarantine(handle)))
    return records, [json.loads(line) for line in handle.getvalue().splitlines()]


def as_bytes(suffix: str) -> bytes:
    if suffix == ".parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
        return sink.getvalue()
    if suffix in (".csv", ".tsv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, ["title", "text"], delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(ROWS)
        return text.getvalue().encode()
    if suffix == ".json":
        return json.dumps(ROWS).encode()
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_every_format_gives_the_same_records(tmp_path: Path, suffix: str, packed: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packed]
    (tmp_path / f"rows{suffix}{packed}").write_bytes(pack(as_bytes(suffix)))
    records, bad = read(tmp_path)
    assert [record.fields for record in records] == ROWS
    assert bad == []


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('{"text": "one record"}', ["one record"]),
        ('{"records": [{"text": "a"}, {"text": "b"}]}', ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ('{"text": "lines under"}\n{"text": "a wrong name"}\n', ["lines under", "a wrong name"]),
        ('\ufeff{"text": "marked"}', ["marked"]),
    ],
)
def test_forms_of_json(tmp_path: Path, content: str, texts: list[str]) -> None:
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    records, bad = read(tmp_path)
    assert [record.fields["text"] for record in records] == texts
    assert bad == []


def test_bad_lines_go_to_quarantine_with_their_place(tmp_path: Path) -> None:
    lines = [b'{"text": "good"}', b'{"text": "half', b"", b"42", b'{"text": "\xff\xfe"}', b"[" * 20_000, b'"bare"']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    records, bad = read(tmp_path)
    assert [(record.place, record.fields["text"]) for record in records] == [("line 1", "good"), ("line 7", "bare")]
    assert [(row["file"], row["place"], row["reason"]) for row in bad] == [
        ("rows.jsonl", "line 2", "not JSON"),
        ("rows.jsonl", "line 4", "not a record"),
        ("rows.jsonl", "line 5", "not UTF-8"),
        ("rows.jsonl", "line 6", "not JSON"),
    ]


def test_what_is_told_names_the_worst_files_first() -> None:
    quarantine = Quarantine(io.StringIO())
    for file, lines in (("a", 1), ("b", 3), ("c", 2), ("d", 1), ("e", 1)):
        for line in range(lines):
            quarantine.add(file, f"line {line}", "not JSON")
    assert quarantine.told() == "set aside unread (8 not JSON): b (3), c (2), a (1) and 2 more files"


def test_bad_csv_rows_go_to_quarantine(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("title,text\na,b\nonly one\nc,d,e\n\nf,g\n", encoding="utf-8")
    records, bad = read(tmp_path)
    assert [record.fields["text"] for record in records] == ["b", "g"]
    assert [row["place"] for row in bad] == ["line 3", "line 4"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet", ".json.gz", ".txt.gz"])
def test_a_truncated_file_does_not_kill_the_run(tmp_path: Path, suffix: str) -> None:
    whole = as_bytes(".parquet") if suffix == ".parquet" else as_bytes(".jsonl") * 500
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(suffix).suffix, bytes)
    (tmp_path / f"a{suffix}").write_bytes(pack(whole)[:-30])
    (tmp_path / "b.txt").write_text("still here", encoding="utf-8")
    records, bad = read(tmp_path)
    assert records[-1].fields["text"] == "still here"
    assert [row["reason"] for row in bad][-1] == "damaged file"


def test_binary_files_are_set_aside_whatever_their_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x89PNG\0\0\0\x01")
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(128, 256)) * 20)
    (tmp_path / "noname").write_text("plain", encoding="utf-8")
    records, bad = read(tmp_path)
    assert [record.fields["text"] for record in records] == ["plain"]
    assert [row["reason"] for row in bad] == ["not text", "not text"]


def test_decoding() -> None:
    chinese = "春眠不觉晓，处处闻啼鸟。" * 5
    assert decode(chinese.encode()) == (chinese, "")
    assert decode(b"\xef\xbb\xbfmarked") == ("marked", "")
    assert decode(chinese.encode("gb18030")) == (chinese, "not UTF-8, read as GB18030")
    assert decode(chinese.encode("utf-16")) == (chinese, "read as UTF-16")
    text, note = decode(("a long line of English with one caf" * 9).encode() + b"\xe9 in it")
    assert text.endswith("caf\ufffd in it")
    assert "1 places are not UTF-8" in note
    with pytest.raises(ValueError, match="looks binary"):
        decode(bytes(range(128, 256)))


def test_splitting_text_files() -> None:
    book = "\n\n".join(f"Chapter {n}.\nIt was late. " + "Nobody came. " * 10 for n in range(40))
    assert split_text("one line", "auto", 100) == ["one line"]
    assert split_text(book, "file", 100) == [book]
    assert len(split_text(book, "paragraphs", 100)) == 40
    pieces = split_text(book, "auto", 500)
    assert all(len(piece) <= 500 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(book.split())
    solid = "春" * 2500
    assert [len(piece) for piece in split_text(solid, "auto", 1000)] == [1000, 1000, 500]
    sentences = "天地玄黄。" * 500
    assert all(piece.endswith("。") for piece in split_text(sentences, "auto", 1003))


def test_a_file_name_of_any_bytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.jsonl").write_text('{"text": "a"}\nbad\n', encoding="utf-8")
    records, bad = read(tmp_path)
    assert [record.file for record in records] == ["caf?.jsonl"]
    assert bad[0]["file"] == "caf?.jsonl"
