// Chamfer distance: both directions from one pass over the pairs of points, pairs of sets over the
// threads. Gradients are sums in a fixed order.

#include "cpu_tensors.h"
#include "cpu_variants.h"

namespace recon {
namespace {

constexpr int64_t kLanes = 16;

// Takes one point of the first set (its index is `row`): the nearest of the second set, the first
// of equals, and what it improves for each point of the second set.
template <typename T>
RECON_INLINE void visit_point_body(
    const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ z, int64_t padded,
    T px, T py, T pz, int32_t row, typename Bits<T>::Int* __restrict__ bits,
    typename Bits<T>::Int* __restrict__ best, typename Bits<T>::Int* __restrict__ best_row,
    int64_t* nearest) {
  using Int = typename Bits<T>::Int;
  Int closest = Bits<T>::nan;
  for (int64_t j = 0; j < padded; ++j) {
    const Int d = distance_bits(squared_norm(px - x[j], py - y[j], pz - z[j]));
    bits[j] = d;
    closest = d < closest ? d : closest;
    const bool closer = d < best[j];
    best[j] = closer ? d : best[j];
    best_row[j] = closer ? row : best_row[j];
  }
  for (int64_t base = 0;; base += kLanes) {
    Int found = 0;
    for (int64_t l = 0; l < kLanes; ++l) found |= -Int(bits[base + l] == closest);
    if (found == 0) continue;
    for (int64_t j = base;; ++j) {
      if (bits[j] == closest) {
        *nearest = j;
        return;
      }
    }
  }
}
RECON_VARIANTS(visit_point)

template <typename T>
struct Matcher {
  using Int = typename Bits<T>::Int;
  Cloud<T> second;
  Aligned<Int> bits, best, best_row;

