// Linear layers, with or without a ReLU behind them, forward and backward, G of them side by side.

#include "products.h"

namespace {

constexpr int64_t BLOCK = 96;  // rows that pass through all of a layer together

void forward(int64_t R, int64_t K, int64_t N, const float* x, const float* w, const float* b,
             bool rectify, float* out) {
    Buffer packed(K * panels_of(N) * WIDTH);
    pack(K, N, [&](int64_t k, int64_t n) { return w[n * K + k]; }, packed.data);
    const Product p{K, N, packed.data, b, rectify};
    for (int64_t row = 0; row < R; row += BLOCK)
        product(p, b ? Start::bias : Start::zero, std::min(BLOCK, R - row), x + row * K, K,
                out + row * N);
}

// The gradient in front of the ReLU, [rows, N].
void rectified(int64_t n, const float* grad, const float* out, float* to) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        const vec g = load(grad + i, n - i);
        store(to + i, load(out + i, n - i) > 0.0f ? g : vec{}, n - i);
    }
}

void add_rows(int64_t rows, int64_t N, const float* g, float* to) {
    for (int64_t m = 0; m < rows; m++)
        for (int64_t c = 0; c < N; c += WIDTH)
            store(to + c, load(to + c, N - c) + load(g + m * N + c, N - c), N - c);
}

void backward(int64_t R, int64_t K, int64_t N, const float* grad, const float* out, const float* x,
              const float* w, float* dx, float* dw, float* db) {
    Buffer packed(dx ? N * panels_of(K) * WIDTH : 0), masked(out ? BLOCK * N : 0);
    if (dx != nullptr) pack(N, K, [&](int64_t k, int64_t n) { return w[k * K + n]; }, packed.data);
    const Product p{N, K, packed.data, nullptr, false};
    std::fill(dw, dw + N * K, 0.0f);
    if (db != nullptr) std::fill(db, db + N, 0.0f);
    for (int64_t row = 0; row < R; row += BLOCK) {
        const int64_t n = std::min(BLOCK, R - row);
        const float* g = grad + row * N;
        if (out != nullptr) {
            rectified(n * N, g, out + row * N, masked.data);
            g = masked.data;
        }
        if (dx != nullptr) product(p, Start::zero, n, g, N, dx + row * K);
        outer(n, N, N, g, x + row * K, K, dw);
        if (db != nullptr) add_rows(n, N, g, db);
    }
}

}  // namespace

extern "C" {

// x [G, R, K] (`shared`: [R, K], the same for every group), w [G, N, K], b [G, N] (null: none) ->
// out [G, R, N], through a ReLU if `rectify`.
void linear_forward(int64_t G, int64_t R, int64_t K, int64_t N, const float* x, int shared,
                    const float* w, const float* b, int rectify, float* out) {
    for (int64_t g = 0; g < G; g++)
        forward(R, K, N, x + (shared ? 0 : g * R * K), w + g * N * K, b ? b + g * N : nullptr,
                rectify != 0, out + g * R * N);
}

// grad [G, R, N]; out: what `linear_forward` gave, null without a ReLU -> dx [G, R, K] (null: not
// wanted), dw [G, N, K], db [G, N] (null: no bias).
void linear_backward(int64_t G, int64_t R, int64_t K, int64_t N, const float* grad,
                     const float* out, const float* x, int shared, const float* w, float* dx,
                     float* dw, float* db) {
    for (int64_t g = 0; g < G; g++)
        backward(R, K, N, grad + g * R * N, out ? out + g * R * N : nullptr,
                 x + (shared ? 0 : g * R * K), w + g * N * K, dx ? dx + g * R * K : nullptr,
                 dw + g * N * K, db ? db + g * N : nullptr);
}
}
