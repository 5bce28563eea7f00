/* Drives the compiled kernels with real threads under ThreadSanitizer or AddressSanitizer, with as much of CPython as
   they call.

   kernels.ll and layout.h come from instrument.py. An object here is what the kernels look into: a header, then a
   numpy array's data pointer, or a tuple's size and items. References are counted, and the last one frees the object,
   so that a kernel that lets go too early is a heap-use-after-free, and one that never does is counted at the end.
   What a callback touches is plain memory: that its submit happens before its run is the kernels' to ensure. Each
   block and map is an allocation of its own, so that AddressSanitizer knows where it ends; TOO_SHORT makes them that
   much too small. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sched.h>
#include <sys/mman.h>
#include "layout.h"

typedef int64_t word;
#define METHOD(name) extern word kernel_##name(word self, word argument);
#define METHOD_MANY(name) extern word kernel_##name(word self, word arguments, word count);
METHOD(run) METHOD(drain) METHOD(release_pending) METHOD(stop) METHOD(wake) METHOD(acquire) METHOD(release) METHOD(close_queues)
METHOD(cancel_timer) METHOD(cancel_immediate) METHOD(submit_many) METHOD(alive) METHOD(destroy) METHOD(warm)
METHOD(ref_timer) METHOD(unref_timer) METHOD(producer_close) METHOD(dismantle) METHOD(producer_destroy)
METHOD(channel_deliver) METHOD(channel_drop) METHOD(channel_destroy) METHOD_MANY(channel_put_native)
METHOD_MANY(submit) METHOD_MANY(schedule_timer) METHOD_MANY(schedule_interval) METHOD_MANY(schedule_immediate)
METHOD_MANY(schedule_microtask) METHOD_MANY(schedule_next_tick) METHOD_MANY(producer_submit) METHOD_MANY(transition)

#define FAIL(...) (fprintf(stderr, "driver: " __VA_ARGS__), fputc('\n', stderr), exit(3))
#define CHECK(what) ((what) ? (void)0 : FAIL("%s:%d: not true: %s", __FILE__, __LINE__, #what))

/* --- objects ------------------------------------------------------------------------------------------------------ */

enum kind { NOTHING, TRUTH, INTEGER, REAL, TUPLE, LIST, ARRAY, CALLBACK, BREATHE_HOOK, REFUSE_HOOK, BUFFER };

typedef struct object {
    _Atomic word refs;
    word kind;
    char header[OBJECT_HEADER - 24];
    const char *type;            /* the last word of a header: what can be called has tp_call in its type */
    word first;                  /* array: data; tuple and list: size */
    word second;                 /* list: address of its items */
    union { word value; double real; };
    word more[2];                /* a tuple has up to four items, from `second` on */
    void *memory;                /* array: what is freed with it */
    void (*run)(struct object *);
    word data[4];                /* a callback's own */
} object;

static const char others[TYPE_CALL + 8], callables[TYPE_CALL + 8] = {[TYPE_CALL] = 1};
static _Atomic word living;      /* objects that are not freed yet */

enum { OFF = 8 };                /* an object lies at a multiple of 8, and here at none of 16 */

static object *make(enum kind kind, word items) {
    object *made = (object *)((char *)calloc(1, OFF + sizeof(object) + 8 * items) + OFF);
    made->kind = kind;
    made->type = kind == CALLBACK ? callables : others;
    atomic_store_explicit(&made->refs, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&living, 1, memory_order_relaxed);
    return made;
}

static object nothing = {1, NOTHING}, truth[2] = {{1, TRUTH}, {1, TRUTH}};
static int immortal(word at) { return ((object *)at)->kind <= TRUTH; }

void Py_IncRef(word at) {
    if (!immortal(at)) CHECK(atomic_fetch_add_explicit(&((object *)at)->refs, 1, memory_order_relaxed) > 0);
}

