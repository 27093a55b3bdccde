// The C++ class for the scenarios of tests/opensocket_traces.rs, which are written in Rust: plain functions around it.
#include "opensocket.h"

#include <mutex>

using open::OpenSocket;
using open::OpenSocketMsg;

namespace
{

struct Event
{
    int type, fd, ud;
    uintptr_t uid;
    size_t size;
    const char* buffer;
    const char* option;
};

typedef void (*Sink)(void* user, const Event* event);

struct Place
{
    Sink sink;
    void* user;
    bool used;
};

// A callback of the class has no argument of its own, so that each place has a callback.
const int kPlaces = 8;
Place places[kPlaces];
std::mutex mutex;

template <int N>
void onMessage(const OpenSocketMsg* msg)
{
    Event event = {msg->type_, msg->fd_, msg->ud_, msg->uid_, msg->size(), msg->data(), msg->option_};
    places[N].sink(places[N].user, &event);
    delete msg;
}

typedef void (*Callback)(const OpenSocketMsg*);
const Callback callbacks[kPlaces] = {onMessage<0>, onMessage<1>, onMessage<2>, onMessage<3>,
                                     onMessage<4>, onMessage<5>, onMessage<6>, onMessage<7>};

struct Shim
{
    OpenSocket os;
    int place;
};

Shim* create(Sink sink, void* user)
{
    std::lock_guard<std::mutex> guard(mutex);
    for (int i = 0; i < kPlaces; ++i)
    {
        if (places[i].used) continue;
        places[i].sink = sink;
        places[i].user = user;
        places[i].used = true;
        Shim* shim = new Shim;
        shim->place = i;
        // A second run and one without a callback are refused, and harm nothing.
        bool good = !shim->os.run(NULL) && shim->os.run(callbacks[i]) && !shim->os.run(callbacks[i]);
        return good ? shim : NULL;
    }
    return NULL;
}

void destroy(Shim* shim)
{
    int place = shim->place;
    delete shim;
    std::lock_guard<std::mutex> guard(mutex);
    places[place].used = false;
}

// What the class asks a program to write, in the generation that the length of the bytes chooses: both must do.
bool isFirstGeneration(int size) { return size % 2 == 0; }

int sendBytes(Shim* s, int fd, const char* data, int size)
{
    return isFirstGeneration(size) ? s->os.send(fd, std::string(data, size)) : s->os.send(fd, data, size);
}

int sendLow(Shim* s, int fd, const char* data, int size)
{
    return isFirstGeneration(size) ? s->os.sendLowpriority(fd, std::string(data, size))
                                   : s->os.sendLowpriority(fd, data, size);
}

int udpSend(Shim* s, int fd, const char* address, int addressSize, const char* data, int size)
{
    return isFirstGeneration(size) ? s->os.udpSend(fd, std::string(address, addressSize), std::string(data, size))
                                   : s->os.udpSend(fd, address, data, size);
}

int udpAddress(Shim* s, const char* address, int addressSize, char* text, int length)
{
    int result = s->os.udpAddress(address, text, length);
    std::string ip;
    int port = 0;
    if (address && s->os.udpAddress(std::string(address, addressSize), ip, port) != result) abort();
    if (result == 0 && ip + ":" + std::to_string(port) != text) abort();
    return result;
}

int listen(Shim* s, uintptr_t uid, const char* host, int port, int backlog)
{
    return s->os.listen(uid, host, port, backlog);
}
int connect(Shim* s, uintptr_t uid, const char* host, int port) { return s->os.connect(uid, host, port); }
int bind(Shim* s, uintptr_t uid, int fd) { return s->os.bind(uid, fd); }
int udp(Shim* s, uintptr_t uid, const char* host, int port) { return s->os.udp(uid, host, port); }
int udpConnect(Shim* s, int fd, const char* host, int port) { return s->os.udpConnect(fd, host, port); }
void start(Shim* s, uintptr_t uid, int fd) { s->os.start(uid, fd); }
void close(Shim* s, uintptr_t uid, int fd) { s->os.close(uid, fd); }
void shutdown(Shim* s, uintptr_t uid, int fd) { s->os.shutdown(uid, fd); }
void nodelay(Shim* s, int fd) { s->os.nodelay(fd); }

struct Row
{
    int id, type;
    uint64_t opaque, read, write, rtime, wtime;
    int64_t wbuffer;
    const char* name;
};

void info(Shim* s, void (*each)(void* user, const Row* row), void* user)
{
    std::vector<OpenSocket::Info> all(3);
    s->os.socketInfo(all);
    for (size_t i = 0; i < all.size(); ++i)
    {
        const OpenSocket::Info& from = all[i];
        Row row = {from.id_,    from.type_,  from.opaque_,  from.read_,         from.write_,
                   from.rtime_, from.wtime_, from.wbuffer_, from.name_.c_str()};
        each(user, &row);
    }
}

struct Table
{
    Shim* (*create)(Sink, void*);
    void (*destroy)(Shim*);
    int (*listen)(Shim*, uintptr_t, const char*, int, int);
    int (*connect)(Shim*, uintptr_t, const char*, int);
    int (*bind)(Shim*, uintptr_t, int);
    int (*udp)(Shim*, uintptr_t, const char*, int);
    void (*start)(Shim*, uintptr_t, int);
    void (*close)(Shim*, uintptr_t, int);
    void (*shutdown)(Shim*, uintptr_t, int);
    void (*nodelay)(Shim*, int);
    int (*send)(Shim*, int, const char*, int);
    int (*sendLow)(Shim*, int, const char*, int);
    int (*udpConnect)(Shim*, int, const char*, int);
    int (*udpSend)(Shim*, int, const char*, int, const char*, int);
    int (*udpAddress)(Shim*, const char*, int, char*, int);
    void (*info)(Shim*, void (*)(void*, const Row*), void*);
};

}  // namespace

extern "C" const Table opensocket_shim = {create,  destroy, listen, connect,  bind,       udp,     start,      close,
                                          shutdown, nodelay, sendBytes, sendLow, udpConnect, udpSend, udpAddress, info};
