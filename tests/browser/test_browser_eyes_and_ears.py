"""The page for every eye and ear: axe-core's rules, what a screen reader is told, themes, phones."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_page import ANSWER, TWO_MODELS, compare, had, say
from playwright.sync_api import Page, expect

AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
RICH = """# Title

A [link](https://a.test), `code`, $a^2$.

> quoted

```python
def f(): return 'x'  # 1
```

| a |
| - |
| b |
"""
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}


def faults(page: Page) -> list[str]:
    """What axe-core calls serious or critical on the page as it stands."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({ resultTypes: ['violations'] }).then(({ violations }) => violations)")
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for one in found if one["impact"] in {"serious", "critical"} for node in one["nodes"]
    ]  # fmt: skip


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_axe(open_page, live, scheme, locale):
    page = open_page(locale=locale, color_scheme=scheme, reduced_motion="reduce")
    assert faults(page) == []
    page.evaluate("at => location.hash = at", had(live, ["greet", RICH, "再问", ANSWER], "Rich"))
    page.locator(".katex").wait_for()
    page.locator(".hljs-keyword").first.wait_for()
    page.get_by_role("button", name="回答得好" if locale == "zh-CN" else "Good answer").last.click()
    page.locator(".why").wait_for()
    page.get_by_label("设置" if locale == "zh-CN" else "Settings").click()
    assert faults(page) == []


def test_nothing_serious_for_axe_where_there_is_little_room(open_page, live):
    page = open_page(TWO_MODELS, reduced_motion="reduce", **PHONE)
    compare(page)
    assert faults(page) == []
    page.get_by_role("button", name="A tie").click()
    page.get_by_role("status").wait_for()
    page.get_by_role("button", name="Show conversations").click()
    assert faults(page) == []


def test_an_answer_is_told_by_the_sentence_and_not_by_the_token(open_page):
    page = open_page()
    page.evaluate(
        """() => {
            window.told = [];
            const place = document.querySelector("main [aria-live=polite]");
            const watch = new MutationObserver(() => told.push(place.textContent));
            watch.observe(place, { childList: true, characterData: true, subtree: true });
        }"""
    )
    say(page, "greet")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert "".join(page.evaluate("told")).strip() == ANSWER
    assert len(page.evaluate("told")) <= 2
    expect(page.get_by_role("log")).to_have_attribute("aria-live", "off")


def brightness(page: Page) -> int:
    return sum(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))


def test_light_and_dark_by_the_system_and_by_choice(open_page):
    assert brightness(open_page(color_scheme="light")) > 600
    page = open_page(color_scheme="dark")
    assert brightness(page) < 120
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Light", exact=True).click()
    assert brightness(page) > 600
    page.reload()
    page.locator(".welcome").wait_for()
    assert brightness(page) > 600
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="System", exact=True).click()
    assert brightness(page) < 120


def test_a_phone_shows_the_list_above_the_conversation(open_page, live):
    page = open_page(at=had(live, ["greet", RICH], "A phone's"), **PHONE)
    expect(page.get_by_label("Search conversations")).to_have_count(0)
    page.locator(".katex").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("button", name="Show conversations").click()
    expect(page.get_by_role("button", name="Hide conversations")).to_be_focused()
    expect(page.locator(".room")).to_have_attribute("inert", "")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Search conversations")).to_have_count(0)
    page.get_by_role("button", name="Show conversations").click()
    page.get_by_role("button", name="New conversation").click()
    page.locator(".welcome").wait_for()
    expect(page.get_by_label("Search conversations")).to_have_count(0)


def test_the_list_stays_away_where_somebody_hid_it(open_page):
    page = open_page()
    page.get_by_role("button", name="Hide conversations").click()
    page.reload()
    page.get_by_role("button", name="Show conversations").click()
    expect(page.get_by_label("Search conversations")).to_be_visible()


def test_escape_closes_a_panel_before_it_stops_an_answer(open_page):
    page = open_page()
    say(page, "count")
    expect(page.locator(".answer .text")).to_contain_text("and on")
    page.get_by_role("button", name="Settings").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("region", name="Settings")).to_have_count(0)
    expect(page.get_by_role("button", name="Settings")).to_be_focused()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".answer")).to_contain_text("Stopped.")


def test_who_wants_stillness_gets_it(open_page):
    page = open_page(reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0
