// Datagrams: a server that gives back what it gets, and a client that asks it so many times. Ends by itself.
//
//   udp [COUNT]        default 10
#include <stdio.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "opensocket.h"

using open::OpenSocket;
using open::OpenSocketMsg;

static OpenSocket openSocket;
static std::atomic<int> answers(0);

static const uintptr_t kServer = 1;
static const uintptr_t kClient = 2;

static void onMessage(const OpenSocketMsg* message)
{
    std::unique_ptr<const OpenSocketMsg> msg(message);
    if (msg->type_ != OpenSocket::ESocketUdp) return;
    if (msg->uid_ == kServer)
    {
        // The address of the sender comes with the datagram.
        openSocket.udpSend(msg->fd_, msg->option_, msg->data(), static_cast<int>(msg->size()));
        return;
    }
    char address[64] = "";
    openSocket.udpAddress(msg->option_, address, sizeof address);
    printf("%s: %s\n", address, std::string(msg->data(), msg->size()).c_str());
    ++answers;
}

int main(int argc, char** argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 10;
    openSocket.run(onMessage);
    int server = -1, port = 20000;
    while (server < 0 && ++port < 60000) server = openSocket.udp(kServer, "127.0.0.1", port);
    int client = openSocket.udp(kClient, "127.0.0.1", 0);
    if (server < 0 || client < 0 || openSocket.udpConnect(client, "127.0.0.1", port) != 0) return 1;
    for (int i = 0; i < count; ++i)
    {
        openSocket.send(client, "datagram " + std::to_string(i));
        // One at a time, for datagrams may be lost.
        for (int tries = 0; answers <= i && tries < 5000; ++tries) OpenSocket::Sleep(1);
    }
    openSocket.close(kClient, client);
    openSocket.close(kServer, server);
    return answers == count ? 0 : 1;
}
