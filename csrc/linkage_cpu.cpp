#include "linkage.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include "parallel.h"
#include "union_find.h"

namespace fastreid_al {

namespace {

constexpr int64_t kGrain = 512;
// In place of a sum: the groups must not be joined.
constexpr int64_t kCannotLink = -1;
constexpr int32_t kNone = -1;

__extension__ typedef unsigned __int128 Wide;

Wide product(int64_t a, int64_t b) { return static_cast<Wide>(a) * static_cast<Wide>(b); }

int64_t added(int64_t a, int64_t b) {
    return a == kCannotLink || b == kCannotLink ? kCannotLink : a + b;
}

template <class Real>
int64_t similarity(Real distance) {
    constexpr double kUnits = static_cast<double>(int64_t{1} << kSimilarityBits);
    // Half to even, as NumPy and PyTorch round.
    return std::llrint((1.0 - static_cast<double>(distance)) * kUnits);
}

int64_t pairs(const Merge& m) { return static_cast<int64_t>(m.first_size) * m.second_size; }

bool merged_before(const Merge& a, const Merge& b) {
    const Wide of_a = product(a.sum, pairs(b));
    const Wide of_b = product(b.sum, pairs(a));
    if (of_a != of_b) return of_a > of_b;
    return a.first != b.first ? a.first < b.first : a.second < b.second;
}

// Components over edges that reach the threshold, and over the initial groups. Groups of different
// components are never joined: L reaches the threshold only if some pair does.
template <class Real>
std::vector<int32_t> components(const LinkageArguments& a, const Real* distances) {
    std::vector<int32_t> parents(a.groups, a.groups + a.n);
    parallel_for(a.threads, a.n, kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            for (int64_t p = a.indptr[i]; p < a.indptr[i + 1]; ++p)
                if (a.indices[p] > i && similarity(distances[p]) >= a.threshold)
                    unite(parents.data(), static_cast<int32_t>(i),
                          static_cast<int32_t>(a.indices[p]));
    });
    // A parent is lower than its child, so it already holds its root.
    for (int32_t& parent : parents) parent = parents[parent];
    return parents;
}

// A group next to another one: its size, and the sum of the similarities of their pairs.
struct Neighbour {
    int32_t group;
    int32_t size;
    int64_t sum;
};

// For heaps of the neighbours of one group: whether it is joined with `b` before it is with `a`. Its
// own size divides both L, so it does not matter.
bool is_farther(const Neighbour& a, const Neighbour& b) {
    const Wide of_a = product(a.sum, b.size);
    const Wide of_b = product(b.sum, a.size);
    return of_a != of_b ? of_a < of_b : a.group > b.group;
}

// A group on a chain, and a heap of the groups that it can be joined with, as they were when the
// group came onto the chain.
struct Link {
    int32_t group;
    std::vector<Neighbour> heap;
};

// What a thread needs while it joins the groups of a component.
struct Scratch {
    std::vector<Neighbour> neighbours;
    // Links after the first `length` are there for their memory.
    std::vector<Link> chain;
    size_t length = 0;
    std::vector<Merge> merges;
};

// Groups of images. A group is named by its lowest image. Its entries (an image of another group,
// and a sum of similarities) lie in the rows of its images, which are linked in a list. Whenever a
// group comes onto a chain, its entries of one group are added up and written back into the rows.
class Groups {
public:
    template <class Real>
    Groups(const LinkageArguments& a, const Real* distances, const std::vector<int32_t>& component)
        : threshold_(a.threshold),
          parent_(a.groups, a.groups + a.n),
          next_(a.n, kNone),
          last_(a.n),
          size_(a.n),
          slot_(a.n, kNone),
          entries_(a.n),
          finished_(a.n),
          starts_(a.n + 1),
          ends_(a.n) {
        fill(a, distances, component);
        for (int32_t i = 0; i < a.n; ++i) {
            const int32_t group = parent_[i];
            last_[i] = i;
            ++size_[group];
            entries_[group] += starts_[i + 1] - starts_[i];
            if (group != i && starts_[i] < starts_[i + 1]) append(group, i);
        }
    }

    bool is_group(int32_t image) const { return parent_[image] == image; }

    // Joins groups until the one that `start` belongs to can be joined with no other.
    void finish(int32_t start, Scratch& scratch) {
        while (!finished_[start = find(start)]) follow_chain(start, scratch);
    }

private:
    int64_t threshold_;
    std::vector<int32_t> parent_;
    std::vector<int32_t> next_;  // the next row of the same group
    std::vector<int32_t> last_;  // the last row of a group
    std::vector<int32_t> size_;
    std::vector<int32_t> slot_;      // of a group among the neighbours, while they are added up
    std::vector<int64_t> entries_;   // in the rows of a group
    std::vector<uint8_t> finished_;  // groups that are joined with no other any more
    std::vector<int64_t> starts_;    // row i has room for entries in [starts_[i], starts_[i + 1])
    std::vector<int64_t> ends_;
    std::vector<int32_t> images_;
    std::vector<int64_t> sums_;

