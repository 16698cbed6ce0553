// A few threads that wait for work, for callers that have no pool of their own to lend.
#pragma once

namespace xentx {

// How many processors this process may use; XENTX_NUM_THREADS says otherwise.
int default_threads();

// Calls body(state, i) for i = 0, in this thread, and for up to threads - 1 further i in others, and
// returns when all have returned. Fewer are called where the pool is taken by another caller, so
// that a body must take whatever work is left.
void parallel(int threads, void (*body)(void* state, int i), void* state);

}  // namespace xentx
