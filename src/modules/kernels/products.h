// What the kernels share: vectors, aligned memory, and products whose sums stay in registers.
//
// A product works on ROWS rows and up to PANELS panels of WIDTH columns at once. Vectors are GCC's
// and Clang's vector extension: the compiler chooses the instructions of the machine that it runs
// on.

#pragma once

#include <cstdint>
#include <cstring>
#include <algorithm>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 6;  // 32 registers: 6 x 4 sums, 3 weights, 1 input
#else
constexpr int WIDTH = 8, ROWS = 3;  // 16 registers: 3 x 4 sums, 3 weights, 1 input
#endif
constexpr int PANELS = 4;  // panels of a plain product side by side

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

template <int N>
using number = std::integral_constant<int, N>;  // passes a size to a lambda at compile time

inline int64_t panels_of(int64_t n) {
    return (n + WIDTH - 1) / WIDTH;
}

struct Buffer {  // aligned, zero at first
    std::vector<float> memory;
    float* data;
    explicit Buffer(int64_t n) : memory(n + 16, 0.0f) {
        const auto address = reinterpret_cast<uintptr_t>(memory.data());
        data = reinterpret_cast<float*>((address + 63) & ~uintptr_t(63));
    }
};

// How many panels of N columns are worked on together from panel `first` on: up to PANELS full
// ones; a last one that the columns do not fill stands alone.
inline int64_t group_of(int64_t first, int64_t N) {
    const int64_t full = N / WIDTH;
    return first < full ? std::min<int64_t>(PANELS, full - first) : 1;
}

// Packs a matrix [K, N], entry (k, n) from `entry`, as groups of panels [group][k][panel][WIDTH].
template <class Entry>
void pack(int64_t K, int64_t N, const Entry& entry, float* to) {
    const int64_t panels = panels_of(N);
    for (int64_t first = 0; first < panels; first += group_of(first, N))
        for (int64_t k = 0; k < K; k++)
            for (int64_t j = first; j < first + group_of(first, N); j++)
                for (int c = 0; c < WIDTH; c++, to++) {
                    const int64_t n = j * WIDTH + c;
                    *to = n < N ? entry(k, n) : 0.0f;
                }
}

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

// Calls tile(number of rows, first row) for all rows, most of them ROWS at a time.
template <class Tile>
inline void for_rows(int64_t rows, const Tile& tile) {
    int64_t m = 0;
    for (; m + ROWS <= rows; m += ROWS) tile(number<ROWS>{}, m);
    for (; m + 2 <= rows; m += 2) tile(number<2>{}, m);
    for (; m < rows; m++) tile(number<1>{}, m);
}

// What the sums of a product start from, and what becomes of them.
enum class Start { zero, there, bias };

struct Product {
    int64_t K, N;
    const float* packed;  // by `pack`
    const float* bias;    // [N], with Start::bias
    bool rectify;         // through a ReLU, leaky where `slope` is not 0
    float slope;
};

template <int M, int J, bool FULL>
inline void product_tile(const Product& p, Start start, const float* a, int64_t stride,
                         const float* weights, float* to, int64_t column) {
    vec sums[M][J];
    for (int m = 0; m < M; m++)
        for (int j = 0; j < J; j++) {
            const int64_t n = column + j * WIDTH;
            sums[m][j] = start == Start::zero    ? vec{}
                         : start == Start::there ? part<FULL>(to + m * p.N, n, p.N)
                                                 : part<FULL>(p.bias, n, p.N);
        }
    for (int64_t k = 0; k < p.K; k++, weights += J * WIDTH) {
        vec w[J];
        for (int j = 0; j < J; j++) w[j] = load(weights + j * WIDTH);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const float v = a[m * stride + k];
            for (int j = 0; j < J; j++) sums[m][j] += v * w[j];
        }
    }
    for (int m = 0; m < M; m++)
        for (int j = 0; j < J; j++) {
            const vec sum = sums[m][j];
            // Comparing so that NaN stays NaN.
            put<FULL>(to + m * p.N, column + j * WIDTH, p.N,
                      p.rectify ? (sum < 0.0f ? p.slope * sum : sum) : sum);
        }
}

// to [rows, N] = or += a [rows, K], rows `stride` apart, times a packed matrix [K, N].
inline void product(const Product& p, Start start, int64_t rows, const float* a, int64_t stride,
                    float* to) {
    const int64_t panels = panels_of(p.N);
    for (int64_t first = 0; first < panels; first += group_of(first, p.N)) {
        const float* weights = p.packed + first * p.K * WIDTH;
        const int64_t column = first * WIDTH;
        for_panels(group_of(first, p.N), p.N - column, [&](auto j, auto full) {
            for_rows(rows, [&](auto m, int64_t row) {
                product_tile<decltype(m)::value, decltype(j)::value, decltype(full)::value>(
                    p, start, a + row * stride, stride, weights, to + row * p.N, column);
            });
        });
    }
}

template <int O, int J, bool FULL>
inline void outer_tile(int64_t rows, int64_t stride, const float* g, const float* x,
                       int64_t x_stride, int64_t N, int64_t column, float* to) {
    vec sums[O][J];
    for (int o = 0; o < O; o++)
        for (int j = 0; j < J; j++) sums[o][j] = part<FULL>(to + o * N, column + j * WIDTH, N);
    for (int64_t m = 0; m < rows; m++) {
        vec v[J];
        for (int j = 0; j < J; j++) v[j] = part<FULL>(x + m * x_stride, column + j * WIDTH, N);
#pragma GCC unroll 6
        for (int o = 0; o < O; o++) {
            const float scale = g[m * stride + o];
            for (int j = 0; j < J; j++) sums[o][j] += scale * v[j];
        }
    }
    for (int o = 0; o < O; o++)
        for (int j = 0; j < J; j++) put<FULL>(to + o * N, column + j * WIDTH, N, sums[o][j]);
}

// to [K, N] += g^T x for g [rows, K], rows `stride` apart, and x [rows, N], rows `x_stride` apart.
inline void outer(int64_t rows, int64_t K, int64_t stride, const float* g, const float* x,
                  int64_t x_stride, int64_t N, float* to) {
    const int64_t panels = panels_of(N);
    for (int64_t first = 0; first < panels; first += group_of(first, N)) {
        const int64_t column = first * WIDTH;
        for_panels(group_of(first, N), N - column, [&](auto j, auto full) {
            for_rows(K, [&](auto o, int64_t k) {
                outer_tile<decltype(o)::value, decltype(j)::value, decltype(full)::value>(
                    rows, stride, g + k, x, x_stride, N, column, to + k * N);
            });
        });
    }
}

// Calls work(i) for i = 0 .. n - 1, shared out among threads.
template <class Work>
inline void in_parallel(int64_t n, int64_t threads, const Work& work) {
    threads = std::min(threads, n);
    const auto share = [&](int64_t thread) {
        for (int64_t i = thread; i < n; i += threads) work(i);
    };
    std::vector<std::thread> others;
    for (int64_t thread = 1; thread < threads; thread++) others.emplace_back(share, thread);
    share(0);
    for (auto& other : others) other.join();
}

}  // namespace
