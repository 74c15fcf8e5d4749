// three_nn, three_interpolate and its gradient on CUDA.
#include <algorithm>

#include "cuda_features.h"
#include "cuda_segments.h"

namespace recon_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kKnownTile = 1024;  // known points in shared memory at a time, 16 KiB

// Q queries a thread, so that each known point that is loaded is used Q times; the three best in
// registers. Keys order NaN last, and equal distances keep the lower index, which comes first.
template <int Q>
__global__ void __launch_bounds__(kThreads) three_nn_kernel(
    const float* __restrict__ unknown, const float* __restrict__ known, float* __restrict__ distance,
    int64_t* __restrict__ idx, int num_unknown, int num_known, int blocks_a_cloud) {
  __shared__ float4 tile[kKnownTile];
  const int64_t cloud = blockIdx.x / blocks_a_cloud;
  const int first = (blockIdx.x % blocks_a_cloud) * kThreads * Q + threadIdx.x;
  unknown += cloud * num_unknown * 3;
  known += cloud * num_known * 3;
  float x[Q], y[Q], z[Q];
  unsigned key[Q][3];
  int index[Q][3];
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int i = min(first + q * kThreads, num_unknown - 1);
    x[q] = unknown[i * 3];
    y[q] = unknown[i * 3 + 1];
    z[q] = unknown[i * 3 + 2];
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      key[q][j] = kNoKey;
      index[q][j] = 0;
    }
  }
  for (int base = 0; base < num_known; base += kKnownTile) {
    const int count = min(kKnownTile, num_known - base);
    __syncthreads();
    for (int i = threadIdx.x; i < count * 3; i += kThreads) {
      reinterpret_cast<float*>(tile)[i / 3 * 4 + i % 3] = known[base * 3 + i];
    }
    __syncthreads();
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
      const float4 p = tile[j];
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const unsigned k = distance_key(squared_distance(x[q], y[q], z[q], p.x, p.y, p.z));
        if (k < key[q][2]) {
          const bool second = k < key[q][1], nearest = k < key[q][0];
          key[q][2] = second ? key[q][1] : k;
          index[q][2] = second ? index[q][1] : base + j;
          key[q][1] = nearest ? key[q][0] : second ? k : key[q][1];
          index[q][1] = nearest ? index[q][0] : second ? base + j : index[q][1];
          key[q][0] = nearest ? k : key[q][0];
          index[q][0] = nearest ? base + j : index[q][0];
        }
      }
    }
  }
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int i = first + q * kThreads;
    if (i >= num_unknown) continue;
    const int64_t row = (cloud * num_unknown + i) * 3;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const bool missing = j >= num_known;
      distance[row + j] = missing ? INFINITY : __fsqrt_rn(__uint_as_float(key[q][j]));
      idx[row + j] = missing ? index[q][0] : index[q][j];
    }
  }
}

template <typename T, int V, typename Index>
__global__ void __launch_bounds__(kThreads) interpolate_kernel(
    const Pack<T, V>* __restrict__ features, const Index* __restrict__ idx,
    const T* __restrict__ weight, Pack<T, V>* __restrict__ out, int64_t rows, int64_t num_unknown,
    int64_t num_known, int vectors) {
  using A = typename Accumulator<T>::type;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  features += divided(row, num_unknown) * num_known * vectors;
  int64_t source[3];
  A w[3];
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    const int64_t index = idx[row * 3 + j];
    const bool inside = index_in_range(index, num_known);
    source[j] = (inside ? index : 0) * vectors;
    w[j] = inside ? widen(weight[row * 3 + j]) : static_cast<A>(NAN);
  }
  for (int v = threadIdx.x; v < vectors; v += blockDim.x) {
    Pack<T, V> pack[3];
#pragma unroll
    for (int j = 0; j < 3; ++j) pack[j] = features[source[j] + v];
    Pack<T, V> result;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      result.value[e] = narrow_to<T>(
          w[0] * widen(pack[0].value[e]) + w[1] * widen(pack[1].value[e]) +
          w[2] * widen(pack[2].value[e]));
    }
    out[row * vectors + v] = result;
  }
}

