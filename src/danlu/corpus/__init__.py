"""From raw text to clean documents, with a reason for everything that was left behind.

In:  a source: a package, a dataset, a file or a folder.
Out: the stage ``build`` with its ``CorpusSettings``, and ``is_heldout``, the split that other rooms use too.
Left out: removal of personal data, quality classifiers, mixing of several sources, decontamination.
"""

from danlu.corpus.settings import CorpusSettings
from danlu.corpus.split import is_heldout
from danlu.corpus.stage import build

__all__ = ["CorpusSettings", "build", "is_heldout"]
