// A GRU over ragged sequences, forward and backward, as one pass over blocks of sequences.
//
// Rows are time-major, the rows of step t before those of t + 1; a sequence keeps its place within
// a
// step and the longest come first. BLOCK sequences run through all steps before the next block
// does,
// so that hidden states, gates and weights stay in the cache. Products keep ROWS x 1 panel of WIDTH
// columns of all gates in registers. Vectors are GCC's and Clang's vector extension: the compiler
// chooses the instructions of the machine that it runs on.
//
// The gates of a row stand side by side as r, z, n (candidate), s (what the hidden state adds to
// the
// candidate where r is 1), H entries each. Weights and biases are those of nn.GRUCell: r, z, n.

#include <cstdint>
#include <cstring>
#include <algorithm>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 6;  // 32 registers: 6 x 4 sums, 3 weights, 1 input
#else
constexpr int WIDTH = 8, ROWS = 3;  // 16 registers: 3 x 4 sums, 3 weights, 1 input
#endif
constexpr int PANELS = 4;      // panels of a plain product side by side
constexpr int64_t BLOCK = 96;  // sequences that run through all steps together

typedef float vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t ivec __attribute__((vector_size(WIDTH * 4)));

inline vec splat(float x) {
    return vec{} + x;
}
inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, vec v) {
    std::memcpy(p, &v, sizeof v);
}

// The first n <= WIDTH entries; the others are zero, or left alone.
inline vec load(const float* p, int64_t n) {
    if (n >= WIDTH) return load(p);
    vec v{};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}
inline void store(float* p, vec v, int64_t n) {
    if (n >= WIDTH)
        store(p, v);
    else
        std::memcpy(p, &v, n * sizeof(float));
}

// exp by 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]; relative error below 2e-7.
inline vec exponential(vec x) {
    x = x > 88.0f ? splat(88.0f) : x;
    x = x < -87.0f ? splat(-87.0f) : x;
    const vec shifted = x * 1.44269504f + 12582912.0f;  // rounds to an integer in the low bits
    const vec n = shifted - 12582912.0f;
    x = x - n * 0.693359375f;
    x = x + n * 2.12194440e-4f;
    vec p = splat(1.9875691e-4f);
    p = p * x + 1.3981999e-3f;
    p = p * x + 8.3334519e-3f;
    p = p * x + 4.1665796e-2f;
    p = p * x + 1.6666665e-1f;
    p = p * x + 5.0000001e-1f;
    p = p * (x * x) + x + 1.0f;
    const ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    return p * scale;
}
inline vec sigmoid(vec x) {
    return 1.0f / (1.0f + exponential(-x));
}
inline vec tanh_of(vec x) {
    return 2.0f * sigmoid(2.0f * x) - 1.0f;
}

template <int N>
using number = std::integral_constant<int, N>;  // passes a size to a lambda at compile time

inline int64_t panels_of(int64_t n) {
    return (n + WIDTH - 1) / WIDTH;
}

struct Buffer {  // aligned, zero at first
    std::vector<float> memory;
    float* data;
    explicit Buffer(int64_t n) : memory(n + 16, 0.0f) {
        data = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) &
                                        ~uintptr_t(63));
    }
};

// Weights [3 H, K] -> [panel][k][gate][WIDTH].
void pack_gates(const float* w, int64_t H, int64_t K, float* to) {
    for (int64_t j = 0; j < panels_of(H); j++)
        for (int64_t k = 0; k < K; k++)
            for (int gate = 0; gate < 3; gate++)
                for (int c = 0; c < WIDTH; c++, to++) {
                    const int64_t column = j * WIDTH + c;
                    *to = column < H ? w[(gate * H + column) * K + k] : 0.0f;
                }
}

// How many panels of N columns are worked on together from panel `first` on: up to PANELS full
// ones;
// a last one that the columns do not fill stands alone.
inline int64_t group_of(int64_t first, int64_t N) {
    const int64_t full = N / WIDTH;
    return first < full ? std::min<int64_t>(PANELS, full - first) : 1;
}

