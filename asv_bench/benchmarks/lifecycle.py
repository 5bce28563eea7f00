"""What does a loop cost to have at all?"""

from .common import LOOPS


class Lifecycle:
    """From nothing to a running loop, and back."""

    params = tuple(LOOPS)
    param_names = ("loop",)

    def time_make_and_close(self, loop: str) -> None:
        """Decides whether a loop is cheap enough to make one for a test or a request."""
        LOOPS[loop]().close()

    def time_make_start_and_close(self, loop: str) -> None:
        """Decides the same with a thread: most of it is the thread's."""
        driven = LOOPS[loop]()
        driven.start()
        driven.close()
