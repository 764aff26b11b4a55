"""The report and the live page in a real browser: light, dark, on a phone, by keyboard, without a console error."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_results import made_result
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from torch import nn

from model_opt.autotuner import Callbacks, IntelligentOptimizer
from model_opt.report.page import write_report
from model_opt.report.view import of_result

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
DRAWN = "return document.querySelectorAll('.plot .main-svg').length"
pytestmark = pytest.mark.timeout(300)


def look(browser, address, *, width=1200, dark=False):
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    if address is not None:
        browser.get(address)


def until(browser, told, timeout=60):
    stale = [StaleElementReferenceException]  # the page was drawn anew while it was looked at
    return WebDriverWait(browser, timeout, ignored_exceptions=stale).until(lambda _: told())


def shoot(browser, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    width, height = browser.execute_script("return [innerWidth, Math.min(document.documentElement.scrollHeight, 6000)]")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    (SHOTS / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


def complaints(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(of_result(made_result(30), "digits"), path)
    return path


@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1200, False), ("dark", 1200, True), ("phone", 390, True)]
)
def test_the_report_is_drawn_in_every_light_and_width(browser, page, name, width, dark):
    look(browser, page.as_uri(), width=width, dark=dark)
    until(browser, lambda: browser.execute_script(DRAWN) >= 6)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, "nothing is cut off"
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) is dark
    ink = browser.execute_script("return getComputedStyle(document.querySelector('.plot text')).fill")
    assert (sum(map(int, ink[4:-1].split(","))) > 500) is dark, "the pictures follow"
    shoot(browser, f"report-{name}")
    assert complaints(browser) == []


def test_the_report_can_be_read_by_keyboard(browser, page):
    look(browser, page.as_uri())
    until(browser, lambda: browser.execute_script(DRAWN) >= 6)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "To the figures"
    for _ in range(30):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.tag_name == "summary":
            break
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    opened = browser.find_element(By.CSS_SELECTOR, "details[open] table")
    assert opened.is_displayed() and len(opened.find_elements(By.TAG_NAME, "tr")) > 3


def test_the_pictures_follow_when_the_light_changes(browser, page):
    look(browser, page.as_uri())
    until(browser, lambda: browser.execute_script(DRAWN) >= 6)
    fill = "return getComputedStyle(document.querySelector('.plot text')).fill"
    before = browser.execute_script(fill)
    look(browser, None, dark=True)
    until(browser, lambda: browser.execute_script(fill) != before)


@pytest.fixture
def live(tmp_path):
    """`model-opt ui` as a user starts it."""
    made_result(12).save(tmp_path / "past")
    command = [
        sys.executable,
        "-m",
        "model_opt.cli.main",
        "ui",
        ".",
        "--port",
        "0",
        "--store",
        "kb.json",
        "--state",
        "s",
    ]
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path / "data")}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    line = process.stdout.readline()
    yield line.split()[1], tmp_path
    process.terminate()
    process.wait(20)
    process.stdout.close()


class Watched(Callbacks):
    """Waits until the page shows what has just been measured."""

    def __init__(self, browser):
        self.browser, self.shown = browser, []

    def on_measurement(self, observed, *, settled, budget, best):
        wanted = f"{settled} of {budget}"
        until(self.browser, lambda: wanted in self.browser.find_element(By.ID, "runs").text)
        self.shown.append(settled)
        if settled == 2:
            until(self.browser, lambda: self.browser.execute_script(DRAWN) >= 3)
            shoot(self.browser, "live-running")


@pytest.mark.filterwarnings("ignore")
def test_the_live_page_follows_a_search(browser, live, monkeypatch):
    address, folder = live
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    look(browser, address)
    until(browser, lambda: "live" in browser.find_element(By.ID, "link").text)
    until(browser, lambda: "past" in browser.find_element(By.ID, "runs").text)
    watched = Watched(browser)
    rows = torch.randn(64, 16)
    IntelligentOptimizer(folder / "kb.json", callbacks=watched).optimize_auto(
        nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), "mcts", 3, example_input=rows[:8],
        calibration_data=rows.split(16), output=folder / "now",
        exclude=["openvino", "onnxruntime", "aot_inductor", "torch_compile"],
    )  # fmt: skip
    assert watched.shown == [0, 1, 2, 3]  # the original first
    until(browser, lambda: browser.find_element(By.ID, "runs").text.count("ended") == 2)
    _by_keyboard(browser)
    assert complaints(browser) == []


def _by_keyboard(browser):
    """Chooses another search, then the knowledge, without a mouse."""
    first, second = browser.find_elements(By.CSS_SELECTOR, "#runs button")
    other = second if first.get_attribute("aria-current") == "true" else first
    name = other.text.split("\n")[0].split()[0]
    other.send_keys(Keys.ENTER)
    until(browser, lambda: browser.find_element(By.CSS_SELECTOR, "#shown h1").text == name)
    until(browser, lambda: browser.execute_script(DRAWN) >= 6)
    shoot(browser, "live-past")
    browser.find_element(By.ID, "tab-runs").send_keys(Keys.ARROW_RIGHT)
    until(browser, lambda: "Origins" in browser.find_element(By.ID, "knowledge").text)
    assert not browser.find_element(By.ID, "searches").is_displayed()
    look(browser, None, width=390, dark=True)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    shoot(browser, "live-knowledge-phone")
    browser.find_element(By.ID, "tab-knowledge").send_keys(Keys.ARROW_LEFT)
    until(browser, lambda: browser.execute_script("return document.documentElement.scrollWidth") <= 390)
