// Pooling of boxes: RoIAlign over all levels of a pyramid, its position-sensitive form, and deformable RoI pooling.
//
// One warp makes one bin of one box; its lanes hold neighbouring channels, VEC each. So the geometry is the warp's, each of
// the bin's taps is one coalesced read of a channels-last map (16 bytes a lane), and nothing is gathered level by level:
// a box carries the number of its level. The backward pass is the same walk with additions in place of reads; there a
// warp also sums over its channels what moving the bin would change. Block: 32 x 8 threads, grid: boxes x bins / 8.
//
// LEVELS maps, 1 to 8, are plain parameters: a table on the device would have to be copied there for each call, which a
// CUDA graph cannot capture.
#include "device.cuh"

typedef TYPE T;

struct Level {  // one map; strides in elements
    const T* data;
    Sum* sums;  // of the backward pass: channels-last and from zero
    int64 stride_b, stride_c, stride_h, stride_w;
    int height, width;
    float scale;  // cells per px
};

#define LEVEL_PARAMETERS(n)                                                                                              \
    const T *data##n, Sum *sums##n, int64 b##n, int64 c##n, int64 h##n, int64 w##n, int height##n, int width##n,         \
        float scale##n
#define LEVEL(n) {data##n, sums##n, b##n, c##n, h##n, w##n, height##n, width##n, scale##n}
#if LEVELS == 1
#define EACH_LEVEL(of) of(0)
#elif LEVELS == 2
#define EACH_LEVEL(of) of(0), of(1)
#elif LEVELS == 3
#define EACH_LEVEL(of) of(0), of(1), of(2)
#elif LEVELS == 4
#define EACH_LEVEL(of) of(0), of(1), of(2), of(3)
#elif LEVELS == 5
#define EACH_LEVEL(of) of(0), of(1), of(2), of(3), of(4)
#elif LEVELS == 6
#define EACH_LEVEL(of) of(0), of(1), of(2), of(3), of(4), of(5)
#elif LEVELS == 7
#define EACH_LEVEL(of) of(0), of(1), of(2), of(3), of(4), of(5), of(6)
#elif LEVELS == 8
#define EACH_LEVEL(of) of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7)
#endif

// By comparison, since registers have no addresses.
__device__ inline Level level_at(const Level* levels, int64 number) {
    Level level = levels[0];
#pragma unroll
    for (int i = 1; i < LEVELS; i++)
        if (i == number) level = levels[i];
    in_global_memory(level.data), in_global_memory(level.sums);  // of a pointer that was chosen this is not known
    return level;
}

struct Shape {  // sizes of the call
    int channels, groups, sets, bins_h, bins_w, sampling, aligned;
    float gamma;
};

struct Bin {  // where one bin lies, in cells of its level
    float y, x, step_y, step_x;  // its first corner and the distance of its samples
    float width, height;         // of the box
    int grid_h, grid_w, cells_h, cells_w;
    bool finite;
};

// Whole cells under `side` px. What the rounding of `scale` adds is none: 42 px are 3 cells of 14 px.
__device__ inline int cells_of(int64 side, float scale) {
    return (int)ceilf((float)side * scale * (1.f - 1.f / 2097152.f));
}

__device__ inline Bin place(const float* box, const Level& level, const int64* image_size, const Shape& s, int i, int j) {
    Bin bin;
    float scale = level.scale, shift = s.aligned ? 0.5f : 0.f, least = s.aligned ? 0.f : 1.f;
    bin.finite = isfinite(box[0]) && isfinite(box[1]) && isfinite(box[2]) && isfinite(box[3]);
    float x1 = box[0] * scale - shift, y1 = box[1] * scale - shift;
    bin.width = bin.finite ? fmaxf(box[2] * scale - shift - x1, least) : 0.f;  // infinity times nothing would be NaN
    bin.height = bin.finite ? fmaxf(box[3] * scale - shift - y1, least) : 0.f;
    bin.cells_h = level.height, bin.cells_w = level.width;
    if (image_size) {  // a map ends where its image ends
        bin.cells_h = min(bin.cells_h, cells_of(image_size[0], scale));
        bin.cells_w = min(bin.cells_w, cells_of(image_size[1], scale));
    }
    float h = bin.height / (float)s.bins_h, w = bin.width / (float)s.bins_w;
    // a sample for each cell, and no more than the map has
    bin.grid_h = s.sampling > 0 ? s.sampling : (int)fminf(ceilf(h), (float)bin.cells_h);
    bin.grid_w = s.sampling > 0 ? s.sampling : (int)fminf(ceilf(w), (float)bin.cells_w);
    bin.step_y = h / (float)max(bin.grid_h, 1), bin.step_x = w / (float)max(bin.grid_w, 1);
    bin.y = y1 + (float)i * h, bin.x = x1 + (float)j * w;
    return bin;
}

