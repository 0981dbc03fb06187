// One call of an operator: its inputs, attributes, output and scratch memory.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
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

// One call of an operator.
class Call {
 public:
  Call(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}

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

  // Runs task(i) for every i below n, on the threads of the session.
  template <class Task>
  void parallel(int64_t n, const Task& task) const {
    if (n <= 0) return;
    if (n == 1) return task(0);
    const auto one = [](void* data, size_t i) { (*static_cast<const Task*>(data))((int64_t)i); };
    check(ort::KernelContext_ParallelFor(api_, context_, one, (size_t)n, 0,
                                         const_cast<Task*>(&task)));
  }

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Uninitialised memory for n elements, aligned for every kernel.
template <class T>
std::unique_ptr<T, Free> scratch(const Call& call, int64_t n) {
  const size_t bytes = ((size_t)n * sizeof(T) + 127) / 64 * 64;
  auto* memory = static_cast<T*>(std::aligned_alloc(64, bytes));
  if (!memory) call.refuse("there is no memory for " + std::to_string(bytes) + " bytes more");
  return std::unique_ptr<T, Free>(memory);
}

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
