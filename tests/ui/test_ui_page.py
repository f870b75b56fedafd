"""The page in a real browser: clicks make clips that play, nothing comes from elsewhere, and names are text."""

import importlib.util
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from generation.prompted import PROMPTS, write_text_checkpoint
from generation.sampled import ROOT, start, write_checkpoint

from sparsevid.cli import run_tool
from sparsevid.runs.config import load_config, save_config
from sparsevid.ui.clicks import Clicks
from sparsevid.ui.models import Models
from sparsevid.ui.page import build_page, serve

HOSTILE = "`{{7*7}}<img src=x onerror=document.title=1>"
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
SECONDS = 120.0  # for anything that is waited for, on a machine that does much else

needs_browser = pytest.mark.skipif(
    not (DRIVER and BROWSER and importlib.util.find_spec("selenium") and importlib.util.find_spec("gradio")),
    reason="needs Gradio (extra `ui`), selenium, and the programs chromium and chromedriver",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny model, one of whose classes has a name that is code in three languages."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")
    config = load_config(folder / "config.yaml")
    config.record.classes = [HOSTILE, "run", "jump"]
    save_config(config, folder / "config.yaml")
    return folder


@pytest.fixture
def page(checkpoint, request, tmp_path):
    """The address of a page that another process serves: of the tiny model, or of a tiny one of text."""
    model = write_text_checkpoint(tmp_path) if getattr(request, "param", "") == "text" else checkpoint
    places = [Path(importlib.util.find_spec(name).origin).parents[1] for name in ("gradio", "transformers")]
    found_here = {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, *places]))}
    process = start([sys.executable, str(ROOT / "tools" / "ui.py"), str(model), "--device", "cpu"], found_here)
    try:
        printed = ""
        for line in process.stdout:
            printed += line
            if said := re.search(r"http://127\.0\.0\.1:\d+/", line):
                break
        assert said, printed
        yield said[0]
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


@pytest.fixture
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_for(browser, selector: str, count: int = 1) -> list:
    """So many elements, once they are there."""
    end = time.monotonic() + SECONDS
    while len(found := browser.find_elements("css selector", selector)) < count:
        assert time.monotonic() < end, f"no {count} of {selector} in:\n{browser.find_element('css selector', 'body').text}"
        time.sleep(0.2)
    return found


@pytest.mark.slow
@needs_browser
def test_clicks_make_clips_that_play(page, browser):
    browser.get(page)
    wait_for(browser, "#sv-generate")[0].click()
    wait_for(browser, ".sv-against")
    videos = wait_for(browser, "#sv-result video", 8)
    end = time.monotonic() + SECONDS
    while not all(browser.execute_script("return !arguments[0].paused && arguments[0].videoWidth", each) for each in videos):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert "static:every=2" in browser.find_element("css selector", ".sv-head.sv-b").text
    assert HOSTILE in browser.find_element("css selector", ".sv-clips").text
    assert not browser.find_elements("css selector", "#sv-result img") and browser.title == "sparsevid"
    wait_for(browser, "#sv-both input")[0].click()  # A alone
    wait_for(browser, "#sv-generate")[0].click()
    end = time.monotonic() + SECONDS
    while len(browser.find_elements("css selector", "#sv-result video")) != 4:
        assert time.monotonic() < end
        time.sleep(0.2)
    log = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {each["params"]["request"]["url"] for each in log if each["method"] == "Network.requestWillBeSent"}
    assert len(asked) > 10 and {url for url in asked if not url.startswith((page, "data:", "blob:"))} == set()
    assert [entry for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]] == []


@pytest.mark.slow
@needs_browser
def test_what_cannot_be_is_said(page, browser, checkpoint):
    port = page.split(":")[-1].strip("/")
    with pytest.raises(OSError, match=f"port {port} is taken at 127.0.0.1"):
        serve(Clicks(Models([str(checkpoint)], device="cpu")), "127.0.0.1", int(port))
    browser.get(page)
    steps = wait_for(browser, "#sv-a-steps input")[0]
    steps.clear()
    steps.send_keys("5000\t")
    wait_for(browser, "#sv-generate")[0].click()
    assert "1 to 1000 steps, got 5000" in wait_for(browser, ".sv-error")[0].text


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("page", ["text"], indirect=True)
def test_prompts_are_typed(page, browser):
    browser.get(page)
    wait_for(browser, "#sv-prompts textarea")[0].send_keys("\n".join(PROMPTS))
    assert not any(each.is_displayed() for each in browser.find_elements("css selector", "#sv-classes"))
    wait_for(browser, "#sv-generate")[0].click()
    wait_for(browser, ".sv-against")
    shown = [each.text for each in wait_for(browser, "#sv-result figcaption", 4)]
    assert shown == [f"{index} · {PROMPTS[index % len(PROMPTS)]}" for index in range(4)]


def test_a_model_that_is_gone_when_it_is_chosen_is_told(tmp_path):
    pytest.importorskip("gradio", reason="needs Gradio (extra `ui`)")
    folders = [write_checkpoint(tmp_path / name) for name in ("one", "other")]
    page = build_page(Clicks(Models([str(each) for each in folders], device="cpu")))
    names = [each.name for each in folders]
    chosen = next(each.fn for each in page.fns.values() if each.name == "chosen")
    assert "third&#x27;; on offer are one, other" in chosen(names[0], "third")[-1]


def test_without_gradio_the_command_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run_tool("ui", [str(tmp_path)]) == 2
    assert "needs the package gradio: pip install 'sparsevid[ui]'" in capsys.readouterr().err
