import pytest


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="all of the counts, not a tenth of them")


@pytest.fixture(scope="session")
def count(pytestconfig):
    """How often something is tried, of the full count."""
    is_full = pytestconfig.getoption("full")
    return lambda full: full if is_full else max(full // 10, 1)