// Weights [3 H, N], rows of gates in this order, -> groups of panels [group][k][panel][WIDTH].
void pack_rows(const float* w, const int (&order)[3], int64_t H, int64_t N, float* to) {
    const int64_t panels = panels_of(N);
    for (int64_t first = 0; first < panels; first += group_of(first, N))
        for (int64_t k = 0; k < 3 * H; k++)
            for (int64_t j = first; j < first + group_of(first, N); j++)
                for (int c = 0; c < WIDTH; c++, to++) {
                    const int64_t column = j * WIDTH + c;
                    *to = column < N ? w[(order[k / H] * H + k % H) * N + column] : 0.0f;
                }
}

// --- Forward ---

struct Shape {
    int64_t F, H;
};

// One panel of hidden units of M rows. x [M, F], h [M, H] of the step before (not read if first).
template <int M, bool FIRST>
inline void forward_tile(Shape s, int64_t panel, const float* x, const float* h, const float* w,
                         const float* u, const float* bi, const float* bh, float* out,
                         float* gates) {
    const int64_t column = panel * WIDTH, n = std::min<int64_t>(WIDTH, s.H - column);
    vec r[M], z[M], nx[M], nh[M];
    const vec br = load(bi + column, n) + load(bh + column, n);
    const vec bz = load(bi + s.H + column, n) + load(bh + s.H + column, n);
    const vec bn = load(bi + 2 * s.H + column, n), cn = load(bh + 2 * s.H + column, n);
    for (int m = 0; m < M; m++) {
        r[m] = br;
        z[m] = bz;
        nx[m] = bn;
        nh[m] = cn;
    }
    const float* weights = w + panel * s.F * 3 * WIDTH;
    for (int64_t k = 0; k < s.F; k++, weights += 3 * WIDTH) {
        const vec a = load(weights), b = load(weights + WIDTH), c = load(weights + 2 * WIDTH);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const float v = x[m * s.F + k];
            r[m] += v * a;
            z[m] += v * b;
            nx[m] += v * c;
        }
    }
    if (!FIRST) {
        weights = u + panel * s.H * 3 * WIDTH;
        for (int64_t k = 0; k < s.H; k++, weights += 3 * WIDTH) {
            const vec a = load(weights), b = load(weights + WIDTH), c = load(weights + 2 * WIDTH);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                const float v = h[m * s.H + k];
                r[m] += v * a;
                z[m] += v * b;
                nh[m] += v * c;
            }
        }
    }
    for (int m = 0; m < M; m++) {
        const vec reset = sigmoid(r[m]), update = sigmoid(z[m]);
        const vec candidate = tanh_of(nx[m] + reset * nh[m]);
        const vec before = FIRST ? vec{} : load(h + m * s.H + column, n);
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

template <int M>
inline void forward_rows(Shape s, bool first, const float* x, const float* h, const float* w,
                         const float* u, const float* bi, const float* bh, float* out,
                         float* gates) {
    for (int64_t panel = 0; panel < panels_of(s.H); panel++) {
        if (first)
            forward_tile<M, true>(s, panel, x, h, w, u, bi, bh, out, gates);
        else
            forward_tile<M, false>(s, panel, x, h, w, u, bi, bh, out, gates);
    }
}

void forward(Shape s, const float* x, const float* wi, const float* wh, const float* bi,
             const float* bh, const std::vector<int64_t>& starts, float* out, float* gates) {
    const int64_t steps = int64_t(starts.size()) - 1, panels = panels_of(s.H);
    Buffer w(panels * s.F * 3 * WIDTH), u(panels * s.H * 3 * WIDTH);
    pack_gates(wi, s.H, s.F, w.data);
    pack_gates(wh, s.H, s.H, u.data);
    for (int64_t b = 0; b < starts[1]; b += BLOCK)
        for (int64_t t = 0; t < steps; t++) {
            const int64_t n = std::min(BLOCK, starts[t + 1] - starts[t] - b);
            if (n <= 0) break;
            const int64_t row = starts[t] + b, before = t ? starts[t - 1] + b : 0;
            int64_t m = 0;
            const auto at = [&](auto rows) {
                constexpr int M = decltype(rows)::value;
                for (; m + M <= n; m += M)
                    forward_rows<M>(s, t == 0, x + (row + m) * s.F, out + (before + m) * s.H,
                                    w.data, u.data, bi, bh, out + (row + m) * s.H,
                                    gates ? gates + (row + m) * 4 * s.H : nullptr);
            };
            at(number<ROWS>{});
            at(number<2>{});
            at(number<1>{});
        }
}

// --- Backward ---

// Columns from `column` on of a row with N of them; FULL: a whole vector of them is there.
template <bool FULL>
inline vec part(const float* row, int64_t column, int64_t N) {
    return FULL ? load(row + column) : load(row + column, N - column);
}
template <bool FULL>
inline void put(float* row, int64_t column, int64_t N, vec v) {
    if (FULL)
        store(row + column, v);
    else
        store(row + column, v, N - column);
}

// Calls tile(number of panels, whether `columns` fill them) with both known to the compiler.
template <class Tile>
inline void for_panels(int64_t panels, int64_t columns, const Tile& tile) {
    const auto with = [&](auto j) {
        if (columns >= j * WIDTH)
            tile(j, std::true_type{});
        else
            tile(j, std::false_type{});
    };
    switch (panels) {
        case 4:
            with(number<4>{});
            break;
        case 3:
            with(number<3>{});
            break;
        case 2:
            with(number<2>{});
            break;
        default:
            with(number<1>{});
    }
}

// to [M, N] (+)= g [M, 3 H] weights [3 H, N], J panels from `column` on; rows of g are 4 H apart.
template <int M, int J, bool FULL>
inline void product_tile(int64_t K, int64_t stride, const float* g, const float* weights, float* to,
                         int64_t N, int64_t column, bool add) {
    vec sums[M][J];
    for (int m = 0; m < M; m++)
        for (int j = 0; j < J; j++)
            sums[m][j] = add ? part<FULL>(to + m * N, column + j * WIDTH, N) : vec{};
    for (int64_t k = 0; k < K; k++, weights += J * WIDTH) {
        vec w[J];
        for (int j = 0; j < J; j++) w[j] = load(weights + j * WIDTH);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const float v = g[m * stride + k];
            for (int j = 0; j < J; j++) sums[m][j] += v * w[j];
        }
    }
    for (int m = 0; m < M; m++)
        for (int j = 0; j < J; j++) put<FULL>(to + m * N, column + j * WIDTH, N, sums[m][j]);
}

