/* What sending costs at least: one HTTP/1.1 request a connection at a time, one write, one read.
 *
 * The floor to compare a mirror's CPU with. The request is the one that the engine's NOTIFY of
 * engine_load describes; no SPOP, no queue, no log. With --rate a timer paces the requests, which
 * wakes the sender as often as NOTIFYs would wake a mirror.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "bench.h"

#define IN_ROOM 4096
#define EVENTS 256
#define TICK_MS 100

struct connection {
    int fd;
    bool busy;
    uint64_t sent;
    size_t in_size;
    char in[IN_ROOM];
};

static struct {
    int port;
    uint32_t connections;
    uint64_t count;
    double seconds, rate, stall;
} option = {.connections = 8, .stall = 10};

static struct sockaddr_in target;
static struct buffer request;
static struct connection *all;
static struct connection **idle; /* a stack: the connection used last is used next, as pools do */
static uint32_t idle_count, open_count;
static struct latencies latencies;
static uint64_t started, sent, done, failed, progress;
static int epoll;
static volatile sig_atomic_t interrupted;

static void interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

static bool may_send(uint64_t now)
{
    return !interrupted && (option.count == 0 || sent < option.count) &&
           (option.seconds == 0 || now - started < option.seconds * NS_PER_S);
}

static void lose(struct connection *c)
{
    failed += c->busy;
    close(c->fd);
    c->fd = -1;
    open_count--;
}

static void send_request(struct connection *c, uint64_t now)
{
    c->busy = true;
    c->sent = now;
    sent++;
    if (write(c->fd, request.data, request.size) != (ssize_t)request.size)
        lose(c);
}

/* Whether the answer, framed by Content-Length, is here in full. */
static bool complete(struct connection *c)
{
    c->in[c->in_size] = 0;
    const char *end = strstr(c->in, "\r\n\r\n");
    const char *length = end ? strcasestr(c->in, "\r\nContent-Length:") : NULL;
    size_t body = end ? (size_t)(c->in + c->in_size - end - 4) : 0;
    return length != NULL && strtoul(length + 17, NULL, 10) <= body;
}

static void readable(struct connection *c)
{
    ssize_t n = read(c->fd, c->in + c->in_size, IN_ROOM - 1 - c->in_size);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        lose(c);
        return;
    }
    c->in_size += (size_t)n;
    if (!complete(c))
        return;
    progress = now_ns();
    latency_add(&latencies, progress - c->sent);
    done++;
    c->busy = false;
    c->in_size = 0;
    if (option.rate == 0 && may_send(progress))
        send_request(c, progress);
    else
        idle[idle_count++] = c;
}

static void send_due(uint64_t now)
{
    uint64_t due = (uint64_t)((double)(now - started) / NS_PER_S * option.rate) + 1;
    while (sent < due && idle_count > 0 && may_send(now)) {
        struct connection *c = idle[--idle_count];
        if (c->fd >= 0)
            send_request(c, now);
    }
}

static void connect_all(void)
{
    all = allocate(option.connections * sizeof *all);
    idle = allocate(option.connections * sizeof *idle);
    for (uint32_t i = 0; i < option.connections; i++) {
        struct connection *c = &all[i];
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (const struct sockaddr *)&target, sizeof target) < 0)
            die("cannot connect to 127.0.0.1:%d: %s", option.port, strerror(errno));
        int one = 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLIN, c);
        idle[idle_count++] = c;
        open_count++;
    }
}

static void build_request(size_t body_size)
{
    char line[256];
    snprintf(line, sizeof line, "%s %s HTTP/1.1\r\n", sample_method(body_size), SAMPLE_PATH);
    put_text(&request, line);
    for (size_t i = 0; i < SAMPLE_HEADER_COUNT; i++) {
        snprintf(line, sizeof line, "%s: %s\r\n", SAMPLE_HEADERS[i][0], SAMPLE_HEADERS[i][1]);
        put_text(&request, line);
    }
    if (body_size) {
        snprintf(line, sizeof line, "content-length: %zu\r\n", body_size);
        put_text(&request, line);
    }
    put_text(&request, "\r\n");
    put_sample_body(&request, body_size);
}

