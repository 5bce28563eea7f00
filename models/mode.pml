/* How a loop sleeps, against the descriptors it watches: FORCED never with descriptors, a descriptor is always seen, and
   the wake descriptor is never written to after it was closed.

   One thread sets modes, one registers a descriptor and unregisters it again, both under the loop's lock. For a mode
   or a first watch it then has the loop change over, by the internal queue if it runs. A producer wakes the loop: it
   claims the sleep, reads how the loop sleeps, and writes, each at its own time. The loop changes over before its next
   sleep, and back by itself before it sleeps without descriptors. When it ends it waits for the wake calls that were
   claimed. A doze changes over to epoll, and back, as the loop's own thread does: while it is awake.

   stands for:
     parking.wake a741278ed475
     parking.wake_sleeper 45669453c4d4
     parking.wide_awake 76c6a58d4dbc
     turn.wait 270e068e4a87
     turn.doze 4e7ef7f62841
     fd_watches.watch_add 5450ce70d7c4
     fd_watches.watch_finish b6a886b8fbd1
     fd_watches.epoll_sleep b601ced7e03c
     fd_watches.epoll_block 600111201ac4
     loop.set_fast_path_mode ff7854fcb75c
     loop._watch bcaacb0187a2
     loop._register 4378aa64880b
     loop._unwatch f98b2660287f
     loop._change_over 7e9da9b7aa20
     descriptors.set_mode f2abefe0e724
     descriptors.register 9330ed394fcd
     descriptors.unregister 66b353a3e4da
     descriptors.install 8b3ffb63d6d3
     descriptors._loop_ended 1437b7f2660f
     loop._finish_refusing 5190da7fbf69
   check
   bug BUG_UNLOCKED: the mode is read, and the descriptor registered, without the lock
   bug BUG_NO_CHANGE_OVER: a first descriptor does not have the loop change over
   bug BUG_BACK_WATCHING: the loop changes back to the futex while it has a descriptor
   bug BUG_CLOSE_AT_ONCE: the end does not wait for the wake calls that were claimed
   bug BUG_SENT_EARLY: a wake call is counted before it is made
*/
mtype = { FUTEX, EPOLL };
#define WAKES 2

bool forced, lock;
byte watches;
mtype park = FUTEX;               /* what the loop sleeps in next */
byte changes;                     /* in the internal queue */
bool task;                        /* the producers' work */
bool asleep, open = true;         /* the sleep word; the wake descriptor */
bool futex, eventfd;              /* a wake call has come */
bool ready;                       /* the descriptor has something to say */
byte seen, sent, claimed, ended;
#ifdef BUG_UNLOCKED
#define LOCK skip
#else
#define LOCK atomic { !lock -> lock = true }
#endif
#define UNLOCK lock = false
#define WANTED (watches > 0 -> EPOLL : FUTEX)

inline wake() {
    atomic {
        won = asleep;
        asleep = false
    };
    if
    :: won ->
        how = park;
#ifdef BUG_SENT_EARLY
        sent++;
#endif
        if
        :: how == FUTEX -> futex = true
        :: else -> d_step { assert(open); eventfd = true }
        fi;
#ifndef BUG_SENT_EARLY
        sent++
#endif
    :: else
    fi
}

inline change_over() {
    changes++;
    wake()
}

proctype Setter() {
    bool won, may;
    byte to;
    mtype how;
    for (to : 0 .. 1) {
        LOCK;
        may = (to == 1 || watches == 0);
        if
        :: may -> forced = !to
        :: else
        fi;
        UNLOCK;
        if
        :: may -> change_over()
        :: else
        fi;
        if
        :: to -> break
        :: else
        fi
    }
    ended++
}

proctype Watcher() {
    bool won, may;
    mtype how;
    LOCK;
    may = !forced;
    if
    :: may -> watches++; assert(!forced)
    :: else
    fi;
    UNLOCK;
    if
    :: may ->
#ifndef BUG_NO_CHANGE_OVER
        change_over();
#endif
        ready = true;             /* the system's doing; the loop is to see it */
        seen > 0;
        LOCK;
        watches--;
        ready = false;
        UNLOCK                    /* the loop changes back by itself */
    :: else
    fi;
    ended++
}

proctype Producer() {
    bool won;
    mtype how;
    task = true;
    wake()            /* the loop may end in the middle of this */
}

inline back() {
    if                            /* a change for a watch that begins here is in the queue */
#ifdef BUG_BACK_WATCHING
    :: park == EPOLL -> park = FUTEX
#else
    :: park == EPOLL && watches == 0 -> park = FUTEX
#endif
    :: else
    fi
}

proctype Loop() {
turn:
    if
    :: ended == 2 && changes == 0 && !task -> goto leave
    :: else
    fi;
    do
    :: changes > 0 ->
        changes--;
        LOCK;                     /* install: what is asked now, not when the change was queued */
        park = WANTED;
        UNLOCK
    :: changes == 0 -> break
    od;
    task = false;
    if
    :: ready && park == EPOLL -> seen = 1
    :: else
    fi;
    back();
    asleep = true;
    if
    :: task || changes > 0 || ended == 2 -> goto awake
    :: else
    fi;
    if                            /* sleeping in what was chosen, and in nothing else */
    :: park == FUTEX -> !asleep || futex || ended == 2; futex = false
    :: park == EPOLL ->
        if
        :: eventfd -> eventfd = false
        :: ready && seen == 0 -> seen = 1
        :: ended == 2             /* its deadline */
        fi
    :: ended == 2
    fi;
awake:
    atomic {
        if
        :: !asleep -> claimed++
        :: else -> asleep = false
        fi
    };
    goto turn;
leave:
#ifndef BUG_CLOSE_AT_ONCE
    sent >= claimed;
#endif
    open = false;
    assert(watches == 0 || !forced)
}

init {
    atomic { run Setter(); run Watcher(); run Producer(); run Loop() }
}
