"""A page as a reader sees it: drawn by Chromium in a frame, and looked at by check_page.js."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from requirements import need_program

CHECK = Path(__file__).with_name("check_page.js")


def find_browser() -> str:
    """Chromium; where there is none the reason is printed, in CI it must be there."""
    return need_program("chromium", "chromium-browser", "google-chrome", "chrome")


def looked_at(browser: str, page: str, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    """What check_page.js finds in a page, drawn in a frame of that width: Chromium's windows are 500 wide at least."""
    page = page.replace("</body>", f"<script>{CHECK.read_text('utf-8')}</script></body>")
    frame = f'<iframe style="border:0;width:{width}px;height:9000px" srcdoc="{html.escape(page)}"></iframe>'
    path = folder / "page.html"
    path.write_text(f"<!doctype html><style>:root{{color-scheme:light dark}}</style><body>{frame}</body>", "utf-8")
    return what_was_seen(dom_of(browser, path.as_uri(), folder, dark))


def dom_of(browser: str, url: str, folder: Path, dark: bool, virtual_s: int = 0) -> str:
    """The document that Chromium has made of a URL, after so many seconds of its own time, or once it is loaded."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--window-size=1400,9100", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    flags += [f"--virtual-time-budget={1000 * virtual_s}"] if virtual_s else []
    command = [browser, *flags, "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr[-2000:]
    return done.stdout


def what_was_seen(dom: str) -> dict[str, Any]:
    """What check_page.js found."""
    said = re.search(r'<pre id="page-check">(.*?)</pre>', dom, re.DOTALL)
    assert said is not None, dom[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(said[1]))
    return seen
