// The processor's cores, as the kernel numbers them, and which of them this process may use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

// "0-3,8" and {0, 1, 2, 3, 8}, as the kernel writes cores. A text that is none: no core.
std::vector<int> cores_of_list(std::string_view list);
std::string list_of_cores(const std::vector<int>& cores);  // ascending

// That this process may use (taskset, a launcher's binding, a container's set of cores), where OMP_PROC_BIND
// has bound its first thread those of all its threads; empty: the system does not say.
std::vector<int> usable_cores();
// How many there would be without a launcher's binding; 0: the system does not say.
int unbound_cores();

}  // namespace switchyard
