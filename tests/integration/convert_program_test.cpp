// rwkv-convert as a program, and the other programs on the files of other projects.

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "data/io/atomic_file.h"
#include "data/io/hdf5_file.h"
#include "data/io/tensor_file.h"
#include "data/io/zip_file.h"
#include "data/tokenizer/tokenizer.h"
#include "model/weights.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/model_files.h"
#include "tests/unit/trainer_test_util.h"

namespace rwkv {
namespace {

using test::TempDir;

const std::string kHere = std::string(RWKV_SOURCE_DIR) + "/tests/golden/formats/";
const std::string kRwkv4 = kHere + "tiny_rwkv4_bf16.pth";

struct Output {
  int code = -1;
  std::string out, err;
};

class Convert : public testing::Test {
 protected:
  TempDir dir_;

  /// `arguments` is shell text, run in the test's folder.
  Output run(const std::string& program, const std::string& arguments) const {
    const std::string command = str(
        "cd '", dir_.path(), "' && HOME='", dir_.path(), "' XDG_CACHE_HOME= '", RWKV_BINARY_DIR,
        "/bin/", program, "' ", arguments, " >'", dir_.file("out"), "' 2>'", dir_.file("err"), "'");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(dir_.file("out")),
            read_file(dir_.file("err"))};
  }
  Output convert(const std::string& a) const { return run("rwkv-convert", a); }
  void expect_failure(const Output& o, int code, const std::string& message) const {
    EXPECT_EQ(o.code, code) << o.err;
    EXPECT_NE(o.err.find(message), std::string::npos) << o.err;
  }

