"""The reports of the shared tiny run and of a scan that it scores, in headless Chromium, opened from disk."""

import base64
import io
import re
import shutil
import time

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from anomaly3d import score
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scans.nifti import voxels
from anomaly3d.scoring.inference import prepared_of

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with a log of console and network; the CI installs it, so its absence is an error."""
    assert shutil.which("chromium"), "chromium is missing: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_window_size(1280, 900)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tiny_run):
    """The report, just opened."""
    browser.get((tiny_run / "evaluation" / "report.html").as_uri())
    return browser


def rows(page):
    return [r for r in page.find_elements(By.CSS_SELECTOR, ".scans tbody tr") if r.is_displayed()]


def column(page, name):
    heads = [h.text.split(" ")[0] for h in page.find_elements(By.CSS_SELECTOR, ".scans th")]
    return [r.find_elements(By.TAG_NAME, "td")[heads.index(name)].text for r in rows(page)]


def picture(shown):
    """A screenshot of the page or of an element as an array ``(rows, columns, 3)`` in [0, 1]."""
    text = shown.screenshot_as_base64 if hasattr(shown, "screenshot_as_base64") else shown.get_screenshot_as_base64()
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(text)))[..., :3]


def opened(page, scan):
    """Wait until the viewer shows a scan, and two frames more."""
    WebDriverWait(page, 60).until(lambda p: p.find_element(By.ID, "viewer").get_attribute("data-shown") == scan)
    time.sleep(0.5)


def wait_for_canvas(page):
    """The canvas once something is drawn on it."""

    def drawn(p):
        shot = picture(p.find_element(By.ID, "canvas"))
        return (shot,) if shot.std() > 0.02 else None

    return WebDriverWait(page, 60).until(drawn)[0]


def test_it_asks_no_host_and_has_no_error(page, browser):
    browser.get_log("performance")
    browser.get(browser.current_url)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    asked = [e["message"] for e in browser.get_log("performance") if "Network.requestWillBeSent" in e["message"]]
    assert asked
    assert not [m for m in asked if '"url":"http' in m or '"url":"ws' in m]
    assert "AUC of" in page.find_element(By.CLASS_NAME, "verdict").text
    for image in page.find_elements(By.TAG_NAME, "figure"):
        assert image.find_element(By.TAG_NAME, "img").get_property("naturalWidth") > 100


def test_the_table_sorts_and_filters(page):
    assert [float(v) for v in column(page, "total")] == sorted((float(v) for v in column(page, "total")), reverse=True)
    button = next(b for b in page.find_elements(By.CSS_SELECTOR, ".scans th button") if b.text == "total")
    button.click()
    assert [float(v) for v in column(page, "total")] == sorted(float(v) for v in column(page, "total"))
    button.send_keys(Keys.ENTER)
    assert [float(v) for v in column(page, "total")] == sorted((float(v) for v in column(page, "total")), reverse=True)
    page.find_element(By.ID, "filter").send_keys("epidural tbi")
    assert len(rows(page)) == 1
    assert page.find_element(By.ID, "count").text == "1 of 5 scans"


def test_a_scan_opens_and_its_maps_follow_their_thresholds(page, tiny_run):
    (first, *_) = rows(page)
    scan = first.get_attribute("data-id")
    first.click()
    opened(page, scan)
    assert scan in page.find_element(By.ID, "viewer-title").text
    wait_for_canvas(page)
    shown = page.execute_script(f"return scans.volumes['{scan}']")
    said = re.fullmatch(
        r"input (-?\d+) HU, reconstruction (-?\d+), residual (-?\d+), (-?\d+\.\d) healthy spreads, at (.*) mm \(MNI\)",
        page.find_element(By.ID, "values").text,
    )
    at = [round(float(v)) for v in np.array(shown["affine"]) @ [*shown["finding"], 1]]
    assert [int(v) for v in said[5].split(",")] == pytest.approx(at, abs=2)  # it opens at the finding
    data = HeadCTDataModule(prepared_of(choose_trained(tiny_run, None), tiny_run.parents[1] / "data"), 1)
    data.setup()
    image = voxels(data.split("test").set_index("scan_id").loc[scan, "image"])
    assert int(said[1]) == pytest.approx((image[tuple(shown["finding"])] + 1) * 60 - 20, abs=1.5)
    assert int(said[3]) == pytest.approx(int(said[1]) - int(said[2]), abs=1)  # each is rounded by itself
    legend = page.find_element(By.CLASS_NAME, "legend").text
    assert legend == "darker than healthy brighter; to 8 healthy spreads, or 36 HU"

    def colourful(shot):
        return float((shot.max(2) - shot.min(2) > 0.1).mean())

    def moved(slider, value):
        page.execute_script(
            f"const t = document.getElementById('{slider}'); t.value = {value}; t.dispatchEvent(new Event('input'));"
        )
        time.sleep(0.5)
        return colourful(wait_for_canvas(page))

    many, none = moved("deviation", 1), moved("deviation", 8)
    assert many > none
    assert page.find_element(By.ID, "deviation-value").text == "8 healthy spreads"
    covered = wait_for_canvas(page)
    clear = covered.max(2) - covered.min(2) <= 0.1  # what reaches 8 healthy spreads still shows
    assert clear.mean() > 0.9
    page.find_element(By.ID, "show-standardised").click()
    for _ in range(20):  # a busy machine draws late
        time.sleep(0.5)
        bare = wait_for_canvas(page)[clear].mean()
        if bare == pytest.approx(covered[clear].mean(), rel=0.01):
            break
    assert bare == pytest.approx(covered[clear].mean(), rel=0.01)  # below, a map is clear
    page.find_element(By.ID, "show-standardised").click()
    page.find_element(By.ID, "show-residual").click()
    many, few = moved("threshold", 4), moved("threshold", 34)
    assert many > few
    assert many > none
    assert page.find_element(By.ID, "threshold-value").text == "34 HU"
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []


def test_a_new_scan_opens_in_its_own_space(browser, tiny_run, places, tmp_path):
    scan = sorted(tiny_run.parents[1].glob("data/raw/*/ct/subdural*-0001.nii.gz"))[0]
    name, out = scan.name.removesuffix(".nii.gz"), tmp_path / "out"
    assert score.main(["run=tiny", *places, f"scans=[{scan}]", f"out={out}"]) == 0
    browser.get((out / "report.html").as_uri())
    browser.get_log("browser")
    rows(browser)[0].click()
    opened(browser, name)
    shot = wait_for_canvas(browser)
    assert (shot.min(2) > 0.9).mean() > 0.01  # the skull
    said = re.fullmatch(
        r"scan (-?\d+) HU \((-?\d+) as the detector saw it, which is coarser\), "
        r"reconstruction (-?\d+), residual (-?\d+), (-?\d+\.\d) healthy spreads, at .* \(of the scan\)",
        browser.find_element(By.ID, "values").text,
    )
    assert int(said[2]) == pytest.approx(int(said[3]) + int(said[4]), abs=1)  # each rounded by itself
    shown = browser.execute_script(f"return scans.volumes['{name}']")
    mm = np.array(shown["affine"]) @ [*shown["finding"], 1]
    maps = {kind: nib.load(out / name / f"{kind}.nii.gz") for kind in ("standardised", "residual")}
    for text, image, wide in (
        (said[1], nib.load(scan), 2),
        (said[4], maps["residual"], 15),
        (said[5], maps["standardised"], 1),
    ):
        place = np.rint(nib.affines.apply_affine(np.linalg.inv(image.affine), mm)).astype(int)
        around = image.get_fdata()[tuple(slice(max(i - 1, 0), i + 2) for i in place)].clip(-20, 100)
        assert around.min() - wide <= float(text) <= around.max() + wide
    assert abs(float(said[3])) > 0.6 * np.abs(maps["standardised"].get_fdata()).max()  # it opens at the finding
    browser.execute_script("lookAt([0, 0, 0])")  # air
    assert browser.find_element(By.ID, "values").text.startswith("scan \u2264 -20 HU")
    browser.execute_script(f"scans.volumes['{name}'].layers = []; show('{name}')")
    WebDriverWait(browser, 20).until(lambda _: not browser.find_element(By.ID, "show-standardised").is_displayed())
    browser.execute_script("lookAt([0, 0, 0])")
    assert re.fullmatch(r"scan \S+ -20 HU.*, at .* mm \(of the scan\)", browser.find_element(By.ID, "values").text)
    assert "healthy spreads" not in browser.find_element(By.ID, "values").text
    assert "p = " in browser.find_element(By.CSS_SELECTOR, "p.details").text
    told = [element.text for element in browser.find_elements(By.CSS_SELECTOR, "div.details")]
    assert any("noise_hu" in text for text in told)
    assert browser.get_log("browser") == []


def test_a_scan_without_volumes_says_why_it_does_not_open(page):
    first, second, *_ = rows(page)
    scan = first.get_attribute("data-id")
    page.execute_script(f"delete scans.volumes['{scan}']")
    first.click()
    opened(page, scan)
    assert f"reconstruction/{scan}.nii.gz" in page.find_element(By.ID, "closed").text
    assert not page.find_element(By.ID, "canvas").is_displayed()
    webdriver.ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
    opened(page, second.get_attribute("data-id"))
    assert page.find_element(By.ID, "canvas").is_displayed()
    assert not page.find_element(By.ID, "closed").is_displayed()


def test_the_keyboard_is_enough(page):
    first, second, *_ = rows(page)
    first.send_keys(Keys.ENTER)
    opened(page, first.get_attribute("data-id"))
    webdriver.ActionChains(page).send_keys(Keys.ARROW_RIGHT).perform()
    opened(page, second.get_attribute("data-id"))
    webdriver.ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert not page.find_element(By.ID, "viewer").is_displayed()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window_and_the_light(page, browser, width, scheme):
    emulate = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", emulate)
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.refresh()
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        shot = picture(page)
        corner = shot[-30:, :8].mean()
        assert corner < 0.3 if scheme == "dark" else corner > 0.9
        assert shot.std() > 0.05
        assert np.isfinite(shot).all()
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
