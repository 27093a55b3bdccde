// The Asio server of the comparison: the same roles as the others, one thread, the epoll reactor.
//
// usage: asio-server serve ROLE ADDRESS PORT | asio-server micro timers COUNT

#include <asio.hpp>

#include <sys/resource.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <vector>

namespace {

using asio::ip::tcp;
using asio::ip::udp;
using std::error_code;

constexpr std::size_t stream_buffer = 16 * 1024;
constexpr std::size_t datagram_buffer = 2048;
constexpr std::size_t message_bytes = 32;
constexpr std::size_t backlog_bytes = 1 << 20;

class Echo : public std::enable_shared_from_this<Echo> {
public:
    explicit Echo(tcp::socket socket) : socket_(std::move(socket)), buffer_(new char[stream_buffer]) {}

    void read() {
        auto self = shared_from_this();
        socket_.async_read_some(asio::buffer(buffer_.get(), stream_buffer), [this, self](error_code error, std::size_t n) {
            if (!error) write(n);
        });
    }

private:
    void write(std::size_t n) {
        auto self = shared_from_this();
        asio::async_write(socket_, asio::buffer(buffer_.get(), n), [this, self](error_code error, std::size_t) {
            if (!error) read();
        });
    }

    tcp::socket socket_;
    // Not a vector, which would write zeros into memory that idle connections never need.
    std::unique_ptr<char[]> buffer_;
};

class Member;
using Room = std::list<std::shared_ptr<Member>>;

// A publisher or a subscriber of the fan-out.
class Member : public std::enable_shared_from_this<Member> {
public:
    Member(tcp::socket socket, Room& room) : socket_(std::move(socket)), room_(room) {}

    void start() {
        auto self = shared_from_this();
        asio::async_read(socket_, asio::buffer(&kind_, 1), [this, self](error_code error, std::size_t) {
            if (error || (kind_ != 'P' && kind_ != 'S')) return;
            push(&kind_, 1);
            flush();
            if (kind_ == 'S') {
                room_.push_back(self);
                place_ = std::prev(room_.end());
            } else {
                incoming_.resize(stream_buffer);
                read();
            }
        });
    }

private:
    // A message for which there is no room is dropped.
    void push(const char* bytes, std::size_t n) {
        if (waiting_.size() + leaving_.size() + n > backlog_bytes) return;
        waiting_.insert(waiting_.end(), bytes, bytes + n);
    }

    void flush() {
        if (!leaving_.empty() || waiting_.empty()) return;
        std::swap(leaving_, waiting_);
        auto self = shared_from_this();
        asio::async_write(socket_, asio::buffer(leaving_), [this, self](error_code error, std::size_t) {
            leaving_.clear();
            if (!error) return flush();
            if (kind_ == 'S') room_.erase(place_);
        });
    }

    void read() {
        auto self = shared_from_this();
        auto room = asio::buffer(incoming_.data() + begun_, incoming_.size() - begun_);
        socket_.async_read_some(room, [this, self](error_code error, std::size_t n) {
            if (error) return;
            std::size_t held = begun_ + n, whole = held / message_bytes * message_bytes;
            for (auto& member : room_) {
                for (std::size_t at = 0; at < whole; at += message_bytes) {
                    member->push(incoming_.data() + at, message_bytes);
                }
            }
            // The loop may erase the member it looks at only later, from a handler.
            for (auto& member : room_) member->flush();
            begun_ = held - whole;
            std::memmove(incoming_.data(), incoming_.data() + whole, begun_);
            read();
        });
    }

