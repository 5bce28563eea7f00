"""A turn of the loop: `phases.py` lists its phases in the order in which they run; the other files implement them."""