  // Fills i_ab (n) and i_ba (m).
  void match(const T* a, int64_t n, const T* b, int64_t m, int64_t* i_ab, int64_t* i_ba) {
    second.load(b, m, kLanes);
    bits.resize(second.padded);
    best.assign(second.padded, std::numeric_limits<Int>::max());
    best_row.assign(second.padded, 0);
    for (int64_t i = 0; i < n; ++i) {
      visit_point(
          second.x(), second.y(), second.z(), second.padded, a[3 * i], a[3 * i + 1], a[3 * i + 2],
          static_cast<int32_t>(i), bits.data(), best.data(), best_row.data(), i_ab + i);
    }
    std::copy_n(best_row.data(), m, i_ba);
  }
};

template <typename T>
T distance(const T* p, const T* q) {
  return squared_norm(p[0] - q[0], p[1] - q[1], p[2] - q[2]);
}

// d_p += scale * (p - q) and d_q -= the same, where there is a place for them.
template <typename T>
void pull(const T* p, const T* q, T scale, T* d_p, T* d_q) {
  if (scale == T(0)) return; // also where a coordinate is not finite
  for (int axis = 0; axis < 3; ++axis) {
    const T along = scale * (p[axis] - q[axis]);
    if (d_p != nullptr) d_p[axis] += along;
    if (d_q != nullptr) d_q[axis] -= along;
  }
}

// The place of a row of three numbers, if there are rows.
template <typename T>
T* row_of(T* rows, int64_t row) {
  return rows == nullptr ? nullptr : rows + 3 * row;
}

void check_pair(const char* first, const Tensor& a, const char* second, const Tensor& b) {
  check_points(first, a);
  check_points(second, b);
  check_same(first, a, second, b);
  STD_TORCH_CHECK(
      std::max(a.size(1), b.size(1)) < std::numeric_limits<int32_t>::max() / 2, first, " and ",
      second, " have too many points");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> chamfer_distance(const Tensor& a, const Tensor& b) {
  check_pair("a", a, "b", b);
  const int64_t batch = a.size(0), n = a.size(1), m = b.size(1);
  const Tensor first = as_contiguous(a), second = as_contiguous(b);
  Tensor d_ab = new_floats(a, {batch, n}), d_ba = new_floats(b, {batch, m});
  Tensor i_ab = new_indices(a, {batch, n}), i_ba = new_indices(b, {batch, m});
  int64_t* to_b = i_ab.mutable_data_ptr<int64_t>();
  int64_t* to_a = i_ba.mutable_data_ptr<int64_t>();
  dispatch_geometry("a", a, [&](auto zero) {
    using T = decltype(zero);
    const T *pa = first.const_data_ptr<T>(), *pb = second.const_data_ptr<T>();
    T *from_a = d_ab.mutable_data_ptr<T>(), *from_b = d_ba.mutable_data_ptr<T>();
    const int64_t grain = std::max<int64_t>(1, 65536 / (n * m));
    torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
      Matcher<T> matcher;
      for (int64_t s = begin; s < end; ++s) {
        const T *p = pa + 3 * n * s, *q = pb + 3 * m * s;
        matcher.match(p, n, q, m, to_b + n * s, to_a + m * s);
        for (int64_t i = n * s; i < n * (s + 1); ++i) {
          from_a[i] = distance(pa + 3 * i, q + 3 * to_b[i]);
        }
        for (int64_t j = m * s; j < m * (s + 1); ++j) {
          from_b[j] = distance(pb + 3 * j, p + 3 * to_a[j]);
        }
      }
    });
  });
  return {d_ab, d_ba, i_ab, i_ba};
}

std::tuple<Tensor, Tensor> chamfer_distance_backward(
    const Tensor& a, const Tensor& b, const Tensor& grad_ab, const Tensor& grad_ba,
    const Tensor& i_ab, const Tensor& i_ba) {
  check_pair("a", a, "b", b);
  check_same("a", a, "grad_ab", grad_ab);
  check_same("b", b, "grad_ba", grad_ba);
  const int64_t batch = a.size(0), n = a.size(1), m = b.size(1);
  STD_TORCH_CHECK(
      grad_ab.numel() == batch * n && i_ab.numel() == batch * n, "grad_ab and i_ab must have shape (",
      batch, ", ", n, ")");
  STD_TORCH_CHECK(
      grad_ba.numel() == batch * m && i_ba.numel() == batch * m, "grad_ba and i_ba must have shape (",
      batch, ", ", m, ")");
  const Tensor first = as_contiguous(a), second = as_contiguous(b);
  const Tensor g_ab = as_contiguous(grad_ab), g_ba = as_contiguous(grad_ba);
  const Tensor to_b = as_contiguous(i_ab), to_a = as_contiguous(i_ba);
  Tensor d_a = new_floats(a, {batch, n, 3}), d_b = new_floats(b, {batch, m, 3});
  dispatch_geometry("a", a, [&](auto zero) {
    using T = decltype(zero);
    const T *pa = first.const_data_ptr<T>(), *pb = second.const_data_ptr<T>();
    const T *ga = g_ab.const_data_ptr<T>(), *gb = g_ba.const_data_ptr<T>();
    T *out_a = d_a.mutable_data_ptr<T>(), *out_b = d_b.mutable_data_ptr<T>();
    dispatch_indices("i_ab", to_b, m, [&](const auto* ib) {
      dispatch_indices("i_ba", to_a, n, [&](const auto* ia) {
        torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
          std::fill(out_a + 3 * n * begin, out_a + 3 * n * end, T(0));
          std::fill(out_b + 3 * m * begin, out_b + 3 * m * end, T(0));
          for (int64_t s = begin; s < end; ++s) {
            const int64_t base_a = n * s, base_b = m * s;
            for (int64_t i = base_a; i < base_a + n; ++i) {
              const int64_t j = base_b + ib[i];
              pull(pa + 3 * i, pb + 3 * j, 2 * ga[i], out_a + 3 * i, out_b + 3 * j);
            }
            for (int64_t j = base_b; j < base_b + m; ++j) {
              const int64_t i = base_a + ia[j];
              pull(pb + 3 * j, pa + 3 * i, 2 * gb[j], out_b + 3 * j, out_a + 3 * i);
            }
          }
        });
      });
    });
  });
  return {d_a, d_b};
}

