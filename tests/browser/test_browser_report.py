"""The report of a run in a hand: nothing of it stands out of the window, and no table is read through a slit."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from danlu.files import write_json
from danlu.report import write_report
from danlu.run import METRICS, Metrics, Run

LIVES = ("base", "sft", "ppo", "compress")
WIDTH = 390
# What stands out of the window, but for what lies in a box that scrolls by itself.
OUTSIDE = """() => [...document.querySelectorAll("main *")]
    .filter((one) => !one.closest(".scroll table:not(.cards), svg *"))
    .filter((one) => { const { left, right } = one.getBoundingClientRect(); return left < 0 || right > innerWidth; })
    .map((one) => one.outerHTML.slice(0, 80))"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Of a run with a table and a picture of every kind."""
    run = Run(tmp_path / "tang")
    write_json(run.dir / "resolved.json", {"recipe": "tang", "stages": {}})
    read = {"records": 57_607, "documents": 54_008, "exact_duplicates": 927, "near_duplicates": 1982}
    facts = {"corpus": read, "pretrain": {"parameters_total": 1_377_408, "parameters_active": 1_377_408}, "eval": {}}
    for stage in (*facts, "compress"):
        run.begin(
            stage, {"parents": dict.fromkeys(facts, "0123456789abcdef") if stage == "compress" else {}, "why": ""}
        )
        run.finish(stage, "0123456789abcdef", facts.get(stage, {}), 61.0)
    Metrics(run.dir / "pretrain" / METRICS).log(1, loss=6.0, val_loss=6.1)
    funnel = [{"step": "read", "documents": 57_607}, {"step": "near copies out", "documents": 54_008}]
    dropped = {"near_duplicate": {"count": 1, "samples": [{"id": "a" * 32, "value": 1, "limit": 1, "text": "春眠"}]}}
    write_json(
        run.dir / "corpus" / "audit.json", {"funnel": funnel, "reasons": dropped, "quarantined": {"not JSON": 3}}
    )
    rates = {key: dict.fromkeys(LIVES, 0.5) for key in ("bpb", "form_rate", "rhyme_by_chance")}
    write_json(run.dir / "eval" / "figures.json", {**rates, "prompts": 600})
    answers = [
        {"prompt": "写一首题为《春晓》的五言绝句。", "answers": dict.fromkeys(LIVES, "春眠不觉晓，处处闻啼鸟。")}
    ]
    write_json(run.dir / "eval" / "answers.json", {"prompts": answers})
    row = {
        "bytes": 5_513_688,
        "zeros": 0.5,
        "bpb": 2.28,
        "form_rate": 0.92,
        "rhyme_rate": 0.69,
        "tokens_per_second": 281.0,
    }
    table = [{"variant": name, **row} for name in ("dense", "magnitude")]
    write_json(run.dir / "compress" / "table.json", {"rows": table})
    return write_report(run)


def test_a_report_on_a_phone_stays_in_the_window_and_names_the_file_of_what_could_not_be_read(browser: Browser, report):
    page = browser.new_page(viewport={"width": WIDTH, "height": 844}, has_touch=True, is_mobile=True)
    page.goto(report.as_uri())
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTH
    assert page.evaluate(OUTSIDE) == []
    assert page.locator("svg").count() == 4
    assert all(one.bounding_box()["width"] > WIDTH * 0.75 for one in page.locator("svg").all()), "too small to be read"
    poems = page.locator(".poem", has_text="春眠").all()
    assert len({one.bounding_box()["x"] for one in poems}) == 1, "the answers of all ages stand below each other"
    expect(page.get_by_role("link", name="corpus/quarantine.jsonl")).to_have_attribute(
        "href", "corpus/quarantine.jsonl"
    )
    page.close()
