// Vectors of the compiler's own, as long as the processor has them, and what it has in one instruction.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 4;
constexpr float LOG2_E = 1.44269504f;
// 1.5 * 2 ** 23: what is added to it keeps no fraction, and stands in its lowest bits.
constexpr float NO_FRACTION = 12582912.0f;

using Word = uint32_t;
using Floats = float __attribute__((vector_size(BYTES)));
using Ints = int32_t __attribute__((vector_size(BYTES)));
using Words = Word __attribute__((vector_size(BYTES)));

template <class To, class From>
inline To as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class Vector>
inline Vector load(const void* from) {
    Vector to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

template <class Vector>
inline void store(void* to, const Vector& from) {
    std::memcpy(to, &from, sizeof from);
}

inline Floats all(float x) { return x - Floats{}; }

// 2 ** x for x < 127, by the polynomial of its fraction that has the least relative error, highest power first; 0 for very small
// x, NaN for NaN.
template <size_t N>
inline Floats power_of_two(Floats x, const float (&factors)[N]) {
#ifdef __AVX512F__
    const Floats whole = as<Floats>(_mm512_roundscale_ps(as<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    const Floats shifted = x + NO_FRACTION;
    const Floats whole = shifted - NO_FRACTION;
#endif
    const Floats fraction = x - whole;
    Floats power = all(factors[0]);
    for (size_t i = 1; i < N; ++i) power = power * fraction + factors[i];
#ifdef __AVX512F__
    return as<Floats>(_mm512_scalef_ps(as<__m512>(power), as<__m512>(whole)));
#else
    const Floats scaled = as<Floats>(as<Words>(power) + (as<Words>(shifted) << 23));
    return x < -126.0f ? Floats{} : x == x ? scaled : x;
#endif
}

constexpr float EXP2_CUBIC[] = {5.5171665e-2f, 2.4261113e-1f, 6.9326097e-1f, 9.9992806e-1f};  // to 7e-5
constexpr float EXP2_QUINTIC[] = {1.3276471e-3f, 9.675541e-3f, 5.550713e-2f, 2.4022120e-1f, 6.9314694e-1f, 1.0000001f};  // to 7e-8

// bfloat16 in the lower halves of words; to the nearest, ties to even.
inline Words to_bfloat16(Floats x) {
#ifdef __AVX512BF16__
    return as<Words>(_mm512_cvtepu16_epi32(as<__m256i>(_mm512_cvtneps_pbh(as<__m512>(x)))));
#else
    const Words word = as<Words>(x);
    return (x == x ? word + 0x7fffu + (word >> 16 & 1u) : word | 0x400000u) >> 16;
#endif
}

}  // namespace
