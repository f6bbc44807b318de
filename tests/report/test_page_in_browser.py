"""The page of a run in headless Chromium: `make test-browser`.

Needs chromium and chromedriver, as Debian's packages of those names bring them.
"""

import contextlib
import json
import random
import re
import shutil
import threading
import time

import pytest
from report_runs import HOSTILE, finished_run, pair_batch

from poise.report.page import write_report
from poise.report.watching import WatchServer
from poise.storage.run_directory import RunDirectory

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SLACK = 3
"""Times that a busy machine may take."""


@pytest.fixture(scope="module")
def browser():
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run with hostile texts, a chat, a pair that disagrees and a line of 1 MB."""
    directory = finished_run(tmp_path_factory.mktemp("runs") / "run")
    chat = json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b>1 + 1</b>?"}])
    pair_batch(
        directory,
        3,
        [1.0, 0.0, 1.0, 1.0],
        prompts=[chat, chat, "long", "long"],
        completions=["\u05d0\u202e two", "a" + 6 * "\u0301" + "three", "z" * 1_000_000, HOSTILE],
        domains=["chat", "chat", "long", "long"],
        token_entropies=[([3, 3], [0.0, 1.5]), None, None, None],
    )
    return write_report(directory)


def opened(browser, path, anchor=""):
    """Open a page and wait until all of it is there; the errors of its console so far."""
    browser.get("about:blank")
    browser.get(path.as_uri() + anchor)
    wait(lambda: browser.execute_script("return document.documentElement.dataset.ready"))


def wait(found, seconds=30.0):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "the page did not come that far"
        time.sleep(0.05)
    return value


def text_of(browser, selector):
    return browser.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def filtered(browser, **values):
    """Set filters, and give the count that the page shows and the milliseconds that it took."""
    script = """
        const form = document.getElementById("filters");
        for (const [name, value] of Object.entries(arguments[0])) form.elements[name].value = value;
        const start = performance.now();
        form.dispatchEvent(new Event("input"));
        return [document.getElementById("count").textContent, performance.now() - start];
    """
    return browser.execute_script(script, values)


def test_page_has_no_error_and_asks_nobody_for_anything(browser, page):
    browser.get_log("browser"), browser.get_log("performance")
    opened(browser, page)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("about:", "data:"))} == {page.as_uri()}
    assert browser.title == "run · poise"
    assert len(browser.find_elements("css selector", "canvas")) >= 8
    assert browser.execute_script("return window.alert.toString()") == "function alert() { [native code] }"


@pytest.mark.parametrize("width", [1280, 390])
def test_first_screen_answers_five_questions_and_nothing_is_wider_than_the_screen(browser, page, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        opened(browser, page)
        answers = browser.find_elements("css selector", ".answer")
        assert len(answers) == 5
        if width > 1000:
            assert answers[-1].rect["y"] + answers[-1].rect["height"] < 900
        places = [each.get_attribute("href").rpartition("#")[2] for each in answers]
        assert all(browser.execute_script("return !!document.getElementById(arguments[0])", each) for each in places)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_have_contrast(browser, page, theme):
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    opened(browser, page)
    script = """
        const css = getComputedStyle(document.documentElement);
        return Object.fromEntries(arguments[0].map((name) => [name, css.getPropertyValue("--" + name).trim()]));
    """
    names = ["page", "card", "ink", "soft", "good", "bad", "b", "accent", "good-back", "bad-back"]

    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    colours = {name: luminance(colour) for name, colour in browser.execute_script(script, names).items()}
    assert (colours["page"] > 0.5) == (theme == "light")
    pairs = [(ink, back) for ink in ("ink", "soft", "good", "bad", "b", "accent") for back in ("page", "card")]
    for ink, back in [*pairs, ("ink", "good-back"), ("ink", "bad-back")]:
        light, dark = sorted((colours[ink], colours[back]), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, back)
    browser.find_element("id", "theme").click()
    other = browser.execute_script(script, ["page"])["page"]
    assert (luminance(other) > 0.5) == (theme == "dark")


def test_every_chart_has_its_numbers_in_a_table(browser, page):
    opened(browser, page)
    script = """
        for (const each of document.querySelectorAll("figure .numbers")) each.open = true;
        return document.querySelectorAll("figure").length;
    """
    figures = browser.execute_script(script)
    wait(lambda: len(browser.find_elements("css selector", "figure .numbers table")) >= 8)
    empty = len(browser.find_elements("css selector", "figure > .missing"))
    assert len(browser.find_elements("css selector", "figure .numbers table tbody tr")) > figures
    assert len(browser.find_elements("css selector", "figure .numbers table")) == figures - empty


def test_what_models_wrote_is_shown_as_text(browser, page):
    opened(browser, page, "#rollout=2.2")
    assert "\\u202egnp\\u0000\\u001b[31m" in text_of(browser, "#pair .side pre")
    assert "</pre><script>alert(1)</script><img src=x" in text_of(browser, "#pair .side pre")
    assert browser.execute_script("return document.querySelectorAll('main img, main script').length") == 0
    assert "could not be graded: worker lost" in text_of(browser, "#pair")
    assert "cut off" in text_of(browser, "#pair")
    opened(browser, page, "#rollout=3.2")
    assert len(text_of(browser, "#pair .side pre")) > 150_000
    assert "characters left out" in text_of(browser, "#pair .side pre")


def test_chats_gold_answers_parts_and_entropies_are_shown(browser, page):
    opened(browser, page, "#rollout=3.0")
    roles = [each.text.lower() for each in browser.find_elements("css selector", "#pair .role")]
    assert roles == ["system", "user"]
    assert "<b>1 + 1</b>?" in text_of(browser, "#pair")
    assert "\u05d0\\u202e two" in text_of(browser, "#pair .side pre")
    (shaded,) = browser.find_elements("css selector", "#pair .side:first-of-type pre span")
    assert (shaded.text, shaded.get_attribute("title")) == ("two", "about 1.56 nats")
    opened(browser, page, "#rollout=3.1")
    assert "a" + 4 * "\u0301" + 2 * "\\u0301" + "three" in text_of(browser, "#pair .side pre")
    opened(browser, page, "#rollout=1.0")
    assert "Gold answer: 4" in text_of(browser, "#pair")
    assert "parts of the rewardright1short0.50" in text_of(browser, "#pair")


def test_filters_links_and_keys_lead_to_rollouts(browser, page):
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    for values, count in (
        ({"domain": "<u>"}, 4),
        ({"domain": "", "kind": "ungraded"}, 2),
        ({"cause": "worker lost"}, 1),
        ({"cause": "", "kind": "cut"}, 2),
        ({"kind": "split"}, 6),
        ({"kind": "", "from": "3"}, 4),
        ({"to": "2"}, 0),
        ({"from": "", "text": "ALERT(1)"}, 2),
        ({"to": "", "text": "be BRIEF"}, 2),
        ({"text": "", "sort": "surprise"}, 12),
    ):
        assert filtered(browser, **values)[0] == f"{count} of 12 rollouts", values
    browser.find_element("id", "list").send_keys(Keys.HOME, Keys.ARROW_DOWN, "j")
    address = browser.current_url
    assert "sort=surprise" in address
    assert re.search(r"rollout=\d\.\d", address)
    seen = text_of(browser, "#pair")
    opened(browser, page, "#" + address.partition("#")[2])
    assert text_of(browser, "#pair") == seen
    assert browser.find_element("css selector", "[name=sort]").get_attribute("value") == "surprise"
    opened(browser, page, "#why")
    assert browser.find_element("id", "why").get_attribute("open") is not None


def test_fifty_thousand_rollouts_load_and_are_filtered_at_once(browser, tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    choose = random.Random(0)
    words = ["carry", "the", "one", "therefore", "17", "sum", "is", "not", "prime", "wait"]
    for step in range(1, 98):
        rewards = [float(choose.random() < 0.6) for _ in range(512)]
        texts = [" ".join(choose.choices(words, k=60)) + f" {choose.random()}" for _ in range(512)]
        domains = [choose.choice("abcdef") for _ in range(512)]
        pair_batch(directory, step, rewards, completions=texts, domains=domains)
    path = write_report(directory)
    start = time.monotonic()
    opened(browser, path)
    took = time.monotonic() - start
    assert text_of(browser, "#count") == "49,664 of 49,664 rollouts"
    assert len(browser.find_elements("css selector", "#rows .row")) < 40
    times = [
        filtered(browser, **values)[1]
        for values in (
            {"domain": "a"},
            {"kind": "wrong"},
            {"sort": "surprise"},
            {"from": "20", "to": "60"},
            {"kind": "split"},
        )
    ]
    browser.execute_script("document.querySelector('[name=text]').focus()")
    times.append(filtered(browser, text="therefore 17", domain="", kind="", sort="")[1])
    print(f"{path.stat().st_size / 1e6:.1f} MB, loaded in {took:.2f} s, filtered in {max(times):.0f} ms at most")
    assert took < 3 * SLACK
    assert max(times) < 200 * SLACK


def test_a_run_is_watched_while_it_goes_on(browser, tmp_path):
    directory = finished_run(tmp_path / "run")
    directory.summary.unlink()
    server = WatchServer(directory)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        browser.get_log("browser")
        browser.get(server.address)
        wait(lambda: text_of(browser, "#state") == "live" and "8 of 8" in text_of(browser, "#count"))
        directory.append_metrics({"step": 3, "rollouts": 12, "reward": 1.0})
        pair_batch(directory, 3, [1.0, 0.0])
        wait(lambda: "10 of 10" in text_of(browser, "#count"))
        directory.write_summary({"steps": 3, "stopped_early": False})
        wait(lambda: text_of(browser, "#state") == "finished")
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        with contextlib.suppress(Exception):
            browser.get("about:blank")
        server.shutdown()
        thread.join()
        server.server_close()
