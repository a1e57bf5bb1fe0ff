// `bank_contrast_loss` as attention whose keys and values are the rows of the bank. A cluster of 8
// blocks processes a range of rows, tile by tile, for a group of 64 or 128 features. Each block has
// an eighth of the width: it copies its part of a tile to shared memory once, and uses it for both
// products.
//
// A step of a block overlaps three tiles. It computes its part of the logits of tile t + 1 and
// sends each row to the block that owns the row. It adds the parts of the logits of the rows that
// it owns in tile t, in the order of the blocks, and sends their exponentials, below the running
// maximum, to all blocks. It adds the rows of tile t - 1, weighted with their exponentials, to its
// sums. Each step has one barrier of the cluster, at which a block arrives before the last part.
//
// All sums have a fixed order, so results are repeatable for a number of parts.

#include "bank_contrast.h"
#include "cluster.h"

#if defined(FASTREID_AL_EMULATED) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define FASTREID_AL_HAS_CLUSTERS
#endif

namespace fastreid_al {

namespace {

constexpr int BLOCKS = 8, THREADS = 256, WARPS = THREADS / 32;
constexpr int FINISH_THREADS = 128;
constexpr unsigned ALL = 0xffffffffu;

// Features of a group, and the part of the width that a block has.
template <int ROWS_, int WIDTH_>
struct Shape {
    static constexpr int ROWS = ROWS_, WIDTH = WIDTH_;
    // Bank rows of a tile.
    static constexpr int TILE = ROWS == 64 && WIDTH <= 256 ? 64 : 32;
    // Whether the features stay in registers.
    static constexpr bool KEPT = ROWS * WIDTH <= 128 * 128;
    static constexpr int DEPTH = WIDTH / 16;  // steps of the first product
    // Rows whose softmax a block computes, and those of a warp.
    static constexpr int OWN = ROWS / BLOCKS, OWN_OF_WARP = OWN / WARPS;
    // The logits of a warp: BLOCKS_OF_16 times 16 features, COLUMNS bank rows. With more features a
    // warp reads less of a tile; two blocks of a width of 256 do not fit the registers.
    static constexpr int BLOCKS_OF_16 = WIDTH <= 128 ? 2 : 1;
    static constexpr int ROW_WARPS = ROWS / 16 / BLOCKS_OF_16;
    static constexpr int COLUMNS = TILE * ROW_WARPS / WARPS;
    // The weighted sums of a warp: half of the features, a quarter of the width.
    static constexpr int SUM_ROWS = ROWS / 2, SUM_COLUMNS = WIDTH / 4;
    // Floats between the rows of parts of logits: a warp sends 32 bytes of each of 8 rows at a
    // time, which must lie in different banks.
    static constexpr int PITCH = TILE + 8;

    static constexpr size_t STAGE = size_t{2} * TILE * WIDTH;
    static constexpr size_t FEATURES = KEPT ? 0 : size_t{2} * ROWS * WIDTH;
    static constexpr size_t LOGITS = size_t{4} * ROWS * PITCH, WEIGHTS = size_t{2} * ROWS * TILE;
    static constexpr size_t BESIDE = FEATURES + 2 * LOGITS + 3 * WEIGHTS + size_t{12} * ROWS;
    // Tiles in shared memory: three in use, the others on their way. Of the 227 KiB of a block.
    static constexpr int FIT = static_cast<int>((size_t{227} * 1024 - BESIDE) / STAGE);
    static constexpr int STAGES = FIT < 8 ? FIT : 8;
    static constexpr size_t BYTES = BESIDE + STAGES * STAGE;
    static_assert(STAGES >= 4, "three tiles are in use while the next is copied");
};

struct alignas(8) Pair {
    float first, second;
};

// The dynamic shared memory of a block. Tiles, features and weights are rows of 16-bit values in
// the order of `place`.
template <class S>
struct Memory {
    uint16_t *stages, *features, *weights;
    float *logits, *factors;

    __device__ Memory() {
        unsigned char* next = dynamic_shared<unsigned char>();
        stages = reinterpret_cast<uint16_t*>(next);
        next += S::STAGES * S::STAGE;
        features = reinterpret_cast<uint16_t*>(next);
        next += S::FEATURES;
        logits = reinterpret_cast<float*>(next);
        next += 2 * S::LOGITS;
        weights = reinterpret_cast<uint16_t*>(next);
        next += 3 * S::WEIGHTS;
        factors = reinterpret_cast<float*>(next);
    }

