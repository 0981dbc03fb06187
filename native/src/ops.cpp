// ONNX Runtime's custom operators of the domain "matryo.native". Shapes and types are checked by
// the builder of the graphs; an operator checks what memory safety needs.

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "ort.h"

namespace matryo {
namespace {

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
  if (!memory) call.refuse("no memory for " + std::to_string(bytes) + " bytes");
  return std::unique_ptr<T, Free>(memory);
}

class Attributes {
 public:
  Attributes(const OrtApi* api, const OrtKernelInfo* info) : api_(api), info_(info) {}

  int64_t integer(const char* name) const {
    int64_t value = 0;
    if (OrtStatus* status = ort::KernelInfoGetAttribute_int64(api_, info_, name, &value)) {
      throw Failure{status};
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
  const OrtApi* api_;
  const OrtKernelInfo* info_;
};

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- a linear layer: x, weights, scales, sums, bias, channels, residual -> y

class LinearOp {
 public:
  LinearOp(const Attributes& a, bool floats)
      : numbers_(floats ? Numbers::kFloats
                        : (a.integer("fine") ? Numbers::kWords : Numbers::kBytes)),
        activation_((Activation)a.integer("activation")),
        n_(a.integer("columns")),
        zero_point_(numbers_ == Numbers::kBytes ? (int32_t)a.integer("zero_point") : 0) {}

  template <class W>
  void compute(const Call& call) const {
    Shape x_shape, w_shape;
    Linear a{};
    a.numbers = numbers_;
    a.activation = activation_;
    a.x = call.input<float>(0, &x_shape);
    a.weights = call.input<W>(1, &w_shape);
    a.k = x_shape.width();
    a.n = n_;
    a.zero_point = zero_point_;
    const int64_t rows = x_shape.rows();
    const int64_t depth = numbers_ == Numbers::kBytes ? 8 : numbers_ == Numbers::kWords ? 2 : 1;
    const bool gated = activation_ == Activation::kSiluGate || activation_ == Activation::kGeluGate;
    a.panels = divide_up(n_, kLanes) * (gated ? 2 : 1);
    const int64_t expected = a.panels * divide_up(a.k, depth) * depth * kLanes;
    if (w_shape.size() != expected) {
      call.refuse("packed weights have " + std::to_string(w_shape.size()) + " elements, not " +
                  std::to_string(expected));
    }
    const int64_t padded = a.panels * kLanes;
    const int64_t groups = groups_of(numbers_, a.k);
    a.scales = call.vector<float>(2, groups * padded, "scales");
    a.sums = call.vector<int32_t>(3, groups * padded, "sums");
    a.bias = call.vector<float>(4, padded, "bias");
    a.channels = call.vector<float>(5, a.k, "channels");
    a.residual = call.vector<float>(6, rows * n_, "residual");
    if (a.k % kLanes && a.k > kMostWidth) call.refuse("a width of " + std::to_string(a.k) + " is not supported");
    if (numbers_ != Numbers::kFloats && !a.scales) call.refuse("scales are missing");
    std::vector<int64_t> y_dims = x_shape.dims;
    y_dims.back() = n_;
    a.y = call.output(y_dims);

    // Rows are rounded a few blocks at a time. Threads share the blocks, and where there are fewer
    // blocks than threads may need, the panels of a block.
    constexpr int64_t kTasks = 8;
    const int64_t block = block_rows(numbers_, a.k);
    const int64_t together = block * (kMostBlockRows * 2 / block);
    const bool rounds = numbers_ != Numbers::kFloats;
    const int64_t most = rows < together ? rows : together;
    const int64_t element = numbers_ == Numbers::kWords ? 2 : 1;
    Rounded all{};
    // A row ends with a whole number of lanes. The 64 bytes more keep rows off one cache set.
    all.stride = divide_up(a.k * element, 64) * 64 + 64;
    auto values = scratch<uint8_t>(call, rounds ? most * all.stride : 0);
    auto scales = scratch<float>(call, most * groups);
    all.values = values.get();
    all.scales = scales.get();
    for (int64_t first = 0; first < rows; first += most) {
      const int64_t end = first + most < rows ? first + most : rows;
      const int64_t blocks = divide_up(end - first, block);
      const auto from = [&](int64_t row) {
        const int64_t i = row - first;
        return Rounded{all.values + i * all.stride, all.scales + i * groups, all.stride};
      };
      const auto end_of = [&](int64_t row) { return row + block < end ? row + block : end; };
      if (rounds) {
        call.parallel(blocks, [&](int64_t i) {
          const int64_t row = first + i * block;
          kernels().round_rows(a, row, end_of(row), from(row));
        });
      }
      const int64_t pairs = divide_up(a.panels, 2);
      const int64_t wanted = divide_up(kTasks, blocks), parts = wanted < pairs ? wanted : pairs;
      const int64_t each = divide_up(pairs, parts) * 2;
      call.parallel(blocks * parts, [&](int64_t i) {
        const int64_t row = first + i / parts * block, panel = i % parts * each;
        const int64_t last = panel + each < a.panels ? panel + each : a.panels;
        if (panel < last) kernels().multiply(a, row, end_of(row), panel, last, from(row));
      });
    }
  }

 private:
  Numbers numbers_;
  Activation activation_;
  int64_t n_;
  int32_t zero_point_;
};

// --- attention: qkv, lengths, cos, sin -> y

class AttentionOp {
 public:
  explicit AttentionOp(const Attributes& a)
      : heads_(a.integer("num_heads")), floats_(a.integer("floats") != 0), scale_(a.number("scale")) {}

  void compute(const Call& call) const {
    Shape shape, lengths_shape, cos_shape, sin_shape;
    Attention a{};
    const float* qkv = call.input<float>(0, &shape);
    const int64_t* lengths = call.input<int64_t>(1, &lengths_shape);
    a.cos = call.input<float>(2, &cos_shape);
    a.sin = call.input<float>(3, &sin_shape);
    const int64_t width = shape.width() / 3, texts = lengths_shape.size();
    a.floats = floats_;
    a.heads = heads_;
    a.size = width / heads_;
    a.stride = shape.width();
    a.scale = scale_;
    if (a.size * heads_ * 3 != a.stride || a.size % (a.cos ? 2 * kLanes : kLanes) || a.size > kMostSize) {
      call.refuse("heads of " + std::to_string(a.size) + " entries are not supported");
    }
    std::vector<int64_t> starts(texts + 1), places(texts);
    int64_t longest = 0;
    for (int64_t i = 0; i < texts; i++) {
      if (lengths[i] < 0) call.refuse("a length is negative");
      starts[i + 1] = starts[i] + lengths[i];
      longest = lengths[i] > longest ? lengths[i] : longest;
    }
    if (starts[texts] != shape.rows()) call.refuse("the lengths do not add up to the rows");
    if (a.cos && (cos_shape.size() < longest * a.size / 2 || sin_shape.size() < longest * a.size / 2)) {
      call.refuse("a text of " + std::to_string(longest) + " tokens is longer than the positions");
    }
    std::vector<int64_t> y_dims = shape.dims;
    y_dims.back() = width;
    float* y = call.output(y_dims);

    constexpr int64_t kGroup = 2048;  // packed rows of the texts that share the scratch memory
    for (int64_t first = 0; first < texts;) {
      int64_t last = first, packed = 0;
      while (last < texts && (last == first || packed + packed_rows(lengths[last]) <= kGroup)) {
        places[last] = packed;
        packed += packed_rows(lengths[last++]);
      }
      const int64_t row = starts[first], group = last - first;
      a.q = qkv + row * a.stride;
      a.k = a.q + width;
      a.v = a.k + width;
      a.y = y + row * width;
      std::vector<int64_t> group_starts(group + 1), tasks(group + 1);
      for (int64_t i = 0; i <= group; i++) group_starts[i] = starts[first + i] - row;
      for (int64_t i = 0; i < group; i++) {
        tasks[i + 1] = tasks[i] + heads_ * divide_up(lengths[first + i], kQueryRows);
      }
      a.starts = group_starts.data();
      a.places = places.data() + first;
      const int64_t bytes = packed * width * (floats_ ? 4 : 2);
      auto keys = scratch<uint8_t>(call, bytes), values = scratch<uint8_t>(call, bytes);
      auto scales = scratch<float>(call, group * heads_ * 2);
      a.keys = keys.get();
      a.values = values.get();
      a.scales = scales.get();
      call.parallel(group * heads_, [&](int64_t i) { kernels().pack_keys(a, i / heads_, i % heads_); });
      call.parallel(tasks[group], [&](int64_t i) {
        int64_t text = 0;
        while (tasks[text + 1] <= i) text++;
        const int64_t n = lengths[first + text], blocks = divide_up(n, kQueryRows);
        const int64_t head = (i - tasks[text]) / blocks, begin = (i - tasks[text]) % blocks * kQueryRows;
        kernels().attend(a, text, head, begin, begin + kQueryRows < n ? begin + kQueryRows : n);
      });
      first = last;
    }
  }

 private:
  static constexpr int64_t kQueryRows = 120;  // queries of one task; tiles of every CPU divide it
  int64_t heads_;
  bool floats_;
  float scale_;
};

// --- layer norm: x, scale, bias -> y

class LayerNormOp {
 public:
  explicit LayerNormOp(const Attributes& a) : epsilon_(a.number("epsilon")) {}

  void compute(const Call& call) const {
    Shape shape;
    const float* x = call.input<float>(0, &shape);
    const int64_t width = shape.width(), rows = shape.rows();
    if (width % kLanes) call.refuse("a width of " + std::to_string(width) + " is not supported");
    const float* scale = call.vector<float>(1, width, "scale");
    const float* bias = call.vector<float>(2, width, "bias");
    if (!scale) call.refuse("scale is missing");
    float* y = call.output(shape.dims);
    constexpr int64_t kRows = 48;  // of one task
    call.parallel(divide_up(rows, kRows), [&](int64_t i) {
      const int64_t row = i * kRows, n = rows - row < kRows ? rows - row : kRows;
      kernels().layer_norm(x + row * width, n, width, scale, bias, epsilon_, y + row * width);
    });
  }

 private:
  float epsilon_;
};

// --- registration

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
  if (!api) return nullptr;
  // ONNX Runtime keeps the domain's address, so that it lives as long as the process.
  static OrtCustomOpDomain* domain = nullptr;
  static OrtStatus* made = [&]() -> OrtStatus* {
    if (OrtStatus* status = ort::CreateCustomOpDomain(api, "matryo.native", &domain)) return status;
    for (const OrtCustomOp* op : {custom_op<QuantizedLinear>(), custom_op<FloatLinear>(),
                                  custom_op<SelfAttention>(), custom_op<LayerNorm>()}) {
      if (OrtStatus* status = ort::CustomOpDomain_Add(api, domain, op)) return status;
    }
    return nullptr;
  }();
  if (made) return made;
  return ort::AddCustomOpDomain(api, options, domain);
}
