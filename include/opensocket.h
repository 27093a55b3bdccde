// OpenSocket over anabranch: the class of the original, both generations of its calls, in C++11.
//
// Ownership. The callback owns each message it gets and deletes it once; `buffer_` comes from malloc, and a program that
// takes it (by setting it to NULL) calls free. A connection that brings messages of 8.5 KiB and more receives
// straight into such buffers, of 17 KiB each; smaller messages and datagrams are copied, so that no message holds more
// than twice the memory it needs. What is given to a send is copied before the call returns.
//
// Threads. Every call may be made from any thread, also from the callback, also before `run`; calls of one thread act in
// their order. The callback runs on the library's thread, one message at a time. The destructor closes all sockets and
// joins that thread: no callback runs once it has returned. A global object may be used before main, and ends at exit.
//
// Nothing is asserted: a call that cannot be done gives -1, false or nothing.
//
// MIT or Apache-2.0, at your option.
#ifndef ANABRANCH_OPENSOCKET_H
#define ANABRANCH_OPENSOCKET_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include "anabranch.h"

namespace open
{

class OpenSocket
{
public:
    enum EMsgType
    {
        ESocketData = 0,
        ESocketClose,
        ESocketOpen,
        ESocketAccept,
        ESocketError,
        ESocketUdp,
        ESocketWarning,
    };

    class Msg
    {
    public:
        Msg()
            : type_(ESocketClose), fd_(0), uid_(0), ud_(0), size_(0), buffer_(NULL), option_(NULL)
        {
        }
        ~Msg() { free(buffer_); }
        const char* data() const { return buffer_; }
        const char* info() const { return buffer_; }
        size_t size() const { return size_; }

        EMsgType type_;
        int fd_;
        uintptr_t uid_;
        int ud_;          // of an accept, the new id
        size_t size_;     // of a warning, KiB that wait, without a buffer
        char* buffer_;    // a payload (without a NUL behind it) or a text, from malloc
        char* option_;    // the address of a datagram, inside of buffer_

    private:
        Msg(const Msg&);
        Msg& operator=(const Msg&);
    };

    enum EInfoType
    {
        EInfoUnknow = 0,
        EInfoListen = 1,
        EInfoTcp = 2,
        EInfoUdp = 3,
        EInfoBing = 4,
    };

    struct Info
    {
        int id_;
        EInfoType type_;
        uint64_t opaque_;
        uint64_t read_;
        uint64_t write_;
        uint64_t rtime_;
        uint64_t wtime_;
        int64_t wbuffer_;
        std::string name_;

        Info() { clear(); }
        void clear()
        {
            id_ = 0;
            type_ = EInfoUnknow;
            opaque_ = read_ = write_ = rtime_ = wtime_ = 0;
            wbuffer_ = 0;
            name_.clear();
        }
    };

    OpenSocket() : os_(anabranch_os_new()) {}
    ~OpenSocket() { anabranch_os_free(os_); }

    // Starts the thread. False if it runs already, or without a callback.
    bool run(void (*callback)(const Msg*))
    {
        return callback && anabranch_os_run_owning(os_, onMessage, reinterpret_cast<void*>(callback)) == 0;
    }

    int send(int fd, const void* buffer, int size) { return anabranch_os_send(os_, fd, buffer, size); }
    int send(int fd, const std::string& buffer)
    {
        return anabranch_os_send(os_, fd, buffer.data(), static_cast<int>(buffer.size()));
    }
    int sendLowpriority(int fd, const void* buffer, int size)
    {
        return anabranch_os_send_low(os_, fd, buffer, size);
    }
    int sendLowpriority(int fd, const std::string& buffer)
    {
        return anabranch_os_send_low(os_, fd, buffer.data(), static_cast<int>(buffer.size()));
    }
    void nodelay(int fd) { anabranch_os_nodelay(os_, fd); }

    int listen(uintptr_t uid, const std::string& host, int port, int backlog)
    {
        return anabranch_os_listen(os_, uid, host.c_str(), port, backlog);
    }
    int connect(uintptr_t uid, const std::string& host, int port)
    {
        return anabranch_os_connect(os_, uid, host.c_str(), port);
    }
    int bind(uintptr_t uid, int fd) { return anabranch_os_bind(os_, uid, fd); }
    void close(uintptr_t uid, int fd) { anabranch_os_close(os_, uid, fd); }
    void shutdown(uintptr_t uid, int fd) { anabranch_os_shutdown(os_, uid, fd); }
    void start(uintptr_t uid, int fd) { anabranch_os_start(os_, uid, fd); }

