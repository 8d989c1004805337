#include "pool.h"

#include <chrono>

namespace qslm {
namespace {

constexpr auto kPatience = std::chrono::microseconds(10); /* longer than the parts of a step that one thread does */

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/* Wait for a condition, looking all the time; false after the patience is at its end. */
template <typename Condition> bool look_for(const Condition &condition) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    do {
        for (int i = 0; i < 16; ++i) {
            if (condition()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return condition();
}

} // namespace

Pool::Pool(int threads) {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) worker.join();
}

bool Pool::idle() const {
    const uint64_t ticket = ticket_.load();
    return uint32_t(ticket) >= ticket >> 32;
}

bool Pool::take(int thread) {
    uint64_t ticket = ticket_.load();
    do {
        if (uint32_t(ticket) >= ticket >> 32) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket + 1));
    /* the loop cannot end before this step is done, so what describes it stays */
    call_(context_, int(uint32_t(ticket)), thread);
    done_.fetch_add(1);
    return true;
}

void Pool::run(int steps, Call call, const void *context) {
    call_ = call;
    context_ = context;
    done_ = 0;
    ticket_ = uint64_t(steps) << 32;
    if (sleepers_ > 0) {
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    while (take(0)) {
    }
    const auto finished = [&] { return done_.load() == steps; };
    while (!look_for(finished)) std::this_thread::yield();
}

void Pool::work(int thread) {
    while (!stop_) {
        if (take(thread)) continue;
        if (look_for([this] { return !idle() || stop_; })) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        ++sleepers_;
        wake_.wait(lock, [this] { return !idle() || stop_; });
        --sleepers_;
    }
}

} // namespace qslm
