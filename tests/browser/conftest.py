"""A Chromium for the tests of pages, or a word why there is none."""

import pytest

from tests.browser.chrome import Chrome, find_chrome


@pytest.fixture(scope="session")
def chrome(tmp_path_factory):
    """One browser for all tests."""
    program = find_chrome()
    if program is None:
        pytest.skip("no Chromium is installed: make browser-test installs one")
    with Chrome.running(program, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(chrome):
    """An empty tab of 1280 x 900 pixels, which keeps console errors and requests."""
    with chrome.page() as tab:
        tab.resize(1280, 900)
        yield tab
