/* What the benchmark tools share: the clock, latencies, buffers, sockets, and the sample request.
 *
 * The request is written down once, so that the engine's NOTIFY and the bare sender's HTTP request
 * carry the same method, path, headers and body.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef BENCH_H
#define BENCH_H

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ULL

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(2);
}

static void *allocate(size_t size)
{
    void *memory = calloc(1, size);
    if (memory == NULL)
        die("out of memory (%zu bytes)", size);
    return memory;
}

/* ---- time --------------------------------------------------------------------------------- */

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* CPU time of this process so far, user and system, in seconds. */
static inline double cpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / NS_PER_S;
}

/* A timer that becomes readable `rate` times a second. */
static inline int ticker(double rate)
{
    uint64_t period = (uint64_t)(NS_PER_S / rate);
    struct timespec t = {(time_t)(period / NS_PER_S), (long)(period % NS_PER_S)};
    struct itimerspec every = {t, t};
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (fd < 0 || timerfd_settime(fd, 0, &every, NULL) < 0)
        die("timer: %s", strerror(errno));
    return fd;
}

/* ---- latencies: 64 steps in each power of two, so a percentile is right within 1.6 % ------ */

#define STEPS 64
struct latencies {
    uint64_t bucket[60 * STEPS];
    uint64_t count, max;
};

static inline void latency_add(struct latencies *l, uint64_t ns)
{
    int shift = ns < STEPS ? 0 : 64 - 7 - __builtin_clzll(ns);
    l->bucket[(size_t)shift * STEPS + (ns >> shift)]++;
    l->count++;
    if (ns > l->max)
        l->max = ns;
}

/* The latency in microseconds that `part` (0 to 1) of all stay within. */
static inline double latency_us(const struct latencies *l, double part)
{
    uint64_t wanted = (uint64_t)(part * (double)l->count), seen = 0;
    for (size_t i = 0; i < sizeof l->bucket / sizeof *l->bucket; i++)
        if ((seen += l->bucket[i]) > wanted) {
            /* Bucket i holds what is (i - shift * STEPS) << shift. */
            size_t shift = i < 2 * STEPS ? 0 : i / STEPS - 1;
            return (double)((uint64_t)(i - shift * STEPS) << shift) / 1e3;
        }
    return (double)l->max / 1e3;
}

/* ---- sockets ------------------------------------------------------------------------------ */

static inline struct sockaddr_in loopback(int port)
{
    if (port < 1 || port > 65535)
        die("port %d is not between 1 and 65535", port);
    return (struct sockaddr_in){.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* Start connecting to 127.0.0.1; the socket becomes writable when it is done. */
static inline int connect_start(const struct sockaddr_in *to)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        die("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (const struct sockaddr *)to, sizeof *to) < 0 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

static inline void watch(int epoll, int operation, int fd, uint32_t events, void *who)
{
    struct epoll_event event = {.events = events, .data.ptr = who};
    if (epoll_ctl(epoll, operation, fd, &event) < 0)
        die("epoll_ctl: %s", strerror(errno));
}

/* A tool never outlives the program that started it. */
static inline void die_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- a buffer that grows while it is built ------------------------------------------------ */

struct buffer {
    uint8_t *data;
    size_t size, room;
};

static inline void put(struct buffer *b, const void *data, size_t size)
{
    while (b->size + size > b->room) {
        b->room = b->room ? 2 * b->room : 1024;
        if ((b->data = realloc(b->data, b->room)) == NULL)
            die("out of memory (%zu bytes)", b->room);
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static inline void put_text(struct buffer *b, const char *text)
{
    put(b, text, strlen(text));
}

/* ---- the sample request ------------------------------------------------------------------- */

#define SAMPLE_PATH "/articles/2024/offloading?page=2&sort=recent"

static const char *const SAMPLE_HEADERS[][2] = {
    {"host", "www.example.com"},
    {"user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"},
    {"accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
    {"accept-language", "en-GB,en;q=0.7,de;q=0.3"},
    {"accept-encoding", "gzip, deflate, br"},
    {"referer", "https://www.example.com/articles/2024/"},
    {"cookie", "session=0f8fad5bd9cb469fa16570867728950e; theme=dark"},
    {"x-forwarded-for", "192.0.2.44"},
};
#define SAMPLE_HEADER_COUNT (sizeof SAMPLE_HEADERS / sizeof *SAMPLE_HEADERS)

static inline const char *sample_method(size_t body_size)
{
    return body_size ? "POST" : "GET";
}

/* The body: printable, so that it can be looked at in a dump. */
static inline void put_sample_body(struct buffer *b, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char c = (char)('a' + i % 26);
        put(b, &c, 1);
    }
}

#endif
