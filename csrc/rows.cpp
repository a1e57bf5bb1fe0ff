#include "rows.h"

#include "clones.h"

namespace fastreid_al {

namespace {

constexpr int kLanes = 16;

double fold(const double* lanes) {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
}

}  // namespace

FASTREID_AL_CLONES float dot(const float* a, const float* b, int64_t width) {
    double lanes[kLanes] = {};
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes)
        for (int lane = 0; lane < kLanes; ++lane)
            lanes[lane] += static_cast<double>(a[d + lane]) * static_cast<double>(b[d + lane]);
    for (int lane = 0; d < width; ++d, ++lane)
        lanes[lane] += static_cast<double>(a[d]) * static_cast<double>(b[d]);
    return static_cast<float>(fold(lanes));
}

FASTREID_AL_CLONES double dot(const double* a, const double* b, int64_t width) {
    double lanes[kLanes] = {};
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += a[d + lane] * b[d + lane];
    for (int lane = 0; d < width; ++d, ++lane) lanes[lane] += a[d] * b[d];
    return fold(lanes);
}

}  // namespace fastreid_al