// One direction of the loss: the sum of its terms, and the gradients of `share` times that sum.
template <typename T>
double add_terms(
    const T* p, const T* q, const int64_t* nearest, int64_t count, bool squared, T share, T* d_p,
    T* d_q) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T *from = p + 3 * i, *to = q + 3 * nearest[i];
    const T d = distance(from, to), root = std::sqrt(d);
    total += squared ? d : root;
    const T slope = squared ? 2 * share : (d > 0 ? share / root : T(0));
    pull(from, to, slope, row_of(d_p, i), row_of(d_q, nearest[i]));
  }
  return total;
}

std::tuple<Tensor, Tensor> chamfer_loss_forward(
    const Tensor& pred, const Tensor& target, bool squared, bool with_grad_pred,
    bool with_grad_target) {
  check_pair("pred", pred, "target", target);
  const int64_t batch = pred.size(0), n = pred.size(1), m = target.size(1);
  const Tensor first = as_contiguous(pred), second = as_contiguous(target);
  Tensor loss = new_floats(pred, {});
  const int64_t numbers_pred = with_grad_pred ? 3 * batch * n : 0;
  const int64_t numbers_target = with_grad_target ? 3 * batch * m : 0;
  Tensor grads = new_floats(pred, {numbers_pred + numbers_target});
  dispatch_geometry("pred", pred, [&](auto zero) {
    using T = decltype(zero);
    const T *pa = first.const_data_ptr<T>(), *pb = second.const_data_ptr<T>();
    T* out = grads.mutable_data_ptr<T>();
    T* out_a = with_grad_pred ? out : nullptr;
    T* out_b = with_grad_target ? out + numbers_pred : nullptr;
    const double half = squared ? 1.0 : 0.5;
    const T share_a = static_cast<T>(half / static_cast<double>(batch * n));
    const T share_b = static_cast<T>(half / static_cast<double>(batch * m));
    std::vector<double> terms(batch);
    const int64_t grain = std::max<int64_t>(1, 65536 / (n * m));
    torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
      Matcher<T> matcher;
      std::vector<int64_t> to_b(n), to_a(m);
      if (out_a != nullptr) std::fill(out_a + 3 * n * begin, out_a + 3 * n * end, T(0));
      if (out_b != nullptr) std::fill(out_b + 3 * m * begin, out_b + 3 * m * end, T(0));
      for (int64_t s = begin; s < end; ++s) {
        const T *p = pa + 3 * n * s, *q = pb + 3 * m * s;
        T *d_p = row_of(out_a, n * s), *d_q = row_of(out_b, m * s);
        matcher.match(p, n, q, m, to_b.data(), to_a.data());
        const double there = add_terms(p, q, to_b.data(), n, squared, share_a, d_p, d_q);
        const double back = add_terms(q, p, to_a.data(), m, squared, share_b, d_q, d_p);
        terms[s] = half * (there / static_cast<double>(n) + back / static_cast<double>(m));
      }
    });
    double total = 0; // in the order of the sets, whatever the threads
    for (const double term : terms) total += term;
    *loss.mutable_data_ptr<T>() = static_cast<T>(total / static_cast<double>(batch));
  });
  return {loss, grads};
}

} // namespace
} // namespace recon

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CPU, m) {
  m.impl("chamfer_distance", TORCH_BOX(&recon::chamfer_distance));
  m.impl("chamfer_distance_backward", TORCH_BOX(&recon::chamfer_distance_backward));
  m.impl("chamfer_loss_forward", TORCH_BOX(&recon::chamfer_loss_forward));
}
