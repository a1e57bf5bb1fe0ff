// Union-find without locks, for several threads.
//
// A parent is never higher than its child, so the root of a component is its lowest node, whatever
// the order in which threads join nodes. A parent only ever decreases, so relaxed memory order is
// enough: a stale parent is still an ancestor.
#pragma once

#include <algorithm>

namespace fastreid_al {

template <class Node>
Node load_parent(const Node* address) {
    return __atomic_load_n(address, __ATOMIC_RELAXED);
}

template <class Node>
bool replace_parent(Node* address, Node expected, Node value) {
    return __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}

// The lowest node of a node's component.
template <class Node>
Node find_root(Node* parents, Node node) {
    for (;;) {
        const Node parent = load_parent(parents + node);
        if (parent == node) return node;
        const Node grandparent = load_parent(parents + parent);
        // Path halving; if another thread was faster, its parent is as good.
        if (grandparent != parent) replace_parent(parents + node, parent, grandparent);
        node = grandparent;
    }
}

template <class Node>
void unite(Node* parents, Node a, Node b) {
    for (;;) {
        a = find_root(parents, a);
        b = find_root(parents, b);
        if (a == b) return;
        if (a > b) std::swap(a, b);
        if (replace_parent(parents + b, b, a)) return;
    }
}

}  // namespace fastreid_al
