"""A browser and the pages it opens, and the API over real HTTP that stays up or goes away when a test says so."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from deployments.ingress import build_api
from rayapp.contracts.config import Domain
from rayapp.launch.ports import free_port
from tests.api_in_process import Running, running

WAIT_S = 30
AXE = Path(__file__).parent / "data" / "axe.min.js"
"""axe-core 4.12.1, as the package axe-playwright-python holds it."""


class Server:
    """The API over the very stages that Serve runs, on one port of loopback."""

    def __init__(self, root: Path, domain: Domain, **options: Any) -> None:
        self._root, self._domain, self._options, self.port = root, domain, options, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.graph: Running | None = None

    def start(self) -> None:
        up = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(up)))
        self._thread.start()
        assert up.wait(WAIT_S)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(WAIT_S)

    async def _serve(self, up: threading.Event) -> None:
        async with running(self._root, self._domain, **self._options) as self.graph:
            api = build_api(self.graph.service)
            server = uvicorn.Server(uvicorn.Config(api, port=self.port, log_level="critical"))
            task = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110  # uvicorn tells in no other way
                await asyncio.sleep(0.01)
            up.set()
            await asyncio.to_thread(self._stop.wait)
            server.should_exit = True
            await task


@contextmanager
def serving(root: Path, domain: Domain, **options: Any) -> Iterator[Server]:
    server = Server(root, domain, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium: apt-get install chromium")
    expect.set_options(timeout=WAIT_S * 1000)  # the machine may be busy; what is awaited comes or does not
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, *, faults: bool = False, **options: Any) -> Iterator[Page]:
    """A page in a context of its own. It asks its own origin alone, and unless the test brings faults nothing fails."""
    context = browser.new_context(**{"reduced_motion": "reduce", "viewport": {"width": 1280, "height": 900}, **options})
    page, asked, wrong = context.new_page(), list[str](), list[str]()
    page.set_default_timeout(WAIT_S * 1000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"a script ran: {dialog.message}"))
    page.goto(address)
    yield page
    context.close()
    own = "/".join(address.split("/")[:3]) + "/"
    assert [url for url in asked if not url.startswith((own, "data:"))] == []
    assert faults or wrong == []


def titles(page: Page, feed: str = "#feed") -> list[str]:
    return page.locator(f"{feed} .card h3").all_text_contents()


def share(page: Page, kind: str, feed: str = "#feed") -> float:
    """Of the cards, those of that category."""
    cards = page.locator(f"{feed} .card")
    return cards.filter(has=page.locator(".chips li", has_text=kind)).count() / cards.count()


def serious(page: Page) -> list[str]:
    """What axe-core finds, of the two gravest kinds. Evaluated by the test, so the page's policy stays as it is."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