    // Both directions of the edges and cannot-links that are inside a component.
    template <class Real>
    void fill(const LinkageArguments& a, const Real* distances,
              const std::vector<int32_t>& component) {
        const auto for_each = [&](auto&& use) {
            for (int64_t i = 0; i < a.n; ++i)
                for (int64_t p = a.indptr[i]; p < a.indptr[i + 1]; ++p) {
                    const int64_t j = a.indices[p];
                    if (j <= i || component[i] != component[j] || a.groups[i] == a.groups[j])
                        continue;
                    const int64_t sum = similarity(distances[p]);
                    if (sum > 0) use(i, j, sum);
                }
            for (int64_t m = 0; m < a.cannot_link_count; ++m) {
                const int64_t i = a.cannot_links[2 * m];
                const int64_t j = a.cannot_links[2 * m + 1];
                if (component[i] == component[j]) use(i, j, kCannotLink);
            }
        };
        for_each([&](int64_t i, int64_t j, int64_t) {
            ++starts_[i + 1];
            ++starts_[j + 1];
        });
        for (int64_t i = 0; i < a.n; ++i) {
            starts_[i + 1] += starts_[i];
            ends_[i] = starts_[i];
        }
        images_.resize(starts_[a.n]);
        sums_.resize(starts_[a.n]);
        for_each([&](int64_t i, int64_t j, int64_t sum) {
            write(i, j, sum);
            write(j, i, sum);
        });
    }

    void write(int64_t row, int64_t image, int64_t sum) {
        images_[ends_[row]] = static_cast<int32_t>(image);
        sums_[ends_[row]] = sum;
        ++ends_[row];
    }

    int32_t find(int32_t image) {
        while (parent_[image] != image) image = parent_[image] = parent_[parent_[image]];
        return image;
    }

    // Append a row, and those that follow it in its list, to the rows of a group.
    void append(int32_t group, int32_t row) {
        next_[last_[group]] = row;
        last_[group] = last_[row];
    }

    void join(int32_t a, int32_t b, int64_t sum, Scratch& scratch) {
        if (a > b) std::swap(a, b);
        scratch.merges.push_back({sum, a, b, size_[a], size_[b]});
        parent_[b] = a;
        size_[a] += size_[b];
        entries_[a] += entries_[b];
        append(a, b);
    }

    // Each group is the one that the group before it on the chain is joined with first. Two that
    // are each other's are joined, as they would be in the order of merges.
    void follow_chain(int32_t start, Scratch& scratch) {
        push_link(start, scratch);
        while (scratch.length) {
            Link& last = scratch.chain[scratch.length - 1];
            if (!find_best(last)) {
                // Only the first group of a chain has no partner: the others have the one before.
                finished_[last.group] = 1;
                --scratch.length;
                continue;
            }
            const Neighbour best = last.heap.front();
            if (scratch.length > 1 && scratch.chain[scratch.length - 2].group == best.group) {
                scratch.length -= 2;
                join(last.group, best.group, best.sum, scratch);
            } else {
                push_link(best.group, scratch);
            }
        }
    }

    void push_link(int32_t group, Scratch& scratch) {
        if (scratch.length == scratch.chain.size()) scratch.chain.emplace_back();
        Link& link = scratch.chain[scratch.length++];
        add_up_neighbours(group, scratch);
        link.group = group;
        link.heap.clear();
        for (const Neighbour& other : scratch.neighbours)
            if (reaches_threshold(group, other)) link.heap.push_back(other);
        std::make_heap(link.heap.begin(), link.heap.end(), is_farther);
    }

    // Whether the group can be joined with any; the first in the heap is then the best.
    bool find_best(Link& link) {
        std::vector<Neighbour>& heap = link.heap;
        while (!heap.empty()) {
            const Neighbour first = heap.front();
            const int32_t group = find(first.group);
            if (group == first.group && size_[group] == first.size) return true;
            // It has been joined with others since, and the union's place is not before this one.
            std::pop_heap(heap.begin(), heap.end(), is_farther);
            heap.pop_back();
            const Neighbour now{group, size_[group], sum_between(link.group, group)};
            if (!reaches_threshold(link.group, now)) continue;
            heap.push_back(now);
            std::push_heap(heap.begin(), heap.end(), is_farther);
        }
        return false;
    }