template <int M>
inline void product_rows(int64_t H, const float* g, const float* packed, float* to, int64_t N,
                         bool add) {
    const int64_t panels = panels_of(N), K = 3 * H;
    for (int64_t first = 0; first < panels; first += group_of(first, N)) {
        const float* weights = packed + first * K * WIDTH;
        const int64_t column = first * WIDTH;
        const auto tile = [&](auto j, auto full) {
            product_tile<M, decltype(j)::value, decltype(full)::value>(K, 4 * H, g, weights, to, N,
                                                                       column, add);
        };
        for_panels(group_of(first, N), N - column, tile);
    }
}

void product(int64_t rows, int64_t H, const float* g, const float* packed, float* to, int64_t N,
             bool add) {
    int64_t m = 0;
    for (; m + ROWS <= rows; m += ROWS)
        product_rows<ROWS>(H, g + m * 4 * H, packed, to + m * N, N, add);
    for (; m < rows; m++) product_rows<1>(H, g + m * 4 * H, packed, to + m * N, N, add);
}

// to [O, N] += g^T x for g [rows, O] (rows `stride` apart) and x [rows, N]; O entries, J panels.
template <int O, int J, bool FULL>
inline void outer_tile(int64_t rows, int64_t stride, const float* g, const float* x, int64_t N,
                       int64_t column, float* to) {
    vec sums[O][J];
    for (int o = 0; o < O; o++)
        for (int j = 0; j < J; j++) sums[o][j] = part<FULL>(to + o * N, column + j * WIDTH, N);
    for (int64_t m = 0; m < rows; m++) {
        vec v[J];
        for (int j = 0; j < J; j++) v[j] = part<FULL>(x + m * N, column + j * WIDTH, N);
#pragma GCC unroll 6
        for (int o = 0; o < O; o++) {
            const float scale = g[m * stride + o];
            for (int j = 0; j < J; j++) sums[o][j] += scale * v[j];
        }
    }
    for (int o = 0; o < O; o++)
        for (int j = 0; j < J; j++) put<FULL>(to + o * N, column + j * WIDTH, N, sums[o][j]);
}

