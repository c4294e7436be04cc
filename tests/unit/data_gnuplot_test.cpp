// Pictures appear complete or not at all, whatever gnuplot says.

#include "data/io/gnuplot.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <span>

#include "data/io/atomic_file.h"
#include "data/io/crc32.h"
#include "kernels/core/error.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::TempDir;

std::string number(size_t n) {
  std::string out;
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(n >> shift & 255);
  return out;
}
std::string chunk(const std::string& name, const std::string& data) {
  const std::string checked = name + data;
  return number(data.size()) + checked + number(crc32(std::as_bytes(std::span(checked))));
}
/// Whole as far as its chunks go.
std::string png() {
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", std::string(13, '\1')) +
         chunk("IDAT", "not really compressed") + chunk("IEND", "");
}

bool whole(const std::string& bytes, const std::string& name) {
  try {
    check_picture(bytes, name);
    return true;
  } catch (const IoError& e) {
    const std::string text = e.what();
    for (const std::string& part : {name, str("found ", bytes.size(), " bytes"),
                                    std::string("expected"), std::string("disk")})
      EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
    return false;
  }
}

TEST(Picture, APngIsWholeWithEveryChunk) {
  EXPECT_TRUE(whole(png(), "a.png"));
  for (size_t n = 0; n < png().size(); ++n) EXPECT_FALSE(whole(png().substr(0, n), "a.png")) << n;
  for (size_t n = 0; n < png().size(); ++n) {
    std::string changed = png();
    changed[n] = static_cast<char>(changed[n] ^ 4);
    EXPECT_FALSE(whole(changed, "a.png")) << n;
  }
  EXPECT_FALSE(whole(png() + "x", "a.png"));
}

TEST(Picture, AnSvgIsWholeFromItsFirstElementToItsLast) {
  const std::string svg = "<?xml version=\"1.0\"?>\n<svg width=\"3\">\n<g></g>\n</svg>\n";
  EXPECT_TRUE(whole(svg, "a.svg"));
  EXPECT_TRUE(whole(svg + "\n", "a.svg"));
  for (size_t n = 0; n + 1 < svg.size(); ++n) EXPECT_FALSE(whole(svg.substr(0, n), "a.svg")) << n;
  EXPECT_FALSE(whole("</svg>", "a.svg"));
  EXPECT_FALSE(whole("", "a.other"));
}

/// A folder that comes first on the PATH, for a gnuplot of ours.
class Gnuplot : public testing::Test {
 protected:
  Gnuplot() : old_path_(std::getenv("PATH")) {
    write_file_atomic(dir_.file("png"), png());
    fs::create_directory(dir_.file("bin"));
    path_to(dir_.file("bin") + ":" + old_path_);
  }
  ~Gnuplot() override { path_to(old_path_); }
  Gnuplot(const Gnuplot&) = delete;
  Gnuplot& operator=(const Gnuplot&) = delete;

  static void path_to(const std::string& path) { setenv("PATH", path.c_str(), 1); }
  /// A gnuplot that takes the name of its output from the first line and then does `work`.
  void fake(const std::string& work) const {
    const std::string program = dir_.file("bin/gnuplot");
    write_file_atomic(program,
                      "#!/bin/sh\nread -r line\nout=${line#output = \\'}\nout=${out%\\'}\n"
                      "cat >'" +
                          dir_.file("script") + "'\ncd '" + dir_.path() + "'\n" + work + "\n");
    ::chmod(program.c_str(), 0755);
  }
  bool draw() const {
    return draw_picture(dir_.file("a.png"), gnuplot_output(dir_.file("a.png")) + "plot x\n");
  }
  std::string refusal() const {
    return error_of<IoError>([&] { draw(); });
  }
  size_t files() const {
    return static_cast<size_t>(
        std::distance(fs::directory_iterator(dir_.path()), fs::directory_iterator()));
  }