void Py_DecRef(word at) {
    object *gone = (object *)at;
    if (immortal(at)) return;
    word before = atomic_fetch_sub_explicit(&gone->refs, 1, memory_order_acq_rel);
    CHECK(before > 0);
    if (before > 1) return;
    if (gone->kind == TUPLE)
        for (word i = 0; i < *(word *)(at + OBJECT_HEADER); i++) Py_DecRef(((word *)(at + TUPLE_ITEMS))[i]);
    if (gone->kind == LIST)
        for (word i = 0; i < gone->first; i++)
            if (((word *)gone->second)[i]) Py_DecRef(((word *)gone->second)[i]);
    free(gone->memory);
    free((char *)gone - OFF);
    atomic_fetch_sub_explicit(&living, 1, memory_order_relaxed);
}

#ifndef TOO_SHORT
#define TOO_SHORT 0
#endif

static _Atomic word taken;       /* pieces of memory that kernels have not given back */
static _Atomic word emptied;     /* how often they have given pages back */

word PyMem_RawMalloc(word size) {
    atomic_fetch_add_explicit(&taken, 1, memory_order_relaxed);
    return (word)malloc(size - TOO_SHORT);
}
void PyMem_RawFree(word at) {
    if (at) atomic_fetch_sub_explicit(&taken, 1, memory_order_relaxed);
    free((void *)at);
}
word kernels_mmap(word at, word size, int protection, int flags, int fd, word offset) {
    CHECK(at == 0 && fd == -1 && offset == 0);
    void *made;
    CHECK(posix_memalign(&made, 64, size - TOO_SHORT) == 0);
    memset(made, 0, size - TOO_SHORT);
    atomic_fetch_add_explicit(&taken, 1, memory_order_relaxed);
    return (word)made;
}
int kernels_munmap(word at, word size) { PyMem_RawFree(at); return 0; }
int kernels_madvise(word at, word size, int advice) {   /* zeros, as late readers may find them at any moment */
    if (advice != MADV_DONTNEED) return 0;
    atomic_fetch_add_explicit(&emptied, 1, memory_order_relaxed);
    for (word *word_at = (word *)at; word_at < (word *)(at + size); word_at++)
        __atomic_store_n(word_at, 0, __ATOMIC_RELAXED);
    return 0;
}

/* --- what kernels call -------------------------------------------------------------------------------------------- */

static _Thread_local word exception;      /* the refusal that was raised */
static _Thread_local char thread_state;

