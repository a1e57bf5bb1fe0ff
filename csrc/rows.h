// Arithmetic on rows of features.
#pragma once

#include <cstdint>

namespace fastreid_al {

// The dot product of two rows, summed in double in a fixed order of 16 lanes and then rounded to the rows' own type: products of
// floats are exact in double, so every machine and every order of summation gives the same float but for rare ties of rounding.
float dot(const float* a, const float* b, int64_t width);
double dot(const double* a, const double* b, int64_t width);

}  // namespace fastreid_al
