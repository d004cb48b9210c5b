#include "include/simt_mma.h"

#include "watcher.h"

namespace simt {

namespace {

struct MmaArgs {
  float* d;           // [4], added to
  const unsigned* a;  // [4], two bf16 each
  const unsigned* b;  // [2]
};

float half_of(unsigned pair, unsigned which) {
  return __bfloat162float({static_cast<std::uint16_t>(which ? pair >> 16 : pair & 0xffffu)});
}

void complete_mma_16x8x16(void* const args[kWarpSize]) {
  float a[16][16], b[16][8];
  for (unsigned l = 0; l < kWarpSize; ++l) {
    const auto& lane_args = *static_cast<const MmaArgs*>(args[l]);
    const unsigned g = l / 4, p = l % 4;
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned h = 0; h < 2; ++h) a[g + 8 * (i % 2)][2 * p + 8 * (i / 2) + h] = half_of(lane_args.a[i], h);
    }
    for (unsigned i = 0; i < 2; ++i) {
      for (unsigned h = 0; h < 2; ++h) b[2 * p + 8 * i + h][g] = half_of(lane_args.b[i], h);
    }
  }
  for (unsigned l = 0; l < kWarpSize; ++l) {
    float* const d = static_cast<const MmaArgs*>(args[l])->d;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = l / 4 + 8 * (i / 2), column = 2 * (l % 4) + i % 2;
      float sum = 0;
      for (unsigned k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      d[i] += sum;
    }
  }
}
}  // namespace

void mma_16x8x16(float* d, const unsigned* a, const unsigned* b) {
  MmaArgs args{d, a, b};
  meet_warp(kFullMask, "mma.m16n8k16", &args, complete_mma_16x8x16);
}

namespace {

struct LdmatrixArgs {
  unsigned* r;      // [4]
  const void* row;  // address of a row of 8 bf16: lane l gives row l % 8 of matrix l / 8
};
unsigned pair_at(const void* row, unsigned column) {
  unsigned pair;
  std::memcpy(&pair, static_cast<const std::byte*>(row) + column * sizeof(std::uint16_t), sizeof pair);
  return pair;
}
unsigned value_at(const void* row, unsigned column) {
  std::uint16_t value;
  std::memcpy(&value, static_cast<const std::byte*>(row) + column * sizeof value, sizeof value);
  return value;
}
void complete_ldmatrix(void* const args[kWarpSize]) {
  for (unsigned l = 0; l < kWarpSize; ++l) {
    for (unsigned m = 0; m < 4; ++m) {
      const void* row = static_cast<const LdmatrixArgs*>(args[8 * m + l / 4])->row;
      static_cast<LdmatrixArgs*>(args[l])->r[m] = pair_at(row, 2 * (l % 4));
    }
  }
}
void complete_ldmatrix_transposed(void* const args[kWarpSize]) {
  for (unsigned l = 0; l < kWarpSize; ++l) {
    for (unsigned m = 0; m < 4; ++m) {
      unsigned pair = 0;
      for (unsigned h = 0; h < 2; ++h) {
        const void* row = static_cast<const LdmatrixArgs*>(args[8 * m + 2 * (l % 4) + h])->row;
        pair |= value_at(row, l / 4) << (16 * h);
      }
      static_cast<LdmatrixArgs*>(args[l])->r[m] = pair;
    }
  }
}

void check_row(const void* row, const void* place) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
    fail("ldmatrix.x4 with an address that is no multiple of 16");
  if (watcher) watcher->read(row, 16, place);
}

}  // namespace

void ldmatrix_x4(unsigned* r, const void* row) {
  check_row(row, __builtin_return_address(0));
  LdmatrixArgs args{r, row};
  meet_warp(kFullMask, "ldmatrix.x4", &args, complete_ldmatrix);
}
void ldmatrix_x4_transposed(unsigned* r, const void* row) {
  check_row(row, __builtin_return_address(0));
  LdmatrixArgs args{r, row};
  meet_warp(kFullMask, "ldmatrix.x4.trans", &args, complete_ldmatrix_transposed);
}

}  // namespace simt
