"""A real browser for tests of pages: skipped where Dash, Playwright or a Chromium is missing."""

import shutil

import pytest

pytest.importorskip("dash")
pytest.importorskip("dash_ag_grid")
sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens pages; at the end no page may have had an error or asked another server."""
    pages, wrong = [], []

    def opened(url, **look):
        page = browser.new_page(**{"viewport": {"width": 1400, "height": 1000}, **look})
        here = "/".join(url.split("/")[:3])
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on(
            "request",
            lambda asked: asked.url.startswith((here, "data:", "blob:")) or wrong.append(asked.url),
        )
        page.goto(url)
        pages.append(page)
        return page

    yield opened
    for i, page in enumerate(pages):
        page.screenshot(path=tmp_path / f"page{i}.png", full_page=True)
        page.close()
    assert wrong == []
