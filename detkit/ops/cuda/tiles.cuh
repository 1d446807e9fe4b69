// The matrix product inside the deformable convolution's kernels: 64 x BN numbers in the registers of 256 threads, from
// 64 x 32 and BN x 32 tiles in shared memory. Half types go to the tensor cores (eight warps, each 32 x BN / 4), float32 to
// plain multiply-adds (each thread 4 x BN / 16).
#pragma once

#include "device.cuh"

typedef TYPE T;

constexpr int BM = 64, BK = 32, THREADS = 256;

#if TENSOR
typedef T Cell;
// A row is 80 bytes: the eight rows that a warp reads at once then begin in different banks.
constexpr int ROW = BK + 8;
__device__ inline Cell cell_of(float x) { return from_float<T>(x); }
__device__ inline Cell cell_of(T x) { return x; }
#else
typedef float Cell;
constexpr int ROW = BK + 1;
__device__ inline Cell cell_of(float x) { return x; }
__device__ inline Cell cell_of(T x) { return to_float(x); }
#endif

__device__ inline int thread_number() { return (int)threadIdx.x; }

// sums += a * transposed b
__device__ inline void multiply(float* sums, const Cell (*a)[ROW], const Cell (*b)[ROW]) {
#if TENSOR
    int warp = thread_number() / 32, lane = thread_number() % 32;
    int first_row = warp % 2 * 32 + lane / 4, first_column = warp / 2 * (BN / 4) + lane / 4;
#pragma unroll
    for (int step = 0; step < BK; step += 16) {  // counted alike by all lanes: mma wants the warp together
        int k = step + lane % 4 * 2;
        unsigned left[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = first_row + 16 * i;
            left[i][0] = *(const unsigned*)&a[row][k];
            left[i][1] = *(const unsigned*)&a[row + 8][k];
            left[i][2] = *(const unsigned*)&a[row][k + 8];
            left[i][3] = *(const unsigned*)&a[row + 8][k + 8];
        }
#pragma unroll
        for (int j = 0; j < BN / 32; j++) {
            int column = first_column + 8 * j;
            unsigned right[2] = {*(const unsigned*)&b[column][k], *(const unsigned*)&b[column][k + 8]};
#pragma unroll
            for (int i = 0; i < 2; i++) mma(sums + (i * (BN / 32) + j) * 4, left[i], right, (const T*)nullptr);
        }
    }
#else
    int row = thread_number() / 16 * 4, column = thread_number() % 16;
    for (int k = 0; k < BK; k++) {
        float left[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = a[row + i][k];
#pragma unroll
        for (int j = 0; j < BN / 16; j++) {
            float right = b[column + 16 * j][k];
#pragma unroll
            for (int i = 0; i < 4; i++) sums[i * (BN / 16) + j] += left[i] * right;
        }
    }
#endif
}

// visit(row, column, sum) for each number that this thread holds
template <class F>
__device__ inline void for_each(const float* sums, F visit) {
#if TENSOR
    int warp = thread_number() / 32, lane = thread_number() % 32;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < BN / 32; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                visit(warp % 2 * 32 + 16 * i + lane / 4 + e / 2 * 8, warp / 2 * (BN / 4) + 8 * j + lane % 4 * 2 + e % 2,
                      sums[(i * (BN / 32) + j) * 4 + e]);
#else
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < BN / 16; j++)
            visit(thread_number() / 16 * 4 + i, thread_number() % 16 + 16 * j, sums[i * (BN / 16) + j]);
#endif
}

// The first `count` of 8 neighbouring numbers at p, and zeros after them. PACKED: all runs are whole and aligned.
__device__ inline void fetch8(float* out, const T* p, int64 step, int count) {
#if PACKED
    if (count > 0) return load<8>(out, p, step, true);
    count = 0;
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = i < count ? to_float(p[i * step]) : 0.f;
}

__device__ inline void copy8(Cell* to, const T* p, int count) {
#if PACKED
    if (count > 0) {
        constexpr int WIDE = 16 / sizeof(T);
#pragma unroll
        for (int i = 0; i < 8; i += WIDE) {
            Pack<T, WIDE> pack = *(const Pack<T, WIDE>*)(p + i);
#pragma unroll
            for (int j = 0; j < WIDE; j++) to[i + j] = cell_of(pack.at[j]);
        }
        return;
    }
    count = 0;
#endif
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = i < count ? cell_of(p[i]) : cell_of(0.f);
}
