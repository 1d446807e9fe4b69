// CUDA on a CPU, as far as detkit's kernels go: one thread of the machine for each CUDA thread of a block, blocks one after
// another. Barriers are barriers, shared memory is static, warps exchange values through memory; so a missing barrier is a
// data race that ThreadSanitizer sees.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <pthread.h>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __restrict__
#define __launch_bounds__(...)

using std::isfinite;
using std::max;
using std::min;

struct Dim {
    unsigned x, y, z;
};

namespace host {
// std::barrier spins before it sleeps, which a few hundred threads on two cores cannot afford. Two take turns: a thread that
// wakes late from one must not meet there those who went on to the next barrier, or ThreadSanitizer would think that it
// knows what they did in between.
struct Barrier {
    pthread_barrier_t turns[2];
    explicit Barrier(unsigned count) {
        for (auto& one : turns) pthread_barrier_init(&one, nullptr, count);
    }
    ~Barrier() {
        for (auto& one : turns) pthread_barrier_destroy(&one);
    }
    void arrive_and_wait(unsigned& passed) { pthread_barrier_wait(&turns[passed++ % 2]); }
};

inline thread_local unsigned passed_in_block, passed_in_warp;
inline thread_local Dim thread, block;
inline Dim threads, blocks;
inline std::unique_ptr<Barrier> block_barrier;
inline std::vector<std::unique_ptr<Barrier>> warp_barriers;
inline float exchanged[64][32];        // one value a lane
inline unsigned fragments[64][32][6];  // mma operands of each lane

inline unsigned number() { return thread.x + threads.x * (thread.y + threads.y * thread.z); }
inline unsigned warp() { return number() / 32; }
inline unsigned lane() { return number() % 32; }
inline void warp_sync() { warp_barriers[warp()]->arrive_and_wait(passed_in_warp); }

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

template <class... A>
void launch(void (*kernel)(A...), const unsigned* size, void** arguments) {
    blocks = {size[0], size[1], size[2]}, threads = {size[3], size[4], size[5]};
    unsigned count = threads.x * threads.y * threads.z;
    block_barrier = std::make_unique<Barrier>(count);
    warp_barriers.clear();
    for (unsigned w = 0; w < count; w += 32) warp_barriers.push_back(std::make_unique<Barrier>(std::min(32u, count - w)));
    std::vector<std::thread> running;
    for (unsigned t = 0; t < count; t++)
        running.emplace_back([=] {
            thread = {t % threads.x, t / threads.x % threads.y, t / threads.x / threads.y};
            for (unsigned z = 0; z < blocks.z; z++)
                for (unsigned y = 0; y < blocks.y; y++)
                    for (unsigned x = 0; x < blocks.x; x++) {
                        block = {x, y, z};
                        call(kernel, arguments, std::index_sequence_for<A...>());
                        block_barrier->arrive_and_wait(passed_in_block);
                    }
        });
    for (auto& one : running) one.join();
}
}  // namespace host

#define threadIdx host::thread
#define blockIdx host::block
#define blockDim host::threads
#define gridDim host::blocks

inline void __syncthreads() { host::block_barrier->arrive_and_wait(host::passed_in_block); }

inline float float_of_bits(unsigned x) {
    float y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline unsigned bits_of_float(float x) {
    unsigned y;
    std::memcpy(&y, &x, 4);
    return y;
}
inline float float_of_half(unsigned short x) {
    _Float16 y;
    std::memcpy(&y, &x, 2);
    return (float)y;
}
inline unsigned short half_of_float(float x) {
    _Float16 y = (_Float16)x;
    unsigned short bits;
    std::memcpy(&bits, &y, 2);
    return bits;
}

inline void atomic_add(float* p, float x) { std::atomic_ref<float>(*p).fetch_add(x, std::memory_order_relaxed); }
inline void atomic_add(unsigned long long* p, unsigned long long x) {
    std::atomic_ref<unsigned long long>(*p).fetch_add(x, std::memory_order_relaxed);
}
inline void atomic_add4(float* p, float a, float b, float c, float d) {
    if ((std::uintptr_t)p % 16) std::abort();  // the hardware's demand
    atomic_add(p, a), atomic_add(p + 1, b), atomic_add(p + 2, c), atomic_add(p + 3, d);
}
inline long long round_to_int64(float x) { return std::isfinite(x) ? std::llrint(x) : 0; }

inline float shuffle_xor(float x, int distance) {
    host::exchanged[host::warp()][host::lane()] = x;
    host::warp_sync();
    float other = host::exchanged[host::warp()][host::lane() ^ distance];
    host::warp_sync();
    return other;
}

struct Half;
struct BFloat16;
inline float element(unsigned pair, int which, const Half*) { return float_of_half((unsigned short)(pair >> (16 * which))); }
inline float element(unsigned pair, int which, const BFloat16*) { return float_of_bits((pair >> (16 * which)) << 16); }

// mma.m16n8k16 by its definition: which lane holds which elements is PTX's own table.
template <class T>
void mma(float* c, const unsigned* a, const unsigned* b, const T* type) {
    auto& all = host::fragments[host::warp()];
    unsigned lane = host::lane();
    for (int i = 0; i < 4; i++) all[lane][i] = a[i];
    for (int i = 0; i < 2; i++) all[lane][4 + i] = b[i];
    host::warp_sync();
    for (int i = 0; i < 4; i++) {
        unsigned row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            unsigned of_a = row % 8 * 4 + k % 8 / 2, of_b = column * 4 + k % 8 / 2;
            float left = element(all[of_a][row / 8 + k / 8 * 2], k % 2, type);
            float right = element(all[of_b][4 + k / 8], k % 2, type);
            c[i] += left * right;
        }
    }
    host::warp_sync();
}
