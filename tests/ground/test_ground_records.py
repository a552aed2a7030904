"""Golden lines: what the records look like on disk. Other programs read these; a change here breaks their files."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from danlu.errors import UserError
from danlu.records import (
    Answer,
    Conversation,
    Document,
    Message,
    Preference,
    parse_conversation,
    read_conversations,
    read_documents,
    read_preferences,
    write_conversations,
    write_documents,
    write_preferences,
)

CONVERSATION = (
    '{"messages": [{"role": "system", "content": "简短作答。"}, {"role": "user", "content": "你好"}, '
    '{"role": "assistant", "content": "您好。"}], "source": "npm:poems@1#7"}\n'
)
PREFERENCE = (
    '{"answers": [{"model": "corpus", "sampling": {}, "seed": 0, "text": "低头思故乡", "token_ids": []}, '
    '{"model": "ab12", "sampling": {"temperature": 1.0}, "seed": 9007199254740993, "text": "低头", '
    '"token_ids": [5, 6]}], "display_order": [1, 0], "id": "p1", "prompt": [{"content": "续写", "role": "user"}], '
    '"ranks": [0, 1], "rater": "judge:poems", "split": "heldout", "time": "2026-01-02T03:04:05+00:00"}\n'
)


def test_conversation(tmp_path: Path):
    turns = (Message("system", "简短作答。"), Message("user", "你好"), Message("assistant", "您好。"))
    path = tmp_path / "c.jsonl"
    assert write_conversations(path, [Conversation(turns, "npm:poems@1#7")]) == 1
    assert path.read_text(encoding="utf-8") == CONVERSATION
    assert read_conversations(path)[0][0].messages == turns


def test_a_line_in_another_encoding_is_a_bad_line_and_a_byte_order_mark_is_none(tmp_path: Path):
    rows = [json.dumps({"instruction": "问", "output": answer}, ensure_ascii=False) for answer in ("一", "二")]
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(rows[0].encode("utf-8-sig") + b"\n" + rows[1].encode("gb18030") + b"\n")
    good, bad = read_conversations(path)
    assert [conversation.messages[-1].content for conversation in good] == ["一"]
    assert len(bad) == 1
    assert bad[0].startswith(f"{path}:2: 'utf-8' codec")


def test_preference(tmp_path: Path):
    answers = (Answer("低头思故乡", model="corpus"), Answer("低头", (5, 6), "ab12", {"temperature": 1.0}, 2**53 + 1))
    preference = Preference(
        "p1", (Message("user", "续写"),), answers, (0, 1), "judge:poems", "2026-01-02T03:04:05+00:00", (1, 0), "heldout"
    )
    path = tmp_path / "p.jsonl"
    assert write_preferences(path, [preference]) == 1
    assert path.read_text(encoding="utf-8") == PREFERENCE
    assert read_preferences(path) == [preference]


def test_document(tmp_path: Path):
    document = Document("d1", "春眠不觉晓", "npm:poems@1#7", "zh", "MIT", {"title": "春晓", "n_chars": 5})
    write_documents(tmp_path / "documents", [document])
    shard = pq.read_table(tmp_path / "documents" / "part-00000.parquet")
    assert shard.to_pylist() == [
        {
            "id": "d1", "text": "春眠不觉晓", "source": "npm:poems@1#7", "language": "zh", "licence": "MIT",
            "attributes": '{"n_chars": 5, "title": "春晓"}',
        }
    ]  # fmt: skip
    assert list(read_documents(tmp_path / "documents")) == [document]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a\nb"}]}, {"role": "assistant", "content": "c"},
            ]
        },
        {"conversations": [{"from": "human", "value": "a\nb"}, {"from": "gpt", "value": "c"}]},
        {"instruction": "a", "input": "b", "output": "c"},
    ],
    ids=["openai", "openai-parts", "sharegpt", "alpaca"],
)  # fmt: skip
def test_three_forms_are_one_conversation(row: dict):
    assert parse_conversation(row, "").messages == (Message("user", "a\nb"), Message("assistant", "c"))


def test_a_damaged_line_is_named(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text(PREFERENCE + json.dumps({"id": "p2"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"p\.jsonl:2 is not a preference"):
        read_preferences(path)
