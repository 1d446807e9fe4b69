// Deformable convolution, v1 and v2, as a matrix product whose left side is sampled on the way: columns are never written
// to device memory. A block takes 64 places of the output; tap by tap and 32 channels at a time, four threads a place read
// the four corners (16 bytes each where the map is channels-last), put the weighted sums into shared memory, and all eight
// warps multiply them with the kernel's slice (tiles.cuh: tensor cores for half types). Three kernels:
//
//   deform_forward          out[m, n]        = sum over taps and channels of sample[m, tap, c] * weight[n, tap, c]
//   deform_backward_data    per tap: grad[m, :] * weight gives what each sample receives; from shared memory it is added to
//                           the four corners, and its products with what they hold are the gradients of offset and mask
//   deform_backward_weight  weight'[tap, c, n] = sum over places of sample[m, tap, c] * grad[m, n], in slices of places that
//                           the caller adds up, so that no addition is atomic
//
// PACKED says that maps are channels-last and all runs of channels are multiples of 8, aligned to 16 bytes: then all is read
// 16 bytes at a time; without it, any strides and any numbers of channels are served one by one.
//
// Channels are walked in segments, the largest that lie in one group of the weights and one group of the offsets.
#include "tiles.cuh"

// Blocks that shall share a multiprocessor, so that one samples while another multiplies: the compiler gives each thread
// so few registers that they fit.
#define BLOCKS (TENSOR && BN <= 128 ? 3 : 2)

struct Conv {
    int64 stride_b, stride_c, stride_h, stride_w;  // of the map, in elements
    int places, h, w, out_h, out_w;                // places: B * out_h * out_w
    int channels, out_channels, groups, offset_groups, segment;
    int kernel_h, kernel_w, step_h, step_w, pad_h, pad_w, dilation_h, dilation_w;
};

#define CONV_PARAMETERS                                                                                                  \
    int64 stride_b, int64 stride_c, int64 stride_h, int64 stride_w, int places, int h, int w, int out_h, int out_w,      \
        int channels, int out_channels, int groups, int offset_groups, int segment, int kernel_h, int kernel_w,          \
        int step_h, int step_w, int pad_h, int pad_w, int dilation_h, int dilation_w
#define CONV                                                                                                             \
    {stride_b, stride_c, stride_h, stride_w, places, h, w, out_h, out_w, channels, out_channels, groups, offset_groups, \
     segment, kernel_h, kernel_w, step_h, step_w, pad_h, pad_w, dilation_h, dilation_w}

struct Spot {  // where one tap of one place reads
    int64 corner[4], cell[4];       // in the map, in elements; among all cells of all images
    float weight[4], dy[4], dx[4];  // bilinear weights and their derivatives
    float mask;
};

// `offset` (B, offset groups, taps, 2, out_h, out_w) and `mask` without the 2, float.
__device__ inline Spot spot_of(const Conv& s, const float* offset, const float* mask, int m, int tap, int group) {
    Spot spot = {{0, 0, 0, 0}, {0, 0, 0, 0}, {0.f, 0.f, 0.f, 0.f}, {0.f, 0.f, 0.f, 0.f}, {0.f, 0.f, 0.f, 0.f}, 0.f};
    if (m >= s.places) return spot;
    int plane = s.out_h * s.out_w, taps = s.kernel_h * s.kernel_w;
    int image = m / plane, place = m % plane, i = place / s.out_w, j = place % s.out_w;
    int64 at = ((int64)image * s.offset_groups + group) * taps + tap;
    float move_y = offset[2 * at * plane + place], move_x = offset[(2 * at + 1) * plane + place];
    Tap y = zero_tap((float)(i * s.step_h - s.pad_h + tap / s.kernel_w * s.dilation_h) + move_y, s.h);
    Tap x = zero_tap((float)(j * s.step_w - s.pad_w + tap % s.kernel_w * s.dilation_w) + move_x, s.w);
    spot.mask = mask ? mask[at * plane + place] : 1.f;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int row = k / 2 ? y.high : y.low, column = k % 2 ? x.high : x.low;
        float by_row = k / 2 ? y.above : y.below, by_column = k % 2 ? x.above : x.below;
        spot.corner[k] = image * s.stride_b + row * s.stride_h + column * s.stride_w;
        spot.cell[k] = ((int64)image * s.h + row) * s.w + column;
        spot.weight[k] = by_row * by_column;
        spot.dy[k] = (k / 2 ? y.moves_above : y.moves_below) * by_column;
        spot.dx[k] = by_row * (k % 2 ? x.moves_above : x.moves_below);
    }
    return spot;
}

