// Ranks as threads of one process, on the CPU: what a test of several ranks runs on.
#pragma once

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "tensors.h"

namespace switchyard::test {

// What the ranks share.
class RankTeam {
 public:
  explicit RankTeam(int size)
      : size_(size), tensor_R_(static_cast<std::size_t>(size)), flag_R_(static_cast<std::size_t>(size)) {}
  int size() const { return size_; }

  // Sums in rank order, in double, on every rank.
  void all_reduce_sum(int rank, const Tensor& tensor) {
    tensor_R_[static_cast<std::size_t>(rank)] = tensor;
    wait();
    std::vector<double> sum(static_cast<std::size_t>(tensor.numel()));
    for (const Tensor& other : tensor_R_) {
      if (other.shape() != tensor.shape() || other.dtype() != tensor.dtype())
        throw std::logic_error("ranks add " + other.shape().to_string() + " to " + tensor.shape().to_string());
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += get(other, static_cast<std::int64_t>(i));
    }
    wait();  // all have read what is overwritten now
    fill(tensor, sum);
  }
  bool agree(int rank, bool flag) {
    flag_R_[static_cast<std::size_t>(rank)] = flag;
    wait();
    const bool any = std::any_of(flag_R_.begin(), flag_R_.end(), [](char each) { return each != 0; });
    wait();  // all have read what the next call overwrites
    return any;
  }
  // A rank has failed: the others must not wait for it.
  void abandon() {
    const std::lock_guard lock(mutex_);
    abandoned_ = true;
    changed_.notify_all();
  }

 private:
  void wait() {
    std::unique_lock lock(mutex_);
    const int round = round_;
    if (++arrived_ == size_) {
      arrived_ = 0;
      ++round_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [&] { return round_ != round || abandoned_; });
    }
    if (abandoned_) throw std::runtime_error("another rank has failed");
  }

  int size_;
  std::vector<Tensor> tensor_R_;
  std::vector<char> flag_R_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0, round_ = 0;
  bool abandoned_ = false;
};

class RankThread final : public parallel::Communicator {
 public:
  RankThread(RankTeam& team, int rank) : team_(team), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return team_.size(); }
  void all_reduce_sum(Tensor tensor, Context&) override { team_.all_reduce_sum(rank_, tensor); }
  bool agree(bool flag) override { return team_.agree(rank_, flag); }

 private:
  RankTeam& team_;
  int rank_;
};

// Calls f(communicator) on `size` threads, each with one OpenMP thread. An exception of a rank ends the others
// and is a failure of the test.
inline void on_ranks(int size, const std::function<void(parallel::Communicator&)>& f) {
  RankTeam team(size);
  std::vector<std::string> error_R(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      omp_set_num_threads(1);
      RankThread communicator(team, rank);
      try {
        f(communicator);
      } catch (const std::exception& error) {
        error_R[static_cast<std::size_t>(rank)] = error.what();
        team.abandon();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < size; ++rank)
    EXPECT_EQ(error_R[static_cast<std::size_t>(rank)], "") << "rank " << rank;
}

}  // namespace switchyard::test
