// All that the kernels of this folder are written in: three element types, 16-byte loads, bilinear taps, sums that many
// threads add to, and one tensor-core instruction. No header of CUDA or torch is included, so that NVRTC alone compiles it.
//
// compile.py defines TYPE (Float, Half or BFloat16) and FIXED (0 or 1). With g++ instead of NVRTC the same sources run on
// the CPU: tests/ops/host_cuda.h stands in for the hardware and for gpu.cuh.
#pragma once

#ifdef __CUDACC_RTC__
#include "gpu.cuh"
#else
#include "host_cuda.h"
#endif

typedef long long int64;
typedef unsigned long long uint64;

// ---- element types: stored in 16 or 32 bits, computed in float -----------------------------------------------------

struct Float {
    float value;
};
struct Half {
    unsigned short bits;
};
struct BFloat16 {
    unsigned short bits;
};

__device__ inline float to_float(Float x) { return x.value; }
__device__ inline float to_float(BFloat16 x) { return float_of_bits((unsigned)x.bits << 16); }
__device__ inline float to_float(Half x) { return float_of_half(x.bits); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline Float from_float<Float>(float x) {
    Float y = {x};
    return y;
}
template <>
__device__ inline Half from_float<Half>(float x) {
    Half y = {half_of_float(x)};
    return y;
}
template <>
__device__ inline BFloat16 from_float<BFloat16>(float x) {
    unsigned bits = bits_of_float(x);
    // round to nearest, ties to even; a NaN stays one
    unsigned short rounded = x == x ? (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : 0x7fc0u;
    BFloat16 y = {rounded};
    return y;
}

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T at[N];
};

// N values at p, `step` elements apart; 16 bytes at a time where `packed` says that they lie side by side and aligned.
template <int N, class T>
__device__ inline void load(float* out, const T* p, int64 step, bool packed) {
    constexpr int WIDE = 16 / sizeof(T) < N ? 16 / sizeof(T) : N;
    if (packed) {
#pragma unroll
        for (int i = 0; i < N; i += WIDE) {
            Pack<T, WIDE> pack = get((const Pack<T, WIDE>*)(p + i));
#pragma unroll
            for (int j = 0; j < WIDE; j++) out[i + j] = to_float(pack.at[j]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) out[i] = to_float(p[i * step]);
    }
}

// N values to p, side by side; 16 bytes at a time where `packed` says that p is so aligned.
template <int N, class T>
__device__ inline void store(T* p, const float* x, bool packed) {
    constexpr int WIDE = 16 / sizeof(T) < N ? 16 / sizeof(T) : N;
    if (packed) {
#pragma unroll
        for (int i = 0; i < N; i += WIDE) {
            Pack<T, WIDE> pack;
#pragma unroll
            for (int j = 0; j < WIDE; j++) pack.at[j] = from_float<T>(x[i + j]);
            put((Pack<T, WIDE>*)(p + i), pack);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) p[i] = from_float<T>(x[i]);
    }
}

// ---- bilinear taps of one axis: cells `low` and `high` with weights 1 - fraction and fraction ------------------------

struct Tap {
    int low, high;
    float below, above;  // their weights; both 0 where the sample reads nothing
    float moves_below, moves_above;  // derivatives of the weights by the position
};

// RoIAlign's edge: up to one cell outside reads the border, farther (or not finite) nothing.
__device__ inline Tap border_tap(float position, int extent) {
    Tap tap = {0, 0, 0.f, 0.f, 0.f, 0.f};
    if (!(position >= -1.f && position <= (float)extent) || extent <= 0) return tap;
    float held = fminf(fmaxf(position, 0.f), (float)(extent - 1));
    tap.low = (int)held;
    tap.high = tap.low + 1 < extent ? tap.low + 1 : extent - 1;
    tap.above = held - (float)tap.low;
    tap.below = 1.f - tap.above;
    tap.moves_above = held == position ? 1.f : 0.f;
    tap.moves_below = -tap.moves_above;
    return tap;
}

// A convolution's edge: zeros beyond the map.
__device__ inline Tap zero_tap(float position, int extent) {
    Tap tap = {0, 0, 0.f, 0.f, 0.f, 0.f};
    if (!(position > -1.f && position < (float)extent)) return tap;
    float low = floorf(position), fraction = position - low;
    int cell = (int)low;
    if (cell >= 0) {
        tap.low = cell;
        tap.below = 1.f - fraction;
        tap.moves_below = -1.f;
    }
    if (cell + 1 < extent) {
        tap.high = cell + 1;
        tap.above = fraction;
        tap.moves_above = 1.f;
    }
    return tap;
}

// ---- sums that many threads add to -----------------------------------------------------------------------------------
// FIXED: integers, whose sum does not depend on the order of its terms, so that two runs give the same bits. `unit` is a
// power of two so chosen by the caller that the largest possible sum stays below 2^62.

#if FIXED
typedef int64 Sum;
__device__ inline void add_to(Sum* sum, float x, float unit) { atomic_add((uint64*)sum, (uint64)round_to_int64(x * unit)); }
#else
typedef float Sum;
__device__ inline void add_to(Sum* sum, float x, float) { atomic_add(sum, x); }
#endif

// N neighbouring sums, in one instruction for each four where `packed` (16-byte aligned) and the hardware allow.
template <int N>
__device__ inline void add_all(Sum* sum, const float* x, float unit, bool packed) {
#if !FIXED
    if (packed && N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4) atomic_add4(sum + i, x[i], x[i + 1], x[i + 2], x[i + 3]);
        return;
    }
#endif
#pragma unroll
    for (int i = 0; i < N; i++) add_to(sum + i, x[i], unit);
}

// The sum over the 32 lanes of a warp, in an order that is always the same; every lane must come.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += shuffle_xor(x, distance);
    return x;
}
