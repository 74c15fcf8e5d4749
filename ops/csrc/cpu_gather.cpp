// Picking rows of features, and the sums of their gradients in source order.

#include "cpu_tensors.h"
#include "cpu_variants.h"

namespace recon {
namespace {

constexpr int64_t kChannels = 64; // in a block of the backward pass

void check_rows(const char* name, const Tensor& rows, const Tensor& idx) {
  STD_TORCH_CHECK(rows.dim() == 3, name, " must have 3 dimensions");
  STD_TORCH_CHECK(
      rows.size(0) == idx.size(0), name, " has a batch of ", rows.size(0), " but idx has one of ",
      idx.size(0));
}

void gather_into(const Tensor& features, const Tensor& idx, int64_t per_cloud, Tensor& out) {
  const int64_t n = features.size(1), channels = features.size(2);
  const Tensor source = as_contiguous(features), index = as_contiguous(idx);
  const int64_t bytes = channels * static_cast<int64_t>(features.element_size());
  const char* from = static_cast<const char*>(source.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  dispatch_indices("idx", index, n, [&](const auto* rows) {
    const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(bytes, 1));
    torch::stable::parallel_for(0, index.numel(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::memcpy(to + i * bytes, from + (i / per_cloud * n + rows[i]) * bytes, bytes);
      }
    });
  });
}

Tensor gather_points(const Tensor& features, const Tensor& idx) {
  STD_TORCH_CHECK(idx.dim() == 2, "idx must have shape (B, S)");
  check_rows("features", features, idx);
  Tensor out = new_floats(features, {idx.size(0), idx.size(1), features.size(2)});
  gather_into(features, idx, idx.size(1), out);
  return out;
}

Tensor group_points(const Tensor& features, const Tensor& idx) {
  STD_TORCH_CHECK(idx.dim() == 3, "idx must have shape (B, S, K)");
  check_rows("features", features, idx);
  Tensor out = new_floats(features, {idx.size(0), idx.size(1), idx.size(2), features.size(2)});
  gather_into(features, idx, idx.size(1) * idx.size(2), out);
  return out;
}

Tensor gather_points_backward(const Tensor& grad, const Tensor& idx, int64_t num_points) {
  STD_TORCH_CHECK(
      idx.dim() == 2 && grad.dim() == 3 && grad.size(1) == idx.size(1),
      "grad must have shape (B, S, C) and idx (B, S)");
  check_rows("grad", grad, idx);
  STD_TORCH_CHECK(num_points >= 0, "num_points must not be negative, found ", num_points);
  const int64_t picks = idx.size(1), channels = grad.size(2);
  const Tensor source = as_contiguous(grad), index = as_contiguous(idx);
  Tensor out = new_floats(grad, {grad.size(0), num_points, channels});
  const int64_t blocks = (channels + kChannels - 1) / kChannels;
  dispatch_features("grad", grad, [&](auto zero) {
    using T = decltype(zero);
    using A = typename Accumulate<T>::type;
    const T* from = source.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    dispatch_indices("idx", index, num_points, [&](const auto* rows) {
      torch::stable::parallel_for(0, grad.size(0) * blocks, 1, [&](int64_t begin, int64_t end) {
        std::vector<A> sums;
        for (int64_t task = begin; task < end; ++task) {
          const int64_t b = task / blocks, first = task % blocks * kChannels;
          const int64_t width = std::min(kChannels, channels - first);
          sums.assign(num_points * width, A(0));
          for (int64_t i = 0; i < picks; ++i) {
            A* sum = sums.data() + rows[b * picks + i] * width;
            const T* part = from + (b * picks + i) * channels + first;
            for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<A>(part[c]);
          }
          for (int64_t p = 0; p < num_points; ++p) {
            T* row = to + (b * num_points + p) * channels + first;
            for (int64_t c = 0; c < width; ++c) row[c] = static_cast<T>(sums[p * width + c]);
          }
        }
      });
    });
  });
  return out;
}

} // namespace
} // namespace recon

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CPU, m) {
  m.impl("gather_points", TORCH_BOX(&recon::gather_points));
  m.impl("group_points", TORCH_BOX(&recon::group_points));
  m.impl("gather_points_backward", TORCH_BOX(&recon::gather_points_backward));
}
