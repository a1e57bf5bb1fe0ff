// The loops of parallel.h: every range runs once, scratch belongs to one thread, exceptions are
// rethrown, and there are no races.

#include "parallel.h"

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

using namespace fastreid_al;

namespace {

bool every_range_once(int threads, int64_t count, int64_t grain) {
    std::vector<int> touched(count);
    parallel_for(threads, count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            touched[i] += 1 + (end - begin > std::max<int64_t>(1, grain));
    });
    return touched == std::vector<int>(count, 1);
}

bool scratch_is_of_one_thread(int threads, int64_t count) {
    std::vector<int64_t> sums(count);
    std::atomic<int> made{0};
    parallel_for(
        threads, count, 3,
        [&] {
            ++made;
            return std::vector<int64_t>();
        },
        [&](std::vector<int64_t>& scratch, int64_t begin, int64_t end) {
            scratch.assign(100, begin);
            for (int64_t i = begin; i < end; ++i)
                for (int64_t x : scratch) sums[i] += x;
        });
    for (int64_t i = 0; i < count; ++i)
        if (sums[i] != i / 3 * 3 * 100) return false;
    return made <= std::max(1, threads);
}

bool throws_again(int threads) {
    try {
        parallel_for(threads, 1000, 1, [&](int64_t begin, int64_t) {
            if (begin == 500) throw std::runtime_error("row 500");
        });
    } catch (const std::runtime_error& error) {
        return std::string(error.what()) == "row 500";
    }
    return false;
}

}  // namespace

int main() {
    for (int threads : {0, 1, 2, 5, 16}) {
        for (int64_t count : {0, 1, 7, 1000})
            for (int64_t grain : {0, 1, 3, 5000})
                if (!every_range_once(threads, count, grain))
                    return std::printf("ranges: %d threads\n", threads) > 0;
        if (!scratch_is_of_one_thread(threads, 500))
            return std::printf("scratch: %d threads\n", threads) > 0;
        if (!throws_again(threads)) return std::printf("exception: %d threads\n", threads) > 0;
    }
}
