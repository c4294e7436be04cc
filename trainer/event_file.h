#pragma once
/// TensorBoard event files: TFRecord framing around protobuf messages.
///
/// The messages are encoded by hand: they have a handful of fields, and protobuf as a dependency of
/// every build (compiler, library, generated code of matching versions) would weigh more than the
/// forty lines. tests/unit/trainer_events_test.cpp compares with bytes that protobuf made.
///
///   record   length u64, masked crc32c of those 8 bytes u32, message, masked crc32c of it u32
///   mask(c)  (c rotated right by 15) + 0xA282EAD8
///   Event    1 wall_time double, 2 step int64, 3 file_version string, 5 summary, 7 session_log
///   Summary  1 value: repeated {1 tag string, 2 simple_value float, 8 tensor, 9 metadata}
/// Fields that are zero are left out, but not simple_value, which is a oneof's member. source:
/// spec/formats.md h; TensorFlow's event.proto

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "data/io/posix_file.h"
#include "trainer/metrics.h"

namespace rwkv {

struct EventScalar {
  std::string_view tag;
  double value;
};

/// Messages, without their framing. Times are seconds since 1970.
std::string event_version(double wall_time);  ///< the first of every file
std::string event_scalars(double wall_time, int64_t step, std::span<const EventScalar> scalars);
std::string event_text(double wall_time, int64_t step, std::string_view tag, std::string_view text);
/// Readers drop what earlier files of the folder have from `step` on.
std::string event_session_start(double wall_time, int64_t step);
/// The message as a record of a file.
std::string event_record(std::string_view message);

/// The event file of a run: the numbers of the JSON-lines log for TensorBoard, under the reference
/// trainer's names where it has them. docs/training.md lists them.
class EventLog {
 public:
  /// A new file in `dir`, which sorts behind those that are there; the run goes on with step
  /// `next_step`. Throws IoError.
  EventLog(const std::string& dir, int64_t next_step);
  void step(const StepRecord& r, double weight_decay);
  void valid(int64_t step, double loss);
  void sample(int64_t step, const std::string& text);
  const std::string& path() const { return file_.path(); }

 private:
  EventLog(const std::string& dir, int64_t next_step, int64_t newest);
  void write(const std::string& message);
  PosixWriter file_;
};

}  // namespace rwkv
