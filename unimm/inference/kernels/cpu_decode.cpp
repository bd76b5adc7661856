// What a decode step does between its products, on a CPU in float32: norms, rotary positions, keys and values into the cache,
// attention over as many positions as a row has, the gated activation.
//
// Every position is computed by itself and over its own length, so what it gives does not depend on what else is in the step, and
// no mask is made. Scores are made of as many slots at a time as a vector has lanes.
//
// Shapes: P new positions, H heads, G heads of keys that H heads share, S slots of a row, d head width, L layers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

constexpr float HIDDEN = -1e30f;

float sum_of(const Floats& x) {
    float sum = 0;
    for (int i = 0; i < LANES; ++i) sum += x[i];
    return sum;
}

float sum_of_squares(const float* x, long width) {
    Floats sums{};
    long i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Floats part = load<Floats>(x + i);
        sums += part * part;
    }
    float sum = sum_of(sums);
    for (; i < width; ++i) sum += x[i] * x[i];
    return sum;
}

// Lane j of the result is the sum of x[j]'s lanes.
Floats sums_of_each(Floats* x) {
    Ints even, odd;
    for (int i = 0; i < LANES; ++i) {
        even[i] = 2 * i;
        odd[i] = 2 * i + 1;
    }
    for (int count = LANES; count > 1; count /= 2)
        for (int i = 0; i < count / 2; ++i)
            x[i] = __builtin_shuffle(x[2 * i], x[2 * i + 1], even) + __builtin_shuffle(x[2 * i], x[2 * i + 1], odd);
    return x[0];
}

}  // namespace

extern "C" {

// One layer's heads (P, H + 2 G, d) as the product gives them. rows: of each position; null: position p is row p's. bases,
// slots: where each row's keys and values (2, L, G, S, d) lie, and S.
struct Step {
    long num_positions, num_heads, num_key_heads, width, num_layers, layer, num_threads;
    float scale, epsilon;
    const float *heads, *q_weight, *k_weight, *cos, *sin;
    const int64_t *positions, *rows, *bases, *slots;
    float* out;
};

}

