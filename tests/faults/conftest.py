def pytest_addoption(parser):
    parser.addoption("--kills", type=int, help="how often the harness kills, 20 if left out")
    parser.addoption("--full", action="store_true", help="all of the counts, not a tenth of them")
