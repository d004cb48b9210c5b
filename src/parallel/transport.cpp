#include "parallel/transport.h"

#include <atomic>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/progress.h"
#include "parallel/run_end.h"

namespace switchyard::parallel {

namespace {

std::atomic<bool> run_over{false};
static_assert(std::atomic<bool>::is_always_lock_free);
std::function<void()> wait_check;

class LoneTransport final : public Transport {
 public:
  LoneTransport() : Transport(0, 1) {}

 protected:
  void do_move(std::span<const Outgoing>, std::span<const Incoming>, Traffic) override {
    SY_CHECK(false, "a rank alone has nobody to send to");
  }
};

}  // namespace

void set_run_over() { run_over.store(true, std::memory_order_release); }
bool run_is_over() { return run_over.load(std::memory_order_acquire); }

void set_wait_check(std::function<void()> check) { wait_check = std::move(check); }
void look_while_waiting() {
  if (run_is_over()) throw RunIsOver();
  if (wait_check) wait_check();
}

const char* name_of(Traffic kind) {
  switch (kind) {
    case Traffic::gradients:
      return "gradients";
    case Traffic::weights:
      return "weights";
    case Traffic::tokens:
      return "tokens";
    case Traffic::sums:
      return "sums";
    case Traffic::checkpoint:
      return "checkpoint";
    case Traffic::control:
      return "control";
  }
  return "unknown traffic";
}

void Transport::move(std::span<const Outgoing> out, std::span<const Incoming> in, Traffic kind) {
  std::vector<Outgoing> sent;
  std::vector<Incoming> received;
  sent.reserve(out.size());
  received.reserve(in.size());
  const auto is_other = [&](int rank) { return rank >= 0 && rank < size_ && rank != rank_; };
  std::int64_t sent_bytes = 0;
  for (const Outgoing& message : out) {
    if (message.bytes.empty()) continue;
    SY_CHECK(is_other(message.to), "rank {} of {} sends to rank {}", rank_, size_, message.to);
    sent_bytes += static_cast<std::int64_t>(message.bytes.size());
    sent.push_back(message);
  }
  for (const Incoming& message : in) {
    if (message.bytes.empty()) continue;
    SY_CHECK(is_other(message.from), "rank {} of {} receives from rank {}", rank_, size_, message.from);
    received.push_back(message);
  }
  const std::int64_t number = moves_++;  // of those without a byte too: the same on all ranks of a group
  if (sent.empty() && received.empty()) return;
  if (run_is_over()) throw RunIsOver();
  const Progress before = progress();
  mark_waiting("exchange", number);
  do_move(sent, received, kind);
  mark(before.place, before.index);
  counts_.sent_bytes[static_cast<std::size_t>(kind)] += sent_bytes;
}

void Transport::check_agreement(int from, const Message& taken, const Message& sent) const {
  if (taken.bytes == sent.bytes && taken.number == sent.number && taken.kind == sent.kind) return;
  throw std::logic_error(fmt::format(
      "ranks disagree: rank {} takes {} bytes of {} as message {} from rank {}, which has sent {} bytes of {} "
      "as message {}",
      rank_, taken.bytes, name_of(static_cast<Traffic>(taken.kind)), taken.number, from, sent.bytes,
      name_of(static_cast<Traffic>(sent.kind)), sent.number));
}

std::unique_ptr<Transport> make_lone_transport() { return std::make_unique<LoneTransport>(); }

}  // namespace switchyard::parallel
