/* The end of a loop: what was accepted is run, or dropped by close() alone, and who was refused stored nothing.

   Threads submit one task each, again after a refusal as long as the loop says RUNNING; the loop exits by itself when
   nothing is left (closes its queues if they are empty, and reopens them if it was wrong); another thread may call
   shutdown() or, with -DCLOSE, close(). The second queue is the remote one. A ticket drawn of a closed queue moves the
   tail too, and never counts.

   stands for:
     ticket_queue.queue_close 5b59fad60b72
     ticket_queue.queue_close_if_empty 262c789a814d
     ticket_queue.queue_reopen 32017a63f81b
     ticket_queue.queue_tail ddcaf17dee2d
     turn.quiet cbfab44a0c3d
     turn.drain 7700f321c953
     lifetime.transition b804f69e378e
     lifetime.close_queues 6d76a3174222
     lifetime.end_if_quiet 40ea4e4bb756
     external.queue_drop 6786b41f4d15
     refusal.refuse b8a89790f9b2
   check
   check CLOSE
   bug BUG_CLOSE_IN_TWO: a close reads the tail, and marks it a moment later
   bug BUG_QUIET_IN_TWO: the quiet loop looks whether the queue is empty, and then closes it
   bug BUG_DRAW_IN_TWO: a producer looks whether the queue is open, and then draws
   bug BUG_FINISH_OPEN: the end does not close queues that a reopening may have opened again
   bug BUG_FINAL_KEPT: a reopening does not take the final tail back
*/
#ifndef PRODUCERS
#define PRODUCERS 2
#endif
#define EXTERNAL 0
#define REMOTE 1
mtype = { RUNNING, TERMINATING, TERMINATED };

mtype lifecycle = RUNNING;
bool closed[2], interrupted;
byte tail[2], head[2];
short final[2] = -1;
byte stored[2];                   /* as many cells are published; in order, or the consumer waits */
byte accepted, refused, ran, dropped;

inline queue_tail(q, t) {
    do
    :: d_step { shut = closed[q]; t = tail[q] };
       if
       :: !shut -> break
       :: else ->
          f = final[q];
          if
          :: f >= 0 -> t = f; break
          :: else -> final[q] >= 0 || !closed[q]      /* pause() */
          fi
       fi
    od
}

inline queue_close(q) {
#ifdef BUG_CLOSE_IN_TWO
    f = tail[q];
    if
    :: !closed[q] -> closed[q] = true; final[q] = f
    :: else
    fi
#else
    atomic {
        if
        :: closed[q] -> f = -1
        :: else -> closed[q] = true; f = tail[q]
        fi
    };
    if
    :: f >= 0 -> final[q] = f
    :: else
    fi
#endif
}

inline queue_close_if_empty(q, did) {
#ifdef BUG_QUIET_IN_TWO
    if
    :: !closed[q] && tail[q] == head[q] -> closed[q] = true; final[q] = head[q]; did = true
    :: else -> did = false
    fi
#else
    atomic {
        did = (!closed[q] && tail[q] == head[q]);
        if
        :: did -> closed[q] = true
        :: else
        fi
    };
    if
    :: did -> final[q] = head[q]
    :: else
    fi
#endif
}

inline queue_reopen(q) {
    f = final[q];
    if
    :: f >= 0 ->
#ifndef BUG_FINAL_KEPT
        final[q] = -1;
#endif
        d_step { closed[q] = false; tail[q] = f }
    :: else
    fi
}

proctype Producer(byte q) {
    bool won;
    do
    ::
#ifdef BUG_DRAW_IN_TWO
       won = !closed[q];
       if
       :: won -> tail[q]++
       :: else
       fi;
#else
       atomic { won = !closed[q]; tail[q] = (tail[q] < 12 -> tail[q] + 1 : tail[q]) };
#endif
       if
       :: won -> d_step { stored[q]++; accepted++ }; break
       :: else ->
          if
          :: lifecycle == RUNNING -> !closed[q] || lifecycle != RUNNING      /* refuse() returned: again */
          :: else -> refused++; break
          fi
       fi
    od
}

proctype Ender() {
    short f;
    atomic {
        if
        :: lifecycle == RUNNING -> lifecycle = TERMINATING
        :: else
        fi
    };
    queue_close(EXTERNAL);
    queue_close(REMOTE);
#ifdef CLOSE
    interrupted = true
#endif
}

inline take_all(q, count) {       /* what is there at entry */
    queue_tail(q, t);
    do
    :: head[q] < t && head[q] < stored[q] -> d_step { head[q]++; count++ }
    :: else -> break
    od
}

proctype Loop() {
    byte t;
    short f;
    bool shut, did, none;
turn:
    if
    :: lifecycle != RUNNING || interrupted -> goto finish
    :: else
    fi;
    queue_tail(EXTERNAL, t);
    none = (t == head[EXTERNAL]);
    queue_tail(REMOTE, t);
    none = none && t == head[REMOTE];
    if
    :: none ->                    /* quiet */
        queue_close_if_empty(EXTERNAL, did);
        if
        :: did ->
            queue_close_if_empty(REMOTE, did);
            if
            :: did ->
                if                /* something else holds it after all, or the end */
                :: queue_reopen(REMOTE); queue_reopen(EXTERNAL)
                :: atomic {
                       if
                       :: lifecycle == RUNNING -> lifecycle = TERMINATING
                       :: else
                       fi
                   };
                   goto finish
                fi
            :: else -> queue_reopen(EXTERNAL)
            fi
        :: else
        fi
    :: else
    fi;
    take_all(REMOTE, ran);
    take_all(EXTERNAL, ran);
    goto turn;
finish:
#ifndef BUG_FINISH_OPEN
    queue_close(EXTERNAL);
    queue_close(REMOTE);
#endif
    do                            /* drain */
    :: interrupted -> break
    :: else ->
        queue_tail(EXTERNAL, t);
        none = (t == head[EXTERNAL]);
        queue_tail(REMOTE, t);
        if
        :: none && t == head[REMOTE] -> break
        :: else
        fi;
        take_all(REMOTE, ran);
        take_all(EXTERNAL, ran)
    od;
    do                            /* drop: waits for a producer between ticket and store */
    :: queue_tail(EXTERNAL, t);
       none = (t == head[EXTERNAL]);
       queue_tail(REMOTE, t);
       if
       :: none && t == head[REMOTE] -> break
       :: else
       fi;
       take_all(EXTERNAL, dropped);
       take_all(REMOTE, dropped)
    od;
    lifecycle = TERMINATED
}

init {
    byte n;
    atomic {
        for (n : 1 .. PRODUCERS) { run Producer((n == 1 -> EXTERNAL : REMOTE)) }
        run Producer(EXTERNAL);
        run Ender();
        run Loop()
    };
    _nr_pr == 1;
    assert(lifecycle == TERMINATED);
    assert(accepted == ran + dropped && accepted + refused == PRODUCERS + 1);
#ifndef CLOSE
    assert(dropped == 0)
#endif
}
