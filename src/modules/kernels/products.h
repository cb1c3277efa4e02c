// What the kernels share: vectors, aligned memory, and products whose sums stay in registers.
//
// A product works on ROWS rows and up to PANELS panels of WIDTH columns at once. Vectors are GCC's
// and Clang's vector extension: the compiler chooses the instructions of the machine that it runs
// on.
//
// A product is computed in float32, or with operands rounded to bfloat16 whose products are summed
// in float32 (HALF). Two bfloat16 numbers that are multiplied one after the other lie in the place
// of one float, a pair, so that both have the same loops.

#pragma once

#include <cstdint>
#include <cstring>
#include <algorithm>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAS_BFLOAT16 1
#else
#define HAS_BFLOAT16 0
#endif

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

// The first n entries, WIDTH at most; the others are zero, or left alone. Instructions with a mask
// for what does not fill a vector: a call of memcpy would empty all registers. Not for full ones:
// what is stored with a mask and read soon has to wait until it has reached the cache.
#if defined(__AVX512F__)
inline __mmask16 first_of(int64_t n) {
    return n >= WIDTH ? 0xffff : (1 << n) - 1;
}
inline vec load(const float* p, int64_t n) {
    return (vec)_mm512_maskz_loadu_ps(first_of(n), p);
}
inline void store(float* p, vec v, int64_t n) {
    if (n >= WIDTH)
        store(p, v);
    else
        _mm512_mask_storeu_ps(p, first_of(n), (__m512)v);
}
#elif defined(__AVX2__)
inline __m256i first_of(int64_t n) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(std::min<int64_t>(n, WIDTH))), places);
}
inline vec load(const float* p, int64_t n) {
    return (vec)_mm256_maskload_ps(p, first_of(n));
}
inline void store(float* p, vec v, int64_t n) {
    if (n >= WIDTH)
        store(p, v);
    else
        _mm256_maskstore_ps(p, first_of(n), (__m256)v);
}
#else
inline vec load(const float* p, int64_t n) {
    vec v{};
    std::memcpy(&v, p, std::min<int64_t>(n, WIDTH) * sizeof(float));
    return v;
}
inline void store(float* p, vec v, int64_t n) {
    std::memcpy(p, &v, std::min<int64_t>(n, WIDTH) * sizeof(float));
}
#endif

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

// --- bfloat16 ---

// How many floats K entries of an operand take: entries, or pairs of them.
inline int64_t places(int64_t K, bool half) {
    return half ? (K + 1) / 2 : K;
}

// sum + a w, for a the same number (or pair) in all columns.
template <bool HALF>
inline vec multiply_add(vec sum, float a, vec w) {
#if HAS_BFLOAT16
    if (HALF)
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_ps(a));
#endif
    return sum + a * w;
}

// Pairs of a number of `low` and the one of `high` in the same place.
inline vec paired(vec low, vec high) {
#if HAS_BFLOAT16
    const auto bits = [](vec v) {
        return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
    };
    return (vec)_mm512_or_si512(bits(low), _mm512_slli_epi32(bits(high), 16));
#else
    return low + high;  // never called: see `takes_bfloat16`
#endif
}

// 2 WIDTH numbers in a row, as pairs of neighbours.
inline vec neighbours(vec first, vec second) {
#if HAS_BFLOAT16
    return (vec)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
    return first + second;
#endif
}

// [rows, K], rows `stride` apart -> pairs of neighbours in a row [rows, (K + 1) / 2].
inline void pair_columns(int64_t rows, int64_t K, const float* from, int64_t stride, float* to) {
    for (int64_t m = 0; m < rows; m++, from += stride, to += places(K, true))
        for (int64_t k = 0; k < K; k += 2 * WIDTH) {
            const int64_t n = K - k;
            const vec second = n > WIDTH ? load(from + k + WIDTH, n - WIDTH) : vec{};
            store(to + k / 2, neighbours(load(from + k, n), second), (n + 1) / 2);
        }
}

// [rows, K], rows `stride` apart -> pairs of a row and the next one [(rows + 1) / 2, K].
inline void pair_rows(int64_t rows, int64_t K, const float* from, int64_t stride, float* to) {
    for (int64_t m = 0; m < rows; m += 2, from += 2 * stride, to += K)
        for (int64_t k = 0; k < K; k += WIDTH) {
            const vec next = m + 1 < rows ? load(from + stride + k, K - k) : vec{};
            store(to + k, paired(load(from + k, K - k), next), K - k);
        }
}

// Memory of this thread for `n` floats, until it is asked for again under the same number.
inline float* scratch(int which, int64_t n) {
    thread_local std::vector<float> memory[2];
    if (int64_t(memory[which].size()) < n) memory[which].resize(n);
    return memory[which].data();
}

// Numbers, or as pairs with the following one, `entry(k)` for k < K.
template <class Entry>
inline void pack_row(int64_t K, int64_t k, bool half, int n, const Entry& entry, float* to) {
    const auto column = [&](int64_t at) {
        vec v{};
        for (int c = 0; c < n && at < K; c++) v[c] = entry(at, c);
        return v;
    };
    store(to, half ? paired(column(2 * k), column(2 * k + 1)) : column(k));
}

// --- Products ---

// How many panels of N columns are worked on together from panel `first` on: up to PANELS full
// ones; a last one that the columns do not fill stands alone.
inline int64_t group_of(int64_t first, int64_t N) {
    const int64_t full = N / WIDTH;
    return first < full ? std::min<int64_t>(PANELS, full - first) : 1;
}