word PyThreadState_GetUnchecked(void) { return (word)&thread_state; }
word PyEval_SaveThread(void) { return 1; }
int PyGILState_Ensure(void) { return 1; }
void PyGILState_Release(int state) { (void)state; }
void PyEval_RestoreThread(word state) { CHECK(state == 1); }
int PyTime_MonotonicRaw(word *result) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *result = now.tv_sec * 1000000000LL + now.tv_nsec;
    return 0;
}
int PyCallable_Check(word at) { return ((object *)at)->kind == CALLBACK; }
word PyBool_FromLong(word value) { return (word)&truth[value != 0]; }
word PyLong_FromLongLong(word value) { object *made = make(INTEGER, 0); made->value = value; return (word)made; }
word PyLong_AsLongLong(word at) { CHECK(((object *)at)->kind == INTEGER); return ((object *)at)->value; }
word PyFloat_FromDouble(double value) { object *made = make(REAL, 0); made->real = value; return (word)made; }
double PyFloat_AsDouble(word at) { CHECK(((object *)at)->kind == REAL); return ((object *)at)->real; }
word PyErr_Occurred(void) { return exception; }
void PyErr_Clear(void) { exception = 0; }
word PyErr_GetRaisedException(void) { word raised = exception; exception = 0; return raised; }
void PyErr_SetRaisedException(word error) { exception = error; }
word PyTuple_New(word count) {
    CHECK(count <= 4);            /* more would lie over `memory` */
    object *made = make(TUPLE, count);
    *(word *)((word)made + OBJECT_HEADER) = count;
    return (word)made;
}
word PySequence_List(word at) {
    object *from = (object *)at, *made = make(LIST, 0);
    CHECK(from->kind == LIST);
    made->first = from->first;
    made->memory = malloc(8 * from->first + 8);
    made->second = (word)made->memory;
    memcpy(made->memory, (void *)from->second, 8 * from->first);
    for (word i = 0; i < from->first; i++) Py_IncRef(((word *)made->second)[i]);
    return (word)made;
}
word PyObject_CallNoArgs(word at) {
    object *called = (object *)at;
    switch (called->kind) {
    case CALLBACK: called->run(called); return (word)&nothing;
    case BREATHE_HOOK: return (word)&nothing;
    }
    FAIL("called: an object of kind %ld", (long)called->kind);
}
word PyObject_Vectorcall(word at, word arguments, word count, word names) {
    if (((object *)at)->kind == CALLBACK && count == 0 && names == 0) return PyObject_CallNoArgs(at);
    CHECK(((object *)at)->kind == REFUSE_HOOK && count == 3 && names == 0);
    exception = PyLong_AsLongLong(*(word *)arguments);
    return 0;
}
#define NEVER(result, name, ...) result name(__VA_ARGS__) { FAIL(#name " was called"); }
NEVER(word, PyObject_CallOneArg, word at, word argument)
NEVER(word, PySequence_Tuple, word at)
NEVER(word, PyList_New, word count)
NEVER(word, PyDict_Size, word at)
NEVER(word, PyDict_GetItemWithError, word at, word key)
NEVER(int, PyDict_SetItem, word at, word key, word value)
NEVER(int, PyDict_DelItem, word at, word key)
NEVER(word, PyUnicode_FromString, word text)
NEVER(word, PyType_GetFlags, word at)
NEVER(word, PyFunction_GetCode, word at)
NEVER(word, PyThread_get_thread_ident, void)
NEVER(int, PyObject_VisitManagedDict, word at, word visit, word argument)
NEVER(word, PyType_GenericAlloc, word type, word count)
NEVER(int, PyList_Append, word at, word item)
NEVER(int, PyList_SetItem, word at, word index, word item)
NEVER(int, PyUnicode_Compare, word at, word other)
NEVER(word, PyUnicode_DecodeFSDefault, word text)
NEVER(word, PyUnicode_AsUTF8AndSize, word at, word size)
NEVER(int, PySys_Audit, word event, word format, word one, word other)
NEVER(void, PyErr_WriteUnraisable, word at)
NEVER(void, PyErr_BadArgument, void)
NEVER(void, PyException_SetContext, word error, word context)
NEVER(word, PyObject_GetIter, word at)
NEVER(word, PyIter_Next, word at)
NEVER(word, PySequence_GetSlice, word at, word first, word last)
NEVER(word, PyMem_Malloc, word size)
NEVER(void, PyMem_Free, word at)
NEVER(word, PyList_GetItemRef, word at, word index)
NEVER(word, PyFrame_GetBack, word at)
NEVER(word, PyFrame_GetCode, word at)
NEVER(int, PyFrame_GetLineNumber, word at)
NEVER(word, PyFrame_GetVar, word at, word name)
NEVER(word, PyBytes_FromStringAndSize, word from, word size)
NEVER(word, PyBytes_AsString, word at)
NEVER(word, PyBytes_Size, word at)
NEVER(word, PyObject_GetAttr, word at, word name)
NEVER(int, PyObject_SetAttr, word at, word name, word value)
NEVER(word, PyObject_GetItem, word at, word key)
NEVER(int, PyContext_Enter, word at)
NEVER(int, PyContext_Exit, word at)
NEVER(word, PyContext_CopyCurrent, void)
NEVER(int, PyObject_GetBuffer, word at, word view, int flags)
NEVER(void, PyBuffer_Release, word view)

/* --- a loop's state, as state.py makes it ------------------------------------------------------------------------- */

static char *base;
static object self_object;
static word self;
#define W(name) (*(word *)(base + STATE_##name))
#define S(path) (*(word *)(state + path))

