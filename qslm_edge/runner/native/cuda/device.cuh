/* Errors, device memory and launches: what every other file stands on.
 *
 * Inside the library a failure is an exception that carries the code and the line of qslm.h; it is caught where the C
 * interface begins. Memory is asked for only where it is free, so that running out is one line and not a dead context.
 */
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#pragma GCC visibility push(default)
#include "qslm.h"
#pragma GCC visibility pop

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "this engine needs an NVIDIA GPU of compute capability 8.0 or newer, and found none to build for"
#endif

namespace qslm {

struct Failure {
    int code;
    std::string line;
};

inline void check(cudaError_t status, const char *what) {
    if (status == cudaSuccess) return;
    cudaGetLastError(); // an error that is reported is not reported again by the next call
    int code = QSLM_DEVICE_FAILED;
    if (status == cudaErrorMemoryAllocation) code = QSLM_OUT_OF_MEMORY;
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || status == cudaErrorInitializationError)
        code = QSLM_NO_DEVICE;
    std::string line = std::string(what) + ": " + cudaGetErrorString(status);
    if (status == cudaErrorNoKernelImageForDevice) {
        code = QSLM_NO_DEVICE;
        line = "the library was built for another GPU: build it again on this machine";
    }
    throw Failure{code, line};
}

inline void require(bool holds, const std::string &line) {
    if (!holds) throw Failure{QSLM_BAD_ARGUMENT, line};
}

constexpr size_t MIB = size_t(1) << 20;
constexpr size_t SPARE_BYTES = 32 * MIB; // left to the driver: what takes the last page fails later, elsewhere

/* Waits for copies and fills: they may still be under way when their call returns, and kernels run on other streams. */
inline void settle(const char *what) { check(cudaStreamSynchronize(cudaStreamLegacy), what); }

/* Memory of the device (zeroed) or pinned memory of the host, freed with its owner. */
class Memory {
  public:
    Memory() = default;
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    Memory(Memory &&other) noexcept { swap(other); }
    Memory &operator=(Memory &&other) noexcept {
        swap(other);
        return *this;
    }
    ~Memory() {
        if (pinned_) cudaFreeHost(data_);
        else cudaFree(data_);
    }

    static Memory device(size_t bytes, const char *what) {
        size_t free_bytes = 0, total_bytes = 0;
        check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory of the GPU");
        if (bytes + SPARE_BYTES > free_bytes)
            throw Failure{QSLM_OUT_OF_MEMORY, std::string(what) + ": " + std::to_string(bytes / MIB + 1) +
                                                  " MiB of GPU memory needed, " + std::to_string(free_bytes / MIB) +
                                                  " MiB free"};
        Memory memory;
        check(cudaMalloc(&memory.data_, bytes ? bytes : 1), what);
        memory.bytes_ = bytes;
        check(cudaMemset(memory.data_, 0, bytes ? bytes : 1), what);
        settle(what);
        return memory;
    }

    static Memory pinned(size_t bytes, const char *what) {
        Memory memory;
        memory.pinned_ = true;
        check(cudaMallocHost(&memory.data_, bytes ? bytes : 1), what);
        memory.bytes_ = bytes;
        return memory;
    }

    static Memory copy_of(const void *host, size_t bytes, const char *what) {
        Memory memory = device(bytes, what);
        check(cudaMemcpy(memory.data_, host, bytes, cudaMemcpyHostToDevice), what);
        settle(what);
        return memory;
    }

    template <class T> T *as() const { return static_cast<T *>(data_); }
    size_t bytes() const { return bytes_; }

  private:
    void swap(Memory &other) {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        std::swap(pinned_, other.pinned_);
    }
    void *data_ = nullptr;
    size_t bytes_ = 0;
    bool pinned_ = false;
};

constexpr size_t DEFAULT_SHARED_BYTES = 48 * 1024;
constexpr int PROGRAMMATIC_LAUNCH = 12030; // CUDA that knows launches which overlap inside a captured graph

/* Where kernels go. `overlap`: a kernel may start while the one before it ends; it then waits in `after_previous`. */
struct Launcher {
    cudaStream_t stream = nullptr;
    bool overlap = false;

    template <class... Parameters, class... Arguments>
    void operator()(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                    Arguments &&...arguments) const {
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        start(kernel, grid, threads, shared_bytes, attribute, overlap ? 1 : 0, std::forward<Arguments>(arguments)...);
    }

    /* All blocks run at once, so that they may wait for each other. */
    template <class... Parameters, class... Arguments>
    void together(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
                  Arguments &&...arguments) const {
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
        start(kernel, grid, threads, shared_bytes, attribute, 1, std::forward<Arguments>(arguments)...);
    }

  private:
    template <class... Parameters, class... Arguments>
    void start(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
               cudaLaunchAttribute &attribute, int attributes, Arguments &&...arguments) const {
        if (shared_bytes > DEFAULT_SHARED_BYTES)
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
                  "shared memory of a kernel");
        cudaLaunchConfig_t config{};
        config.gridDim = grid;
        config.blockDim = dim3(unsigned(threads));
        config.dynamicSmemBytes = shared_bytes;
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = unsigned(attributes);
        check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...), "kernel launch");
    }
};

/* Lets the next kernel start, to fetch its weights while this one computes. */
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Waits for all that earlier kernels wrote. Every kernel calls it before it touches anything but weights. */
__device__ __forceinline__ void after_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

} // namespace qslm
