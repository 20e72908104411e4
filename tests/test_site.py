"""The built site, in a real browser: what a person would stumble over. `make docs` builds it."""

import contextlib
import functools
import http.server
import inspect
import threading
from pathlib import Path

import pytest

import boxopt as bx
from tests.browser import CHROMIUM, Browser, NavigatedError

SITE = Path(__file__).parent.parent / "docs" / "_build"
needs_site = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built: make docs")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
DESKTOP, PHONE = (1440, 900), (390, 844, True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def open_browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(open_browser):
    open_browser.resize(*DESKTOP)
    open_browser.prefer("light")
    open_browser.errors.clear()
    yield open_browser
    assert open_browser.errors == []


BROKEN_IMAGES = """Promise.all([...document.images].map(image => {
    image.loading = "eager";
    return image.decode().then(() => null, () => image.src);
})).then(found => found.filter(Boolean))"""
TOO_WIDE = "document.documentElement.scrollWidth > window.innerWidth"


@needs_site
@needs_browser
def test_every_page_loads_whole_and_does_not_scroll_sideways(browser, address):
    pages = sorted(page.relative_to(SITE).as_posix() for page in SITE.rglob("*.html"))
    assert len(pages) > 40
    faults = []
    for page in pages:
        browser.resize(*PHONE)
        browser.goto(f"{address}/{page}")
        if browser.evaluate("document.querySelectorAll('h1').length") != 1 and page != "search.html":
            faults.append(f"{page}: not one heading")
        faults += [f"{page}: {image} does not load" for image in browser.evaluate(BROKEN_IMAGES)]
        for size in (PHONE, DESKTOP):
            browser.resize(*size)
            if browser.evaluate(TOO_WIDE):
                faults.append(f"{page}: wider than {size[0]} pixels")
        faults += [f"{page}: {error}" for error in browser.errors]
        browser.errors.clear()
    assert faults == []


@needs_site
@needs_browser
def test_from_the_landing_page_to_the_quick_start_and_on(browser, address):
    heading = "document.querySelector('h1').firstChild.textContent"
    browser.goto(f"{address}/index.html")
    assert browser.evaluate("document.querySelector('figure img').getBoundingClientRect().bottom") < DESKTOP[1]
    browser.follow("article a[href='quickstart.html']")
    assert browser.evaluate(heading) == "Quick start"
    browser.follow(".next-page")
    assert browser.evaluate(heading) not in ("Quick start", "boxopt")
    browser.follow(".prev-page")
    assert browser.evaluate(heading) == "Quick start"
    browser.follow(".sidebar-tree a[href='api/index.html']")
    browser.follow("article a[href='sets.html']")
    browser.follow("article a[href='#boxopt.Box']")
    assert browser.evaluate("document.querySelector(':target').id") == "boxopt.Box"


@needs_site
@needs_browser
def test_the_menu_of_a_phone_opens(browser, address):
    browser.resize(*PHONE)
    browser.goto(f"{address}/index.html")
    link = "document.querySelector(\".sidebar-tree a[href='solvers.html']\").getBoundingClientRect()"
    assert browser.evaluate(f"{link}.right") <= 0
    browser.evaluate("document.querySelector('.mobile-header .nav-overlay-icon').click()")
    browser.wait_for(f"{link}.left >= 0 && {link}.right <= 390")


@needs_site
@needs_browser
@pytest.mark.parametrize("served", [True, False], ids=["served", "from a file"])
def test_search_finds_a_name(browser, address, served):
    browser.goto(f"{address}/index.html" if served else (SITE / "index.html").as_uri())
    browser.evaluate("document.querySelector('.sidebar-search').value = 'lbfgsb'")
    with contextlib.suppress(NavigatedError):
        browser.evaluate("document.querySelector('.sidebar-search-container').submit()")
    results = "document.querySelectorAll('#search-results li a')"
    browser.wait_for(f"document.readyState == 'complete' && window.location.search && {results}.length > 3")
    if served:
        browser.wait_for("document.querySelector('#search-results p.context') != null")  # what the pages say
    first = f"{results}[0]"
    assert browser.evaluate(f"{first}.textContent") == "boxopt.lbfgsb"
    browser.follow("#search-results li a")
    assert browser.evaluate("document.querySelector(':target').id") == "boxopt.lbfgsb"
    if not served:  # results have no excerpts then: a browser fetches no files, and says so
        browser.errors.clear()


@needs_site
@needs_browser
def test_code_is_coloured_and_can_be_copied(browser, address):
    browser.goto(f"{address}/quickstart.html")
    count = browser.evaluate("document.querySelectorAll('.highlight-python pre').length")
    assert count == (Path(__file__).parent.parent / "docs" / "quickstart.md").read_text().count("```python")
    assert browser.evaluate("document.querySelectorAll('.highlight-python .copybtn').length") == count
    colour = "getComputedStyle(document.querySelector('.highlight-python {}')).color"
    assert browser.evaluate(colour.format("pre")) != browser.evaluate(colour.format(".kn"))  # `import`


@needs_site
@needs_browser
def test_formulas_are_drawn(browser, address):
    browser.goto(f"{address}/api/solve.html")
    assert browser.evaluate("document.querySelectorAll('.formula math').length") > 5
    assert browser.evaluate("Math.min(...[...document.querySelectorAll('math')].map(m => m.clientHeight))") > 5
    assert "\\frac" not in browser.evaluate("document.body.innerText")
    # a fraction's parts are one above the other
    above, below = "document.querySelector('mfrac').children[0]", "document.querySelector('mfrac').children[1]"
    assert browser.evaluate(f"{above}.getBoundingClientRect().bottom <= {below}.getBoundingClientRect().top + 1")


@needs_site
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser, address, scheme):
    """The contrast that WCAG asks of text, 4.5 to 1."""
    browser.prefer(scheme)
    browser.goto(f"{address}/quickstart.html")

    def luminance(expression):
        colour = browser.evaluate(expression)
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, ground in (("article p", "body"), ("article a", "body"), ("pre .kn", ".highlight")):
        one = luminance(f"getComputedStyle(document.querySelector('{text}')).color")
        other = luminance(f"getComputedStyle(document.querySelector('{ground}')).backgroundColor")
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) > 4.5, text


@needs_site
def test_every_public_name_has_its_place():
    pages = "".join(page.read_text() for page in (SITE / "api").glob("*.html"))
    names = [f"boxopt.{name}" for name in bx.__all__ if not inspect.ismodule(getattr(bx, name))]
    for space in (bx.sets, bx.regularizers, bx.contrib):
        names += [f"{space.__name__}.{name}" for name in space.__all__ if name not in bx.__all__]
    assert [name for name in names if f'id="{name}"' not in pages] == []
