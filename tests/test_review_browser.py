"""The review page in a real Chromium, by mouse and by keyboard."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.photo_folders import manifest, run
from tests.test_review_page import HOSTILE, failed, line, output_folder, scored
from utils.boxes import xywh_to_xyxy
from utils.image_files import read_photo, write_photo
from utils.review_page import write_review
from utils.widerface import read_labels

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--window-size=1400,1000 --force-device-scale-factor=1"
)

Chrome = webdriver.Chrome
Opener = Callable[[Path], Chrome]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver (on Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.set_capability("unhandledPromptBehavior", "accept")
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def open_page(chromium: Chrome) -> Iterator[Opener]:
    """Open a page; at the end of the test it must not have complained of anything."""

    def load(page: Path) -> Chrome:
        chromium.get(page.as_uri())
        return chromium

    yield load
    assert chromium.get_log("browser") == []
    chromium.get("about:blank")


def one(browser: Chrome | WebElement, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def several(browser: Chrome | WebElement, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def wait_for(condition: Callable[[], Any]) -> Any:
    for _ in range(100):
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("waited 10 seconds in vain")


def card_of(browser: Chrome, name: str) -> WebElement:
    return one(browser, f'.card:has([title="{name}"])')


def frame_of(browser: Chrome, card: WebElement) -> WebElement:
    """The picture on a card, scrolled into view and loaded."""
    frame = one(card, ".frame")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
    image = one(frame, "img")
    wait_for(lambda: browser.execute_script("return arguments[0].naturalWidth", image))
    return frame


def are_gone(frame: WebElement) -> list[bool]:
    """Tell of each box whether it is drawn as removed."""
    return ["gone" in (box.get_attribute("class") or "") for box in several(frame, ".box")]


def offset(frame: WebElement, photo_width: int, x: float, y: float) -> tuple[int, int]:
    """A point in photo pixels as an offset from the frame's centre in screen pixels."""
    scale = frame.rect["width"] / photo_width
    return round(x * scale - frame.rect["width"] / 2), round(y * scale - frame.rect["height"] / 2)


def click(browser: Chrome, frame: WebElement, *point: int) -> None:
    ActionChains(browser).move_to_element_with_offset(frame, *point).click().perform()


def drag(browser: Chrome, frame: WebElement, start: tuple[int, int], end: tuple[int, int]) -> None:
    actions = ActionChains(browser).move_to_element_with_offset(frame, *start).click_and_hold()
    actions.move_to_element_with_offset(frame, *end).release().perform()


def saved(browser: Chrome, downloads: Path, name: str) -> Path:
    one(browser, "#save").click()
    path = downloads / name
    wait_for(path.exists)
    return path


def test_from_a_run_to_its_correction(tmp_path: Path, downloads: Path, open_page: Opener) -> None:
    """Find faces, take one box away and draw another by mouse, save, and run once more."""
    folder, output, page = tmp_path / "in", tmp_path / "in_black", tmp_path / "check.html"
    for name in ("eileen_collins", "grace_hopper"):
        write_photo(folder / f"{name}.png", read_photo(ROOT / f"img/samples/{name}.jpg").pixels)
    command = (folder, "--method", "black", "--score", "0.6")
    assert run(*command, "--review", page) == 0
    first = manifest(output)
    untouched = (output / "eileen_collins.png").read_bytes()
    clean = read_photo(folder / "grace_hopper.png").pixels
    x, y, w, h = first["grace_hopper.png"]["boxes"][0]
    assert first["grace_hopper.png"]["faces"] == 1

    browser = open_page(page)
    frame = frame_of(browser, card_of(browser, "grace_hopper.png"))
    assert one(frame, ".box span").text == f"{first['grace_hopper.png']['scores'][0]:.2f}"
    assert not one(browser, "#save").is_enabled()
    height, width = clean.shape[:2]

    click(browser, frame, *offset(frame, width, x + w / 2, y + h / 2))
    assert are_gone(frame) == [True]
    assert one(frame, ".box span").text == "will be visible"
    assert "What is under the removed box will be visible" in one(browser, "#changes").text
    assert "will be visible" in card_of(browser, "grace_hopper.png").text

    corner = (0.05 * width, 0.7 * height), (0.45 * width, 0.95 * height)
    drag(browser, frame, *(offset(frame, width, *point) for point in corner))
    assert len(several(frame, ".box.new")) == 1
    assert one(browser, "#changes").text.startswith(
        "1 photo corrected: 1 box added, 1 box removed (will be visible)."
    )
    file = saved(browser, downloads, "check-corrections.txt")
    assert "--corrections check-corrections.txt" in one(browser, "#saved").text

    (photo,) = read_labels(file)
    assert photo.path == "grace_hopper.png"
    (added,) = photo.boxes
    step = 2 * width / frame.rect["width"]  # photo pixels to two of the screen
    np.testing.assert_allclose(added, np.ravel(corner), atol=step + 1)
    assert run(*command, "--corrections", file) == 0
    copy = read_photo(output / "grace_hopper.png").pixels
    x1, y1, x2, y2 = added.astype(int).tolist()
    assert copy[y1:y2, x1:x2].max() == 0
    copy[y1:y2, x1:x2] = clean[y1:y2, x1:x2]
    np.testing.assert_array_equal(copy, clean)  # the face can be seen again, as was asked for
    assert (output / "eileen_collins.png").read_bytes() == untouched
    assert manifest(output)["eileen_collins.png"] == first["eileen_collins.png"]
    assert manifest(output)["grace_hopper.png"]["source"] == "corrections"


