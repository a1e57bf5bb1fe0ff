// Runs CUDA kernels on the CPU in tests: csrc/device.h includes this instead of the CUDA runtime if
// FASTREID_AL_EMULATED is defined.
//
// A thread of a block is a fibre with its own stack. Blocks run one after another, in a random
// order. A fibre runs until it waits (__syncthreads, __syncwarp, a shuffle, a vote), and sometimes
// yields to another fibre before an atomic. The seed determines the interleaving, so results are
// repeatable and every seed tests another one. A deadlock is an error that names who waits where.
//
// The blocks of a cluster run together. Each has its own dynamic shared memory, which the others
// reach by `in_block`; they share the arrays that emulate static __shared__ memory, so a kernel
// that is launched in clusters must not have any. An asynchronous copy happens when it is issued or
// when it is waited for, as the seed determines. A write to the shared memory of a block that has
// returned is an error.
//
// ThreadSanitizer sees fibres as threads that are ordered only by what CUDA guarantees:
// __syncthreads, __syncwarp, the barrier of a cluster, the beginning and end of a launch; not
// shuffles, votes and atomics. Clusters are ordered too, because they share the arrays that emulate
// __shared__ memory: a race between them shows as a result that depends on the seed, not as a
// report.
//
// Environment, read at each launch: FASTREID_AL_EMULATED_SEED (1),
// FASTREID_AL_EMULATED_SHARED_BYTES (101376, that of sm_86 and sm_120, the least of the
// architectures that the extension is built for) and FASTREID_AL_EMULATED_CLUSTERS (3, the clusters
// that the device says it runs at a time).
#pragma once

#include <sys/mman.h>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// For the machinery below, which all fibres share on purpose: ThreadSanitizer does not check it.
#define FASTREID_AL_UNSEEN __attribute__((noinline, no_sanitize("thread"))) inline

struct dim3 {
    unsigned x, y, z;
};

inline dim3 threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};
constexpr int warpSize = 32;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };

namespace fastreid_al {

namespace emulated {

constexpr int most_threads = 1024;
constexpr int most_blocks = 8;  // of a cluster
constexpr int most_fibres = most_blocks * most_threads;
constexpr int most_copies = 64;  // of a thread, on their way
constexpr size_t stack_bytes = 256 * 1024;
// Bytes behind the dynamic shared memory that detect writes past its end; AddressSanitizer needs
// none.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t guard_bytes = 0;
#else
constexpr size_t guard_bytes = 1024;
#endif

#ifdef __x86_64__
// The stack pointer of a suspended fibre; its callee-saved registers lie on its stack.
using Context = void*;

__attribute__((naked, noinline, no_sanitize("thread"))) inline void switch_stacks(Context*,
                                                                                  Context*) {
    asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
        "movq %rsp, (%rdi)\n movq (%rsi), %rsp\n"
        "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
        "ret");
}

inline void begin_stack(Context* context, void* stack, void (*function)()) {
    void** top = reinterpret_cast<void**>(static_cast<char*>(stack) + stack_bytes);
    top[-2] = reinterpret_cast<void*>(function);
    *context = top - 8;
}
#else
// Slower: every switch is a system call for the signal mask.
using Context = ucontext_t;

inline void switch_stacks(Context* from, Context* to) { swapcontext(from, to); }

inline void begin_stack(Context* context, void* stack, void (*function)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = stack_bytes;
    context->uc_link = nullptr;
    makecontext(context, function, 0);
}
#endif

enum class Wait : int { nothing, block, warp, shuffle, vote, cluster, over };

// An asynchronous copy that has not happened: `bytes` of `from`, then zeros up to `room`.
struct Copy {
    void* to;
    const void* from;
    size_t bytes, room;
    unsigned group;
};

struct Thread {
    Context context;
    void* stack;
    void* fibre;       // ThreadSanitizer's handle
    void* fake_stack;  // AddressSanitizer's
    Wait wait;
    unsigned mask;
    int source;
    uint64_t value;
    Copy copies[most_copies];
    int copy_count;
    unsigned copy_groups;  // that were committed
    unsigned exchanges;    // of registers with the other lanes
    bool arrived;          // at the barrier of the cluster, without having waited
    unsigned arrived_at;   // the number of that barrier
};

struct Warp {
    unsigned lanes;  // bit mask of those that have not returned
    // Barriers of __syncwarp, by the lowest lane of the mask. There are two of each, used in turn,
    // so that a lane that reaches the next barrier is not counted twice in this one.
    unsigned meetings[32];
    char meeting[32][2][8];
    // Registers that lanes show each other, in turn as above.
    uint64_t shown[2][32][3];
};

struct Block {
    int alive, at_barrier;
    unsigned barriers;
    unsigned char* pool;
    char barrier[2][8];
};

struct Machine {
    std::mutex one_launch;
    Context host;
    void* host_fibre;
    void* host_fake_stack;
    const void* host_stack;
    size_t host_stack_bytes;

