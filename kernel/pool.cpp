#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace xentx {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Long enough for the time between two calls of a training step with small problems, and short
// enough that an idle program uses no processor.
constexpr int kSpins = 2000;

class Pool {
  public:
    void run(int threads, void (*body)(void*, int), void* state) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn) return body(state, 0);
        for (; workers_ < threads - 1; workers_++)
            std::thread(&Pool::work, this, workers_ + 1, round_.load()).detach();
        body_ = body;
        state_ = state;
        wanted_ = threads;
        running_ = workers_;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            round_++;
        }
        if (sleeping_ > 0) wake_.notify_all();
        body(state, 0);
        for (int spins = 0; running_ > 0; spins++)
            if (spins < kSpins) pause();
            else std::this_thread::yield();
    }

  private:
    void work(int number, unsigned seen) {
        for (;;) {
            for (int spins = 0; round_ == seen; spins++) {
                pause();
                if (spins < kSpins) continue;
                std::unique_lock<std::mutex> lock(mutex_);
                sleeping_++;
                wake_.wait(lock, [&] { return round_ != seen; });
                sleeping_--;
            }
            seen = round_;
            if (number < wanted_) body_(state_, number);
            running_--;
        }
    }

    std::mutex turn_, mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> round_{0};
    std::atomic<int> running_{0}, sleeping_{0};
    int workers_ = 0, wanted_ = 0;
    void (*body_)(void*, int) = nullptr;
    void* state_ = nullptr;
};

// Never deleted: at exit its threads sleep, and end with the process. A forked child does not have
// these threads, so it makes a new pool.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
    Pool* found = pool;
    if (found) return *found;
    Pool* made = new Pool;
    if (pool.compare_exchange_strong(found, made)) {
#if !defined(_WIN32)
        static std::once_flag once;
        std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { pool = nullptr; }); });
#endif
        return *made;
    }
    delete made;
    return *found;
}

}  // namespace

int default_threads() {
    static const int count = [] {
        if (const char* text = std::getenv("XENTX_NUM_THREADS"))
            if (int asked = std::atoi(text); asked > 0) return asked;
#if defined(__linux__)
        cpu_set_t set;
        if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
        int all = int(std::thread::hardware_concurrency());
        return all > 0 ? all : 1;
    }();
    return count;
}

void parallel(int threads, void (*body)(void*, int), void* state) {
    if (threads <= 1) return body(state, 0);
    the_pool().run(threads, body, state);
}

}  // namespace xentx
