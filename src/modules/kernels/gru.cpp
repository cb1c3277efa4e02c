// A GRU over ragged sequences, forward and backward, as one pass over blocks of sequences.
//
// Rows are time-major, the rows of step t before those of t + 1; a sequence keeps its place within
// a step and the longest come first. BLOCK sequences run through all steps before the next block
// does, so that hidden states, gates and weights stay in the cache.
//
// The gates of a row stand side by side as r, z, n (candidate), s (what the hidden state adds to
// the candidate where r is 1), H entries each. Weights and biases are those of nn.GRUCell: r, z, n.

#include "products.h"

namespace {

constexpr int64_t BLOCK = 96;  // sequences that run through all steps together

inline vec sigmoid(vec x) {
    return 1.0f / (1.0f + exponential(-x));
}
inline vec tanh_of(vec x) {
    return 2.0f * sigmoid(2.0f * x) - 1.0f;
}

// Weights [3 H, K] -> [panel][k][gate][WIDTH].
void pack_gates(const float* w, int64_t H, int64_t K, bool half, float* to) {
    for (int64_t j = 0; j < panels_of(H); j++)
        for (int64_t k = 0; k < places(K, half); k++)
            for (int gate = 0; gate < 3; gate++, to += WIDTH)
                pack_row(
                    K, k, half, std::min<int64_t>(WIDTH, H - j * WIDTH),
                    [&](int64_t at, int c) { return w[(gate * H + j * WIDTH + c) * K + at]; }, to);
}

// --- Forward ---

struct Shape {
    int64_t F, H;
    bool half;
};

// The operands of M rows: inputs [M, places of F] and hidden states [M, places of H] of the step
// before, in float32 or as pairs; those hidden states in float32 again, [M, H].
struct Rows {
    const float *x, *h, *before;
};

// One panel of hidden units of M rows; hidden states are not read if FIRST.
template <bool HALF, int M, bool FIRST>
inline void forward_tile(Shape s, int64_t panel, Rows rows, const float* w, const float* u,
                         const float* bi, const float* bh, float* out, float* gates) {
    const int64_t inputs = places(s.F, HALF), hidden = places(s.H, HALF);
    const int64_t column = panel * WIDTH, n = std::min<int64_t>(WIDTH, s.H - column);
    vec r[M], z[M], nx[M], nh[M];
    const vec br = load(bi + column, n) + load(bh + column, n);
    const vec bz = load(bi + s.H + column, n) + load(bh + s.H + column, n);
    const vec bn = load(bi + 2 * s.H + column, n), cn = load(bh + 2 * s.H + column, n);
    // All loops over rows are unrolled, or the sums would not stay in registers.
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
        r[m] = br;
        z[m] = bz;
        nx[m] = bn;
        nh[m] = cn;
    }
    const float* weights = w + panel * inputs * 3 * WIDTH;
    for (int64_t k = 0; k < inputs; k++, weights += 3 * WIDTH) {
        const vec a = load(weights), b = load(weights + WIDTH), c = load(weights + 2 * WIDTH);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const float v = rows.x[m * inputs + k];
            r[m] = multiply_add<HALF>(r[m], v, a);
            z[m] = multiply_add<HALF>(z[m], v, b);
            nx[m] = multiply_add<HALF>(nx[m], v, c);
        }
    }
    if (!FIRST) {
        weights = u + panel * hidden * 3 * WIDTH;
        for (int64_t k = 0; k < hidden; k++, weights += 3 * WIDTH) {
            const vec a = load(weights), b = load(weights + WIDTH), c = load(weights + 2 * WIDTH);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const float v = rows.h[m * hidden + k];
                r[m] = multiply_add<HALF>(r[m], v, a);
                z[m] = multiply_add<HALF>(z[m], v, b);
                nh[m] = multiply_add<HALF>(nh[m], v, c);
            }
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; m++) {
        const vec reset = sigmoid(r[m]), update = sigmoid(z[m]);
        const vec candidate = tanh_of(nx[m] + reset * nh[m]);
        const vec before = FIRST ? vec{} : load(rows.before + m * s.H + column, n);
        store(out + m * s.H + column, candidate + update * (before - candidate), n);
        if (gates != nullptr) {
            float* g = gates + m * 4 * s.H + column;
            store(g, reset, n);
            store(g + s.H, update, n);
            store(g + 2 * s.H, candidate, n);
            store(g + 3 * s.H, nh[m], n);
        }
    }
}

