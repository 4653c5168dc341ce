/* The engine's half of SPOP (SPOE.txt 3.2) as far as a load generator needs it.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef SPOP_H
#define SPOP_H

#include "bench.h"

enum { ENGINE_HELLO = 1, ENGINE_DISCONNECT = 2, NOTIFY = 3 };
enum { AGENT_HELLO = 101, AGENT_DISCONNECT = 102, ACK = 103 };
enum { TYPE_UINT32 = 3, TYPE_IPV4 = 6, TYPE_STRING = 8, TYPE_BINARY = 9 };
enum { SET_VAR = 1 };

#define LENGTH_SIZE 4               /* the frame's length, in front of it */
#define HEAD_SIZE (LENGTH_SIZE + 5) /* length, type, flags */
#define VARINT_MAX 10
#define FLAG_FIN 1

/* Write `value` at `to`; returns the byte after it. */
static inline uint8_t *write_varint(uint8_t *to, uint64_t value)
{
    if (value < 240) {
        *to++ = (uint8_t)value;
        return to;
    }
    *to++ = (uint8_t)(value | 240);
    for (value = (value - 240) >> 4; value >= 128; value = (value - 128) >> 7)
        *to++ = (uint8_t)(value | 128);
    *to++ = (uint8_t)value;
    return to;
}

/* Read a varint; returns the byte after it, or NULL where it does not end before `end`. */
static inline const uint8_t *read_varint(const uint8_t *from, const uint8_t *end, uint64_t *value)
{
    if (from == NULL || from >= end)
        return NULL;
    *value = *from++;
    if (*value < 240)
        return from;
    for (int shift = 4; from < end && shift < 64; shift += 7) {
        *value += (uint64_t)*from << shift;
        if (*from++ < 128)
            return from;
    }
    return NULL;
}

/* Read a varint length and that many bytes. */
static inline const uint8_t *read_bytes(const uint8_t *from, const uint8_t *end,
                                        const uint8_t **bytes, uint64_t *size)
{
    from = read_varint(from, end, size);
    if (from == NULL || *size > (uint64_t)(end - from))
        return NULL;
    *bytes = from;
    return from + *size;
}

static inline void put_varint(struct buffer *b, uint64_t value)
{
    uint8_t bytes[VARINT_MAX];
    put(b, bytes, (size_t)(write_varint(bytes, value) - bytes));
}

static inline void put_byte(struct buffer *b, uint8_t byte)
{
    put(b, &byte, 1);
}

static inline void put_bytes(struct buffer *b, const void *data, size_t size)
{
    put_varint(b, size);
    put(b, data, size);
}

static inline void put_name(struct buffer *b, const char *name)
{
    put_bytes(b, name, strlen(name));
}

static inline void put_string(struct buffer *b, const char *name, const char *value)
{
    put_name(b, name);
    put_byte(b, TYPE_STRING);
    put_name(b, value);
}

static inline void put_uint32(struct buffer *b, const char *name, uint32_t value)
{
    put_name(b, name);
    put_byte(b, TYPE_UINT32);
    put_varint(b, value);
}

/* ---- frames ------------------------------------------------------------------------------- */

static inline void write_head(uint8_t *to, size_t length, uint8_t type)
{
    uint32_t size = htonl((uint32_t)length), flags = htonl(FLAG_FIN);
    memcpy(to, &size, sizeof size);
    to[LENGTH_SIZE] = type;
    memcpy(to + LENGTH_SIZE + 1, &flags, sizeof flags);
}

/* A frame with stream-id and frame-id 0 around `payload`. */
static inline struct buffer control_frame(uint8_t type, const struct buffer *payload)
{
    struct buffer frame = {0};
    uint8_t head[HEAD_SIZE + 2] = {0};
    write_head(head, sizeof head - LENGTH_SIZE + payload->size, type);
    put(&frame, head, sizeof head);
    put(&frame, payload->data, payload->size);
    return frame;
}

static inline struct buffer hello_frame(uint32_t frame_size)
{
    struct buffer p = {0};
    put_string(&p, "supported-versions", "2.0");
    put_uint32(&p, "max-frame-size", frame_size);
    put_string(&p, "capabilities", "pipelining");
    put_string(&p, "engine-id", "7f3a6c52-4c1e-4f27-9d38-55d2c2a1b6e0");
    return control_frame(ENGINE_HELLO, &p);
}

static inline struct buffer disconnect_frame(void)
{
    struct buffer p = {0};
    put_uint32(&p, "status-code", 0);
    put_string(&p, "message", "normal");
    return control_frame(ENGINE_DISCONNECT, &p);
}

/* ---- messages: what a NOTIFY carries ------------------------------------------------------ */

/* `args src`, as HAProxy 2.6 sends it: no argument name. The address is the last four bytes. */
static inline struct buffer iprep_message(void)
{
    struct buffer p = {0};
    put_name(&p, "check-client-ip");
    put_byte(&p, 1);
    put_name(&p, "");
    put_byte(&p, TYPE_IPV4);
    put(&p, "\300\0\2\54", 4);
    return p;
}

/* The mirror's five arguments; the headers in the form of req.hdrs_bin. */
static inline struct buffer mirror_message(size_t body_size)
{
    struct buffer p = {0}, headers = {0}, body = {0};
    char length[24];
    for (size_t i = 0; i < SAMPLE_HEADER_COUNT; i++) {
        put_name(&headers, SAMPLE_HEADERS[i][0]);
        put_name(&headers, SAMPLE_HEADERS[i][1]);
    }
    if (body_size) {
        snprintf(length, sizeof length, "%zu", body_size);
        put_name(&headers, "content-length");
        put_name(&headers, length);
    }
    put(&headers, "\0", 2); /* an empty name and an empty value end the list */
    put_sample_body(&body, body_size);

    put_name(&p, "mirror");
    put_byte(&p, 5);
    put_string(&p, "arg_method", sample_method(body_size));
    put_string(&p, "arg_path", SAMPLE_PATH);
    put_string(&p, "arg_ver", "1.1");
    put_name(&p, "arg_hdrs");
    put_byte(&p, TYPE_BINARY);
    put_bytes(&p, headers.data, headers.size);
    put_name(&p, "arg_body");
    put_byte(&p, TYPE_BINARY);
    put_bytes(&p, body.data, body.size);
    free(headers.data);
    free(body.data);
    return p;
}

/* The messages part of a NOTIFY, from a file. */
static inline struct buffer messages_from(const char *path)
{
    struct buffer p = {0};
    uint8_t chunk[4096];
    size_t size;
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        die("%s: %s", path, strerror(errno));
    while ((size = fread(chunk, 1, sizeof chunk, file)) > 0)
        put(&p, chunk, size);
    fclose(file);
    return p;
}

#endif
