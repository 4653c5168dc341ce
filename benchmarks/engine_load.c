/* Load an agent the way HAProxy would: SPOP connections with NOTIFYs in flight on each.
 *
 * The NOTIFY's payload is encoded once; a frame costs a head, an id and a copy, a batch of frames
 * one write, their ACKs one read, so that the agent is the bottleneck. Every ACK's ids are checked
 * against the frames in flight, in any order. With --churn each connection carries one NOTIFY:
 * connect, HELLO, NOTIFY, ACK, DISCONNECT, close; latencies are then those of whole connections.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "spop.h"

#define IN_ROOM (1 << 18)
#define EVENTS 256
#define TICK_MS 100          /* how often time limits are looked at */
#define GOODBYE_NS (2 * NS_PER_S)
#define MAX_CONNECT_ERRORS 100

enum state { CLOSED, CONNECTING, GREETING, RUNNING, LEAVING };

struct connection {
    int fd;
    enum state state;
    bool blocked;               /* the socket takes no more: EPOLLOUT is watched */
    uint32_t index;
    uint64_t first_id, sequence; /* of the next NOTIFY; its stream-id follows from it */
    uint32_t in_flight;
    uint64_t opened;
    uint64_t *sent;             /* when each frame left, at its sequence modulo `window`; 0: free */
    uint8_t *in;
    size_t in_size;
    uint8_t *out;
    size_t out_start, out_end;
};

static struct {
    int port;
    uint32_t connections, depth, frame_size;
    uint64_t count;
    double seconds, rate, stall;
    bool churn, global_ids, wide;
    const char *expect;
} option = {.connections = 1, .depth = 1, .frame_size = 16380, .stall = 10};

static struct {
    uint64_t unexpected, malformed, missing_actions, disconnects, lost, connect;
} errors;

static struct sockaddr_in agent;
static struct buffer messages, hello, goodbye;
static bool vary_address;
static struct connection *all;
static struct latencies latencies;
static uint64_t window, out_room;
static uint64_t started, progress;  /* progress: when anything was last finished */
static uint64_t begun, done;        /* NOTIFYs; with --churn, connections */
static uint32_t ready, alive;
static int epoll;
static volatile sig_atomic_t interrupted;

static void interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

/* ---- stream-ids: 1, 3, 5 ... on each connection (HAProxy 3.1+), or one count over all ----- */

static uint64_t id_step(void)
{
    return option.global_ids ? option.connections : 2;
}

static bool sequence_of(const struct connection *c, uint64_t id, uint64_t *sequence)
{
    *sequence = (id - c->first_id) / id_step();
    return id >= c->first_id && (id - c->first_id) % id_step() == 0 && *sequence < c->sequence &&
           c->sequence - *sequence <= window;
}

/* ---- connections -------------------------------------------------------------------------- */

static bool may_start(uint64_t now)
{
    return !interrupted && (option.count == 0 || begun < option.count) &&
           (option.seconds == 0 || started == 0 || now - started < option.seconds * NS_PER_S);
}

static void open_connection(struct connection *c)
{
    c->in_size = c->out_start = c->out_end = 0;
    c->blocked = false;
    c->opened = now_ns();
    begun += option.churn;
    c->fd = connect_start(&agent);
    if (c->fd < 0) {
        errors.connect++;
        interrupted |= !option.churn;
        return;
    }
    c->state = CONNECTING;
    alive++;
    watch(epoll, EPOLL_CTL_ADD, c->fd, EPOLLIN | EPOLLOUT, c);
}

static void close_connection(struct connection *c)
{
    if (c->state == CLOSED)
        return;
    close(c->fd);
    c->state = CLOSED;
    alive--;
    errors.lost += c->in_flight;
    c->in_flight = 0;
    memset(c->sent, 0, window * sizeof *c->sent);
}

