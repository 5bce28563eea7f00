/* The ticket queue: what was accepted is taken once, in the order of the tickets, and every chunk comes back zeroed.

   PRODUCERS threads push EACH words; chunks have CELLS cells and are found through a directory of DIRECTORY entries, so
   few that it wraps around while the model runs. Producers pass a gate as the kernels' do: the backlog is read,
   and the ticket drawn a moment later. With -DMEMORY taking a chunk may fail, which voids a segment; the directory is
   then long enough not to wrap, because a void mark and a producer descheduled for a whole round of it (33 million
   tickets) is a case that is argued, not excluded: see docs/verification.md. With -DBATCH each producer pushes its
   words as one batch and brings the chunks along. The pool is pool.pml's matter: here a chunk is free or not.

   stands for:
     ticket_queue.queue_draw bf585e13b1c2
     ticket_queue.queue_draw_exactly 2f290e6fcd44
     ticket_queue.queue_segment 8ae89f897fee
     ticket_queue.queue_install 73d8488b3de2
     ticket_queue.queue_push a5b14038690a
     ticket_queue.queue_push_many 4ff007099375
     ticket_queue.queue_peek 95df64681133
     ticket_queue.queue_advance 72785b8e5ee8
     ticket_queue.queue_retire b987983a9784
     ticket_queue.queue_skip 6ece574279b5
     ticket_queue.queue_cell 2e7ff1d9db55
     ticket_queue.queue_entry 7f5603071d74
   check
   check MEMORY
   check BATCH
   check BATCH MEMORY
   bug BUG_INSTALL_STORE: a chunk is installed by a store
   bug BUG_LOST_CHUNK: who loses the race to install does not give its chunk back
   bug BUG_STORE_FIRST: the word is stored before the ticket is drawn
   bug BUG_NO_GATE: the directory is used a second time around before it has drained
   bug BUG_RETIRE_EARLY: a chunk is retired with its last cell still to be taken
   bug BUG_DIRTY: a cell is not cleared when it is taken
   bug MEMORY BUG_VOID_CLEARED: a void mark is cleared when the consumer steps over it
   bug MEMORY BUG_VOID_UNNAMED: a void mark is taken for an empty entry
   bug BATCH BUG_RESERVE_TWICE: a chunk of the reserve is used again after it was installed
*/
#ifndef PRODUCERS
#define PRODUCERS 2
#endif
#ifndef EACH
#ifdef BATCH
#define EACH 3
#elif defined(MEMORY)
#define EACH 2
#else
#define EACH 4
#endif
#endif
#define CELLS 2
#if defined(MEMORY) || defined(BATCH)
#define DIRECTORY 9
#define CHUNKS 8
#else
#define DIRECTORY 3
#define CHUNKS 4
#endif
#define SEGMENT(ticket) ((ticket) / CELLS)
#define VOID(ticket) (-1 - SEGMENT(ticket))
#define AT(ticket) (SEGMENT(ticket) % DIRECTORY)

byte tail, head;
short entry[DIRECTORY];           /* chunk + 1; 0 empty; < 0 the void mark of a segment */
byte cell[CHUNKS * CELLS];        /* producer * EACH + number + 1; 0 empty */
bool out[CHUNKS];                 /* taken from the pool */
bool accepted[PRODUCERS * EACH + 1];
byte accepted_count, taken, last[PRODUCERS], ended;
byte chunk_now;                   /* the consumer's own: chunk + 1 of the head's segment */

inline pool_take(c) {
    atomic {
        c = 0;
        do
        :: c < CHUNKS && out[c] -> c++
        :: else -> break
        od;
        if
#ifdef MEMORY
        :: c = CHUNKS
        :: c < CHUNKS -> out[c] = true
#else
        :: assert(c < CHUNKS); out[c] = true
#endif
        fi
    }
}

inline pool_give(c) {
    d_step { assert(out[c] && cell[(c) * CELLS] == 0 && cell[(c) * CELLS + 1] == 0); out[c] = false }
}

inline install(expected, new) {   /* compare_and_swap */
#ifdef BUG_INSTALL_STORE
    won = true; entry[AT(ticket)] = new
#else
    atomic {
        won = (entry[AT(ticket)] == expected);
        if
        :: won -> entry[AT(ticket)] = new
        :: else
        fi
    }
#endif
}

inline queue_segment() {          /* seen: the chunk + 1, or a void mark */
    seen = entry[AT(ticket)];
    if
#ifdef BUG_VOID_UNNAMED
    :: seen <= 0 ->
#else
    :: seen <= 0 && seen != VOID(ticket) ->
#endif
        pool_take(c);
        if
        :: c == CHUNKS -> new = VOID(ticket)
        :: else -> new = c + 1
        fi;
        install(seen, new);
        if
        :: won -> seen = new
        :: else ->
#ifndef BUG_LOST_CHUNK
            if
            :: c != CHUNKS -> pool_give(c)
            :: else
            fi;
#endif
            seen = entry[AT(ticket)]
        fi
    :: else
    fi
}

inline publish(word) {
    d_step {
        assert(seen > 0 && cell[(seen - 1) * CELLS + ticket % CELLS] == 0);
        cell[(seen - 1) * CELLS + ticket % CELLS] = word
    }
}

