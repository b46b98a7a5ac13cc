from __future__ import annotations

import pytest
from page_check import find_browser


@pytest.fixture(scope="package")
def browser() -> str:
    """Chromium, which draws pages."""
    return find_browser()
