"""The asv suite: one file a question. How something is measured is in the modules that `compare` uses too.

asv takes a module's names for settings (`processes`, `number`, `timeout` ...): do not import anything so named.
"""

import sys
from pathlib import Path

# asv puts the parent of this package on the path. Last, so that nbloop is the one that asv has installed.
sys.path.append(str(Path(__file__).resolve().parents[2]))
