"""The page, in a real browser: queries are tried by keyboard, stored text stays text, and every script is readable."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("starlette", reason="the page is served by the extra [serve]")
pytest.importorskip("httptools", reason="the page is served by the extra [serve]")

from browser import CHROMIUM, Browser

from limbeck.inference.store import PredictionStore

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the page is tried in Chromium, which is not here")

PERSIAN, ANSWER = "می‌خواهم پایتخت ایران را بدانم (Tehran)", "پایتخت ایران شهر تهران است."
EVIL = "<script>document.title='taken'</script>"
EVIL_ANSWER = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>\nsecond line"
OPTIONS = ["iran", "<i>japan</i>", "فرانسه"]
MANIFEST = {"options": json.dumps(OPTIONS), "weights": "ab" * 32, "job": json.dumps({"shots": 4})}

# In JavaScript: what has the focus and whether that shows; how far a text is from its element's right and left edge;
# the colours of an element's text and of what is behind it.
FOCUS = "(e => [e === document.body ? 'BODY' : e.id || e.textContent.trim(), getComputedStyle(e).outlineStyle])"
FOCUS += "(document.activeElement)"
EDGES = """e => {
  const range = document.createRange();
  range.selectNodeContents(e);
  const text = range.getBoundingClientRect(), box = e.getBoundingClientRect();
  return [getComputedStyle(e).direction, box.right - text.right, text.left - box.left];
}"""
COLOURS = """e => {
  const ink = getComputedStyle(e).color;
  while (/, 0\\)/.test(getComputedStyle(e).backgroundColor)) e = e.parentElement;
  return [ink, getComputedStyle(e).backgroundColor];
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where a store is served."""
    folder = tmp_path_factory.mktemp("store")
    with PredictionStore(folder / "job.db", manifest=MANIFEST) as store:
        written = ((PERSIAN, ANSWER), (EVIL, EVIL_ANSWER), ("plain", "words " * 3000))
        rows = [(f"k{i}", query, {"text": text}) for i, (query, text) in enumerate(written)]
        rows += [("k8", "Nippon", {"logprobs": [-2.0, -0.5, -3.0], "lengths": [1, 1, 1], "greedy": []})]
        rows += [(f"l{i}", f"query {i}", {"text": "t"}) for i in range(1234)]
        store.put_many(rows)
        store.fail_many([("bad", "x", "the query is too long")])
        store.compact(folder / "serving.db")
    words = [sys.executable, "-m", "limbeck.experiments.cli", "serve", str(folder / "serving.db"), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        yield child.stdout.readline().rpartition(" at ")[2].strip()
        child.terminate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser for all tests: it takes seconds to start."""
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, address):
    """The page as it opens, which complains of nothing until the end."""
    browser.problems.clear()
    browser.open(address)
    browser.wait("document.readyState === 'complete' && document.querySelector('#about dt') !== null")
    yield browser
    assert browser.problems == []
    assert browser.value("document.title").endswith("Limbeck look-up")  # nobody's script has run


def cards(page, count):
    """[class, query, answer] of each card, as soon as there are so many."""
    page.wait(f"document.querySelectorAll('#answers li').length === {count}")
    part = "e.querySelector('{}').textContent"
    listed = f"[e.className, {part.format('.query')}, {part.format('.answer')}]"
    return page.value(f"[...document.querySelectorAll('#answers li')].map(e => {listed})")


def test_it_says_what_the_store_holds(page):
    shown = {
        "rows": "1,238",
        "queries": "1,238",
        "coverage": "99.9 % of the job's",
        "failures": "1",
        "reasons": "the query is too long",
        "state": "serving",
    }
    for name, words in shown.items():
        assert page.value(f"document.getElementById('{name}').textContent") == words
    about = page.value("document.getElementById('about').innerText")
    for words in ("upper and lower case differ", "iran, <i>japan</i>, فرانسه", "abababababab…", "shots"):
        assert words in about
    assert page.value("document.querySelectorAll('#about i, #examples script, #answers img').length") == 0


