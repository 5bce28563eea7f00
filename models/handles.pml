/* Producer handles: a handle with work is in the ready stack, once, and the stack keeps it alive.

   HANDLES threads submit EACH tasks through a handle of their own and then drop it. The loop takes the ready stack as
   a whole, serves each handle (as much as a budget, which may be too small, allows), and lays it to rest or puts it
   back. Work that nobody announced is a loop that sleeps for ever, an invalid end state.

   stands for:
     scheduling.announce a5f880360b92
     external.handle_ready e3214bf42460
     external.handle_rest c7cf28087606
     external.handles_put_back c1cf61ce27e0
     external.handle_drain 501164e806c5
     external.run_external e9b9e9a13684
   check
   bug BUG_REST_BLIND: a handle is laid to rest without another look at its queue
   bug BUG_ANNOUNCE_STORE: `queued` is read and stored instead of swapped
   bug BUG_REST_STORE: the same in handle_rest
   bug BUG_NO_REFERENCE: the stack owns no reference of the handles in it
   bug BUG_READY_STORE: the stack's head is stored, and not swapped
*/
#ifndef HANDLES
#define HANDLES 2
#endif
#ifndef EACH
#define EACH 2
#endif
#define TOTAL (HANDLES * EACH)

byte tail[HANDLES + 1], head[HANDLES + 1];   /* a handle's number is its index; 0 is none */
bool queued[HANDLES + 1];
byte next[HANDLES + 1];
byte refs[HANDLES + 1];
byte stacked[HANDLES + 1];    /* how often it is in the ready stack, or in the chain that the loop has taken of it */
byte ready;
bool asleep, waiting;
byte taken, ended;

inline wake() {
    if
    :: asleep ->
        atomic { if :: asleep -> asleep = false; waiting = false :: else fi }
    :: else
    fi
}

inline drop_reference(h) {
    d_step {
        assert(refs[h] > 0);
        refs[h]--;
        assert(refs[h] > 0 || (tail[h] == head[h] && stacked[h] == 0))   /* freed with work in it, or in the stack */
    }
}

inline handle_ready(h, top) {
    do
    :: top = ready;
       next[h] = top;
#ifdef BUG_READY_STORE
       ready = h; stacked[h]++; break
#else
       atomic {
           if
           :: ready == top -> ready = h; stacked[h]++; assert(stacked[h] == 1); break
           :: else
           fi
       }
#endif
    od
}

proctype Producer(byte me) {
    byte n, top;
    bool won;
    for (n : 1 .. EACH) {
        tail[me]++;                         /* ticket and store: the queue is ingress.pml's matter */
        if
        :: !queued[me] ->                   /* load_sc */
#ifdef BUG_ANNOUNCE_STORE
            won = true; queued[me] = true;
#else
            atomic { won = !queued[me]; queued[me] = true };
#endif
            if
            :: won ->
#ifndef BUG_NO_REFERENCE
                refs[me]++;
#endif
                handle_ready(me, top);
                wake()
            :: else
            fi
        :: else
        fi
    }
    drop_reference(me);                     /* its user forgets it */
    ended++
}

proctype Loop() {
    byte order, below, top, count, again, h;
    bool won;
turn:
    if
    :: taken == TOTAL -> goto leave
    :: else
    fi;
    if
    :: ready != 0 -> goto phase
    :: else
    fi;
    asleep = true;                          /* fall_asleep; parking.pml looks at it more closely */
    if
    :: ready != 0 -> asleep = false; goto phase
    :: else
    fi;
    atomic { waiting = asleep };
    !waiting;
    asleep = false;
phase:
    atomic { h = ready; ready = 0 };
    order = 0;
    do                                      /* reversed */
    :: h != 0 -> below = next[h]; next[h] = order; order = h; h = below
    :: else -> break
    od;
    again = 0;
    do
    :: order != 0 ->
        d_step { assert(refs[order] > 0); below = next[order]; count = tail[order] - head[order] };
        if                                  /* drained as far as the budget goes: all, one, nothing */
        :: skip
        :: count > 1 -> count = 1
        :: count > 0 -> count = 0
        fi;
        d_step { head[order] = head[order] + count; taken = taken + count };
        if
        :: tail[order] != head[order] ->
            if
            :: count > 0 -> next[order] = again; again = order
            :: else -> stacked[order]--; handle_ready(order, top)
            fi
        :: else ->
            stacked[order]--;
            queued[order] = false;          /* handle_rest */
#ifdef BUG_REST_BLIND
            drop_reference(order)
#else
            if
            :: tail[order] != head[order] ->
#ifdef BUG_REST_STORE
                won = true; queued[order] = true;
#else
                atomic { won = !queued[order]; queued[order] = true };
#endif
                if
                :: won -> handle_ready(order, top)
                :: else -> drop_reference(order)
                fi
            :: else -> drop_reference(order)
            fi
#endif
        fi;
        order = below
    :: else -> break
    od;
    do
    :: again != 0 -> below = next[again]; stacked[again]--; handle_ready(again, top); again = below
    :: else -> break
    od;
    goto turn;
leave:
    /* what is still announced holds a reference: the next turn, or the loop's end, lets go of it */
    ended++
}

init {
    byte n;
    atomic {
        for (n : 1 .. HANDLES) { refs[n] = 1; run Producer(n) }
        run Loop()
    };
    ended == HANDLES + 1;
    assert(taken == TOTAL);
    for (n : 1 .. HANDLES) { assert(tail[n] == head[n] && refs[n] == stacked[n]) }
}
