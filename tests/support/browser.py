"""Chromium of the system, for the tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

#: Standards that axe-core checks, and its own rules of good practice.
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
#: Set where the tests must not be skipped, as in .ci/run.
REQUIRED = "FASTREID_AL_TEST_BROWSER"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; without it tests are skipped, and fail where it is required."""
    found = shutil.which("chromium")
    if found is None:
        line = "there is no chromium on PATH: apt install chromium"
        if os.environ.get(REQUIRED):
            pytest.fail(line)
        pytest.skip(line)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        opened = playwright.chromium.launch(executable_path=found, args=arguments)
        yield opened
        opened.close()
