"""Pictures of the page of a running graph: a feed that turns, and the page as it stands on a desk and on a phone."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import httpx
from PIL import Image
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

from rayapp.client.session import Session
from rayapp.contracts.errors import RayappError

DESK: Final = {"width": 1120, "height": 760}
PHONE: Final = {"width": 360, "height": 780}
NUM_ACTIONS: Final = 3
NUM_COMMON: Final = 10
MOVE_MS: Final = 680
"""Of the page's own animation, from its start to its end."""
FRAME_MS: Final = 60
LOOK_MS, READ_MS, END_MS = 500, 1400, 3500
MAX_BYTES: Final = 1_500_000
QUALITIES: Final = (80, 65, 50, 35)

# Animations stand still until a frame asks for their next moment: a screenshot takes longer than one is shown. The ring
# shows where somebody clicks. Neither is a part of the page.
STAGE: Final = """
const animate = Element.prototype.animate;
window.held = [];
Element.prototype.animate = function (...how) {
  const animation = animate.apply(this, how);
  animation.pause();
  window.held.push(animation);
  return animation;
};
window.moment = (ms) => window.held.forEach((animation) => { animation.currentTime = ms; });
window.point = (x, y) => {
  window.ring?.remove();
  window.ring = document.createElement('div');
  Object.assign(window.ring.style, { position: 'fixed', left: `${x - 15}px`, top: `${y - 15}px`, width: '30px',
    height: '30px', border: '4px solid #e5484d', borderRadius: '50%', zIndex: 9 });
  document.body.append(window.ring);
};
window.unpoint = () => { window.ring?.remove(); window.held = []; };
"""


class PageError(RayappError):
    """The pictures can't be made; the message says what is missing."""


class Film:
    """Frames of one page, each with how long it is shown."""

    def __init__(self, page: Page) -> None:
        self._page, self._frames, self._lasting_ms = page, list[Image.Image](), list[int]()

    def take(self, lasting_ms: int) -> None:
        self._frames.append(Image.open(io.BytesIO(self._page.screenshot())).convert("RGB"))
        self._lasting_ms.append(lasting_ms)

    def moving(self) -> None:
        """The cards on their way."""
        for moment_ms in range(0, MOVE_MS + 1, FRAME_MS):
            self._page.evaluate("window.moment", moment_ms)
            self.take(FRAME_MS)

    def save(self, path: Path) -> None:
        """As an animated WebP of at most MAX_BYTES, as good as that allows.

        Raises:
            PageError: it does not.
        """
        first, *rest = self._frames
        for quality in QUALITIES:
            first.save(path, save_all=True, append_images=rest, duration=self._lasting_ms, loop=0, quality=quality)
            if path.stat().st_size <= MAX_BYTES:
                return
        raise PageError(f"{path} has {path.stat().st_size:,} bytes even at quality {QUALITIES[-1]}; act less")


def run_page(url: str, out: Path) -> None:
    """Drives the page at `url` and writes the pictures into `out`."""
    with httpx.Client(base_url=url, timeout=30) as client, _browser() as browser:
        try:
            domain = client.get("/v1/domain").raise_for_status().json()
        except httpx.HTTPError as error:
            raise PageError(f"{url} does not show a feed ({error}); start one: rayapp demo") from None
        kind, titles = _plan(client, domain)
        out.mkdir(parents=True, exist_ok=True)
        click.echo(f"a new user, then {NUM_ACTIONS} positive actions on {kind}: {', '.join(titles)}")
        user = _turning(browser, url, domain, titles, out / "turning.webp")
        for name, size, scheme in (("light", DESK, "light"), ("dark", DESK, "dark"), ("phone", PHONE, "light")):
            with _opened(browser, f"{url}/#user={user}", size, scheme) as page:
                page.screenshot(path=out / f"{name}.png")
    for path in sorted(out.iterdir()):
        click.echo(f"{path}: {path.stat().st_size:,} bytes")


def _plan(client: httpx.Client, domain: dict[str, Any]) -> tuple[str, list[str]]:
    """Of the most common categories, the one that a new user's feed shows least; titles of popular items of it."""
    attribute, values = next(iter(domain["categories"].items()), ("", []))
    if not values:
        raise PageError("the items have no categories, so nobody would see what the feed turns to")
    title = domain["title"]
    asked: dict[str, Any] = {"user_id": Session(client).user_id, "fields": [title, attribute]}

    def feed(**more: Any) -> list[dict[str, Any]]:
        answer = client.post("/v1/recommendations", json={**asked, **more}).raise_for_status().json()
        return [row["fields"] for row in answer["items"]]

    shown = feed(num_results=10)
    common = [row["value"] for row in values[:NUM_COMMON]]
    kind = min(common, key=lambda value: sum(value in (fields[attribute] or ()) for fields in shown))
    pure = sorted(feed(num_results=60, filter={attribute: [kind]}), key=lambda fields: len(fields[attribute]))
    return kind, [str(fields[title]) for fields in pure if fields[title]][:NUM_ACTIONS]


def _turning(browser: Browser, url: str, domain: dict[str, Any], titles: list[str], path: Path) -> str:
    """The animated picture; returns the user whose feed it shows."""
    action = [each["name"] for each in domain["actions"] if each["kind"] == "positive" and each["in_sequence"]][-1]
    with _opened(browser, url, DESK, "light", staged=True) as page:
        film = Film(page)
        page.evaluate("window.moment", MOVE_MS)
        film.take(READ_MS)
        for title in titles:
            page.locator("#query").fill(title)
            found = page.locator("#found li").filter(has=page.get_by_text(title, exact=True)).first
            button = found.locator(f"[data-action='{action}']")
            expect(button).to_be_visible()
            film.take(LOOK_MS)
            _act(page, film, button)
        film.take(END_MS)
        user = page.text_content("#user") or ""
        film.save(path)
        return user


def _act(page: Page, film: Film, button: Locator) -> None:
    """A click, and the cards that move after it."""
    box = button.bounding_box()
    assert box is not None
    page.evaluate("([x, y]) => window.point(x, y)", [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    film.take(LOOK_MS)
    page.evaluate("window.unpoint()")
    done = page.locator("#past li").count()
    button.click()
    expect(page.locator("#past li")).to_have_count(done + 1)
    film.moving()
    film.take(READ_MS)


@contextmanager
def _browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        raise PageError("there is no chromium on this machine; apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        except Error as error:
            raise PageError(f"the page does not do what is wanted of it: {error.message.splitlines()[0]}") from None
        finally:
            browser.close()


@contextmanager
def _opened(browser: Browser, address: str, size: Any, scheme: Any, *, staged: bool = False) -> Iterator[Page]:
    motion: Any = "no-preference" if staged else "reduce"
    page = browser.new_page(viewport=size, color_scheme=scheme, reduced_motion=motion)
    if staged:
        page.add_init_script(STAGE)
    page.goto(address)
    page.locator("#feed .card").first.wait_for()
    page.locator(".dot.ok").wait_for()
    yield page
    page.close()
