/* Publish, sleep, wake: no wake-up is lost, and exactly one wake call is made for each sleep that somebody claims.

   A loop announces its sleep and then looks at what may have come; a producer draws its ticket and then looks at the
   sleep word. PRODUCERS threads submit EACH tasks, one more calls stop(); the loop ends when all that has happened.
   A lost wake-up is a loop that waits while all others have ended, which is an invalid end state. With -DEARLY a wait
   may also end by itself (a deadline, a signal, a stale wake, the end of a nap), which must not confuse the account of
   claims. A doze is a sleep like any other, announced and looked after in the same order.

   stands for:
     parking.wake a741278ed475
     parking.wake_sleeper 45669453c4d4
     parking.arrivals aa124c91dd59
     parking.fall_asleep 693c14ea059b
     parking.wide_awake 76c6a58d4dbc
     parking.sleep_on_word 71c93d78ed5e
     parking.park 8b3e6955f49c
     turn.wait 270e068e4a87
     turn.doze 4e7ef7f62841
     scheduling.send a815c45edfcd
     lifetime.stop c728301cfc37
   check
   check EARLY
   bug BUG_LOOK_FIRST: the loop looks, and then announces
   bug BUG_WAKE_FIRST: the producer looks at the sleep word, and then draws
   bug BUG_NO_SWAP: the claim is a store, and not a swap
   bug BUG_STOP_UNSEEN: a loop about to sleep does not look at `stop`
   bug EARLY BUG_UNCOUNTED: a claim that comes before the sleeper has woken by itself is not noted
*/
#ifndef PRODUCERS
#define PRODUCERS 2
#endif
#ifndef EACH
#define EACH 2
#endif
#define TOTAL (PRODUCERS * EACH)

byte tail, head;              /* ingress: tickets drawn, and taken */
bool cell[TOTAL];             /* published? */
bool stop;
bool asleep;                  /* the sleep word */
bool waiting;                 /* the loop is inside futex(FUTEX_WAIT) */
short uncalled, unnoted;      /* claims for which no wake call was made yet; that the loop has not noted yet */
bool claimed;                 /* this sleep has been claimed */
byte ended;

inline wake() {
    if
    :: asleep ->              /* load_sc */
#ifdef BUG_NO_SWAP
        d_step { asleep = false; assert(!claimed); claimed = true; uncalled++; unnoted++ };
        d_step { uncalled--; waiting = false }
#else
        atomic {              /* compare_and_swap */
            if
            :: asleep -> asleep = false; assert(!claimed); claimed = true; uncalled++; unnoted++; won = true
            :: else
            fi
        };
        if
        :: won -> d_step { uncalled--; waiting = false; won = false }   /* FUTEX_WAKE: nothing if nobody waits */
        :: else
        fi
#endif
    :: else
    fi
}

proctype Producer() {
    byte ticket, n;
    bool won;
    for (n : 1 .. EACH) {
#ifdef BUG_WAKE_FIRST
        wake();
#endif
        atomic { ticket = tail; tail++ };
        cell[ticket] = true;
#ifndef BUG_WAKE_FIRST
        wake()
#endif
    }
    ended++
}

proctype Stopper() {
    bool won;
    stop = true;
    wake();
    ended++
}

inline wide_awake() {
    atomic {
        if
        :: !asleep ->
#ifndef BUG_UNCOUNTED
            unnoted--
#else
            skip
#endif
        :: else -> asleep = false
        fi
    }
}

proctype Loop() {
turn:
    do
    :: head < tail && cell[head] -> head++
    :: else -> break
    od;
    if
    :: head == TOTAL && stop -> goto leave
    :: else
    fi;
    /* wait: arrivals, fall_asleep (announce, then look again), futex */
    if
    :: tail != head || (stop && head == TOTAL) -> goto turn
    :: else
    fi;
#ifndef BUG_LOOK_FIRST
    d_step { asleep = true; claimed = false };
#endif
    if
    :: tail != head -> goto awake
    :: else
    fi;
#ifndef BUG_STOP_UNSEEN
    if
    :: stop && head == TOTAL -> goto awake
    :: else
    fi;
#endif
#ifdef BUG_LOOK_FIRST
    d_step { asleep = true; claimed = false };
#endif
    atomic { waiting = asleep };                         /* futex(FUTEX_WAIT) compares, and waits, as one step */
    if
    :: !waiting
#ifdef EARLY
    :: d_step { waiting -> waiting = false }
#endif
    fi;
awake:
    wide_awake();
    goto turn;
leave:
    ended++
}

init {
    byte n;
    atomic {
        for (n : 1 .. PRODUCERS) { run Producer() }
        run Stopper();
        run Loop()
    };
    ended == PRODUCERS + 2;
    assert(!asleep && uncalled == 0 && unnoted == 0)
}
