/* anabranch: the C ABI.
 *
 * Two interfaces over the same runtime: the event facade (anabranch_os_*: sockets with small ids, calls from any thread,
 * one callback) and the completion API (submit with a tag, poll).
 *
 * Rules for all functions:
 *  - Objects are named by numbers, never by pointers. A number that names nothing is refused with EBADF.
 *  - A function that fails gives -1 (or 0 where it gives a number of an object) and leaves the reason in errno.
 *  - What is passed in is copied before the function returns. What is passed to a callback, or given by a poll, is lent,
 *    except by anabranch_os_run_owning.
 *  - A callback must not throw, longjmp, or end its thread.
 *  - No function raises SIGPIPE.
 *
 * MIT or Apache-2.0, at your option.
 */
#ifndef ANABRANCH_H
#define ANABRANCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------------------------------------
 * The event facade. Every function may be called from any thread, also from the callback, also before run and while the
 * process starts or ends. Calls of one thread act in their order.
 */

enum {
    ANABRANCH_OS_DATA = 0,    /* bytes of a connection */
    ANABRANCH_OS_CLOSE = 1,   /* closed; also the answer to a close of an id that does not live */
    ANABRANCH_OS_OPEN = 2,    /* can be used, or has another owner */
    ANABRANCH_OS_ACCEPT = 3,  /* fd is the listener, ud the connection, which has to be started */
    ANABRANCH_OS_ERROR = 4,   /* the socket is gone, except after "protocol mismatch" and a failed accept */
    ANABRANCH_OS_UDP = 5,     /* a datagram */
    ANABRANCH_OS_WARNING = 6  /* size KiB wait to be sent; 0 when all has left */
};

/* An event. Lent until the callback returns, unless it is said otherwise where it is run. */
typedef struct anabranch_os_message {
    int type;
    int fd;
    uintptr_t uid;      /* the owner of the socket, or who made the call that is answered */
    int ud;
    size_t size;        /* bytes at data (of a text its NUL counts); of a warning, KiB */
    const char *data;   /* a payload, which has no NUL at its end, or a text; else NULL */
    const char *option; /* the address of a datagram: a tag (1 IPv4, 2 IPv6), the port and the address, most
                           significant byte first; else NULL */
    size_t option_size; /* 7 or 19 */
} anabranch_os_message;

typedef void (*anabranch_os_callback)(void *user, const anabranch_os_message *message);

/* What is told of a socket. */
typedef struct anabranch_os_info {
    int id;
    int type; /* 1 listener, 2 connection, 3 datagrams, 4 bound */
    uint64_t uid;
    uint64_t read; /* bytes; of a listener, connections accepted */
    uint64_t written;
    uint64_t read_at; /* seconds since 1970; 0 is never */
    uint64_t written_at;
    int64_t pending;
    char name[64]; /* "ip:port", without brackets */
} anabranch_os_info;

/* Makes an instance, which runs nothing yet; 0 if it cannot. */
uint64_t anabranch_os_new(void);
/* The same with 1 to 128 threads that serve it, and a backend: 0 chosen, 1 io_uring, 2 readiness. */
uint64_t anabranch_os_new_with(int shards, int backend);
/* Starts it. The callback is called on its thread (with several: from each of them), one event at a time per thread. */
int anabranch_os_run(uint64_t os, anabranch_os_callback callback, void *user);
/* The same, but what is at data of a message, and the address behind it, comes from malloc and is the callback's to free.
 * A connection that brings payloads of 8.5 KiB and more receives straight into such memory, 17 KiB at a time; whatever fills
 * less than half of that, and each datagram, is copied, so that no payload holds more than twice the memory it needs. */
int anabranch_os_run_owning(uint64_t os, anabranch_os_callback callback, void *user);
/* Ends it: closes every socket and waits for its threads. No callback runs once this has returned. (Called from inside
 * the callback it cannot wait for that one; it ends when it returns.) */
int anabranch_os_free(uint64_t os);

/* These give an id: 1, 2, 3, ... in the order of the calls. Names are resolved before listen, udp and udp_connect
 * return; those of connect are resolved elsewhere, and what fails is told as an event. */
int anabranch_os_listen(uint64_t os, uintptr_t uid, const char *host, int port, int backlog);
int anabranch_os_connect(uint64_t os, uintptr_t uid, const char *host, int port);
int anabranch_os_udp(uint64_t os, uintptr_t uid, const char *host, int port);
/* Takes a stream socket of the program's, which stays open when it is closed here. */
int anabranch_os_bind(uint64_t os, uintptr_t uid, int fd);