// Packs a matrix [K, N], entry (k, n) from `entry`, as groups of panels [group][k][panel][WIDTH].
template <class Entry>
void pack(int64_t K, int64_t N, bool half, const Entry& entry, float* to) {
    const int64_t panels = panels_of(N);
    for (int64_t first = 0; first < panels; first += group_of(first, N))
        for (int64_t k = 0; k < places(K, half); k++)
            for (int64_t j = first; j < first + group_of(first, N); j++, to += WIDTH)
                pack_row(
                    K, k, half, std::min<int64_t>(WIDTH, N - j * WIDTH),
                    [&](int64_t at, int c) { return entry(at, j * WIDTH + c); }, to);
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
    bool half;  // packed as pairs
};

template <bool HALF, int M, int J, bool FULL>
inline void product_tile(const Product& p, Start start, const float* a, int64_t stride,
                         const float* weights, float* to, int64_t column) {
    vec sums[M][J];
    // All loops are unrolled, or the sums would not stay in registers.
#pragma GCC unroll 6
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) {
            const int64_t n = column + j * WIDTH;
            sums[m][j] = start == Start::zero    ? vec{}
                         : start == Start::there ? part<FULL>(to + m * p.N, n, p.N)
                                                 : part<FULL>(p.bias, n, p.N);
        }
    for (int64_t k = 0; k < places(p.K, HALF); k++, weights += J * WIDTH) {
        vec w[J];
        for (int j = 0; j < J; j++) w[j] = load(weights + j * WIDTH);
#pragma GCC unroll 6
        for (int m = 0; m < M; m++) {
            const float v = a[m * stride + k];
            for (int j = 0; j < J; j++) sums[m][j] = multiply_add<HALF>(sums[m][j], v, w[j]);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) {
            const vec sum = sums[m][j];
            // Comparing so that NaN stays NaN.
            put<FULL>(to + m * p.N, column + j * WIDTH, p.N,
                      p.rectify ? (sum < 0.0f ? p.slope * sum : sum) : sum);
        }
}

template <bool HALF>
inline void multiply(const Product& p, Start start, int64_t rows, const float* a, int64_t stride,
                     float* to) {
    const int64_t panels = panels_of(p.N);
    for (int64_t first = 0; first < panels; first += group_of(first, p.N)) {
        const float* weights = p.packed + first * places(p.K, HALF) * WIDTH;
        const int64_t column = first * WIDTH;
        for_panels(group_of(first, p.N), p.N - column, [&](auto j, auto full) {
            for_rows(rows, [&](auto m, int64_t row) {
                product_tile<HALF, decltype(m)::value, decltype(j)::value, decltype(full)::value>(
                    p, start, a + row * stride, stride, weights, to + row * p.N, column);
            });
        });
    }
}

// to [rows, N] = or += a [rows, K], rows `stride` apart, times a packed matrix [K, N].
inline void product(const Product& p, Start start, int64_t rows, const float* a, int64_t stride,
                    float* to) {
    if (!p.half) return multiply<false>(p, start, rows, a, stride, to);
    const int64_t width = places(p.K, true);
    float* pairs = scratch(0, rows * width);
    pair_columns(rows, p.K, a, stride, pairs);
    multiply<true>(p, start, rows, pairs, width, to);
}

template <bool HALF, int O, int J, bool FULL>
inline void outer_tile(int64_t rows, int64_t stride, const float* g, const float* x,
                       int64_t x_stride, int64_t N, int64_t column, float* to) {
    vec sums[O][J];
#pragma GCC unroll 6
    for (int o = 0; o < O; o++)
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) sums[o][j] = part<FULL>(to + o * N, column + j * WIDTH, N);
    for (int64_t m = 0; m < rows; m++) {
        vec v[J];
        for (int j = 0; j < J; j++) v[j] = part<FULL>(x + m * x_stride, column + j * WIDTH, N);
#pragma GCC unroll 6
        for (int o = 0; o < O; o++) {
            const float scale = g[m * stride + o];
            for (int j = 0; j < J; j++) sums[o][j] = multiply_add<HALF>(sums[o][j], scale, v[j]);
        }
    }
#pragma GCC unroll 6
    for (int o = 0; o < O; o++)
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) put<FULL>(to + o * N, column + j * WIDTH, N, sums[o][j]);
}

template <bool HALF>
inline void add_outer(int64_t rows, int64_t K, int64_t stride, const float* g, const float* x,
                      int64_t x_stride, int64_t N, float* to) {
    const int64_t panels = panels_of(N);
    for (int64_t first = 0; first < panels; first += group_of(first, N)) {
        const int64_t column = first * WIDTH;
        for_panels(group_of(first, N), N - column, [&](auto j, auto full) {
            for_rows(K, [&](auto o, int64_t k) {
                outer_tile<HALF, decltype(o)::value, decltype(j)::value, decltype(full)::value>(
                    rows, stride, g + k, x, x_stride, N, column, to + k * N);
            });
        });
    }
}

// to [K, N] += g^T x for g [rows, K], rows `stride` apart, and x [rows, N], rows `x_stride` apart.
inline void outer(bool half, int64_t rows, int64_t K, int64_t stride, const float* g,
                  const float* x, int64_t x_stride, int64_t N, float* to) {
    if (!half) return add_outer<false>(rows, K, stride, g, x, x_stride, N, to);
    const int64_t pairs = places(rows, true);
    float *g_pairs = scratch(0, pairs * K), *x_pairs = scratch(1, pairs * N);
    pair_rows(rows, K, g, stride, g_pairs);
    pair_rows(rows, N, x, x_stride, x_pairs);
    add_outer<true>(pairs, K, K, g_pairs, x_pairs, N, N, to);
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
