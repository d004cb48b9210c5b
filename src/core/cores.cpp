#include "core/cores.h"

#include <fmt/format.h>
#include <omp.h>
#include <sched.h>

#include <charconv>
#include <cstring>
#include <set>

namespace switchyard {

namespace {

bool read_number(std::string_view& text, int& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return false;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return true;
}

bool skip(std::string_view& text, char c) {
  if (!text.starts_with(c)) return false;
  text.remove_prefix(1);
  return true;
}

cpu_set_t own_mask() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (::sched_getaffinity(0, sizeof(mask), &mask) != 0) CPU_ZERO(&mask);
  return mask;
}

}  // namespace

std::vector<int> cores_of_list(std::string_view list) {
  constexpr int kMostCores = 1 << 16;
  std::vector<int> cores;
  do {
    int first = 0;
    if (!read_number(list, first)) return {};
    int last = first;
    if (skip(list, '-') && !read_number(list, last)) return {};
    if (first < 0 || last < first || last >= kMostCores) return {};
    for (int core = first; core <= last; ++core) cores.push_back(core);
  } while (skip(list, ','));
  return list.empty() ? cores : std::vector<int>();
}

std::string list_of_cores(const std::vector<int>& cores) {
  std::string list;
  for (std::size_t first = 0; first < cores.size();) {
    std::size_t last = first;
    while (last + 1 < cores.size() && cores[last + 1] == cores[last] + 1) ++last;
    list += fmt::format("{}{}", list.empty() ? "" : ",", cores[first]);
    if (last > first) list += fmt::format("-{}", cores[last]);
    first = last + 1;
  }
  return list;
}

std::vector<int> usable_cores() {
  const cpu_set_t mask = own_mask();
  std::set<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &mask)) cores.insert(core);
  // Where threads are bound to places, the first one has only its own left, and the places are all there are.
  for (int place = 0; omp_get_proc_bind() != omp_proc_bind_false && place < omp_get_num_places(); ++place) {
    std::vector<int> of_place(static_cast<std::size_t>(omp_get_place_num_procs(place)));
    if (!of_place.empty()) omp_get_place_proc_ids(place, of_place.data());
    cores.insert(of_place.begin(), of_place.end());
  }
  return {cores.begin(), cores.end()};
}

int unbound_cores() {
  const cpu_set_t own = own_mask();
  cpu_set_t all;
  std::memset(&all, 0xff, sizeof(all));
  // The kernel cuts what is asked for to what the process may have.
  if (::sched_setaffinity(0, sizeof(all), &all) != 0) return CPU_COUNT(&own);
  const cpu_set_t most = own_mask();
  ::sched_setaffinity(0, sizeof(own), &own);
  return CPU_COUNT(&most);
}

}  // namespace switchyard
