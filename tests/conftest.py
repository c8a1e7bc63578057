"""In which order the files of tests are run."""

from pathlib import Path

ROOT = Path(__file__).parent

# They take longest, and begin first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "text/test_run.py",
    "games/test_algorithms.py",
    "games/test_dqn.py",
    "games/test_scripts.py",
    "text/test_learn.py",
)


def pytest_collection_modifyitems(items):
    places = {ROOT / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
