#define XENTX_AVX2
#include "rows.h"

namespace xentx {
const Engine avx2{"avx2", rows_in_batch, scratch_bytes, compute_batch, mass_of_row, convert_numbers};
}  // namespace xentx
