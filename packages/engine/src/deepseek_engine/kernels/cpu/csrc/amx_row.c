// One row's bf16 products by vector instructions, which read memory faster than the tile unit does, in the tile unit's
// order of addition: over each 32 inputs the even ones and the odd ones in turn, each into a sum that began at 0, then
// the two together, then that to what was before. So the bits are those of the row among others.
#include "amx.h"

#define STEP 32
#define FLUSH_SUBNORMALS 0x8040 // FTZ and DAZ, as the tile unit does

#define DEFINE_ROW(PANELS)                                                                                             \
    static void row_##PANELS(const bf16 *row, int64_t size, const bf16 *weights, float *sums) {                        \
        const __m512i high_half = _mm512_set1_epi32((int)0xffff0000);                                                  \
        const int64_t panel = size * DS_AMX_OUTPUTS;                                                                   \
        __m512 total[2 * PANELS];                                                                                      \
        for (int n = 0; n < 2 * PANELS; n++) total[n] = _mm512_setzero_ps();                                           \
        for (int64_t first = 0; first < size; first += STEP) {                                                         \
            const int64_t end = first + STEP < size ? first + STEP : size;                                             \
            __m512 even[2 * PANELS], odd[2 * PANELS];                                                                  \
            for (int n = 0; n < 2 * PANELS; n++) even[n] = odd[n] = _mm512_setzero_ps();                               \
            for (int64_t k = first; k < end; k += 2) {                                                                 \
                int32_t pair;                                                                                          \
                memcpy(&pair, row + k, 4);                                                                             \
                const __m512i x = _mm512_set1_epi32(pair);                                                             \
                const __m512 x_even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));                                   \
                const __m512 x_odd = _mm512_castsi512_ps(_mm512_and_si512(x, high_half));                              \
                for (int n = 0; n < 2 * PANELS; n++) {                                                                 \
                    const bf16 *source = weights + (n / 2) * panel + k * DS_AMX_OUTPUTS + (n % 2) * 32;                \
                    const __m512i w = _mm512_loadu_si512(source);                                                      \
                    even[n] = _mm512_fmadd_ps(x_even, _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)), even[n]);         \
                    odd[n] = _mm512_fmadd_ps(x_odd, _mm512_castsi512_ps(_mm512_and_si512(w, high_half)), odd[n]);      \
                }                                                                                                      \
            }                                                                                                          \
            for (int n = 0; n < 2 * PANELS; n++) total[n] = _mm512_add_ps(total[n], _mm512_add_ps(even[n], odd[n]));   \
        }                                                                                                              \
        for (int n = 0; n < 2 * PANELS; n++) _mm512_storeu_ps(sums + n * 16, total[n]);                                \
    }
DEFINE_ROW(1)
DEFINE_ROW(2)
DEFINE_ROW(3)
DEFINE_ROW(4)

void ds_amx_bf16_row(const bf16 *row, int64_t size, const bf16 *weights, int64_t panels, float *sums) {
    typedef void (*function)(const bf16 *, int64_t, const bf16 *, float *);
    static const function rows[DS_AMX_ROW_PANELS + 1] = {0, row_1, row_2, row_3, row_4};
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_SUBNORMALS);
    rows[panels](row, size, weights, sums);
    _mm_setcsr(before);
}