  /// A model with heads, small enough for any test.
  std::string rwkv7() const {
    test::write_pth_model(dir_.file("seven.pth"), test::random_model(5, 2, 64, 257),
                          TensorType::kBF16);
    return dir_.file("seven.pth");
  }
};

TEST_F(Convert, LogitsOnlyOfTokenIds) {
  rwkv7();
  for (const char* bad : {"[4294967297]", "[9223372036854775809]", "[1e30]", "[1.5]", "[true]",
                          "[-1]", "[1, 999999]", "[]", "{}", "[1, 2"}) {
    std::ofstream(dir_.file("ids")) << "[1]\n" << bad << "\n";
    expect_failure(run("rwkv-eval", "logits --model seven.pth --last < ids"), 3, "line 2");
  }
}

TEST_F(Convert, ConfigsOfOthersStay) {
  rwkv7();
  const auto exists = [&](const char* name) { return std::filesystem::exists(dir_.file(name)); };
  const std::string foreign = R"({"my": "important config"})";
  std::ofstream(dir_.file("config.json")) << foreign;
  for (const char* out : {"a.safetensors", "./"}) {
    expect_failure(convert(str("seven.pth ", out)), 2, "not that of an RWKV model");
    EXPECT_EQ(read_file(dir_.file("config.json")), foreign);
  }
  EXPECT_FALSE(exists("a.safetensors") || exists("model.safetensors"));
  std::filesystem::remove(dir_.file("config.json"));

  const Output first = convert("seven.pth a.safetensors");
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_NE(first.err.find("wrote a.safetensors\nwrote config.json\n"), std::string::npos)
      << first.err;
  // The same model in another type needs the same config; another model does not.
  EXPECT_EQ(convert("seven.pth b.safetensors --dtype fp32").code, 0);
  expect_failure(convert(kRwkv4 + " c.safetensors"), 2, "give a folder for this model alone");
  EXPECT_EQ(convert("a.safetensors d.h5").code, 0);
  EXPECT_EQ(convert("b.safetensors d.h5").code, 0);

  // A folder holds one model: a second takes the place of the first, with its config.
  EXPECT_EQ(convert("seven.pth folder/").code, 0);
  EXPECT_EQ(convert(kRwkv4 + " folder/").code, 0);
  EXPECT_EQ(convert("folder e.h5").code, 0);
  const std::string other = R"({"model_type": "llama"})";
  std::ofstream(dir_.file("folder/config.json")) << other;
  expect_failure(convert(kRwkv4 + " folder/"), 2, "not that of an RWKV model");
  EXPECT_EQ(read_file(dir_.file("folder/config.json")), other);
}

TEST_F(Convert, TheByteTokenizerComesAlong) {
  const test::TestModel m = test::bigram_model(test::alphabet);
  {
    Hdf5File file = Hdf5File::create(dir_.file("a.h5"));
    write_model(file, m.model->config(), m.model->params(), *m.weights,
                {.name = "bytes", .hash = ByteTokenizer().hash()});
    file.close();
  }
  const auto next = [&](const std::string& model) {
    return run("rwkv-generate", "--prompt xa --temperature 0 --max-tokens 3 --model " + model);
  };
  for (const char* out : {"folder/", "b.safetensors", "c.gguf"}) {
    const Output o = convert(str("a.h5 ", out));
    EXPECT_EQ(o.code, 0) << o.err;
    EXPECT_EQ(o.err.find("note:"), std::string::npos) << o.err;
    EXPECT_EQ(next(out).out, "bcd") << out << next(out).err;
  }
  EXPECT_EQ(convert("folder/ back.h5").code, 0);
  EXPECT_EQ(next("back.h5").out, "bcd");
  EXPECT_NE(convert("--inspect folder/").out.find("tokenizer: bytes"), std::string::npos);

  // .pth has no place for it.
  const Output pth = convert("a.h5 d.pth");
  EXPECT_NE(pth.err.find("need --vocab bytes"), std::string::npos) << pth.err;
  expect_failure(next("d.pth"), 2, "--vocab bytes");
  EXPECT_EQ(next("d.pth --vocab bytes").out, "bcd");
  std::ofstream(dir_.file("text")) << "xabcd";
  const Output loss = run("rwkv-eval", "loss --text --model d.pth --vocab bytes --json text");
  EXPECT_NE(loss.out.find("\"bytes\":5"), std::string::npos) << loss.out << loss.err;
  EXPECT_EQ(convert("d.pth e.h5 --vocab bytes").code, 0);
  EXPECT_EQ(next("e.h5").out, "bcd");
  EXPECT_EQ(next("e.h5 --vocab bytes").out, "bcd");
}

TEST_F(Convert, AVocabularyIsNamedWithItsHash) {
  rwkv7();
  std::string vocabulary;
  for (int b = 0; b < 256; ++b) {
    char line[32];
    std::snprintf(line, sizeof line, "%d b'\\x%02x' 1\n", b + 1, static_cast<unsigned>(b));
    vocabulary += line;
  }
  std::ofstream(dir_.file("v.txt")) << vocabulary;
  const auto text = [&](const std::string& model) {
    return run("rwkv-generate", "--temperature 0 --max-tokens 3 --prompt abc --model " + model);
  };
  const Output folder = convert("seven.pth folder/ --vocab v.txt");
  EXPECT_EQ(folder.code, 0) << folder.err;
  EXPECT_NE(folder.err.find("wrote folder/rwkv_vocab"), std::string::npos) << folder.err;
  EXPECT_EQ(text("folder").code, 0) << text("folder").err;
  EXPECT_EQ(text("folder").out, text("seven.pth --vocab v.txt").out);

  const Output alone = convert("folder alone.safetensors");
  EXPECT_EQ(alone.code, 0) << alone.err;
  EXPECT_NE(alone.err.find("names its tokenizer, world, but has no vocabulary"), std::string::npos)
      << alone.err;
  EXPECT_NE(convert("--inspect alone.safetensors").out.find("tokenizer: world"), std::string::npos);
  expect_failure(text("alone.safetensors"), 2, "--vocab");
  EXPECT_EQ(
      run("rwkv-generate", "--prompt-ids 5 --ids --max-tokens 1 --model alone.safetensors").code,
      0);
  EXPECT_EQ(text("alone.safetensors --vocab v.txt").out, text("folder").out);
  expect_failure(text("alone.safetensors --vocab bytes"), 3, "trained with the tokenizer world");
  // Another vocabulary of that name is not the model's.
  const std::string other = vocabulary + "257 'abc' 3\n";
  std::ofstream(dir_.file("w.txt")) << other;
  expect_failure(text("alone.safetensors --vocab w.txt"), 3, "another vocabulary");
}

TEST_F(Convert, EveryProgramSaysItsVersion) {
  for (const std::string program :
       {"rwkv-convert", "rwkv-data", "rwkv-eval", "rwkv-generate", "rwkv-train"}) {
    const Output o = run(program, "--version");
    EXPECT_EQ(o.code, 0) << o.err;
    EXPECT_TRUE(o.out.starts_with(program + " 0.")) << o.out;
    EXPECT_NE(o.out.find(", commit "), std::string::npos) << o.out;
    const std::string full =
        str("'", RWKV_BINARY_DIR, "/bin/", program, "' --help >/dev/full 2>&1");
    EXPECT_EQ(WEXITSTATUS(std::system(full.c_str())), 3);
  }
}

TEST_F(Convert, WhatCannotBeWrittenLeavesNothing) {
  rwkv7();
  // A limit of the file size stands for the full disk.
  for (const char* out : {"x.pth", "x.h5", "x.safetensors", "x.gguf", "new/"}) {
    const std::string command = str("cd '", dir_.path(), "' && ulimit -f 50 && '", RWKV_BINARY_DIR,
                                    "/bin/rwkv-convert' seven.pth ", out, " --dtype fp32 2>err");
    const int status = std::system(command.c_str());
    const std::string err = read_file(dir_.file("err"));
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 3) << out << err;
    EXPECT_NE(err.find("rwkv-convert: error: "), std::string::npos) << err;
    const size_t at = err.find("error: ");
    EXPECT_EQ(err.find('\n', at), err.size() - 1) << err;  // one line
    EXPECT_EQ(err.find("0x"), std::string::npos) << err;
  }
  std::set<std::string> left;
  for (const auto& e : std::filesystem::directory_iterator(dir_.path()))
    left.insert(e.path().filename());
  EXPECT_EQ(left, (std::set<std::string>{"seven.pth", "err"}));
  std::ofstream(dir_.file("plain")) << "x";
  expect_failure(convert("seven.pth plain/"), 3, "plain is a file, no folder");
}

