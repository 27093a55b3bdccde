// What a program may rely on at its start, at its end, and with several threads and instances. Prints what does not hold,
// and gives the number of it.
#include "opensocket.h"
#ifdef _FCNTL_H
#error "fcntl.h has a function that is called as the namespace"
#endif

#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __linux__
#include <malloc.h>
#endif

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

using open::OpenSocket;
using open::OpenSocketMsg;

static int failures = 0;

static void check(bool good, const char* what)
{
    if (good) return;
    ++failures;
    printf("NOT: %s\n", what);
}

static bool within(const std::atomic<int>& count, int wanted)
{
    for (int i = 0; i < 20000 && count < wanted; ++i) OpenSocket::Sleep(1);
    return count >= wanted;
}

// Runs before main, and is there until after it.
static std::atomic<int> earlyCloses(0);
static void onEarly(const OpenSocketMsg* msg)
{
    if (msg->type_ == OpenSocket::ESocketClose) ++earlyCloses;
    delete msg;
}
static OpenSocket early;
static bool ranEarly = early.run(onEarly);
static int calledEarly = (early.close(7, 12345), 1);

// Two instances count for themselves.
static std::atomic<int> firstIds(0);
static void onFirst(const OpenSocketMsg* msg) { delete msg; }

// Senders of records, whose order is looked at.
static const int kThreads = 8, kRecords = 2000;
static OpenSocket* server = NULL;
static OpenSocket* client = NULL;
static std::string received;
static std::atomic<int> opened(0), receivedBytes(0), ended(0), accepted(0);

static void onServer(const OpenSocketMsg* message)
{
    std::unique_ptr<OpenSocketMsg> msg(const_cast<OpenSocketMsg*>(message));
    if (msg->type_ == OpenSocket::ESocketAccept)
    {
        server->start(2, msg->ud_);
        ++accepted;
    }
    if (msg->type_ == OpenSocket::ESocketData)
    {
        // The buffer may be taken; it is malloc's.
        char* taken = msg->buffer_;
        msg->buffer_ = NULL;
        received.append(taken, msg->size());
        free(taken);
        receivedBytes += static_cast<int>(msg->size());
    }
}

static void onClient(const OpenSocketMsg* message)
{
    std::unique_ptr<const OpenSocketMsg> msg(message);
    if (msg->type_ == OpenSocket::ESocketOpen) ++opened;
    if (msg->type_ == OpenSocket::ESocketClose || msg->type_ == OpenSocket::ESocketError) ++ended;
}

static int portOf(OpenSocket& sockets, int id)
{
    std::vector<OpenSocket::Info> all;
    for (int i = 0; i < 5000; ++i)
    {
        sockets.socketInfo(all);
        for (size_t j = 0; j < all.size(); ++j)
            if (all[j].id_ == id && all[j].type_ == OpenSocket::EInfoListen)
                return atoi(all[j].name_.c_str() + all[j].name_.rfind(':') + 1);
        OpenSocket::Sleep(1);
    }
    return -1;
}

static void sendRecords(int fd, int thread)
{
    char record[16];
    for (int i = 0; i < kRecords; ++i)
    {
        snprintf(record, sizeof record, "%02d %011d\n", thread, i);
        if (client->send(fd, record, 15) != 0) abort();
    }
}

static void checkThreadOrder()
{
    int listener = server->listen(1, "127.0.0.1", 0, 1024);
    server->start(1, listener);
    int port = portOf(*server, listener);
    int fd = client->connect(3, "127.0.0.1", port);
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) threads.push_back(std::thread(sendRecords, fd, i));
    for (int i = 0; i < kThreads; ++i) threads[i].join();
    check(within(receivedBytes, 15 * kThreads * kRecords), "all records arrive");
    std::vector<int> next(kThreads, 0);
    bool ordered = true;
    for (size_t at = 0; at + 15 <= received.size(); at += 15)
    {
        int thread = atoi(received.c_str() + at);
        ordered = ordered && atoi(received.c_str() + at + 3) == next[thread]++;
    }
    check(ordered, "records of a thread keep their order");

    // Many more, which are open at the end.
    for (int i = 0; i < 300; ++i) client->connect(3, "127.0.0.1", port);
    check(within(opened, 301) && within(accepted, 301), "all connections open");
}

static void checkGenerations()
{
    OpenSocket sockets;
    check(sockets.listen(1, "127.0.0.1", 0, 16) == 1 && sockets.udp(1, "", 0) == 2, "ids begin with 1");
    check(sockets.send(1, "text") == 0 && sockets.sendLowpriority(1, std::string("a\0b", 3)) == 0, "gen 1 sends");
    check(sockets.send(99, "text", 4) == -1 && sockets.sendLowpriority(99, "text", 4) == -1, "unknown ids");
    check(sockets.send(1, "text", -1) == -1, "a negative size");
    std::string ip;
    int port = 0;
    std::string address("\1\0\x50\x7f\0\0\1", 7);
    check(sockets.udpAddress(address, ip, port) == 0 && ip == "127.0.0.1" && port == 80, "gen 1 addresses");
    check(sockets.udpAddress(std::string("\1", 1), ip, port) == -1, "an address that is cut");
    check(sockets.udpAddress(std::string(), ip, port) == -1, "an address that is empty");
    char text[8];
    check(sockets.udpAddress(address.data(), text, sizeof text) == 0 && std::string(text) == "127.0.0", "it is cut");
    check(sockets.udpSend(2, address, std::string("to nobody")) == 0, "gen 1 datagrams");
    check(!sockets.run(NULL), "no callback");
    std::string name = "1.2.3";
    check(OpenSocket::DomainNameToIp(name) == "1.2.0.3" && OpenSocket::DomainNameToIp("") == "", "names");
    OpenSocket::Info info;
    info.clear();
    check(info.type_ == OpenSocket::EInfoUnknow && OpenSocketMsg().type_ == OpenSocket::ESocketClose, "defaults");
}

