/* An HTTP/1.1 server that only counts: keep-alive, one short answer for every request.
 *
 * GET /__count answers with the figures so far (itself not counted), and the same JSON is printed
 * at SIGTERM or SIGINT. With --delay the answers come late, with --never not at all; the requests
 * are read and counted all the same. Bodies are framed by Content-Length; chunked ones are refused.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "bench.h"

#define IN_ROOM (1 << 16)  /* a request's head must fit; bodies may be larger */
#define OUT_ROOM (1 << 18) /* the answers to all requests of one read */
#define EVENTS 256
#define ANSWER "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
#define ANSWER_BODY "ok\n"

struct connection {
    int fd;
    size_t in_size;
    uint64_t body_left;
    size_t out_size;        /* delayed answers, due together */
    uint8_t *delayed;
    uint64_t due;
    struct connection *later, *earlier; /* in the queue of delayed answers; oldest first */
    bool queued;
    uint8_t in[IN_ROOM];
};

static struct {
    uint64_t requests, bytes, connections, open, refused;
} count;

static int epoll;
static uint64_t delay;
static bool never;
static struct connection *oldest, *newest;
static uint8_t out[OUT_ROOM];
static volatile sig_atomic_t stopped;

static void stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static int format_count(char *to, size_t room)
{
    return snprintf(to, room,
                    "{\"requests\": %lu, \"bytes\": %lu, \"connections\": %lu, \"open\": %lu, "
                    "\"refused\": %lu}\n",
                    count.requests, count.bytes, count.connections, count.open, count.refused);
}

/* ---- delayed answers ---------------------------------------------------------------------- */

static void enqueue(struct connection *c)
{
    if (c->queued)
        return;
    c->queued = true;
    c->due = now_ns() + delay;
    c->later = NULL;
    c->earlier = newest;
    if (newest)
        newest->later = c;
    else
        oldest = c;
    newest = c;
}

static void dequeue(struct connection *c)
{
    if (!c->queued)
        return;
    c->queued = false;
    *(c->earlier ? &c->earlier->later : &oldest) = c->later;
    *(c->later ? &c->later->earlier : &newest) = c->earlier;
}

static void close_connection(struct connection *c)
{
    dequeue(c);
    close(c->fd);
    free(c->delayed);
    free(c);
    count.open--;
}

/* Answers are short: a peer that does not take them is not reading at all. */
static bool send_all(struct connection *c, const uint8_t *data, size_t size)
{
    return size == 0 || write(c->fd, data, size) == (ssize_t)size;
}

static int answer_due(void)
{
    uint64_t now = now_ns();
    while (oldest && oldest->due <= now) {
        struct connection *c = oldest;
        dequeue(c);
        if (!send_all(c, c->delayed, c->out_size))
            close_connection(c);
        else
            c->out_size = 0;
    }
    return oldest ? (int)((oldest->due - now) / 1000000) + 1 : -1;
}

/* ---- requests ----------------------------------------------------------------------------- */

/* The value of a header field in the lines from `at` to `end`, or NULL. */
static const char *field(const char *at, const char *end, const char *name)
{
    size_t size = strlen(name);
    while ((at = memchr(at, '\n', (size_t)(end - at))) != NULL && (size_t)(end - ++at) > size)
        if (strncasecmp(at, name, size) == 0)
            return at + size;
    return NULL;
}

/* Append the answer to the request whose head is given; returns its size. */
static size_t answer(const char *head, uint8_t *to)
{
    char figures[256];
    if (strncmp(head, "GET /__count ", 13) == 0) {
        int size = format_count(figures, sizeof figures);
        return (size_t)sprintf((char *)to, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s",
                               size, figures);
    }
    count.requests++;
    if (never)
        return 0;
    bool head_only = strncmp(head, "HEAD ", 5) == 0;
    size_t size = sizeof ANSWER ANSWER_BODY - (head_only ? sizeof ANSWER_BODY : 1);
    memcpy(to, ANSWER ANSWER_BODY, size);
    return size;
}

/* Take what has arrived; returns the size of the answers in `out`, or -1 to close. */
static ssize_t take(struct connection *c)
{
    size_t at = 0, answers = 0;
    while (at < c->in_size) {
        if (c->body_left) {
            size_t part = c->in_size - at < c->body_left ? c->in_size - at : (size_t)c->body_left;
            c->body_left -= part;
            at += part;
            continue;
        }
        const char *head = (const char *)c->in + at;
        const char *end = memmem(head, c->in_size - at, "\r\n\r\n", 4), *length;
        if (end == NULL) {
            if (c->in_size - at == IN_ROOM)
                return -1;
            break;
        }
        end += 2;
        if (field(head, end, "transfer-encoding:") || answers + 512 > OUT_ROOM)
            return -1;
        if ((length = field(head, end, "content-length:")) != NULL)
            c->body_left = strtoull(length, NULL, 10);
        answers += answer(head, out + answers);
        at += (size_t)(end + 2 - head);
    }
    c->in_size -= at;
    if (at && c->in_size)
        memmove(c->in, c->in + at, c->in_size);
    return (ssize_t)answers;
}

static void readable(struct connection *c)
{
    ssize_t n = read(c->fd, c->in + c->in_size, IN_ROOM - c->in_size), answers;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        close_connection(c);
        return;
    }
    count.bytes += (uint64_t)n;
    c->in_size += (size_t)n;
    answers = take(c);
    if (answers < 0) {
        count.refused++;
        close_connection(c);
    } else if (delay && answers) {
        uint8_t *grown = realloc(c->delayed, c->out_size + (size_t)answers);
        if (grown == NULL || c->out_size > OUT_ROOM) {
            close_connection(c);
            return;
        }
        c->delayed = grown;
        memcpy(c->delayed + c->out_size, out, (size_t)answers);
        c->out_size += (size_t)answers;
        enqueue(c);
    } else if (!send_all(c, out, (size_t)answers)) {
        close_connection(c);
    }
}

static void accept_all(int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *c = allocate(sizeof *c);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        count.connections++;
        count.open++;
        watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

static int listen_on(int port)
{
    struct sockaddr_in address = loopback(port);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4096) < 0)
        die("cannot listen on 127.0.0.1:%d: %s", port, strerror(errno));
    return fd;
}

static const char USAGE[] = "Usage: http_sink -p PORT [-d MILLISECONDS | -n]\n"
                            "  -p, --port=PORT   listen on 127.0.0.1\n"
                            "  -d, --delay=MS    answer so much later\n"
                            "  -n, --never       read and count, but never answer\n"
                            "GET /__count and SIGTERM give the figures as JSON.\n";

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},  {"delay", 1, 0, 'd'}, {"never", 0, 0, 'n'},
        {"help", 0, 0, 'h'}, {0, 0, 0, 0}};
    int port = 0, letter, listener;
    while ((letter = getopt_long(argc, argv, "p:d:nh", names, NULL)) != -1)
        switch (letter) {
        case 'p': port = atoi(optarg); break;
        case 'd': delay = strtoull(optarg, NULL, 10) * 1000000; break;
        case 'n': never = true; break;
        case 'h': fputs(USAGE, stdout); return 0;
        default: fputs(USAGE, stderr); return 2;
        }
    die_with_parent();
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    epoll = epoll_create1(0);
    listener = listen_on(port);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (int timeout = -1; !stopped; timeout = answer_due()) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, timeout);
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr == NULL)
                accept_all(listener);
            else
                readable(events[i].data.ptr);
    }
    char figures[256];
    format_count(figures, sizeof figures);
    fputs(figures, stdout);
    return 0;
}