// 8 channels from `channel` on of what the tap reads; zeros after `count`.
__device__ inline void sample8(Cell* out, const T* x, const Conv& s, const Spot& spot, int channel, int count) {
    float sum[8] = {};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (count <= 0 || spot.weight[k] == 0.f) continue;
        float value[8], weight = spot.weight[k] * spot.mask;
        fetch8(value, x + spot.corner[k] + channel * s.stride_c, s.stride_c, count);
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] += weight * value[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = cell_of(sum[i]);
}

// `weight` (out_channels, taps, channels / groups); `out` (places, out_channels). Grid: places / 64, groups * tiles of BN.
extern "C" __global__ void __launch_bounds__(256, BLOCKS) deform_forward(
    const T* x, const float* offset, const float* mask, const T* weight, const T* bias, T* out, CONV_PARAMETERS) {
    Conv s = CONV;
    alignas(16) __shared__ Cell a[BM * ROW], b[BN * ROW];
    int per_group = s.channels / s.groups, out_per_group = s.out_channels / s.groups, taps = s.kernel_h * s.kernel_w;
    int tiles = (out_per_group + BN - 1) / BN, group = (int)blockIdx.y / tiles, n0 = (int)blockIdx.y % tiles * BN;
    int m0 = (int)blockIdx.x * BM, place = thread_number() / 4, run = thread_number() % 4 * 8;
    float sums[BN / 4] = {};
    for (int tap = 0; tap < taps; tap++)
        for (int start = 0; start < per_group; start += s.segment) {
            int first = group * per_group + start, end = start + s.segment;
            Spot spot = spot_of(s, offset, mask, m0 + place, tap, first / (s.channels / s.offset_groups));
            for (int c = start; c < end; c += BK) {
                Cell cells[8];
                sample8(cells, x, s, spot, group * per_group + c + run, end - c - run);
                put_row(a, place, run, cells);
                for (int n = place; n < BN; n += BM) {
                    int row = group * out_per_group + n0 + n;
                    int count = n0 + n < out_per_group ? end - c - run : 0;
                    copy8(cells, weight + ((int64)row * taps + tap) * per_group + c + run, count);
                    put_row(b, n, run, cells);
                }
                __syncthreads();
                multiply(sums, a, b);
                __syncthreads();
            }
        }
    for_each(sums, [&](int row, int column, float sum) {
        int m = m0 + row, n = group * out_per_group + n0 + column;
        if (m >= s.places || n0 + column >= out_per_group) return;
        out[(int64)m * s.out_channels + n] = from_float<T>(bias ? sum + to_float(bias[n]) : sum);
    });
}