template <int O>
inline void outer_rows(int64_t rows, int64_t stride, const float* g, const float* x, int64_t N,
                       float* to) {
    const int64_t panels = panels_of(N);
    for (int64_t first = 0; first < panels; first += group_of(first, N)) {
        const int64_t column = first * WIDTH;
        const auto tile = [&](auto j, auto full) {
            outer_tile<O, decltype(j)::value, decltype(full)::value>(rows, stride, g, x, N, column,
                                                                     to);
        };
        for_panels(group_of(first, N), N - column, tile);
    }
}

void outer(int64_t rows, int64_t K, int64_t stride, const float* g, const float* x, int64_t N,
           float* to) {
    int64_t o = 0;
    for (; o + ROWS <= K; o += ROWS) outer_rows<ROWS>(rows, stride, g + o, x, N, to + o * N);
    for (; o < K; o++) outer_rows<1>(rows, stride, g + o, x, N, to + o * N);
}

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
    const int from_input[3] = {2, 0, 1}, from_hidden[3] = {0, 1, 2};
    Buffer w(3 * H * panels_of(s.F) * WIDTH), u(3 * H * panels_of(H) * WIDTH);
    if (dx != nullptr) pack_rows(wi, from_input, H, s.F, w.data);
    pack_rows(wh, from_hidden, H, H, u.data);
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
            if (dx != nullptr) product(n, H, g.data, w.data, dx + row * s.F, s.F, false);
            outer(n, 3 * H, 4 * H, g.data, x + row * s.F, s.F, d_wi);
            if (t) {
                product(n, H, g.data + H, u.data, dh.data, H, true);
                outer(n, 3 * H, 4 * H, g.data + H, before, H, d_wh);
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
// null,
// gates [G, R, 4 H].
void gru_forward(int64_t G, int64_t R, int64_t F, int64_t H, const float* x, const float* wi,
                 const float* wh, const float* bi, const float* bh, const int64_t* sizes,
                 int64_t steps, float* out, float* gates) {
    const auto starts = starts_of(sizes, steps);
    for (int64_t g = 0; g < G; g++)
        forward({F, H}, x + g * R * F, wi + g * 3 * H * F, wh + g * 3 * H * H, bi + g * 3 * H,
                bh + g * 3 * H, starts, out + g * R * H, gates ? gates + g * R * 4 * H : nullptr);
}

// grad [G, R, H] -> dx [G, R, F] (null: not wanted), d_wi [G, 3 H, F] in the order n, r, z, d_wh
// [G, 3 H, H] in the order r, z, n, d_bias [G, 4 H] in the order n, r, z, s.
void gru_backward(int64_t G, int64_t R, int64_t F, int64_t H, const float* grad, const float* out,
                  const float* gates, const float* x, const float* wi, const float* wh,
                  const int64_t* sizes, int64_t steps, float* dx, float* d_wi, float* d_wh,
                  float* d_bias) {
    const auto starts = starts_of(sizes, steps);
    for (int64_t g = 0; g < G; g++)
        backward({F, H}, grad + g * R * H, out + g * R * H, gates + g * R * 4 * H, x + g * R * F,
                 wi + g * 3 * H * F, wh + g * 3 * H * H, starts, dx ? dx + g * R * F : nullptr,
                 d_wi + g * 3 * H * F, d_wh + g * 3 * H * H, d_bias + g * 4 * H);
}
}