    void (*call)(const void*);
    const void* arguments;
    int size;           // threads of a block
    int cluster, all;   // blocks and threads of a cluster
    int alive, current;
    int at_cluster_barrier;
    unsigned cluster_barriers;
    int64_t first_block;
    uint64_t random;
    size_t pool_bytes;

    const char* failure;
    int created;
    int ready_count;
    int ready[most_fibres];
    Warp warps[most_fibres / 32];
    Thread threads[most_fibres];
    Block blocks[most_blocks];

    // Addresses that identify barriers to ThreadSanitizer.
    char begun[8], cluster_barrier[2][8], ended[8];
};

inline Machine machine;

FASTREID_AL_UNSEEN void release([[maybe_unused]] void* meeting) {
#ifdef __SANITIZE_THREAD__
    __tsan_release(meeting);
#endif
}

FASTREID_AL_UNSEEN void acquire([[maybe_unused]] void* meeting) {
#ifdef __SANITIZE_THREAD__
    __tsan_acquire(meeting);
#endif
}

// A random number below `count`.
FASTREID_AL_UNSEEN int64_t draw(int64_t count) {
    uint64_t& x = machine.random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return static_cast<int64_t>((x >> 11) % static_cast<uint64_t>(count));
}

FASTREID_AL_UNSEEN void make_ready(int thread) {
    machine.threads[thread].wait = Wait::nothing;
    machine.ready[machine.ready_count++] = thread;
}

// Switch from a fibre to the host, until the host resumes this fibre.
FASTREID_AL_UNSEEN void suspend() {
    Thread& self = machine.threads[machine.current];
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&self.fake_stack, machine.host_stack, machine.host_stack_bytes);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(machine.host_fibre, __tsan_switch_to_fiber_no_sync);
#endif
    switch_stacks(&self.context, &machine.host);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(self.fake_stack, &machine.host_stack,
                                    &machine.host_stack_bytes);
#endif
}

// Switch from the host to a fibre, until the fibre waits.
FASTREID_AL_UNSEEN void resume(int thread) {
    Thread& next = machine.threads[thread];
    machine.current = thread;
    threadIdx.x = static_cast<unsigned>(thread % machine.size);
    blockIdx.x = static_cast<unsigned>(machine.first_block + thread / machine.size);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&machine.host_fake_stack, next.stack, stack_bytes);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(next.fibre, __tsan_switch_to_fiber_no_sync);
#endif
    switch_stacks(&machine.host, &next.context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(machine.host_fake_stack, nullptr, nullptr);
#endif
}

FASTREID_AL_UNSEEN void fail(const char* what) {
    machine.failure = what;
    suspend();
}

// The number of the current fibre's block in its cluster.
FASTREID_AL_UNSEEN int block_rank() { return machine.current / machine.size; }

FASTREID_AL_UNSEEN void open_barrier_if_full(int rank) {
    Block& block = machine.blocks[rank];
    if (block.at_barrier == 0 || block.at_barrier != block.alive) return;
    block.at_barrier = 0;
    ++block.barriers;
    for (int t = rank * machine.size; t < (rank + 1) * machine.size; ++t)
        if (machine.threads[t].wait == Wait::block) make_ready(t);
}

FASTREID_AL_UNSEEN void open_cluster_barrier_if_full() {
    if (machine.at_cluster_barrier == 0 || machine.at_cluster_barrier != machine.alive) return;
    machine.at_cluster_barrier = 0;
    ++machine.cluster_barriers;
    for (int t = 0; t < machine.all; ++t)
        if (machine.threads[t].wait == Wait::cluster) make_ready(t);
}

