// An HTTP server with a listener thread and accepter threads, as the demos of the original are made: the callback gives
// each message to the thread whose number is its uid.
//
//   http_server [HOST:PORT]        default 127.0.0.1:8888; the end of its input ends it
#include <stdio.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "opensocket.h"

using open::OpenSocket;
using open::OpenSocketMsg;

typedef std::shared_ptr<const OpenSocketMsg> Message;

// The inbox of a thread. A message of NULL is the end.
class Inbox
{
public:
    void push(const Message& message)
    {
        std::lock_guard<std::mutex> guard(mutex_);
        messages_.push_back(message);
        filled_.notify_one();
    }
    Message pop()
    {
        std::unique_lock<std::mutex> lock(mutex_);
        while (messages_.empty()) filled_.wait(lock);
        Message message = messages_.front();
        messages_.pop_front();
        return message;
    }

private:
    std::mutex mutex_;
    std::condition_variable filled_;
    std::deque<Message> messages_;
};

static const size_t kAccepters = 4;
// Number 0 is the listener's. The inboxes are older than the sockets, so that they outlive the last callback.
static Inbox inboxes[1 + kAccepters];
static OpenSocket openSocket;

static void onMessage(const OpenSocketMsg* message)
{
    Message msg(message);
    if (msg->uid_ < 1 + kAccepters) inboxes[msg->uid_].push(msg);
}

static void listenerThread(int listener)
{
    openSocket.start(0, listener);
    size_t next = 0;
    while (Message msg = inboxes[0].pop())
    {
        if (msg->type_ == OpenSocket::ESocketOpen)
        {
            std::vector<OpenSocket::Info> all;
            openSocket.socketInfo(all);
            for (size_t i = 0; i < all.size(); ++i)
                if (all[i].id_ == listener) printf("serving on %s\n", all[i].name_.c_str());
            fflush(stdout);
        }
        else if (msg->type_ == OpenSocket::ESocketAccept)
        {
            openSocket.start(1 + next++ % kAccepters, msg->ud_);
        }
        else if (msg->type_ == OpenSocket::ESocketError)
        {
            fprintf(stderr, "listener: %s\n", msg->info());
        }
    }
}

static std::string reply(const std::string& head, uintptr_t uid)
{
    std::string status = "400 Bad Request", body = "only GET is understood\n";
    size_t end = head.find(' ', 4);
    if (head.compare(0, 4, "GET ") == 0 && end != std::string::npos)
    {
        status = "200 OK";
        body = head.substr(4, end - 4) + " from accepter " + std::to_string(uid) + "\n";
    }
    return "HTTP/1.1 " + status + "\r\nContent-Length: " + std::to_string(body.size()) +
           "\r\nConnection: close\r\n\r\n" + body;
}

static void accepterThread(uintptr_t uid)
{
    const size_t kHeadMax = 16 * 1024;
    std::map<int, std::string> heads;
    while (Message msg = inboxes[uid].pop())
    {
        if (msg->type_ == OpenSocket::ESocketData)
        {
            std::string& head = heads[msg->fd_];
            head.append(msg->data(), msg->size());
            if (head.size() > kHeadMax)
            {
                openSocket.shutdown(uid, msg->fd_);
            }
            else if (head.find("\r\n\r\n") != std::string::npos)
            {
                openSocket.send(msg->fd_, reply(head, uid));
                openSocket.close(uid, msg->fd_);
                head.clear();
            }
        }
        else if (msg->type_ == OpenSocket::ESocketClose || msg->type_ == OpenSocket::ESocketError)
        {
            heads.erase(msg->fd_);
        }
    }
}

int main(int argc, char** argv)
{
    std::string address = argc > 1 ? argv[1] : "127.0.0.1:8888";
    std::string host = address.substr(0, address.rfind(':'));
    int listener = openSocket.listen(0, host, atoi(address.c_str() + address.rfind(':') + 1), 256);
    if (listener < 0)
    {
        perror("listen");
        return 1;
    }
    openSocket.run(onMessage);
    std::vector<std::thread> threads;
    threads.push_back(std::thread(listenerThread, listener));
    for (size_t uid = 1; uid <= kAccepters; ++uid) threads.push_back(std::thread(accepterThread, uid));
    while (getchar() != EOF) continue;
    for (size_t i = 0; i < threads.size(); ++i) inboxes[i].push(Message());
    for (size_t i = 0; i < threads.size(); ++i) threads[i].join();
    return 0;
}