static word hook(enum kind kind) { return (word)make(kind, 0); }
static word table(word words) { return (word)calloc(words, 8); }

static void open_queue(char *queue, word chunk, word pool) {
    char *state = queue;
    S(QUEUE_DIRECTORY) = table(1 << DIRECTORY_BITS);
    S(QUEUE_DIRECTORY_MASK) = (1 << DIRECTORY_BITS) - 1;
    S(QUEUE_SHIFT) = __builtin_ctzll(chunk);
    S(QUEUE_POOL) = pool;
    S(QUEUE_FINAL) = -1;
    S(QUEUE_GATE) = OPEN;
    S(QUEUE_LIMIT) = ((1 << DIRECTORY_BITS) - 512) * chunk;
}

static void open_loop(word chunk) {
    base = aligned_alloc(LINE, STATE_BYTES);
    memset(base, 0, STATE_BYTES);
    self_object.kind = NOTHING;
    self_object.first = (word)base;
    self = (word)&self_object;
    W(self) = self;
    W(none) = (word)&nothing;
    W(one) = 1;
    W(budget) = 64;
    W(lifecycle) = RUNNING;
    W(check_interrupts) = W(overload) = W(warn) = hook(BREATHE_HOOK);
    W(refuse) = W(report) = hook(REFUSE_HOOK);
    W(pool_chunk_bytes) = chunk * 8;
    W(pool_slab_limit) = SLAB_LIMIT;
    W(pool_next) = table(CHUNK_LIMIT);
    W(pool_slabs) = table(SLAB_LIMIT);
    W(pool_slab_next) = table(SLAB_LIMIT);
    open_queue(base + STATE_EXTERNAL, chunk, (word)base + STATE_POOL);
    open_queue(base + STATE_REMOTE, chunk, (word)base + STATE_POOL);
    W(timers_next) = (word)aligned_alloc(4096, SLOT_LIMIT * 8);   /* its pages are given back */
    memset((void *)W(timers_next), 0, SLOT_LIMIT * 8);
    W(timers_page) = 4096;
    W(timers_slabs) = table(SLOT_SLAB_LIMIT);
    W(timers_gathered) = table(SLOT_SLAB_LIMIT);
    W(timers_floors) = table(SLOT_SLAB_LIMIT);
    W(timers_slab_next) = table(SLOT_SLAB_LIMIT);
    W(far_horizon) = GRAIN_MASK;
    W(far_buckets) = table(BUCKET_TOTAL * BUCKET_BYTES / 8);
    object one = {1, INTEGER};
    one.value = 1;
    CHECK(kernel_warm(self, (word)&one) == (word)&truth[1]);
}

typedef struct { object *self; char *state; } handle;

static handle open_handle(word chunk) {
    handle made = {make(ARRAY, 0), aligned_alloc(LINE, HANDLE_BYTES)};
    memset(made.state, 0, HANDLE_BYTES);
    made.self->first = (word)made.state;
    *(word *)(made.state + HANDLE_loop) = (word)base;
    *(word *)(made.state + HANDLE_self) = (word)made.self;
    open_queue(made.state + HANDLE_QUEUE, chunk, (word)base + STATE_POOL);
    return made;
}

/* --- the play ----------------------------------------------------------------------------------------------------- */

enum { THREADS = 3 };
static int rounds = 2000;
static _Atomic word expected, stopped;    /* what was accepted so far; all producers are done */
static _Atomic word loop_left;            /* the loop's thread is done */
static word ran, order[THREADS];          /* the loop's own */
static word hooks_living;
static _Atomic word holding;              /* in a burst: how many producers have queued their first part */
static word to_hold;

static unsigned random_of(unsigned *seed) { return *seed = *seed * 1664525u + 1013904223u, *seed >> 16; }
static void pause_sometimes(unsigned *seed) {
    unsigned r = random_of(seed) & 255;
    if (r == 0) usleep(200);
    else if (r < 8) sched_yield();
}

