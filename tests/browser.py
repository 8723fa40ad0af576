"""The browser that tests drive: `python tests/browser.py` prints its path, or fails. Standard library only."""

from __future__ import annotations

import os
import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


def find_browser() -> str | None:
    """Return the path of `$CHROMIUM`, or of a browser of Chromium's family that is installed, or None."""
    candidates = (os.environ.get("CHROMIUM"), *NAMES, *PLACES)
    return next((path for one in candidates if one and (path := shutil.which(one))), None)


if __name__ == "__main__":
    sys.exit(print(find_browser()) if find_browser() else 1)
