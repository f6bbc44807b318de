"""Pictures of a run's page for the documentation: `docs/images/report_*.png`, by headless Chromium.

    python scripts/screenshots.py [RUN]

Without a run, the embedded model is trained first, with the settings of `make train`, into `runs/screenshots`.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from poise.report.page import write_report
from poise.storage.run_directory import RunDirectory

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SHOTS = {
    "report_questions": ("", (1280, 880)),
    "report_baseline": ("#baseline", (1280, 760)),
    "report_rollouts": ("#kind=split&domain=edit", (1280, 800)),
}
"""For each picture a place on the page and the size of the window."""
MOST_BYTES = 300_000


def main() -> None:
    """Write every picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="Default: runs/screenshots, trained if it is not there.")
    run = parser.parse_args().run or trained(Path("runs"), "screenshots")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        raise SystemExit("screenshots need chromium and chromedriver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(option)
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(RunDirectory(run), Path(folder) / "report.html")
        browser = Chrome(options=options, service=Service(driver))
        try:
            for name, (place, size) in SHOTS.items():
                shoot(browser, page.as_uri() + place, size, IMAGES / f"{name}.png")
        finally:
            browser.quit()


def trained(output: Path, name: str) -> Path:
    """A finished run of the embedded model."""
    if not RunDirectory(output / name).is_done:
        subprocess.run([sys.executable, "-m", "poise", "train", "--output", str(output), "--name", name], check=True)
    return output / name


def shoot(browser: Chrome, address: str, size: tuple[int, int], path: Path) -> None:
    """Write one picture, in 240 colours."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get("about:blank")
    browser.get(address)
    for _ in range(300):
        if browser.execute_script("return document.documentElement.dataset.ready"):
            break
        time.sleep(0.1)
    place = address.partition("#")[2]
    if place and "=" not in place:  # charts above have come since, and have moved it
        browser.execute_script("document.getElementById(arguments[0]).scrollIntoView()", place)
    time.sleep(1.5)
    browser.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(240, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes: at most {MOST_BYTES}")
    print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
