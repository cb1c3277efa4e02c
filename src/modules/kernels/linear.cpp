// Linear layers, with or without a (leaky) ReLU behind them, forward and backward, G of them side by side.
//
// Groups are shared out among threads; of a single group the rows are, in parts whose weight
// gradients are added up in the order of the rows.

#include "products.h"

namespace {

constexpr int64_t BLOCK = 96;  // rows that pass through all of a layer together

struct Layer {
    int64_t K, N;    // inputs, outputs
    int64_t stride;  // between rows of the inputs
};

void forward(Layer l, const Product& p, int64_t R, const float* x, float* out) {
    const Start start = p.bias ? Start::bias : Start::zero;
    for (int64_t row = 0; row < R; row += BLOCK)
        product(p, start, std::min(BLOCK, R - row), x + row * l.stride, l.stride, out + row * l.N);
}

// The gradient in front of the ReLU, n entries.
void rectified(int64_t n, const float* grad, const float* out, float slope, float* to) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        const vec g = load(grad + i, n - i);
        store(to + i, load(out + i, n - i) > 0.0f ? g : slope * g, n - i);
    }
}

void add(int64_t n, const float* values, float* to) {
    for (int64_t i = 0; i < n; i += WIDTH)
        store(to + i, load(to + i, n - i) + load(values + i, n - i), n - i);
}

// dw [N, K] and db [N] (null: no bias) are added to; dx may be null.
void backward(Layer l, const Product& p, int64_t R, const float* grad, const float* out,
              float slope, const float* x, float* dx, float* dw, float* db) {
    Buffer masked(out ? BLOCK * l.N : 0);
    for (int64_t row = 0; row < R; row += BLOCK) {
        const int64_t n = std::min(BLOCK, R - row);
        const float* g = grad + row * l.N;
        if (out != nullptr) {
            rectified(n * l.N, g, out + row * l.N, slope, masked.data);
            g = masked.data;
        }
        if (dx != nullptr) product(p, Start::zero, n, g, l.N, dx + row * l.K);
        outer(p.half, n, l.N, l.N, g, x + row * l.stride, l.stride, l.K, dw);
        for (int64_t m = 0; db != nullptr && m < n; m++) add(l.N, g + m * l.N, db);
    }
}

// Rows of every part but the last, whole blocks.
int64_t part_of(int64_t R, int64_t parts) {
    return (R + parts * BLOCK - 1) / (parts * BLOCK) * BLOCK;
}

}  // namespace

extern "C" {

// Whether this processor multiplies pairs of bfloat16 numbers.
int64_t takes_bfloat16() {
    return HAS_BFLOAT16;
}

// x [G, R, K], its groups and rows `group_stride` and `row_stride` apart, w [G, N, K], b [G, N]
// (null: none) -> out [G, R, N], through a ReLU if `rectify`, of this slope below 0; half: the
// operands are rounded to bfloat16, here and in the gradient.
void linear_forward(int64_t G, int64_t R, int64_t K, int64_t N, const float* x,
                    int64_t group_stride, int64_t row_stride, const float* w, const float* b,
                    int64_t rectify, float slope, int64_t half, int64_t threads, float* out) {
    const Layer l{K, N, row_stride};
    const int64_t size = places(K, half) * panels_of(N) * WIDTH, parts = G > 1 ? 1 : threads;
    const int64_t share = part_of(R, parts);
    Buffer packed(G * size);
    in_parallel(G, threads, [&](int64_t g) {
        pack(
            K, N, half, [&](int64_t k, int64_t n) { return w[(g * N + n) * K + k]; },
            packed.data + g * size);
    });
    in_parallel(G * parts, threads, [&](int64_t i) {
        const int64_t g = i / parts, first = i % parts * share;
        const float* bias = b ? b + g * N : nullptr;
        const Product p{K, N, packed.data + g * size, bias, rectify != 0, slope, half != 0};
        forward(l, p, std::min(share, R - first), x + g * group_stride + first * row_stride,
                out + (g * R + first) * N);
    });
}

// grad [G, R, N]; out: what `linear_forward` gave, null without a ReLU -> dx [G, R, K] (null: not
// wanted), dw [G, N, K], db [G, N] (null: no bias).
void linear_backward(int64_t G, int64_t R, int64_t K, int64_t N, const float* grad,
                     const float* out, float slope, const float* x, int64_t group_stride,
                     int64_t row_stride, const float* w, int64_t half, int64_t threads, float* dx,
                     float* dw, float* db) {
    const Layer l{K, N, row_stride};
    const int64_t size = dx ? places(N, half) * panels_of(K) * WIDTH : 0, parts = G > 1 ? 1 : threads;
    const int64_t share = part_of(R, parts), own = N * K + N;
    Buffer packed(G * size), others((parts - 1) * own);
    std::fill(dw, dw + G * N * K, 0.0f);
    if (db != nullptr) std::fill(db, db + G * N, 0.0f);
    if (dx != nullptr)
        in_parallel(G, threads, [&](int64_t g) {
            pack(
                N, K, half, [&](int64_t k, int64_t n) { return w[(g * N + k) * K + n]; },
                packed.data + g * size);
        });
    in_parallel(G * parts, threads, [&](int64_t i) {
        const int64_t g = i / parts, part = i % parts, first = part * share;
        const Product p{N, K, packed.data + g * size, nullptr, false, 0.0f, half != 0};
        float* to = part ? others.data + (part - 1) * own : dw + g * N * K;
        float* to_bias = part ? to + N * K : db + g * N;
        backward(l, p, std::min(share, R - first), grad + (g * R + first) * N,
                 out ? out + (g * R + first) * N : nullptr, slope,
                 x + g * group_stride + first * row_stride, dx ? dx + (g * R + first) * K : nullptr,
                 to, db ? to_bias : nullptr);
    });
    for (int64_t part = 1; part < parts; part++) {
        const float* from = others.data + (part - 1) * own;
        add(N * K, from, dw);
        if (db != nullptr) add(N, from + N * K, db);
    }
}
}
