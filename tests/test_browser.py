"""The page in a real browser: sorting, filtering, the matrix, both colour schemes, and no word on
the console.
"""

import shutil

import numpy as np
import pytest
from PIL import Image
from support import SMALL, succeed, thin_network

from tinynet import evaluate, train
from tinynet.data.copies import open_packed
from tinynet.report import __main__ as command

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is in the test extra")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Debian's packages chromium and chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory, archive_path):
    """The report of a small run."""
    folder = tmp_path_factory.mktemp("page")
    flags = ("--data", archive_path, "--cache", folder / "cache")
    with thin_network() as patch:
        patch.chdir(folder)
        succeed(train, "--stage", "base", "--out", "run", *SMALL, *flags)
        succeed(evaluate, "--run", "run", "--tta", "flip", "--device", "cpu", *flags)
        succeed(command, "run", *flags)
    return folder / "run" / "report.html", open_packed(archive_path, folder / "cache").names


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1100,900",
    ):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield made
    made.quit()


@pytest.fixture
def browser(driver, page):
    """The page opened anew; at the end the console must be empty."""
    driver.get(page[0].as_uri())
    driver.get_log("browser")
    driver.refresh()
    yield driver
    assert driver.get_log("browser") == []


def cells(browser, column):
    return [
        row.find_elements(By.TAG_NAME, "td")[column].text
        for row in browser.find_elements(By.CSS_SELECTOR, "#class-rows tr")
        if row.is_displayed()
    ]


def test_a_table_sorts_by_number_and_by_name_both_ways(browser):
    heads = browser.find_elements(By.CSS_SELECTOR, "#classes th button")
    heads[0].click()
    assert cells(browser, 0) == sorted(cells(browser, 0))
    head = browser.find_element(By.CSS_SELECTOR, "#classes th")
    assert head.get_attribute("aria-sort") == "ascending"
    heads[0].send_keys(Keys.ENTER)  # by keyboard too
    assert cells(browser, 0) == sorted(cells(browser, 0), reverse=True)
    heads[1].click()
    shares = [float(text.rstrip("%")) for text in cells(browser, 1)]
    assert shares == sorted(shares) and head.get_attribute("aria-sort") is None


def test_scores_sort_as_numbers(browser):
    heads = {
        head.text.split()[0]: head
        for head in browser.find_elements(By.CSS_SELECTOR, "#scores th button")
    }
    for name in ("n", "top-1", "gain"):
        heads[name].click()
        column = list(heads).index(name)
        shown = [
            row.find_elements(By.TAG_NAME, "td")[column].get_attribute("data-value")
            for row in browser.find_elements(By.CSS_SELECTOR, "#scores tbody tr")
        ]
        numbers = [float(text) for text in shown if text]
        assert numbers == sorted(numbers) and len(set(numbers)) > 1, name


def test_a_filter_leaves_what_holds_its_words(browser, page):
    name = page[1][2].split(",")[0]
    box = browser.find_element(By.CSS_SELECTOR, "input[data-filters=class-rows]")
    box.send_keys(name.upper())
    expected = [one.split(",")[0] for one in page[1] if name.lower() in one.split(",")[0].lower()]
    assert set(expected) <= set(cells(browser, 0)) and len(cells(browser, 0)) < 6 + (
        len(expected) == 6
    )
    assert browser.find_element(By.ID, "class-rows-count").text == f"{len(cells(browser, 0))} of 6"
    box.send_keys("no such class")
    assert cells(browser, 0) == []


def test_the_matrix_tells_what_is_under_the_pointer_and_follows_the_arrow_keys(browser, page):
    matrix, told = browser.find_element(By.ID, "matrix"), browser.find_element(By.ID, "cell")
    names = {name.split(",")[0] for name in page[1]}
    webdriver.ActionChains(browser).move_to_element(matrix).perform()
    before = told.text
    assert before.split(" predicted as ")[0] in names and " of 4" in before
    matrix.send_keys(Keys.ARROW_RIGHT)
    name = before.split(" predicted as ")[0]
    assert told.text != before and told.text.split(" predicted as ")[0] == name
    for _ in range(9):
        matrix.send_keys(Keys.ARROW_LEFT)
    assert told.text.split(" predicted as ")[1] != before.split(" predicted as ")[1]
    drawn = browser.execute_script(
        "const c = document.getElementById('matrix'); return [...c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data].some(v => v)"
    )
    assert drawn


@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_both_colour_schemes_can_be_read(browser, tmp_path, scheme, dark):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    colours = browser.execute_script(
        "const s = getComputedStyle(document.body), q = "
        "getComputedStyle(document.querySelector('.quiet')), t = "
        "getComputedStyle(document.querySelector('figure svg text'));return [s.backgroundColor, "
        "s.color, q.color, t.fill]"
    )
    paper, *inks = (
        np.array([float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]])
        for text in colours
    )
    assert (paper.mean() < 128) == dark
    assert all(contrast(paper, ink) >= 4.5 for ink in inks), colours  # WCAG 2, level AA
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert (np.asarray(Image.open(tmp_path / "page.png").convert("L")).mean() < 128) == dark


def contrast(one, other):
    """WCAG 2's ratio of two colours in 0 ... 255."""

    def luminance(colour):
        share = colour / 255
        linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_on_a_phone_nothing_is_wider_than_the_screen(browser):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= 380