static void run_in_order(object *callback) {   /* data: producer, number */
    word producer = callback->data[0];
    CHECK(callback->data[1] == order[producer]);
    order[producer]++;
    ran++;
}
static void run_any(object *callback) { callback->data[1]++; ran++; }

static object *callback_of(void (*run)(object *), word who, word number) {
    object *made = make(CALLBACK, 0);
    made->run = run;
    made->data[0] = who;
    made->data[1] = number;
    return made;
}

static word number_of(word object_at) {        /* an int's value; releases the int */
    word value = PyLong_AsLongLong(object_at);
    Py_DecRef(object_at);
    return value;
}

static void *loop_thread(void *unused) {
    while (atomic_load(&holding) < to_hold) sched_yield();
    CHECK(number_of(kernel_acquire(self, 0)) == 0);
    for (;;) {
        word ended = number_of(kernel_run(self, 0));
        if (ended == 4) break;                 /* ENDED_TERMINATING */
        CHECK(ended == 1);                     /* ENDED_STOP */
        if (atomic_load(&stopped) && kernel_alive(self, 0) == (word)&truth[0]) break;
    }
    kernel_release(self, 0);
    atomic_store(&loop_left, 1);
    return unused;
}

static void *submitter(void *argument) {
    word me = (word)argument;
    unsigned seed = me + 1;
    int held = 0;
    for (word i = 0; i < rounds;) {
        if (to_hold && !held && i > rounds * 7 / 8) {   /* and go on just when the loop has memory to give back */
            held = 1;
            atomic_fetch_add(&holding, 1);
            while (kernel_alive(self, 0) == (word)&truth[1]) sched_yield();
        }
        if (random_of(&seed) % 16 == 0) {
            word count = 1 + random_of(&seed) % 40, items[40];
            object list = {1, LIST};
            for (word j = 0; j < count; j++) items[j] = (word)callback_of(run_in_order, me, i + j);
            list.first = count;
            list.second = (word)items;
            CHECK(number_of(kernel_submit_many(self, (word)&list)) == count);
            for (word j = 0; j < count; j++) Py_DecRef(items[j]);
            i += count;
            atomic_fetch_add(&expected, count);
        } else {
            word made = (word)callback_of(run_in_order, me, i);
            CHECK(kernel_submit(self, (word)&made, 1) == (word)&nothing);
            Py_DecRef(made);
            i++;
            atomic_fetch_add(&expected, 1);
        }
        pause_sometimes(&seed);
    }
    return NULL;
}

static void *handle_user(void *argument) {
    word me = (word)argument;
    unsigned seed = me + 1;
    handle mine = open_handle(16);
    for (word i = 0; i < rounds; i++) {
        word made = (word)callback_of(run_in_order, me, i);
        CHECK(kernel_producer_submit((word)mine.self, (word)&made, 1) == (word)&nothing);
        Py_DecRef(made);
        atomic_fetch_add(&expected, 1);
        pause_sometimes(&seed);
    }
    return NULL;                               /* the handle itself stays; its user's reference is forgotten */
}

/* Timers: everybody arms, and cancels what anybody armed, out of a table of the latest ids. */
static _Atomic word latest[64];
static _Atomic word armed, cancelled;
static word fired;                             /* the loop's own */
static void run_timer(object *callback) { CHECK(callback->data[1] == 7); fired++; }
static void run_interval(object *callback) { callback->data[1]++; }

static word cancel(word identifier) {
    object number = {1, INTEGER};
    number.value = identifier;
    return kernel_cancel_timer(self, (word)&number) == (word)&truth[1];
}