namespace {

float* states_of(const Step& s, long row, long is_values, long head) {
    const long number = (is_values * s.num_layers + s.layer) * s.num_key_heads + head;
    return reinterpret_cast<float*>(s.bases[row]) + number * s.slots[row] * s.width;
}

long row_of(const Step& s, long p) { return s.rows ? s.rows[p] : p; }

// RMSNorm, where there is one, and the rotation by a position.
void turn(const Step& s, long p, const float* x, const float* weight, float factor, float* to) {
    const long half = s.width / 2;
    const float *cos = s.cos + p * s.width, *sin = s.sin + p * s.width;
    if (weight) factor /= std::sqrt(sum_of_squares(x, s.width) / s.width + s.epsilon);
    for (long i = 0; i < half; ++i) {
        const float a = factor * x[i] * (weight ? weight[i] : 1.0f), b = factor * x[i + half] * (weight ? weight[i + half] : 1.0f);
        to[i] = a * cos[i] - b * sin[i];
        to[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

// V: vectors that a head is wide; 0: of any width.
template <int V>
void make_scores(const float* q, const float* keys, long width, long length, float* scores) {
    for (long first = 0; first < length; first += LANES) {
        const int count = int(std::min<long>(LANES, length - first));
        Floats found = all(HIDDEN);
        if constexpr (V > 0) {
            Floats parts[LANES] = {};
            for (int j = 0; j < count; ++j) {
                const float* key = keys + (first + j) * width;
                for (int v = 0; v < V; ++v) parts[j] += load<Floats>(q + v * LANES) * load<Floats>(key + v * LANES);
            }
            const Floats sums = sums_of_each(parts);
            for (int j = 0; j < count; ++j) found[j] = sums[j];
        } else {
            for (int j = 0; j < count; ++j) {
                float sum = 0;
                for (long i = 0; i < width; ++i) sum += q[i] * keys[(first + j) * width + i];
                found[j] = sum;
            }
        }
        store(scores + first, found);
    }
}

template <int V>
void mix(const float* weights, const float* values, long width, long length, float factor, float* to) {
    if constexpr (V > 0) {
        Floats sums[V] = {};
        for (long j = 0; j < length; ++j)
            for (int v = 0; v < V; ++v) sums[v] += weights[j] * load<Floats>(values + j * width + v * LANES);
        for (int v = 0; v < V; ++v) store(to + v * LANES, sums[v] * factor);
    } else {
        std::fill(to, to + width, 0.0f);
        for (long j = 0; j < length; ++j)
            for (long i = 0; i < width; ++i) to[i] += weights[j] * values[j * width + i];
        for (long i = 0; i < width; ++i) to[i] *= factor;
    }
}

// The queries of one position that share a head of keys.
template <int V>
void attend_position(const Step& s, long p, long head, std::vector<float>& room) {
    const long row = row_of(s, p), length = s.positions[p] + 1, group = s.num_heads / s.num_key_heads, d = s.width;
    const long padded = (length + LANES - 1) / LANES * LANES;
    room.resize(padded + d);
    float *scores = room.data(), *q = scores + padded;
    const float *keys = states_of(s, row, 0, head), *values = states_of(s, row, 1, head);
    for (long i = head * group; i < (head + 1) * group; ++i) {
        turn(s, p, s.heads + (p * (s.num_heads + 2 * s.num_key_heads) + i) * d, s.q_weight, s.scale * LOG2_E, q);
        make_scores<V>(q, keys, d, length, scores);
        const float most = *std::max_element(scores, scores + length);
        Floats sums{};
        for (long j = 0; j < padded; j += LANES) {
            const Floats power = power_of_two(load<Floats>(scores + j) - most, EXP2_QUINTIC);
            store(scores + j, power);
            sums += power;
        }
        mix<V>(scores, values, d, length, 1.0f / sum_of(sums), s.out + (p * s.num_heads + i) * d);
    }
}

template <int V>
void attend_all(const Step& s) {
    const long num_tasks = s.num_positions * s.num_key_heads;
#pragma omp parallel num_threads(s.num_threads) if (s.num_threads > 1)
    {
        std::vector<float> room;
#pragma omp for schedule(dynamic, 4)
        for (long task = 0; task < num_tasks; ++task)
            attend_position<V>(s, task / s.num_key_heads, task % s.num_key_heads, room);
    }
}

}  // namespace

extern "C" {

// Keys and values of all new positions go into the cache; then every position attends to its row up to itself: out (P, H, d).
void attend(const Step* step) {
    const Step& s = *step;
    for (long p = 0; p < s.num_positions; ++p)
        for (long head = 0; head < s.num_key_heads; ++head) {
            const float* key = s.heads + (p * (s.num_heads + 2 * s.num_key_heads) + s.num_heads + head) * s.width;
            const float* value = key + s.num_key_heads * s.width;
            const long at = s.positions[p] * s.width;
            turn(s, p, key, s.k_weight, 1.0f, states_of(s, row_of(s, p), 0, head) + at);
            std::copy(value, value + s.width, states_of(s, row_of(s, p), 1, head) + at);
        }
    switch (s.width % LANES ? 0 : s.width / LANES) {
        case 1: return attend_all<1>(s);
        case 2: return attend_all<2>(s);
        case 4: return attend_all<4>(s);
        case 6: return attend_all<6>(s);
        case 8: return attend_all<8>(s);
        case 16: return attend_all<16>(s);
        default: return attend_all<0>(s);
    }
}

// x (P, D) += added, where there is something to add; out = RMSNorm(x).
void add_and_norm(float* x, const float* added, const float* weight, float* out, long num_positions, long width, float epsilon) {
    for (long p = 0; p < num_positions; ++p, x += width, out += width) {
        if (added) {
            for (long i = 0; i < width; ++i) x[i] += added[i];
            added += width;
        }
        const float factor = 1.0f / std::sqrt(sum_of_squares(x, width) / width + epsilon);
        for (long i = 0; i < width; ++i) out[i] = x[i] * factor * weight[i];
    }
}

// silu(gate) * up, of (P, 2 F) in which gate and up stand side by side: out (P, F).
void gate(const float* gate_up, float* out, long num_positions, long width) {
    for (long p = 0; p < num_positions; ++p, gate_up += 2 * width, out += width) {
        long i = 0;
        for (; i + LANES <= width; i += LANES) {
            const Floats x = load<Floats>(gate_up + i);
            // Where 2 ** -x would be too large for a float, the result is nothing either way.
            const Floats exponent = -x * LOG2_E;
            const Floats bounded = exponent > 126.0f ? all(126.0f) : exponent;
            store(out + i, x / (1.0f + power_of_two(bounded, EXP2_QUINTIC)) * load<Floats>(gate_up + width + i));
        }
        for (; i < width; ++i) out[i] = gate_up[i] / (1.0f + std::exp(-gate_up[i])) * gate_up[width + i];
    }
}
}
