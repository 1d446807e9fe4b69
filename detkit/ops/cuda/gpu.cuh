// The hardware's side of device.cuh: what has no name in C++. Host twins stand in tests/ops/host_cuda.h.
#pragma once

// One access of sizeof(P) bytes; the hardware wants p to be a multiple of them.
template <class P>
__device__ inline P get(const P* p) {
    return *p;
}
template <class P>
__device__ inline void put(P* p, const P& x) {
    *p = x;
}

// Says that p points to global memory. Where the compiler does not know it, each access finds out at run time.
__device__ inline void in_global_memory(const void* p) { __builtin_assume(__isGlobal(p)); }

__device__ inline float float_of_bits(unsigned x) { return __uint_as_float(x); }
__device__ inline unsigned bits_of_float(float x) { return __float_as_uint(x); }

__device__ inline float float_of_half(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

__device__ inline unsigned short half_of_float(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

__device__ inline void atomic_add(float* p, float x) { atomicAdd(p, x); }
__device__ inline void atomic_add(unsigned long long* p, unsigned long long x) { atomicAdd(p, x); }

__device__ inline void atomic_add4(float* p, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
    atomicAdd(p, a), atomicAdd(p + 1, b), atomicAdd(p + 2, c), atomicAdd(p + 3, d);
#endif
}

__device__ inline long long round_to_int64(float x) { return __float2ll_rn(x); }

__device__ inline float shuffle_xor(float x, int distance) { return __shfl_xor_sync(0xffffffffu, x, distance); }

// c (16 x 8) += a (16 x 16, rows) * b (16 x 8, columns), a warp at a time: PTX mma.m16n8k16. Lane l holds of c the columns
// 2 (l % 4) and the next, in rows l / 4 and l / 4 + 8; of a and b pairs along k at 2 (l % 4) and 8 further.
struct Half;
struct BFloat16;

__device__ inline void mma(float* c, const unsigned* a, const unsigned* b, const Half*) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma(float* c, const unsigned* a, const unsigned* b, const BFloat16*) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