    __device__ uint16_t* stage(int tile) const {
        return stages + tile % S::STAGES * (S::TILE * S::WIDTH);
    }

    // The parts of the logits of this block's own rows: (BLOCKS, OWN, PITCH), of which TILE count.
    __device__ float* logits_of(int tile) const {
        return logits + tile % 2 * (S::ROWS * S::PITCH);
    }

    // The exponentials of a tile's logits, (ROWS, TILE), and what the sums before are multiplied
    // with, (ROWS). A block may be one step ahead of one that still reads, hence three of each.
    __device__ uint16_t* weights_of(int tile) const {
        return weights + tile % 3 * (S::ROWS * S::TILE);
    }

    __device__ float* factors_of(int tile) const {
        return factors + tile % 3 * S::ROWS;
    }
};

// What a cluster computes: its group of features, its tiles, and this block's part of the width.
struct Work {
    int part, first_feature, first_bank_row, tiles, rank, first_column;
};

template <class S>
__device__ Work work_of(const BankContrast& a, int64_t parts) {
    const int groups = (static_cast<int>(a.batch) + S::ROWS - 1) / S::ROWS;
    // Clusters of neighbouring numbers read the same rows, so that all but one find them in L2.
    const int cluster = blockIdx.x / BLOCKS, part = cluster / groups, rank = cluster_rank();
    const int64_t tiles = (a.n + S::TILE - 1) / S::TILE;
    const int begin = static_cast<int>(tiles * part / parts);
    const int end = static_cast<int>(tiles * (part + 1) / parts);
    return {part, cluster % groups * S::ROWS, begin * S::TILE, end - begin, rank,
            rank * S::WIDTH};
}

// The place of a value in rows of WIDTH 16-bit values. Pieces of 16 bytes are permuted such that
// the same piece of 8 consecutive rows lies in different banks of shared memory.
template <int WIDTH>
__device__ __forceinline__ int place(int row, int column) {
    const int turn = WIDTH >= 64 ? row % 8 : row / 2 % 4;
    return row * WIDTH + (((column / 8) ^ turn) * 8 + column % 8);
}

// Begin to copy this block's part of a tile; zeros past the end of the bank and of the width.
template <class S>
__device__ __forceinline__ void copy_tile(const BankContrast& a, const Work& work, int tile,
                                          uint16_t* stage) {
    constexpr int PIECES = S::WIDTH / 8;
    const int64_t row = work.first_bank_row + tile * S::TILE;
#pragma unroll
    for (int i = 0; i < S::TILE * PIECES / THREADS; ++i) {
        const int piece = i * THREADS + threadIdx.x, r = piece / PIECES, c = piece % PIECES * 8;
        const int column = work.first_column + c;
        const bool inside = row + r < a.n && column < a.dim;
        const uint16_t* from = inside ? a.bank + (row + r) * a.bank_stride + column : a.bank;
        copy_async(stage + place<S::WIDTH>(r, c), from, inside);
    }
}

// Two neighbouring values of a feature; 0 outside the batch and the width.
__device__ __forceinline__ uint32_t feature_pair(const BankContrast& a, int64_t row,
                                                 int64_t column) {
    if (row >= a.batch || column >= a.dim) return 0;
    return *reinterpret_cast<const uint32_t*>(a.features + row * a.features_stride + column);
}

// The first feature of a group whose logits this warp computes.
template <class S>
__device__ __forceinline__ int first_row_of_warp() {
    return 16 * S::BLOCKS_OF_16 * (threadIdx.x / 32 % S::ROW_WARPS);
}

// The features of a warp as operands of the first product.
template <class S>
__device__ __forceinline__ void keep_features(const BankContrast& a, const Work& work,
                                              uint32_t (&kept)[S::DEPTH][S::BLOCKS_OF_16][4]) {
    const int lane = threadIdx.x % 32;
    const int row = work.first_feature + first_row_of_warp<S>() + lane / 4;
    const int column = work.first_column + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < S::DEPTH; ++k)
#pragma unroll
        for (int r = 0; r < S::BLOCKS_OF_16; ++r)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                kept[k][r][i] =
                    feature_pair(a, row + 16 * r + i % 2 * 8, column + 16 * k + i / 2 * 8);
}

template <class S>
__device__ __forceinline__ void store_features(const BankContrast& a, const Work& work,
                                               uint16_t* features) {
    for (int i = threadIdx.x; i < S::ROWS * S::WIDTH / 2; i += THREADS) {
        const int row = i / (S::WIDTH / 2), column = i % (S::WIDTH / 2) * 2;
        *reinterpret_cast<uint32_t*>(features + place<S::WIDTH>(row, column)) =
            feature_pair(a, work.first_feature + row, work.first_column + column);
    }
}

// Send the logits of 16 features, with which `row` begins, to the owners of the rows.
template <class S>
__device__ __forceinline__ void send_rows(float* logits, int rank, int row, int column,
                                          const float (&sums)[S::COLUMNS / 8][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = row + 8 * half + lane / 4;
        float* owner = in_block(logits, at / S::OWN) +
                       (rank * S::OWN + at % S::OWN) * S::PITCH + column + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < S::COLUMNS / 8; ++j)
            *reinterpret_cast<Pair*>(owner + 8 * j) = {sums[j][2 * half], sums[j][2 * half + 1]};
    }
}

