// A stable counting sort of index lists: the deterministic way from a gather to its gradient.
#include "cuda_segments.h"

#include <algorithm>

#include "cuda_device.h"

namespace recon_ops {
namespace {

constexpr int kMaxWarps = 32;
constexpr int64_t kSharedBudget = 200 * 1024;     // of 227 KiB on sm_90
constexpr int64_t kGlobalBudget = 64ll * 1024 * 1024;

struct SortArguments {
  const void* idx;  // (B, M)
  int* offsets;     // (B, N + 1)
  int* order;       // (B, M)
  int* counters;    // (B, warps, N) where shared memory is too small
  int64_t sources;
  int targets;
  int warps;
};

// Counters of a warp: whole words, which no other warp touches.
template <typename Counter>
__host__ __device__ constexpr int64_t row_counters(int64_t targets) {
  return sizeof(Counter) == 2 ? (targets + 1) / 2 * 2 : targets;
}

// Adds to one counter in shared memory, also to one of the two halves of a word.
__device__ __forceinline__ void count_up(int* counter) { atomicAdd(counter, 1); }

__device__ __forceinline__ void count_up(uint16_t* counter) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(counter);
  atomicAdd(reinterpret_cast<unsigned*>(address & ~uintptr_t{3}), address & 2 ? 0x10000u : 1u);
}

// One block a cloud. Each warp owns consecutive sources and a row of counters, so that the order is
// that of the sources. Atomic additions only count; the rank among lanes with the same target comes
// from a match, which is slow and therefore left to the lanes that do share one.
template <typename Index, typename Counter, bool Shared>
__global__ void __launch_bounds__(kMaxWarps * 32) sort_kernel(const SortArguments args) {
  extern __shared__ int dynamic[];
  __shared__ int warp_total[kMaxWarps];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int warps = blockDim.x >> 5;
  const int n = args.targets;
  const int64_t cloud = blockIdx.x;
  const Index* idx = static_cast<const Index*>(args.idx) + cloud * args.sources;
  int* offsets = args.offsets + cloud * (n + 1);
  int* order = args.order + cloud * args.sources;
  Counter* counters = Shared ? reinterpret_cast<Counter*>(dynamic)
                             : reinterpret_cast<Counter*>(args.counters + cloud * warps * n);
  const int64_t stride = row_counters<Counter>(n);
  Counter* mine = counters + warp * stride;

  const int64_t share = (args.sources + warps * 32 - 1) / (warps * 32) * 32;
  const int64_t begin = min(warp * share, args.sources);
  const int64_t end = min(begin + share, args.sources);
  const auto target_of = [&](int64_t s) {
    const int64_t target = s < end ? static_cast<int64_t>(idx[s]) : -1;
    return s < end && index_in_range(target, n) ? static_cast<int>(target) : -1;
  };

  for (int64_t i = threadIdx.x; i < warps * stride; i += blockDim.x) {
    counters[i] = 0;
  }
  __syncthreads();
  for (int64_t s = begin; s < end; s += 32) {
    const int target = target_of(s + lane);
    if constexpr (Shared) {
      if (target >= 0) count_up(mine + target);
    } else {
      const unsigned peers = __match_any_sync(kFullWarp, target);
      if (target >= 0 && lane == __ffs(peers) - 1) mine[target] += __popc(peers);
      __syncwarp();
    }
  }
  __syncthreads();

  // Counts become positions: over the warps of a target, then over the targets.
  int carry = 0;
  for (int first = 0; first < n; first += blockDim.x) {
    const int target = first + threadIdx.x;
    int total = 0;
    if (target < n) {
      for (int w = 0; w < warps; ++w) total += counters[w * stride + target];
    }
    int inclusive = total;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kFullWarp, inclusive, step);
      if (lane >= step) inclusive += other;
    }
    if (lane == 31) warp_total[warp] = inclusive;
    __syncthreads();
    int sum = lane < warps ? warp_total[lane] : 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kFullWarp, sum, step);
      if (lane >= step) sum += other;
    }
    const int before = __shfl_sync(kFullWarp, sum, max(warp - 1, 0));
    const int all = __shfl_sync(kFullWarp, sum, 31);
    int position = carry + inclusive - total + (warp > 0 ? before : 0);
    if (target < n) {
      offsets[target] = position;
      for (int w = 0; w < warps; ++w) {
        Counter& counter = counters[w * stride + target];
        const int here = counter;
        counter = static_cast<Counter>(position);
        position += here;
      }
    }
    carry += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) offsets[n] = carry;

  for (int64_t s = begin; s < end; s += 32) {
    const int target = target_of(s + lane);
    const int position = target >= 0 ? mine[target] : 0;
    __syncwarp();
    int rank = 0;
    if constexpr (Shared) {
      if (target >= 0) count_up(mine + target);
      __syncwarp();
      const bool shares = target >= 0 && mine[target] - position > 1;
      const unsigned sharing = __ballot_sync(kFullWarp, shares);
      if (shares) rank = __popc(__match_any_sync(sharing, target) & ((1u << lane) - 1));
    } else {
      const unsigned peers = __match_any_sync(kFullWarp, target);
      rank = __popc(peers & ((1u << lane) - 1));
      if (target >= 0 && rank == 0) mine[target] = static_cast<Counter>(position + __popc(peers));
    }
    if (target >= 0) order[position + rank] = static_cast<int>(s + lane);
    __syncwarp();
  }
}

