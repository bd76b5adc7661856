// What lies between two integer convolutions of an image tokenizer, in two passes over the map: numbers of each channel, of which
// its norm and the range of what follows are made; then norm, swish and levels at once.
//
// Maps are channels-last: x (P, C), P positions, C channels, a multiple of LANES.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

// Positions whose sums are added up in single precision.
constexpr long RUN = 256;

struct Float32 {
    using Element = float;
    static Floats read(const Element* from) { return load<Floats>(from); }
};

struct BFloat16 {
    using Element = uint16_t;
    static Floats read(const Element* from) {
        using Halves = uint16_t __attribute__((vector_size(BYTES / 2)));
        return as<Floats>(__builtin_convertvector(load<Halves>(from), Words) << 16);
    }
};

inline Floats lesser(Floats a, Floats b) { return a < b ? a : b; }

// least, largest (C,); sum, squares (C,) in double precision.
template <class T>
void measure(const typename T::Element* x, long num_positions, long num_channels, float* least, float* largest, double* sum,
             double* squares) {
    std::fill_n(least, num_channels, INFINITY);
    std::fill_n(largest, num_channels, -INFINITY);
    std::fill_n(sum, num_channels, 0.0);
    std::fill_n(squares, num_channels, 0.0);
    const long num_runs = (num_positions + RUN - 1) / RUN, num_strips = num_channels / LANES;
    // By strips of channels a thread would read a few bytes of each row; by runs of rows the order of sums must not depend on
    // the number of threads: each run's are kept, and added up in their order.
    std::vector<float> numbers(num_runs * num_channels * 4);
#pragma omp parallel for schedule(static)
    for (long run = 0; run < num_runs; ++run) {
        const long begin = run * RUN, end = std::min(num_positions, begin + RUN);
        for (long strip = 0; strip < num_strips; ++strip) {
            Floats low = all(INFINITY), high = all(-INFINITY), total = {}, square = {};
            for (long i = begin; i < end; ++i) {
                const Floats value = T::read(x + i * num_channels + strip * LANES);
                low = lesser(value, low);
                high = -lesser(-value, -high);
                total += value;
                square += value * value;
            }
            float* to = numbers.data() + (run * num_strips + strip) * 4 * LANES;
            store(to, low), store(to + LANES, high), store(to + 2 * LANES, total), store(to + 3 * LANES, square);
        }
    }
    for (long run = 0; run < num_runs; ++run)
        for (long channel = 0; channel < num_channels; ++channel) {
            const float* from = numbers.data() + (run * num_strips + channel / LANES) * 4 * LANES + channel % LANES;
            least[channel] = std::min(least[channel], from[0]);
            largest[channel] = std::max(largest[channel], from[LANES]);
            sum[channel] += from[2 * LANES];
            squares[channel] += from[3 * LANES];
        }
}

// levels (P, C): swish(x * factor + offset) / step + zero, rounded; in [0, 255].
template <class T>
void level(const typename T::Element* x, long num_positions, long num_channels, const float* factor, const float* offset,
           float step, float zero, uint8_t* levels) {
    using Bytes = uint8_t __attribute__((vector_size(LANES)));
    const float per_step = 1.0f / step;
#pragma omp parallel for schedule(static)
    for (long i = 0; i < num_positions; ++i)
        for (long channel = 0; channel < num_channels; channel += LANES) {
            const Floats value = T::read(x + i * num_channels + channel);
            const Floats normed = value * load<Floats>(factor + channel) + load<Floats>(offset + channel);
            const Floats others = power_of_two(lesser(normed * -LOG2_E, all(126.0f)), EXP2_CUBIC);
            const Floats place = normed * per_step / (1.0f + others) + zero;
            const Floats bounded = lesser(-lesser(-place, Floats{}), all(255.0f));
            // A whole number's bits, of which the lowest are kept.
            store(levels + i * num_channels + channel, __builtin_convertvector(as<Words>(bounded + NO_FRACTION) & 0xffu, Bytes));
        }
}

}  // namespace

extern "C" {

void measure_channels(const void* x, bool is_bfloat16, long num_positions, long num_channels, float* least, float* largest,
                      double* sum, double* squares) {
    const auto halves = static_cast<const uint16_t*>(x);
    if (is_bfloat16) return measure<BFloat16>(halves, num_positions, num_channels, least, largest, sum, squares);
    measure<Float32>(static_cast<const float*>(x), num_positions, num_channels, least, largest, sum, squares);
}

void swish_to_levels(const void* x, bool is_bfloat16, long num_positions, long num_channels, const float* factor,
                     const float* offset, float step, float zero, uint8_t* levels) {
    const auto halves = static_cast<const uint16_t*>(x);
    if (is_bfloat16) return level<BFloat16>(halves, num_positions, num_channels, factor, offset, step, zero, levels);
    level<Float32>(static_cast<const float*>(x), num_positions, num_channels, factor, offset, step, zero, levels);
}
}