def test_clicks_and_undo(tmp_path: Path, open_page: Opener, downloads: Path) -> None:
    boxes = [[2.0, 2.0, 18.0, 14.0], [4.0, 4.0, 6.0, 6.0]]
    entry = line("a.png", boxes=boxes, scores=[0.9, 0.35])
    folder = output_folder(tmp_path / "out", entry, scored("b.png", 0.8))
    page = tmp_path / "clicks.html"
    write_review(page, [folder])
    browser = open_page(page)
    frame = frame_of(browser, card_of(browser, "a.png"))
    inner, outer = offset(frame, 24, 7, 7), offset(frame, 24, 15, 12)

    click(browser, frame, *inner)  # of boxes that overlap, the smaller
    assert are_gone(frame) == [False, True]
    click(browser, frame, *inner)
    assert not one(browser, "#save").is_enabled()
    click(browser, frame, *inner)
    click(browser, frame, *outer)
    assert len(several(frame, ".box.gone")) == 2
    assert read_labels(saved(browser, downloads, "clicks-corrections.txt"))[0].boxes.size == 0
    text = (downloads / "clicks-corrections.txt").read_text()
    assert text == "a.png\n0\n0 0 0 0 0 0 0 0 0 0\n"
    one(browser, "#saved button").click()
    one(browser, "#revert-all").click()
    assert not several(frame, ".box.gone")
    assert one(browser, "#changes").text == "No corrections yet."

    click(browser, frame, *offset(frame, 24, 22, 18))  # beside the boxes
    assert one(browser, "#viewer").is_displayed()
    large = one(browser, "#stage .frame")
    drag(browser, large, offset(large, 24, -1, 17), offset(large, 24, 12, 19.5))
    assert one(browser, "#viewer-notes").text.endswith("1 box added")
    one(browser, "#revert").click()
    assert not several(large, ".box.new")


def test_the_keyboard_does_all(tmp_path: Path, open_page: Opener, downloads: Path) -> None:
    kept = [[-3.0, 2.5, 10.0, 8.125], [12.0, 9.0, 9.0, 9.0]]
    folder = output_folder(
        tmp_path / "out", line("a.png", boxes=kept, scores=[0.4, 0.9]), scored("b.png", 0.8)
    )
    page = tmp_path / "keys.html"
    write_review(page, [folder])
    browser = open_page(page)

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    browser.execute_script("document.querySelector('.name').focus()")
    press(Keys.ENTER)
    assert one(browser, "#viewer-name").text == "a.png"
    assert one(browser, "#viewer-place").text == "1 of 2"
    press(Keys.ARROW_RIGHT)
    assert one(browser, "#viewer-name").text == "b.png"
    press(Keys.ARROW_LEFT)
    first = one(browser, "#stage .box")
    assert first.get_attribute("aria-label") == "Box 1 of 2: hidden, score 0.40. Remove it"
    browser.execute_script("arguments[0].focus()", first)
    press(Keys.ENTER)
    label = browser.switch_to.active_element.get_attribute("aria-label")
    assert label == "Box 1 of 2: removed, will be visible. Bring it back"
    assert one(browser, "#news").get_attribute("textContent") == (
        "Box removed: what is under it will be visible."
    )
    press(Keys.SPACE, Keys.DELETE, "a", *[Keys.ARROW_RIGHT] * 3, Keys.ARROW_UP)
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(*[Keys.ARROW_RIGHT] * 2).perform()
    ActionChains(browser).key_up(Keys.SHIFT).perform()
    press("a", Keys.DELETE, Keys.ESCAPE)
    assert not one(browser, "#viewer").is_displayed()
    assert browser.switch_to.active_element.text == "a.png"
    (photo,) = read_labels(saved(browser, downloads, "keys-corrections.txt"))
    assert photo.path == "a.png"
    np.testing.assert_array_equal(photo.boxes, xywh_to_xyxy([kept[1], [13.0, 7.0, 6.0, 4.0]]))


