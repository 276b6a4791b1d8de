/* Fake quantization in one pass forward and one pass backward; see reference.py for what is computed.
 *
 * A tensor is (outer, channels, inner) in the order of its memory, with one step a channel; one step a tensor is (1, 1, numel).
 * Each operation is the one that the reference does, in the same order, so the values are the same bit for bit: a true division,
 * ties to the even level, NaN kept by the comparisons, and a product with 0 or 1 where the reference multiplies by a mask.
 * Sums go over blocks whose size does not depend on the number of threads, in float within a block and in double over blocks.
 */
#include <math.h>
#include <stdint.h>

#define BLOCK 4096

static inline float level(float ratio, float low, float high) {
    float clipped = ratio < low ? low : ratio;
    clipped = clipped > high ? high : clipped;
    return rintf(clipped);
}

static inline float inside(float ratio, float low, float high) { return (ratio > low) & (ratio < high) ? 1.0f : 0.0f; }

static inline float slope(float ratio, float low, float high) { return level(ratio, low, high) - ratio * inside(ratio, low, high); }

static inline int64_t blocks_of(int64_t length, int64_t size) { return (length + size - 1) / size; }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows of a matrix (outer, channels) that make a block. */
static inline int64_t block_rows(int64_t channels) { return channels < BLOCK / 64 ? BLOCK / channels : 64; }

/* How many sums `backward` needs room for. */
int64_t partial_sums(int64_t outer, int64_t channels, int64_t inner) {
    if (inner == 1 && channels > 1) return blocks_of(outer, block_rows(channels)) * channels;
    return outer * channels * blocks_of(inner, BLOCK);
}

static void forward_rows(const float *x, const float *step, float *out, int64_t rows, int64_t channels, int64_t inner, float low,
                         float high, int threads) {
    const int64_t blocks = blocks_of(inner, BLOCK);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < rows * blocks; task++) {
        const int64_t row = task / blocks, start = task % blocks * BLOCK, stop = smaller(start + BLOCK, inner);
        const float s = step[row % channels];
        const float *xs = x + row * inner;
        float *outs = out + row * inner;
#pragma omp simd
        for (int64_t i = start; i < stop; i++) outs[i] = level(xs[i] / s, low, high) * s;
    }
}

static void forward_matrix(const float *x, const float *step, float *out, int64_t outer, int64_t channels, float low, float high,
                           int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < outer; row++) {
        const float *xs = x + row * channels;
        float *outs = out + row * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) outs[c] = level(xs[c] / step[c], low, high) * step[c];
    }
}

void forward(const float *x, const float *step, float *out, int64_t outer, int64_t channels, int64_t inner, float low, float high,
             int threads) {
    if (inner == 1 && channels > 1)
        forward_matrix(x, step, out, outer, channels, low, high, threads);
    else
        forward_rows(x, step, out, outer * channels, channels, inner, low, high, threads);
}

/* The gradient of a block's elements, and the sum that is its part of the step's gradient. */
static float backward_block(const float *grad, const float *x, float s, float *grad_x, int64_t count, float low, float high,
                            int want_step) {
    float sum = 0.0f;
    if (grad_x && want_step) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; i++) {
            const float ratio = x[i] / s;
            sum += slope(ratio, low, high) * grad[i];
            grad_x[i] = grad[i] * inside(ratio, low, high);
        }
    } else if (grad_x) {
#pragma omp simd
        for (int64_t i = 0; i < count; i++) grad_x[i] = grad[i] * inside(x[i] / s, low, high);
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < count; i++) sum += slope(x[i] / s, low, high) * grad[i];
    }
    return sum;
}

static void backward_rows(const float *grad, const float *x, const float *step, float *grad_x, float *grad_step, float *partial,
                          int64_t outer, int64_t channels, int64_t inner, float low, float high, double scale, int threads) {
    const int64_t blocks = blocks_of(inner, BLOCK);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < outer * channels * blocks; task++) {
        const int64_t row = task / blocks, start = task % blocks * BLOCK, place = row * inner + start;
        const float sum = backward_block(grad + place, x + place, step[row % channels], grad_x ? grad_x + place : 0,
                                         smaller(BLOCK, inner - start), low, high, grad_step != 0);
        if (grad_step) partial[task] = sum;
    }
    for (int64_t c = 0; grad_step && c < channels; c++) {
        double sum = 0.0;
        for (int64_t o = 0; o < outer; o++)
            for (int64_t block = 0; block < blocks; block++) sum += partial[(o * channels + c) * blocks + block];
        grad_step[c] = (float)(sum * scale);
    }
}

static void backward_matrix(const float *grad, const float *x, const float *step, float *grad_x, float *grad_step, float *partial,
                            int64_t outer, int64_t channels, float low, float high, double scale, int threads) {
    const int64_t rows = block_rows(channels), blocks = blocks_of(outer, rows);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; block++) {
        float *sums = partial + block * channels;
        for (int64_t c = 0; grad_step && c < channels; c++) sums[c] = 0.0f;
        for (int64_t row = block * rows; row < smaller((block + 1) * rows, outer); row++) {
            const float *g = grad + row * channels, *xs = x + row * channels;
            if (grad_step)
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) sums[c] += slope(xs[c] / step[c], low, high) * g[c];
            if (grad_x) {
                float *gx = grad_x + row * channels;
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) gx[c] = g[c] * inside(xs[c] / step[c], low, high);
            }
        }
    }
    for (int64_t c = 0; grad_step && c < channels; c++) {
        double sum = 0.0;
        for (int64_t block = 0; block < blocks; block++) sum += partial[block * channels + c];
        grad_step[c] = (float)(sum * scale);
    }
}

/* `grad_x` or `grad_step` is null where it is not wanted; `partial` has room for `partial_sums` sums where the latter is. */
void backward(const float *grad, const float *x, const float *step, float *grad_x, float *grad_step, float *partial, int64_t outer,
              int64_t channels, int64_t inner, float low, float high, double scale, int threads) {
    if (inner == 1 && channels > 1)
        backward_matrix(grad, x, step, grad_x, grad_step, partial, outer, channels, low, high, scale, threads);
    else
        backward_rows(grad, x, step, grad_x, grad_step, partial, outer, channels, inner, low, high, scale, threads);
}