// Compute this block's part of the logits of a tile, and send each row to its owner.
template <class Half, class S, int KEPT_DEPTH>
__device__ __forceinline__ void send_logits(
    const Memory<S>& memory, const Work& work, int tile,
    const uint32_t (&kept)[KEPT_DEPTH][S::BLOCKS_OF_16][4]) {
    const int lane = threadIdx.x % 32;
    const int first_row = first_row_of_warp<S>();
    const int first_column = S::COLUMNS * (threadIdx.x / 32 / S::ROW_WARPS);
    const uint16_t* stage = memory.stage(tile);
    float sums[S::BLOCKS_OF_16][S::COLUMNS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < S::DEPTH; ++k) {
        uint32_t loaded[S::BLOCKS_OF_16][4];
        if constexpr (!S::KEPT)
            load_matrices<false>(loaded[0], memory.features +
                                                place<S::WIDTH>(first_row + lane % 16,
                                                                16 * k + lane / 16 * 8));
        const auto& a = S::KEPT ? kept[k % KEPT_DEPTH] : loaded;
#pragma unroll
        for (int j = 0; j < S::COLUMNS / 16; ++j) {
            const int row = first_column + 16 * j + lane / 16 * 8 + lane % 8;
            uint32_t b[4];
            load_matrices<false>(b, stage + place<S::WIDTH>(row, 16 * k + lane / 8 % 2 * 8));
#pragma unroll
            for (int r = 0; r < S::BLOCKS_OF_16; ++r) {
                multiply_add<Half>(sums[r][2 * j], a[r], b[0], b[1]);
                multiply_add<Half>(sums[r][2 * j + 1], a[r], b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < S::BLOCKS_OF_16; ++r)
        send_rows<S>(memory.logits_of(tile), work.rank, first_row + 16 * r, first_column, sums[r]);
}

// The running softmax of one row, the same in all lanes of a warp.
struct Softmax {
    int target;  // numbered from the first bank row of the part; -1 if it is in another
    float top, total, own;
};

template <class S>
__device__ __forceinline__ void begin_softmax(const BankContrast& a, const Work& work,
                                              Softmax (&rows)[S::OWN_OF_WARP]) {
    const int warp = threadIdx.x / 32;
#pragma unroll
    for (int q = 0; q < S::OWN_OF_WARP; ++q) {
        const int b = work.first_feature + work.rank * S::OWN + q * WARPS + warp;
        const int64_t target = b < a.batch ? a.targets[b] - work.first_bank_row : -1;
        const bool inside = target >= 0 && target < work.tiles * S::TILE;
        rows[q] = {inside ? static_cast<int>(target) : -1, -INFINITY, 0.0f, NAN};
    }
}

// Add the parts of a row's logits in a tile. Rows past the end of the bank have the logit -inf.
template <class S>
__device__ __forceinline__ void row_logits(const BankContrast& a, const float* parts, int left,
                                           float (&logits)[S::TILE / 32]) {
    const int column = threadIdx.x % 32 * (S::TILE / 32);
#pragma unroll
    for (int i = 0; i < S::TILE / 32; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int rank = 0; rank < BLOCKS; ++rank)
            sum += parts[rank * S::OWN * S::PITCH + column + i];
        logits[i] = column + i < left ? a.scale * sum : -INFINITY;
    }
}

// Update a row's softmax by the logits of a tile, which become exponentials below the new maximum.
// Returns what sums below the old maximum are multiplied with.
template <int COUNT>
__device__ __forceinline__ float update_softmax(Softmax& row, int first,
                                                float (&logits)[COUNT]) {
    const bool inside = row.target >= first && row.target < first + 32 * COUNT;
    const int target = inside ? row.target - first : 0;
    float own = NAN, top = logits[0];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float value = __shfl_sync(ALL, logits[i], target / COUNT);
        if (target % COUNT == i) own = value;
        top = fmaxf(top, logits[i]);
    }
    // As everywhere, a target whose logit is -inf has no finite loss.
    if (inside && own > -INFINITY) row.own = own;
    for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(ALL, top, d));
    top = fmaxf(top, row.top);
    // While all logits are -inf, -inf - (-inf) would be NaN.
    const float shift = top == -INFINITY ? 0.0f : top;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        logits[i] = expf(logits[i] - shift);
        sum += logits[i];
    }
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(ALL, sum, d);
    const float factor = expf(row.top - shift);
    row.total = row.total * factor + sum;
    row.top = top;
    return factor;
}

