// The matrix product inside the deformable convolution's kernels: 64 x BN numbers in the registers of 256 threads, from
// 64 x 32 and BN x 32 tiles in shared memory. Half types go to the tensor cores (eight warps, each 32 x BN / 4), float32 to
// plain multiply-adds (each thread 4 x BN / 16).
#pragma once

#include "device.cuh"

typedef TYPE T;

constexpr int BM = 64, BK = 32, THREADS = 256;

#if TENSOR
// The widest tile, read one number at a time, leaves no registers for the addresses of two steps.
constexpr int STEPS_AT_ONCE = BN > 128 && !PACKED ? 1 : 2;
typedef T Cell;
constexpr int ROW = BK;
__device__ inline Cell cell_of(float x) { return from_float<T>(x); }
__device__ inline Cell cell_of(T x) { return x; }

// Where a cell lies in its tile. Two rows are one line of 128 bytes, all 32 banks, in eight chunks of 16 bytes, which are
// exchanged by a number that differs both among the four lines of eight rows and among eight rows that are 8 apart. So a
// warp meets no bank twice: not where eight rows are multiplied, not where rows are written 16 bytes at a time, and not
// where columns are.
__device__ inline unsigned cell_at(unsigned row, unsigned column) {
    unsigned chunk = (row % 2 * 4 + column / 8) ^ (row / 2 % 4) ^ (row / 8 % 8);
    return row / 2 * 64 + chunk * 8 + column % 8;
}

// The cell `rows` below and `columns` to the right of the one at `from`, where no bit is carried. What is known when this
// is compiled is all in the second term, so that a few addresses serve all cells of a tile.
__device__ inline unsigned moved(unsigned from, unsigned rows, unsigned columns) {
    unsigned by = cell_at(rows, columns);
    return (from ^ by % 64) + by / 64 * 64;
}
#else
typedef float Cell;
constexpr int ROW = BK + 1;
__device__ inline Cell cell_of(float x) { return x; }
__device__ inline Cell cell_of(T x) { return to_float(x); }

// A row has a bank to spare: a column's cells then lie in different banks, and only those of rows 32 apart share one.
__device__ inline unsigned cell_at(unsigned row, unsigned column) { return row * ROW + column; }
__device__ inline unsigned moved(unsigned from, unsigned rows, unsigned columns) { return from + cell_at(rows, columns); }
#endif

// 8 cells from `column` on, a multiple of 8: in one access where cells are 16 bits wide.
__device__ inline void put_row(Cell* tile, int row, int column, const Cell* x) {
#if TENSOR
    Pack<Cell, 8> pack;
#pragma unroll
    for (int i = 0; i < 8; i++) pack.at[i] = x[i];
    put((Pack<Cell, 8>*)(tile + cell_at(row, column)), pack);
#else
#pragma unroll
    for (int i = 0; i < 8; i++) put(tile + moved(cell_at(row, column), 0, i), x[i]);
#endif
}

// 8 cells from `row` down, a multiple of 8: what transposes.
__device__ inline void put_column(Cell* tile, int row, int column, const Cell* x) {
#pragma unroll
    for (int i = 0; i < 8; i++) put(tile + moved(cell_at(row, column), i, 0), x[i]);
}

__device__ inline int thread_number() { return (int)threadIdx.x; }

// sums += a * transposed b
__device__ inline void multiply(float* sums, const Cell* a, const Cell* b) {
#if TENSOR
    int warp = thread_number() / 32, lane = thread_number() % 32;
    unsigned from_a = cell_at(warp % 2 * 32 + lane / 4, lane % 4 * 2);
    unsigned from_b = cell_at(warp / 2 * (BN / 4) + lane / 4, lane % 4 * 2);
#pragma unroll STEPS_AT_ONCE
    for (int k = 0; k < BK; k += 16) {  // counted alike by all lanes: mma wants the warp together
        unsigned left[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                left[i][e] = get((const unsigned*)(a + moved(from_a, 16 * i + e % 2 * 8, k + e / 2 * 8)));
#pragma unroll
        for (int j = 0; j < BN / 32; j++) {
            unsigned right[2];
#pragma unroll
            for (int e = 0; e < 2; e++) right[e] = get((const unsigned*)(b + moved(from_b, 8 * j, k + e * 8)));
#pragma unroll
            for (int i = 0; i < 2; i++) mma(sums + (i * (BN / 32) + j) * 4, left[i], right, (const T*)nullptr);
        }
    }
#else
    int row = thread_number() / 16 * 4, column = thread_number() % 16;
    for (int k = 0; k < BK; k++) {
        float left[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = get(a + cell_at(row + i, k));
#pragma unroll
        for (int j = 0; j < BN / 16; j++) {
            float right = get(b + cell_at(column + 16 * j, k));
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

// The same as cells, of numbers that lie side by side.
__device__ inline void copy8(Cell* to, const T* p, int count) {
#if PACKED
    if (count > 0) {
        constexpr int WIDE = 16 / sizeof(T);
#pragma unroll
        for (int i = 0; i < 8; i += WIDE) {
            Pack<T, WIDE> pack = get((const Pack<T, WIDE>*)(p + i));
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
