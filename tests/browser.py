"""A headless Chromium for tests of pages, and a page of it that is cut off from everything outside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e .[dev]")


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium; the test is skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, html: str, *, width: int = 1360, height: int = 1000, **context: Any) -> Iterator[Any]:
    """A page that shows this text. At the end nothing must have been asked for, and no error been logged."""
    asked: list[str] = []
    errors: list[str] = []
    with browser.new_context(viewport={"width": width, "height": height}, **context) as tab:
        page = tab.new_page()
        page.set_default_timeout(5000)
        address = "http://page.invalid/"  # answered here; any other address is a request that left the page

        def answer(route: Any) -> None:
            if route.request.url == address:
                route.fulfill(body=html, content_type="text/html; charset=utf-8")
            else:
                asked.append(route.request.url)
                route.abort()

        tab.route("**/*", answer)
        page.on("pageerror", lambda error: errors.append(str(error)))

        def logged(message: Any) -> None:
            if message.type in ("error", "warning"):
                errors.append(message.text)

        page.on("console", logged)
        page.goto(address)
        yield page
        assert asked == []
        assert [e for e in errors if "favicon" not in e] == []


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong on the page, one line each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: pip install -e .[dev]")
    found = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}" for v in found]
