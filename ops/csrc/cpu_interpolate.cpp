// Weighted sums of three rows, forward and backward.

#include "cpu_tensors.h"
#include "cpu_variants.h"

namespace recon {
namespace {

void check_interpolate(const Tensor& features, const Tensor& idx, const Tensor& weight) {
  STD_TORCH_CHECK(features.dim() == 3, "features must have shape (B, M, C)");
  STD_TORCH_CHECK(
      idx.dim() == 3 && idx.size(2) == 3 && weight.dim() == 3 && weight.size(2) == 3 &&
          weight.size(0) == idx.size(0) && weight.size(1) == idx.size(1),
      "idx and weight must both have shape (B, N, 3)");
  STD_TORCH_CHECK(
      features.size(0) == idx.size(0), "features has a batch of ", features.size(0),
      " but idx has one of ", idx.size(0));
  check_same("features", features, "weight", weight);
}

template <typename T, typename A>
RECON_INLINE void blend_body(
    const T* __restrict__ f0, const T* __restrict__ f1, const T* __restrict__ f2, A w0, A w1, A w2,
    int64_t channels, T* __restrict__ out) {
  for (int64_t c = 0; c < channels; ++c) {
    const A first = static_cast<A>(f0[c]) * w0;
    out[c] = static_cast<T>(
        fma_of(static_cast<A>(f2[c]), w2, fma_of(static_cast<A>(f1[c]), w1, first)));
  }
}
RECON_VARIANTS(blend)

// sums += w * grad; the weight's gradient is the dot product of the row with grad, in 8 partial
// sums of fixed order.
template <typename T, typename A>
RECON_INLINE void blend_backward_body(
    const T* __restrict__ grad, const T* __restrict__ row, A w, int64_t channels,
    A* __restrict__ sums, A* d_weight) {
  A partial[8] = {};
  int64_t c = 0;
  for (; c + 8 <= channels; c += 8) {
    for (int64_t l = 0; l < 8; ++l) {
      const A g = static_cast<A>(grad[c + l]);
      sums[c + l] = fma_of(g, w, sums[c + l]);
      partial[l] = fma_of(g, static_cast<A>(row[c + l]), partial[l]);
    }
  }
  for (; c < channels; ++c) {
    const A g = static_cast<A>(grad[c]);
    sums[c] = fma_of(g, w, sums[c]);
    partial[c & 7] = fma_of(g, static_cast<A>(row[c]), partial[c & 7]);
  }
  A total = 0;
  for (int64_t l = 0; l < 8; ++l) total += partial[l];
  *d_weight = total;
}
RECON_VARIANTS(blend_backward)

Tensor three_interpolate(const Tensor& features, const Tensor& idx, const Tensor& weight) {
  check_interpolate(features, idx, weight);
  const int64_t known = features.size(1), channels = features.size(2), per_cloud = idx.size(1);
  const Tensor source = as_contiguous(features), index = as_contiguous(idx), scale = as_contiguous(weight);
  Tensor out = new_floats(features, {idx.size(0), per_cloud, channels});
  dispatch_features("features", features, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Accumulate<T>::type;
    const T *from = source.const_data_ptr<T>(), *w = scale.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    dispatch_indices("idx", index, known, [&](const auto* rows) {
      const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(channels, 1));
      const auto run = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* cloud = from + i / per_cloud * known * channels;
          const auto* three = rows + 3 * i;
          blend(
              cloud + three[0] * channels, cloud + three[1] * channels,
              cloud + three[2] * channels, static_cast<A>(w[3 * i]), static_cast<A>(w[3 * i + 1]),
              static_cast<A>(w[3 * i + 2]), channels, to + i * channels);
        }
      };
      torch::stable::parallel_for(0, idx.size(0) * per_cloud, grain, run);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> three_interpolate_backward(
    const Tensor& grad, const Tensor& features, const Tensor& idx, const Tensor& weight) {
  check_interpolate(features, idx, weight);
  const int64_t known = features.size(1), channels = features.size(2), per_cloud = idx.size(1);
  STD_TORCH_CHECK(
      grad.dim() == 3 && grad.size(0) == idx.size(0) && grad.size(1) == per_cloud &&
          grad.size(2) == channels,
      "grad must have shape (B, N, C)");
  check_same("grad", grad, "features", features);
  const Tensor upstream = as_contiguous(grad), source = as_contiguous(features);
  const Tensor index = as_contiguous(idx), scale = as_contiguous(weight);
  Tensor d_features = new_floats(features, {idx.size(0), known, channels});
  Tensor d_weight = new_floats(weight, {idx.size(0), per_cloud, 3});
  dispatch_features("features", features, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Accumulate<T>::type;
    const T *g = upstream.const_data_ptr<T>(), *from = source.const_data_ptr<T>();
    const T* w = scale.const_data_ptr<T>();
    T *to = d_features.mutable_data_ptr<T>(), *to_weight = d_weight.mutable_data_ptr<T>();
    dispatch_indices("idx", index, known, [&](const auto* rows) {
      torch::stable::parallel_for(0, idx.size(0), 1, [&](int64_t begin, int64_t end) {
        std::vector<A> sums;
        for (int64_t b = begin; b < end; ++b) {
          sums.assign(known * channels, A(0));
          for (int64_t i = 3 * b * per_cloud; i < 3 * (b + 1) * per_cloud; ++i) {
            const int64_t row = rows[i] * channels;
            A total;
            blend_backward(
                g + i / 3 * channels, from + b * known * channels + row, static_cast<A>(w[i]),
                channels, sums.data() + row, &total);
            to_weight[i] = static_cast<T>(total);
          }
          T* out = to + b * known * channels;
          for (int64_t c = 0; c < known * channels; ++c) out[c] = static_cast<T>(sums[c]);
        }
      });
    });
  });
  return {d_features, d_weight};
}

} // namespace
} // namespace recon

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CPU, m) {
  m.impl("three_interpolate", TORCH_BOX(&recon::three_interpolate));
  m.impl("three_interpolate_backward", TORCH_BOX(&recon::three_interpolate_backward));
}