template <typename T, int V>
struct InterpolateBackward {
  const Pack<T, V>* grad;      // (B, n, vectors)
  const Pack<T, V>* features;  // (B, m, vectors)
  const T* weight;             // (B, n, 3)
  const void* idx;             // (B, n, 3)
  const int* offsets;          // (B, m + 1), segments of idx
  const int* order;            // (B, n * 3)
  Pack<T, V>* grad_features;
  T* grad_weight;
  int num_unknown;
  int num_known;
  int vectors;
  int width;                // threads along a row of features, a power of two up to 32
  int chunks;               // of that width in a row
  int feature_blocks;       // of a cloud
  int weight_blocks;        // of a cloud
};

// A known row sums the rows it was used in, in order; its channels are split into chunks.
template <typename T, int V>
__device__ __forceinline__ void features_backward(
    const InterpolateBackward<T, V>& args, int64_t cloud, int block) {
  using A = typename Accumulator<T>::type;
  const int unit = block * (kThreads / args.width) + threadIdx.x / args.width;
  const int row = unit / args.chunks;
  const int v = unit % args.chunks * args.width + threadIdx.x % args.width;
  if (row >= args.num_known || v >= args.vectors) return;
  const int* offsets = args.offsets + cloud * (args.num_known + 1) + row;
  const int* order = args.order + cloud * args.num_unknown * 3;
  const T* weight = args.weight + cloud * args.num_unknown * 3;
  const Pack<T, V>* grad = args.grad + cloud * args.num_unknown * args.vectors + v;
  const int begin = offsets[0], end = offsets[1];
  A sum[V] = {};
  const auto accumulate = [&](const Pack<T, V>& pack, A w) {
#pragma unroll
    for (int e = 0; e < V; ++e) sum[e] += w * widen(pack.value[e]);
  };
  int s = begin;
  for (; s + 4 <= end; s += 4) {
    Pack<T, V> pack[4];
    A w[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const unsigned source = order[s + u];
      w[u] = widen(weight[source]);
      pack[u] = grad[static_cast<int64_t>(source / 3) * args.vectors];
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) accumulate(pack[u], w[u]);
  }
  for (; s < end; ++s) {
    const unsigned source = order[s];
    accumulate(grad[static_cast<int64_t>(source / 3) * args.vectors], widen(weight[source]));
  }
  Pack<T, V> result;
#pragma unroll
  for (int e = 0; e < V; ++e) result.value[e] = narrow_to<T>(sum[e]);
  args.grad_features[(cloud * args.num_known + row) * args.vectors + v] = result;
}

// The gradient of a weight is a dot product: a warp takes the three of one row.
template <typename T, int V, typename Index>
__device__ __forceinline__ void weight_backward(
    const InterpolateBackward<T, V>& args, int64_t cloud, int block) {
  using A = typename Accumulator<T>::type;
  const int within = block * (kThreads / 32) + (threadIdx.x >> 5);
  if (within >= args.num_unknown) return;
  const int64_t row = cloud * args.num_unknown + within;
  const int lane = threadIdx.x & 31;
  const Index* idx = static_cast<const Index*>(args.idx) + row * 3;
  const Pack<T, V>* grad = args.grad + row * args.vectors;
  const Pack<T, V>* features = args.features + cloud * args.num_known * args.vectors;
  const Pack<T, V>* source[3];
  bool inside[3];
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    const int64_t index = idx[j];
    inside[j] = index_in_range(index, args.num_known);
    source[j] = features + (inside[j] ? index : 0) * args.vectors;
  }
  A sum[3] = {};
  for (int v = lane; v < args.vectors; v += 32) {
    const Pack<T, V> g = grad[v];
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const Pack<T, V> f = source[j][v];
#pragma unroll
      for (int e = 0; e < V; ++e) sum[j] += widen(g.value[e]) * widen(f.value[e]);
    }
  }
