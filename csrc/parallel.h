// Loops over threads: OpenMP, or std::thread with FASTREID_AL_STD_THREADS, so that ThreadSanitizer
// sees every synchronisation.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#ifdef FASTREID_AL_STD_THREADS
#include <thread>
#else
#include <omp.h>
#endif

namespace fastreid_al {

// Call work(thread, threads) on every thread; rethrow the first exception.
template <class Work>
void on_threads(int threads, Work&& work) {
    threads = std::max(1, threads);
    if (threads == 1) {
        work(0, 1);
        return;
    }
    std::exception_ptr failure;
    std::mutex guard;
    auto guarded = [&](int thread, int count) {
        try {
            work(thread, count);
        } catch (...) {
            std::lock_guard<std::mutex> lock(guard);
            if (!failure) failure = std::current_exception();
        }
    };
#ifdef FASTREID_AL_STD_THREADS
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(guarded, t, threads);
    guarded(0, threads);
    for (auto& other : others) other.join();
#else
#pragma omp parallel num_threads(threads)
    guarded(omp_get_thread_num(), omp_get_num_threads());
#endif
    if (failure) std::rethrow_exception(failure);
}

// Call work(begin, end) for ranges of [0, count) of at most `grain` each; a thread that is done
// takes the next range. The result of a range must not depend on its thread.
template <class Work>
void parallel_for(int threads, int64_t count, int64_t grain, Work&& work) {
    if (count <= 0) return;
    grain = std::max<int64_t>(1, grain);
    const int64_t ranges = (count + grain - 1) / grain;
    std::atomic<int64_t> next{0};
    on_threads(static_cast<int>(std::min<int64_t>(threads, ranges)), [&](int, int) {
        for (int64_t r; (r = next.fetch_add(1, std::memory_order_relaxed)) < ranges;)
            work(r * grain, std::min(count, (r + 1) * grain));
    });
}

// The same with one scratch object per thread, made by make(): calls work(scratch, begin, end).
template <class Make, class Work>
void parallel_for(int threads, int64_t count, int64_t grain, Make&& make, Work&& work) {
    if (count <= 0) return;
    grain = std::max<int64_t>(1, grain);
    const int64_t ranges = (count + grain - 1) / grain;
    std::atomic<int64_t> next{0};
    on_threads(static_cast<int>(std::min<int64_t>(threads, ranges)), [&](int, int) {
        auto scratch = make();
        for (int64_t r; (r = next.fetch_add(1, std::memory_order_relaxed)) < ranges;)
            work(scratch, r * grain, std::min(count, (r + 1) * grain));
    });
}

}  // namespace fastreid_al