TEST_F(Convert, EveryWayGivesTheSameLogits) {
  rwkv7();
  std::ofstream(dir_.file("ids")) << "[1, 2, 3, 4, 5]\n\n[256]\n";
  const auto logits = [&](const std::string& model, const char* more) {
    const Output o = run("rwkv-eval", str("logits --model ", model, " ", more, " < ids"));
    EXPECT_EQ(o.code, 0) << o.err;
    return o.out;
  };
  const std::string expected = logits("seven.pth", ""), last = logits("seven.pth", "--last");
  EXPECT_EQ(std::count(expected.begin(), expected.end(), '\n'), 2);
  for (const char* way :
       {"seven.pth a.h5", "a.h5 b.pth --dtype bf16", "b.pth folder/", "folder c.gguf",
        "c.gguf d.gguf --dtype bf16", "d.gguf e.safetensors", "e.safetensors f.bin --to pth"}) {
    const Output o = convert(way);
    ASSERT_EQ(o.code, 0) << way << "\n" << o.err;
    EXPECT_EQ(o.out, "") << way;
  }
  for (const char* file :
       {"a.h5", "b.pth", "folder", "c.gguf", "d.gguf", "e.safetensors", "f.bin"}) {
    EXPECT_EQ(logits(file, ""), expected) << file;
    EXPECT_EQ(logits(file, "--last"), last) << file;
  }
  // The other programs, from a file without a tokenizer and from one with.
  const std::string greedy = " --prompt-ids 1 2 3 --max-tokens 5 --temperature 0 --ids";
  const Output ids = run("rwkv-generate", "--model folder" + greedy);
  EXPECT_EQ(ids.code, 0) << ids.err;
  EXPECT_EQ(run("rwkv-generate", "--model d.gguf" + greedy).out, ids.out);
  expect_failure(run("rwkv-generate", "--model folder --prompt a"), 2, "--vocab");
}

TEST_F(Convert, ReferenceModelInEveryProgram) {
  const auto cases = nlohmann::json::parse(read_file(kHere + "tiny_rwkv4_expected.json"))["cases"];
  for (const auto& [name, c] : cases.items()) {
    std::ofstream(dir_.file("ids")) << c["tokens"].dump() << "\n";
    const Output o = run("rwkv-eval", "logits --model " + kRwkv4 + " --last < ids");
    ASSERT_EQ(o.code, 0) << o.err;
    const auto got = nlohmann::json::parse(o.out).get<std::vector<double>>();
    const auto want = c["last_logits"].get<std::vector<double>>();
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_LE(std::fabs(got[i] - want[i]), 1e-4) << name;
  }
}

