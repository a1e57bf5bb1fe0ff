// Cross-entropy of features . bank / temperature, and its gradient for the features, from one read
// of the bank: `bank_contrast_loss` of kernels/reid_kernels where each bank row is a class.
#pragma once

#include <cstdint>

namespace fastreid_al {

constexpr int64_t BANK_CONTRAST_MOST_BATCH = 512, BANK_CONTRAST_MOST_WIDTH = 4096;
// Numbers of bank rows, and of tiles past the last, fit int.
constexpr int64_t BANK_CONTRAST_MOST_ROWS = 2'000'000'000;

// A batch of up to 512 features (batch, dim) and a bank (n, dim), both bfloat16 or float16, `dim` a
// multiple of 8 up to 4,096. Rows begin at multiples of their stride, in values, which are
// multiples of 8; addresses are multiples of 16. `targets`: (batch) bank rows, or `ignore_index`.
struct BankContrast {
    const uint16_t* features;
    const uint16_t* bank;
    const int64_t* targets;
    int64_t batch, n, dim, features_stride, bank_stride, ignore_index;
    float scale;  // 1 / temperature
    int float16;
};

// Per part of the bank: maximum, sum of exponentials and logit of the target (parts, batch) each,
// and sums of rows weighted with the exponentials (parts, batch, dim).
struct BankContrastParts {
    int64_t parts;
    float *top, *total, *own, *sums;
};

// (batch) each, and the gradients (batch, dim).
struct BankContrastResults {
    float *losses, *log_sums, *slopes;
};

// Parts into which the bank is split on the current device; 0 where the kernel cannot run.
int64_t bank_contrast_cuda_parts(const BankContrast&);

void bank_contrast_cuda(const BankContrast&, const BankContrastParts&, const BankContrastResults&,
                        void* stream);

}  // namespace fastreid_al
