// Furthest point sampling: one cloud after the other, clouds over the threads.

#include "cpu_tensors.h"
#include "cpu_variants.h"

namespace recon {
namespace {

constexpr int64_t kBlock = 64;

// Lowers the distance of every point to the chosen set by the distance to the newest member and
// gives the index of the largest, the first of equals. All arrays are padded to whole blocks.
template <typename T>
RECON_INLINE void take_step_body(
    const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ z, int64_t padded,
    T px, T py, T pz, typename Bits<T>::Int* __restrict__ nearest, int64_t* chosen) {
  using Int = typename Bits<T>::Int;
  Int furthest = std::numeric_limits<Int>::min();
  for (int64_t i = 0; i < padded; ++i) {
    const Int bits = to_bits(squared_norm(x[i] - px, y[i] - py, z[i] - pz));
    const Int lowered = bits < nearest[i] ? bits : nearest[i];
    nearest[i] = lowered;
    furthest = lowered > furthest ? lowered : furthest;
  }
  for (int64_t block = 0; block < padded; block += kBlock) {
    Int found = 0;
    for (int64_t i = 0; i < kBlock; ++i) found |= -Int(nearest[block + i] == furthest);
    if (found == 0) continue;
    for (int64_t i = block;; ++i) {
      if (nearest[i] == furthest) {
        *chosen = i;
        return;
      }
    }
  }
}
RECON_VARIANTS(take_step)

template <typename T>
struct Sampler {
  using Int = typename Bits<T>::Int;
  std::vector<T> axes;
  std::vector<Int> nearest;

  // Points that may not be chosen have the distance -1, whose bits are below those of all others.
  void prepare(const T* points, int64_t n, int64_t padded, T min_sq_norm) {
    axes.assign(3 * padded, T(0));
    nearest.assign(padded, to_bits(T(-1)));
    const Int infinity = to_bits(std::numeric_limits<T>::infinity());
    for (int64_t i = 0; i < n; ++i) {
      const T x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
      const bool finite = std::isfinite(x) && std::isfinite(y) && std::isfinite(z);
      axes[i] = std::isfinite(x) ? x : T(0);
      axes[padded + i] = std::isfinite(y) ? y : T(0);
      axes[2 * padded + i] = std::isfinite(z) ? z : T(0);
      if (finite && squared_norm(x, y, z) > min_sq_norm) nearest[i] = infinity;
    }
  }

  void sample(
      const T* points, int64_t n, int64_t start, int64_t samples, T min_sq_norm, int64_t* idx,
      T* sampled) {
    const int64_t padded = round_up(n, kBlock);
    prepare(points, n, padded, min_sq_norm);
    const T *x = axes.data(), *y = x + padded, *z = y + padded;
    int64_t chosen = start;
    for (int64_t step = 0;; ++step) {
      idx[step] = chosen;
      std::copy_n(points + 3 * chosen, 3, sampled + 3 * step);
      if (step + 1 == samples) return;
      take_step(x, y, z, padded, x[chosen], y[chosen], z[chosen], nearest.data(), &chosen);
    }
  }
};

std::tuple<Tensor, Tensor> furthest_point_sample(
    const Tensor& xyz, int64_t num_samples, const std::optional<Tensor>& start,
    double min_sq_norm) {
  check_points("xyz", xyz);
  const int64_t batch = xyz.size(0), n = xyz.size(1);
  STD_TORCH_CHECK(
      num_samples >= 1 && num_samples <= n, "num_samples must be in 1..", n, ", found ",
      num_samples);
  const Tensor points = as_contiguous(xyz);
  Tensor idx = new_indices(xyz, {batch, num_samples});
  Tensor sampled = new_floats(xyz, {batch, num_samples, 3});
  std::vector<int64_t> first(batch, 0);
  if (start.has_value()) {
    STD_TORCH_CHECK(
        start->dim() == 1 && start->size(0) == batch, "start must have shape (", batch, ",)");
    const Tensor given = as_contiguous(*start);
    dispatch_indices("start", given, n, [&](const auto* values) {
      std::copy_n(values, batch, first.begin());
    });
  }
  dispatch_geometry("xyz", xyz, [&](auto zero) {
    using T = decltype(zero);
    const T* source = points.const_data_ptr<T>();
    int64_t* indices = idx.mutable_data_ptr<int64_t>();
    T* out = sampled.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
      Sampler<T> sampler;
      for (int64_t b = begin; b < end; ++b) {
        sampler.sample(
            source + 3 * n * b, n, first[b], num_samples, static_cast<T>(min_sq_norm),
            indices + num_samples * b, out + 3 * num_samples * b);
      }
    });
  });
  return {idx, sampled};
}

int64_t instructions() {
  return cpu_instructions();
}

} // namespace
} // namespace recon

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CPU, m) {
  m.impl("furthest_point_sample", TORCH_BOX(&recon::furthest_point_sample));
}

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CompositeImplicitAutograd, m) {
  m.impl("cpu_instructions", TORCH_BOX(&recon::instructions));
}
