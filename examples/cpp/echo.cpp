// An echo server: the reply is sent from inside the callback.
//
//   echo [HOST:PORT [SECONDS]]        default 127.0.0.1:7000; without SECONDS the end of its input ends it
#include <stdio.h>

#include <memory>
#include <string>

#include "opensocket.h"

using open::OpenSocket;
using open::OpenSocketMsg;

// A global object: it may be used before main, and ends at exit.
static OpenSocket openSocket;

static const uintptr_t kListener = 1;
static const uintptr_t kConnection = 2;

static void onMessage(const OpenSocketMsg* message)
{
    // The callback owns the message.
    std::unique_ptr<const OpenSocketMsg> msg(message);
    switch (msg->type_)
    {
    case OpenSocket::ESocketAccept:
        openSocket.start(kConnection, msg->ud_);
        break;
    case OpenSocket::ESocketData:
        openSocket.send(msg->fd_, msg->data(), static_cast<int>(msg->size()));
        break;
    case OpenSocket::ESocketOpen:
        if (msg->uid_ == kConnection) openSocket.nodelay(msg->fd_);
        break;
    case OpenSocket::ESocketError:
        fprintf(stderr, "socket %d: %s\n", msg->fd_, msg->info());
        break;
    default:
        break;
    }
}

int main(int argc, char** argv)
{
    std::string address = argc > 1 ? argv[1] : "127.0.0.1:7000";
    std::string host = address.substr(0, address.rfind(':'));
    int port = atoi(address.c_str() + address.rfind(':') + 1);

    openSocket.run(onMessage);
    int listener = openSocket.listen(kListener, host, port, 4096);
    if (listener < 0)
    {
        perror("listen");
        return 1;
    }
    openSocket.start(kListener, listener);

    // The port that the system has chosen, if it was 0, is known when the listener has been started.
    std::vector<OpenSocket::Info> all;
    while (all.empty())
    {
        OpenSocket::Sleep(1);
        openSocket.socketInfo(all);
    }
    printf("echoing tcp on %s\n", all[0].name_.c_str());
    fflush(stdout);
    if (argc > 2)
        OpenSocket::Sleep(1000 * atoi(argv[2]));
    else
        while (getchar() != EOF) continue;
    return 0;
}