#if BN == 64  // what its samples receive takes shared memory too
// `grad` (places, out_channels); `weight` (taps, channels, out_channels / groups); `sums` like the map, channels-last, from
// zero; `offset_grad` and `mask_grad` like offset and mask. Grid: places / 64, taps * offset groups.
extern "C" __global__ void __launch_bounds__(256, 2) deform_backward_data(
    const T* grad, const T* x, const float* offset, const float* mask, const T* weight, Sum* sums_x, float* offset_grad,
    float* mask_grad, const float* unit_of, CONV_PARAMETERS) {
    Conv s = CONV;
    alignas(16) __shared__ Cell a[BM * ROW], b[BN * ROW];
    __shared__ float received[BM][BN + 1];
    int per_group = s.channels / s.groups, out_per_group = s.out_channels / s.groups, taps = s.kernel_h * s.kernel_w;
    int per_offset = s.channels / s.offset_groups;
    int tap = (int)blockIdx.y / s.offset_groups, moved = (int)blockIdx.y % s.offset_groups;
    int m0 = (int)blockIdx.x * BM, place = thread_number() / 4, run = thread_number() % 4 * 8, m = m0 + place;
    float unit = unit_of ? unit_of[0] : 1.f;
    Spot spot = spot_of(s, offset, mask, m, tap, moved);
    float by_y = 0.f, by_x = 0.f, by_mask = 0.f;
    for (int start = moved * per_offset; start < (moved + 1) * per_offset; start += s.segment)
        for (int c = start; c < start + s.segment; c += BN) {
            int group = start / per_group, end = min(c + BN, start + s.segment);
            float sums[BN / 4] = {};
            for (int n = 0; n < out_per_group; n += BK) {
                int count = out_per_group - n - run;
                Cell cells[8];
                copy8(cells, grad + (int64)m * s.out_channels + group * out_per_group + n + run, m < s.places ? count : 0);
                put_row(a, place, run, cells);
                for (int row = place; row < BN; row += BM) {
                    copy8(cells, weight + ((int64)tap * s.channels + c + row) * out_per_group + n + run,
                          c + row < end ? count : 0);
                    put_row(b, row, run, cells);
                }
                __syncthreads();
                multiply(sums, a, b);
                __syncthreads();
            }
            for_each(sums, [&](int row, int column, float sum) { put(&received[row][column], sum); });
            __syncthreads();  // the barriers of the next product come before the next writing
            for (int i0 = run; i0 < end - c && m < s.places; i0 += 32) {
                int count = min(8, end - c - i0), channel = c + i0;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    if (spot.weight[k] == 0.f && spot.dy[k] == 0.f && spot.dx[k] == 0.f) continue;
                    float value[8], part[8], dot = 0.f, share = spot.weight[k] * spot.mask;
                    fetch8(value, x + spot.corner[k] + channel * s.stride_c, s.stride_c, count);
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        float up = i < count ? get(&received[place][i0 + i]) : 0.f;
                        dot += up * value[i], part[i] = share * up;
                    }
                    by_y += spot.mask * spot.dy[k] * dot, by_x += spot.mask * spot.dx[k] * dot;
                    by_mask += spot.weight[k] * dot;
                    if (share == 0.f) continue;
                    Sum* to = sums_x + spot.cell[k] * s.channels + channel;
                    if (count == 8)
                        add_all<8>(to, part, unit, PACKED);
                    else
                        for (int i = 0; i < count; i++) add_to(to + i, part[i], unit);
                }
            }
        }
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) {
        by_y += shuffle_xor(by_y, lanes);
        by_x += shuffle_xor(by_x, lanes);
        by_mask += shuffle_xor(by_mask, lanes);
    }
    if (m >= s.places || run > 0) return;
    int plane = s.out_h * s.out_w;
    int64 at = ((int64)(m / plane) * s.offset_groups + moved) * taps + tap;
    offset_grad[2 * at * plane + m % plane] = by_y;
    offset_grad[(2 * at + 1) * plane + m % plane] = by_x;
    if (mask_grad) mask_grad[at * plane + m % plane] = by_mask;
}
#endif

// `parts` (slices, taps, channels, out_channels / groups). Grid: tiles of 64 channels in all segments, taps * tiles of BN,
// slices of `slice` places.
extern "C" __global__ void __launch_bounds__(256, BLOCKS) deform_backward_weight(
    const T* grad, const T* x, const float* offset, const float* mask, float* parts, int slice,
    CONV_PARAMETERS) {
    Conv s = CONV;
    alignas(16) __shared__ Cell a[BM * ROW], b[BN * ROW];
    int per_group = s.channels / s.groups, out_per_group = s.out_channels / s.groups, taps = s.kernel_h * s.kernel_w;
    int in_segment = (s.segment + BM - 1) / BM, tiles = (out_per_group + BN - 1) / BN;
    int start = (int)blockIdx.x / in_segment * s.segment, c = start + (int)blockIdx.x % in_segment * BM;
    int end = start + s.segment, group = start / per_group, moved = start / (s.channels / s.offset_groups);
    int tap = (int)blockIdx.y / tiles, n0 = (int)blockIdx.y % tiles * BN;
    int place = thread_number() / 8, run = thread_number() % 8 * 8;
    int last = min(((int)blockIdx.z + 1) * slice, s.places);
    float sums[BN / 4] = {};
    for (int m0 = (int)blockIdx.z * slice; m0 < last; m0 += BK) {
        int m = m0 + place;
        Spot spot = spot_of(s, offset, mask, m < last ? m : s.places, tap, moved);
        Cell cells[8];
        sample8(cells, x, s, spot, c + run, end - c - run);
        put_column(a, run, place, cells);
        for (int n = run; n < BN; n += 64) {
            int count = m < last ? out_per_group - n0 - n : 0;
            copy8(cells, grad + (int64)m * s.out_channels + group * out_per_group + n0 + n, count);
            put_column(b, n, place, cells);
        }
        __syncthreads();
        multiply(sums, a, b);
        __syncthreads();
    }
    for_each(sums, [&](int row, int column, float sum) {
        if (c + row >= end || n0 + column >= out_per_group) return;
        parts[(((int64)blockIdx.z * taps + tap) * s.channels + c + row) * out_per_group + n0 + column] = sum;
    });
}
