#include "parallel/rendezvous.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/progress.h"

namespace switchyard::parallel {

namespace {

constexpr double kConnectSeconds = 3, kHelloSeconds = 3, kMeetSeconds = 25;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// So that nobody else's connection is taken for a rank's.
std::string make_token() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

// Addresses of this machine's interfaces, the one that others cannot reach last.
std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) == 0) {
    for (const ifaddrs* each = all; each; each = each->ifa_next) {
      if (!each->ifa_addr || each->ifa_addr->sa_family != AF_INET || (each->ifa_flags & IFF_UP) == 0 ||
          (each->ifa_flags & IFF_LOOPBACK) != 0)
        continue;
      char text[INET_ADDRSTRLEN] = "";
      ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr, text, sizeof(text));
      addresses.emplace_back(text);
    }
    ::freeifaddrs(all);
  }
  addresses.emplace_back("127.0.0.1");
  return addresses;
}

// A listening socket, and its port.
std::pair<int, int> listen_anywhere(int ranks) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  socklen_t length = sizeof(any);
  if (listener < 0 || ::bind(listener, reinterpret_cast<sockaddr*>(&any), length) != 0 ||
      ::listen(listener, ranks) != 0 ||
      ::getsockname(listener, reinterpret_cast<sockaddr*>(&any), &length) != 0)
    return {-1, 0};
  return {listener, ntohs(any.sin_port)};
}

// A connected socket; not open where there is no way.
Line connect_to(const std::string& address, int port) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port));
  ::inet_pton(AF_INET, address.c_str(), &to.sin_addr);
  const int descriptor = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (descriptor < 0) return {};
  Line line(descriptor);
  if (::connect(descriptor, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0) return line;
  pollfd polled{descriptor, POLLOUT, 0};
  int error = 0;
  socklen_t length = sizeof(error);
  const bool done = errno == EINPROGRESS && ::poll(&polled, 1, static_cast<int>(kConnectSeconds * 1000)) == 1 &&
                    ::getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
  return done ? std::move(line) : Line();
}

// "token host"
std::string introduction(const std::string& token) { return token + " " + host_name(); }
bool introduces(const Word& word, const std::string& token) { return word.text.starts_with(token + " "); }
RankName name_from(const Word& word, const std::string& token, std::int64_t process) {
  return {word.text.substr(token.size() + 1), process};
}

// Takes the connections of all others; an error in words, or nothing.
std::string take_connections(Monitor& monitor, int listener, int ranks, const std::string& token) {
  std::vector<bool> here(static_cast<std::size_t>(ranks));
  int missing = ranks - 1;
  for (const double end = now() + kMeetSeconds; missing > 0;) {
    const double left = end - now();
    if (left <= 0) {
      std::string missed;
      for (int rank = 1; rank < ranks; ++rank)
        if (!here[static_cast<std::size_t>(rank)])
          missed += fmt::format("{}{}", missed.empty() ? "" : ", ", rank);
      return fmt::format("rank {} has not reached rank 0", missed);
    }
    pollfd polled{listener, POLLIN, 0};
    if (::poll(&polled, 1, static_cast<int>(left * 1000) + 1) != 1) continue;
    const int descriptor = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (descriptor < 0) continue;
    Line line(descriptor);
    Word word;
    if (!line.receive_one(word, kHelloSeconds) || word.say != Say::hello || !introduces(word, token)) continue;
    const std::int64_t rank = word.number[0];
    if (rank < 1 || rank >= ranks || here[static_cast<std::size_t>(rank)]) continue;
    line.send({Say::welcome, {::getpid()}, introduction(token)});
    here[static_cast<std::size_t>(rank)] = true;
    monitor.add(static_cast<int>(rank), std::move(line), name_from(word, token, word.number[1]), nullptr, true);
    --missing;
  }
  return "";
}

// Of rank 0; an error in words, or nothing.
std::string meet_others(Rendezvous& met, int listener, int ranks, const std::string& token) {
  int ends[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    return fmt::format("rank 0 has no connection to itself: {}", std::strerror(errno));
  met.monitor = std::make_unique<Monitor>(ranks);
  met.first = {host_name(), ::getpid()};
  met.monitor->add(0, Line(ends[0]), met.first, nullptr, true);
  met.line = Line(ends[1]);
  return take_connections(*met.monitor, listener, ranks, token);
}

// Of any other rank: by one of these addresses.
std::string reach_first(Rendezvous& met, const World& world, std::istream& words, int port,
                        const std::string& token) {
  std::vector<std::string> addresses;
  for (std::string address; words >> address;) addresses.push_back(address);
  // Ranks of one machine have the shortest way where there is no other machine.
  if (world.node_size == world.size() && addresses.size() > 1) std::swap(addresses.front(), addresses.back());
  std::string tried;
  for (const std::string& each : addresses) {
    Line line = connect_to(each, port);
    Word word;
    line.send({Say::hello, {world.rank(), ::getpid()}, introduction(token)});
    if (line.is_open() && line.receive_one(word, kHelloSeconds) && introduces(word, token)) {
      met.line = std::move(line);
      met.first = name_from(word, token, word.number[0]);
      return "";
    }
    tried += (tried.empty() ? "" : ", ") + each + (line.is_open() ? " (no answer)" : "");
  }
  return fmt::format("rank {} (host {}) cannot reach rank 0 at {}, port {}; open it for this user's ports",
                     world.rank(), host_name(), tried, port);
}

}  // namespace

Rendezvous meet(World& world, StartLimit& limit) {
  const Group all = all_ranks(world);
  Rendezvous met;
  std::string error;
  int listener = -1, port = 0;
  std::string offer;  // "token port address address ..."
  if (world.rank() == 0) {
    std::tie(listener, port) = listen_anywhere(world.size());
    if (listener < 0) error = fmt::format("rank 0 cannot listen: {}", std::strerror(errno));
    offer = fmt::format("{} {}", make_token(), port);
    for (const std::string& address : own_addresses()) offer += " " + address;
  }
  std::istringstream words(all.text_of_first(offer));
  std::string token;
  words >> token >> port;
  mark("meeting of the ranks");
  if (world.rank() > 0)
    error = reach_first(met, world, words, port, token);
  else if (error.empty())
    error = meet_others(met, listener, world.size(), token);
  if (listener >= 0) ::close(listener);
  if (!error.empty()) limit.says(error);
  const std::vector<std::string> errors = all.gather_text(error);
  for (std::size_t rank = errors.size(); rank-- > 0 && met.error.empty();)
    met.error = errors[rank];  // what others say tells more than that they are missing
  world.transport->forget_counts();
  return met;
}

}  // namespace switchyard::parallel
