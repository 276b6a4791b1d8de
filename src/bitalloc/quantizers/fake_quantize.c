/* Fake quantization in one pass forward and one pass backward; see reference.py for what is computed.
 *
 * A tensor is (outer, channels, inner) in the order of its memory, with one step a channel; one step a tensor is (1, 1, numel).
 * Its elements are float32, or bfloat16 where `half` is set; steps, arithmetic, rounding and sums are float32 for both.
 * Each operation is the one that the reference does, in the same order, so the values are the same bit for bit: a true division,
 * ties to the even level, NaN kept by the comparisons, and a product with 0 or 1 where the reference multiplies by a mask.
 * Sums go over blocks whose size does not depend on the number of threads, in float within a block and in double over blocks.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 4096
/* Inlined whatever the compiler thinks of it, so that the flags are constants and no loop asks for the type. */
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bfloat16;

INLINE float widened(bfloat16 value) {
    const uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

/* To the nearest, ties to even; NaN apart, since the carry could make it infinite or zero. */
INLINE bfloat16 narrowed(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bfloat16)(value != value ? 0x7fc0 : rounded);
}

INLINE float get(const void *from, int64_t i, int half) { return half ? widened(((const bfloat16 *)from)[i]) : ((const float *)from)[i]; }

INLINE void put(void *to, int64_t i, float value, int half) {
    if (half)
        ((bfloat16 *)to)[i] = narrowed(value);
    else
        ((float *)to)[i] = value;
}

INLINE float level(float ratio, float low, float high) {
    float clipped = ratio < low ? low : ratio;
    clipped = clipped > high ? high : clipped;
    return rintf(clipped);
}

INLINE float inside(float ratio, float low, float high) { return (ratio > low) & (ratio < high) ? 1.0f : 0.0f; }

INLINE float slope(float ratio, float low, float high) { return level(ratio, low, high) - ratio * inside(ratio, low, high); }

static inline int64_t bytes(int64_t count, int half) { return count * (int64_t)(half ? sizeof(bfloat16) : sizeof(float)); }

static inline int64_t blocks_of(int64_t length, int64_t size) { return (length + size - 1) / size; }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows of a matrix (outer, channels) that make a block. */
static inline int64_t block_rows(int64_t channels) { return channels < BLOCK / 64 ? BLOCK / channels : 64; }

/* How many sums `backward` needs room for. */
int64_t partial_sums(int64_t outer, int64_t channels, int64_t inner) {
    if (inner == 1 && channels > 1) return blocks_of(outer, block_rows(channels)) * channels;
    return outer * channels * blocks_of(inner, BLOCK);
}

INLINE void forward_loop(const char *x, float s, char *out, int64_t count, float low, float high, int half) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) put(out, i, level(get(x, i, half) / s, low, high) * s, half);
}

static void forward_rows(const char *x, const float *step, char *out, int64_t rows, int64_t channels, int64_t inner, float low,
                         float high, int half, int threads) {
    const int64_t blocks = blocks_of(inner, BLOCK);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < rows * blocks; task++) {
        const int64_t row = task / blocks, start = task % blocks * BLOCK, count = smaller(BLOCK, inner - start);
        const int64_t place = bytes(row * inner + start, half);
        const float s = step[row % channels];
        if (half)
            forward_loop(x + place, s, out + place, count, low, high, 1);
        else
            forward_loop(x + place, s, out + place, count, low, high, 0);
    }
}

INLINE void forward_row(const char *x, const float *step, char *out, int64_t channels, float low, float high, int half) {
#pragma omp simd
    for (int64_t c = 0; c < channels; c++) put(out, c, level(get(x, c, half) / step[c], low, high) * step[c], half);
}

static void forward_matrix(const char *x, const float *step, char *out, int64_t outer, int64_t channels, float low, float high,
                           int half, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < outer; row++) {
        const int64_t place = bytes(row * channels, half);
        if (half)
            forward_row(x + place, step, out + place, channels, low, high, 1);
        else
            forward_row(x + place, step, out + place, channels, low, high, 0);
    }
}

void forward(const char *x, const float *step, char *out, int64_t outer, int64_t channels, int64_t inner, float low, float high,
             int half, int threads) {
    if (inner == 1 && channels > 1)
        forward_matrix(x, step, out, outer, channels, low, high, half, threads);
    else
        forward_rows(x, step, out, outer * channels, channels, inner, low, high, half, threads);
}