/* What comes of these is told as an event. */
int anabranch_os_start(uint64_t os, uintptr_t uid, int id);
int anabranch_os_close(uint64_t os, uintptr_t uid, int id);
int anabranch_os_shutdown(uint64_t os, uintptr_t uid, int id);
int anabranch_os_nodelay(uint64_t os, int id);

/* 0: accepted, which is not sent. -1: the id does not live. */
int anabranch_os_send(uint64_t os, int id, const void *data, int size);
int anabranch_os_send_low(uint64_t os, int id, const void *data, int size);
int anabranch_os_udp_connect(uint64_t os, int id, const char *host, int port);
int anabranch_os_udp_send(uint64_t os, int id, const char *address, const void *data, int size);

/* Writes the address of a datagram as "ip:port", cut to len bytes with the NUL. */
int anabranch_os_udp_address(const char *address, char *text, size_t len);
/* Writes what is known of up to max sockets; gives how many there are. Waits for nobody. */
ptrdiff_t anabranch_os_socket_info(uint64_t os, anabranch_os_info *all, size_t max);

/* Writes the IPv4 address of a name. */
int anabranch_domain_name_to_ip(const char *name, char *text, size_t len);
void anabranch_sleep_ms(int64_t ms);

/* ------------------------------------------------------------------------------------------------------------------
 * The completion API. A shard belongs to the thread that made it: other threads are refused with EBADF, except by
 * anabranch_shard_wake. Each accepted submission gets exactly one outcome that is its last (more is 0). Endpoints are
 * numbers that are never used again.
 */

enum {
    ANABRANCH_ACCEPTED = 1,
    ANABRANCH_CONNECTED = 2,
    ANABRANCH_RECEIVED = 3,
    ANABRANCH_END = 4, /* the peer has ended its side */
    ANABRANCH_RECEIVED_FROM = 5,
    ANABRANCH_SENT = 6,
    ANABRANCH_WRITABLE = 7,
    ANABRANCH_SHUT_DOWN = 8,
    ANABRANCH_ELAPSED = 9,
    ANABRANCH_CLOSED = 10, /* the last outcome of an endpoint */
    ANABRANCH_FAILED = 11
};

typedef struct anabranch_outcome {
    uint64_t tag;
    uint64_t endpoint;
    int type;
    int more;
    int error; /* the number of the error, if it failed */
    int address_size;
    uint64_t accepted;
    const char *data; /* lent until the next poll of this shard */
    size_t size;
    unsigned char address[19]; /* who sent a datagram; see anabranch_os_udp_address */
} anabranch_outcome;

/* backend: 0 chosen, 1 io_uring, 2 readiness. 0 if there can be no shard. */
uint64_t anabranch_shard_new(int backend);
int anabranch_shard_free(uint64_t shard);
/* Ends the wait of a poll. From any thread. */
int anabranch_shard_wake(uint64_t shard);

/* Addresses are texts such as "127.0.0.1:80" and "[::1]:80"; names are not resolved. */
int anabranch_listen(uint64_t shard, const char *address, uint64_t *listener);
int anabranch_connect(uint64_t shard, const char *address, uint64_t tag, uint64_t *connection);
int anabranch_bind_udp(uint64_t shard, const char *address, uint64_t *socket);
int anabranch_local_address(uint64_t shard, uint64_t endpoint, char *text, size_t len);

/* all: 0 for one outcome, else until the end. */
int anabranch_accept(uint64_t shard, uint64_t listener, uint64_t tag, int all);
int anabranch_recv(uint64_t shard, uint64_t connection, uint64_t tag, int all);
int anabranch_recv_from(uint64_t shard, uint64_t socket, uint64_t tag, int all);
/* EAGAIN: too much waits already. */
int anabranch_send(uint64_t shard, uint64_t connection, const void *data, size_t size, uint64_t tag);
int anabranch_send_to(uint64_t shard, uint64_t socket, const char *address, const void *data, size_t size,
                      uint64_t tag);
/* how: 0 the inbound side, 1 the outbound side after what waits has left, 2 both. */
int anabranch_shutdown(uint64_t shard, uint64_t connection, int how, uint64_t tag);
/* how: 0 after what waits has left, 1 with what the system takes at once, 2 with a reset. */
int anabranch_close(uint64_t shard, uint64_t endpoint, int how, uint64_t tag);
int anabranch_timeout(uint64_t shard, uint64_t ms, uint64_t tag);

/* One turn of the loop: writes up to max outcomes and gives their number, perhaps 0. Waits for at most timeout_ms
 * milliseconds (negative: for ever) if there is nothing to give. */
ptrdiff_t anabranch_poll(uint64_t shard, int64_t timeout_ms, anabranch_outcome *outcomes, size_t max);

#ifdef __cplusplus
}
#endif

#endif
