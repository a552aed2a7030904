"""People's ways through the page: ask, stop, compare, vote, delete; by mouse, keyboard and thumb."""

from __future__ import annotations

import json

import pytest
from chat_page import ANSWER, TWO_MODELS, answered, compare, had, say, wait_until_idle
from playwright.sync_api import expect


def test_an_answer_streams_in(open_page):
    page = open_page()
    say(page, "count")
    text = page.locator(".answer .text")
    expect(text).to_contain_text("and on")
    first = len(text.inner_text())
    page.wait_for_function("n => document.querySelector('.answer .text').innerText.length > n", arg=first)
    expect(page.get_by_role("article", name="Answer")).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")


def test_a_whole_answer_is_shown_and_the_box_is_ready_again(open_page):
    page = open_page()
    say(page, "greet")
    expect(page.locator(".answer .text")).to_have_text(ANSWER)
    expect(page.locator(".prompt p")).to_have_text("greet")
    box = page.get_by_label("Your message")
    expect(box).to_be_focused()
    expect(box).to_have_value("")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()


@pytest.mark.parametrize("mode", ["Chat", "Compare"])
def test_who_asks_before_the_page_knows_what_is_served_is_answered(open_page, mode):
    page = open_page(TWO_MODELS)
    held = []
    page.route("**/api/info", lambda route: held.append(route))
    page.reload()
    page.get_by_role("button", name=mode, exact=True).click()
    say(page, "greet")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    held.pop().continue_()
    expect(page.locator(".text", has_text=ANSWER)).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_stops_the_server_too(open_page, live, how):
    page = open_page()
    say(page, "count")
    expect(page.locator(".answer .text")).to_contain_text("and on")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".answer")).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    wait_until_idle(live)
    length = len(page.locator(".answer .text").inner_text())
    page.wait_for_timeout(200)
    assert len(page.locator(".answer .text").inner_text()) == length


def test_enter_that_ends_a_word_in_an_input_method_does_not_send(open_page):
    page = open_page()
    box = page.get_by_label("Your message")
    box.fill("ni hao")
    box.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True})
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".prompt")).to_have_count(0)
    expect(box).to_have_value("ni hao\n")


def test_the_conversation_goes_on_after_a_reload(open_page):
    page = open_page()
    say(page, "greet")
    answered(page)
    page.reload()
    answered(page)
    with page.expect_request("**/api/chat") as sent:
        say(page, "greet")
    asked = json.loads(sent.value.post_data)
    assert asked["content"] == "greet"
    assert page.url.endswith(f"#/c/{asked['conversation']}")
    assert asked["parent"]


@pytest.mark.parametrize("mode", ["Chat", "Compare"])
def test_a_long_conversation_goes_on_without_its_oldest_turns(open_page, live, mode):
    page = open_page(TWO_MODELS, had(live, ["greet", ANSWER * 20] * 30))  # more than the context of 4096 tokens holds
    page.get_by_role("button", name=mode, exact=True).click()
    say(page, "greet")
    expect(page.get_by_text("Older turns were left out")).to_have_count(1)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_more_turns_than_the_server_takes_are_no_dead_end(open_page, live):
    page = open_page(TWO_MODELS, had(live, ["greet", "ok"] * 130))
    page.get_by_role("button", name="Compare", exact=True).click()
    with page.expect_request("**/api/compare") as sent:
        say(page, "greet")
    assert len(json.loads(sent.value.post_data)["messages"]) == 199
    expect(page.get_by_text("Older turns were left out")).to_have_count(1)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    ("button", "ranks"),
    [("First is better", (0, 1)), ("Second is better", (1, 0)), ("A tie", (0, 0)), ("Both are bad", ())],
)
def test_a_vote_lands_in_the_preference_store(open_page, live, button, ranks):
    page = open_page(TWO_MODELS)
    before = live.store.count()
    compare(page)
    assert page.locator(".side footer").count() == 0, "names are shown before the vote"
    left, right = (side.inner_text() for side in page.locator(".side .text").all())
    page.get_by_role("button", name=button).click()
    page.get_by_role("status").wait_for()
    assert live.store.count() == before + 1
    vote = live.store.all()[-1]
    assert vote.ranks == ranks
    texts = [answer.text.strip() for answer in vote.answers]
    assert texts.index(ANSWER) == [left, right].index(ANSWER)
    names = sorted(footer.inner_text() for footer in page.locator(".side footer strong").all())
    assert names == ["knows", "random"]