static void flush(struct connection *c)
{
    while (c->out_start < c->out_end) {
        ssize_t n = write(c->fd, c->out + c->out_start, c->out_end - c->out_start);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            if (!c->blocked)
                watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT, c);
            c->blocked = true;
            return;
        }
        if (n < 0) /* reset: reading tells */
            return;
        c->out_start += (size_t)n;
    }
    c->out_start = c->out_end = 0;
    if (c->blocked)
        watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    c->blocked = false;
}

static uint8_t *room_for(struct connection *c, size_t size)
{
    if (c->out_end + size > out_room) { /* what is pending is never more than `depth` frames */
        memmove(c->out, c->out + c->out_start, c->out_end - c->out_start);
        c->out_end -= c->out_start;
        c->out_start = 0;
    }
    return c->out + c->out_end;
}

static void send_control(struct connection *c, const struct buffer *frame)
{
    memcpy(room_for(c, frame->size), frame->data, frame->size);
    c->out_end += frame->size;
    flush(c);
}

/* Append one NOTIFY, unless `depth` are in flight; the caller flushes. */
static bool add_notify(struct connection *c, uint64_t now)
{
    uint64_t *slot = &c->sent[c->sequence & (window - 1)];
    if (c->in_flight == option.depth || *slot != 0)
        return false;
    uint8_t *frame = room_for(c, HEAD_SIZE + VARINT_MAX + 1 + messages.size), *end;
    end = write_varint(frame + HEAD_SIZE, c->first_id + c->sequence * id_step());
    *end++ = 1; /* frame-id */
    memcpy(end, messages.data, messages.size);
    end += messages.size;
    if (vary_address) {
        /* Wide: steps of the golden ratio visit all addresses, and none near the one before. */
        uint32_t address = option.wide ? (uint32_t)begun * 0x9e3779b1u
                                       : 0x0a000000 | (begun & 0xffffff);
        address = htonl(address);
        memcpy(end - sizeof address, &address, sizeof address);
    }
    write_head(frame, (size_t)(end - frame) - LENGTH_SIZE, NOTIFY);
    c->out_end += (size_t)(end - frame);
    *slot = now;
    c->sequence++;
    c->in_flight++;
    begun += !option.churn;
    return true;
}

static void fill(struct connection *c, uint64_t now)
{
    while (may_start(now) && add_notify(c, now))
        ;
    flush(c);
}

/* The frames that are due by now, one connection after the other. */
static void send_due(uint64_t now)
{
    static uint32_t next;
    uint64_t due = (uint64_t)((double)(now - started) / NS_PER_S * option.rate) + 1;
    for (uint32_t refused = 0; begun < due && refused < option.connections && may_start(now);) {
        struct connection *c = &all[next];
        next = (next + 1) % option.connections;
        if (c->state == RUNNING && add_notify(c, now)) {
            flush(c);
            refused = 0;
        } else {
            refused++;
        }
    }
}

/* ---- what the agent answers --------------------------------------------------------------- */

static void greeted(struct connection *c, const uint8_t *at, const uint8_t *end, uint64_t now)
{
    static const char needed[] = "pipelining";
    if (option.depth > 1 && memmem(at, (size_t)(end - at), needed, sizeof needed - 1) == NULL)
        die("the agent does not announce pipelining: depth must be 1");
    c->state = RUNNING;
    ready++;
    c->first_id = option.global_ids ? (option.churn ? begun : c->index) : 1;
    c->sequence = 0;
    if (option.churn) {
        add_notify(c, now);
        flush(c);
    } else if (ready == option.connections) { /* the clock starts when all are connected */
        started = progress = now;
        for (uint32_t i = 0; option.rate == 0 && i < option.connections; i++)
            fill(&all[i], now);
    }
}

/* Whether the ACK's first action is a SET-VAR of the expected variable. */
static bool sets_expected(const uint8_t *at, const uint8_t *end)
{
    const uint8_t *name;
    uint64_t size;
    if (end - at < 3 || at[0] != SET_VAR || at[1] != 3)
        return false;
    return read_bytes(at + 3, end, &name, &size) != NULL && size == strlen(option.expect) &&
           memcmp(name, option.expect, size) == 0;
}