static void *timer_user(void *argument) {
    unsigned seed = (word)argument + 1;
    for (word i = 0; i < rounds; i++) {
        object delay = {1, REAL};
        delay.real = (random_of(&seed) % 4) * 50e-6;
        word made = (word)callback_of(run_timer, 0, 7), arguments[] = {(word)&delay, made};
        word identifier = kernel_schedule_timer(self, (word)arguments, 2);
        CHECK(identifier);
        Py_DecRef(made);
        atomic_fetch_add(&armed, 1);
        unsigned place = random_of(&seed) % 64;
        atomic_store_explicit(&latest[place], number_of(identifier), memory_order_relaxed);
        if (random_of(&seed) % 2) {
            place = random_of(&seed) % 64;
            atomic_fetch_add(&cancelled, cancel(atomic_load_explicit(&latest[place], memory_order_relaxed)));
        }
        if (i % 64 == 0) {
            object *repeated = callback_of(run_interval, 0, 0);
            word again[] = {(word)&delay, (word)repeated};
            word number = number_of(kernel_schedule_interval(self, (word)again, 2));
            object id = {1, INTEGER};
            id.value = number;
            kernel_unref_timer(self, (word)&id);
            usleep(200);
            kernel_ref_timer(self, (word)&id);
            CHECK(cancel(number));
            CHECK(!cancel(number));
            Py_DecRef((word)repeated);
        }
        pause_sometimes(&seed);
    }
    return NULL;
}

/* Slabs of slots: bursts of timers that never fire, together more than the slabs that stay open. After a large burst of
   all nobody goes on before the loop's thread, which sorts the free slots, has sent the first slabs to rest; then small
   bursts take gathered chains, and open slabs again. Ids of slots that rest, or have another owner, find nothing. */
enum { LARGE_BURST = 3 * KEEP_SLABS * PER_SLAB / THREADS, SMALL_BURST = 2 * PER_SLAB };
static pthread_barrier_t all;

static void *slot_user(void *argument) {
    unsigned seed = (word)argument + 1;
    word *ids = malloc(LARGE_BURST * sizeof(word));
    object delay = {1, REAL};
    delay.real = 3600;
    object *callback = callback_of(run_timer, 0, 7);
    word arguments[] = {(word)&delay, (word)callback};
    for (word i = 0; i < rounds; i++) {
        word count = i % 16 == 0 ? LARGE_BURST : 1 + random_of(&seed) % SMALL_BURST;
        for (word j = 0; j < count; j++) {
            word identifier = kernel_schedule_timer(self, (word)arguments, 2);
            CHECK(identifier);
            ids[j] = number_of(identifier);
        }
        if (count == LARGE_BURST) pthread_barrier_wait(&all);
        word before = atomic_load_explicit(&emptied, memory_order_relaxed);
        if (count == LARGE_BURST) pthread_barrier_wait(&all); /* nobody reads it after another one's cancels */
        word stale = atomic_load_explicit(&latest[random_of(&seed) % 64], memory_order_relaxed);
        for (word j = 0; j < count; j++) CHECK(cancel(ids[j]));
        for (word j = 0; j < count; j += 100) CHECK(!cancel(ids[j]));
        CHECK(!cancel(stale));
        atomic_store_explicit(&latest[random_of(&seed) % 64], ids[count - 1], memory_order_relaxed);
        atomic_fetch_add(&armed, count);
        atomic_fetch_add(&cancelled, count);
        if (count == LARGE_BURST) {
            for (int tries = 0; atomic_load_explicit(&emptied, memory_order_relaxed) - before < 4; usleep(100)) {
                kernel_wake(self, 0);              /* it does not wake for a few cancels alone */
                CHECK(tries++ < 50000);
            }
        }
        pause_sometimes(&seed);
    }
    Py_DecRef((word)callback);
    free(ids);
    return NULL;
}

/* Everything that goes through the remote queue. */
static _Atomic word immediates_cancelled;
static void *remote_user(void *argument) {
    unsigned seed = (word)argument + 1;
    for (word i = 0; i < rounds; i++) {
        word made = (word)callback_of(run_any, 0, 0);
        switch (random_of(&seed) % 3) {
        case 0: CHECK(kernel_schedule_microtask(self, (word)&made, 1)); break;
        case 1: CHECK(kernel_schedule_next_tick(self, (word)&made, 1)); break;
        default: {
            word identifier = kernel_schedule_immediate(self, (word)&made, 1);
            CHECK(identifier);
            if (random_of(&seed) % 2 && kernel_cancel_immediate(self, identifier) == (word)&truth[1])
                atomic_fetch_add(&expected, -1);
            Py_DecRef(identifier);
        }
        }
        atomic_fetch_add(&expected, 1);
        Py_DecRef(made);
        pause_sometimes(&seed);
    }
    return NULL;
}