TEST_F(Convert, GenerationContinuesFromAStateFile) {
  rwkv7();
  const std::string base = "--model seven.pth --temperature 0 --ids --ignore-end --prompt-ids ";
  // Token by token in both cases, so that no rounding differs.
  const Output all = run("rwkv-generate", base + "7 --max-tokens 8");
  ASSERT_EQ(all.code, 0) << all.err;
  const Output first = run("rwkv-generate", base + "7 --max-tokens 4 --state-out s");
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(all.out.substr(0, first.out.size()), first.out);
  // The next token of the whole run is the prompt of the rest.
  std::istringstream ids(all.out);
  std::string id;
  for (int i = 0; i < 5; ++i) ids >> id;
  const Output rest = run("rwkv-generate", base + id + " --max-tokens 3 --state-in s");
  EXPECT_EQ(rest.code, 0) << rest.err;
  EXPECT_EQ(first.out + id + "\n" + rest.out, all.out);
  expect_failure(run("rwkv-generate", "--model s --prompt-ids 1"), 3, "--state-in");
  const Output shown = convert("--inspect s");
  EXPECT_NE(shown.out.find("metadata.tokens: 5"), std::string::npos) << shown.out;
  expect_failure(run("rwkv-generate", base + "1 --state-in seven.pth"), 3, "seven.pth");
}

TEST_F(Convert, TrainingStartsFromAnyFile) {
  rwkv7();
  for (const char* way : {"seven.pth a.h5", "seven.pth folder/", "seven.pth c.gguf"})
    ASSERT_EQ(convert(way).code, 0);
  test::write_token_file(dir_.file("train.h5"), 2000, 1);
  std::ofstream(dir_.file("c.json")) << R"({
    "model": {"n_layer": 2, "n_embd": 64, "vocab_size": 257},
    "data": {"train": "train.h5", "sampler": "shuffle"},
    "train": {"context": 32, "batch": 2, "steps": 2}, "optimizer": {"lr": 1e-5},
    "limits": {"peak_tflops": 1}})";
  std::ofstream(dir_.file("ids")) << "[1, 2, 3]\n";
  /// What the model says after two steps.
  const auto after = [&](const std::string& run_dir, const std::string& init) {
    const Output o =
        run("rwkv-train", str("--config c.json --quiet --set checkpoint.dir=", run_dir, " ", init));
    EXPECT_EQ(o.code, 0) << o.err;
    return run("rwkv-eval", str("logits --model ", run_dir, " < ids")).out;
  };
  const std::string expected = after("r1", "--init seven.pth");
  EXPECT_NE(convert("--inspect r1").out.find("model: rwkv7, 2 layers"), std::string::npos);
  EXPECT_EQ(after("r2", "--init a.h5"), expected);
  EXPECT_EQ(after("r3", "--init folder"), expected);
  EXPECT_EQ(after("r4", "--init c.gguf"), expected);
  std::filesystem::create_directory(dir_.file("run"));
  std::filesystem::copy_file(dir_.file("a.h5"), dir_.file("run/other.h5"));
  expect_failure(run("rwkv-train", "--config c.json --init run --set checkpoint.dir=r7"), 3,
                 "no checkpoint in this folder");
  // A run folder stands for its newest checkpoint.
  EXPECT_EQ(after("r8", "--init r1"), after("r9", "--init r1/step_00000002.h5"));
  EXPECT_NE(after("r5", ""), expected);
  expect_failure(
      run("rwkv-train",
          "--config c.json --init seven.pth --set model.n_layer=3 --set checkpoint.dir=r6"),
      2, "it holds the model");
}

