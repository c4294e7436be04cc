#include "trainer/event_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "data/io/crc32.h"
#include "data/tokenizer/utf8.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "events.out.tfevents.";

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// One protobuf message under construction.
class Message {
 public:
  Message& integer(int field, uint64_t value) {
    if (value == 0) return *this;
    key(field, 0);
    varint(value);
    return *this;
  }
  Message& real(int field, double value) {
    if (value == 0) return *this;
    key(field, 1);
    return raw(std::bit_cast<uint64_t>(value));
  }
  /// Also if it is 0: a member of a oneof, which is absent otherwise.
  Message& chosen_real32(int field, float value) {
    key(field, 5);
    return raw(std::bit_cast<uint32_t>(value));
  }
  Message& bytes(int field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    out_ += value;
    return *this;
  }
  Message& message(int field, const Message& m) { return bytes(field, m.out_); }
  const std::string& str() const { return out_; }

 private:
  void key(int field, int wire_type) { varint(static_cast<uint64_t>(field << 3 | wire_type)); }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) out_ += static_cast<char>(value | 0x80);
    out_ += static_cast<char>(value);
  }
  template <class T>
  Message& raw(T value) {
    out_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  std::string out_;
};

Message event(double time, int64_t step) {
  return Message().real(1, time).integer(2, static_cast<uint64_t>(step));
}

uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(crc32c(std::as_bytes(std::span(bytes.data(), bytes.size()))), 15) + 0xA282EAD8u;
}

/// The largest time in the names of the event files of a folder; -1: there is none.
int64_t newest_event_file(const std::string& dir) {
  int64_t newest = -1;
  std::error_code ec;
  for (fs::directory_iterator it(dir, ec), end; !ec && it != end; it.increment(ec)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(kPrefix)) continue;
    int64_t seconds = 0;
    std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), seconds);
    newest = std::max(newest, seconds);
  }
  return newest;
}

/// TensorBoard reads a folder's files in the order of their names: the new one has to be the last,
/// also if it is made within a second of the one before, or after the clock was set back.
std::string event_path(const std::string& dir, int64_t newest) {
  std::array<char, 80> name;
  std::snprintf(name.data(), name.size(), "%s%010lld.greylag.%d", kPrefix.data(),
                static_cast<long long>(std::max(static_cast<int64_t>(wall_time()), newest + 1)),
                static_cast<int>(::getpid()));
  return (fs::path(dir) / name.data()).string();
}

}  // namespace

std::string event_version(double time) {
  return Message().real(1, time).bytes(3, "brain.Event:2").str();
}

std::string event_scalars(double time, int64_t step, std::span<const EventScalar> scalars) {
  Message summary;
  for (const EventScalar& s : scalars)
    summary.message(1, Message().bytes(1, s.tag).chosen_real32(2, static_cast<float>(s.value)));
  return event(time, step).message(5, summary).str();
}

std::string event_text(double time, int64_t step, std::string_view tag, std::string_view text) {
  // The plugin "text" shows string tensors of shape [1].
  constexpr uint64_t kClassTensor = 2, kTypeString = 7;
  const Message plugin = Message().message(1, Message().bytes(1, "text")).integer(4, kClassTensor);
  const Message shape = Message().message(2, Message().integer(1, 1));
  const Message tensor = Message().integer(1, kTypeString).message(2, shape).bytes(8, text);
  const Message value = Message().bytes(1, tag).message(9, plugin).message(8, tensor);
  return event(time, step).message(5, Message().message(1, value)).str();
}

std::string event_session_start(double time, int64_t step) {
  constexpr uint64_t kStart = 1;
  return event(time, step).message(7, Message().integer(1, kStart)).str();
}

std::string event_record(std::string_view message) {
  std::string out;
  const auto put = [&](auto value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  };
  put(static_cast<uint64_t>(message.size()));
  put(masked_crc(out));
  out += message;
  put(masked_crc(message));
  return out;
}

EventLog::EventLog(const std::string& dir, int64_t next_step)
    : EventLog(dir, next_step, newest_event_file(dir)) {}

EventLog::EventLog(const std::string& dir, int64_t next_step, int64_t newest)
    : file_(event_path(dir, newest), PosixWriter::Mode::kNew, /*buffer_bytes=*/0) {
  write(event_version(wall_time()));
  if (newest >= 0) write(event_session_start(wall_time(), next_step));
}

void EventLog::write(const std::string& message) {
  file_.append(event_record(message));  // nothing is buffered: one write per record
}

void EventLog::step(const StepRecord& r, double weight_decay) {
  const std::array<EventScalar, 8> scalars = {{{"loss", r.loss},
                                               {"lr", r.lr},
                                               {"wd", weight_decay},
                                               {"Gtokens", static_cast<double>(r.tokens) / 1e9},
                                               {"kt/s", r.tokens_per_s / 1e3},
                                               {"loss_avg", r.loss_avg},
                                               {"grad_norm", r.grad_norm},
                                               {"mfu", r.mfu}}};
  write(event_scalars(wall_time(), r.step, scalars));
}

void EventLog::valid(int64_t step, double loss) {
  write(event_scalars(wall_time(), step, std::array<EventScalar, 1>{{{"valid_loss", loss}}}));
}

void EventLog::sample(int64_t step, const std::string& text) {
  write(event_text(wall_time(), step, "sample", to_valid_utf8(text)));  // readers refuse bytes
}

}  // namespace rwkv