// Update the softmax of this block's rows by a tile, and send their exponentials to all blocks.
template <class Half, class S>
__device__ __forceinline__ void send_weights(const BankContrast& a, const Memory<S>& memory,
                                             const Work& work, int tile,
                                             Softmax (&rows)[S::OWN_OF_WARP]) {
    constexpr int COUNT = S::TILE / 32;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int left = static_cast<int>(a.n) - work.first_bank_row - tile * S::TILE;
#pragma unroll
    for (int q = 0; q < S::OWN_OF_WARP; ++q) {
        const int own_row = q * WARPS + warp, row = work.rank * S::OWN + own_row;
        float x[COUNT];
        row_logits<S>(a, memory.logits_of(tile) + own_row * S::PITCH, left, x);
        const float factor = update_softmax(rows[q], tile * S::TILE, x);
        const uint32_t pair = rounded_pair<Half>(x[0], x[COUNT - 1]);
        uint16_t* weights = memory.weights_of(tile) + place<S::TILE>(row, lane * COUNT);
        float* factors = memory.factors_of(tile) + row;
        for (int rank = 0; rank < BLOCKS; ++rank) {
            if constexpr (COUNT == 2)
                *reinterpret_cast<uint32_t*>(in_block(weights, rank)) = pair;
            else
                *in_block(weights, rank) = static_cast<uint16_t>(pair);
        }
        if (lane < BLOCKS) *in_block(factors, lane) = factor;
    }
}

// Add the rows of a tile, weighted with their exponentials, to the sums of a warp.
template <class Half, class S>
__device__ __forceinline__ void add_rows(const Memory<S>& memory, int tile,
                                         float (&sums)[S::SUM_ROWS / 16][S::SUM_COLUMNS / 8][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_row = S::SUM_ROWS * (warp % 2), first_column = S::SUM_COLUMNS * (warp / 2);
    const uint16_t *weights = memory.weights_of(tile), *stage = memory.stage(tile);
    const float* factors = memory.factors_of(tile) + first_row + lane / 4;
#pragma unroll
    for (int i = 0; i < S::SUM_ROWS / 16; ++i) {
        const float low = factors[16 * i], high = factors[16 * i + 8];
#pragma unroll
        for (int j = 0; j < S::SUM_COLUMNS / 8; ++j) {
            sums[i][j][0] *= low;
            sums[i][j][1] *= low;
            sums[i][j][2] *= high;
            sums[i][j][3] *= high;
        }
    }
#pragma unroll
    for (int k = 0; k < S::TILE; k += 16) {
        uint32_t a[S::SUM_ROWS / 16][4];
#pragma unroll
        for (int i = 0; i < S::SUM_ROWS / 16; ++i)
            load_matrices<false>(a[i], weights + place<S::TILE>(first_row + 16 * i + lane % 16,
                                                                k + lane / 16 * 8));
#pragma unroll
        for (int j = 0; j < S::SUM_COLUMNS / 16; ++j) {
            const int column = first_column + 16 * j + lane / 16 * 8;
            uint32_t b[4];
            load_matrices<true>(b, stage + place<S::WIDTH>(k + lane % 16, column));
#pragma unroll
            for (int i = 0; i < S::SUM_ROWS / 16; ++i) {
                multiply_add<Half>(sums[i][2 * j], a[i], b[0], b[1]);
                multiply_add<Half>(sums[i][2 * j + 1], a[i], b[2], b[3]);
            }
        }
    }
}

template <class S>
__device__ __forceinline__ void store_sums(
    const BankContrast& a, const BankContrastParts& out, const Work& work,
    const float (&sums)[S::SUM_ROWS / 16][S::SUM_COLUMNS / 8][4]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int first_row = work.first_feature + S::SUM_ROWS * (warp % 2) + lane / 4;
    const int first_column = work.first_column + S::SUM_COLUMNS * (warp / 2) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < S::SUM_ROWS / 16; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int b = first_row + 16 * i + 8 * half;
            float* row = out.sums + (work.part * a.batch + b) * a.dim;
#pragma unroll
            for (int j = 0; j < S::SUM_COLUMNS / 8; ++j) {
                const int column = first_column + 8 * j;
                if (b < a.batch && column < a.dim)
                    *reinterpret_cast<Pair*>(row + column) = {sums[i][j][2 * half],
                                                              sums[i][j][2 * half + 1]};
            }
        }
}

