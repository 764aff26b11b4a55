"""Puts this folder on the path; a real headless browser, or a visible skip where there is none."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
ADVICE = "no browser: make servers, or apt-get install chromium chromium-driver"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; its console is kept."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        if os.environ.get("MODEL_OPT_REQUIRE_SERVERS") == "1":
            pytest.fail(ADVICE)
        pytest.skip(ADVICE)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(driver))
    made.set_page_load_timeout(120)
    yield made
    made.quit()
