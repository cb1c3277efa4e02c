// Attention over few items: what they are worth, how much each head looks at them, and the mix.
//
// G groups of M samples, J items of D entries each, h heads that share the D entries of the values.
// BLOCK rows (items of some samples) pass through the whole computation together, so that values
// and their gradients stay in the cache; the backward pass computes the values anew.

#include <cmath>

#include "products.h"

namespace {

constexpr int64_t BLOCK = 96;  // rows that pass through together, at least one sample's

struct Shape {
    int64_t M, J, D, heads;
    int64_t samples() const { return std::max<int64_t>(1, BLOCK / J); }
    int64_t width() const { return D / heads; }
};

// The sum of a vector's entries.
inline float total(vec v) {
    float sum = 0.0f;
    for (int c = 0; c < WIDTH; c++) sum += v[c];
    return sum;
}

inline float dot(int64_t n, const float* a, const float* b) {
    vec sum{};
    for (int64_t i = 0; i < n; i += WIDTH) sum += load(a + i, n - i) * load(b + i, n - i);
    return total(sum);
}

// to += scale * from
inline void add(int64_t n, float scale, const float* from, float* to) {
    for (int64_t i = 0; i < n; i += WIDTH)
        store(to + i, load(to + i, n - i) + scale * load(from + i, n - i), n - i);
}

// Softmax over the items, for every head: weights [J, heads] in place.
void softmax(const Shape& s, float* weights) {
    const int64_t n = s.J * s.heads;
    for (int64_t k = 0; k < s.heads; k++) {
        float largest = weights[k];
        for (int64_t j = 1; j < s.J; j++) {
            // NaN must come out as such.
            const float w = weights[j * s.heads + k];
            largest = w > largest || std::isnan(w) ? w : largest;
        }
        for (int64_t j = 0; j < s.J; j++) weights[j * s.heads + k] -= largest;
    }
    for (int64_t i = 0; i < n; i += WIDTH)
        store(weights + i, exponential(load(weights + i, n - i)), n - i);
    for (int64_t k = 0; k < s.heads; k++) {
        float sum = 0.0f;
        for (int64_t j = 0; j < s.J; j++) sum += weights[j * s.heads + k];
        for (int64_t j = 0; j < s.J; j++) weights[j * s.heads + k] /= sum;
    }
}

// One group. e [M, J, D], query [heads, M, D] -> mixed [M, D], weights [M, J, heads].
void forward(const Shape& s, const Product& p, float scale, const float* e, const float* query,
             float* mixed, float* weights) {
    const int64_t width = s.width();
    Buffer values(s.samples() * s.J * s.D);
    for (int64_t first = 0; first < s.M; first += s.samples()) {
        const int64_t n = std::min(s.samples(), s.M - first);
        product(p, Start::bias, n * s.J, e + first * s.J * s.D, s.D, values.data);
        for (int64_t i = 0; i < n; i++) {
            const int64_t m = first + i;
            const float* item = e + m * s.J * s.D;
            float* w = weights + m * s.J * s.heads;
            for (int64_t k = 0; k < s.heads; k++)
                for (int64_t j = 0; j < s.J; j++)
                    w[j * s.heads + k] =
                        scale * dot(s.D, item + j * s.D, query + (k * s.M + m) * s.D);
            softmax(s, w);
            float* to = mixed + m * s.D;
            std::fill(to, to + s.D, 0.0f);
            for (int64_t j = 0; j < s.J; j++)
                for (int64_t k = 0; k < s.heads; k++)
                    add(width, w[j * s.heads + k],
                        values.data + (i * s.J + j) * s.D + k * width, to + k * width);
        }
    }
}

// One group. dw [D, D] and db [D] are added to; back: the packed weights from values to items.
void backward(const Shape& s, const Product& p, const Product& back, float scale,
              const float* grad, const float* e, const float* query, const float* weights,
              float* de, float* dquery, float* dw, float* db) {
    const int64_t width = s.width(), rows = s.samples() * s.J;
    Buffer values(rows * s.D), d_values(rows * s.D), d_logits(s.J * s.heads);
    for (int64_t first = 0; first < s.M; first += s.samples()) {
        const int64_t n = std::min(s.samples(), s.M - first);
        const float* block = e + first * s.J * s.D;
        product(p, Start::bias, n * s.J, block, s.D, values.data);
        for (int64_t i = 0; i < n; i++) {
            const float *w = weights + (first + i) * s.J * s.heads, *g = grad + (first + i) * s.D;
            for (int64_t j = 0; j < s.J; j++)
                for (int64_t k = 0; k < s.heads; k++)
                    for (int64_t c = k * width; c < (k + 1) * width; c += WIDTH) {
                        const int64_t at = (i * s.J + j) * s.D + c, left = (k + 1) * width - c;
                        const vec v = load(values.data + at, left);
                        const vec d = w[j * s.heads + k] * load(g + c, left);
                        store(d_values.data + at, v > 0.0f ? d : p.slope * d, left);
                    }
        }
        float* d_block = de + first * s.J * s.D;
        product(back, Start::zero, n * s.J, d_values.data, s.D, d_block);
        outer(p.half, n * s.J, s.D, s.D, d_values.data, block, s.D, s.D, dw);
        for (int64_t row = 0; row < n * s.J; row++) add(s.D, 1.0f, d_values.data + row * s.D, db);
        for (int64_t i = 0; i < n; i++) {
            const int64_t m = first + i;
            const float *w = weights + m * s.J * s.heads, *g = grad + m * s.D;
            for (int64_t k = 0; k < s.heads; k++) {
                float mean = 0.0f;
                for (int64_t j = 0; j < s.J; j++) {
                    const float d = dot(width, g + k * width,
                                        values.data + (i * s.J + j) * s.D + k * width);
                    d_logits.data[j] = d;
                    mean += w[j * s.heads + k] * d;
                }
                const float* q = query + (k * s.M + m) * s.D;
                float* dq = dquery + (k * s.M + m) * s.D;
                std::fill(dq, dq + s.D, 0.0f);
                for (int64_t j = 0; j < s.J; j++) {
                    const float d = scale * w[j * s.heads + k] * (d_logits.data[j] - mean);
                    add(s.D, d, e + (m * s.J + j) * s.D, dq);
                    add(s.D, d, q, de + (m * s.J + j) * s.D);
                }
            }
        }
    }
}

Product packed_values(int64_t D, const float* w, const float* b, float slope, bool half,
                      Buffer& to) {
    pack(D, D, half, [&](int64_t k, int64_t n) { return w[n * D + k]; }, to.data);
    return {D, D, to.data, b, true, slope, half};
}

}  // namespace

