"""The built page in a real Chromium, on a real server with a model that knows its answers."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from chromium import chromium
from live_server import guarded, live, model_dirs, one_thread
from playwright.sync_api import Browser, Page

from danlu.infer.batching import Event
from danlu.infer.engine import Engine

__all__ = ["guarded", "live", "model_dirs", "one_thread"]  # fixtures
ROOT = Path(__file__).parents[2]
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
    window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session", autouse=True)
def built_page() -> None:
    """The page of these very sources; a no-op where it is up to date."""
    _module("danlu_tests_hatch_build", ROOT / "hatch_build.py").build_page(ROOT)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def open_page(browser: Browser, built_page: None, live) -> Iterator[Callable[..., Page]]:
    """Open the page; whatever a test does, nothing may break the content policy, fail or ask another server."""
    contexts, problems = [], []

    def open_(settings: str = '{"temperature": 0}', at: str = "", **options) -> Page:
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1200, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(60_000)
        context.add_init_script(WATCH)
        context.add_init_script(
            f"localStorage.getItem('danlu.settings') ?? localStorage.setItem('danlu.settings', '{settings}')"
        )
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(live.url) or problems.append(f"asked {request.url}"))
        page.goto(f"{live.url}/{at}")
        page.wait_for_selector(".turn" if at else ".welcome")
        return page

    yield open_
    for context in contexts:
        for page in context.pages:
            problems += page.evaluate("window.violations")
        context.close()
    assert not problems


@pytest.fixture
def leisurely(monkeypatch):
    """Answers take their time, as those of models that are not tiny do: a token takes a fiftieth of a second."""
    step = Engine.step

    def slowly(engine: Engine) -> list[Event]:
        time.sleep(0.02)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slowly)
    return monkeypatch  # whose ``undo`` ends it