def test_queries_are_tried_by_keyboard_alone(page):
    assert page.value("document.activeElement.id") == "query"  # the cursor is there from the start
    page.type("Nippon")
    page.press("Enter", 13, "\r")
    assert cards(page, 1) == [["", "Nippon", "<i>japan</i>"]]
    shares = page.value("[...document.querySelectorAll('.shares b')].map(e => e.textContent)")
    assert shares == ["76.6 %", "17.1 %", "6.3 %"]
    assert page.value("document.getElementById('said').textContent").startswith("Found in ")
    page.type("no such thing")  # the last query was selected: this takes its place
    page.press("Enter", 13, "\r")
    assert cards(page, 2)[0] == ["miss", "no such thing", "Not in the store"]
    page.wait("document.getElementById('rate').textContent === '50 %'")
    page.value("document.querySelector('summary').focus()")
    page.press("/", 191, "/")
    assert page.value("document.activeElement.id + document.getElementById('query').value") == "queryno such thing"
    seen = ["query"]
    for _ in range(30):
        page.press("Tab", 9)
        where, outlined = page.value(FOCUS)
        assert outlined != "none" or where in ("query", "BODY"), f"nothing shows that {where!r} has the focus"
        seen.append(where)
    for stop in ("Look up", PERSIAN, "What is stored", "curl", "metrics"):
        assert stop in seen


def test_several_lines_are_several_queries(page):
    for line in (PERSIAN, "", EVIL, "nothing"):
        page.type(line)
        page.press("Enter", 13, "\r", shift=True)
    assert page.value("document.getElementById('query').rows") == 5
    page.press("Enter", 13, "\r")
    assert cards(page, 3) == [["", PERSIAN, ANSWER], ["", EVIL, EVIL_ANSWER], ["miss", "nothing", "Not in the store"]]
    assert page.value("document.getElementById('said').textContent").startswith("2 of 3 found in ")
    page.type("\n".join(["x"] * 300))
    page.press("Enter", 13, "\r")
    assert cards(page, 4)[0][0] == "error" and "at most 256" in cards(page, 4)[0][2]
    # The browser itself notes that a request was refused; that is what was asked for here.
    assert [problem for problem in page.problems if "413" not in problem] == []
    page.problems.clear()


def test_a_link_carries_a_query_and_stored_text_stays_text(page, address):
    page.open(f"{address}?q={quote(EVIL)}")
    assert cards(page, 1) == [["", EVIL, EVIL_ANSWER]]
    assert page.value("document.querySelectorAll('#answers img, .answer b, #answers script').length") == 0
    assert page.value("document.querySelector('.answer').innerText.split('\\n').length") == 2
    page.open(f"{address}?q=plain")
    cards(page, 1)
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    page.open(f"{address}?q={quote('a' * 3000)}")
    assert cards(page, 1)[0][0] == "miss"


def test_a_script_that_comes_in_all_the_same_is_not_run(page):
    """The policy of the page forbids it, whatever else might go wrong."""
    page.value("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"document.title=1\">')")
    page.value("document.body.appendChild(document.createElement('script')).append('document.title=2')")
    page.wait("document.querySelector('img[onerror]').complete")
    assert page.value("fetch('http://127.0.0.1:1/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in problem for problem in page.problems)
    page.problems.clear()


def test_right_to_left_text_is_set_so(page, address):
    page.open(f"{address}?q={quote(PERSIAN)}")
    cards(page, 1)
    for selector in (".answer", "#answers .query"):
        direction, right, left = page.value(f"({EDGES})(document.querySelector('{selector}'))")
        assert direction == "rtl" and right < 2 < left  # it begins at the right edge
    assert page.value("getComputedStyle(document.getElementById('query')).direction") == "rtl"
    assert page.value("document.querySelector('pre').matches('#curl, details pre')")
    assert page.value("getComputedStyle(document.getElementById('curl')).direction") == "ltr"


def luminance(colour):
    """WCAG 2.2's relative luminance of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000])
def test_it_is_readable_in_both_schemes_and_widths(page, address, scheme, width, tmp_path: Path):
    page.look(tmp_path / "page.png", width, 900, scheme)
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
    page.open(f"{address}?q={quote(PERSIAN)}")
    cards(page, 1)
    page.wait("document.querySelector('#about dt') !== null")
    assert page.value("document.documentElement.scrollWidth <= innerWidth")
    background = luminance(page.value("getComputedStyle(document.body).backgroundColor"))
    assert (background > 0.8) == (scheme == "light")
    for selector in ("h1", ".soft", ".query", ".answer", ".state", ".field button", ".tiles dt", ".about dd", "p > a"):
        colours = page.value(f"({COLOURS})(document.querySelector('{selector}'))")
        dark, light = sorted(map(luminance, colours))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (selector, colours)
