"""The feed turns under a person's hands: the page, in a real browser, over a world whose models learnt something."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from rayapp.loop.artifacts import Prepared
from tests.browser import chromium, opened, serving, share

pytestmark = pytest.mark.cluster  # the models are trained by Ray
NUM_ACTIONS = 5


def act(page: Page, action: str, kind: str) -> None:
    """Does that to the first card of that kind, and waits for the feed that follows."""
    done = page.locator("#past li").count()
    card = page.locator("#feed .card").filter(has=page.locator(".chips li", has_text=kind)).first
    with page.expect_response("**/v1/recommendations"):
        card.get_by_role("button", name=action).click()
    expect(page.locator("#past li")).to_have_count(done + 1)


def test_five_saves_of_a_kind_bring_more_of_it_and_five_hides_take_it_away(world: tuple[Path, Prepared]) -> None:
    root, prepared = world
    with serving(root, prepared.domain) as server, chromium() as browser, opened(browser, server.url) as page:
        expect(page.locator("#feed .card")).to_have_count(12)
        kinds = page.locator("#only option").evaluate_all(
            "options => options.map((each) => each.value).filter(Boolean)"
        )
        kind = min(kinds, key=lambda each: (share(page, each), each))
        before = share(page, kind)
        page.get_by_label("Only").select_option(kind)
        expect(page.locator("#feed .card").filter(has=page.locator(".chips li", has_text=kind))).to_have_count(12)
        for _ in range(NUM_ACTIONS):
            act(page, "save", kind)
        page.get_by_label("Only").select_option("")
        expect(page.locator("#mix li")).not_to_have_count(1)
        after = share(page, kind)
        assert after >= before + 0.2
        for _ in range(NUM_ACTIONS):
            if share(page, kind):  # else the feed has learnt it already
                act(page, "hide", kind)
        assert share(page, kind) < after
