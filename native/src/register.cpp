// ONNX Runtime's custom operators of the domain "matryo.native". The builder of graphs knows shapes
// and types; an operator checks what memory safety needs.

#include <mutex>

#include "attention_op.h"
#include "layer_norm_op.h"
#include "linear_op.h"

namespace matryo {
namespace {

constexpr size_t kMostInputs = 7;

// What ONNX Runtime asks of an operator.
template <class Op>
struct Kernel {
  const OrtApi* api;
  Op op;
};

struct QuantizedLinear {
  static constexpr const char* kName = "QuantizedLinear";
  static constexpr size_t kInputs = 7, kNeeded = 3;
  static constexpr int kTypes[kMostInputs] = {ort::kFloat, ort::kInt8,  ort::kFloat, ort::kInt32,
                                              ort::kFloat, ort::kFloat, ort::kFloat};
  using Op = LinearOp;
  static Op make(const Attributes& a) { return Op(a, false); }
  static void compute(const Op& op, const Call& call) { op.compute<int8_t>(call); }
};

struct FloatLinear {
  static constexpr const char* kName = "Linear";
  static constexpr size_t kInputs = 7, kNeeded = 2;
  static constexpr int kTypes[kMostInputs] = {ort::kFloat, ort::kFloat, ort::kFloat, ort::kInt32,
                                              ort::kFloat, ort::kFloat, ort::kFloat};
  using Op = LinearOp;
  static Op make(const Attributes& a) { return Op(a, true); }
  static void compute(const Op& op, const Call& call) { op.compute<float>(call); }
};

struct SelfAttention {
  static constexpr const char* kName = "SelfAttention";
  static constexpr size_t kInputs = 4, kNeeded = 2;
  static constexpr int kTypes[kMostInputs] = {ort::kFloat, ort::kInt64, ort::kFloat, ort::kFloat};
  using Op = AttentionOp;
  static Op make(const Attributes& a) { return Op(a); }
  static void compute(const Op& op, const Call& call) { op.compute(call); }
};

struct LayerNorm {
  static constexpr const char* kName = "LayerNormalization";
  static constexpr size_t kInputs = 3, kNeeded = 2;
  static constexpr int kTypes[kMostInputs] = {ort::kFloat, ort::kFloat, ort::kFloat};
  using Op = LayerNormOp;
  static Op make(const Attributes& a) { return Op(a); }
  static void compute(const Op& op, const Call& call) { op.compute(call); }
};

// Runs a function, and turns what it throws into a status.
template <class F>
OrtStatus* guarded(const OrtApi* api, const F& f) {
  try {
    f();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return ort::CreateStatus(api, ort::kInvalidArgument, error.what());
  }
}

template <class Spec>
const OrtCustomOp* custom_op() {
  using K = Kernel<typename Spec::Op>;
  static const OrtCustomOp op = [] {
    OrtCustomOp o{};
    o.version = ort::kApiVersion;
    o.GetName = [](const OrtCustomOp*) { return Spec::kName; };
    o.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    o.GetInputType = [](const OrtCustomOp*, size_t i) { return Spec::kTypes[i]; };
    o.GetInputTypeCount = [](const OrtCustomOp*) { return Spec::kInputs; };
    o.GetOutputType = [](const OrtCustomOp*, size_t) { return ort::kFloat; };
    o.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    o.KernelDestroy = [](void* kernel) { delete static_cast<K*>(kernel); };
    o.GetInputCharacteristic = [](const OrtCustomOp*, size_t i) {
      return i < Spec::kNeeded ? ort::kRequired : ort::kOptional;
    };
    o.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return ort::kRequired; };
    o.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return ort::kDefaultMemory; };
    const auto one = [](const OrtCustomOp*) { return 1; };
    o.GetVariadicInputMinArity = one;
    o.GetVariadicInputHomogeneity = one;
    o.GetVariadicOutputMinArity = one;
    o.GetVariadicOutputHomogeneity = one;
    o.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                          void** kernel) {
      return guarded(api, [&] { *kernel = new K{api, Spec::make(Attributes(api, info))}; });
    };
    o.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const K* k = static_cast<const K*>(kernel);
      return guarded(k->api, [&] { Spec::compute(k->op, Call(k->api, context)); });
    };
    o.GetStartVersion = one;
    o.GetEndVersion = [](const OrtCustomOp*) { return INT32_MAX; };
    return o;
  }();
  return &op;
}

}  // namespace
}  // namespace matryo

// What ONNX Runtime calls when a session registers the library.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace matryo;
  const OrtApi* api = base->GetApi(ort::kApiVersion);
  if (!api) {
    return ort::CreateStatus(base->GetApi(1), ort::kFail,
                             "matryo-native needs ONNX Runtime 1.17 or newer; upgrade onnxruntime");
  }
  if (!kernels()) {
    return ort::CreateStatus(api, ort::kInvalidArgument,
                             "MATRYO_NATIVE_ISA names kernels that this library lacks or this CPU "
                             "cannot run; unset it to use the fastest ones");
  }
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  static OrtCustomOpDomain* made = nullptr;  // sessions use it as long as the process lives
  if (!made) {
    OrtCustomOpDomain* domain = nullptr;
    OrtStatus* status = ort::CreateCustomOpDomain(api, "matryo.native", &domain);
    if (status) return status;
    for (const OrtCustomOp* op : {custom_op<QuantizedLinear>(), custom_op<FloatLinear>(),
                                  custom_op<SelfAttention>(), custom_op<LayerNorm>()}) {
      status = ort::CustomOpDomain_Add(api, domain, op);
      if (status) {
        ort::ReleaseCustomOpDomain(api, domain);
        return status;
      }
    }
    made = domain;
  }
  return ort::AddCustomOpDomain(api, options, made);
}

// Ends sessions' runs on this thread early: once *flag is not 0, operators begin no further task,
// and fail. Null ends the watch. The flag must live as long as it is watched.
extern "C" __attribute__((visibility("default"))) void matryo_native_watch(const int32_t* flag) {
  matryo::watched() = flag;
}
