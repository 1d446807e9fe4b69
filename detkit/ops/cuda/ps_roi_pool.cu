// Position-sensitive RoI pooling: each bin is the mean of whole cells, in channels of its own (R-FCN, eq. 1).
//
// One warp makes one bin, its lanes hold the output channels; the backward pass adds the bin's share to each of its cells.
// Block: 32 x 8 threads, grid: boxes x bins / 8.
#include "device.cuh"

typedef TYPE T;

struct Span {
    int first, last;  // cells first <= i < last
};

// Cells of bin i of an axis that runs from `start` to `end` px; the box is rounded to whole cells, halves outwards.
__device__ inline Span span(float start, float end, float scale, int bins, int i, int extent) {
    float a = fminf(fmaxf(start * scale, -1e6f), 1e6f), z = fminf(fmaxf(end * scale, -1e6f), 1e6f);
    a = copysignf(floorf(fabsf(a) + 0.5f), a), z = copysignf(floorf(fabsf(z) + 0.5f), z);
    float size = fmaxf(z - a, 1.f) / (float)bins;
    float low = floorf((float)i * size) + a, high = ceilf((float)(i + 1) * size) + a;
    Span s = {(int)fminf(fmaxf(low, 0.f), (float)extent), (int)fminf(fmaxf(high, 0.f), (float)extent)};
    return s;
}

struct Cells {
    Span y, x;
    float share;
};

__device__ inline Cells cells_of(const float* box, float scale, int h, int w, int bins_h, int bins_w, int bin) {
    Cells c = {{0, 0}, {0, 0}, 0.f};
    if (!(isfinite(box[0]) && isfinite(box[1]) && isfinite(box[2]) && isfinite(box[3]))) return c;
    c.y = span(box[1], box[3], scale, bins_h, bin / bins_w, h);
    c.x = span(box[0], box[2], scale, bins_w, bin % bins_w, w);
    int count = max(c.y.last - c.y.first, 0) * max(c.x.last - c.x.first, 0);
    c.share = count > 0 ? 1.f / (float)count : 0.f;
    return c;
}

extern "C" __global__ void ps_pool_forward(
    const T* map, int64 stride_b, int64 stride_c, int64 stride_h, int64 stride_w, const float* boxes, const int64* images,
    T* out, int channels, int h, int w, int bins_h, int bins_w, float scale) {
    int bins = bins_h * bins_w, bin = (int)(blockIdx.y * 8 + threadIdx.y);
    int64 r = blockIdx.x;
    if (bin >= bins) return;
    Cells cells = cells_of(boxes + 4 * r, scale, h, w, bins_h, bins_w, bin);
    for (int c = (int)threadIdx.x; c < channels; c += 32) {
        const T* first = map + images[r] * stride_b + ((int64)bin * channels + c) * stride_c;
        float sum = 0.f;
        for (int y = cells.y.first; y < cells.y.last; y++)
            for (int x = cells.x.first; x < cells.x.last; x++) sum += to_float(first[y * stride_h + x * stride_w]);
        out[(r * bins + bin) * channels + c] = from_float<T>(sum * cells.share);
    }
}

// `sums` is channels-last (B, h, w, channels * bins) and from zero.
extern "C" __global__ void ps_pool_backward(
    const T* grad, int64 grad_r, int64 grad_c, int64 grad_h, int64 grad_w, const float* boxes, const int64* images,
    Sum* sums, const float* unit_of, int channels, int h, int w, int bins_h, int bins_w, float scale) {
    int bins = bins_h * bins_w, bin = (int)(blockIdx.y * 8 + threadIdx.y);
    int64 r = blockIdx.x;
    if (bin >= bins) return;
    Cells cells = cells_of(boxes + 4 * r, scale, h, w, bins_h, bins_w, bin);
    for (int c = (int)threadIdx.x; c < channels; c += 32) {
        float up = to_float(grad[r * grad_r + c * grad_c + (bin / bins_w) * grad_h + (bin % bins_w) * grad_w]);
        for (int y = cells.y.first; y < cells.y.last; y++)
            for (int x = cells.x.first; x < cells.x.last; x++) {
                int64 cell = ((images[r] * h + y) * w + x) * ((int64)channels * bins) + (int64)bin * channels + c;
                add_to(sums + cell, up * cells.share, unit_of ? unit_of[0] : 1.f);
            }
    }
}