static void acknowledged(struct connection *c, const uint8_t *at, const uint8_t *end, uint64_t now)
{
    uint64_t stream, frame, sequence;
    at = read_varint(read_varint(at, end, &stream), end, &frame);
    if (at == NULL) {
        errors.malformed++;
        return;
    }
    if (frame != 1 || !sequence_of(c, stream, &sequence) || c->sent[sequence & (window - 1)] == 0) {
        errors.unexpected++;
        return;
    }
    uint64_t *slot = &c->sent[sequence & (window - 1)];
    if (!option.churn) {
        latency_add(&latencies, now - *slot);
        done++;
        progress = now;
    }
    *slot = 0;
    c->in_flight--;
    if (option.expect && !sets_expected(at, end))
        errors.missing_actions++;
    if (option.churn) {
        c->state = LEAVING;
        send_control(c, &goodbye);
    }
}

static void report_disconnect(const uint8_t *at, const uint8_t *end)
{
    fprintf(stderr, "the agent disconnected: ");
    for (; at < end; at++)
        fputc(*at >= ' ' && *at < 127 ? *at : '.', stderr);
    fputc('\n', stderr);
}

/* One frame, `end` behind it. */
static void received(struct connection *c, const uint8_t *frame, const uint8_t *end, uint64_t now)
{
    const uint8_t *at = frame + HEAD_SIZE - LENGTH_SIZE;
    if (at > end)
        errors.malformed++;
    else if (*frame == ACK && c->state == RUNNING)
        acknowledged(c, at, end, now);
    else if (*frame == AGENT_HELLO && c->state == GREETING)
        greeted(c, at, end, now);
    else if (*frame == AGENT_DISCONNECT && c->state != LEAVING) {
        errors.disconnects++;
        report_disconnect(at, end);
    } else if (*frame != AGENT_DISCONNECT)
        errors.unexpected++;
}

static void gone(struct connection *c, uint64_t now)
{
    if (c->state == CONNECTING || c->state == GREETING) {
        errors.connect++;
        interrupted |= !option.churn;
    }
    if (option.churn && c->state == LEAVING) {
        latency_add(&latencies, now - c->opened);
        done++;
        progress = now;
    }
    close_connection(c);
    if (option.churn && errors.connect < MAX_CONNECT_ERRORS && may_start(now))
        open_connection(c);
}

static void readable(struct connection *c)
{
    ssize_t n = read(c->fd, c->in + c->in_size, IN_ROOM - c->in_size);
    uint64_t now = now_ns();
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        gone(c, now);
        return;
    }
    c->in_size += (size_t)n;
    size_t at = 0;
    while (c->in_size - at >= LENGTH_SIZE) {
        uint32_t length;
        memcpy(&length, c->in + at, sizeof length);
        length = ntohl(length);
        if (length > IN_ROOM - LENGTH_SIZE) {
            errors.malformed++;
            gone(c, now);
            return;
        }
        if (c->in_size - at - LENGTH_SIZE < length)
            break;
        at += LENGTH_SIZE;
        received(c, c->in + at, c->in + at + length, now);
        at += length;
    }
    c->in_size -= at;
    if (at && c->in_size)
        memmove(c->in, c->in + at, c->in_size);
    if (c->state == RUNNING && option.rate == 0 && !option.churn && started)
        fill(c, now);
}

static void writable(struct connection *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (c->state != CONNECTING) {
        flush(c);
        return;
    }
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        gone(c, now_ns());
        return;
    }
    c->state = GREETING;
    watch(epoll, EPOLL_CTL_MOD, c->fd, EPOLLIN, c);
    send_control(c, &hello);
}

/* ---- the run ------------------------------------------------------------------------------ */

static bool finished(uint64_t now)
{
    uint32_t in_flight = 0;
    if (alive == 0 || now - progress > option.stall * NS_PER_S)
        return true;
    if (option.churn || may_start(now))
        return false;
    if (started == 0) /* interrupted before the start */
        return true;
    for (uint32_t i = 0; i < option.connections; i++)
        in_flight += all[i].in_flight;
    return in_flight == 0;
}

