"""``python -m danlu``, which is also what ``torchrun -m danlu`` starts.

In:  a command line.
Out: what ``danlu`` does with it.
Left out: everything; see ``cli``.
"""

from danlu.cli import main

if __name__ == "__main__":
    main()
