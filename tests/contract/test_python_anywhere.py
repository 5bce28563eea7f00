"""No Python in the middle of a structure: audit hooks, monitoring, tracing, profiling, signal handlers and tracemalloc
run Python code, or look at memory, wherever the interpreter lets them; they call the loop, and raise KeyboardInterrupt.

Each program is a process of its own, as an audit hook cannot be removed. What a call that returned has stored runs
once, in order; what a call that was interrupted may have stored runs at most once; references come back; the loop can
be run again, and ended.
"""

from __future__ import annotations

import pytest

PLAY = """
    import gc, itertools, signal, sys, threading, weakref
    import nbloop
    from nbloop.testing import VirtualClock

    loop = nbloop.Loop(chunk_size=16)
    clock = VirtualClock(loop, autojump=0)
    armed, interrupted, entered, extras, ran_extras = [], [], [0], [], []
    main = threading.get_ident()
    for name in dir(loop):
        getattr(loop, name)  # what is bound once is bound
    loop.schedule_timer(1, loop.stop)
    loop.run()

    def disturb(*_):
        '''Entered wherever Python may run. It calls the loop, and every 499th time raises.'''
        if entered[0] < 0 or threading.get_ident() != main:
            return None
        count, entered[0] = entered[0] + 1, -1  # not while it is at work itself
        try:
            if count % 5 == 0 and len(extras) < 5000:  # or it keeps the loop busy for ever
                extras.append(count)
                loop.submit(ran_extras.append, count)
                assert loop.cancel_timer(loop.schedule_timer(3600, int))
                loop.schedule_microtask(int)
                loop.cancel_immediate(loop.schedule_immediate(int))
        finally:
            entered[0] = count
        if count % 499 == 0 and armed:
            armed.clear()
            raise KeyboardInterrupt
        return disturb

    def guarded(action):
        '''Do it again until nothing has interrupted it. Only here is anything interrupted.'''
        while True:
            try:
                armed.append(1)
                action()
                armed.clear()
                return
            except KeyboardInterrupt:
                interrupted.append(1)

    def each(count, call):
        '''`call(i)` for each i once; the results of those that were not interrupted, by i.'''
        numbers, results = itertools.count(), {}
        def rest():
            for i in numbers:
                if i >= count:
                    return
                armed.append(1)
                results[i] = call(i)
        guarded(rest)
        return results

    until = [0]
    def run():
        '''Until nothing is left. Timers of interrupted calls stop it at the same moment as the last one's.'''
        while loop.alive():
            until[0] = max(until[0], loop.now()) + 1000
            guarded(lambda: (loop.schedule_timer_at(until[0], loop.stop), loop.run()))

    class Watched:
        '''A callback in Python, whose death is seen.'''
        def __call__(self, *_):
            sys.audit("nbloop.test")

    def check(ran, results, count):
        '''In order, each at most once, and each once whose call returned.'''
        assert ran == sorted(set(ran)), "out of order, or twice"
        assert set(results) <= set(ran) <= set(range(count)), "lost"

    def play(scale):
        watched = weakref.WeakSet()
        def watch():
            made = Watched()
            watched.add(made)
            return made
        handle = loop.producer()
        def later(number):
            if number % 7 == 0:
                loop.submit(watch())
            return True
        kinds = {
            "submit": lambda ran, i: loop.submit(ran.append, i),
            "producer": lambda ran, i: handle.submit(ran.append, i),
            "internal": lambda ran, i: loop.submit_internal(ran.append, i),
            "microtask": lambda ran, i: loop.schedule_microtask(ran.append, i),
            "tick": lambda ran, i: loop.schedule_next_tick(ran.append, i),
            "close": lambda ran, i: loop.schedule_close(ran.append, i),
            "immediate": lambda ran, i: loop.schedule_immediate(ran.append, i),
            "timer": lambda ran, i: loop.schedule_timer(100.0, ran.append, i),
            "many": lambda ran, i: loop.submit_many([watch(), watch()]) and loop.submit(ran.append, i),
        }
        for name, kind in kinds.items():
            for inside in False, True:
                ran, outcome, count = [], {}, 3000 * scale
                def fill():
                    outcome.update(each(count, lambda i: (kind(ran, i), later(i))))
                if inside:
                    loop.submit(lambda: (armed.clear(), fill()))
                else:
                    fill()
                run()
                check(ran, outcome, count)
        ran, cancelled = [], []
        ids = each(2000 * scale, lambda i: loop.schedule_timer(100 + i % 7, ran.append, i))
        def cancel():
            for i in range(0, 2000 * scale, 3):
                if i in ids and loop.cancel_timer(ids[i]):
                    cancelled.append(i)
        guarded(cancel)
        interval = loop.schedule_interval(50, watch())
        loop.unref_timer(interval)
        run()
        assert loop.cancel_timer(interval)
        assert ran == sorted(ran, key=lambda i: (i % 7, i)), "timers are out of order"
        assert len(set(ran)) == len(ran)
        assert not set(cancelled) & set(ran), "cancelled, and ran"
        assert set(ids) - set(range(0, 2000 * scale, 3)) <= set(ran)
        return watched

    def end(watched):
        '''The disturbance is over.'''
        entered[0] = -1
        armed.clear()
        run()
        assert len(ran_extras) == len(extras), "what the disturbance stored has not run"
        loop.close()
        gc.collect()
        assert not list(watched), "references are left"  # its own bookkeeping may have been interrupted
        print("consistent", len(interrupted))
"""