// What is received arrives in memory that the system wrote to, if it is not much larger; else it is copied.
static std::atomic<int> wholeMessages(0), givenMessages(0), wastefulMessages(0), pieces(0);
static OpenSocket* giver = NULL;

static void onGiven(const OpenSocketMsg* message)
{
    std::unique_ptr<const OpenSocketMsg> msg(message);
    if (msg->type_ == OpenSocket::ESocketAccept) giver->start(2, msg->ud_);
    if (msg->type_ == OpenSocket::ESocketOpen && msg->uid_ == 3) giver->send(msg->fd_, std::string(9000, 'x'));
    if (msg->type_ != OpenSocket::ESocketData) return;
#ifdef __GLIBC__
    size_t memory = malloc_usable_size(msg->buffer_);
    if (memory > 2 * msg->size() + 64) ++wastefulMessages;
    if (msg->size() == 9000) ++wholeMessages;
    if (msg->size() == 9000 && memory > 17000) ++givenMessages;
#endif
    // Large ones first, small ones later; each after the one before has come back.
    if (msg->uid_ == 2 || ++pieces < 100) giver->send(msg->fd_, pieces < 50 ? std::string(9000, 'x') : "small");
}

static void checkGiven()
{
    giver = new OpenSocket;
    giver->run(onGiven);
    int listener = giver->listen(1, "127.0.0.1", 0, 16);
    giver->start(1, listener);
    giver->connect(3, "127.0.0.1", portOf(*giver, listener));
    check(within(pieces, 100), "messages go back and forth");
    delete giver;
    check(wastefulMessages == 0, "no message holds twice the memory it needs");
    // The first of each side finds the sockets expecting little.
    check(givenMessages >= wholeMessages - 2, "large messages are not copied");
#ifdef __GLIBC__
    check(wholeMessages > 10, "large messages arrive whole");
#endif
}

// Descriptors of the program's: a pipe is read to its end, each datagram is one message, and a peer that is gone raises
// no signal.
static OpenSocket* binder = NULL;
static std::string piped;
static std::atomic<int> boundData(0), boundCloses(0);

static void onBound(const OpenSocketMsg* message)
{
    std::unique_ptr<const OpenSocketMsg> msg(message);
    if (msg->type_ == OpenSocket::ESocketOpen) check(std::string(msg->info()) == "binding", "it is bound");
    if (msg->type_ == OpenSocket::ESocketClose) ++boundCloses;
    if (msg->type_ != OpenSocket::ESocketData) return;
    piped.append(msg->data(), msg->size()).append("|");
    ++boundData;
}

static void checkBound()
{
    signal(SIGPIPE, SIG_DFL);
    int in[2], out[2], packets[2], stream[2];
    check(pipe(in) == 0 && pipe(out) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, packets) == 0 &&
              socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0,
          "descriptors");
    binder = new OpenSocket;
    binder->run(onBound);
    check(binder->bind(4, in[0]) == 1 && write(in[1], "text", 4) == 4 && within(boundData, 1), "a pipe is read");
    check(close(in[1]) == 0 && within(boundCloses, 1), "the end of a pipe");
    int fd = binder->bind(4, packets[0]);
    check(::send(packets[1], "one", 3, 0) == 3 && within(boundData, 2), "a datagram is received");
    check(::send(packets[1], "two", 3, 0) == 3 && within(boundData, 3), "and another");
    check(piped == "text|one|two|", "each is a message");
    char got[16];
    check(binder->send(fd, "a") == 0 && binder->send(fd, "bc") == 0, "datagrams are sent");
    check(recv(packets[1], got, sizeof got, 0) == 1 && recv(packets[1], got, sizeof got, 0) == 2, "one by one");
    // Whoever read them is gone.
    close(out[0]);
    close(stream[1]);
    close(packets[1]);
    int gone[3] = {binder->bind(4, out[1]), binder->bind(4, stream[0]), fd};
    for (int i = 0; i < 3; ++i) binder->send(gone[i], std::string(100000, 'x'));
    check(within(boundCloses, 3), "what nobody reads is closed");
    binder->close(4, fd);
    delete binder;
    check(write(out[1], "", 0) == 0, "the descriptor is the program's");
}

// KiB of memory that the program has touched; 0 where the system does not tell.
static long residentKib()
{
    long pages = 0, resident = 0;
    FILE* file = fopen("/proc/self/statm", "r");
    if (file == NULL) return 0;
    if (fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

int main()
{
    check(ranEarly && calledEarly, "it runs before main");
    check(within(earlyCloses, 1), "what was called before main is answered");
    {
        long before = residentKib();
        OpenSocket first, second;
        first.run(onFirst);
        second.run(onFirst);
        check(residentKib() - before < 2 * 4096, "an instance begins with less than 4 MiB");
        check(first.connect(1, "127.0.0.1", 1) == 1 && second.connect(1, "127.0.0.1", 1) == 1, "own ids");
    }
    checkGenerations();
    server = new OpenSocket;
    client = new OpenSocket;
    server->run(onServer);
    client->run(onClient);
    checkThreadOrder();
    checkGiven();
    checkBound();
    delete client;
    // Nothing runs any more that could count.
    int before = ended;
    OpenSocket::Sleep(20);
    check(before == ended, "no callback after the destructor");
    delete server;
    early.close(7, 12346);
    if (failures == 0) printf("all holds\n");
    return failures;
}
