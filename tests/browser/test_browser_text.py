"""What answers may hold: code in colours, formulas, tables; and what they may never do."""

from __future__ import annotations

import gzip
from pathlib import Path

from chat_page import had, kept, say
from hostile import HOSTILE
from playwright.sync_api import expect

STATIC = Path(__file__).parents[2] / "src/danlu/serve/static"
MOST_COMPRESSED = 300_000
BACKTICKS = "```"
# What people's and models' words have become in the page that could act, or stand for something of the page's own.
ACTS = """() => {
    const places = [...document.querySelectorAll("main .text, main .prompt, .item a")];
    const within = (what) => places.flatMap((place) => [...place.querySelectorAll(what)]);
    const bad = "script, iframe, object, embed, img, form, input, style, link, base, meta";
    const told = (elements) => elements.map((one) => one.outerHTML);
    const acts = (one) => [...one.attributes].some(({ name }) => name.startsWith("on"));
    return {
        pwned: window.pwned ?? null,
        elements: told([...within(bad), ...within("svg").filter((one) => !one.closest(".katex"))]),
        handlers: told(within("*").filter(acts)),
        links: within("a").map((one) => one.protocol).filter((one) => !["http:", "https:", "mailto:"].includes(one)),
        ids: told(within("[id], [name]")),
    };
}"""


def answer(page):
    return page.locator(".answer .text").last


def test_code_is_coloured_in_the_language_it_names_or_the_one_it_looks_like(open_page, live):
    named = f"{BACKTICKS}python\ndef f(x):\n    return 'a' + x  # why\n{BACKTICKS}"
    guessed = f"{BACKTICKS}\nSELECT name FROM people WHERE age > 40 ORDER BY name;\n{BACKTICKS}"
    unknown = f"{BACKTICKS}klingon\ndef f(x): return x\n{BACKTICKS}"
    page = open_page(at=had(live, ["?", f"{named}\n\n{guessed}\n\n{unknown}"]))
    blocks = answer(page).locator("pre code")
    expect(blocks.nth(0).locator(".hljs-keyword").first).to_have_text("def")
    expect(blocks.nth(0).locator(".hljs-comment")).to_have_text("# why")
    expect(blocks.nth(1).locator(".hljs-keyword").first).to_have_text("SELECT")
    expect(blocks.nth(2).locator("span")).to_have_count(0)
    expect(answer(page).locator(".bar span")).to_have_text(["python", "", "klingon"])


def test_code_that_is_long_is_left_as_it_is(open_page, live):
    guessed = "x = 1  # why\n" * 400  # above 5,000 characters no language is guessed
    named = "x = 1  # why\n" * 4000  # above 50,000 nothing is coloured
    page = open_page(at=had(live, ["?", f"{BACKTICKS}\n{guessed}{BACKTICKS}\n\n{BACKTICKS}python\n{named}{BACKTICKS}"]))
    expect(answer(page).locator("code.hljs")).to_have_count(2)
    expect(answer(page).locator("code span")).to_have_count(0)


def test_formulas_are_drawn_and_can_be_listened_to(open_page, live):
    inline = "Inline $a^2$ and \\(b\\), displayed:"
    displayed = "$$\n\\frac{1}{n}\n$$\n\n\\[ 盒 + \\pmb{x} + \\fcolorbox{red}{blue}{y} \\]"
    none = "No formula: $\\frac{1$, $5 and $6."
    page = open_page(at=had(live, ["?", f"{inline}\n\n{displayed}\n\n{none}"]))
    expect(answer(page).locator(".katex")).to_have_count(4)
    expect(answer(page).locator(".katex-display")).to_have_count(2)
    expect(answer(page).locator(".katex math")).to_have_count(4)
    expect(answer(page).locator(".undrawable")).to_have_text("\\frac{1")
    expect(answer(page)).to_contain_text("$5 and $6.")
    fonts = "[...document.fonts].filter(({ status }) => status == 'loaded').map(({ family }) => family)"
    assert "KaTeX_Main" in str(page.evaluate(f"document.fonts.ready.then(() => {fonts})"))


def test_a_question_with_markup_is_shown_as_it_was_typed(open_page, live):
    page = open_page(at=had(live, ["**a** $b$\n\n```\nc\n```"]))
    expect(page.locator(".prompt p")).to_have_text("**a** $b$\n\n```\nc\n```")
    expect(page.locator(".prompt p > *")).to_have_count(0)


def test_libraries_are_loaded_by_those_who_need_them_only(open_page, live):
    page = open_page(at=had(live, ["greet", "plain"]))
    names = "performance.getEntriesByType('resource').map((one) => one.name).join()"
    assert not any(library in page.evaluate(names) for library in ("code-", "formula-"))
    page.evaluate("at => location.hash = at", had(live, ["greet", "$x$"]))
    page.locator(".katex").wait_for()
    assert "formula-" in page.evaluate(names)
    assert "code-" not in page.evaluate(names)


def test_the_whole_page_stays_small():
    """Everything there is to load, libraries for code and formulas too, but not the formulas' fonts."""
    files = [file for file in STATIC.rglob("*") if file.suffix in {".html", ".js", ".css", ".svg"}]
    sizes = {file.name: len(gzip.compress(file.read_bytes(), 6)) for file in files}
    assert len(sizes) > 6
    assert sum(sizes.values()) < MOST_COMPRESSED, sizes
    assert {file.suffix for file in STATIC.rglob("*.*") if "KaTeX" in file.name} == {".woff2"}


def test_nothing_that_is_said_can_act(open_page, live):
    """Sixty payloads, each as a title, a question and an answer; conftest watches for errors, dialogs and requests."""
    assert len(HOSTILE) >= 40
    for start in range(0, len(HOSTILE), 16):
        some = HOSTILE[start : start + 16]
        page = open_page(at=had(live, [text for text in some for _ in range(2)], some[0]))
        expect(page.locator(".answer")).to_have_count(len(some))
        for question, text in zip(page.locator(".prompt p").all(), some, strict=True):
            shown = question.evaluate("place => place.textContent")
            assert shown.replace("\x00", "") == text.replace("\x00", "")  # not every database can keep it
        page.mouse.move(600, 400)
        assert page.evaluate(ACTS) == {"pwned": None, "elements": [], "handlers": [], "links": [], "ids": []}


def test_what_grows_is_as_safe_as_what_stands(open_page, live):
    page = open_page()
    say(page, "attack")
    expect(answer(page)).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert kept(live, page)["messages"][1]["content"].startswith("<img")
    assert page.locator("main .text img, main .text [href^=javascript]").count() == 0