template <bool HALF, int M>
inline void forward_rows(Shape s, bool first, Rows rows, const float* w, const float* u,
                         const float* bi, const float* bh, float* out, float* gates) {
    for (int64_t panel = 0; panel < panels_of(s.H); panel++) {
        if (first)
            forward_tile<HALF, M, true>(s, panel, rows, w, u, bi, bh, out, gates);
        else
            forward_tile<HALF, M, false>(s, panel, rows, w, u, bi, bh, out, gates);
    }
}

template <bool HALF>
void forward(Shape s, const float* x, const float* wi, const float* wh, const float* bi,
             const float* bh, const std::vector<int64_t>& starts, float* out, float* gates) {
    const int64_t steps = int64_t(starts.size()) - 1, panels = panels_of(s.H);
    const int64_t inputs = places(s.F, HALF), hidden = places(s.H, HALF);
    Buffer w(panels * inputs * 3 * WIDTH), u(panels * hidden * 3 * WIDTH);
    pack_gates(wi, s.H, s.F, HALF, w.data);
    pack_gates(wh, s.H, s.H, HALF, u.data);
    Buffer x_pairs(HALF ? BLOCK * inputs : 0), h_pairs(HALF ? BLOCK * hidden : 0);
    for (int64_t b = 0; b < starts[1]; b += BLOCK)
        for (int64_t t = 0; t < steps; t++) {
            const int64_t n = std::min(BLOCK, starts[t + 1] - starts[t] - b);
            if (n <= 0) break;
            const int64_t row = starts[t] + b, before = t ? starts[t - 1] + b : 0;
            Rows rows{x + row * s.F, out + before * s.H, out + before * s.H};
            if (HALF) {
                pair_columns(n, s.F, rows.x, s.F, x_pairs.data);
                if (t) pair_columns(n, s.H, rows.h, s.H, h_pairs.data);
                rows.x = x_pairs.data;
                rows.h = h_pairs.data;
            }
            for_rows(n, [&](auto size, int64_t m) {
                const Rows from{rows.x + m * inputs, rows.h + m * hidden, rows.before + m * s.H};
                forward_rows<HALF, decltype(size)::value>(
                    s, t == 0, from, w.data, u.data, bi, bh, out + (row + m) * s.H,
                    gates ? gates + (row + m) * 4 * s.H : nullptr);
            });
        }
}

// --- Backward ---

// The gradients before the non-linearities of one row, as n, r, z, s; dh becomes dh z.
inline void gate_gradients(int64_t H, const float* grad, const float* gates, const float* before,
                           float* dh, float* to, float* bias) {
    for (int64_t c = 0; c < H; c += WIDTH) {
        const int64_t n = H - c;
        const vec d = load(dh + c, n) + load(grad + c, n);
        const vec r = load(gates + c, n), z = load(gates + H + c, n);
        const vec candidate = load(gates + 2 * H + c, n), share = load(gates + 3 * H + c, n);
        const vec h = before ? load(before + c, n) : vec{};
        const vec dz = d * (h - candidate) * (z * (1.0f - z));
        const vec dn = d * (1.0f - z) * (1.0f - candidate * candidate);
        const vec dr = dn * share * (r * (1.0f - r)), ds = dn * r;
        const vec parts[4] = {dn, dr, dz, ds};
        for (int i = 0; i < 4; i++) {
            store(to + i * H + c, parts[i], n);
            store(bias + i * H + c, load(bias + i * H + c, n) + parts[i], n);
        }
        store(dh + c, d * z, n);
    }
}

