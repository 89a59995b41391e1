def pytest_addoption(parser):
    parser.addoption("--kills", type=int, help="how often the harness kills, 20 if left out")
