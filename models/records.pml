/* Channels: records are claimed, filled, published, taken in batches and released, in a ring that comes round.

   PRODUCERS threads put EACH times one record, the first also two, into a ring of CAP; what finds it full is dropped (drop_new), or,
   with DROP_OLD, drops what is oldest. The loop's thread runs deliveries. A place says which ticket wrote it last, so a
   record that is overwritten, or read before it is written, is an assertion that fails. At the end nothing waits in an
   idle channel.

   stands for:
     records.records_claim 44946caf2b51
     records.records_publish 13dda7eeedf8
     records.records_published 22f44b106076
     records.records_release 1da24e698009
     records.records_drop_old 2661efd019d0
     channel_methods.copy_in 3220d85402a8
     channel_methods.claim_refused 61577b4eade9
     channel_methods.channel_put_native 6b0d645ce80e
     delivery.made_busy c7b6923979f4
     delivery.rest 7360b0505495
     delivery.deliver 67874f3638c5
   check
   check DROP_OLD
   bug BUG_FULL: one record more than there are places
   bug BUG_CLAIM_STORE: the tail is looked at and stored, and not swapped
   bug BUG_FILL_LATE: published, and then filled
   bug BUG_WORD: a word of sequence of the lap before counts
   bug BUG_RELEASE_EARLY: places are free before on_batch has returned
   bug BUG_REST_BLIND: idle without another look at the tail
   bug BUG_WAKE_STORE: the channel is found idle and stored busy, and not swapped
   bug BUG_REST_STORE: the same in rest
   bug DROP_OLD BUG_NO_LOCK: two may take from the front
   bug DROP_OLD BUG_DROP_BLIND: a record is dropped that is not published
*/
#ifndef PRODUCERS
#define PRODUCERS 2
#endif
#ifndef EACH
#define EACH 2
#endif
#define SHIFT 1
#define CAP 2

byte tail, head, published;
byte words[CAP];                 /* of sequence: (lap + 1) << SHIFT | count - 1 */
byte places[CAP];                /* the ticket that wrote it, and 1 */
bool busy, taking;
byte tasks;                      /* deliveries that are queued */
byte accepted, delivered, dropped, ended;

inline look(p, most) {           /* records_published, by who takes */
    p = published;
    do
    :: p - head >= most -> break
    :: else ->
        d_step { word = words[p % CAP] };
        if
#ifdef BUG_WORD
        :: word >> SHIFT >= p / CAP && word > 0 -> p = p + (word & (CAP - 1)) + 1
#else
        :: word >> SHIFT == p / CAP + 1 -> p = p + (word & (CAP - 1)) + 1
#endif
        :: else -> break
        fi
    od;
    published = p
}

inline begin_taking(won) {
#ifdef BUG_NO_LOCK
    won = true
#else
    atomic { won = !taking; taking = true }
#endif
}

inline drop_old(n) {
    begin_taking(won);
    if
    :: won ->
        t = tail;
        if
        :: t + n > head + CAP ->
            missing = t + n - head - CAP;
#ifdef BUG_DROP_BLIND
            dropped = dropped + missing; head = head + missing;
#else
            look(p, missing);
            if
            :: p - head < missing -> missing = p - head
            :: else
            fi;
            d_step { dropped = dropped + missing; head = head + missing };
#endif
        :: else
        fi;
        taking = false
    :: else
    fi
}

proctype Producer(byte me) {
    byte i, n, t, h, k, p, missing, word;
    bool won;
    for (i : 1 .. EACH) {
        if
        :: n = 1
        :: me == 1 -> n = 2
        fi;
        do
        :: t = tail;
           h = head;
#ifdef BUG_FULL
           if
           :: t + n > h + CAP + 1 ->
#else
           if
           :: t + n > h + CAP ->
#endif
#ifdef DROP_OLD
               drop_old(n)
#else
               n = 0; break
#endif
           :: else ->
#ifdef BUG_CLAIM_STORE
               tail = t + n; break
#else
               atomic {
                   if
                   :: tail == t -> tail = t + n; break
                   :: else
                   fi
               }
#endif
           fi
        od;
        if
        :: n > 0 ->
#ifdef BUG_FILL_LATE
            words[t % CAP] = ((t / CAP + 1) << SHIFT) | (n - 1);
#endif
            for (k : 0 .. n - 1) { places[(t + k) % CAP] = t + k + 1 }
#ifndef BUG_FILL_LATE
            words[t % CAP] = ((t / CAP + 1) << SHIFT) | (n - 1);
#endif
            accepted = accepted + n;
            if
            :: !busy ->                     /* load_sc, after the claim */
#ifdef BUG_WAKE_STORE
                won = true; busy = true;
#else
                atomic { won = !busy; busy = true };
#endif
                if
                :: won -> tasks++
                :: else
                fi
            :: else
            fi
        :: else
        fi
    }
    ended++
}

proctype Loop() {
    byte p, count, k, word;
    bool won;
    do
    :: tasks > 0 ->
        d_step { tasks--; assert(busy) };   /* nobody queues one for a channel that is idle, or two */
        won = true;
#ifdef DROP_OLD
        begin_taking(won);
#endif
        if
        :: !won -> tasks++                  /* somebody drops just now: again in the next turn */
        :: else ->
            look(p, CAP);
            count = p - head;
#ifndef DROP_OLD
            if
            :: count > CAP - head % CAP -> count = CAP - head % CAP
            :: else
            fi;
#ifdef BUG_RELEASE_EARLY
            head = head + count;
            for (k : 1 .. count) { assert(places[(head - k) % CAP] == head - k + 1) }
#else
            for (k : 1 .. count) { assert(places[(head + k - 1) % CAP] == head + k) }   /* on_batch */
#endif
#else
            for (k : 1 .. count) { assert(places[(head + k - 1) % CAP] == head + k) }   /* copied out */
#endif
#ifndef BUG_RELEASE_EARLY
            head = head + count;
#endif
            delivered = delivered + count;
#ifdef DROP_OLD
            taking = false;
#endif
            if                              /* rest */
            :: tail == head ->
                busy = false;
#ifndef BUG_REST_BLIND
                if
                :: tail != head ->
#ifdef BUG_REST_STORE
                    won = !busy; busy = true;
#else
                    atomic { won = !busy; busy = true };
#endif
                    if
                    :: won -> tasks++
                    :: else
                    fi
                :: else
                fi
#endif
            :: else -> tasks++
            fi
        fi
    :: ended == PRODUCERS && tasks == 0 && !busy -> break
    od;
    ended++
}

init {
    byte n;
    atomic {
        for (n : 1 .. PRODUCERS) { run Producer(n) }
        run Loop()
    };
    ended == PRODUCERS + 1;
    assert(tail == head && !taking);
    assert(accepted == delivered + dropped && accepted == tail)
}