    bool reaches_threshold(int32_t group, const Neighbour& other) const {
        const int64_t pairs = static_cast<int64_t>(size_[group]) * other.size;
        return other.sum != kCannotLink &&
               static_cast<Wide>(other.sum) >= product(threshold_, pairs);
    }

    int64_t sum_between(int32_t a, int32_t b) {
        if (entries_[a] > entries_[b]) std::swap(a, b);
        int64_t sum = 0;
        for (int32_t row = a; row != kNone; row = next_[row])
            for (int64_t p = starts_[row]; p < ends_[row]; ++p)
                if (find(images_[p]) == b) sum = added(sum, sums_[p]);
        return sum;
    }

    // One neighbour for each group next to `group`, in the scratch and in the rows of `group`.
    // Finished groups are left out: no union of them is joined.
    void add_up_neighbours(int32_t group, Scratch& scratch) {
        std::vector<Neighbour>& neighbours = scratch.neighbours;
        neighbours.clear();
        for (int32_t row = group; row != kNone; row = next_[row])
            for (int64_t p = starts_[row]; p < ends_[row]; ++p) {
                const int32_t other = find(images_[p]);
                if (other == group || finished_[other]) continue;
                int32_t& slot = slot_[other];
                if (slot == kNone) {
                    slot = static_cast<int32_t>(neighbours.size());
                    neighbours.push_back({other, size_[other], sums_[p]});
                } else {
                    neighbours[slot].sum = added(neighbours[slot].sum, sums_[p]);
                }
            }
        for (const Neighbour& neighbour : neighbours) slot_[neighbour.group] = kNone;
        write_back(group, neighbours);
    }

    // There are no more entries than before, so the rows have room for them.
    void write_back(int32_t group, const std::vector<Neighbour>& neighbours) {
        size_t written = 0;
        int32_t row = group;
        for (;; row = next_[row]) {
            ends_[row] = starts_[row];
            for (; ends_[row] < starts_[row + 1] && written < neighbours.size(); ++written)
                write(row, neighbours[written].group, neighbours[written].sum);
            if (written == neighbours.size()) break;
        }
        next_[row] = kNone;
        last_[group] = row;
        entries_[group] = static_cast<int64_t>(neighbours.size());
    }
};

// The groups of each component that has several, the largest components first.
struct Tasks {
    std::vector<int32_t> groups;
    std::vector<std::pair<int64_t, int64_t>> ranges;  // in `groups`
};

Tasks tasks_of(const Groups& groups, const std::vector<int32_t>& component) {
    const int32_t n = static_cast<int32_t>(component.size());
    Tasks tasks;
    for (int32_t i = 0; i < n; ++i)
        if (groups.is_group(i)) tasks.groups.push_back(i);
    std::stable_sort(tasks.groups.begin(), tasks.groups.end(),
                     [&](int32_t a, int32_t b) { return component[a] < component[b]; });
    const int64_t count = static_cast<int64_t>(tasks.groups.size());
    for (int64_t begin = 0, end = 0; begin < count; begin = end) {
        const int32_t root = component[tasks.groups[begin]];
        while (end < count && component[tasks.groups[end]] == root) ++end;
        if (end - begin > 1) tasks.ranges.emplace_back(begin, end);
    }
    std::stable_sort(tasks.ranges.begin(), tasks.ranges.end(), [](const auto& a, const auto& b) {
        return a.second - a.first > b.second - b.first;
    });
    return tasks;
}

}  // namespace

template <class Real>
std::vector<Merge> average_linkage(const LinkageArguments& a, const Real* distances) {
    const std::vector<int32_t> component = components(a, distances);
    Groups groups(a, distances, component);
    const Tasks tasks = tasks_of(groups, component);
    std::vector<Merge> merges;
    std::mutex guard;
    // Threads have different components, so they touch different images and entries.
    parallel_for(
        a.threads, static_cast<int64_t>(tasks.ranges.size()), 1, [] { return Scratch{}; },
        [&](Scratch& scratch, int64_t begin, int64_t end) {
            scratch.merges.clear();
            for (int64_t r = begin; r < end; ++r)
                for (int64_t g = tasks.ranges[r].first; g < tasks.ranges[r].second; ++g)
                    groups.finish(tasks.groups[g], scratch);
            std::lock_guard<std::mutex> lock(guard);
            merges.insert(merges.end(), scratch.merges.begin(), scratch.merges.end());
        });
    std::sort(merges.begin(), merges.end(), merged_before);
    return merges;
}

template std::vector<Merge> average_linkage(const LinkageArguments&, const float*);
template std::vector<Merge> average_linkage(const LinkageArguments&, const double*);

}  // namespace fastreid_al