// d_wi [3 H, F] as n, r, z; d_wh [3 H, H] as r, z, s; d_bias [4 H] as n, r, z, s.
void backward(Shape s, const float* grad, const float* out, const float* gates, const float* x,
              const float* wi, const float* wh, const std::vector<int64_t>& starts, float* dx,
              float* d_wi, float* d_wh, float* d_bias) {
    const int64_t H = s.H, steps = int64_t(starts.size()) - 1;
    const int from_input[3] = {2, 0, 1};  // the gates' rows in `wi`, as n, r, z
    const int64_t depth = places(3 * H, s.half);
    Buffer w(depth * panels_of(s.F) * WIDTH), u(depth * panels_of(H) * WIDTH);
    const auto input = [&](int64_t k, int64_t n) {
        return wi[(from_input[k / H] * H + k % H) * s.F + n];
    };
    if (dx != nullptr) pack(3 * H, s.F, s.half, input, w.data);
    pack(3 * H, H, s.half, [&](int64_t k, int64_t n) { return wh[k * H + n]; }, u.data);
    const Product to_input{3 * H, s.F, w.data, nullptr, false, 0.0f, s.half};
    const Product to_hidden{3 * H, H, u.data, nullptr, false, 0.0f, s.half};
    Buffer dh(BLOCK * H), g(BLOCK * 4 * H);
    std::fill(d_wi, d_wi + 3 * H * s.F, 0.0f);
    std::fill(d_wh, d_wh + 3 * H * H, 0.0f);
    std::fill(d_bias, d_bias + 4 * H, 0.0f);
    for (int64_t b = 0; b < starts[1]; b += BLOCK) {
        std::fill(dh.data, dh.data + BLOCK * H, 0.0f);
        for (int64_t t = steps - 1; t >= 0; t--) {
            const int64_t n = std::min(BLOCK, starts[t + 1] - starts[t] - b);
            if (n <= 0) continue;
            const int64_t row = starts[t] + b;
            const float* before = t ? out + (starts[t - 1] + b) * H : nullptr;
            for (int64_t m = 0; m < n; m++)
                gate_gradients(H, grad + (row + m) * H, gates + (row + m) * 4 * H,
                               before ? before + m * H : nullptr, dh.data + m * H,
                               g.data + m * 4 * H, d_bias);
            if (dx != nullptr) product(to_input, Start::zero, n, g.data, 4 * H, dx + row * s.F);
            outer(s.half, n, 3 * H, 4 * H, g.data, x + row * s.F, s.F, s.F, d_wi);
            if (t) {
                product(to_hidden, Start::there, n, g.data + H, 4 * H, dh.data);
                outer(s.half, n, 3 * H, 4 * H, g.data + H, before, H, H, d_wh);
            }
        }
    }
}

std::vector<int64_t> starts_of(const int64_t* sizes, int64_t steps) {
    std::vector<int64_t> starts(steps + 1, 0);
    for (int64_t t = 0; t < steps; t++) starts[t + 1] = starts[t] + sizes[t];
    return starts;
}

}  // namespace

extern "C" {

// x [G, R, F], wi [G, 3 H, F], wh [G, 3 H, H], bi and bh [G, 3 H] -> out [G, R, H] and, unless
// null, gates [G, R, 4 H]; half: the products' operands are rounded to bfloat16.
void gru_forward(int64_t G, int64_t R, int64_t F, int64_t H, const float* x, const float* wi,
                 const float* wh, const float* bi, const float* bh, const int64_t* sizes,
                 int64_t steps, int64_t half, float* out, float* gates) {
    const auto starts = starts_of(sizes, steps);
    const auto run = half ? forward<true> : forward<false>;
    for (int64_t g = 0; g < G; g++)
        run({F, H, half != 0}, x + g * R * F, wi + g * 3 * H * F, wh + g * 3 * H * H, bi + g * 3 * H,
            bh + g * 3 * H, starts, out + g * R * H, gates ? gates + g * R * 4 * H : nullptr);
}

// grad [G, R, H] -> dx [G, R, F] (null: not wanted), d_wi [G, 3 H, F] in the order n, r, z, d_wh
// [G, 3 H, H] in the order r, z, n, d_bias [G, 4 H] in the order n, r, z, s.
void gru_backward(int64_t G, int64_t R, int64_t F, int64_t H, const float* grad, const float* out,
                  const float* gates, const float* x, const float* wi, const float* wh,
                  const int64_t* sizes, int64_t steps, int64_t half, float* dx, float* d_wi, float* d_wh,
                  float* d_bias) {
    const auto starts = starts_of(sizes, steps);
    for (int64_t g = 0; g < G; g++)
        backward({F, H, half != 0}, grad + g * R * H, out + g * R * H, gates + g * R * 4 * H, x + g * R * F,
                 wi + g * 3 * H * F, wh + g * 3 * H * H, starts, dx ? dx + g * R * F : nullptr,
                 d_wi + g * 3 * H * F, d_wh + g * 3 * H * H, d_bias + g * 4 * H);
}
}