static const char USAGE[] =
    "Usage: bare_sender -p PORT (-n COUNT | -s SECONDS) [OPTION]...\n"
    "  -p, --port=PORT        the target's port on 127.0.0.1\n"
    "  -c, --connections=N    keep-alive connections, one request on each at a time (8)\n"
    "  -n, --count=N          stop after N requests\n"
    "  -s, --seconds=S        stop after S seconds\n"
    "  -r, --rate=R           send R requests a second instead of as many as are answered\n"
    "  -b, --body=BYTES       size of the body (0)\n"
    "  -t, --stall=SECONDS    give up when nothing was answered for so long (10)\n"
    "Prints one JSON object; exits with 0, 1 after any error, 2 on wrong usage.\n";

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},    {"connections", 1, 0, 'c'}, {"count", 1, 0, 'n'},
        {"seconds", 1, 0, 's'}, {"rate", 1, 0, 'r'},        {"body", 1, 0, 'b'},
        {"stall", 1, 0, 't'},   {"help", 0, 0, 'h'},        {0, 0, 0, 0}};
    size_t body = 0;
    int letter;
    while ((letter = getopt_long(argc, argv, "p:c:n:s:r:b:t:h", names, NULL)) != -1)
        switch (letter) {
        case 'p': option.port = atoi(optarg); break;
        case 'c': option.connections = (uint32_t)atoi(optarg); break;
        case 'n': option.count = strtoull(optarg, NULL, 10); break;
        case 's': option.seconds = atof(optarg); break;
        case 'r': option.rate = atof(optarg); break;
        case 'b': body = strtoul(optarg, NULL, 10); break;
        case 't': option.stall = atof(optarg); break;
        case 'h': fputs(USAGE, stdout); exit(0);
        default: fputs(USAGE, stderr); exit(2);
        }
    if (option.connections < 1 || option.connections > 4096)
        die("connections must be between 1 and 4096");
    if (option.count == 0 && option.seconds <= 0)
        die("give a --count or --seconds: a load without end is refused");
    if (body > 65536) /* a write to an idle connection takes it whole */
        die("a body is at most 65536 bytes");
    target = loopback(option.port);
    build_request(body);
}

int main(int argc, char **argv)
{
    int timer = -1;
    parse_options(argc, argv);
    die_with_parent();
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
    epoll = epoll_create1(0);
    connect_all();
    double cpu = cpu_seconds();
    started = progress = now_ns();
    if (option.rate > 0) {
        timer = ticker(option.rate);
        watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, NULL);
    } else {
        while (idle_count > 0 && may_send(started))
            send_request(idle[--idle_count], started);
    }
    while (open_count > 0 && (may_send(now_ns()) || sent > done + failed) &&
           now_ns() - progress < option.stall * NS_PER_S) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(epoll, events, EVENTS, TICK_MS);
        for (int i = 0; i < n; i++) {
            uint64_t ticks;
            if (events[i].data.ptr != NULL)
                readable(events[i].data.ptr);
            else if (read(timer, &ticks, sizeof ticks) > 0)
                send_due(now_ns());
        }
    }
    cpu = cpu_seconds() - cpu;
    double seconds = (double)(progress - started) / NS_PER_S;
    printf("{\"requests\": %lu, \"connections\": %u, \"seconds\": %.6f, \"per_second\": %.1f, "
           "\"cpu_us\": %.3f, \"latency_us\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}, "
           "\"errors\": {\"lost\": %lu}}\n",
           done, option.connections, seconds, seconds > 0 ? (double)done / seconds : 0,
           done ? cpu * 1e6 / (double)done : 0, latency_us(&latencies, 0.5),
           latency_us(&latencies, 0.99), (double)latencies.max / 1e3, sent - done);
    return sent == done && done > 0 ? 0 : 1;
}
