/* kqueue() and kevent() over epoll: what the tests of nbloop/pollers/kqueue.py run against where there is no kqueue.
 *
 * Written from the manual pages, as far as nbloop uses them: EVFILT_READ, EVFILT_WRITE, EVFILT_USER with EV_CLEAR;
 * EV_ADD, EV_DELETE, EV_ONESHOT, EV_CLEAR, EV_RECEIPT, EV_EOF. -DFREEBSD gives FreeBSD's structure and numbers,
 * otherwise they are macOS's. A kqueue is an epoll set of three descriptors: a set to read, a set to write, and an
 * eventfd for the user event. Changes may be made while another thread waits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
#ifdef FREEBSD
    int64_t data;
    void *udata;
    uint64_t ext[4];
#else
    intptr_t data;
    void *udata;
#endif
};
#ifdef FREEBSD
_Static_assert(sizeof(struct kevent) == 64, "FreeBSD 12");
enum { EVFILT_USER = -11 };
#else
_Static_assert(sizeof(struct kevent) == 32 && offsetof(struct kevent, udata) == 24, "macOS");
enum { EVFILT_USER = -10 };
#endif
enum { EVFILT_READ = -1, EVFILT_WRITE = -2 };
enum { EV_ADD = 0x1, EV_DELETE = 0x2, EV_ONESHOT = 0x10, EV_CLEAR = 0x20, EV_RECEIPT = 0x40 };
enum { EV_ERROR = 0x4000, EV_EOF = 0x8000, NOTE_TRIGGER = 0x01000000 };
enum { DESCRIPTORS = 4096, QUEUES = 256, BATCH = 256 };

struct note {
    void *udata;
    unsigned short flags;
};
struct queue {
    int main, sets[2], user;
    struct note notes[2][DESCRIPTORS], user_note;
};
static struct queue *queues[QUEUES];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* For the layout tests: what the C compiler says of the structure. */
size_t kevent_offset(int field) {
    size_t offsets[] = {offsetof(struct kevent, ident), offsetof(struct kevent, filter),
        offsetof(struct kevent, flags), offsetof(struct kevent, fflags), offsetof(struct kevent, data),
        offsetof(struct kevent, udata), sizeof(struct kevent)};
    return offsets[field];
}

static void add(int set, int fd, uint32_t bits) {
    struct epoll_event event = {.events = bits, .data.fd = fd};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

int kqueue(void) {
    struct queue *new = calloc(1, sizeof *new);
    new->main = epoll_create1(EPOLL_CLOEXEC);
    new->user = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    add(new->main, new->user, EPOLLIN);
    for (int i = 0; i < 2; i++) {
        new->sets[i] = epoll_create1(EPOLL_CLOEXEC);
        add(new->main, new->sets[i], EPOLLIN);
    }
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < QUEUES; i++)
        if (queues[i] == NULL) {
            queues[i] = new;
            break;
        }
    pthread_mutex_unlock(&mutex);
    return new->main;
}

static struct queue *find(int kq) {
    for (int i = 0; i < QUEUES; i++)
        if (queues[i] != NULL && queues[i]->main == kq)
            return queues[i];
    return NULL;
}

/* What the kernel does when the last descriptor of a kqueue is closed; the main descriptor is closed by the caller. */
void kqueue_gone(int kq) {
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < QUEUES; i++)
        if (queues[i] != NULL && queues[i]->main == kq) {
            close(queues[i]->sets[0]);
            close(queues[i]->sets[1]);
            close(queues[i]->user);
            free(queues[i]);
            queues[i] = NULL;
        }
    pthread_mutex_unlock(&mutex);
}

