#include "data/io/pickle.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <unordered_map>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

using Kind = PickledValue::Kind;

// Far more than any model has, and little memory.
constexpr size_t kMaxValues = size_t{1} << 20;
constexpr int64_t kMaxElements = int64_t{1} << 48;  // of a storage; bytes then fit 64 bits
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxArguments = 8;

struct StorageClass {
  std::string_view name;
  TensorType type;
};
constexpr std::array<StorageClass, 10> kStorageClasses = {{{"FloatStorage", TensorType::kF32},
                                                           {"HalfStorage", TensorType::kF16},
                                                           {"BFloat16Storage", TensorType::kBF16},
                                                           {"DoubleStorage", TensorType::kF64},
                                                           {"LongStorage", TensorType::kI64},
                                                           {"IntStorage", TensorType::kI32},
                                                           {"ShortStorage", TensorType::kI16},
                                                           {"CharStorage", TensorType::kI8},
                                                           {"ByteStorage", TensorType::kU8},
                                                           {"BoolStorage", TensorType::kBool}}};

/// What a global may be. The number is stored in the value.
enum Global : int64_t { kOrderedDict, kRebuildTensor, kRebuildParameter, kTorchSize, kStorage0 };

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const std::string& where)
      : bytes_(bytes), where_(where) {}

  Pickle run() {
    while (step()) {
    }
    out_.top = pop();
    out_.consumed = at_;
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw IoError(str("reading ", where_, " at byte ", start_, ": ", what));
  }
  void need(bool ok, const char* what) const {
    if (!ok) [[unlikely]]
      fail(what);
  }
  /// Text from the file, made fit for a message.
  static std::string shown(std::string_view text) {
    std::string s(text.substr(0, 100));
    for (char& c : s)
      if (static_cast<unsigned char>(c) < 32 || static_cast<unsigned char>(c) > 126) c = '?';
    return s;
  }

  // --- arguments ----------------------------------------------------------------------------
  std::string_view take(uint64_t n) {
    need(n <= bytes_.size() - at_, "the pickle ends inside of an instruction; it is truncated");
    const std::string_view s(reinterpret_cast<const char*>(bytes_.data()) + at_, n);
    at_ += n;
    return s;
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::string_view line() {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + at_,
                                bytes_.size() - at_);
    const size_t end = rest.substr(0, 512).find('\n');
    need(end != std::string_view::npos, "a name without end");
    at_ += end + 1;
    return rest.substr(0, end);
  }

  // --- stack --------------------------------------------------------------------------------
  PickledValue& value(uint32_t v) { return out_.values[v]; }
  uint32_t push(PickledValue v) {
    need(out_.values.size() < kMaxValues, "more values than any model file has");
    out_.values.push_back(std::move(v));
    stack_.push_back(static_cast<uint32_t>(out_.values.size() - 1));
    return stack_.back();
  }
  void push_number(Kind kind, int64_t n) {
    PickledValue v;
    v.kind = kind;
    v.number = n;
    push(std::move(v));
  }
  void push_text(Kind kind, std::string_view text) {
    PickledValue v;
    v.kind = kind;
    v.text = text;
    push(std::move(v));
  }
  void push_items(Kind kind, std::vector<uint32_t> items) {
    PickledValue v;
    v.kind = kind;
    v.items = std::move(items);
    push(std::move(v));
  }
  uint32_t pop() {
    need(stack_.size() > (marks_.empty() ? 0 : marks_.back()), "the stack is empty");
    const uint32_t v = stack_.back();
    stack_.pop_back();
    return v;
  }
  uint32_t top() const {
    need(stack_.size() > (marks_.empty() ? 0 : marks_.back()), "the stack is empty");
    return stack_.back();
  }
  std::vector<uint32_t> pop_to_mark() {
    need(!marks_.empty(), "there is no mark");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<uint32_t> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }
  void tuple(size_t n) {
    std::vector<uint32_t> items(n);
    for (size_t i = n; i-- > 0;) items[i] = pop();
    push_items(Kind::kTuple, std::move(items));
  }
  void extend(Kind kind, std::span<const uint32_t> items) {
    PickledValue& v = value(top());
    need(v.kind == kind,
         kind == Kind::kDict ? "items for what is no dict" : "elements for what is no list");
    need(kind != Kind::kDict || items.size() % 2 == 0, "a dict's key without a value");
    need(total_items_ + items.size() <= kMaxValues, "more values than any model file has");
    total_items_ += items.size();
    v.items.insert(v.items.end(), items.begin(), items.end());
  }
  void remember(uint64_t slot) {
    memo_[slot] = top();
    need(memo_.size() <= kMaxValues, "more values than any model file has");
  }
  void recall(uint64_t slot) {
    const auto it = memo_.find(slot);
    need(it != memo_.end(), "a reference to nothing");
    need(stack_.size() < kMaxValues, "more values than any model file has");
    stack_.push_back(it->second);
  }

  // --- names and calls ----------------------------------------------------------------------
  void global(std::string_view module, std::string_view name) {
    int64_t which = -1;
    if (module == "collections" && name == "OrderedDict") which = kOrderedDict;
    if (module == "torch._utils" && name == "_rebuild_tensor_v2") which = kRebuildTensor;
    if (module == "torch._utils" && name == "_rebuild_parameter") which = kRebuildParameter;
    if (module == "torch" && name == "Size") which = kTorchSize;
    if (module == "torch")
      for (size_t i = 0; i < kStorageClasses.size(); ++i)
        if (name == kStorageClasses[i].name) which = kStorage0 + static_cast<int64_t>(i);
    if (which < 0)
      fail(str("refusing to construct ", shown(module), ".", shown(name),
               ": a model file holds tensors, names and numbers only. A pickle can run any code; "
               "if you trust its author, load it in PyTorch and save the state_dict"));
    push_number(Kind::kGlobal, which);
  }

  int64_t integer(uint32_t v) {
    need(value(v).kind == Kind::kInt, "expected an integer");
    return value(v).number;
  }
  Shape integers(uint32_t v) {
    const PickledValue& t = value(v);
    need(t.kind == Kind::kTuple && t.items.size() <= kMaxRank,
         "expected a tuple of up to 8 integers");
    Shape shape;
    for (const uint32_t i : t.items) shape.push_back(integer(i));
    return shape;
  }

  void persistent_storage() {
    const PickledValue& id = value(pop());
    // Files of the old kind have a sixth member; a view (not None) shares another storage.
    need(id.kind == Kind::kTuple && (id.items.size() == 5 || id.items.size() == 6),
         "a persistent id that is no storage");
    const auto& i = id.items;
    need(value(i[0]).kind == Kind::kString && value(i[0]).text == "storage",
         "a persistent id that is no storage");
    need(value(i[1]).kind == Kind::kGlobal && value(i[1]).number >= kStorage0,
         "a storage without a type");
    need(value(i[2]).kind == Kind::kString && value(i[2]).text.size() <= 100,
         "a storage without a key");
    need(i.size() == 5 || value(i[5]).kind == Kind::kNone, "a view of a storage: not supported");
    const std::string& key = value(i[2]).text;
    const int64_t numel = integer(i[4]);
    need(numel >= 0 && numel <= kMaxElements, "a storage of no sane size");
    const TensorType type =
        kStorageClasses[static_cast<size_t>(value(i[1]).number - kStorage0)].type;
    const auto [it, fresh] = storage_index_.emplace(key, out_.storages.size());
    if (fresh) out_.storages.push_back({key, type, numel});
    const PickledStorage& s = out_.storages[it->second];
    need(s.type == type && s.numel == numel, "one storage with two types or sizes");
    push_number(Kind::kStorage, static_cast<int64_t>(it->second));
  }

  void rebuild_tensor(const std::vector<uint32_t>& args) {
    need(args.size() == 6 || args.size() == 7, "a tensor with a wrong number of arguments");
    need(value(args[0]).kind == Kind::kStorage, "a tensor without a storage");
    PickledTensor t{static_cast<size_t>(value(args[0]).number), integer(args[1]), integers(args[2]),
                    integers(args[3])};
    need(t.shape.size() == t.stride.size(), "a tensor with sizes and strides of different length");
    // The last element must lie in the storage: then all do, as strides are not negative.
    const auto numel = static_cast<unsigned __int128>(out_.storages[t.storage].numel);
    need(t.offset >= 0, "a tensor with a negative offset");
    unsigned __int128 last = static_cast<unsigned __int128>(t.offset);
    bool empty = false;
    for (size_t d = 0; d < t.shape.size(); ++d) {
      need(t.shape[d] >= 0 && t.stride[d] >= 0, "a tensor with negative sizes or strides");
      if (t.shape[d] == 0)
        empty = true;
      else
        last += static_cast<unsigned __int128>(t.shape[d] - 1) *
                static_cast<unsigned __int128>(t.stride[d]);
    }
    need(empty || last < numel, "a tensor that leaves its storage");
    push_number(Kind::kTensor, static_cast<int64_t>(out_.tensors.size()));
    out_.tensors.push_back(std::move(t));
  }

  void reduce() {
    const uint32_t args_at = pop(), callable = pop();
    need(value(args_at).kind == Kind::kTuple, "a call without a tuple of arguments");
    need(value(callable).kind == Kind::kGlobal, "a call of what is no function");
    // Ahead of the copy, which a short loop of instructions could make again and again.
    need(value(args_at).items.size() <= kMaxArguments, "a call with too many arguments");
    const std::vector<uint32_t> args = value(args_at).items;
    switch (value(callable).number) {
      case kOrderedDict:
        need(args.empty(), "an OrderedDict with arguments");
        return push_items(Kind::kDict, {});
      case kRebuildTensor:
        return rebuild_tensor(args);
      case kRebuildParameter:
        need(args.size() >= 3 && value(args[0]).kind == Kind::kTensor,
             "a parameter without a tensor");
        stack_.push_back(args[0]);
        return;
      case kTorchSize:
        need(args.size() == 1, "a size with a wrong number of arguments");
        stack_.push_back(args[0]);
        return;
      default:
        fail("a call of a storage class");
    }
  }

  void big_integer() {
    const std::string_view raw = take(number<uint8_t>());
    if (raw.size() > 8) return push_text(Kind::kBigInt, raw);
    uint64_t n = !raw.empty() && static_cast<signed char>(raw.back()) < 0 ? ~uint64_t{0} : 0;
    std::memcpy(&n, raw.data(), raw.size());
    push_number(Kind::kInt, static_cast<int64_t>(n));
  }

  void real() {
    uint64_t bits = 0;
    for (const char c : take(8)) bits = bits << 8 | static_cast<unsigned char>(c);
    PickledValue v;
    v.kind = Kind::kFloat;
    v.real = std::bit_cast<double>(bits);
    push(std::move(v));
  }

  void stack_global() {
    const uint32_t name = pop(), module = pop();
    need(value(name).kind == Kind::kString && value(module).kind == Kind::kString,
         "a name that is no string");
    const std::string m = value(module).text, n = value(name).text;
    global(m, n);
  }

  /// One instruction; false after STOP.
  bool step();

  std::span<const std::byte> bytes_;
  const std::string& where_;
  size_t at_ = 0, start_ = 0, total_items_ = 0;
  Pickle out_;
  std::vector<uint32_t> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint64_t, uint32_t> memo_;
  std::unordered_map<std::string, size_t> storage_index_;
};