def test_kinds_can_be_chosen(tmp_path: Path, open_page: Opener) -> None:
    folder = output_folder(
        tmp_path / "out",
        failed("broken.png"),
        line("none.png"),
        scored("flagged.png", 0.9, flags=["searched_reduced"]),
        scored("a.png", 0.4),
        scored("b.png", 0.6),
    )
    write_review(tmp_path / "page.html", [folder])
    browser = open_page(tmp_path / "page.html")
    labels = several(browser, "#filters label")
    assert [label.text.replace("\n", " ") for label in labels] == [
        "All5",
        "No copy1",
        "No face found1",
        "Flagged1",
        "Faces2",
    ]
    shown = [["broken.png"], ["none.png"], ["flagged.png"], ["a.png", "b.png"]]
    for label, wanted in zip(labels[1:], shown, strict=True):
        label.click()
        names = [name.text for name in several(browser, ".name") if name.is_displayed()]
        assert names == wanted
    labels[1].click()
    assert "broken.png: broken" in card_of(browser, "broken.png").text
    assert not several(card_of(browser, "broken.png"), "img")
    one(card_of(browser, "broken.png"), ".name").click()
    assert "nothing to show" in one(browser, "#stage").text
    assert not one(browser, "#add").is_enabled()
    one(browser, "#close").click()
    labels[3].click()
    assert "small faces may have been missed" in card_of(browser, "flagged.png").text


def test_names_run_nothing_and_survive_or_are_refused(
    tmp_path: Path, open_page: Opener, downloads: Path
) -> None:
    names = [HOSTILE, "</script><script>document.title='hacked'</script>.png", " #1 é.png"]
    folder = output_folder(tmp_path / "out", *(scored(name, 0.5) for name in [*names, "a\nb.png"]))
    write_review(tmp_path / "names.html", [folder])
    browser = open_page(tmp_path / "names.html")
    assert browser.title == "Review of anonymised photos"
    cards = several(browser, ".card")
    assert len(cards) == 4
    for card in cards:
        frame = frame_of(browser, card)
        click(browser, frame, *offset(frame, 24, 2, 4))
        if one(browser, "#viewer").is_displayed():  # it cannot be corrected, so it opens
            assert "cannot stand in a label file" in one(browser, "#viewer-notes").text
            assert "control characters" in card.text
            one(browser, "#close").click()
    labelled = read_labels(saved(browser, downloads, "names-corrections.txt"))
    assert sorted(photo.path.removeprefix("./") for photo in labelled) == sorted(names)
    assert browser.title == "Review of anonymised photos"


def test_pictures_are_loaded_when_they_come_into_view(tmp_path: Path, open_page: Opener) -> None:
    entries = [scored(f"{number:03}.png", number / 120) for number in range(120)]
    folder = output_folder(tmp_path / "out", *entries)
    write_review(tmp_path / "page.html", [folder])
    browser = open_page(tmp_path / "page.html")
    wait_for(lambda: several(browser, ".card img[src]"))
    assert len(several(browser, ".card")) == 120
    assert len(several(browser, ".card img[src]")) < 60
    last = card_of(browser, "119.png")
    assert not several(last, ".box")
    frame_of(browser, last)
    assert len(several(last, ".box")) == 1