    int udp(uintptr_t uid, const std::string& address, int port)
    {
        return anabranch_os_udp(os_, uid, address.c_str(), port);
    }
    int udpConnect(int fd, const std::string& address, int port)
    {
        return anabranch_os_udp_connect(os_, fd, address.c_str(), port);
    }
    int udpSend(int fd, const char* address, const void* buffer, int size)
    {
        return anabranch_os_udp_send(os_, fd, address, buffer, size);
    }
    int udpSend(int fd, const std::string& address, const std::string& buffer)
    {
        if (!isWhole(address)) return -1;
        return udpSend(fd, address.data(), buffer.data(), static_cast<int>(buffer.size()));
    }
    // Writes "ip:port", cut to the length.
    int udpAddress(const char* address, char* text, int length)
    {
        return anabranch_os_udp_address(address, text, length > 0 ? static_cast<size_t>(length) : 0);
    }
    int udpAddress(const std::string& address, std::string& ip, int& port)
    {
        char text[64];
        if (!isWhole(address) || anabranch_os_udp_address(address.data(), text, sizeof text) != 0) return -1;
        char* end = strrchr(text, ':');
        ip.assign(text, static_cast<size_t>(end - text));
        port = atoi(end + 1);
        return 0;
    }

    void socketInfo(std::vector<Info>& all)
    {
        all.clear();
        std::vector<anabranch_os_info> rows;
        ptrdiff_t count = anabranch_os_socket_info(os_, NULL, 0);
        if (count <= 0) return;
        // Some may have come meanwhile; they are told of next time.
        rows.resize(static_cast<size_t>(count));
        count = anabranch_os_socket_info(os_, &rows[0], rows.size());
        if (count >= 0 && static_cast<size_t>(count) < rows.size()) rows.resize(static_cast<size_t>(count));
        all.resize(rows.size());
        for (size_t i = 0; i < rows.size(); ++i)
        {
            all[i].id_ = rows[i].id;
            all[i].type_ = static_cast<EInfoType>(rows[i].type);
            all[i].opaque_ = rows[i].uid;
            all[i].read_ = rows[i].read;
            all[i].write_ = rows[i].written;
            all[i].rtime_ = rows[i].read_at;
            all[i].wtime_ = rows[i].written_at;
            all[i].wbuffer_ = rows[i].pending;
            all[i].name_ = rows[i].name;
        }
    }

    static void Sleep(int64_t milliseconds) { anabranch_sleep_ms(milliseconds); }
    // The IPv4 address of a name, or nothing.
    static std::string DomainNameToIp(std::string& domain) { return domainToIp(domain.c_str()); }
    static std::string DomainNameToIp(const std::string& domain) { return domainToIp(domain.c_str()); }

private:
    OpenSocket(const OpenSocket&);
    OpenSocket& operator=(const OpenSocket&);

    static std::string domainToIp(const char* domain)
    {
        char text[32];
        return anabranch_domain_name_to_ip(domain, text, sizeof text) == 0 ? std::string(text) : std::string();
    }

    // Whether an address has as many bytes as its tag says.
    static bool isWhole(const std::string& address)
    {
        return !address.empty() && address.size() >= (address[0] == 1 ? 7u : 19u);
    }

    // Makes a message of the program's. What it throws ends the program, as on any thread.
    static void onMessage(void* callback, const anabranch_os_message* event) noexcept
    {
        Msg* msg = new Msg;
        msg->type_ = static_cast<EMsgType>(event->type);
        msg->fd_ = event->fd;
        msg->uid_ = event->uid;
        msg->ud_ = event->ud;
        msg->size_ = event->size;
        // The class is run as an owner, so both come from malloc.
        msg->buffer_ = const_cast<char*>(event->data);
        msg->option_ = const_cast<char*>(event->option);
        reinterpret_cast<void (*)(const Msg*)>(callback)(msg);
    }

    uint64_t os_;
};

typedef OpenSocket::Msg OpenSocketMsg;

}  // namespace open

#endif
