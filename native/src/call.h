// One call of an operator: its inputs, attributes, output and scratch memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ort.h"

namespace matryo {
namespace {

// What an operator throws; ONNX Runtime gets the status.
struct Failure {
  OrtStatus* status;
};

struct Shape {
  std::vector<int64_t> dims;
  int64_t rows() const {
    int64_t n = 1;
    for (size_t i = 0; i + 1 < dims.size(); i++) n *= dims[i];
    return n;
  }
  int64_t width() const { return dims.empty() ? 1 : dims.back(); }
  int64_t size() const { return rows() * width(); }
};

// The flag that ends the calls of this thread early once the flag is not 0; null for no flag. See
// matryo_native_watch.
inline const int32_t*& watched() {
  thread_local const int32_t* flag = nullptr;
  return flag;
}

// One call of an operator.
class Call {
 public:
  Call(const OrtApi* api, OrtKernelContext* context)
      : api_(api), context_(context), flag_(watched()) {}

  const OrtApi* api() const { return api_; }
  OrtKernelContext* context() const { return context_; }

  void check(OrtStatus* status) const {
    if (status) throw Failure{status};
  }
  [[noreturn]] void refuse(const std::string& why) const {
    throw Failure{ort::CreateStatus(api_, ort::kInvalidArgument, why.c_str())};
  }

  // Data of an input, or null for an input that is left out.
  template <class T>
  const T* input(size_t index, Shape* shape) const {
    const OrtValue* value = nullptr;
    check(ort::KernelContext_GetInput(api_, context_, index, &value));
    if (!value) return nullptr;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort::GetTensorTypeAndShape(api_, value, &info));
    size_t rank = 0;
    OrtStatus* status = ort::GetDimensionsCount(api_, info, &rank);
    shape->dims.resize(rank);
    if (!status) status = ort::GetDimensions(api_, info, shape->dims.data(), rank);
    ort::ReleaseTensorTypeAndShapeInfo(api_, info);
    check(status);
    void* data = nullptr;
    check(ort::GetTensorMutableData(api_, const_cast<OrtValue*>(value), &data));
    return static_cast<const T*>(data);
  }

  // Data of an input that must be there, with at least one axis.
  template <class T>
  const T* needed(size_t index, Shape* shape, const char* name) const {
    const T* data = input<T>(index, shape);
    if (shape->dims.empty()) refuse(std::string(name) + " is missing, or has no axes");
    return data;
  }

  // Data of an input of `size` elements, or null for an input that is left out.
  template <class T>
  const T* vector(size_t index, int64_t size, const char* name) const {
    Shape shape;
    const T* data = input<T>(index, &shape);
    if (data && shape.size() != size) {
      refuse(std::string(name) + " has " + std::to_string(shape.size()) + " elements, not " +
             std::to_string(size));
    }
    return data;
  }

  float* output(const std::vector<int64_t>& dims) const {
    OrtValue* value = nullptr;
    check(ort::KernelContext_GetOutput(api_, context_, 0, dims.data(), dims.size(), &value));
    void* data = nullptr;
    check(ort::GetTensorMutableData(api_, value, &data));
    return static_cast<float*>(data);
  }

  // Runs task(i) for every i below n, on the threads of the session. A call that is interrupted
  // leaves out the tasks that have not begun, and throws.
  template <class Task>
  void parallel(int64_t n, const Task& task) const {
    Tasks<Task> tasks{flag_, &task};
    if (n == 1) {
      tasks.run(0);
    } else if (n > 0) {
      const auto one = [](void* all, size_t i) { static_cast<Tasks<Task>*>(all)->run((int64_t)i); };
      check(ort::KernelContext_ParallelFor(api_, context_, one, (size_t)n, 0, &tasks));
    }
    if (tasks.is_interrupted()) refuse("the run was interrupted");
  }

 private:
  template <class Task>
  struct Tasks {
    const int32_t* flag;
    const Task* task;
    bool is_interrupted() const { return flag && __atomic_load_n(flag, __ATOMIC_RELAXED); }
    void run(int64_t i) const {
      if (!is_interrupted()) (*task)(i);
    }
  };

  const OrtApi* api_;
  OrtKernelContext* context_;
  const int32_t* flag_;
};

// Uninitialised memory for `n` elements, aligned for every kernel.
//
// The memory is the session's, which keeps what it has for later calls. The C library would give a
// large block back to the system each time, and a batch would pay for the same pages in every layer.
template <class T>
class Scratch {
 public:
  Scratch(const Call& call, int64_t n) : api_(call.api()) {
    const size_t bytes = (size_t)n * sizeof(T) + 2 * kAlign;
    try {
      OrtMemoryInfo* info = nullptr;
      call.check(ort::CreateCpuMemoryInfo(api_, ort::kArena, ort::kDefaultMemory, &info));
      OrtStatus* status =
          ort::KernelContext_GetAllocator(api_, call.context(), info, &allocator_);
      ort::ReleaseMemoryInfo(api_, info);
      call.check(status);
      call.check(ort::AllocatorAlloc(api_, allocator_, bytes, &block_));
      if (!block_) call.refuse("there is no memory for " + std::to_string(bytes) + " bytes more");
    } catch (...) {
      release();
      throw;
    }
  }
  ~Scratch() { release(); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() const {
    return reinterpret_cast<T*>(((uintptr_t)block_ + kAlign - 1) / kAlign * kAlign);
  }

 private:
  static constexpr size_t kAlign = 64;

  void release() {
    if (block_) ort::AllocatorFree(api_, allocator_, block_);  // of our own block: never fails
    if (allocator_) ort::ReleaseAllocator(api_, allocator_);
  }

  const OrtApi* api_;
  OrtAllocator* allocator_ = nullptr;
  void* block_ = nullptr;
};

class Attributes {
 public:
  Attributes(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  // An integer from `least` to `most`.
  int64_t integer(const char* name, int64_t least, int64_t most) const {
    const int64_t value = integer(name);
    if (value < least || value > most) {
      const std::string why = std::string(name) + " is " + std::to_string(value) + ", not " +
                              std::to_string(least) + " to " + std::to_string(most);
      throw Failure{ort::CreateStatus(api_, ort::kInvalidArgument, why.c_str())};
    }
    return value;
  }

  float number(const char* name) const {
    float value = 0;
    if (OrtStatus* status = ort::KernelInfoGetAttribute_float(api_, info_, name, &value)) {
      throw Failure{status};
    }
    return value;
  }

 private:
  int64_t integer(const char* name) const {
    int64_t value = 0;
    if (OrtStatus* status = ort::KernelInfoGetAttribute_int64(api_, info_, name, &value)) {
      throw Failure{status};
    }
    return value;
  }

  const OrtApi* api_;
  const OrtKernelInfo* info_;
};

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace matryo