static int change(struct queue *queue, const struct kevent *wish) {
    if (wish->filter == EVFILT_USER) {
        if (wish->flags & EV_ADD)
            queue->user_note = (struct note){wish->udata, wish->flags};
        else if (!(queue->user_note.flags & EV_ADD))
            return ENOENT;
        if (wish->fflags & NOTE_TRIGGER)
            eventfd_write(queue->user, 1);
        return 0;
    }
    if (wish->filter != EVFILT_READ && wish->filter != EVFILT_WRITE)
        return EINVAL;
    if (wish->ident >= DESCRIPTORS)
        return EBADF;
    int write = wish->filter == EVFILT_WRITE, set = queue->sets[write], fd = (int)wish->ident;
    struct note *note = &queue->notes[write][fd];
    struct epoll_event event = {.events = write ? EPOLLOUT : EPOLLIN | EPOLLRDHUP, .data.fd = fd};
    if (wish->flags & EV_DELETE) {
        int failed = epoll_ctl(set, EPOLL_CTL_DEL, fd, &event);
        note->flags = 0;
        return failed ? errno : 0;
    }
    int known = epoll_ctl(set, EPOLL_CTL_MOD, fd, &event) == 0;
    if (!known && errno != ENOENT)
        return errno;
    if (!known && !(wish->flags & EV_ADD))
        return ENOENT;
    if (!known)
        note->flags = wish->flags; /* an entry keeps the flags that it was made with */
    if (note->flags & EV_CLEAR)
        event.events |= EPOLLET;
    note->udata = wish->udata;
    return epoll_ctl(set, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) ? errno : 0;
}

static int harvest(struct queue *queue, struct kevent *found, int room) {
    int count = 0;
    eventfd_t value;
    if (room > 0 && eventfd_read(queue->user, &value) == 0) {
        found[count++] = (struct kevent){.filter = EVFILT_USER, .udata = queue->user_note.udata};
        if (!(queue->user_note.flags & EV_CLEAR))
            eventfd_write(queue->user, 1); /* it stays triggered */
    }
    for (int write = 0; write < 2; write++) {
        struct epoll_event events[BATCH];
        int most = room - count < BATCH ? room - count : BATCH;
        int ready = most > 0 ? epoll_wait(queue->sets[write], events, most, 0) : 0;
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd, left = 0;
            struct note *note = &queue->notes[write][fd];
            struct kevent *one = &found[count++];
            memset(one, 0, sizeof *one);
            one->ident = fd;
            one->filter = write ? EVFILT_WRITE : EVFILT_READ;
            one->udata = note->udata;
            one->flags = note->flags & (EV_CLEAR | EV_ONESHOT);
            if (!write && ioctl(fd, FIONREAD, &left) == 0)
                one->data = left;
            if (events[i].events & (EPOLLERR | EPOLLHUP | (write ? 0 : EPOLLRDHUP)))
                one->flags |= EV_EOF;
            if (events[i].events & EPOLLERR)
                one->fflags = ECONNRESET; /* so_error, which here cannot be read without being cleared */
            if (note->flags & EV_ONESHOT) {
                epoll_ctl(queue->sets[write], EPOLL_CTL_DEL, fd, &events[i]);
                note->flags = 0;
            }
        }
    }
    return count;
}

int kevent(int kq, const struct kevent *changes, int wishes, struct kevent *found, int room,
    const struct timespec *timeout) {
    pthread_mutex_lock(&mutex);
    struct queue *queue = find(kq);
    int answers = 0;
    for (int i = 0; queue != NULL && i < wishes; i++) {
        struct kevent wish = changes[i]; /* `found` may be the same memory */
        int error = change(queue, &wish);
        if (!error && !(wish.flags & EV_RECEIPT))
            continue;
        if (answers == room) {
            pthread_mutex_unlock(&mutex);
            errno = error;
            return -1;
        }
        wish.flags = EV_ERROR;
        wish.data = error;
        found[answers++] = wish;
    }
    pthread_mutex_unlock(&mutex);
    if (queue == NULL) {
        errno = EBADF;
        return -1;
    }
    if (answers || room == 0)
        return answers;
    struct epoll_event any[3];
    if (epoll_pwait2(queue->main, any, 3, timeout, NULL) < 0)
        return -1;
    pthread_mutex_lock(&mutex);
    int count = harvest(queue, found, room);
    pthread_mutex_unlock(&mutex);
    return count;
}
