#include "rows.h"

namespace xentx {
const Engine baseline{"baseline", rows_in_batch, scratch_bytes, compute_batch, mass_of_row, convert_numbers};
}  // namespace xentx