proctype Producer(byte me) {
    byte ticket, c, n, end, reserve[2];
    short seen, new;
    bool won;
#ifdef BATCH
    atomic {                          /* chunks_reserve: every chunk that the batch can need, and no ticket before */
        pool_take(c); reserve[0] = c; pool_take(c); reserve[1] = c;
        if
        :: reserve[0] == CHUNKS || reserve[1] == CHUNKS ->
            if
            :: reserve[0] != CHUNKS -> pool_give(reserve[0])
            :: else
            fi;
            if
            :: reserve[1] != CHUNKS -> pool_give(reserve[1])
            :: else
            fi;
            goto leave
        :: else
        fi
    };
    atomic { ticket = tail; tail = tail + EACH };
    end = ticket + EACH;
    n = 0;
    do
    :: n == EACH -> break
    :: else ->
        if
        :: ticket == end -> atomic { ticket = tail; tail = tail + (EACH - n); end = ticket + (EACH - n) }
        :: else
        fi;
        if
        :: n == 0 || ticket % CELLS == 0 || seen < 0 ->
            seen = entry[AT(ticket)];
            c = (reserve[0] != CHUNKS -> reserve[0] : reserve[1]);
            if
            :: seen <= 0 && seen != VOID(ticket) && c != CHUNKS ->
                install(seen, c + 1);
                if
#ifndef BUG_RESERVE_TWICE
                :: won && reserve[0] != CHUNKS -> reserve[0] = CHUNKS
                :: won && reserve[0] == CHUNKS -> reserve[1] = CHUNKS
#endif
                :: else
                fi
            :: else
            fi;
            queue_segment()
        :: else
        fi;
        if
        :: seen < 0 -> ticket = (SEGMENT(ticket) + 1) * CELLS; ticket = (ticket < end -> ticket : end)
        :: else ->
            d_step { accepted_count++; accepted[me * EACH + n + 1] = true };
            publish(me * EACH + n + 1);
            n++; ticket++
        fi
    od;
    if
    :: reserve[0] != CHUNKS -> pool_give(reserve[0])
    :: else
    fi;
    if
    :: reserve[1] != CHUNKS -> pool_give(reserve[1])
    :: else
    fi;
leave:
    skip;
#else
    for (n : 1 .. EACH) {
#ifndef BUG_NO_GATE
        tail - head < CELLS || DIRECTORY > 4;
#endif
#ifdef BUG_STORE_FIRST
        ticket = tail;
        queue_segment();
        publish(me * EACH + n);
        tail++;
        d_step { accepted_count++; accepted[me * EACH + n] = true }
#else
        atomic { ticket = tail; tail++ };
        queue_segment();
        if
        :: seen < 0
        :: else ->
            d_step { accepted_count++; accepted[me * EACH + n] = true };
            publish(me * EACH + n)
        fi
#endif
    }
#endif
    ended++
}

inline queue_retire() {
    /* the consumer's; nobody swaps an entry that holds a chunk */
    d_step { c = entry[AT(head)] - 1; entry[AT(head)] = 0 };
    chunk_now = 0;
    pool_give(c)
}

proctype Consumer() {
    byte word, c, t;
    do
    :: ended == PRODUCERS && head == tail -> break
    :: else ->
        if
        :: chunk_now == 0 ->                       /* queue_peek */
            if
            :: entry[AT(head)] == VOID(head) && tail != head ->
#ifdef BUG_VOID_CLEARED
                entry[AT(head)] = 0;
#endif
                t = tail;
                head = (t < (SEGMENT(head) + 1) * CELLS -> t : (SEGMENT(head) + 1) * CELLS)
            :: entry[AT(head)] > 0 -> chunk_now = entry[AT(head)]
            :: else -> (entry[AT(head)] > 0 || (entry[AT(head)] == VOID(head) && tail != head)
                        || (ended == PRODUCERS && head == tail))
            fi
        :: else ->
            (cell[(chunk_now - 1) * CELLS + head % CELLS] != 0 || (ended == PRODUCERS && head == tail));
            word = cell[(chunk_now - 1) * CELLS + head % CELLS];
            if
            :: word == 0
            :: else ->
                d_step {
                    assert(accepted[word]);
                    accepted[word] = false;        /* so that the same word again is an error */
                    t = (word - 1) / EACH;
                    assert(last[t] < word - t * EACH);
                    last[t] = word - t * EACH;
                    taken++
                };
#ifdef BUG_RETIRE_EARLY
                if
                :: head % CELLS == CELLS - 2 -> cell[(chunk_now - 1) * CELLS + head % CELLS] = 0; queue_retire()
                :: else
                fi;
#else
#ifndef BUG_DIRTY
                cell[(chunk_now - 1) * CELLS + head % CELLS] = 0;        /* queue_advance */
#endif
                if
                :: head % CELLS == CELLS - 1 -> queue_retire()
                :: else
                fi;
#endif
                head++
            fi
        fi
    od;
    assert(taken == accepted_count);
    if                                             /* queue_return_chunk */
    :: entry[AT(head)] > 0 -> queue_retire()
    :: else
    fi;
    for (c : 0 .. CHUNKS - 1) { assert(!out[c]) }
}

init {
    byte n;
    atomic {
        for (n : 1 .. PRODUCERS) { run Producer(n - 1) }
        run Consumer()
    }
}
