// What a program may rely on at its start, at its end, and with several threads and instances. Prints what does not hold,
// and gives the number of it.
#include <stdio.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "opensocket.h"

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

int main()
{
    check(ranEarly && calledEarly, "it runs before main");
    check(within(earlyCloses, 1), "what was called before main is answered");
    {
        OpenSocket first, second;
        first.run(onFirst);
        second.run(onFirst);
        check(first.connect(1, "127.0.0.1", 1) == 1 && second.connect(1, "127.0.0.1", 1) == 1, "own ids");
    }
    checkGenerations();
    server = new OpenSocket;
    client = new OpenSocket;
    server->run(onServer);
    client->run(onClient);
    checkThreadOrder();
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