// The channel that output channel c of a bin reads.
__device__ inline int64 channel_of(int c, int bin, const Shape& s) {
    return s.sets > 1 ? (int64)bin * s.channels + c : (int64)c;
}

extern "C" __global__ void region_forward(
    EACH_LEVEL(LEVEL_PARAMETERS), const float* boxes, const int64* images, const int64* level_of, const float* offsets,
    const int64* image_sizes, T* out, int channels, int groups, int sets, int bins_h, int bins_w, int sampling, int aligned,
    float gamma) {
    Level levels[] = {EACH_LEVEL(LEVEL)};
    Shape s = {channels, groups, sets, bins_h, bins_w, sampling, aligned, gamma};
    int bins = bins_h * bins_w, bin = (int)(blockIdx.y * 8 + threadIdx.y);
    int64 r = blockIdx.x;
    if (bin >= bins) return;
    Level level = level_at(levels, level_of[r]);
    int64 image = images[r];
    Bin b = place(boxes + 4 * r, level, image_sizes ? image_sizes + 2 * image : nullptr, s, bin / bins_w, bin % bins_w);
    const T* map = level.data + image * level.stride_b;
    bool packed = VEC > 1;
    float share = b.finite && b.grid_h > 0 && b.grid_w > 0 ? 1.f / (float)(b.grid_h * b.grid_w) : 0.f;
    int depth = channels / groups;
    for (int c = (int)threadIdx.x * VEC; c < channels; c += 32 * VEC) {
        float y0 = b.y, x0 = b.x;
        if (offsets) {
            const float* move = offsets + ((r * groups + c / depth) * 2) * bins + bin;
            x0 += gamma * move[0] * b.width, y0 += gamma * move[bins] * b.height;
        }
        float sum[VEC] = {};
        const T* first = map + channel_of(c, bin, s) * level.stride_c;
        for (int iy = 0; iy < b.grid_h && share > 0.f; iy++) {
            Tap y = border_tap(y0 + ((float)iy + 0.5f) * b.step_y, b.cells_h);
            for (int ix = 0; ix < b.grid_w; ix++) {
                Tap x = border_tap(x0 + ((float)ix + 0.5f) * b.step_x, b.cells_w);
                if (y.below + y.above == 0.f || x.below + x.above == 0.f) continue;
                const T* corner[4] = {
                    first + y.low * level.stride_h + x.low * level.stride_w,
                    first + y.low * level.stride_h + x.high * level.stride_w,
                    first + y.high * level.stride_h + x.low * level.stride_w,
                    first + y.high * level.stride_h + x.high * level.stride_w};
                float weight[4] = {y.below * x.below, y.below * x.above, y.above * x.below, y.above * x.above};
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    float value[VEC];
                    load<VEC>(value, corner[k], level.stride_c, packed);
#pragma unroll
                    for (int v = 0; v < VEC; v++) sum[v] += weight[k] * value[v];
                }
            }
        }
#pragma unroll
        for (int v = 0; v < VEC; v++) sum[v] *= share;
        store<VEC>(out + (r * bins + bin) * channels + c, sum, packed);
    }
}