template <typename Index, typename Counter, bool Shared>
void launch(const SortArguments& args, unsigned clouds, int64_t bytes, cudaStream_t stream) {
  auto kernel = sort_kernel<Index, Counter, Shared>;
  const int shared = Shared ? static_cast<int>(bytes) : 0;
  allow_shared_memory(kernel, shared, "sorting indices");
  kernel<<<clouds, args.warps * 32, shared, stream>>>(args);
}

int64_t shared_budget() {
  int device = 0, most = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
      "cudaDeviceGetAttribute");
  return std::min<int64_t>(most - 1024, kSharedBudget);
}

template <typename Index>
void sort(SortArguments args, const Tensor& like, int64_t batch, cudaStream_t stream) {
  const unsigned clouds = grid_size(batch, "sorting indices");
  const bool narrow = args.sources <= 65535;
  const int64_t row =
      narrow ? row_counters<uint16_t>(args.targets) * 2 : row_counters<int>(args.targets) * 4;
  const int64_t useful = std::min<int64_t>(kMaxWarps, ceil_div(args.sources, 64));
  const int64_t fitting = shared_budget() / row;
  if (fitting >= 1) {
    args.warps = static_cast<int>(std::max<int64_t>(1, std::min(useful, fitting)));
    if (narrow) launch<Index, uint16_t, true>(args, clouds, args.warps * row, stream);
    else launch<Index, int, true>(args, clouds, args.warps * row, stream);
    return;
  }
  const int64_t affordable = kGlobalBudget / (batch * args.targets * 4ll);
  args.warps = static_cast<int>(std::max<int64_t>(1, std::min(useful, affordable)));
  Tensor counters = empty(like, {batch, args.warps, args.targets}, ScalarType::Int);
  args.counters = data<int>(counters);
  launch<Index, int, false>(args, clouds, 0, stream);
}

}  // namespace

Segments build_segments(const Tensor& idx, int64_t batch, int64_t sources, int64_t num_targets) {
  STD_TORCH_CHECK(
      sources < (1ll << 31) && num_targets < (1ll << 31) - 1, "at most 2**31 - 1 indices a cloud "
      "can be sorted, found ", std::max(sources, num_targets));
  Segments segments{
      empty(idx, {batch, num_targets + 1}, ScalarType::Int),
      empty(idx, {batch, sources}, ScalarType::Int)};
  SortArguments args{
      idx.data_ptr(),
      data<int>(segments.offsets),
      data<int>(segments.order),
      nullptr,
      sources,
      static_cast<int>(num_targets),
      0};
  const cudaStream_t stream = current_stream(idx);
  if (idx.scalar_type() == ScalarType::Long) sort<int64_t>(args, idx, batch, stream);
  else sort<int32_t>(args, idx, batch, stream);
  check_launch("sorting indices");
  return segments;
}

}  // namespace recon_ops
