// The part of ONNX Runtime's C API that the operators use.
//
// OrtApi is a table of function pointers, to whose end alone ONNX Runtime adds. A function is
// therefore named here by its index, and any runtime from 1.17 (API 17) on serves. Source of the
// names, signatures and order: onnxruntime_c_api.h of ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtAllocator;

struct OrtApi {
  const void* functions[275];
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp as of API 17.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, void*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
};

}  // extern "C"

namespace matryo::ort {

constexpr uint32_t kApiVersion = 17;
constexpr int kFloat = 1, kInt8 = 3, kInt32 = 6, kInt64 = 7;  // ONNXTensorElementDataType
constexpr int kRequired = 0, kOptional = 1;     // OrtCustomOpInputOutputCharacteristic
constexpr int kDefaultMemory = 0;               // OrtMemType
constexpr int kArena = 1;                       // OrtAllocatorType
constexpr int kFail = 1, kInvalidArgument = 2;  // OrtErrorCode

template <int kIndex, class Result, class... Args>
struct Function {
  Result operator()(const OrtApi* api, Args... args) const {
    return reinterpret_cast<Result (*)(Args...)>(const_cast<void*>(api->functions[kIndex]))(
        args...);
  }
};

constexpr Function<0, OrtStatus*, int, const char*> CreateStatus;
constexpr Function<26, OrtStatus*, const char*, OrtCustomOpDomain**> CreateCustomOpDomain;
constexpr Function<27, OrtStatus*, OrtCustomOpDomain*, const OrtCustomOp*> CustomOpDomain_Add;
constexpr Function<28, OrtStatus*, OrtSessionOptions*, OrtCustomOpDomain*> AddCustomOpDomain;
constexpr Function<51, OrtStatus*, OrtValue*, void**> GetTensorMutableData;
constexpr Function<61, OrtStatus*, const OrtTensorTypeAndShapeInfo*, size_t*> GetDimensionsCount;
constexpr Function<62, OrtStatus*, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t>
    GetDimensions;
constexpr Function<65, OrtStatus*, const OrtValue*, OrtTensorTypeAndShapeInfo**>
    GetTensorTypeAndShape;
constexpr Function<69, OrtStatus*, int, int, OrtMemoryInfo**> CreateCpuMemoryInfo;
constexpr Function<75, OrtStatus*, OrtAllocator*, size_t, void**> AllocatorAlloc;
constexpr Function<76, OrtStatus*, OrtAllocator*, void*> AllocatorFree;
constexpr Function<85, OrtStatus*, const OrtKernelInfo*, const char*, float*>
    KernelInfoGetAttribute_float;
constexpr Function<86, OrtStatus*, const OrtKernelInfo*, const char*, int64_t*>
    KernelInfoGetAttribute_int64;
constexpr Function<90, OrtStatus*, const OrtKernelContext*, size_t, const OrtValue**>
    KernelContext_GetInput;
constexpr Function<91, OrtStatus*, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**>
    KernelContext_GetOutput;
constexpr Function<94, void, OrtMemoryInfo*> ReleaseMemoryInfo;
constexpr Function<99, void, OrtTensorTypeAndShapeInfo*> ReleaseTensorTypeAndShapeInfo;
constexpr Function<101, void, OrtCustomOpDomain*> ReleaseCustomOpDomain;
constexpr Function<132, void, OrtAllocator*> ReleaseAllocator;
constexpr Function<253, OrtStatus*, const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator**>
    KernelContext_GetAllocator;
constexpr Function<274, OrtStatus*, const OrtKernelContext*, void (*)(void*, size_t), size_t,
                   size_t, void*>
    KernelContext_ParallelFor;

}  // namespace matryo::ort
