"""A pytest plugin (``-p no_shrinking``) for finding out only whether a property fails, without its smallest example.

Shrinking takes a minute where finding takes a second: scripts/mutate.py goes without.
"""

from hypothesis import Phase, settings

settings.register_profile("no shrinking", phases=[Phase.explicit, Phase.generate], database=None, print_blob=False)
settings.load_profile("no shrinking")