TEST_F(Convert, DryRunAndInspect) {
  rwkv7();
  const Output table = convert("seven.pth x.gguf --dry-run --dtype q8_0");
  EXPECT_EQ(table.code, 0) << table.err;
  for (const char* part : {"blk.0.time_mix_lerp_fused.weight", "(6, 1, 1, 64)", "q8_0",
                           "blocks.1.att.w1, transposed", "zeros, unused by the model"})
    EXPECT_NE(table.out.find(part), std::string::npos) << part;
  EXPECT_FALSE(std::filesystem::exists(dir_.file("x.gguf")));
  for (const char* pair : {"fp16 f16", "fp32 f32"}) {  // both names of a type
    const std::string names = pair, dry = "seven.pth x.pth --dry-run --dtype ";
    EXPECT_EQ(convert(dry + names.substr(0, 4)).out, convert(dry + names.substr(5)).out);
  }
  for (const char* way : {"seven.pth a.h5", "seven.pth b/", "seven.pth c.gguf"})
    ASSERT_EQ(convert(way).code, 0);
  for (const char* file : {"seven.pth", "a.h5", "b", "c.gguf"}) {
    const Output o = convert(str("--inspect ", file));
    EXPECT_EQ(o.code, 0) << o.err;
    EXPECT_NE(o.out.find("model: rwkv7, 2 layers, width 64"), std::string::npos) << o.out;
    EXPECT_NE(o.out.find("\"n_embd\":64"), std::string::npos) << o.out;
  }
  const Output other = convert("--inspect " + kHere + "torch_variants.pth");
  EXPECT_EQ(other.code, 0);
  EXPECT_NE(other.out.find("model: none"), std::string::npos);
  EXPECT_NE(other.out.find("plain.bf16"), std::string::npos);
}

TEST_F(Convert, MistakesHaveTheirExitCodes) {
  rwkv7();
  expect_failure(convert("seven.pth"), 2, "give a file to read and one to write");
  expect_failure(convert("seven.pth x"), 2, "its ending says no known format");
  expect_failure(convert("seven.pth x.h5 --dtype bf16"), 2, "fp32 only");
  expect_failure(convert("seven.pth x.pth --dtype q8_0"), 2, "q8_0");
  expect_failure(convert("seven.pth ./seven.pth"), 2, "another name");
  expect_failure(convert(kRwkv4 + " x.gguf"), 2, "llama.cpp has no RWKV-4");
  expect_failure(convert("--inspect seven.pth --to h5"), 2, "excludes");
  std::filesystem::create_directory(dir_.file("empty"));
  expect_failure(convert("--inspect empty"), 3, "no checkpoint in this folder");
  expect_failure(convert("missing.pth x.h5"), 3, "missing.pth");
  expect_failure(convert("seven.pth no/such/folder/x.h5"), 3, "does not exist");
  expect_failure(convert(kHere + "torch_variants.pth x.h5"), 3, "not those of an RWKV");
  for (const auto& entry : std::filesystem::directory_iterator(dir_.path()))
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
}

// What a file calls its tensors goes to the terminal as text, and not all of it.
TEST_F(Convert, NamesCommandNoTerminal) {
  const std::string name = "\x1b[2J\x07" + std::string(4000, 'n');
  const auto out = create_safetensors(dir_.file("m.safetensors"), {{name, {1}, TensorType::kF32}});
  out->write(std::vector<float>{1});
  out->finish();
  const Output o = convert("m.safetensors m.h5");
  expect_failure(o, 3, "?[2J?nnn");
  EXPECT_LT(o.err.size(), 4200u);
  for (const char c : convert("--inspect m.safetensors").out)
    EXPECT_TRUE(static_cast<unsigned char>(c) >= 32 || c == '\n') << static_cast<int>(c);
}

TEST_F(Convert, APickleThatRunsCodeIsRefusedByEveryProgram) {
  {
    ByteWriter out(dir_.file("evil.pth"));
    ZipWriter zip(out);
    const std::string command = "touch " + dir_.file("was-run");
    ByteBuilder b;
    b.text(
        "\x80\x02"
        "cposix\nsystem\n(X");
    b.number(static_cast<uint32_t>(command.size()));
    b.text(command + "tR.");
    zip.add_text("x/data.pkl", b.bytes);
    zip.finish();
    out.close();
  }
  const char* message = "refusing to construct posix.system";
  expect_failure(convert("evil.pth x.h5"), 3, message);
  expect_failure(convert("--inspect evil.pth"), 3, message);
  expect_failure(run("rwkv-eval", "logits --model evil.pth < /dev/null"), 3, message);
  expect_failure(run("rwkv-generate", "--model evil.pth --prompt a"), 3, message);
  EXPECT_FALSE(std::filesystem::exists(dir_.file("was-run")));
}

}  // namespace
}  // namespace rwkv
