# Copyright 2026 The md4_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of the page of `md4 demo` and of a replay for docs/demo.md, taken in a real browser.

    python scripts/screenshots.py runs/tiny --images runs/digits

They need the extra `browser`, and Chromium or Chrome, such as Debian's package `chromium`.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WAIT_SECONDS = 120  # for a model to answer on a busy machine


def main():
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="Folder or Hub id of a model of text.")
    parser.add_argument("--images", help="Folder or Hub id of a model of images.")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="Folder of the pictures.")
    parser.add_argument("--text", default="the value of the <mask:16> is used", help="Text with gaps to fill.")
    parser.add_argument("--seed", default="1", help="Seed of all samples.")
    parser.add_argument("--dark", action="store_true", help="Take them as a dark desktop shows the pages.")
    parser.add_argument("--width", type=int, default=1040, help="Width of the window in pixels; a phone has 390.")
    args = parser.parse_args()

    from playwright.sync_api import sync_playwright

    args.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, BROWSERS)), None)  # None: playwright's own, if it is installed
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        window = {"viewport": {"width": args.width, "height": 660}, "color_scheme": "dark" if args.dark else "light"}
        with served(args.model) as address:
            fill_gaps(open_page(browser, address, window), args)
        replay(browser, window, args)
        if args.images:
            with served(args.images) as address:
                fill_image(open_page(browser, address, window), args)
        browser.close()


@contextmanager
def served(model: str):
    """Address at which `md4 demo` shows a model."""
    command = [sys.executable, "-u", "-m", "md4_hf", "demo", model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = (re.search(r"http://\S+:\d+", line) for line in process.stdout)
            yield next(line[0] for line in lines if line)
        finally:
            process.terminate()


def open_page(browser: "Browser", address: str, window: dict) -> "Page":
    """Show an address in a window of its own."""
    page = browser.new_page(**window)
    page.set_default_timeout(WAIT_SECONDS * 1000)
    page.goto(address)
    return page


def fill_gaps(page: "Page", args: argparse.Namespace):
    """Fill the gaps of a text."""
    page.fill("#infill-text textarea", args.text)
    start(page, "infill", args)
    save(page, args.output / "page-infill.png")


def fill_image(page: "Page", args: argparse.Namespace):
    """Draw one half of an image anew."""
    page.click("button[role=tab]:has-text('Fill a part')")
    page.fill("#inpaint-seed textarea, #inpaint-seed input", args.seed)
    page.click("#inpaint-one")
    page.wait_for_selector("#inpaint-canvas img")
    before = page.get_attribute("#inpaint-canvas img", "src")
    page.click("button:has-text('lower half')")
    page.wait_for_function("old => document.querySelector('#inpaint-canvas img').src !== old", arg=before)
    start(page, "inpaint", args)
    save(page, args.output / "page-images.png")


def start(page: "Page", tab: str, args: argparse.Namespace):
    """Start the action of a tab and wait for its end."""
    page.fill(f"#{tab}-seed textarea, #{tab}-seed input", args.seed)
    page.click(f"#{tab}-start")
    page.wait_for_selector(f"#{tab}-note:has-text('done')")


def replay(browser: "Browser", window: dict, args: argparse.Namespace):
    """Half of an unmasking on the page that `--html` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "unmasking.html")
        words = ["infill", args.model, args.text, "--seed", args.seed, "--html", str(path)]
        subprocess.run([sys.executable, "-m", "md4_hf", *words], check=True, stdout=subprocess.DEVNULL)
        page = open_page(browser, path.as_uri(), window)
        slider = page.locator("#slider")
        slider.fill(str(int(slider.get_attribute("max")) // 2))
        page.locator("#text span:not(.mask):not(.given)").last.hover()
        page.set_viewport_size({"width": window["viewport"]["width"], "height": 320})
        save(page, args.output / "page-replay.png")


def save(page: "Page", path: Path):
    """Write what a window shows to a PNG."""
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)  # for a transition of colours to end
    page.screenshot(path=path)
    print(path)


if __name__ == "__main__":
    main()
