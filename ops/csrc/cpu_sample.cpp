// Furthest point sampling: one cloud after the other, clouds over the threads.

#include "cpu_tensors.h"
#include "cpu_variants.h"

namespace recon {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kBlock = 4 * kLanes;

// Lowers the distance of every point to the chosen set by the distance to the newest member and
// gives the index of the largest, the first of equals. All arrays are padded to whole blocks.
template <typename T>
RECON_INLINE void take_step_body(
    const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ z, int64_t padded,
    T px, T py, T pz, typename Bits<T>::Int* __restrict__ nearest, int64_t* chosen) {
  using Int = typename Bits<T>::Int;
  constexpr Int least = std::numeric_limits<Int>::min(), most = std::numeric_limits<Int>::max();
  // Each lane keeps its largest distance and the first block that holds it. Both inner loops become
  // a few vector instructions; in other forms compilers give up on them.
  Int largest[kLanes], holder[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) {
    largest[l] = least;
    holder[l] = 0;
  }
  for (int64_t block = 0; block < padded / kBlock; ++block) {
    const int64_t first = block * kBlock;
    Int lowered[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t p = first + i;
      const Int bits = to_bits(squared_norm(x[p] - px, y[p] - py, z[p] - pz));
      const Int lower = bits < nearest[p] ? bits : nearest[p];
      nearest[p] = lower;
      lowered[i] = lower;
    }
    for (int64_t l = 0; l < kLanes; ++l) {
      const Int front = std::max(lowered[l], lowered[l + kLanes]);
      const Int back = std::max(lowered[l + 2 * kLanes], lowered[l + 3 * kLanes]);
      const Int top = std::max(front, back);
      const bool larger = top > largest[l];
      largest[l] = larger ? top : largest[l];
      holder[l] = larger ? static_cast<Int>(block) : holder[l];
    }
  }
  // No branches from here on: which lane and which point it is cannot be predicted.
  Int furthest = least;
  for (int64_t l = 0; l < kLanes; ++l) furthest = largest[l] > furthest ? largest[l] : furthest;
  Int block = most;
  for (int64_t l = 0; l < kLanes; ++l) {
    const Int candidate = holder[l] | (-Int(largest[l] < furthest) & most);
    block = candidate < block ? candidate : block;
  }
  const Int* found = nearest + block * kBlock;
  Int place = most;
  for (int64_t i = 0; i < kBlock; ++i) {
    const Int candidate = Int(i) | (-Int(found[i] < furthest) & most);
    place = candidate < place ? candidate : place;
  }
  *chosen = block * kBlock + place;
}
RECON_VARIANTS(take_step)

template <typename T>
RECON_INLINE T finite_or_zero(T value) {
  return (to_bits(value) & Bits<T>::magnitude) < to_bits(std::numeric_limits<T>::infinity())
      ? value
      : T(0);
}

// Splits the points into one row an axis and sets their distances to an empty set: infinity, or -1
// for points that may not be chosen, whose bits are below those of all others.
template <typename T>
RECON_INLINE void prepare_body(
    const T* __restrict__ points, int64_t n, T min_sq_norm, T* __restrict__ x, T* __restrict__ y,
    T* __restrict__ z, typename Bits<T>::Int* __restrict__ nearest) {
  const T infinity = std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    const T px = points[3 * i], py = points[3 * i + 1], pz = points[3 * i + 2];
    x[i] = finite_or_zero(px);
    y[i] = finite_or_zero(py);
    z[i] = finite_or_zero(pz);
    // The sum of what is left of finite coordinates is 0, of others NaN.
    const bool finite = (px - px) + (py - py) + (pz - pz) == T(0);
    const bool allowed = squared_norm(px, py, pz) > min_sq_norm;
    nearest[i] = to_bits(finite & allowed ? infinity : T(-1));
  }
}
RECON_VARIANTS(prepare)

template <typename T>
struct Sampler {
  using Int = typename Bits<T>::Int;
  Aligned<T> axes;
  Aligned<Int> nearest;

  void sample(
      const T* points, int64_t n, int64_t start, int64_t samples, T min_sq_norm, int64_t* idx,
      T* sampled) {
    const int64_t padded = round_up(n, kBlock);
    axes.resize(3 * padded);  // the padding stays 0
    nearest.assign(padded, to_bits(T(-1)));
    T *x = axes.data(), *y = x + padded, *z = y + padded;
    prepare(points, n, min_sq_norm, x, y, z, nearest.data());
    int64_t chosen = start;
    for (int64_t step = 0;; ++step) {
      idx[step] = chosen;
      std::copy_n(points + 3 * chosen, 3, sampled + 3 * step);
      if (step + 1 == samples) return;
      take_step<const T*, const T*, const T*>(
          x, y, z, padded, x[chosen], y[chosen], z[chosen], nearest.data(), &chosen);
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
