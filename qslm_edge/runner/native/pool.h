/* A pool of threads for loops whose steps may run in any order.
 *
 * The caller works too, and steps are taken one by one: a thread whose core is busy with something else takes none,
 * and nobody waits for it; only for one that is stopped amid a step. Threads without work look for some for a few microseconds, then sleep.
 */
#ifndef QSLM_POOL_H
#define QSLM_POOL_H

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace qslm {

class Pool {
  public:
    /* `threads` compute, the caller among them. Throws std::system_error if they cannot be started. */
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const { return int(workers_.size()) + 1; }

    /* body(step, thread) for step 0 ... steps - 1; returns when all are done. */
    template <typename Body> void run(int steps, const Body &body) {
        if (workers_.empty() || steps == 1) {
            for (int step = 0; step < steps; ++step) body(step, 0);
            return;
        }
        run(steps, [](const void *context, int step, int thread) { (*static_cast<const Body *>(context))(step, thread); },
            &body);
    }

  private:
    typedef void (*Call)(const void *context, int step, int thread);

    void run(int steps, Call call, const void *context);
    void work(int thread);
    bool take(int thread);
    bool idle() const;

    std::vector<std::thread> workers_;
    /* Number of steps in the high half, next step in the low half: one word, so that taking a step is one exchange and
     * always belongs to the loop that is running. */
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int> done_{0};
    Call call_ = nullptr;
    const void *context_ = nullptr;
    std::atomic<int> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

} // namespace qslm
#endif