extern "C" {

// e [G, M, J, D], query [G, heads, M, D], w [G, D, D], b [G, D] -> mixed [G, M, D], weights
// [G, M, J, heads]; half: the values' operands are rounded to bfloat16, here and in the gradient.
void attention_forward(int64_t G, int64_t M, int64_t J, int64_t D, int64_t heads, float scale,
                       float slope, const float* e, const float* query, const float* w,
                       const float* b, int64_t half, int64_t threads, float* mixed, float* weights) {
    const Shape s{M, J, D, heads};
    in_parallel(G, threads, [&](int64_t g) {
        Buffer to_values(places(D, half) * panels_of(D) * WIDTH);
        const Product p = packed_values(D, w + g * D * D, b + g * D, slope, half != 0, to_values);
        forward(s, p, scale, e + g * M * J * D, query + g * heads * M * D, mixed + g * M * D,
                weights + g * M * J * heads);
    });
}

// grad [G, M, D], weights as `attention_forward` gave them -> de, dquery, dw, db, of the shapes of
// e, query, w and b.
void attention_backward(int64_t G, int64_t M, int64_t J, int64_t D, int64_t heads, float scale,
                        float slope, const float* grad, const float* e, const float* query,
                        const float* w, const float* b, const float* weights, int64_t half,
                        int64_t threads, float* de, float* dquery, float* dw, float* db) {
    const Shape s{M, J, D, heads};
    std::fill(dw, dw + G * D * D, 0.0f);
    std::fill(db, db + G * D, 0.0f);
    in_parallel(G, threads, [&](int64_t g) {
        const int64_t size = places(D, half) * panels_of(D) * WIDTH;
        Buffer to_values(size), to_items(size);
        const float* own = w + g * D * D;
        const Product p = packed_values(D, own, b + g * D, slope, half != 0, to_values);
        pack(D, D, half, [&](int64_t k, int64_t n) { return own[k * D + n]; }, to_items.data);
        const Product back{D, D, to_items.data, nullptr, false, 0.0f, half != 0};
        backward(s, p, back, scale, grad + g * M * D, e + g * M * J * D, query + g * heads * M * D,
                 weights + g * M * J * heads, de + g * M * J * D, dquery + g * heads * M * D,
                 dw + g * D * D, db + g * D);
    });
}
}