/* The end against submits: accepted = run, or dropped; refused ones stay their caller's. */
static _Atomic word refused;
static void *late_submitter(void *argument) {
    unsigned seed = (word)argument + 1;
    for (word i = 0; i < rounds; i++) {
        word made = (word)callback_of(run_any, 0, 0);
        if (kernel_submit(self, (word)&made, 1)) {
            atomic_fetch_add(&expected, 1);
        } else {
            CHECK(exception == REFUSED_CLOSED);
            exception = 0;
            atomic_fetch_add(&refused, 1);
        }
        Py_DecRef(made);
        pause_sometimes(&seed);
    }
    return NULL;
}

static void *closer(void *unused) {
    while (atomic_load(&expected) < rounds) sched_yield();
    object from = {1, INTEGER}, to = {1, INTEGER};
    from.value = RUNNING;
    to.value = TERMINATING;
    word both[] = {(word)&from, (word)&to};
    CHECK(kernel_transition(self, (word)both, 2) == (word)&truth[1]);
    kernel_close_queues(self, 0);
    return unused;
}

/* Channels: compiled producers and a compiled handler. What is in a record is plain memory. With "records" a producer
   whose records find no room tries again; with "records_old" the oldest are dropped. */
enum { PLACES = 16, MOST = 6 };
typedef struct { word who, number, twice; } record;
static char *channel;
static object *channel_object;
static int drop_old;
#define C(path) (*(word *)(channel + CHANNEL_##path))

static int take_records(word first, word count) {
    record *records = (record *)first;
    CHECK(count > 0 && count <= MOST);
    for (word i = 0; i < count; i++) {
        word who = records[i].who, number = records[i].number;
        CHECK(records[i].twice == 2 * number);
        CHECK(drop_old ? number >= order[who] : number == order[who]);
        order[who] = number + 1;
        ran++;
    }
    return 0;
}

static void run_delivery(object *task) { CHECK(kernel_channel_deliver((word)channel_object, 0) == (word)&nothing); }

static void open_channel(void) {
    channel = aligned_alloc(LINE, CHANNEL_BYTES);
    memset(channel, 0, CHANNEL_BYTES);
    channel_object = make(ARRAY, 0);
    channel_object->first = (word)channel;
    C(handle_loop) = (word)base;
    C(handle_self) = (word)channel_object;
    C(handle_queue_limit) = PLACES;
    C(handle_queue_shift) = __builtin_ctzll(PLACES);
    C(handle_queue_gate) = EXACT;
    C(handle_queue_final) = -1;
    C(sequences) = table(PLACES);
    C(records) = (word)malloc(PLACES * sizeof(record));
    C(copy) = (word)malloc(MOST * sizeof(record));
    C(ring) = 1;
    C(copies) = 2;
    C(record_bytes) = sizeof(record);
    C(max_batch) = MOST;
    C(on_full) = drop_old ? ON_FULL_DROP_OLD : ON_FULL_DROP_NEW;
    C(entry) = (word)take_records;
    C(ask) = hook(REFUSE_HOOK);
    C(task) = PyTuple_New(1);
    *(word *)(C(task) + TUPLE_ITEMS) = (word)callback_of(run_delivery, 0, 0);
}

static void close_channel(void) {
    kernel_channel_destroy((word)channel_object, 0);
    kernel_channel_drop((word)channel_object, 0);
    CHECK(C(handle_queued) == CHANNEL_IDLE && C(taking) == 0);
    if (drop_old) ran += C(dropped);
    Py_DecRef(C(task));
    Py_DecRef(C(ask));
    Py_DecRef((word)channel_object);
    free((void *)C(sequences));
    free((void *)C(records));
    free((void *)C(copy));
    free(channel);
}