def test_the_conversation_goes_on_with_the_chosen_answer(open_page):
    page = open_page(TWO_MODELS)
    compare(page)
    side = "First" if page.locator(".side .text").first.inner_text() == ANSWER else "Second"
    held = []  # the server is slow to take the answer into the conversation
    page.route("**/messages", lambda route: route.continue_() if held else held.append(route))
    page.get_by_role("button", name=f"{side} is better").click()
    expect(page.locator(".side.chosen .text")).to_have_text(ANSWER)
    with page.expect_request("**/api/compare") as sent:
        say(page, "greet")
        page.wait_for_timeout(200)
        held[0].continue_()
    assert json.loads(sent.value.post_data)["messages"][1] == {"role": "assistant", "content": ANSWER}


def test_neither_answer_is_kept_when_both_are_bad(open_page):
    page = open_page(TWO_MODELS)
    compare(page)
    page.get_by_role("button", name="Both are bad").click()
    expect(page.get_by_label("Your message")).to_have_value("greet")
    expect(page.get_by_label("Your message")).to_be_focused()
    with page.expect_request("**/api/compare") as sent:
        page.keyboard.press("Enter")
    assert len(json.loads(sent.value.post_data)["messages"]) == 1


def test_the_vote_is_blind_for_the_keyboard_too(open_page):
    page = open_page(TWO_MODELS)
    compare(page)
    focused = page.evaluate("document.activeElement.tagName")
    assert focused != "BUTTON", "a focused choice is a recommendation"
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="First is better")).to_be_focused()


def test_deleting_the_conversation_deletes_its_votes(open_page, live):
    page = open_page(TWO_MODELS)
    compare(page)
    page.get_by_role("button", name="A tie").click()
    page.get_by_role("status").wait_for()
    votes = live.store.count()
    page.get_by_role("button", name="More", exact=True).click()
    page.get_by_role("button", name="Delete this conversation").click()
    assert live.store.count() == votes, "it did not ask before"
    page.get_by_role("button", name="Delete for good?").click()
    page.locator(".welcome").wait_for()
    assert live.store.count() == votes - 1


def test_hostile_text_stays_text(open_page):
    page = open_page()
    say(page, "attack")
    text = page.locator(".answer .text")
    expect(text.locator("strong")).to_have_text("bold")
    expect(text).to_contain_text("<img src=x onerror=alert(1)>")
    say(page, "<script>alert(3)</script><img src=x onerror=alert(4)>")
    expect(page.locator(".prompt p").last).to_have_text("<script>alert(3)</script><img src=x onerror=alert(4)>")
    assert page.locator("main img, main script").count() == 0
    link = page.locator("main a")  # an image becomes a link: nothing is fetched until somebody wants it
    expect(link).to_have_attribute("href", "http://elsewhere.test/p")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    page.keyboard.press("Escape")


def test_a_refusal_is_told_and_the_message_comes_back(open_page):
    page = open_page()
    say(page, "春眠" * 4000)
    expect(page.get_by_role("alert")).to_contain_text("context is 4096 tokens")
    expect(page.get_by_label("Your message")).to_have_value("春眠" * 4000)
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_chinese_by_the_browser_and_by_choice(open_page):
    page = open_page(locale="zh-CN")
    assert page.evaluate("document.documentElement.lang") == "zh-Hans"
    expect(page.get_by_role("button", name="对比")).to_be_visible()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("button", name="Compare", exact=True)).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "en"
    page.reload()
    expect(page.get_by_role("button", name="Compare", exact=True)).to_be_visible()


def test_a_phone_never_scrolls_sideways(open_page):
    page = open_page(TWO_MODELS, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Settings").click()
    page.keyboard.press("Escape")
    compare(page, "attack")
    page.get_by_role("button", name="Second is better").click()
    page.get_by_role("status").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for box in page.locator(".side, .composer, .prompt").all():
        place = box.bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= 360


def test_everything_to_press_or_fill_has_a_name(open_page):
    page = open_page(TWO_MODELS)
    compare(page)
    page.get_by_role("button", name="Settings").click()
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, a")]
        .filter((e) => !(e.ariaLabel || e.innerText?.trim() || e.labels?.[0]?.innerText.trim()))
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    expect(page.get_by_role("log")).to_be_visible()