// Resume the lanes of a warp that wait with this mask, if all that have not returned are waiting.
FASTREID_AL_UNSEEN void join_lanes(int warp, unsigned mask) {
    Warp& w = machine.warps[warp];
    Thread* lanes = machine.threads + 32 * warp;
    const unsigned wanted = mask & w.lanes;
    Wait kind = Wait::nothing;
    unsigned votes = 0;
    for (int l = 0; l < 32; ++l) {
        if (!(wanted >> l & 1)) continue;
        const Wait wait = lanes[l].wait;
        if (wait != Wait::warp && wait != Wait::shuffle && wait != Wait::vote) return;
        if (lanes[l].mask != mask) return;
        if (kind == Wait::nothing) kind = lanes[l].wait;
        if (lanes[l].wait != kind) {
            machine.failure = "lanes of one mask are in different warp functions";
            return;
        }
        if (lanes[l].value) votes |= 1u << l;
    }
    uint64_t answers[32];
    for (int l = 0; l < 32; ++l) {
        if (!(wanted >> l & 1)) continue;
        const int from = lanes[l].source;
        // The value of a lane that does not take part is undefined.
        answers[l] = kind == Wait::vote     ? votes
                     : wanted >> from & 1 ? lanes[from].value
                                          : 0xA5A5A5A5A5A5A5A5u;
    }
    ++w.meetings[__builtin_ctz(mask)];
    for (int l = 0; l < 32; ++l) {
        if (!(wanted >> l & 1)) continue;
        lanes[l].value = answers[l];
        make_ready(32 * warp + l);
    }
}

FASTREID_AL_UNSEEN uint64_t wait_for_lanes(Wait kind, unsigned mask, uint64_t value, int source) {
    const int warp = machine.current / 32, lane = machine.current % 32;
    Thread& self = machine.threads[machine.current];
    if (!(mask >> lane & 1)) fail("a lane calls a warp function with a mask that leaves it out");
    Warp& w = machine.warps[warp];
    const int lowest = __builtin_ctz(mask);
    void* meeting = w.meeting[lowest][w.meetings[lowest] & 1];
    if (kind == Wait::warp) release(meeting);
    self.wait = kind;
    self.mask = mask;
    self.value = value;
    self.source = source;
    join_lanes(warp, mask);
    suspend();
    if (kind == Wait::warp) acquire(meeting);
    return self.value;
}

FASTREID_AL_UNSEEN void wait_for_block() {
    const int rank = block_rank();
    Block& block = machine.blocks[rank];
    void* meeting = block.barrier[block.barriers & 1];
    release(meeting);
    machine.threads[machine.current].wait = Wait::block;
    ++block.at_barrier;
    open_barrier_if_full(rank);
    suspend();
    acquire(meeting);
}

FASTREID_AL_UNSEEN void arrive_at_cluster(bool releases) {
    Thread& self = machine.threads[machine.current];
    if (self.arrived) fail("a thread arrives twice at the barrier of the cluster without waiting");
    self.arrived = true;
    self.arrived_at = machine.cluster_barriers;
    if (releases) release(machine.cluster_barrier[self.arrived_at & 1]);
    ++machine.at_cluster_barrier;
    open_cluster_barrier_if_full();
}

FASTREID_AL_UNSEEN void wait_for_cluster() {
    Thread& self = machine.threads[machine.current];
    if (!self.arrived) fail("a thread waits for the cluster without having arrived");
    if (self.arrived_at == machine.cluster_barriers) {
        self.wait = Wait::cluster;
        suspend();
    }
    self.arrived = false;
    acquire(machine.cluster_barrier[self.arrived_at & 1]);
}

// Begin an asynchronous copy; returns whether it happens at once.
FASTREID_AL_UNSEEN bool begin_copy(const Copy& work) {
    Thread& self = machine.threads[machine.current];
    if (draw(2)) return true;
    if (self.copy_count == most_copies) fail("a thread has too many copies on their way");
    self.copies[self.copy_count] = work;
    self.copies[self.copy_count++].group = self.copy_groups;
    return false;
}

FASTREID_AL_UNSEEN void end_copy_group() { ++machine.threads[machine.current].copy_groups; }

// Take a copy of the groups before the last `pending`; returns whether there is one.
FASTREID_AL_UNSEEN bool take_copy(unsigned pending, Copy* work) {
    Thread& self = machine.threads[machine.current];
    for (int i = 0; i < self.copy_count; ++i) {
        if (self.copies[i].group + pending >= self.copy_groups) continue;
        *work = self.copies[i];
        self.copies[i] = self.copies[--self.copy_count];
        return true;
    }
    return false;
}