#pragma unroll
  for (int j = 0; j < 3; ++j) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum[j] += __shfl_xor_sync(kFullWarp, sum[j], mask);
    if (lane == j) args.grad_weight[row * 3 + j] = narrow_to<T>(inside[j] ? sum[j] : A(0));
  }
}

constexpr int kHeldWarps = 8;    // warps a row at most: 32 vectors each
constexpr int kHeldAtOnce = 8;   // sources loaded together

// Both gradients in one pass over `grad`: a block a known row, which it holds with its sum, a vector a
// thread. Each row of `grad` that used it is read once, for the sum and for the weight's dot product.
// Whole clouds follow one another, so that L2 holds the rows of `grad` for their three uses.
template <typename T, int V>
__global__ void __launch_bounds__(kHeldWarps * 32) held_backward_kernel(
    const InterpolateBackward<T, V> args) {
  using A = typename Accumulator<T>::type;
  __shared__ A dots[kHeldWarps][32];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int warps = blockDim.x >> 5;
  const int64_t row = blockIdx.x;
  const int64_t cloud = divided(row, args.num_known);
  const bool held = threadIdx.x < args.vectors;
  const int v = held ? threadIdx.x : 0;
  const int* offsets = args.offsets + row + cloud;
  const int* order = args.order + cloud * args.num_unknown * 3;
  const T* weight = args.weight + cloud * args.num_unknown * 3;
  T* grad_weight = args.grad_weight + cloud * args.num_unknown * 3;
  const Pack<T, V>* grad = args.grad + cloud * args.num_unknown * args.vectors + v;
  const Pack<T, V> feature = args.features[row * args.vectors + v];
  A sum[V] = {};
  const int begin = offsets[0], end = offsets[1];
  for (int base = begin; base < end; base += 32) {
    const int mine = order[min(base + lane, end - 1)];
    const A my_weight = widen(weight[mine]);
    const int count = min(32, end - base);
    A my_dot = 0;
    for (int s = 0; s < count; s += kHeldAtOnce) {
      Pack<T, V> pack[kHeldAtOnce];
      A dot[kHeldAtOnce];
      unrolled<kHeldAtOnce>([&](auto u) {
        const unsigned source = __shfl_sync(kFullWarp, mine, min(s + u, count - 1));
        pack[u] = grad[static_cast<int64_t>(source / 3) * args.vectors];
      });
      unrolled<kHeldAtOnce>([&](auto u) {
        const A w = __shfl_sync(kFullWarp, my_weight, min(s + u, count - 1));
        dot[u] = 0;
        if (s + u >= count) return;
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const A g = widen(pack[u].value[e]);
          sum[e] += w * g;
          dot[u] += g * widen(feature.value[e]);
        }
        if (!held) dot[u] = 0;
      });
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) {
        unrolled<kHeldAtOnce>([&](auto u) {
          dot[u] += __shfl_xor_sync(kFullWarp, dot[u], mask);
        });
      }
      unrolled<kHeldAtOnce>([&](auto u) { my_dot = lane == s + u ? dot[u] : my_dot; });
    }
    dots[warp][lane] = my_dot;
    __syncthreads();
    if (warp == 0 && lane < count) {
      A total = 0;
      for (int w = 0; w < warps; ++w) total += dots[w][lane];
      grad_weight[mine] = narrow_to<T>(total);
    }
    __syncthreads();
  }
  if (!held) return;
  Pack<T, V> result;
#pragma unroll
  for (int e = 0; e < V; ++e) result.value[e] = narrow_to<T>(sum[e]);
  args.grad_features[row * args.vectors + v] = result;
}

// For rows too long to be held. Both gradients in one launch, cloud by cloud: what one reads of `grad` the other finds in L2.
template <typename T, int V, typename Index>
__global__ void __launch_bounds__(kThreads) interpolate_backward_kernel(
    const InterpolateBackward<T, V> args) {
  const int blocks = args.feature_blocks + args.weight_blocks;
  const int64_t cloud = blockIdx.x / blocks;
  const int block = blockIdx.x % blocks;
  if (block < args.feature_blocks) features_backward(args, cloud, block);
  else weight_backward<T, V, Index>(args, cloud, block - args.feature_blocks);
}

