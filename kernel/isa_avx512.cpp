#define XENTX_AVX512
#include "rows.h"

namespace xentx {
const Engine avx512{"avx512", rows_in_batch, scratch_bytes, compute_batch, mass_of_row, convert_numbers};
}  // namespace xentx