// Before an atomic: sometimes yield to other fibres.
FASTREID_AL_UNSEEN void give_way() {
    if (draw(8)) return;
    make_ready(machine.current);
    suspend();
}

// Fill the shared memory of a block that has returned, so that later writes show.
FASTREID_AL_UNSEEN void retire(Block& block) {
#ifndef __SANITIZE_THREAD__
    if (machine.cluster > 1)
        for (size_t i = 0; i + guard_bytes < machine.pool_bytes; ++i) block.pool[i] = 0xA5;
#else
    (void)block;
#endif
}

FASTREID_AL_UNSEEN void leave() {
    const int thread = machine.current, rank = block_rank();
    if (machine.threads[thread].copy_count)
        machine.failure = "a thread returns before it has waited for its copies";
    machine.threads[thread].wait = Wait::over;
    machine.warps[thread / 32].lanes &= ~(1u << thread % 32);
    --machine.alive;
    if (--machine.blocks[rank].alive == 0) retire(machine.blocks[rank]);
    open_barrier_if_full(rank);
    open_cluster_barrier_if_full();
    for (int t = thread / 32 * 32; t < machine.all && t < thread / 32 * 32 + 32; ++t) {
        const Wait wait = machine.threads[t].wait;
        if (wait == Wait::warp || wait == Wait::shuffle || wait == Wait::vote)
            join_lanes(thread / 32, machine.threads[t].mask);
    }
}

// The main function of a fibre: it runs its thread of every block.
FASTREID_AL_UNSEEN void live() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &machine.host_stack, &machine.host_stack_bytes);
#endif
    for (;;) {
        acquire(machine.begun);
        machine.call(machine.arguments);
        release(machine.ended);
        leave();
        suspend();
    }
}

FASTREID_AL_UNSEEN void create(int threads) {
    for (; machine.created < threads; ++machine.created) {
        Thread& thread = machine.threads[machine.created];
        thread.stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (thread.stack == MAP_FAILED) throw std::bad_alloc();
        // A guard page: a stack overflow faults here.
        mprotect(thread.stack, 4096, PROT_NONE);
#ifdef __SANITIZE_THREAD__
        thread.fibre = __tsan_create_fiber(0);
#endif
        begin_stack(&thread.context, thread.stack, live);
    }
}

// Fibres that are stuck inside a kernel cannot be reused by the next launch.
FASTREID_AL_UNSEEN void abandon() {
    for (; machine.created > 0; --machine.created) {
        Thread& thread = machine.threads[machine.created - 1];
#ifdef __SANITIZE_THREAD__
        __tsan_destroy_fiber(thread.fibre);
#endif
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(thread.stack, stack_bytes);
#endif
        munmap(thread.stack, stack_bytes);
    }
}

FASTREID_AL_UNSEEN bool run_cluster(int64_t first_block) {
    machine.alive = machine.all;
    machine.at_cluster_barrier = machine.ready_count = 0;
    machine.first_block = first_block;
    for (int rank = 0; rank < machine.cluster; ++rank) {
        machine.blocks[rank].alive = machine.size;
        machine.blocks[rank].at_barrier = 0;
    }
    for (int t = 0; t < machine.all; ++t) {
        machine.warps[t / 32].lanes = (t % 32 ? machine.warps[t / 32].lanes : 0) | 1u << t % 32;
        machine.threads[t].copy_count = 0;
        machine.threads[t].arrived = false;
        machine.threads[t].exchanges = 0;
        make_ready(t);
    }
    while (machine.alive) {
        if (machine.failure || !machine.ready_count) return false;
        const int64_t choice = draw(machine.ready_count);
        const int thread = machine.ready[choice];
        machine.ready[choice] = machine.ready[--machine.ready_count];
        resume(thread);
    }
    return true;
}

inline std::string who_waits() {
    static const char* const names[] =
        {"run", "__syncthreads", "__syncwarp", "a shuffle", "a vote", "the cluster",
         "have returned"};
    int counts[7] = {};
    for (int t = 0; t < machine.all; ++t) ++counts[static_cast<int>(machine.threads[t].wait)];
    std::string text;
    for (int k = 0; k < 7; ++k)
        if (counts[k])
            text += (text.empty() ? "" : ", ") + std::to_string(counts[k]) + ": " + names[k];
    return text;
}

