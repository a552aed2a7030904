"""Pictures of the page for the documents: ``python scripts/screenshots.py runs/tang``.

In:  a run whose models can be served; the page, built; Chromium, as scripts/install-browser.sh installs it.
Out: docs/screens/{light,dark,phone,compare,runs}.png, of what these models really answer.
Left out: anything that is checked (tests/browser).
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from playwright.sync_api import Browser, Page, sync_playwright

SCREENS = Path(__file__).parents[1] / "docs/screens"
CHROMIUM = "/usr/bin/chromium"
MOST_BYTES = 150_000
DESK = {"viewport": {"width": 1120, "height": 700}}
PHONE = {"viewport": {"width": 360, "height": 720}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The run behind a server of its own, with a store that is thrown away; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        danlu = Path(sys.executable).with_name("danlu")
        command = [str(danlu), "serve", str(run), "--port", str(port), "--store", f"{folder}/votes.db"]
        with subprocess.Popen(command) as server:
            try:
                while not alive(address):
                    if server.poll() is not None:
                        sys.exit(f"{run} could not be served; see above")
                    time.sleep(0.2)
                yield address
            finally:
                server.terminate()


def alive(address: str) -> bool:
    """Whether the server answers."""
    try:
        with urlopen(f"{address}/healthz") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(page: Page, which: int) -> None:
    """Choose one of the things to try in a new conversation, and wait for the whole answer."""
    page.get_by_role("button", name=re.compile("New conversation|新对话")).click()
    page.locator(".suggestions button").nth(which).click()
    page.locator(".brief").last.wait_for()


def light(page: Page) -> None:
    """A conversation of two turns, beside others."""
    for which in (3, 2, 1, 0):
        ask(page, which)
    page.locator("#draft").fill("再写一首")
    page.keyboard.press("Enter")
    page.locator(".brief").nth(1).wait_for()


def dark(page: Page) -> None:
    """The same at night and in Chinese, with what is known of an answer."""
    page.locator(".item a").first.click()
    page.get_by_label("关于这个回答").last.click()


def compare(page: Page) -> None:
    """Two answers after the vote."""
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".suggestions button").first.click()
    page.get_by_role("button", name="First is better").click()
    page.locator(".side footer").first.wait_for()


def phone(page: Page) -> None:
    """The last conversation, in a hand."""
    ask(page, 1)


def runs(page: Page) -> None:
    """How the model came about."""
    page.goto(f"{page.url.partition('#')[0]}#/runs")
    page.locator("main canvas").first.wait_for()


SHOTS: dict[str, tuple[Callable[[Page], None], dict[str, Any]]] = {
    "light": (light, {**DESK, "locale": "en-US"}),
    "dark": (dark, {**DESK, "locale": "zh-CN", "color_scheme": "dark"}),
    "phone": (phone, {**PHONE, "locale": "zh-CN"}),
    "compare": (compare, {**DESK, "locale": "en-US"}),
    "runs": (runs, {**DESK, "locale": "en-US"}),
}


def shoot(browser: Browser, address: str, name: str) -> None:
    """Take one picture."""
    act, options = SHOTS[name]
    page = browser.new_context(**options, reduced_motion="reduce").new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    page.locator(".suggestions button").first.wait_for()
    act(page)
    page.mouse.move(600, 400)
    page.wait_for_timeout(500)  # fonts and fading
    path = SCREENS / f"{name}.png"
    page.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes{', more than it should be' * (size > MOST_BYTES)}")
    page.context.close()


def main() -> None:
    """Serve the run that is named and take every picture."""
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/screenshots.py RUN")
    SCREENS.mkdir(parents=True, exist_ok=True)
    with served(Path(sys.argv[1])) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name in SHOTS:
            shoot(browser, address, name)


if __name__ == "__main__":
    main()
