#include "transpose.h"

// Transpose 16 x 16 numbers of 32 bits: pairs of rows, then of pairs, then of quarters of registers.
static void transpose16(__m512i *r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

void ds_group_keys(const bf16 *rows, int64_t num_tokens, int64_t dim, bf16 *keys) {
    for (int64_t d = 0; d < dim; d += 32) {
        const __mmask16 pairs = first_lanes((dim - d) / 2);
        __m512i block[16];
        for (int64_t t = 0; t < 16; t++)
            block[t] = _mm512_maskz_loadu_epi32(t < num_tokens ? pairs : 0, rows + t * dim + d);
        transpose16(block);
        for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(keys + (d / 2 + i) * 32, block[i]);
    }
}

void ds_group_values(const bf16 *rows, int64_t num_tokens, int64_t dim, int64_t width, bf16 *values) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                                21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t p = 0; p < 8; p++) {
        const bf16 *first = rows + 2 * p * dim, *second = first + dim;
        const __mmask16 has_first = 2 * p < num_tokens ? 0xffff : 0, has_second = 2 * p + 1 < num_tokens ? 0xffff : 0;
        for (int64_t d = 0; d < width; d += 16) {
            __m512i both = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(has_first, first + d));
            both = _mm512_inserti64x4(both, _mm256_maskz_loadu_epi16(has_second, second + d), 1);
            _mm512_storeu_si512(values + (p * width + d) * 2, _mm512_permutexvar_epi16(interleave, both));
        }
    }
}