  std::string old_path_;
  TempDir dir_;
};

TEST_F(Gnuplot, AWholePictureGetsItsName) {
  fake("cat png >\"$out\"; echo a warning >&2");
  EXPECT_TRUE(draw());
  EXPECT_EQ(read_file(dir_.file("a.png")), png());
  EXPECT_EQ(
      read_file(dir_.file("script")),
      "if (!exists('output')) output = '" + dir_.file("a.png") + "'\nset output output\nplot x\n");
  EXPECT_EQ(files(), 4u);  // bin, png, script, a.png
}

TEST_F(Gnuplot, HalfAPictureIsAnErrorAndGone) {
  write_file_atomic(dir_.file("a.png"), "old");
  for (const char* half : {"head -c 40 png >\"$out\"", ": >\"$out\"", "true"}) {
    fake(half);
    const std::string text = refusal();
    EXPECT_NE(text.find("a.png: found "), std::string::npos) << text;
    EXPECT_NE(text.find("disk full"), std::string::npos) << text;
    EXPECT_EQ(read_file(dir_.file("a.png")), "old") << half;
    EXPECT_EQ(files(), 4u) << half;
  }
}

TEST_F(Gnuplot, ItsFailureIsToldInItsWords) {
  fake(
      "cat png >\"$out\"; printf 'plot x\\n     ^\\nline 0: undefined variable: x\\n\\n' >&2; exit "
      "1");
  std::string text = refusal();
  EXPECT_NE(text.find("exit code 1, expected 0; it said: line 0: undefined variable: x"),
            std::string::npos)
      << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  fake("kill -9 $$");
  text = refusal();
  EXPECT_NE(text.find("signal 9"), std::string::npos) << text;
  EXPECT_EQ(files(), 3u);
}

TEST_F(Gnuplot, WithoutOneThereIsNoPicture) {
  path_to(dir_.file("bin"));
  EXPECT_FALSE(draw());
  EXPECT_EQ(files(), 2u);
}

/// The real one, and what it does when its file may not grow: as with a full disk it says nothing.
class RealGnuplot : public Gnuplot {
 protected:
  void SetUp() override {
    if (std::system("gnuplot -e 'set terminal pngcairo; set terminal svg' >/dev/null 2>&1") != 0)
      GTEST_SKIP() << "no gnuplot with pngcairo and svg";
  }
  std::string picture(const std::string& name, const std::string& terminal) const {
    const std::string file = dir_.file(name);
    EXPECT_TRUE(draw_picture(file, "$d << EOD\n1 2\n3 5\nEOD\nset terminal " + terminal + "\n" +
                                       gnuplot_output(file) + "plot $d with lines\n"));
    return read_file(file);
  }
};

TEST_F(RealGnuplot, DrawsWholePictures) {
  EXPECT_GT(picture("it's.png", "pngcairo").size(), 1000u);
  EXPECT_NE(picture("a.svg", "svg").find("</svg>"), std::string::npos);
  EXPECT_NE(error_of<IoError>([&] { picture("b.png", "nonsense"); }).find("terminal"),
            std::string::npos);
}

TEST_F(RealGnuplot, ALimitOnItsFileIsSeen) {
  const std::string program = dir_.file("bin/gnuplot");
  write_file_atomic(
      program, "#!/bin/sh\ntrap '' XFSZ\nulimit -f 2\nPATH='" + old_path_ + "' exec gnuplot\n");
  ::chmod(program.c_str(), 0755);
  for (const auto& [name, terminal] : {std::pair{"b.png", "pngcairo"}, std::pair{"b.svg", "svg"}}) {
    EXPECT_FALSE(error_of<IoError>([&] { picture(name, terminal); }).empty());
    EXPECT_FALSE(fs::exists(dir_.file(name)));
  }
  EXPECT_EQ(files(), 2u);  // bin, png
}

}  // namespace
}  // namespace rwkv