std::tuple<Tensor, Tensor> three_nn(const Tensor& unknown_in, const Tensor& known_in) {
  const Tensor unknown = dense(unknown_in);
  const Tensor known = dense(known_in);
  check_points(unknown, "unknown");
  check_points(known, "known");
  check_same(unknown, "unknown", known, "known");
  DeviceGuard guard(unknown.get_device_index());
  const int64_t batch = unknown.size(0), n = unknown.size(1), m = known.size(1);
  Tensor distance = empty(unknown, {batch, n, 3}, ScalarType::Float);
  Tensor idx = empty(unknown, {batch, n, 3}, ScalarType::Long);
  if (batch == 0) return {distance, idx};
  const cudaStream_t stream = current_stream(unknown);
  const auto launch = [&](auto kernel, int queries) {
    const int64_t blocks = ceil_div(n, static_cast<int64_t>(kThreads) * queries);
    kernel<<<grid_size(batch * blocks, "three_nn"), kThreads, 0, stream>>>(
        data<const float>(unknown), data<const float>(known), data<float>(distance),
        data<int64_t>(idx), static_cast<int>(n), static_cast<int>(m), static_cast<int>(blocks));
  };
  // Two queries a thread halve the loads; one where that would leave multiprocessors idle.
  if (batch * n >= multiprocessors() * 1024ll) launch(three_nn_kernel<2>, 2);
  else launch(three_nn_kernel<1>, 1);
  check_launch("three_nn");
  return {distance, idx};
}

void check_interpolate(const Tensor& features, const Tensor& idx, const Tensor& weight) {
  check_features(features, "features", 3);
  check_index(idx, "idx", 3);
  check_features(weight, "weight", 3);
  check_same(features, "features", idx, "idx");
  check_same(features, "features", weight, "weight");
  STD_TORCH_CHECK(
      idx.size(2) == 3 && weight.size(2) == 3 && weight.size(1) == idx.size(1),
      "idx and weight must both have shape (B, N, 3)");
  STD_TORCH_CHECK(
      features.size(1) >= 1 || idx.numel() == 0, "features must hold at least one row");
}

Tensor as_features(const Tensor& weight, const Tensor& features) {
  if (weight.scalar_type() == features.scalar_type()) return weight;
  return torch::stable::to(weight, features.scalar_type());
}

Tensor three_interpolate(const Tensor& features_in, const Tensor& idx_in, const Tensor& weight_in) {
  const Tensor features = dense(features_in);
  const Tensor idx = dense(idx_in);
  const Tensor weight = dense(weight_in);
  check_interpolate(features, idx, weight);
  DeviceGuard guard(features.get_device_index());
  const int64_t rows = idx.size(0) * idx.size(1), channels = features.size(2);
  Tensor out = empty(features, {idx.size(0), idx.size(1), channels}, features.scalar_type());
  if (out.numel() == 0) return out;
  const Tensor weights = as_features(weight, features);
  const cudaStream_t stream = current_stream(features);
  dispatch_features(features, "features", [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_width<T>(channels, {features.data_ptr(), out.data_ptr()}, [&](auto width) {
      constexpr int V = decltype(width)();
      const int vectors = static_cast<int>(channels / V);
      const RowBlock block = row_block(rows, vectors, 32, kThreads, "three_interpolate");
      dispatch_index(idx, [&](auto index_type) {
        using Index = typename decltype(index_type)::type;
        interpolate_kernel<T, V, Index><<<block.blocks, block.threads, 0, stream>>>(
            data<const Pack<T, V>>(features), data<const Index>(idx), data<const T>(weights),
            data<Pack<T, V>>(out), rows, idx.size(1), features.size(1), vectors);
      });
    });
  });
  check_launch("three_interpolate");
  return out;
}