DISTURBANCES = {
    "an audit hook": (
        """
    sys.addaudithook(disturb)
    end(play(8))
""",
        True,
    ),
    "monitoring": (
        """
    m = sys.monitoring
    m.use_tool_id(3, "test")
    m.register_callback(3, m.events.PY_START, disturb)
    m.set_events(3, m.events.PY_START)
    watched = play(1)
    m.set_events(3, 0)
    end(watched)
""",
        True,
    ),
    "tracing": (
        """
    sys.settrace(disturb)
    watched = play(1)
    sys.settrace(None)
    end(watched)
""",
        True,
    ),
    "profiling": (
        """
    sys.setprofile(disturb)
    watched = play(1)
    sys.setprofile(None)
    end(watched)
""",
        True,
    ),
    "signals": (
        """
    signal.signal(signal.SIGALRM, disturb)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    watched = play(6)
    signal.setitimer(signal.ITIMER_REAL, 0)
    end(watched)
""",
        False,  # how many come is the machine's affair
    ),
    "tracemalloc": (
        """
    import tracemalloc
    tracemalloc.start(5)
    watched = play(1)
    assert tracemalloc.get_traced_memory()[1] > 0
    end(watched)
""",
        False,
    ),
}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_consistent(run_script, disturbance):
    code, interrupts = DISTURBANCES[disturbance]
    last = run_script(PLAY + code).splitlines()[-1].split()
    assert last[0] == "consistent"
    assert not interrupts or int(last[1]) > 0  # a tracing function that raises is traced with no longer


def test_an_audit_hook_hears_of_no_memory(run_script):
    """Kernels take memory without Python: nobody is called, nothing can be raised."""
    print(
        run_script(
            """
            import sys, nbloop
            loop, heard = nbloop.Loop(), []
            def play(scale):
                for _ in range(20 * scale):
                    loop.submit(int)
                ids = [loop.schedule_timer(3600, int) for _ in range(7 * scale)]
                def rings():
                    for _ in range(2 * scale):
                        loop.schedule_microtask(int)
                        loop.schedule_immediate(int)
                loop.submit(rings)
                loop.cancel_timers(ids)
                loop.schedule_timer(0.2, loop.stop)
                loop.run()  # which gives memory back before it sleeps
            play(10)  # what is made once is made
            sys.addaudithook(lambda event, _: heard.append(event))
            play(10_000)
            # A run has audit events of its own, in its Python layer.
            assert len(heard) < 100 and not any("mmap" in event for event in heard), set(heard)
            """
        )
    )


def test_a_hook_that_raises_while_a_loop_is_made(run_script):
    """Whichever audit event of the constructor is answered with an exception: no loop, no crash, and nothing is left of
    it that the collector trips over.
    """
    print(
        run_script(
            """
            import gc, sys, nbloop
            left = [-1]
            def hook(event, _):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            sys.addaudithook(hook)
            for n in range(1, 1000):
                left[0] = n
                try:
                    loop = nbloop.Loop()
                    loop.producer()
                except KeyboardInterrupt:
                    pass
                else:
                    if left[0] > 0:
                        break
                left[0] = -1
                gc.collect()
            left[0] = -1
            assert 1 < n < 999, "no event, or one of them in each constructor"
            loop.submit(loop.stop)
            loop.run()
            loop.close()
            """
        )
    )
