// Searches: k nearest neighbors, patches around centers, ball query, three nearest. Queries over the
// threads; each computes its distances to the whole cloud, one row of them at a time.

#include "cpu_tensors.h"
#include "cpu_variants.h"

namespace recon {
namespace {

constexpr int64_t kLanes = 16;

// Writes the bits of the squared distances from a query to all points, and into each of `groups`
// minima the smallest of the points whose index is congruent to its own. `padded` is a multiple of
// `groups`, which is one of kLanes.
template <typename T>
RECON_INLINE void measure_body(
    const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ z, int64_t padded,
    T qx, T qy, T qz, typename Bits<T>::Int* __restrict__ bits,
    typename Bits<T>::Int* __restrict__ minima, int64_t groups) {
  for (int64_t g = 0; g < groups; ++g) minima[g] = Bits<T>::nan;
  for (int64_t base = 0; base < padded; base += groups) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t i = base + g;
      const auto d = distance_bits(squared_norm(x[i] - qx, y[i] - qy, z[i] - qz));
      bits[i] = d;
      minima[g] = d < minima[g] ? d : minima[g];
    }
  }
}
RECON_VARIANTS(measure)

// Appends the indices of all distances at most `limit`, in order; `hits` has room for `padded`.
template <typename Int>
RECON_INLINE void collect_body(
    const Int* __restrict__ bits, int64_t padded, Int limit, int64_t stop_at,
    int32_t* __restrict__ hits, int64_t* count) {
  int64_t found = 0;
  for (int64_t base = 0; base < padded && found < stop_at; base += kLanes) {
    Int any = 0;
    for (int64_t l = 0; l < kLanes; ++l) any |= -Int(bits[base + l] <= limit);
    if (any == 0) continue;
    for (int64_t l = 0; l < kLanes; ++l) {
      hits[found] = static_cast<int32_t>(base + l);
      found += bits[base + l] <= limit;
    }
  }
  *count = found;
}
RECON_VARIANTS(collect)

template <typename T>
class Search {
 public:
  using Int = typename Bits<T>::Int;
  using Key = typename Bits<T>::Key;
  static constexpr int kShift = 8 * sizeof(Int);

  // Prepares for up to k neighbors of n points.
  Search(int64_t n, int64_t k) : k_(k) {
    groups_ = std::min(round_up(2 * k, kLanes), round_up(n, kLanes));
    minima_.resize(groups_);
    const int64_t padded = round_up(n, groups_);
    bits_.resize(padded);
    hits_.resize(padded + kLanes);
  }

  void load(const T* points, int64_t n) { cloud_.load(points, n, groups_); }

  // Finds the k smallest (distance, index) pairs of a query, ascending.
  const Key* nearest(const T* query) {
    measure_all(query);
    std::nth_element(minima_.begin(), minima_.begin() + (k_ - 1), minima_.end());
    // The k-th smallest minimum is that of k different points: no neighbor is further.
    gather(minima_[k_ - 1], cloud_.padded);
    return smallest(k_);
  }

  // Finds the first `slots` indices closer than the limit, in index order; gives their number.
  int64_t within(const T* query, T limit, int64_t slots) {
    measure_all(query);
    return std::min(gather(below(limit), slots), slots);
  }

  // The same for the `slots` nearest ones, ascending by distance.
  int64_t nearest_within(const T* query, T limit, int64_t slots) {
    measure_all(query);
    const int64_t found = std::min(gather(below(limit), cloud_.padded), slots);
    const Key* keys = smallest(found);
    for (int64_t i = 0; i < found; ++i) hits_[i] = static_cast<int32_t>(index(keys[i]));
    return found;
  }

  const int32_t* hits() const { return hits_.data(); }
  static int64_t index(Key key) { return static_cast<int64_t>(static_cast<uint32_t>(key)); }
  static T distance(Key key) { return from_bits<T>(static_cast<Int>(key >> kShift)); }

 private:
  void measure_all(const T* query) {
    measure(
        cloud_.x(), cloud_.y(), cloud_.z(), cloud_.padded, query[0], query[1], query[2],
        bits_.data(), minima_.data(), groups_);
  }

