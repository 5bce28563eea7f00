"""The asv suite: one file per question. The modules that `compare` uses do the measuring.

asv takes certain names in a module for settings (`processes`, `number`, `timeout` ...): import nothing of such a name.
"""

import sys
from pathlib import Path

# asv puts the parent of this package on the path. Last, so that nbloop is the one that asv has installed.
sys.path.append(str(Path(__file__).resolve().parents[2]))