bool Machine::step() {
  start_ = at_;
  const auto op = number<uint8_t>();
  switch (op) {
    case 0x80: {  // PROTO
      const auto version = number<uint8_t>();
      need(version >= 2 && version <= 5, "an unknown version of pickle");
      break;
    }
    case 0x95:  // FRAME
      number<uint64_t>();
      break;
    case '}':
      push_items(Kind::kDict, {});
      break;
    case ']':
      push_items(Kind::kList, {});
      break;
    case ')':
      push_items(Kind::kTuple, {});
      break;
    case '(':
      need(marks_.size() < kMaxValues, "too many marks");
      marks_.push_back(stack_.size());
      break;
    case 't':
      push_items(Kind::kTuple, pop_to_mark());
      break;
    case 0x85:
    case 0x86:
    case 0x87:
      tuple(op - 0x84u);
      break;
    case 'a': {
      const uint32_t item = pop();
      extend(Kind::kList, {&item, 1});
      break;
    }
    case 'e':
      extend(Kind::kList, pop_to_mark());
      break;
    case 's': {
      const uint32_t v = pop(), key = pop();
      extend(Kind::kDict, std::array{key, v});
      break;
    }
    case 'u':
      extend(Kind::kDict, pop_to_mark());
      break;
    case 'c': {
      const std::string_view module = line(), name = line();
      global(module, name);
      break;
    }
    case 0x93:
      stack_global();
      break;
    case 'R':
      reduce();
      break;
    case 'b': {  // BUILD: attributes of a state dict, such as _metadata
      pop();
      need(value(top()).kind == Kind::kDict, "attributes for what is no dict");
      break;
    }
    case 'Q':
      persistent_storage();
      break;
    case 'q':
      remember(number<uint8_t>());
      break;
    case 'r':
      remember(number<uint32_t>());
      break;
    case 0x94:
      remember(memo_.size());
      break;
    case 'h':
      recall(number<uint8_t>());
      break;
    case 'j':
      recall(number<uint32_t>());
      break;
    case 'X':
      push_text(Kind::kString, take(number<uint32_t>()));
      break;
    case 0x8c:
      push_text(Kind::kString, take(number<uint8_t>()));
      break;
    case 0x8d:
      push_text(Kind::kString, take(number<uint64_t>()));
      break;
    case 'K':
      push_number(Kind::kInt, number<uint8_t>());
      break;
    case 'M':
      push_number(Kind::kInt, number<uint16_t>());
      break;
    case 'J':
      push_number(Kind::kInt, number<int32_t>());
      break;
    case 0x8a:
      big_integer();
      break;
    case 'G':
      real();
      break;
    case 0x88:
    case 0x89:
      push_number(Kind::kBool, op == 0x88);
      break;
    case 'N':
      push(PickledValue{});
      break;
    case '.':
      return false;
    default:
      fail(str("instruction ", static_cast<int>(op),
               " is not one that files of tensors use; the file is damaged, or not one of them"));
  }
  return true;
}

}  // namespace

Pickle read_pickle(std::span<const std::byte> bytes, const std::string& where) {
  return Machine(bytes, where).run();
}

}  // namespace rwkv
