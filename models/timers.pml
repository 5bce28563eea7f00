/* The word of a timer's slot: a timer fires or is cancelled, never both and never neither, and every callback is
   released once; an id of a slot that is used again is nobody's.

   Threads arm TIMERS timers from elsewhere, the loop arms one more on its own thread as soon as the slot is free;
   another thread cancels what it knows of in any order, and takes references away from a timer and gives them
   back. The heap is a set, since any timer may be due at any moment. With -DINTERVAL the first timer is an interval.

   stands for:
     slots.slot_open b40ce4f1b260
     slots.slot_of 28d7f29e5dc4
     timer_slots.timer_arm_here 7da41f9b3d35
     timer_slots.timer_arm_elsewhere 2be7bce92442
     timer_slots.timer_armed e593209fd6a8
     timer_slots.timer_removed 5209a7681e39
     timer_slots.timer_cancel 8d65551b3cd9
     timer_slots.timer_reference 68bc2e3a102f
     phases.timer_fire 2c97c9648739
     phases.interval_ran 39de6e811de7
     remote.fetch_some a8fe283a82ad
   check
   check INTERVAL
   bug BUG_NO_GENERATION: a cancel does not look at the generation
   bug BUG_FIRE_STORE: the loop looks at the word, and then stores SPENT
   bug BUG_READ_LATE: the callback to release is read after the swap
   bug BUG_FREE_EARLY: a canceller frees the slot itself, and a command still names it
   bug BUG_UNREFERENCED_KEPT: a cancelled timer stays among those that do not count
   bug INTERVAL BUG_RAN_STORE: after an interval's callback ARMED is stored, and not swapped
   bug INTERVAL BUG_RELEASE_RUNNING: who cancels an interval in its callback releases it, and so does the loop
*/
#define TIMERS 1                  /* armed elsewhere */
#define ALL (TIMERS + 1)
mtype = { SPENT, PENDING, ARMED, RUNNING, CANCELLED, ARM, CANCEL };

mtype state[1] = SPENT;             /* of the one slot there is: each generation follows in the place of another */
byte generation[1];
bool unreferenced[1];
byte callback[1];             /* timer + 1 */
bool in_heap[1], free[1];
chan commands = [3] of { mtype, byte };
short live, not_counted;
byte held[ALL + 1];               /* references that the slots own, by callback */
byte id_slot[ALL], id_generation[ALL];
bool known[ALL], over[ALL];       /* the id has been returned; a cancel has returned True */
byte fired[ALL], cancelled[ALL];
byte ended;
#ifdef INTERVAL
#define PERIODIC(t) ((t) == 0)
#else
#define PERIODIC(t) false
#endif

inline release(cb) { d_step { assert(held[cb] == 1); held[cb]-- } }
inline slot_free(s) { d_step { assert(!free[s] && !in_heap[s] && state[s] == SPENT); free[s] = true } }
inline slot_take(s) {
    atomic { free[0] -> s = 0; free[0] = false }
}
inline slot_open(t, s, new) {
    d_step { held[t + 1]++; callback[s] = t + 1 };
    d_step { generation[s]++; state[s] = new; unreferenced[s] = false; id_slot[t] = s; id_generation[t] = generation[s] }
}
inline timer_removed(s) {         /* the loop thread's */
    d_step { in_heap[s] = false; state[s] = SPENT };
    slot_free(s)
}
inline look(s) { d_step { g = generation[s]; st = state[s]; un = unreferenced[s] } }
#define SAME(s) (generation[s] == g && state[s] == st && unreferenced[s] == un)

inline timer_cancel(t) {
    s = id_slot[t];
    do
    :: look(s);
       if
#ifdef BUG_NO_GENERATION
       :: st == SPENT || st == CANCELLED -> won = false; break
#else
       :: g != id_generation[t] || st == SPENT || st == CANCELLED -> won = false; break
#endif
       :: else
       fi;
       cb = callback[s];
       atomic {
           if
           :: SAME(s) ->
              state[s] = CANCELLED; unreferenced[s] = false; won = true; cancelled[t]++; assert(cancelled[t] == 1); break
           :: else
           fi
       }
    od;
    if
    :: won ->
#ifdef BUG_READ_LATE
        cb = callback[s];
#endif
#ifndef BUG_UNREFERENCED_KEPT
        if
        :: un -> not_counted--
        :: else
        fi;
#endif
        live--;
        if
        :: st == ARMED ->
#ifdef BUG_FREE_EARLY
            d_step { in_heap[s] = false; state[s] = SPENT; free[s] = true };
#endif
            commands!CANCEL, s
        :: else
        fi;
        if
#ifndef BUG_RELEASE_RUNNING
        :: st == RUNNING
#endif
        :: else -> release(cb)
        fi;
        over[t] = true
    :: else
    fi
}