  // The largest bits that are less than a squared radius, which is above 0.
  static Int below(T limit) {
    return std::isnan(limit) ? Int(-1) : std::min(to_bits(limit), to_bits(std::numeric_limits<T>::infinity())) - 1;
  }

  int64_t gather(Int limit, int64_t stop_at) {
    collect(bits_.data(), cloud_.padded, limit, stop_at, hits_.data(), &found_);
    return found_;
  }

  const Key* smallest(int64_t count) {
    keys_.resize(found_);
    for (int64_t i = 0; i < found_; ++i) {
      keys_[i] = Key(bits_[hits_[i]]) << kShift | Key(static_cast<uint32_t>(hits_[i]));
    }
    if (found_ > 4 * count) std::nth_element(keys_.begin(), keys_.begin() + count, keys_.end());
    std::sort(keys_.begin(), found_ > 4 * count ? keys_.begin() + count : keys_.end());
    return keys_.data();
  }

  int64_t k_, groups_, found_ = 0;
  Cloud<T> cloud_;
  Aligned<Int> bits_, minima_;
  std::vector<int32_t> hits_;
  std::vector<Key> keys_;
};

void check_search(
    const char* first, const Tensor& xyz, const char* second, const Tensor& query) {
  STD_TORCH_CHECK(
      xyz.dim() == 3 && xyz.size(2) == 3 && xyz.size(1) > 0, first,
      " must have shape (B, N, 3) with at least one point");
  STD_TORCH_CHECK(query.dim() == 3 && query.size(2) == 3, second, " must have shape (B, S, 3)");
  check_same(first, xyz, second, query);
  STD_TORCH_CHECK(
      xyz.size(1) < std::numeric_limits<int32_t>::max() / 2, first, " has too many points");
}

// Calls visit(search, query, row) for every query, on all threads.
template <typename T, typename F>
void for_queries(const Tensor& xyz, const Tensor& query, int64_t k, const F& visit) {
  const int64_t batch = xyz.size(0), n = xyz.size(1), queries = query.size(1);
  const Tensor cloud = as_contiguous(xyz), wanted = as_contiguous(query);
  const T *points = cloud.const_data_ptr<T>(), *rows = wanted.const_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, 65536 / n);
  torch::stable::parallel_for(0, batch * queries, grain, [&](int64_t begin, int64_t end) {
    Search<T> search(n, k);
    int64_t loaded = -1;
    for (int64_t row = begin; row < end; ++row) {
      if (row / queries != loaded) {
        loaded = row / queries;
        search.load(points + 3 * n * loaded, n);
      }
      visit(search, rows + 3 * row, row);
    }
  });
}

void check_k(int64_t k, int64_t n) {
  STD_TORCH_CHECK(k >= 1 && k <= n, "k must be in 1..", n, ", found ", k);
}

std::tuple<Tensor, Tensor> knn(const Tensor& xyz, const Tensor& query, int64_t k, bool /*sorted*/) {
  check_search("xyz", xyz, "query", query);
  check_k(k, xyz.size(1));
  Tensor sq_dist = new_floats(xyz, {xyz.size(0), query.size(1), k});
  Tensor idx = new_indices(xyz, {xyz.size(0), query.size(1), k});
  int64_t* indices = idx.mutable_data_ptr<int64_t>();
  dispatch_geometry("xyz", xyz, [&](auto zero) {
    using T = decltype(zero);
    T* distances = sq_dist.mutable_data_ptr<T>();
    for_queries<T>(xyz, query, k, [&](Search<T>& search, const T* point, int64_t row) {
      const auto* keys = search.nearest(point);
      for (int64_t i = 0; i < k; ++i) {
        distances[row * k + i] = search.distance(keys[i]);
        indices[row * k + i] = search.index(keys[i]);
      }
    });
  });
  return {sq_dist, idx};
}

