#pragma once
/// Pictures drawn by gnuplot, which appear complete or not at all.

#include <string>
#include <string_view>

namespace rwkv {

/// The lines by which a script opens its output: the picture at `path`, or whatever the variable
/// `output` names, by which draw_picture has it drawn beside and renamed.
std::string gnuplot_output(std::string_view path);

/// Runs gnuplot on `script`, which holds gnuplot_output(path), for the picture `path` (.png, .svg).
/// False if there is no gnuplot on the PATH. What gnuplot says goes to stderr. Throws IoError with
/// gnuplot's last words if it fails, and if the picture is not whole: gnuplot also ends well when
/// the disk is full. What was at `path` before then stays.
bool draw_picture(const std::string& path, const std::string& script);

/// Throws IoError unless the bytes are a whole picture of the kind that the name `path` says: every
/// chunk of a PNG with its checksum up to the end, or an SVG from its first element to its last.
/// Other names: anything that is not empty.
void check_picture(std::string_view bytes, const std::string& path);

}  // namespace rwkv
