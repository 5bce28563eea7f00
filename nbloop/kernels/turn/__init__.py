"""A turn of the loop: `phases.py` names its phases in the order in which they run; each other file is one of them."""
