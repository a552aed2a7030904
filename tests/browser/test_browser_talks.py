"""Conversations that the server keeps: found, named, deleted, edited, branched, taken away and brought back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_page import ANSWER, TWO_MODELS, answered, compare, had, kept, say
from playwright.sync_api import Page, expect

from danlu.records import read_conversations
from danlu.serve.store import ServeStore


def listed(page: Page, title: str):
    return page.get_by_role("link", name=title, exact=True)


def search(page: Page, words: str) -> None:
    with page.expect_response("**/api/conversations?*"):
        page.get_by_label("Search conversations").fill(words)


def test_what_is_said_appears_in_the_list_and_opens_again(open_page):
    page = open_page()
    say(page, "greet")
    answered(page)
    expect(page).to_have_title("greet · danlu")
    current = page.locator(".item.current")
    expect(current).to_have_text("greet")
    page.get_by_role("button", name="New conversation").click()
    page.locator(".welcome").wait_for()
    expect(page.get_by_label("Your message")).to_be_focused()
    page.locator(".item a").first.click()
    answered(page)
    page.go_back()
    page.locator(".welcome").wait_for()


def test_conversations_are_found_by_title_and_by_words(open_page, live):
    had(live, ["一句关于麒麟的话"], "Unicorns")
    page = open_page()
    search(page, "unicorn")
    expect(page.locator(".item")).to_have_text(["Unicorns"])
    search(page, "麒麟")
    expect(page.locator(".item")).to_have_text(["Unicorns"])
    search(page, "nothing like this")
    expect(page.get_by_text("Nothing found.")).to_be_visible()


def test_a_conversation_is_renamed(open_page, live):
    page = open_page(at=had(live, ["greet"], "Old name"))
    page.locator(".item.current").get_by_role("button", name="Rename").click()
    box = page.get_by_label("New title")
    box.fill("新的名字")
    box.press("Enter")
    expect(page.locator(".item.current")).to_have_text("新的名字")
    expect(page).to_have_title("新的名字 · danlu")
    assert kept(live, page)["title"] == "新的名字"
    page.locator(".item.current").get_by_role("button", name="Rename").click()
    page.get_by_label("New title").fill("never")
    page.keyboard.press("Escape")
    expect(page.locator(".item.current")).to_have_text("新的名字")


def test_a_conversation_is_deleted_from_the_list(open_page, live):
    gone = had(live, ["greet"], "To be deleted")
    page = open_page(at=gone)
    delete = page.locator(".item.current").get_by_role("button", name="Delete")
    delete.click()
    expect(listed(page, "To be deleted")).to_be_visible()
    page.locator(".item.current").get_by_role("button", name="Delete?").click()
    page.locator(".welcome").wait_for()
    expect(listed(page, "To be deleted")).to_have_count(0)
    page.evaluate("at => location.hash = at", gone)
    expect(page.get_by_role("alert")).to_contain_text("does not exist")
    page.locator(".welcome").wait_for()


def test_an_edited_message_is_another_version_and_the_old_one_stays(open_page, live):
    page = open_page()
    say(page, "attack")
    expect(page.locator(".answer .text")).to_contain_text("bold")
    page.locator(".prompt").hover()
    page.get_by_role("button", name="Edit").click()
    box = page.get_by_label("Edit your message")
    expect(box).to_be_focused()
    expect(box).to_have_value("attack")
    box.fill("greet")
    box.press("Enter")
    answered(page)
    expect(page.locator(".prompt p")).to_have_text("greet")
    expect(page.get_by_role("group", name="Version 2 of 2")).to_be_visible()
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".prompt p")).to_have_text("attack")
    expect(page.locator(".answer .text")).to_contain_text("bold")
    assert [one["parent"] for one in kept(live, page)["messages"] if one["role"] == "user"] == [None, None]
    page.reload()
    expect(page.locator(".prompt p")).to_have_text("greet")


def test_another_answer_stands_beside_the_first(open_page, live):
    page = open_page('{"temperature": 1, "model": "random", "max_tokens": 8}')
    say(page, "greet")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    first = page.locator(".answer .text").inner_text()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("group", name="Version 2 of 2")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_enabled()
    page.get_by_role("button", name="Previous version").click()
    assert page.locator(".answer .text").inner_text() == first
    say(page, "attack")  # goes on below the version that is shown
    expect(page.locator(".prompt")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_have_count(2)
    messages = kept(live, page)["messages"]
    assert messages[3]["parent"] == messages[1]["id"]


def test_an_answer_that_was_stopped_is_kept_and_the_conversation_goes_on(open_page, live, leisurely):
    page = open_page()
    say(page, "count")
    expect(page.locator(".answer .text")).to_contain_text("and on")
    page.keyboard.press("Escape")
    expect(page.locator(".answer")).to_contain_text("Stopped.")
    leisurely.undo()
    say(page, "greet")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(2)
    messages = kept(live, page)["messages"]
    assert messages[1]["finish_reason"] == "stopped"
    assert messages[2]["parent"] == messages[1]["id"]


def test_an_answer_goes_on_after_a_reload_and_is_stopped_there(open_page, live, leisurely):
    page = open_page()
    say(page, "count")
    text = page.locator(".answer .text")
    expect(text).to_contain_text("and on")
    page.reload()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(text).to_contain_text("and on")
    page.keyboard.press("Escape")
    expect(page.locator(".answer")).to_contain_text("Stopped.")
    leisurely.undo()
    say(page, "greet")
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    messages = kept(live, page)["messages"]
    assert messages[1]["finish_reason"] == "stopped"
    assert messages[2]["parent"] == messages[1]["id"]


def test_thumbs_and_their_reasons_are_given_by_keyboard_and_survive_a_reload(open_page, live):
    page = open_page()
    say(page, "greet")
    answered(page)
    good, bad = (page.get_by_role("button", name=f"{word} answer") for word in ("Good", "Bad"))
    bad.focus()
    page.keyboard.press("Enter")
    expect(bad).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Why?").fill("too short")
    page.keyboard.press("Enter")
    expect(bad).to_be_focused()
    expect(page.get_by_label("Why?")).to_have_count(0)
    page.reload()
    expect(bad).to_have_attribute("aria-pressed", "true")
    good.click()
    expect(good).to_have_attribute("aria-pressed", "true")
    expect(bad).to_have_attribute("aria-pressed", "false")
    page.get_by_role("status").wait_for()
    mine = page.evaluate("JSON.parse(localStorage.getItem('danlu.rater'))")
    (thumb,) = (one for one in live.store.thumbs() if one.rater == mine)
    assert (thumb.up, thumb.answer.text, thumb.prompt[0].content) == (True, ANSWER, "greet")


def test_what_the_model_noted_of_older_turns_is_shown(open_page, live):
    settings = '{"model": "random", "max_tokens": 8, "summarise": true}'
    page = open_page(settings, had(live, ["greet", ANSWER * 80] * 4))
    say(page, "greet")
    note = page.locator("details.note")
    expect(note).to_contain_text("messages no longer fit")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    note.locator("summary").click()
    expect(note.locator("blockquote")).to_be_visible()
    assert kept(live, page)["messages"][-1]["note"]["text"]
    page.reload()
    expect(note).to_contain_text("messages no longer fit")


def test_an_answer_goes_on_while_another_conversation_is_read(open_page, live, leisurely):
    at = had(live, ["greet", ANSWER], "Meanwhile")
    page = open_page()
    say(page, "count")
    expect(page.locator(".answer .text")).to_contain_text("and on")
    writing = page.url
    listed(page, "Meanwhile").click()
    expect(page.locator(".answer .text")).to_have_text(ANSWER)
    assert page.url.endswith(at)
    page.go_back()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert page.url == writing
    page.keyboard.press("Escape")
    expect(page.locator(".answer")).to_contain_text("Stopped.")


def test_the_arrow_up_edits_the_last_message(open_page, live):
    page = open_page(at=had(live, ["greet", ANSWER, "attack", "no"]))
    page.get_by_label("Your message").press("ArrowUp")
    box = page.get_by_label("Edit your message")
    expect(box).to_have_value("attack")
    box.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True})
    expect(box).to_be_visible()
    box.press("Escape")
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page.locator(".prompt")).to_have_count(2)


def test_a_chosen_answer_is_kept_with_who_wrote_it(open_page, live):
    page = open_page(TWO_MODELS)
    compare(page)
    with page.expect_response("**/messages"):
        page.get_by_role("button", name="Second is better").click()
    chosen = page.locator(".side.chosen")
    text, model = chosen.locator(".text").inner_text(), chosen.locator("footer strong").inner_text()
    answer = kept(live, page)["messages"][1]
    told = text.strip().removesuffix("The answer reached its length limit.").strip()
    assert answer["content"].strip() == told
    assert answer["model"] == model
    page.reload()  # this tab still knows what it stood beside
    expect(page.locator(".side.chosen .text")).to_have_text(text)


def test_about_an_answer(open_page):
    page = open_page('{"temperature": 0.5, "max_tokens": 3}')
    say(page, "greet")
    expect(page.get_by_text("The answer reached its length limit.")).to_be_visible()
    expect(page.locator(".brief")).to_contain_text("3 tokens · ")
    for _ in range(2):  # as it was written, and as it is kept
        page.get_by_role("button", name="About this answer").click()
        about = page.locator(".about")
        for words in ("knows · ", "3 tokens", "0.5", "of the length limit", "tokens/s"):
            expect(about).to_contain_text(words)
        page.reload()


def test_an_answer_that_the_filter_ended_says_so(open_page, live):
    dialogues = ServeStore(live.store.database).dialogues
    at = had(live, ["greet"])
    page = open_page(at=at)
    expect(page.get_by_text("No answer yet.")).to_be_visible()
    question = kept(live, page)["messages"][0]["id"]
    body = {"parent": question, "role": "assistant", "content": "", "model": "knows", "finish_reason": "content_filter"}
    posted = page.request.post(f"{live.url}/api/conversations/{at[4:]}/messages", data=body)
    assert posted.status == 201
    assert dialogues.read("", at[4:])["messages"][1]["finish_reason"] == "content_filter"
    page.reload()
    expect(page.get_by_text("The safety filter ended this answer.")).to_be_visible()


def test_what_is_copied(open_page, live):
    code = "```python\nprint(1)\n```"
    page = open_page(at=had(live, ["greet", code]), permissions=["clipboard-read", "clipboard-write"])
    page.locator(".answer .tools").get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == code
    page.locator(".code").get_by_role("button", name="Copy").click()
    expect(page.locator(".code .copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)\n"


def download(page: Page, button: str, place: Path) -> Path:
    with page.expect_download() as caught:
        page.get_by_role("button", name=button).click()
    path = place / caught.value.suggested_filename
    caught.value.save_as(path)
    return path


def test_a_conversation_is_taken_away_in_three_forms_and_brought_back(open_page, live, tmp_path):
    page = open_page(at=had(live, ["greet", ANSWER], "Taken/away", "Be kind."))
    page.get_by_label("Your message").press("ArrowUp")
    page.get_by_label("Edit your message").fill("attack")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("group", name="Version 2 of 2").get_by_role("button", name="Previous version").click()
    page.get_by_role("button", name="More", exact=True).click()
    markdown = download(page, "Markdown", tmp_path)
    assert markdown.name == "Taken away.md"
    assert markdown.read_text() == f"# Taken/away\n\n## User\n\ngreet\n\n## Assistant\n\n{ANSWER}\n"
    lines = download(page, "Training data", tmp_path)
    (learnt,), _ = read_conversations(lines)
    assert [(one.role, one.content) for one in learnt.messages] == [
        ("system", "Be kind."), ("user", "greet"), ("assistant", ANSWER),
    ]  # fmt: skip
    whole = download(page, "JSON, every version", tmp_path)
    before = kept(live, page)
    assert json.loads(whole.read_text())["conversations"] == [before]

    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Import JSON").set_input_files(whole)
    expect(page.get_by_role("status")).to_have_text("Imported: 1")
    page.locator(".item a").first.click()
    expect(page.locator(".prompt p")).to_have_text("attack")
    after = kept(live, page)
    assert after["id"] != before["id"]
    told = ("role", "content", "model", "finish_reason", "seed", "usage")
    assert [[one.get(name) for name in told] for one in after["messages"]] == [
        [one.get(name) for name in told] for one in before["messages"]
    ]
    assert after["system"] == "Be kind."


def test_a_file_that_is_no_conversation_changes_nothing(open_page, live, tmp_path):
    page = open_page()
    page.get_by_role("button", name="Settings").click()
    for number, text in enumerate(['{"format": "else"}', "[", '{"format": "danlu-conversations", "version": 1}']):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        page.get_by_label("Import JSON").set_input_files(file)
        expect(page.get_by_role("status")).to_contain_text("nothing was imported")


def test_instructions_belong_to_their_conversation(open_page, live):
    page = open_page('{"temperature": 0, "system": "Be brief."}')
    say(page, "greet")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert kept(live, page)["system"] == "Be brief."
    page.get_by_role("button", name="Settings").click()
    box = page.get_by_label("Instructions for this conversation")
    expect(box).to_have_value("Be brief.")
    with page.expect_response("**/api/conversations/*"):
        box.fill("Be long.")
        box.blur()
    assert kept(live, page)["system"] == "Be long."
    page.keyboard.press("Escape")
    page.get_by_role("button", name="New conversation").click()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Instructions for new conversations")).to_have_value("Be brief.")


def test_everything_that_was_said_is_deleted_at_once(open_page, live):
    had(live, ["greet", ANSWER], "One of many")
    page = open_page(TWO_MODELS)
    compare(page)
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Delete all my conversations").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Delete all of them for good?")).to_be_focused()
    dialogues = ServeStore(live.store.database).dialogues
    assert dialogues.listing("")[0], "it did not ask before"
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("left on the server")
    assert dialogues.listing("") == ([], False)
    expect(page.get_by_text("listed here")).to_be_visible()


@pytest.mark.parametrize("room", ["Runs", "Rank", "Operator"])
def test_the_other_rooms_are_a_link_away(open_page, room):
    page = open_page()
    page.get_by_role("link", name=room).click()
    expect(page.get_by_role("heading", name=room).first).to_be_visible()
    page.go_back()
    page.locator(".welcome").wait_for()