proctype Armer(byte t) {
    byte s;
    slot_take(s);
    live++;
    slot_open(t, s, PENDING);
    commands!ARM, s;
    known[t] = true;
    ended++
}

proctype Canceller() {
    byte t, n, s, g, cb;
    mtype st;
    bool un, won;
    for (n : 0 .. 1) {
        select(t : 0 .. ALL - 1);
        if
        :: known[t] -> timer_cancel(t)
        :: else
        fi
    }
    /* an interval ends only so */
    if
    :: PERIODIC(0) -> known[0]; timer_cancel(0)
    :: else
    fi;
    ended++
}

proctype Referrer() {
    byte s, g;
    mtype st;
    bool un;
    byte to;
    known[0];
    for (to : 0 .. 1) {           /* unref, then ref */
        s = id_slot[0];
        do
        :: look(s);
           if
           :: g != id_generation[0] || st == SPENT || st == CANCELLED -> break
           :: un != to -> break
           :: else
           fi;
           atomic {
               if
               :: SAME(s) -> unreferenced[s] = !to; break
               :: else
               fi
           }
        od;
        if
        :: g == id_generation[0] && st != SPENT && st != CANCELLED && un == to ->
            not_counted = not_counted + (to -> -1 : 1)
        :: else
        fi
    }
    ended++
}

inline call(t) {
    d_step { assert(held[t + 1] == 1); fired[t]++ }
}

inline timer_fire(s) {
    cb = callback[s];
    do
    :: look(s);
       if
       :: st == CANCELLED -> in_heap[s] = false; won = false; break
       :: else
       fi;
#ifdef BUG_FIRE_STORE
       state[s] = (PERIODIC(cb - 1) -> RUNNING : SPENT); won = true; break
#else
       atomic {
           if
           :: SAME(s) ->
              state[s] = (PERIODIC(cb - 1) -> RUNNING : SPENT);
              unreferenced[s] = (PERIODIC(cb - 1) -> unreferenced[s] : false);
              assert(!over[cb - 1]); won = true; break        /* this is when it starts */
           :: else
           fi
       }
#endif
    od;
    if
    :: won && !PERIODIC(cb - 1) ->
        in_heap[s] = false;
        if
        :: un -> not_counted--
        :: else
        fi;
        live--;
        slot_free(s);
        call(cb - 1);
        release(cb)
    :: won && PERIODIC(cb - 1) ->
        call(cb - 1);
        do                        /* interval_ran */
        :: look(s);
           if
           :: st == CANCELLED -> cb = callback[s]; timer_removed(s); release(cb); break
           :: else
           fi;
#ifdef BUG_RAN_STORE
           state[s] = ARMED; break
#else
           atomic {
               if
               :: SAME(s) -> state[s] = ARMED; break
               :: else
               fi
           }
#endif
        od
    :: else
    fi
}

proctype Loop() {
    byte s, g, cb;
    mtype st, command;
    bool un, won, armed;
    do
    :: commands?command, s ->
        if
        :: command == ARM ->
            do
            :: look(s);
               if
               :: st == CANCELLED -> state[s] = SPENT; slot_free(s); break
               :: else
               fi;
               atomic {
                   if
                   :: SAME(s) -> state[s] = ARMED; in_heap[s] = true; break
                   :: else
                   fi
               }
            od
        :: else -> timer_removed(s)
        fi
    :: in_heap[0] && fired[callback[0] - 1] < 2 -> s = 0; timer_fire(s)     /* often enough for an interval */
    :: atomic { !armed && free[0] && known[0] -> free[0] = false; s = 0; armed = true };
        live++;
        slot_open(TIMERS, s, ARMED);
        in_heap[s] = true;
        known[TIMERS] = true
    :: armed && ended == TIMERS + 2 && empty(commands) && !in_heap[0] -> break
    od;
    for (cb : 0 .. ALL - 1) {
        assert(held[cb + 1] == 0);
        assert(PERIODIC(cb) || fired[cb] + cancelled[cb] == 1);
        assert(!PERIODIC(cb) || cancelled[cb] == 1)
    }
    assert(free[0] && live == 0 && not_counted == 0)
}

init {
    byte n;
    atomic {
        free[0] = true;
        run Armer(0);
        run Canceller();
        run Referrer();
        run Loop()
    }
}