static void turn(int timeout_ms, int timer)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(epoll, events, EVENTS, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        uint64_t ticks;
        if (c == NULL) {
            if (read(timer, &ticks, sizeof ticks) > 0 && started)
                send_due(now_ns());
            continue;
        }
        if (events[i].events & EPOLLOUT)
            writable(c);
        if (c->state != CLOSED && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            readable(c);
    }
}

static void say_goodbye(void)
{
    uint64_t limit = now_ns() + GOODBYE_NS;
    for (uint32_t i = 0; i < option.connections; i++)
        if (all[i].state == RUNNING) {
            errors.lost += all[i].in_flight;
            all[i].in_flight = 0;
            all[i].state = LEAVING;
            send_control(&all[i], &goodbye);
        }
    while (alive > 0 && now_ns() < limit)
        turn(TICK_MS, -1);
}

static void print_result(double seconds, double cpu)
{
    bool failed = errors.unexpected || errors.malformed || errors.missing_actions ||
                  errors.disconnects || errors.lost || errors.connect || done == 0;
    printf("{\"%s\": %lu, \"connections\": %u, \"depth\": %u, \"seconds\": %.6f, "
           "\"per_second\": %.1f, \"latency_us\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}, "
           "\"generator_cpu_us\": %.3f, "
           "\"errors\": {\"unexpected\": %lu, \"malformed\": %lu, \"missing_actions\": %lu, "
           "\"disconnects\": %lu, \"lost\": %lu, \"connect\": %lu}}\n",
           option.churn ? "cycles" : "frames", done, option.connections, option.depth, seconds,
           seconds > 0 ? (double)done / seconds : 0, latency_us(&latencies, 0.5),
           latency_us(&latencies, 0.99), (double)latencies.max / 1e3,
           done ? cpu * 1e6 / (double)done : 0, errors.unexpected, errors.malformed,
           errors.missing_actions, errors.disconnects, errors.lost, errors.connect);
    exit(failed ? 1 : 0);
}

static void prepare(void)
{
    hello = hello_frame(option.frame_size);
    goodbye = disconnect_frame();
    size_t frame = HEAD_SIZE + VARINT_MAX + 1 + messages.size;
    if (frame - LENGTH_SIZE > option.frame_size)
        die("a NOTIFY of %zu bytes does not fit max-frame-size %u", frame, option.frame_size);
    /* ACKs in any order may leave one frame far behind: the window is deeper than depth. */
    for (window = 64; window < 16ULL * option.depth; window *= 2)
        ;
    out_room = frame * option.depth + hello.size + goodbye.size;
    all = allocate(option.connections * sizeof *all);
    for (uint32_t i = 0; i < option.connections; i++) {
        all[i].index = i;
        all[i].sent = allocate(window * sizeof *all[i].sent);
        all[i].in = allocate(IN_ROOM);
        all[i].out = allocate(out_room);
    }
}