inline uint64_t setting(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

// Run the blocks of one cluster; a kernel that is launched without clusters has one block in each.
FASTREID_AL_UNSEEN void run_and_check(int64_t first_block, size_t shared_bytes) {
    // Shared memory is not zero at the start of a block.
    for (int rank = 0; rank < machine.cluster; ++rank)
        memset(machine.blocks[rank].pool, 0xA5, machine.pool_bytes);
    release(machine.begun);
    const bool over = run_cluster(first_block);
    acquire(machine.ended);
    const std::string name = "block " + std::to_string(first_block) + ": ";
    if (!over || machine.failure) {
        const std::string what =
            machine.failure ? machine.failure : "threads wait for others that do not come";
        const std::string waiting = who_waits();
        abandon();
        throw std::runtime_error(name + what + " (" + waiting + ")");
    }
    const auto written = [](int rank, size_t from) {
        const unsigned char* pool = machine.blocks[rank].pool;
        return std::any_of(pool + from, pool + machine.pool_bytes,
                           [](unsigned char byte) { return byte != 0xA5; });
    };
    for (int rank = 0; rank < machine.cluster; ++rank) {
        if (written(rank, shared_bytes))
            throw std::runtime_error(name + "written past its dynamic shared memory");
#ifndef __SANITIZE_THREAD__
        if (machine.cluster > 1 && written(rank, 0))
            throw std::runtime_error(name + "a block writes to one that has returned");
#endif
    }
}

// Run a kernel in clusters of `cluster` blocks.
FASTREID_AL_UNSEEN void run(int64_t blocks, int cluster, int threads, size_t shared_bytes,
                            void (*call)(const void*), const void* arguments) {
    std::lock_guard<std::mutex> lock(machine.one_launch);
    create(cluster * threads);
    machine.size = threads;
    machine.cluster = cluster;
    machine.all = cluster * threads;
    machine.call = call;
    machine.arguments = arguments;
    machine.failure = nullptr;
    machine.random = 0x9E3779B97F4A7C15u * (2 * setting("FASTREID_AL_EMULATED_SEED", 1) + 1);
    for (int k = 0; k < 8; ++k) draw(2);
    blockDim.x = static_cast<unsigned>(threads);
    gridDim.x = static_cast<unsigned>(blocks);
#ifdef __SANITIZE_THREAD__
    machine.host_fibre = __tsan_get_current_fiber();
#endif
    machine.pool_bytes = shared_bytes + guard_bytes;
    std::vector<std::unique_ptr<unsigned char[]>> pools;
    for (int rank = 0; rank < cluster; ++rank) {
        pools.emplace_back(new unsigned char[machine.pool_bytes]);
        machine.blocks[rank].pool = pools.back().get();
    }
    const int64_t clusters = blocks / cluster;
    std::vector<int64_t> order(static_cast<size_t>(clusters));
    std::iota(order.begin(), order.end(), 0);
    for (int64_t c = clusters - 1; c > 0; --c) std::swap(order[c], order[draw(c + 1)]);
    for (const int64_t number : order) run_and_check(cluster * number, shared_bytes);
}

template <class T>
uint64_t bits_of(T value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8,
                  "warp functions move 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T>
T value_of(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class T>
T shuffle(unsigned mask, T value, int source) {
    return value_of<T>(wait_for_lanes(Wait::shuffle, mask, bits_of(value), source));
}

inline int lane() { return static_cast<int>(threadIdx.x % 32); }

template <class T>
struct Same {
    using type = T;
};

// A parameter whose type other parameters determine.
template <class T>
using As = typename Same<T>::type;

template <class T, class Change>
T change(T* target, Change&& make) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
                  std::is_same_v<T, unsigned long long>,
                  "atomics are on int, unsigned and unsigned long long");
    give_way();
    T old = __atomic_load_n(target, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(target, &old, make(old), false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED)) {
    }
    return old;
}

}  // namespace emulated

inline void check(cudaError_t, const char*) {}

inline size_t most_shared_bytes() {
    return emulated::setting("FASTREID_AL_EMULATED_SHARED_BYTES", 101376);
}

