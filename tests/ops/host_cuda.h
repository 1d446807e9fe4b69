// CUDA on a CPU, as far as detkit's kernels go: one thread of the machine for each CUDA thread of a block, blocks one after
// another. Barriers are barriers, shared memory is static, warps exchange values through memory; so a missing barrier is a
// data race that ThreadSanitizer sees. An access that is not aligned is counted, as a GPU would refuse it.
//
// WATCHED: shared memory is NaN before each block, and each access to it is noted, for `conflicts`.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <pthread.h>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static __attribute__((section("shared_memory")))
#define __restrict__
#define __launch_bounds__(...)

using std::isfinite;
using std::max;
using std::min;

struct Dim {
    unsigned x, y, z;
};

// where the section begins and ends, as the linker says; nowhere in a source that has no shared memory
extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

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
inline std::atomic<unsigned> misaligned;

inline unsigned number() { return thread.x + threads.x * (thread.y + threads.y * thread.z); }
inline unsigned warp() { return number() / 32; }
inline unsigned lane() { return number() % 32; }
inline void warp_sync() { warp_barriers[warp()]->arrive_and_wait(passed_in_warp); }

struct Access {
    std::size_t address;
    unsigned bytes;
    bool writes;
};
inline std::vector<std::vector<Access>> noted;  // those of each thread to shared memory, in its order

inline void reach(const void* p, unsigned bytes, bool writes) {
    if ((std::uintptr_t)p % bytes) misaligned++;
#ifdef WATCHED
    if (p >= __start_shared_memory && p < __stop_shared_memory)
        noted[number()].push_back({(std::size_t)p, bytes, writes});
#endif
}

inline void wait_for_block() { block_barrier->arrive_and_wait(passed_in_block); }

// What a block finds in shared memory: whatever was there.
inline void forget() {
#ifdef WATCHED
    if (number() == 0) std::memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    wait_for_block();
#endif
}

// How many times some lanes of a warp must take turns: memory serves a 4-byte word of each of its 32 banks at a time, and a
// warp that reads 8 or 16 bytes a lane comes in halves or quarters. One word asked for twice is served once.
inline unsigned turns(const std::vector<Access>& lanes) {
    unsigned together = std::min(32u, 128 / lanes[0].bytes), most = 0;
    for (std::size_t first = 0; first < lanes.size(); first += together) {
        std::set<std::size_t> words[32];
        for (std::size_t l = first; l < std::min(first + together, lanes.size()); l++)
            for (std::size_t w = lanes[l].address / 4; w <= (lanes[l].address + lanes[l].bytes - 1) / 4; w++)
                words[w % 32].insert(w);
        for (auto& bank : words) most = std::max(most, (unsigned)bank.size());
    }
    return most;
}

// The most turns that any warp took for one access, by [writes][log2 of its bytes]. False where a warp's lanes went
// different ways, so that it is not known which of their accesses go together.
inline bool conflicts(unsigned (*most)[5]) {
    for (std::size_t warp = 0; warp < noted.size(); warp += 32)
        for (std::size_t i = 0; i < noted[warp].size(); i++) {
            const Access& first = noted[warp][i];
            std::vector<Access> lanes;
            for (std::size_t l = warp; l < warp + 32; l++) {
                if (noted[l].size() != noted[warp].size()) return false;
                lanes.push_back(noted[l][i]);
                if (lanes.back().bytes != first.bytes || lanes.back().writes != first.writes) return false;
            }
            unsigned& of_kind = most[first.writes][__builtin_ctz(first.bytes)];
            of_kind = std::max(of_kind, turns(lanes));
        }
    return true;
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

// Runs all blocks, and says how many accesses were not aligned.
template <class... A>
unsigned launch(void (*kernel)(A...), const unsigned* size, void** arguments) {
    blocks = {size[0], size[1], size[2]}, threads = {size[3], size[4], size[5]};
    unsigned count = threads.x * threads.y * threads.z;
    misaligned = 0;
    noted.assign(count, {});
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
                        forget();
                        call(kernel, arguments, std::index_sequence_for<A...>());
                        wait_for_block();
                    }
        });
    for (auto& one : running) one.join();
    return misaligned;
}
}  // namespace host

extern "C" inline __attribute__((used)) bool conflicts(unsigned (*most)[5]) { return host::conflicts(most); }

#define threadIdx host::thread
#define blockIdx host::block
#define blockDim host::threads
#define gridDim host::blocks

inline void __syncthreads() { host::wait_for_block(); }

template <class P>
P get(const P* p) {
    host::reach(p, sizeof(P), false);
    P value;
    std::memcpy(&value, p, sizeof(P));
    return value;
}
template <class P>
void put(P* p, const P& x) {
    host::reach(p, sizeof(P), true);
    std::memcpy(p, &x, sizeof(P));
}

inline void in_global_memory(const void*) {}

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
    host::reach(p, 16, true);
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
