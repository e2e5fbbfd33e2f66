"""The page at `/` in a real browser, over real HTTP: what it shows, to whom, and what it does when the graph is short
of something. `test_page_turns.py` shows the feed turn."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from deployments.page import HEADERS
from rayapp.contracts.config import Domain, Head
from rayapp.contracts.schema import Action, ActionKind, Vocabulary
from rayapp.serving.keys import Role, add_key
from tests.browser import Server, chromium, opened, serious, serving, titles
from tests.conftest import until
from tests.redis_server import free_port, start, stop
from tests.tiny_models import publish_models

pytestmark = pytest.mark.slow
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
RIGHT_TO_LEFT = "\u05de\u05e1\u05e2 \u05d0\u05dc \u05d4\u05db\u05d5\u05db\u05d1\u05d9\u05dd \u202eabc"
EMOJI = "\U0001f3ac\U0001f3f3\ufe0f\u200d\U0001f308 " + "wide" * 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, domain: Domain) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("page")
    publish_models(root, domain)
    with serving(root, domain) as running:
        yield running


def put(server: Server, item_id: str, **changes: Any) -> None:
    item = {"title": item_id, "genres": ["g1"], "year": 2001.0, **changes}
    assert httpx.put(f"{server.url}/v1/items/{item_id}", json=item).status_code == 200


def search(page: Page, query: str) -> None:
    page.get_by_role("searchbox", name="Find an item").fill(query)


def test_an_action_changes_the_feed_and_is_told(server: Server, browser: Browser) -> None:
    with opened(browser, server.url) as page:
        expect(page.locator("#feed .card")).to_have_count(12)
        expect(page.locator("#change")).to_contain_text("Nothing is stored of this user")
        before = titles(page)
        second = page.locator("#feed .card").nth(1)
        save = second.get_by_role("button", name=f"save {before[1]}")
        assert second.get_by_role("button").all_text_contents() == [
            f"{a} {before[1]}" for a in ("click", "save", "hide")
        ]
        save.focus()
        page.keyboard.press("Enter")
        told = re.compile(rf"save on {before[1]} → feed changed in \d+ ms · \d+ new, \d+ moved")
        expect(page.locator("#change")).to_contain_text(told)
        expect(page.locator("#past li")).to_contain_text(["save"])
        assert page.locator("#past .what").all_text_contents() == [before[1]]
        assert before[1] not in titles(page)
        focused = page.evaluate("document.activeElement.dataset.action")
        assert focused == "save", "the keyboard goes on where it was"
        user = page.text_content("#user")
        page.reload()
        expect(page.locator("#user")).to_have_text(str(user))
        expect(page.locator("#past li")).to_have_count(1)


def test_names_from_outside_stay_text(server: Server, browser: Browser) -> None:
    for name, title in (("hostile", HOSTILE), ("rtl", RIGHT_TO_LEFT), ("emoji", EMOJI)):
        put(server, f"odd-{name}", title=title, genres=[HOSTILE, RIGHT_TO_LEFT])
    put(server, "odd-untitled", title=None, genres=None, year=None)
    httpx.post(f"{server.url}/v1/events", json=event("<b>ann</b>", "odd-hostile"))
    with opened(browser, f"{server.url}/#user=%3Cb%3Eann%3C%2Fb%3E", viewport={"width": 360, "height": 780}) as page:
        expect(page.locator("#user")).to_have_text("<b>ann</b>")
        search(page, "odd-")
        expect(page.locator("#found li")).to_have_count(4)
        told = {text.strip() for text in page.locator("#found .what").all_text_contents()}
        assert told == {HOSTILE, RIGHT_TO_LEFT, EMOJI.strip(), "untitled (odd-untitled)"}
        for place in range(4):
            page.locator("#found li").nth(place).get_by_role("button", name="click").click()
            expect(page.locator("#past li")).to_have_count(place + 2)
        assert HOSTILE in str(page.text_content("#past"))
        assert page.locator("img, #past script, #found script, #feed script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_is_readable_and_fits(server: Server, browser: Browser, scheme: Any, width: int) -> None:
    with opened(browser, server.url, color_scheme=scheme, viewport={"width": width, "height": 900}) as page:
        page.locator("#feed .card").first.get_by_role("button", name="hide").click()
        expect(page.locator("#past li")).to_have_count(1)
        search(page, "film 1")
        page.locator("#found li").first.wait_for()
        page.locator(".who summary").click()
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_why_an_item_is_here(server: Server, browser: Browser) -> None:
    with opened(browser, server.url, faults=True) as page:  # a graph that can't explain answers 404 once
        card = page.locator("#feed .card").first
        card.locator(".why summary").click()
        expect(card.locator(".reasons")).to_contain_text("Found because it is")
        expect(card.locator(".heads li")).to_have_count(2)
        assert serious(page) == []


def test_another_model_stands_beside_and_gets_the_same_actions(
    server: Server, browser: Browser, domain: Domain
) -> None:
    from rayapp.registry.aliases import promote

    promote(server.graph.service.root, "no-sequence", "b")  # type: ignore[union-attr]
    server.stop()
    server.start()
    with opened(browser, server.url) as page:
        page.get_by_label("Compare with").select_option("no-sequence")
        expect(page.locator("#other-feed .card")).to_have_count(12)
        acted = titles(page)[0]
        page.locator("#feed .card").first.get_by_role("button", name="save").click()
        expect(page.locator("#change")).to_contain_text("feed changed")
        expect(page.locator("#other-title")).to_have_text(
            re.compile(r"\d+ items that this page has seen, by no-sequence")
        )
        expect(page.locator("#served-title")).to_have_text("The served feed, by a")
        expect(page.locator("#other-feed h3").get_by_text(acted, exact=True)).to_have_count(0)
        assert serious(page) == []
        boxes = [page.locator(name).bounding_box() for name in ("#feed", "#other-feed")]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]  # type: ignore[index]


def test_a_graph_that_goes_away_and_comes_back_under_an_open_page(server: Server, browser: Browser) -> None:
    with opened(browser, server.url, faults=True) as page:
        expect(page.locator("#feed .card")).to_have_count(12)
        server.stop()
        expect(page.get_by_role("alert").filter(has_text="No feed can be answered now")).to_be_visible()
        page.locator("#feed .card").first.get_by_role("button", name="save").click()
        expect(page.get_by_role("alert").filter(has_text="The graph does not answer")).to_be_visible()
        server.start()
        expect(page.locator("#notice")).to_be_hidden()
        page.locator("#feed .card").first.get_by_role("button", name="save").click()
        expect(page.locator("#past li")).to_have_count(1)


def test_a_swap_of_the_model_is_told_while_one_watches(server: Server, browser: Browser) -> None:
    with opened(browser, server.url) as page:
        expect(page.locator("#model")).to_have_text("served by a")
        page.locator(".dot.ok").wait_for()
        live = server.graph.service.live  # type: ignore[union-attr]
        live.version, live.previous = "b", "a"  # as `Live.follow` does when the stages hold the new champion
        expect(page.locator("#change")).to_have_text("The model was swapped: a → b.")
        expect(page.locator("#model")).to_have_text("served by b")
        live.version, live.previous = "a", "b"


def test_a_degraded_feed_says_what_it_lacks(browser: Browser, domain: Domain, tmp_path: Path) -> None:
    publish_models(tmp_path, domain)
    port = free_port()
    redis = start(tmp_path / "redis", port)
    try:
        address = f"redis://127.0.0.1:{port}/0"
        with serving(tmp_path, domain, store=address) as server, opened(browser, server.url, faults=True) as page:
            expect(page.locator("#feed .card")).to_have_count(12)
            stop(redis)
            page.get_by_role("button", name="Become a new user").click()
            expect(page.locator("#change")).to_contain_text("Degraded: the store")
            expect(page.locator("#feed .card")).to_have_count(12)
            expect(page.get_by_role("alert").filter(has_text="The store does not take or answer")).to_be_visible()
    finally:
        stop(redis)


def test_a_domain_of_one_action_ten_thousand_categories_and_then_no_item(
    browser: Browser, domain: Domain, tmp_path: Path
) -> None:
    narrow = dataclasses.replace(
        domain,
        vocabulary=Vocabulary((Action(name="play", kind=ActionKind.POSITIVE),)),
        heads=(Head(name="play", actions=("play",), utility=1.0),),
        positive_head="play",
    )
    publish_models(tmp_path, narrow)
    ids = [f"i{n}" for n in range(30)]
    with serving(tmp_path, narrow) as server, httpx.Client(base_url=server.url) as client:
        rows = [
            {"item_id": f"many-{n}", "title": f"many {n}", "genres": [f"kind {n}-{k}" for k in range(32)], "year": None}
            for n in range(320)
        ]
        assert client.post("/v1/items", json=rows).json()["accepted"] == 320
        with opened(browser, server.url) as page:
            expect(page.locator("#feed .card").first.get_by_role("button")).to_have_count(1)
            until(lambda: len(client.get("/v1/domain").json()["categories"]["genres"]) == 200, 20)
            page.reload()
            expect(page.locator("#only option")).to_have_count(61)
            page.get_by_label("Only").select_option("g2")
            expect(page.locator("#mix li")).to_have_count(1)
            for item_id in (*ids, *(row["item_id"] for row in rows)):
                client.delete(f"/v1/items/{item_id}")
            asked = {"user_id": "nobody", "num_results": 12}
            until(lambda: not client.post("/v1/recommendations", json=asked).json()["items"], 20)
            page.get_by_label("Only").select_option("")
            expect(page.locator("#feed .card")).to_have_count(0)
            expect(page.locator("#empty")).to_contain_text("the catalogue is empty")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser, domain: Domain, tmp_path: Path) -> None:
    publish_models(tmp_path, domain)
    key = add_key(tmp_path, "ann", Role.CLIENT)
    with serving(tmp_path, domain, keys=True) as server, opened(browser, server.url, faults=True) as page:
        for typed, problem in (("nonsense", ""), (key, "The graph does not know this key.")):
            expect(page.locator("#key-problem")).to_have_text(problem)
            page.get_by_role("textbox", name="API key").fill(typed)
            page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#feed .card")).to_have_count(12)
        assert page.evaluate("[Object.values(localStorage), document.cookie, location.href.includes('key')]") == [
            [],
            "",
            False,
        ]


def test_the_page_is_static_guarded_and_kept_by_its_etag(server: Server) -> None:
    index = httpx.get(server.url)
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    own = set(re.findall(r'(?:src|href)="(/web/[^"]+)"', index.text))
    assert own == {"/web/main.js", "/web/style.css"}
    modules = {"/web/main.js"}
    for _ in range(4):
        modules |= {
            name for path in modules for name in re.findall(r"from '([^']+)'", httpx.get(server.url + path).text)
        }
    assert len(modules) >= 5
    for path in {"/", *own, *modules}:
        answer = httpx.get(server.url + path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        again = httpx.get(server.url + path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|eval\(|https?://(?!www\.w3\.org)", answer.text
        )
    assert httpx.get(f"{server.url}/web/nothing.js").status_code == 404
    assert httpx.get(f"{server.url}/web/..%2F__init__.py").status_code == 404


def event(user_id: str, item_id: str) -> dict[str, Any]:
    return {"user_id": user_id, "item_id": item_id, "action": "save", "timestamp_ms": 1_790_000_000_000}
