/* The chunk pool: a chunk has one owner, none is lost, and a slab is released only when all its chunks are free.

   TAKERS threads take and give back chunks, making slabs when there is none; the loop's thread trims meanwhile. The
   stack of free numbers is Treiber's with a counter in the head word: it is modelled read by read, since a stale read
   of a link is what the counter is for.

   stands for:
     stack.stack_pop cffb8f3671c2
     stack.stack_push 11da6868b4fa
     pool.pool_take c45fa9a8e72c
     pool.pool_give 2c77c95a3243
     pool.pool_trim 404ebce459e2
     pool.pool_address efb9515a6389
     ticket_queue.chunks_reserve 69b80af3eb13
     ticket_queue.chunks_return 7567e10265b4
   check
   check TRIM
   bug BUG_NO_COUNTER: the head's counter stands still (ABA)
   bug BUG_COUNT_AFTER: the counter is read again instead of taken from the head that was seen
   bug BUG_PUSH_STORE: a push stores the head
   bug TRIM BUG_NUMBERS_EARLY: a released slab's number may be used again before all its chunks are accounted for
   bug TRIM BUG_PARTLY_FREE: a slab is released when one of its chunks is still out
   bug TRIM BUG_PUT_BACK: a released slab's last chunk goes back into the stack
*/
#ifndef TAKERS
#define TAKERS 2
#endif
#ifdef TRIM
#define ROUNDS 1
#define SLABS 2
#else
#define ROUNDS 3
#define SLABS 3
#endif
#define PER_SLAB 2
#define CHUNKS (PER_SLAB * SLABS)
#define NONE 255
#define GONE 128                  /* stands for the count 0 of a released slab: below it those of its chunks that are left */
#define SLAB(chunk) ((chunk) / PER_SLAB)

/* stack 0 holds free chunks, stack 1 the numbers of released slabs; the links of the second follow those of the first */
byte top[2], counter[2];
byte next[CHUNKS + SLABS];
byte slab_count;
bool slab[SLABS];                 /* has memory */
bool out[CHUNKS];                 /* has an owner */
byte ended;

inline stack_pop(stack, base, result) {
    do
    :: d_step { old = top[stack]; count = counter[stack] };
       if
       :: old == 0 -> result = NONE; break
       :: else -> skip
       fi;
       below = next[base + old - 1];         /* stale if somebody else pops it now */
       atomic {
           if
#ifdef BUG_NO_COUNTER
           :: top[stack] == old -> top[stack] = below; result = old - 1; break
#elif defined(BUG_COUNT_AFTER)
           :: top[stack] == old -> top[stack] = below; counter[stack]++; result = old - 1; break
#else
           :: top[stack] == old && counter[stack] == count ->
              top[stack] = below; counter[stack]++; result = old - 1; break
#endif
           :: else
           fi
       }
    od
}

inline stack_push(stack, base, first, last) {
    do
    :: d_step { old = top[stack]; count = counter[stack] };
       next[base + last] = old;
#ifdef BUG_PUSH_STORE
       top[stack] = first + 1; break
#else
       atomic {
           if
           :: top[stack] == old && counter[stack] == count -> top[stack] = first + 1; break
           :: else
           fi
       }
#endif
    od
}

proctype Taker() {
    byte old, count, below, n, s, i;
    byte c, d;
    for (n : 1 .. ROUNDS) {
        stack_pop(0, 0, c);
        if
        :: c == NONE ->
            stack_pop(1, CHUNKS, s);
            if
            :: s == NONE -> atomic { s = slab_count; if :: s < SLABS -> slab_count++ :: else fi }
            :: else
            fi;
            if
            :: s >= SLABS                     /* no number left */
            :: else ->
                d_step { assert(!slab[s]); slab[s] = true };
                next[CHUNKS + s] = 0;
                c = s * PER_SLAB;
                d_step { assert(!out[c]); out[c] = true };
                stack_push(0, 0, c + 1, c + 1)        /* the others, one here; a chain of them is linked before */
            fi
        :: else -> d_step { assert(!out[c] && slab[SLAB(c)]); out[c] = true }
        fi;
        if
        :: c != NONE ->
            /* keep it for a while, and take another in the first round, so that they come back in another order */
            if
            :: n == 1 ->
                stack_pop(0, 0, d);
                if
                :: d != NONE -> d_step { assert(!out[d] && slab[SLAB(d)]); out[d] = true }
                :: else
                fi
            :: else
            fi;
            d_step { assert(out[c] && slab[SLAB(c)]); out[c] = false };
            stack_push(0, 0, c, c);
            if
            :: n == 1 && d != NONE ->
                d_step { assert(out[d] && slab[SLAB(d)]); out[d] = false };
                stack_push(0, 0, d, d)
            :: else
            fi
        :: else
        fi
    }
    ended++
}

#ifdef TRIM
proctype Trimmer() {
    byte old, count, below, taken, c, s, left;
    taken = NONE;
    do
    :: stack_pop(0, 0, c);
       if
       :: c == NONE -> break
       :: else -> d_step { assert(!out[c] && slab[SLAB(c)]); out[c] = true };
            next[CHUNKS + SLAB(c)]++;
            next[c] = taken;
            taken = c
       fi
    od;
    /* what is in the chain is counted in the slab's link, which is nobody's while its number is in use */
    do
    :: taken == NONE -> break
    :: else ->
        c = taken;
        taken = next[c];
        s = SLAB(c);
        left = next[CHUNKS + s];
        if
#ifdef BUG_PARTLY_FREE
        :: left >= PER_SLAB - 1 && left <= PER_SLAB ->
#else
        :: left == PER_SLAB ->
#endif
            next[CHUNKS + s] = GONE - (PER_SLAB - 1);         /* condemned */
            d_step { slab[s] = false; out[c] = false };
#ifdef BUG_NUMBERS_EARLY
            stack_push(1, CHUNKS, s, s);
#endif
#ifdef BUG_PUT_BACK
            stack_push(0, 0, c, c);
#endif
        :: left > PER_SLAB ->
            out[c] = false;
            next[CHUNKS + s] = left + 1;
#ifndef BUG_NUMBERS_EARLY
            if
            :: left + 1 == GONE -> stack_push(1, CHUNKS, s, s)
            :: else
            fi
#endif
        :: else ->
            next[CHUNKS + s] = left - 1;
            out[c] = false;
            stack_push(0, 0, c, c)
        fi
    od;
    ended++
}
#endif

init {
    byte n, c, found, numbers;
    atomic {
        /* one slab is there from the start, its chunks free: 0 above 1 */
        slab[0] = true; slab_count = 1; next[0] = 2; next[1] = 0; top[0] = 1;
        for (n : 1 .. TAKERS) { run Taker() }
#ifdef TRIM
        run Trimmer()
#else
        ended++
#endif
    };
    ended == TAKERS + 1;
    atomic {
        c = top[0];
        do :: c != 0 -> assert(found < CHUNKS && slab[SLAB(c - 1)] && !out[c - 1]); found++; c = next[c - 1]
        :: else -> break
        od;
        c = top[1];
        do :: c != 0 -> assert(numbers < SLABS && !slab[c - 1]); numbers++; c = next[CHUNKS + c - 1]
        :: else -> break
        od;
        assert(found == PER_SLAB * (slab_count - numbers))
    }
}
