"""matplotlib, imported whatever MPLBACKEND says: figures here are drawn without any backend.

Notebooks set it for their shells, to one that may not be installed here, or it is misspelt: matplotlib then
cannot even be imported.
"""

import os
from contextlib import suppress

_asked = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib as matplotlib  # given on under this name
finally:
    if _asked is not None:
        os.environ["MPLBACKEND"] = _asked
if _asked:
    with suppress(ValueError):  # for the user's own figures in this process
        matplotlib.rcParams["backend"] = _asked