std::tuple<Tensor, Tensor> three_interpolate_backward(
    const Tensor& grad_in, const Tensor& features_in, const Tensor& idx_in, const Tensor& weight_in) {
  const Tensor grad = dense(grad_in);
  const Tensor features = dense(features_in);
  const Tensor idx = dense(idx_in);
  const Tensor weight = dense(weight_in);
  check_interpolate(features, idx, weight);
  check_features(grad, "grad", 3);
  check_same(features, "features", grad, "grad");
  const int64_t batch = features.size(0), n = idx.size(1), m = features.size(1);
  const int64_t channels = features.size(2), rows = batch * n;
  STD_TORCH_CHECK(m * channels < (1ll << 31) && n < (1ll << 29), "features of a cloud must hold fewer "
                  "than 2**31 elements, found ", m * channels);
  STD_TORCH_CHECK(
      grad.scalar_type() == features.scalar_type() && grad.size(1) == n && grad.size(2) == channels,
      "grad must have the dtype of features and shape (B, N, C)");
  DeviceGuard guard(features.get_device_index());
  Tensor grad_features = empty(features, {batch, m, channels}, features.scalar_type());
  Tensor grad_weight = empty(features, {batch, n, 3}, features.scalar_type());
  const cudaStream_t stream = current_stream(features);
  if (rows > 0 && channels == 0) torch::stable::zero_(grad_weight);
  if (rows == 0) torch::stable::zero_(grad_features);
  if (rows > 0 && channels > 0) {
    const Tensor weights = as_features(weight, features);
    const Segments segments = build_segments(idx, batch, n * 3, m);
    dispatch_features(features, "features", [&](auto type) {
      using T = typename decltype(type)::type;
      const auto pointers = {features.const_data_ptr(), grad.const_data_ptr(),
                             grad_features.const_data_ptr()};
      dispatch_width<T>(channels, pointers, [&](auto width) {
        constexpr int V = decltype(width)();
        const int vectors = static_cast<int>(channels / V);
        int shared_width = 1;
        while (shared_width < vectors && shared_width < 32) shared_width *= 2;
        const int chunks = static_cast<int>(ceil_div(vectors, shared_width));
        const int64_t feature_blocks = ceil_div(m * chunks, kThreads / shared_width);
        const int64_t weight_blocks = ceil_div(n, kThreads / 32);
        const unsigned blocks =
            grid_size(batch * (feature_blocks + weight_blocks), "three_interpolate_backward");
        const InterpolateBackward<T, V> args{
            data<const Pack<T, V>>(grad), data<const Pack<T, V>>(features), data<const T>(weights),
            idx.data_ptr(), data<const int>(segments.offsets), data<const int>(segments.order),
            data<Pack<T, V>>(grad_features), data<T>(grad_weight), static_cast<int>(n),
            static_cast<int>(m), vectors, shared_width, chunks, static_cast<int>(feature_blocks),
            static_cast<int>(weight_blocks)};
        if (vectors <= kHeldWarps * 32) {
          // Weights whose index is out of range belong to no row.
          check_cuda(
              cudaMemsetAsync(args.grad_weight, 0, rows * 3 * sizeof(T), stream),
              "three_interpolate_backward");
          const int threads = static_cast<int>(ceil_div(vectors, 32)) * 32;
          const unsigned known_rows = grid_size(batch * m, "three_interpolate_backward");
          held_backward_kernel<T, V><<<known_rows, threads, 0, stream>>>(args);
          return;
        }
        dispatch_index(idx, [&](auto index_type) {
          using Index = typename decltype(index_type)::type;
          interpolate_backward_kernel<T, V, Index><<<blocks, kThreads, 0, stream>>>(args);
        });
      });
    });
    check_launch("three_interpolate_backward");
  }
  if (weight.scalar_type() != grad_weight.scalar_type()) {
    grad_weight = torch::stable::to(grad_weight, weight.scalar_type());
  }
  return {grad_features, grad_weight};
}

}  // namespace
}  // namespace recon_ops

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CUDA, m) {
  m.impl("three_nn", TORCH_BOX(&recon_ops::three_nn));
  m.impl("three_interpolate", TORCH_BOX(&recon_ops::three_interpolate));
  m.impl("three_interpolate_backward", TORCH_BOX(&recon_ops::three_interpolate_backward));
}