std::tuple<Tensor, Tensor> group_knn(const Tensor& xyz, const Tensor& centers, int64_t k) {
  check_search("xyz", xyz, "centers", centers);
  check_k(k, xyz.size(1));
  const int64_t n = xyz.size(1), groups = centers.size(1);
  Tensor patches = new_floats(xyz, {xyz.size(0), groups, k, 3});
  Tensor idx = new_indices(xyz, {xyz.size(0), groups, k});
  int64_t* indices = idx.mutable_data_ptr<int64_t>();
  const Tensor cloud = as_contiguous(xyz);
  dispatch_geometry("xyz", xyz, [&](auto zero) {
    using T = decltype(zero);
    const T* points = cloud.const_data_ptr<T>();
    T* out = patches.mutable_data_ptr<T>();
    for_queries<T>(xyz, centers, k, [&](Search<T>& search, const T* center, int64_t row) {
      const auto* keys = search.nearest(center);
      const T* source = points + row / groups * 3 * n;
      for (int64_t i = 0; i < k; ++i) {
        const int64_t neighbor = search.index(keys[i]);
        indices[row * k + i] = neighbor;
        for (int axis = 0; axis < 3; ++axis) {
          out[3 * (row * k + i) + axis] = source[3 * neighbor + axis] - center[axis];
        }
      }
    });
  });
  return {patches, idx};
}

std::tuple<Tensor, Tensor> ball_query(
    const Tensor& xyz, const Tensor& query, double radius, int64_t max_neighbors, bool nearest) {
  check_search("xyz", xyz, "query", query);
  STD_TORCH_CHECK(
      max_neighbors >= 1, "max_neighbors must be at least 1, found ", max_neighbors);
  Tensor idx = new_indices(xyz, {xyz.size(0), query.size(1), max_neighbors});
  Tensor count = new_indices(xyz, {xyz.size(0), query.size(1)});
  int64_t *indices = idx.mutable_data_ptr<int64_t>(), *counts = count.mutable_data_ptr<int64_t>();
  const int64_t slots = std::min(max_neighbors, xyz.size(1));
  dispatch_geometry("xyz", xyz, [&](auto zero) {
    using T = decltype(zero);
    const T limit = static_cast<T>(radius * radius);
    for_queries<T>(xyz, query, 1, [&](Search<T>& search, const T* point, int64_t row) {
      const int64_t found = nearest ? search.nearest_within(point, limit, slots)
                                    : search.within(point, limit, slots);
      int64_t* out = indices + row * max_neighbors;
      std::copy_n(search.hits(), found, out);
      std::fill(out + found, out + max_neighbors, found > 0 ? out[0] : 0);
      counts[row] = found;
    });
  });
  return {idx, count};
}

std::tuple<Tensor, Tensor> three_nn(const Tensor& unknown, const Tensor& known) {
  check_search("known", known, "unknown", unknown);
  const int64_t available = std::min<int64_t>(3, known.size(1));
  Tensor dist = new_floats(unknown, {unknown.size(0), unknown.size(1), 3});
  Tensor idx = new_indices(unknown, {unknown.size(0), unknown.size(1), 3});
  int64_t* indices = idx.mutable_data_ptr<int64_t>();
  dispatch_geometry("unknown", unknown, [&](auto zero) {
    using T = decltype(zero);
    T* distances = dist.mutable_data_ptr<T>();
    for_queries<T>(known, unknown, available, [&](Search<T>& search, const T* point, int64_t row) {
      const auto* keys = search.nearest(point);
      for (int64_t i = 0; i < 3; ++i) {
        const bool there = i < available;
        indices[3 * row + i] = search.index(keys[there ? i : 0]);
        distances[3 * row + i] =
            there ? std::sqrt(search.distance(keys[i])) : std::numeric_limits<T>::infinity();
      }
    });
  });
  return {dist, idx};
}

} // namespace
} // namespace recon

STABLE_TORCH_LIBRARY_IMPL(recon_ops, CPU, m) {
  m.impl("knn", TORCH_BOX(&recon::knn));
  m.impl("group_knn", TORCH_BOX(&recon::group_knn));
  m.impl("ball_query", TORCH_BOX(&recon::ball_query));
  m.impl("three_nn", TORCH_BOX(&recon::three_nn));
}
