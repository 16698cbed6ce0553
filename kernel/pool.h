// A thread pool, for callers that do not have one.
#pragma once

namespace xentx {

// The number of processors that this process may use. XENTX_NUM_THREADS overrides it.
int default_threads();

// Calls body(state, i) for i = 0 in this thread, and for up to threads - 1 further i in others.
// Returns when all calls have returned. If another caller uses the pool, fewer calls are made.
// Therefore each call must process work until none is left.
void parallel(int threads, void (*body)(void* state, int i), void* state);

}  // namespace xentx
