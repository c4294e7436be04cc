// Text files and gnuplot scripts: the part of report.h that other programs use too.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "data/io/gnuplot.h"
#include "kernels/core/error.h"
#include "tools/bench/report.h"

namespace rwkv::bench {

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  RWKV_CHECK(in.good(), IoError, "reading ", path, ": failed; does the file exist?");
  return text.str();
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  RWKV_CHECK(out.good(), IoError, "writing ", path,
             ": failed; does the folder exist, and is there room?");
}

std::string with_extension(const std::string& path, const std::string& extension) {
  return std::filesystem::path(path).replace_extension(extension).string();
}

void check_outputs(const std::string& json, const std::string& plot) {
  for (const std::string& path : {json, plot}) {
    const auto folder = std::filesystem::path(path).parent_path();
    std::error_code ec;
    RWKV_CHECK(folder.empty() || std::filesystem::is_directory(folder, ec), IoError, "writing ",
               path, ": the folder ", folder.string(), " does not exist; create it or choose ",
               "another path");
  }
  RWKV_CHECK(plot.empty() || plot.ends_with(".gp") || plot.ends_with(".png"), ConfigError,
             "--plot ", plot, ": expected FILE.gp, a gnuplot script, or FILE.png, a picture");
}

void write_plot(const std::string& path, const std::string& script) {
  const std::string gp = with_extension(path, ".gp");
  write_file(gp, script);
  if (std::filesystem::path(path).extension() != ".png") {
    std::printf("plot script: %s\n", gp.c_str());
    return;
  }
  if (draw_picture(path, script))
    std::printf("plot: %s\n", path.c_str());
  else
    std::printf("plot script: %s (run gnuplot on it to get %s)\n", gp.c_str(), path.c_str());
}

std::string plot_output(const std::string& path) {
  return gnuplot_output(with_extension(path, ".png"));
}

}  // namespace rwkv::bench
