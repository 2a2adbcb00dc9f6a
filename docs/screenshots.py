"""Take the pictures of the pages in the documentation: `python docs/screenshots.py RUN COMPARISON`.

RUN is the folder of a selection (`clusterucb demo --out RUN`), COMPARISON that of a comparison. Each page is shown in a
browser at 1280 and 400 pixels, light and dark. The pictures go to ``docs/_static``, with few colours, so that they are
small.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

STATIC = Path(__file__).parent / "_static"
HEIGHTS = {1280: 2300, 400: 2300}  # pixels of a page that are shown
COLOURS = 192


def take(pages: dict[str, Path]) -> None:
    """Take the pictures of pages, by the names that they get."""
    with sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=shutil.which("chromium-headless-shell"), args=["--no-sandbox"]
        )
        for name, page in pages.items():
            for width, height in HEIGHTS.items():
                for scheme in ("light", "dark"):
                    shown = browser.new_page(
                        viewport={"width": width, "height": height},
                        color_scheme=scheme,
                        reduced_motion="reduce",
                    )
                    shown.goto(page.absolute().as_uri())
                    shown.wait_for_timeout(300)
                    picture = Image.open(io.BytesIO(shown.screenshot())).convert("RGB").quantize(COLOURS)
                    picture.save(STATIC / f"{name}-{width}-{scheme}.png", optimize=True)
                    shown.close()
        browser.close()


if __name__ == "__main__":
    run, comparison = map(Path, sys.argv[1:])
    take({"report": run / "report.html", "comparison": comparison / "comparison.html"})