template <class S>
__device__ __forceinline__ void store_softmax(const BankContrast& a, const BankContrastParts& out,
                                              const Work& work,
                                              const Softmax (&rows)[S::OWN_OF_WARP]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int q = 0; q < S::OWN_OF_WARP; ++q) {
        const int b = work.first_feature + work.rank * S::OWN + q * WARPS + warp;
        if (lane || b >= a.batch) continue;
        const int64_t at = work.part * a.batch + b;
        out.top[at] = rows[q].top;
        out.total[at] = rows[q].total;
        out.own[at] = rows[q].own;
    }
}

// Arrive at the barrier of the cluster. One warp releases what all have sent; the others do not
// wait for it.
__device__ __forceinline__ void arrive() {
    __syncthreads();
    if (threadIdx.x < 32)
        cluster_arrive<true>();
    else
        cluster_arrive<false>();
}

// One cluster per part of the bank and group of features.
template <class Half, class S>
__global__ void __launch_bounds__(THREADS, 1) part_kernel(BankContrast a, BankContrastParts out) {
#ifdef FASTREID_AL_HAS_CLUSTERS
    const Memory<S> memory;
    const Work work = work_of<S>(a, out.parts);
    uint32_t kept[S::KEPT ? S::DEPTH : 1][S::BLOCKS_OF_16][4];
    if constexpr (S::KEPT)
        keep_features<S>(a, work, kept);
    else
        store_features<S>(a, work, memory.features);
    Softmax rows[S::OWN_OF_WARP];
    begin_softmax<S>(a, work, rows);
    float sums[S::SUM_ROWS / 16][S::SUM_COLUMNS / 8][4] = {};
    // The first step needs tile 0; tile t + STAGES - 2 follows in step t.
    for (int tile = 0; tile < S::STAGES - 3; ++tile) {
        if (tile < work.tiles) copy_tile<S>(a, work, tile, memory.stage(tile));
        commit_copies();
    }
    // No block may write to the memory of one that has not begun.
    cluster_arrive<false>();
    cluster_wait();
    for (int tile = -1; tile <= work.tiles; ++tile) {
        wait_for_copies<S::STAGES - 4>();
        __syncthreads();
        const int next = tile + S::STAGES - 2;
        if (next < work.tiles) copy_tile<S>(a, work, next, memory.stage(next));
        commit_copies();
        if (tile + 1 < work.tiles) send_logits<Half, S>(memory, work, tile + 1, kept);
        if (tile >= 0 && tile < work.tiles) send_weights<Half, S>(a, memory, work, tile, rows);
        // After the last tile nothing is sent, and blocks may return.
        if (tile < work.tiles) arrive();
        if (tile >= 1) add_rows<Half, S>(memory, tile - 1, sums);
        if (tile < work.tiles) cluster_wait();
    }
    store_sums<S>(a, out, work, sums);
    store_softmax<S>(a, out, work, rows);
#endif
}

