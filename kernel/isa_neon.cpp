#define XENTX_NEON
#include "rows.h"

namespace xentx {
const Engine neon{"neon", rows_in_batch, scratch_bytes, compute_batch, mass_of_row, convert_numbers};
}  // namespace xentx
