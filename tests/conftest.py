"""How tests are shared out between processes, one per core: what a file builds once is built by one of them."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The longest first: whoever begins with them late ends late.
ORDER = ("chain", "browser", "serve", "parity", "train", "align")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        room = item.path.relative_to(HERE).parts[0]
        return ORDER.index(room) if room in ORDER else len(ORDER)

    for item in items:
        room = item.path.relative_to(HERE).parts[0]
        item.add_marker(pytest.mark.xdist_group(room if room == "chain" else str(item.path.relative_to(HERE))))
    items.sort(key=place)
