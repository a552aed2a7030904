"""The page of a server that others reach: nothing before the password, then everything, until one logs out."""

from __future__ import annotations

from chat_page import ANSWER, say
from playwright.sync_api import Browser, expect


def test_a_stranger_logs_in_talks_and_leaves(browser: Browser, guarded):
    guarded.kept.people.add_user("heidi", "correct horse")
    context = browser.new_context(locale="en-GB", base_url=guarded.live.url)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("User (leave empty for a key)").fill("heidi")
    page.get_by_label("Password or key").fill("wrong horse")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("password is wrong")
    page.get_by_label("Password or key").fill("correct horse")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.keyboard.press("Escape")
    say(page, "greet")
    expect(page.locator(".answer .text")).to_have_text(ANSWER)
    assert [row["title"] for row in guarded.kept.dialogues.listing("heidi")[0]] == ["greet"]
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert context.request.get("/api/conversations").status == 401
    context.close()