// Launch a kernel in clusters of `cluster` blocks.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int64_t clusters, int cluster, int threads,
                     size_t shared_bytes, void*, Arguments... arguments) {
    const int64_t blocks = clusters * cluster;
    if (blocks <= 0) return;
    if (blocks > std::numeric_limits<int32_t>::max() || threads < 1 ||
        threads > emulated::most_threads || cluster > emulated::most_blocks ||
        (cluster > 1 && threads % 32))
        throw std::runtime_error("kernel launch: " + std::to_string(blocks) + " x " +
                                 std::to_string(threads) + " threads");
    if (shared_bytes > most_shared_bytes())
        throw std::runtime_error("shared memory: " + std::to_string(shared_bytes) + " of " +
                                 std::to_string(most_shared_bytes()));
    using Call = std::tuple<void (*)(Parameters...), std::tuple<std::decay_t<Parameters>...>>;
    const Call call{kernel, {static_cast<Parameters>(arguments)...}};
    emulated::run(
        blocks, cluster, threads, shared_bytes,
        [](const void* p) {
            const auto& [function, values] = *static_cast<const Call*>(p);
            std::apply(function, values);
        },
        &call);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
            void* stream, Arguments... arguments) {
    launch_clusters(kernel, blocks, 1, threads, shared_bytes, stream, arguments...);
}

// Clusters of a kernel that run at a time; 0 where it cannot run.
template <class... Parameters>
int64_t most_clusters(void (*)(Parameters...), int, int, size_t shared_bytes) {
    if (shared_bytes > most_shared_bytes()) return 0;
    return static_cast<int64_t>(emulated::setting("FASTREID_AL_EMULATED_CLUSTERS", 3));
}

template <class T>
T* dynamic_shared() {
    return reinterpret_cast<T*>(emulated::machine.blocks[emulated::block_rank()].pool);
}

template <class T>
T relaxed_load(const T* address) {
    emulated::give_way();
    return __atomic_load_n(address, __ATOMIC_RELAXED);
}

template <class T>
void relaxed_store(T* address, T value) {
    emulated::give_way();
    __atomic_store_n(address, value, __ATOMIC_RELAXED);
}

}  // namespace fastreid_al

inline void __syncthreads() { fastreid_al::emulated::wait_for_block(); }

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
    fastreid_al::emulated::wait_for_lanes(fastreid_al::emulated::Wait::warp, mask, 0,
                                          fastreid_al::emulated::lane());
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    using namespace fastreid_al::emulated;
    return static_cast<unsigned>(wait_for_lanes(Wait::vote, mask, predicate != 0, lane()));
}

inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int lane = fastreid_al::emulated::lane();
    return fastreid_al::emulated::shuffle(mask, value, (lane & -width) | (source & (width - 1)));
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = fastreid_al::emulated::lane(), from = lane + static_cast<int>(delta);
    const int source = from < (lane & -width) + width ? from : lane;
    return fastreid_al::emulated::shuffle(mask, value, source);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const int lane = fastreid_al::emulated::lane(), from = lane ^ lanes;
    const int source = from < (lane & -width) + width ? from : lane;
    return fastreid_al::emulated::shuffle(mask, value, source);
}

template <class T>
T atomicAdd(T* target, fastreid_al::emulated::As<T> value) {
    // In unsigned arithmetic, which wraps as in CUDA.
    return fastreid_al::emulated::change(
        target, [&](T old) {
            using Unsigned = std::make_unsigned_t<T>;
            return static_cast<T>(Unsigned(old) + Unsigned(value));
        });
}

template <class T>
T atomicAnd(T* target, fastreid_al::emulated::As<T> value) {
    return fastreid_al::emulated::change(target, [&](T old) { return old & value; });
}

template <class T>
T atomicOr(T* target, fastreid_al::emulated::As<T> value) {
    return fastreid_al::emulated::change(target, [&](T old) { return old | value; });
}

template <class T>
T atomicMin(T* target, fastreid_al::emulated::As<T> value) {
    return fastreid_al::emulated::change(target, [&](T old) { return std::min(old, value); });
}

template <class T>
T atomicMax(T* target, fastreid_al::emulated::As<T> value) {
    return fastreid_al::emulated::change(target, [&](T old) { return std::max(old, value); });
}

template <class T>
T atomicExch(T* target, fastreid_al::emulated::As<T> value) {
    return fastreid_al::emulated::change(target, [&](T) { return value; });
}

template <class T>
T atomicCAS(T* target, fastreid_al::emulated::As<T> expected, fastreid_al::emulated::As<T> value) {
    return fastreid_al::emulated::change(target,
                                         [&](T old) { return old == expected ? value : old; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
    return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}

template <class T>
T __ldg(const T* address) {
    return *address;
}

template <class A, class B,
          class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}

template <class A, class B,
          class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

inline cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t = nullptr) {
    memset(target, value, bytes);
    return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
    memcpy(to, from, bytes);
    return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
