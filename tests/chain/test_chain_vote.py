"""The loop closes: a person votes in the page, and the next run's reward model is another one."""

import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import chromium
from person import command, danlu, weights
from playwright.sync_api import Browser

from danlu.align.preferences import PreferenceStore

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@contextlib.contextmanager
def served(run: Path, said: Path) -> Iterator[str]:
    """``danlu serve`` in a process of its own, which writes what it says to a file; gives its address."""
    with said.open("w") as told, subprocess.Popen(command("serve", run, "--port", 0), stderr=told) as server:
        try:
            yield address_of(server, said)
        finally:
            server.terminate()


def address_of(server: subprocess.Popen[bytes], said: Path) -> str:
    deadline = time.monotonic() + 120
    while not (told := re.search(r" at (http://\S+),", said.read_text())) or not answers(f"{told[1]}/healthz"):
        assert server.poll() is None, said.read_text()
        assert time.monotonic() < deadline, "the server does not start"
        time.sleep(0.1)
    return told[1]


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def vote(browser: Browser, address: str, question: str) -> None:
    """Ask in the page, look at two answers, choose the first one."""
    page = browser.new_page(locale="en-US")
    page.set_default_timeout(120_000)
    page.goto(address)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="First is better").click()
    page.get_by_role("status").wait_for()
    page.close()


def test_a_vote_in_the_page_remakes_the_reward_model_and_what_follows_and_nothing_before(tiny_run, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(tiny_run, out)
    before = weights(out)
    with served(out, tmp_path / "said") as address, chromium() as browser:
        for number in range(3):  # one prompt in some is held out of training by its hash
            vote(browser, address, f"Continue: The old man lit the lamp {number} times.")
    kept = PreferenceStore(out / "feedback" / "preferences.db").all()
    assert len(kept) == 3
    assert any(one.split == "train" and one.pairs() for one in kept)
    said = danlu("run", "tiny", "--out", out).stderr
    remade = {line.split()[0] for line in said.splitlines() if " done in " in line}
    assert remade == {"reward", "ppo", "compress", "eval"}
    assert "votes changed" in said
    after = weights(out)
    assert before["sft/model"] == after["sft/model"]
    assert before["reward/model"] != after["reward/model"]
    exported = tmp_path / "votes.jsonl"
    danlu("feedback", "export", out, exported)
    row = json.loads(exported.read_text(encoding="utf-8").splitlines()[0])
    assert {"prompt", "chosen", "rejected"} <= row.keys()
