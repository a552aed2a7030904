"""Room ``compress``: the same model, smaller, and what that costs.

In:  the aligned model, calibration text from training.
Out: INT8, magnitude-pruned and SparseGPT-pruned model directories, and a table that compares them; the stage
     ``compress``.
Left out: 4 bits, structured pruning, recovery training.
"""

from danlu.compress.calibrate import Site, walk
from danlu.compress.prune import magnitude
from danlu.compress.quantize import quantize
from danlu.compress.sparsegpt import sparsegpt
from danlu.compress.stage import CompressSettings, compress

__all__ = ["CompressSettings", "Site", "compress", "magnitude", "quantize", "sparsegpt", "walk"]