static const char USAGE[] =
    "Usage: engine_load -p PORT (-n COUNT | -s SECONDS) [OPTION]...\n"
    "  -p, --port=PORT          the agent's port on 127.0.0.1\n"
    "  -c, --connections=N      SPOP connections (1)\n"
    "  -d, --depth=N            NOTIFYs in flight on each (1)\n"
    "  -n, --count=N            stop after N NOTIFYs (with --churn: connections)\n"
    "  -s, --seconds=S          stop after S seconds\n"
    "  -r, --rate=R             send R NOTIFYs a second instead of as many as are ACKed\n"
    "  -m, --message=NAME       iprep (default), mirror, or @FILE with a NOTIFY's messages\n"
    "  -b, --body=BYTES         mirror: size of the body (0)\n"
    "  -w, --wide               iprep: ask for addresses of all of IPv4, not of 10.0.0.0/8\n"
    "  -e, --expect=VARIABLE    every ACK must set it first\n"
    "  -g, --global-ids         one count of stream-ids over all connections, as HAProxy <= 3.0\n"
    "  -x, --churn              one NOTIFY a connection\n"
    "  -f, --frame-size=BYTES   max-frame-size to offer (16380)\n"
    "  -t, --stall=SECONDS      give up when nothing was ACKed for so long (10)\n"
    "Prints one JSON object; exits with 0, 1 after any error, 2 on wrong usage.\n";

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        {"port", 1, 0, 'p'},       {"connections", 1, 0, 'c'}, {"depth", 1, 0, 'd'},
        {"count", 1, 0, 'n'},      {"seconds", 1, 0, 's'},     {"rate", 1, 0, 'r'},
        {"message", 1, 0, 'm'},    {"body", 1, 0, 'b'},        {"expect", 1, 0, 'e'},
        {"global-ids", 0, 0, 'g'}, {"churn", 0, 0, 'x'},       {"frame-size", 1, 0, 'f'},
        {"stall", 1, 0, 't'},      {"wide", 0, 0, 'w'},        {"help", 0, 0, 'h'},
        {0, 0, 0, 0}};
    const char *message = "iprep";
    size_t body = 0;
    int letter;
    while ((letter = getopt_long(argc, argv, "p:c:d:n:s:r:m:b:e:gxf:t:wh", names, NULL)) != -1)
        switch (letter) {
        case 'p': option.port = atoi(optarg); break;
        case 'c': option.connections = (uint32_t)atoi(optarg); break;
        case 'd': option.depth = (uint32_t)atoi(optarg); break;
        case 'n': option.count = strtoull(optarg, NULL, 10); break;
        case 's': option.seconds = atof(optarg); break;
        case 'r': option.rate = atof(optarg); break;
        case 'm': message = optarg; break;
        case 'b': body = strtoul(optarg, NULL, 10); break;
        case 'e': option.expect = optarg; break;
        case 'g': option.global_ids = true; break;
        case 'x': option.churn = true; break;
        case 'f': option.frame_size = (uint32_t)atoi(optarg); break;
        case 't': option.stall = atof(optarg); break;
        case 'w': option.wide = true; break;
        case 'h': fputs(USAGE, stdout); exit(0);
        default: fputs(USAGE, stderr); exit(2);
        }
    if (option.connections - 1 >= 4096 || option.depth - 1 >= 4096) /* unsigned: 0 is too large */
        die("connections and depth must be between 1 and 4096");
    if (option.count == 0 && option.seconds <= 0)
        die("give a --count or --seconds: a load without end is refused");
    if (option.churn && (option.rate > 0 || option.depth > 1))
        die("--churn takes neither --rate nor --depth");
    if (body > 65536)
        die("a body is at most 65536 bytes");
    agent = loopback(option.port);
    vary_address = strcmp(message, "iprep") == 0;
    if (vary_address)
        messages = iprep_message();
    else if (strcmp(message, "mirror") == 0)
        messages = mirror_message(body);
    else if (*message == '@')
        messages = messages_from(message + 1);
    else
        die("--message is iprep, mirror or @FILE, not '%s'", message);
}

int main(int argc, char **argv)
{
    int timer = -1;
    parse_options(argc, argv);
    die_with_parent();
    signal(SIGINT, interrupt);
    signal(SIGTERM, interrupt);
    prepare();
    epoll = epoll_create1(0);
    progress = now_ns();
    for (uint32_t i = 0; i < option.connections; i++)
        open_connection(&all[i]);
    if (option.churn)
        started = progress;
    if (option.rate > 0) {
        timer = ticker(option.rate);
        watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, NULL);
    }
    double cpu = cpu_seconds();
    while (!finished(now_ns()))
        turn(TICK_MS, timer);
    cpu = cpu_seconds() - cpu;
    double seconds = started ? (double)(progress - started) / NS_PER_S : 0;
    if (timer >= 0)
        close(timer);
    say_goodbye();
    print_result(seconds, cpu);
}