// The maps are read for the offsets' gradient alone.
extern "C" __global__ void region_backward(
    EACH_LEVEL(LEVEL_PARAMETERS), const float* boxes, const int64* images, const int64* level_of,
    const float* offsets, const int64* image_sizes, const T* grad, int64 grad_r, int64 grad_c, int64 grad_h, int64 grad_w,
    float* offset_grad, const float* unit_of, int channels, int groups, int sets, int bins_h, int bins_w, int sampling,
    int aligned, float gamma) {
    Level levels[] = {EACH_LEVEL(LEVEL)};
    Shape s = {channels, groups, sets, bins_h, bins_w, sampling, aligned, gamma};
    int bins = bins_h * bins_w, bin = (int)(blockIdx.y * 8 + threadIdx.y);
    int64 r = blockIdx.x;
    if (bin >= bins) return;
    float unit = unit_of ? unit_of[0] : 1.f;
    Level level = level_at(levels, level_of[r]);
    int64 image = images[r];
    Bin b = place(boxes + 4 * r, level, image_sizes ? image_sizes + 2 * image : nullptr, s, bin / bins_w, bin % bins_w);
    int64 all = (int64)sets * channels;
    Sum* target = level.sums + image * level.height * level.width * all;
    const T* map = level.data + image * level.stride_b;
    const T* upstream = grad + r * grad_r + (bin / bins_w) * grad_h + (bin % bins_w) * grad_w;
    float share = b.finite && b.grid_h > 0 && b.grid_w > 0 ? 1.f / (float)(b.grid_h * b.grid_w) : 0.f;
    int depth = channels / groups, lane = (int)threadIdx.x;
    bool alone = depth == 1;  // each lane has a group of its own
    for (int g = alone ? lane : 0; g < groups; g += alone ? 32 : 1) {
        float y0 = b.y, x0 = b.x, by_y = 0.f, by_x = 0.f;
        int64 move = ((r * groups + g) * 2) * bins + bin;
        if (offsets) x0 += gamma * offsets[move] * b.width, y0 += gamma * offsets[move + bins] * b.height;
        for (int d = alone ? 0 : lane * VEC; d < depth; d += 32 * VEC) {
            int c = g * depth + d;
            float up[VEC];
            load<VEC>(up, upstream + c * grad_c, grad_c, false);
#pragma unroll
            for (int v = 0; v < VEC; v++) up[v] *= share;
            for (int iy = 0; iy < b.grid_h && share > 0.f; iy++) {
                Tap y = border_tap(y0 + ((float)iy + 0.5f) * b.step_y, b.cells_h);
                for (int ix = 0; ix < b.grid_w; ix++) {
                    Tap x = border_tap(x0 + ((float)ix + 0.5f) * b.step_x, b.cells_w);
                    if (y.below + y.above == 0.f || x.below + x.above == 0.f) continue;
                    int rows[4] = {y.low, y.low, y.high, y.high}, columns[4] = {x.low, x.high, x.low, x.high};
                    float weight[4] = {y.below * x.below, y.below * x.above, y.above * x.below, y.above * x.above};
                    float dy[4] = {y.moves_below * x.below, y.moves_below * x.above, y.moves_above * x.below,
                                   y.moves_above * x.above};
                    float dx[4] = {y.below * x.moves_below, y.below * x.moves_above, y.above * x.moves_below,
                                   y.above * x.moves_above};
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        float part[VEC];
#pragma unroll
                        for (int v = 0; v < VEC; v++) part[v] = weight[k] * up[v];
                        int64 cell = ((int64)rows[k] * level.width + columns[k]) * all + channel_of(c, bin, s);
                        if (weight[k] != 0.f) add_all<VEC>(target + cell, part, unit, VEC > 1);
                        if (!offsets) continue;
                        const T* read = map + rows[k] * level.stride_h + columns[k] * level.stride_w +
                                        channel_of(c, bin, s) * level.stride_c;
                        float value[VEC], dot = 0.f;
                        load<VEC>(value, read, level.stride_c, VEC > 1);
#pragma unroll
                        for (int v = 0; v < VEC; v++) dot += up[v] * value[v];
                        by_y += dy[k] * dot, by_x += dx[k] * dot;
                    }
                }
            }
        }
        if (!offsets) continue;
        if (!alone) by_y = warp_sum(by_y), by_x = warp_sum(by_x);
        if (alone || lane == 0) {
            offset_grad[move] = gamma * b.width * by_x;
            offset_grad[move + bins] = gamma * b.height * by_y;
        }
    }
}
