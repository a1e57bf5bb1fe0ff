// Arithmetic on rows of features.
#pragma once

#include <cstdint>

namespace fastreid_al {

// The dot product of two rows, summed in double in a fixed order of 16 lanes, then rounded to the
// type of the rows. Products of floats are exact in double, so other machines and other orders of
// summation give the same float, except in rare cases near a rounding boundary.
float dot(const float* a, const float* b, int64_t width);
double dot(const double* a, const double* b, int64_t width);

}  // namespace fastreid_al
