// One source, several instruction sets: a hot loop is written once as an always-inlined body and
// compiled for baseline x86-64, AVX2 and AVX-512; the processor picks at run time. Every variant
// gives the same bits: products and sums are fused only where the source says fma.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define RECON_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__)
#define RECON_X86 1
#if defined(__clang__)
#define RECON_WIDTH
#else
#define RECON_WIDTH ",prefer-vector-width=512"
#endif
#define RECON_AVX2 __attribute__((target("avx2,fma")))
#define RECON_AVX512 \
  __attribute__((target("avx2,fma,avx512f,avx512dq,avx512vl,avx512bw" RECON_WIDTH)))
#else
#define RECON_X86 0
#endif

namespace recon {

// 0 baseline, 1 AVX2, 2 AVX-512: what the processor has, or less if RECON_OPS_CPU_LEVEL says so.
inline int cpu_instructions() {
#if RECON_X86
  static const int level = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    const char* asked = std::getenv("RECON_OPS_CPU_LEVEL");
    const int most = wide ? 2 : 1;
    return asked != nullptr && *asked >= '0' && *asked < '0' + most ? *asked - '0' : most;
  }();
  return level;
#else
  return 0;
#endif
}

// Defines name(...) from name_body(...), which must be RECON_INLINE and return nothing.
#if RECON_X86
#define RECON_VARIANTS(name)                       \
  template <class... A>                            \
  RECON_AVX512 void name##_avx512(A... args) {     \
    name##_body(args...);                          \
  }                                                \
  template <class... A>                            \
  RECON_AVX2 void name##_avx2(A... args) {         \
    name##_body(args...);                          \
  }                                                \
  template <class... A>                            \
  void name##_baseline(A... args) {                \
    name##_body(args...);                          \
  }                                                \
  template <class... A>                            \
  void name(A... args) {                           \
    const int level = cpu_instructions();          \
    if (level == 2) return name##_avx512(args...); \
    if (level == 1) return name##_avx2(args...);   \
    name##_baseline(args...);                      \
  }
#else
#define RECON_VARIANTS(name)     \
  template <class... A>          \
  void name(A... args) {         \
    name##_body(args...);        \
  }
#endif

// The bits of non-negative floats order like integers, so that comparisons, minima and maxima
// vectorize without relaxing the floating point rules, and NaN has a place: last.
template <typename T>
struct Bits;
template <>
struct Bits<float> {
  using Int = int32_t;
  using Key = uint64_t; // distance bits above, index below
  static constexpr Int magnitude = 0x7fffffff, nan = 0x7fc00000;
};
template <>
struct Bits<double> {
  using Int = int64_t;
  using Key = unsigned __int128;
  static constexpr Int magnitude = 0x7fffffffffffffff, nan = 0x7ff8000000000000;
};

template <typename T>
RECON_INLINE typename Bits<T>::Int to_bits(T value) {
  typename Bits<T>::Int bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <typename T>
RECON_INLINE T from_bits(typename Bits<T>::Int bits) {
  T value;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// The bits of a squared distance; every NaN has the same.
template <typename T>
RECON_INLINE typename Bits<T>::Int distance_bits(T distance) {
  const auto bits = to_bits(distance) & Bits<T>::magnitude;
  return bits < Bits<T>::nan ? bits : Bits<T>::nan;
}

RECON_INLINE float fma_of(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
RECON_INLINE double fma_of(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}

template <typename T>
RECON_INLINE T squared_norm(T dx, T dy, T dz) {
  return fma_of(dz, dz, fma_of(dy, dy, dx * dx));
}

} // namespace recon
