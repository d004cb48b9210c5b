#include "parallel/world.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "core/cores.h"
#include "core/error.h"
#include "core/progress.h"
#include "parallel/agreement.h"
#include "parallel/devices.h"

namespace switchyard::parallel {

World make_lone_world() {
  World world;
  world.transport = make_lone_transport();
  world.cores = std::max(1, static_cast<int>(usable_cores().size()));
  return world;
}

Group all_ranks(const World& world) {
  std::vector<int> ranks(static_cast<std::size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return {*world.transport, std::move(ranks)};
}

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

Mesh make_mesh(World& world, int expert, Device device, bool library_sums, bool symmetric) {
  const int size = world.size(), rank = world.rank();
  SY_CHECK(expert >= 1 && size % expert == 0, "{} ranks do not make expert groups of {}", size, expert);
  std::vector<int> neighbours(static_cast<std::size_t>(expert));
  std::iota(neighbours.begin(), neighbours.end(), rank - rank % expert);
  std::vector<int> replicas;
  for (int other = rank % expert; other < size; other += expert) replicas.push_back(other);
  Transport& transport = *world.transport;
  const Group all = all_ranks(world);
  std::shared_ptr<ops::DeviceGroup> all_there, expert_there, replicas_there;
  if (device != Device::cpu && size > 1) {
    const std::string id = by_first(all, [] { return ops::make_device_group_id(); });
    // Each waits for all in there, and none of them can tell which one does not come.
    const Progress before = progress();
    mark_waiting("start of NCCL, which tells more with NCCL_DEBUG=INFO");
    all_there = ops::make_device_group(id, rank, size, symmetric);
    expert_there = all_there->split(rank / expert);
    replicas_there = all_there->split(rank % expert);
    mark(before.place, before.index);
    check_while_waiting({all_there, expert_there, replicas_there});
  }
  return {Group(transport, all.ranks(), all_there, library_sums),
          Group(transport, std::move(neighbours), expert_there, library_sums),
          Group(transport, std::move(replicas), replicas_there, library_sums)};
}

void register_memory(const Mesh& mesh) {
  std::string mine;
  for (const std::int64_t bytes : ops::symmetric_memory()) mine += fmt::format(" {}", bytes);
  const std::vector<std::string> texts = mesh.all.gather_text(mine);
  for (std::size_t rank = 1; rank < texts.size(); ++rank)
    if (texts[rank] != texts[0])
      throw_input(
          "parallel.symmetric_memory: rank 0 exchanges pieces of{} bytes and rank {} of{}, and a window is as "
          "large on "
          "all; set it to false",
          texts[0], rank, texts[rank]);
  together(mesh.all, [&] {
    for (const Group* group : {&mesh.all, &mesh.expert, &mesh.replicas}) group->register_memory();
  });
}

const Mesh& lone_mesh() {
  static World world = make_lone_world();
  static const Mesh mesh = make_mesh(world, 1);
  return mesh;
}

}  // namespace switchyard::parallel
