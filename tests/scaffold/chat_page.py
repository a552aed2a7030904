"""Ways through the chat page that more than one test goes, and conversations that were had before."""

from __future__ import annotations

import time
from collections.abc import Iterable

from live_server import Live
from playwright.sync_api import Page, expect

from danlu.records import Message
from danlu.serve.store import ServeStore

ANSWER = "Hello, 你好。"
TWO_MODELS = '{"temperature": 0, "against": "random", "max_tokens": 24}'
expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong


def say(page: Page, text: str) -> None:
    """Type and send."""
    page.get_by_role("button", name="Send").wait_for()
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def answered(page: Page, text: str = ANSWER) -> None:
    """Wait until the last answer says this and is whole."""
    expect(page.locator(".answer .text").last).to_have_text(text)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def compare(page: Page, text: str = "greet") -> None:
    """Ask for two answers, and wait until they can be voted on."""
    page.get_by_role("button", name="Compare", exact=True).click()
    say(page, text)
    page.get_by_role("group", name="Which answer is better?").wait_for()


def wait_until_idle(live: Live) -> None:
    """Wait until the server writes nothing."""
    deadline = time.monotonic() + 60
    while not live.app.state.engine.idle():
        assert time.monotonic() < deadline, "the server still writes"
        time.sleep(0.02)


def had(live: Live, words: Iterable[str], title: str = "", system: str = "") -> str:
    """A conversation that somebody had: question and answer in turn. Returns its address on the page."""
    dialogues = ServeStore(live.store.database).dialogues
    conversation = dialogues.start("", title, system)
    parent = None
    for number, text in enumerate(words):
        role = "assistant" if number % 2 else "user"
        parent = dialogues.append("", conversation, parent, Message(role, text))
    return f"#/c/{conversation}"


def kept(live: Live, page: Page) -> dict:
    """What the server keeps of the conversation on the page."""
    return ServeStore(live.store.database).dialogues.read("", page.url.rpartition("/")[2])
