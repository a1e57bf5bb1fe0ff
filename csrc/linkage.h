// Average linkage on a graph of distances in CSR form.
//
// The similarity of a pair of images is 1 - distance if it is an edge, and 0 otherwise. It is a
// whole number in units of 2^-32, so sums are exact. L(A, B) of two groups is the sum over the pairs
// of A x B, divided by |A| |B|. Such fractions are compared exactly, with products of 128 bits.
#pragma once

#include <cstdint>
#include <vector>

namespace fastreid_al {

constexpr int kSimilarityBits = 32;

struct LinkageArguments {
    const int64_t* indptr;        // (n + 1)
    const int64_t* indices;       // ascending in each row; fewer than 2^32, so that sums fit 63 bits
    int64_t n;                    // below 2^31
    const int64_t* groups;        // (n) the lowest image of each image's initial group
    const int64_t* cannot_links;  // (cannot_link_count, 2)
    int64_t cannot_link_count;
    int64_t threshold;  // in the units of similarities, at least 1
    int threads;
};

// Two groups that were joined, named by their lowest images.
struct Merge {
    int64_t sum;  // of the similarities of their pairs
    int32_t first;
    int32_t second;  // above `first`
    int32_t first_size;
    int32_t second_size;
};

// Joins the two groups with the greatest L until no L reaches the threshold. Among equal L the pair
// with the lowest `first` is joined, then the one with the lowest `second`. Two groups with a
// cannot-link between them are never joined. Returns the merges in this order.
//
// Entries above the diagonal are read; the graph is symmetric. Groups are found by nearest-neighbour
// chains (Benzécri 1982), which gives the same merges, because the order above is total and
// reducible: a group is never nearer to a union than to the nearer of its parts. Takes 24 bytes for
// an edge whose ends can end up in one group, and about 90 bytes for an image.
template <class Real>
std::vector<Merge> average_linkage(const LinkageArguments& a, const Real* distances);

}  // namespace fastreid_al