/* Results are null where they are not wanted; the sum is a block's part of the step's gradient. */
INLINE float backward_loop(const char *grad, const char *x, float s, char *grad_x, int64_t count, float low, float high, int want_x,
                           int want_step, int half) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        const float ratio = get(x, i, half) / s, g = get(grad, i, half);
        if (want_step) sum += slope(ratio, low, high) * g;
        if (want_x) put(grad_x, i, g * inside(ratio, low, high), half);
    }
    return sum;
}

INLINE float backward_wanted(const char *grad, const char *x, float s, char *grad_x, int64_t count, float low, float high,
                             int want_step, int half) {
    if (grad_x && want_step) return backward_loop(grad, x, s, grad_x, count, low, high, 1, 1, half);
    if (grad_x) return backward_loop(grad, x, s, grad_x, count, low, high, 1, 0, half);
    return backward_loop(grad, x, s, grad_x, count, low, high, 0, 1, half);
}

static void backward_rows(const char *grad, const char *x, const float *step, char *grad_x, float *grad_step, float *partial,
                          int64_t outer, int64_t channels, int64_t inner, float low, float high, double scale, int half,
                          int threads) {
    const int64_t blocks = blocks_of(inner, BLOCK), rows = outer * channels;
    const int want_step = grad_step != 0;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < rows * blocks; task++) {
        const int64_t row = task / blocks, start = task % blocks * BLOCK, count = smaller(BLOCK, inner - start);
        const int64_t place = bytes(row * inner + start, half);
        const char *g = grad + place, *xs = x + place;
        char *gx = grad_x ? grad_x + place : 0;
        const float s = step[row % channels];
        const float sum = half ? backward_wanted(g, xs, s, gx, count, low, high, want_step, 1)
                               : backward_wanted(g, xs, s, gx, count, low, high, want_step, 0);
        if (want_step) partial[task] = sum;
    }
    for (int64_t c = 0; want_step && c < channels; c++) {
        double sum = 0.0;
        for (int64_t o = 0; o < outer; o++)
            for (int64_t block = 0; block < blocks; block++) sum += partial[(o * channels + c) * blocks + block];
        grad_step[c] = (float)(sum * scale);
    }
}

INLINE void backward_row(const char *grad, const char *x, const float *step, char *grad_x, float *sums, int64_t channels, float low,
                         float high, int half) {
    if (sums)
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) sums[c] += slope(get(x, c, half) / step[c], low, high) * get(grad, c, half);
    if (grad_x)
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) put(grad_x, c, get(grad, c, half) * inside(get(x, c, half) / step[c], low, high), half);
}

static void backward_matrix(const char *grad, const char *x, const float *step, char *grad_x, float *grad_step, float *partial,
                            int64_t outer, int64_t channels, float low, float high, double scale, int half, int threads) {
    const int64_t rows = block_rows(channels), blocks = blocks_of(outer, rows);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t block = 0; block < blocks; block++) {
        float *sums = grad_step ? partial + block * channels : 0;
        for (int64_t c = 0; sums && c < channels; c++) sums[c] = 0.0f;
        for (int64_t row = block * rows; row < smaller((block + 1) * rows, outer); row++) {
            const int64_t place = bytes(row * channels, half);
            char *gx = grad_x ? grad_x + place : 0;
            if (half)
                backward_row(grad + place, x + place, step, gx, sums, channels, low, high, 1);
            else
                backward_row(grad + place, x + place, step, gx, sums, channels, low, high, 0);
        }
    }
    for (int64_t c = 0; grad_step && c < channels; c++) {
        double sum = 0.0;
        for (int64_t block = 0; block < blocks; block++) sum += partial[block * channels + c];
        grad_step[c] = (float)(sum * scale);
    }
}

/* `grad_x` or `grad_step` is null where it is not wanted; `partial` has room for `partial_sums` sums where the latter is. */
void backward(const char *grad, const char *x, const float *step, char *grad_x, float *grad_step, float *partial, int64_t outer,
              int64_t channels, int64_t inner, float low, float high, double scale, int half, int threads) {
    if (inner == 1 && channels > 1)
        backward_matrix(grad, x, step, grad_x, grad_step, partial, outer, channels, low, high, scale, half, threads);
    else
        backward_rows(grad, x, step, grad_x, grad_step, partial, outer, channels, inner, low, high, scale, half, threads);
}
