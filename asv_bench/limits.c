/* What no program on this machine gets below, for `asv_bench.compare`. Each line on the standard input asks for one
 * round; the answer is a line of JSON, in ns:
 *
 *   futex  to a thread that sleeps in a futex and back from it, the median of ten, after a pause each time that is as
 *          long as the one before a hop to a sleeping loop
 *   copy   copying 64 bytes, as one of the many that a copy of 64 MiB is made of (both ends out of the caches)
 */
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { HOPS = 10, SETTLE_US = 300 };
static const size_t COPIED = 64u << 20;

static struct {
    _Alignas(64) _Atomic uint32_t word;
} there, back;

static void await(_Atomic uint32_t *word) {
    while (atomic_exchange(word, 0) == 0)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static void tell(_Atomic uint32_t *word) {
    atomic_store(word, 1);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *answer(void *unused) {
    for (;;) {
        await(&there.word);
        tell(&back.word);
    }
    return unused;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static int earlier(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int main(void) {
    pthread_t thread;
    char line[64], *from = malloc(COPIED), *to = malloc(COPIED);
    if (from == NULL || to == NULL || pthread_create(&thread, NULL, answer, NULL) != 0)
        return 1;
    memset(from, 1, COPIED);
    memset(to, 2, COPIED);
    while (fgets(line, sizeof line, stdin) != NULL) {
        int64_t times[HOPS];
        for (int i = 0; i < HOPS; i++) {
            usleep(SETTLE_US);
            int64_t start = now();
            tell(&there.word);
            await(&back.word);
            times[i] = now() - start;
        }
        qsort(times, HOPS, sizeof *times, earlier);
        int64_t start = now();
        memcpy(to, from, COPIED);
        int64_t copied = now() - start;
        __asm__ volatile("" ::"r"(to) : "memory");
        printf("{\"futex\": %lld, \"copy\": %.3f}\n", (long long)times[HOPS / 2], copied / (COPIED / 64.0));
        fflush(stdout);
    }
    return 0;
}