    tcp::socket socket_;
    Room& room_;
    Room::iterator place_;
    char kind_ = 0;
    std::vector<char> incoming_, waiting_, leaving_;
    std::size_t begun_ = 0;
};

class Listener {
public:
    Listener(asio::io_context& context, tcp::endpoint endpoint, bool fan_out) : acceptor_(context), fan_out_(fan_out) {
        acceptor_.open(endpoint.protocol());
        acceptor_.set_option(tcp::acceptor::reuse_address(true));
        acceptor_.set_option(tcp::no_delay(true));
        acceptor_.bind(endpoint);
        acceptor_.listen(4096);
        accept();
    }

private:
    void accept() {
        acceptor_.async_accept([this](error_code error, tcp::socket socket) {
            if (!error && fan_out_) std::make_shared<Member>(std::move(socket), room_)->start();
            if (!error && !fan_out_) std::make_shared<Echo>(std::move(socket))->read();
            accept();
        });
    }

    tcp::acceptor acceptor_;
    bool fan_out_;
    Room room_;
};

class Datagrams {
public:
    Datagrams(asio::io_context& context, udp::endpoint endpoint) : socket_(context, endpoint), buffer_(datagram_buffer) {
        error_code ignored;
        socket_.set_option(asio::socket_base::receive_buffer_size(4 << 20), ignored);
        socket_.set_option(asio::socket_base::send_buffer_size(4 << 20), ignored);
        receive();
    }

private:
    void receive() {
        socket_.async_receive_from(asio::buffer(buffer_), peer_, [this](error_code error, std::size_t n) {
            if (error) return receive();
            socket_.async_send_to(asio::buffer(buffer_.data(), n), peer_, [this](error_code, std::size_t) { receive(); });
        });
    }

    udp::socket socket_;
    udp::endpoint peer_;
    std::vector<char> buffer_;
};

int serve(const std::string& role, const char* address, const char* port) {
    asio::io_context context(1);
    auto host = asio::ip::make_address(address);
    auto number = static_cast<unsigned short>(std::atoi(port));
    std::unique_ptr<Listener> listener;
    std::unique_ptr<Datagrams> datagrams;
    if (role == "udp" || role == "bulk-udp") {
        datagrams = std::make_unique<Datagrams>(context, udp::endpoint(host, number));
    } else {
        listener = std::make_unique<Listener>(context, tcp::endpoint(host, number), role == "fan-out");
    }
    std::puts("ready");
    std::fflush(stdout);
    context.run();
    return 0;
}

double cpu_ns() {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

// Moves one of many armed timers at random, and lets the loop have a turn after each batch, as the other servers do.
int timers(std::size_t count) {
    using Clock = std::chrono::steady_clock;
    constexpr std::size_t resets = 1000000, batch = 64;
    asio::io_context context(1);
    std::vector<asio::steady_timer> all;
    all.reserve(count);
    auto deadline = [](Clock::time_point now, std::size_t at) {
        return now + std::chrono::seconds(60) + std::chrono::milliseconds(at * 7 % 10000);
    };
    auto now = Clock::now();
    for (std::size_t at = 0; at < count; ++at) {
        all.emplace_back(context, deadline(now, at));
        all.back().async_wait([](error_code) {});
    }
    std::uint64_t state = 88172645463325252u;
    double begun = cpu_ns();
    for (std::size_t done = 0; done < resets / batch; ++done) {
        now = Clock::now();
        for (std::size_t n = 0; n < batch; ++n) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            std::size_t at = state % count;
            all[at].expires_at(deadline(now, at));
            all[at].async_wait([](error_code) {});
        }
        context.poll();
    }
    std::printf("{\"cpu_us\":%f}\n", (cpu_ns() - begun) / 1e3 / (resets / batch * batch));
    std::fflush(stdout);
    std::_Exit(0);
}

}  // namespace

int main(int count, char** words) {
    rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (count == 5 && std::string(words[1]) == "serve") return serve(words[2], words[3], words[4]);
    if (count == 4 && std::string(words[1]) == "micro") return timers(std::strtoul(words[3], nullptr, 10));
    std::fputs("usage: serve ROLE ADDRESS PORT | micro timers COUNT\n", stderr);
    return 2;
}