// Combine the parts of one feature: loss, log-sum-exp, and FINISH_THREADS values of the gradient.
template <class Half>
__global__ void finish_kernel(BankContrast a, BankContrastParts in, BankContrastResults out) {
    const int64_t columns = (a.dim + FINISH_THREADS - 1) / FINISH_THREADS;
    const int64_t b = blockIdx.x / columns;
    const int64_t column = blockIdx.x % columns * FINISH_THREADS + threadIdx.x;
    const int64_t target = a.targets[b];
    const bool exists = target >= 0 && target < a.n, counted = target != a.ignore_index;
    float top = -INFINITY, own = NAN;
    for (int64_t part = 0; part < in.parts; ++part) {
        top = fmaxf(top, in.top[part * a.batch + b]);
        // Only the part that has the target knows its logit.
        const float logit = in.own[part * a.batch + b];
        if (logit == logit) own = logit;
    }
    const float shift = top == -INFINITY ? 0.0f : top;
    float total = 0.0f, sum = 0.0f;
    for (int64_t part = 0; part < in.parts; ++part) {
        const int64_t at = part * a.batch + b;
        const float factor = expf(in.top[at] - shift);
        total += factor * in.total[at];
        if (column < a.dim) sum += factor * in.sums[at * a.dim + column];
    }
    if (column == 0) {
        out.log_sums[b] = top + logf(total);
        // In this order: where the target's logit is nearly the whole sum, both terms are small and
        // nothing cancels.
        out.losses[b] = counted ? logf(total) + (top - own) : 0.0f;
    }
    if (column >= a.dim) return;
    const uint16_t bits = a.bank[(exists ? target : 0) * a.bank_stride + column];
    // Adding 0 * NaN makes the gradient NaN where the target does not exist.
    const float slope = (sum / total - Half::widened(bits)) * a.scale + 0.0f * own;
    out.slopes[b * a.dim + column] = counted ? slope : 0.0f;
}

// Call action(Half(), Shape()) with those of a problem.
template <class Half, class Action>
void with_shape(const BankContrast& a, Action&& action) {
    if (a.dim > 2048) return action(Half(), Shape<64, 512>());
    if (a.batch <= 64 && a.dim <= 1024) return action(Half(), Shape<64, 128>());
    if (a.batch <= 64) return action(Half(), Shape<64, 256>());
    if (a.dim <= 1024) return action(Half(), Shape<128, 128>());
    return action(Half(), Shape<128, 256>());
}

template <class Action>
void with_kernel(const BankContrast& a, Action&& action) {
    if (a.float16) return with_shape<Float16>(a, action);
    return with_shape<Bfloat16>(a, action);
}

template <class S>
int64_t groups_of(const BankContrast& a) {
    return (a.batch + S::ROWS - 1) / S::ROWS;
}

}  // namespace

int64_t bank_contrast_cuda_parts(const BankContrast& a) {
    if (a.batch < 1 || a.batch > BANK_CONTRAST_MOST_BATCH || a.n < 1 ||
        a.n > BANK_CONTRAST_MOST_ROWS || a.dim < 8 || a.dim % 8 || a.dim > BANK_CONTRAST_MOST_WIDTH)
        return 0;
    int64_t parts = 0;
    with_kernel(a, [&](auto half, auto shape) {
        using S = decltype(shape);
        const int64_t clusters =
            most_clusters(part_kernel<decltype(half), S>, BLOCKS, THREADS, S::BYTES);
        if (clusters == 0) return;
        const int64_t tiles = (a.n + S::TILE - 1) / S::TILE;
        parts = clusters / groups_of<S>(a);
        parts = parts < 1 ? 1 : parts < tiles ? parts : tiles;
    });
    return parts;
}

void bank_contrast_cuda(const BankContrast& a, const BankContrastParts& parts,
                        const BankContrastResults& out, void* stream) {
    with_kernel(a, [&](auto half, auto shape) {
        using Half = decltype(half);
        using S = decltype(shape);
        launch_clusters(part_kernel<Half, S>, parts.parts * groups_of<S>(a), BLOCKS, THREADS,
                        S::BYTES, stream, a, parts);
        const int64_t columns = (a.dim + FINISH_THREADS - 1) / FINISH_THREADS;
        launch(finish_kernel<Half>, a.batch * columns, FINISH_THREADS, 0, stream, a, parts, out);
    });
}

}  // namespace fastreid_al
