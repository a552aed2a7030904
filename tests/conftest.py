"""How tests are shared out between processes, one per core: what a file builds once is built by one of them."""

from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
# The longest first: whoever begins with them late ends late.
ORDER = ("chain", "browser", "serve", "parity", "train", "align")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        room = item.path.relative_to(HERE).parts[0]
        return ORDER.index(room) if room in ORDER else len(ORDER)

    items.sort(key=place)


class Shares(LoadScopeScheduling):
    """Hands out files in the order above, and the room ``chain`` as one, since its tests share one run of a recipe.

    Not ``--dist loadgroup``, whose marks pytest-xdist 3.8 writes where pytest 9.2 no longer reads them: each test then
    goes to whoever is free, and everything that is built once per file is built twice.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/chain" if file.startswith("tests/chain/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Shares:
    config.option.loadscopereorder = False  # else the file with most tests comes first
    return Shares(config, log)