static void *record_user(void *argument) {
    word me = (word)argument;
    unsigned seed = me + 1;
    for (word i = 0; i < rounds;) {
        record records[3];
        word count = 1 + random_of(&seed) % 3;
        for (word j = 0; j < count; j++) records[j] = (record){me, i + j, 2 * (i + j)};
        word stored = kernel_channel_put_native((word)channel, (word)records, count);
        CHECK(stored == count || (stored == 0 && !drop_old));
        if (!stored) { sched_yield(); continue; }
        i += count;
        atomic_fetch_add(&expected, count);
        pause_sometimes(&seed);
    }
    return NULL;
}

int main(int count, char **arguments) {
    const char *play = count > 1 ? arguments[1] : "submit";
    if (count > 2) rounds = atoi(arguments[2]);
    void *(*body)(void *) = !strcmp(play, "submit") || !strcmp(play, "burst") ? submitter
                          : !strcmp(play, "handles") ? handle_user
                          : !strcmp(play, "timers") ? timer_user
                          : !strcmp(play, "slots") ? slot_user
                          : !strcmp(play, "remote") ? remote_user
                          : !strcmp(play, "records") || !strcmp(play, "records_old") ? record_user
                          : !strcmp(play, "close") ? late_submitter : NULL;
    if (!body) FAIL("no play of the name %s", play);
    open_loop(16);
    hooks_living = atomic_load(&living);
    W(spin_max) = 20000;
    drop_old = !strcmp(play, "records_old");
    if (body == record_user) open_channel();
    pthread_barrier_init(&all, NULL, THREADS);
    pthread_t loop, threads[THREADS], ender;
    int closing = !strcmp(play, "close");
    to_hold = strcmp(play, "burst") ? 0 : THREADS;
    pthread_create(&loop, NULL, loop_thread, NULL);
    for (word i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, body, (void *)i);
    if (closing) pthread_create(&ender, NULL, closer, NULL);
    for (word i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    if (closing) pthread_join(ender, NULL);
    atomic_store(&stopped, 1);
    /* Again and again: a stop that comes while handles' work is in the loop's hands, where alive() does not see it, is
       used up by a turn after which there still is some. */
    while (!atomic_load(&loop_left)) { kernel_stop(self, 0); usleep(1000); }
    pthread_join(loop, NULL);

    CHECK(number_of(kernel_acquire(self, 0)) == 0);
    if (closing) CHECK(number_of(kernel_drain(self, 0)) == 6);   /* ENDED_DRAINED */
    kernel_release_pending(self, 0);
    if (body == record_user) close_channel();
    CHECK(fired + atomic_load(&cancelled) == atomic_load(&armed));
    CHECK(ran == atomic_load(&expected));
    word trimmed = 0;                          /* slabs that were given back: numbers in use without memory */
    for (word i = 0; i < W(pool_slab_count); i++) trimmed += ((word *)W(pool_slabs))[i] == 0;
    kernel_destroy(self, 0);
    while (kernel_dismantle(self, 0) == (word)&truth[1]) {}
    word left = atomic_load(&living) - hooks_living;
    if (!strcmp(play, "handles")) left -= THREADS;
    CHECK(left == 0);
    CHECK(atomic_load(&taken) == 0);
    printf("%s: ran %ld, armed %ld, fired %ld, cancelled %ld, refused %ld, parks %ld, wakes %ld, stalls %ld, trimmed %ld, emptied %ld\n", play,
           (long)ran, (long)atomic_load(&armed), (long)fired, (long)atomic_load(&cancelled),
           (long)atomic_load(&refused), (long)W(parks), (long)W(wakes_sent), (long)W(stalls), (long)trimmed, (long)atomic_load(&emptied));
    return 0;
}
