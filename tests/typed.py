"""What type checkers infer for users: `make types` checks this file, nothing runs it."""

from __future__ import annotations

from typing import assert_type

from nbloop import Loop, Producer
from nbloop.js import JS


def views(loop: Loop) -> None:
    """What is made of a loop gives that loop back, not one of its bases."""
    assert_type(JS(loop).loop, Loop)
    assert_type(loop.producer(), Producer[Loop])
    assert_type(loop.producer().loop, Loop)


def parameters(js: JS, producer: Producer) -> None:
    """A bare class as an annotation does not hide methods of the loop."""
    js.loop.promisify(int)
    producer.loop.promisify(int)
