// rwkv-generate and rwkv-eval as programs: output, messages and exit codes.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "data/binidx.h"
#include "data/dataset.h"
#include "data/io/hdf5_file.h"
#include "data/io/seal.h"
#include "data/tokenizer/world_tokenizer.h"
#include "inference/engine.h"
#include "tests/integration/model_folder.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;

using test::Output;
using test::slurp;

class Programs : public test::ModelFolder {
 protected:
  static void put(const std::string& name, const std::string& content) {
    std::ofstream(path(name), std::ios::binary) << content;
  }

  /// `arguments` is shell text; MODEL/ stands for the folder of the test's files.
  static Output run(const std::string& program, std::string arguments) {
    for (size_t at; (at = arguments.find("MODEL/")) != std::string::npos;)
      arguments.replace(at, 6, dir_.string() + "/");
    const std::string command =
        str("cd '", dir_.string(), "' && '", RWKV_BINARY_DIR, "/bin/", program, "' ", arguments,
            " >'", path("out"), "' 2>'", path("err"), "'");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, slurp(path("out")), slurp(path("err"))};
  }
  static Output generate(const std::string& a) { return run("rwkv-generate", a); }
  static Output eval(const std::string& a) { return run("rwkv-eval", a); }

  static void expect_failure(const Output& o, int code, const std::string& message) {
    EXPECT_EQ(o.code, code) << o.err;
    EXPECT_NE(o.err.find(message), std::string::npos) << o.err;
    EXPECT_NE(o.err.find(": error: "), std::string::npos) << o.err;
  }
};

TEST_F(Programs, GenerateContinuesThePrompt) {
  for (const char* how : {"--prompt xa", "--prompt xa --no-stream", "--prompt-file MODEL/prompt",
                          "--prompt-ids 121 98", "< MODEL/prompt"}) {
    put("prompt", "xa");
    const Output o =
        generate(str("--model MODEL/alphabet.h5 --temperature 0 --max-tokens 5 ", how));
    EXPECT_EQ(o.code, 0) << o.err;
    EXPECT_EQ(o.out, "bcdef") << how;
    EXPECT_EQ(o.err, "");
  }
}

TEST_F(Programs, GenerateStopsAndCounts) {
  const std::string base = "--model MODEL/alphabet.h5 --temperature 0 ";
  EXPECT_EQ(generate(base + "--prompt a --stop hij --stop klm --max-tokens 40").out, "bcdefg");
  EXPECT_EQ(generate(base + "--prompt 5 --max-tokens 40").out, "6789");
  EXPECT_EQ(generate(base + "--prompt 5 --max-tokens 7 --ignore-end").out, "6789ab");
  EXPECT_EQ(generate(base + "--prompt 7 --ids").out, "57\n58\n0\n");
  EXPECT_EQ(generate(base + "--prompt '' --max-tokens 3").out, "abc");
  EXPECT_EQ(generate(base + "--max-tokens 3 </dev/null").out, "abc");
  EXPECT_EQ(generate(base + "--prompt a --echo --max-tokens 3").out, "abcd");
  EXPECT_EQ(generate(base + "--prompt a --max-tokens 0").out, "");
  const Output stats = generate(base + "--prompt a --max-tokens 4 --stats --threads 1");
  EXPECT_EQ(stats.out, "bcde");
  EXPECT_NE(stats.err.find("prefill 2 tokens"), std::string::npos) << stats.err;
  EXPECT_NE(stats.err.find("decode 3 tokens"), std::string::npos) << stats.err;
  EXPECT_NE(stats.err.find("ended by length"), std::string::npos) << stats.err;
}

TEST_F(Programs, GenerateReproducesSeeds) {
  const std::string base = "--model MODEL/random.h5 --prompt hello --ids --max-tokens 30 ";
  const Output a = generate(base + "--seed 1 --threads 1"), b = generate(base + "--seed 1");
  EXPECT_EQ(a.code, 0) << a.err;
  EXPECT_EQ(a.out, b.out);
  EXPECT_NE(a.out, generate(base + "--seed 2").out);
  EXPECT_NE(a.out, generate(base + "--seed 1 --top-k 3 --min-p 0.1").out);
  EXPECT_NE(a.out, generate(base + "--seed 1 --presence-penalty 50 --frequency-penalty 1").out);
  // A frequency penalty without end never takes a token twice.
  std::istringstream ids(generate(base + "--seed 1 --presence-penalty 1e6").out);
  std::set<int> seen;
  for (int id; ids >> id;) EXPECT_TRUE(seen.insert(id).second) << id;
  EXPECT_GE(seen.size(), 2u);
}

TEST_F(Programs, Rwkv4ModelsGenerateAndAreEvaluated) {
  const std::string base = "--model MODEL/rwkv4.h5 --temperature 0 --ids --max-tokens 12 ";
  const Output whole = generate(base + "--prompt 'hello you'");
  EXPECT_EQ(whole.code, 0) << whole.err;
  // The tokens that the engine's recurrent form finds likeliest.
  const test::TestModel m = test::random_rwkv4(30, 2, 128, 257);
  Engine engine(*m.model, *m.weights, {.wkv = "serial"});
  RnnState state = engine.new_state();
  TensorView logits = engine.decode(state, std::vector<int32_t>{kEndOfDocument});
  for (const int32_t id : ByteTokenizer().encode("hello you"))
    logits = engine.decode(state, {&id, 1});
  std::string want;
  for (int i = 0; i < 12; ++i) {
    const auto id =
        static_cast<int32_t>(std::max_element(logits.f32(), logits.f32() + 257) - logits.f32());
    want += str(id, "\n");
    if (id == kEndOfDocument) break;
    logits = engine.decode(state, {&id, 1});
  }
  EXPECT_EQ(whole.out, want);
  expect_failure(generate(base + "--prompt a --wkv nonsense"), 2, "wkv4");

  TokenFileWriter out(path("rwkv4_tokens.h5"), std::make_shared<ByteTokenizer>(), "{}");
  auto ids = ByteTokenizer().encode("hello you");
  ids.push_back(kEndOfDocument);
  out.add_document(ids);
  out.finish();
  const Output loss = eval("loss --model MODEL/rwkv4.h5 MODEL/rwkv4_tokens.h5");
  EXPECT_EQ(loss.code, 0) << loss.err;
  EXPECT_NE(loss.out.find("9 tokens, 8 bytes"), std::string::npos) << loss.out;
}

TEST_F(Programs, GenerateExplainsMistakes) {
  const std::string model = "--model MODEL/alphabet.h5 --prompt a ";
  expect_failure(generate("--prompt a"), 2, "--model is required");
  expect_failure(generate(model + "--nonsense"), 2, "--nonsense");
  expect_failure(generate(model + "--prompt-file x"), 2, "--prompt");
  expect_failure(generate(model + "--temperature -1"), 2, "temperature is -1");
  expect_failure(generate(model + "--top-p 0"), 2, "top_p");
  expect_failure(generate(model + "--max-tokens -5"), 2, "max_tokens is -5");
  expect_failure(generate(model + "--max-tokens 99999999999999999999"), 2, "expected a number");
  expect_failure(generate(model + "--seed -1"), 2, "from 0 to 2^64 - 1");
  expect_failure(generate(model + "--seed 18446744073709551616"), 2, "from 0 to 2^64 - 1");
  expect_failure(generate(model + "--stop ''"), 2, "stop string is empty");
  expect_failure(generate(model + "--wkv nonsense"), 2, "nonsense");
  expect_failure(generate("--model MODEL/alphabet.h5 --prompt-ids 1 257"), 2, "token id 257");
  expect_failure(generate("--model MODEL/missing.h5 --prompt a"), 3, "missing.h5");
  expect_failure(generate("--model MODEL/alphabet.h5 --prompt-file MODEL/none"), 3, "none");

  expect_failure(generate(model + "--device tpu"), 2, "--device");
  expect_failure(generate(model + "--dtype f16"), 2, "--dtype");
  expect_failure(generate(model + "--weights f16"), 2, "--weights");
  expect_failure(generate(model + "--device cuda --weights int8"), 2, "for the CPU");
  expect_failure(generate(model + "--dtype bf16"), 2, "--device cuda");

  put("text.h5", "this is a text");
  expect_failure(generate("--model MODEL/text.h5 --prompt a"), 3, "text.h5");
  {
    Hdf5File foreign = Hdf5File::create(path("foreign.h5"));
    foreign.write_scalar<double>("x", 1);
    foreign.close();
  }
  expect_failure(generate("--model MODEL/foreign.h5 --prompt a"), 3, "not a Greylag model file");
  const std::string whole = slurp(path("alphabet.h5"));
  put("truncated.h5", whole.substr(0, whole.size() / 2));
  expect_failure(generate("--model MODEL/truncated.h5 --prompt a"), 3, "truncated.h5");

  fs::create_directories(dir_ / "empty_run");
  expect_failure(generate("--model MODEL/empty_run --prompt a"), 3, "no checkpoint");
  expect_failure(generate("--model MODEL/no_tokenizer.h5 --prompt a"), 2, "--vocab");
  expect_failure(generate("--model MODEL/small_rows.h5 --prompt a"), 3, "only 100 rows");
  expect_failure(generate(model + "--vocab MODEL/prompt"), 3, "trained on bytes");
  // A file that is no vocabulary for a model that has none.
  expect_failure(generate("--model MODEL/no_tokenizer.h5 --prompt a --vocab MODEL/text.h5"), 3,
                 "text.h5");
  expect_failure(generate(model + "--state-out MODEL/none/s"), 3, "none does not exist");
  // Without text there is no need for a tokenizer.
  const Output ids =
      generate("--model MODEL/no_tokenizer.h5 --prompt-ids 5 7 --ids --max-tokens 3");
  EXPECT_EQ(ids.code, 0) << ids.err;
  EXPECT_GE(std::count(ids.out.begin(), ids.out.end(), '\n'), 1);
}

/// A vocabulary in the World format: all bytes and some words.
std::string small_vocabulary(const std::vector<std::string>& words) {
  std::string text;
  int id = 0;
  for (int b = 0; b < 256; ++b) {
    char line[32];
    std::snprintf(line, sizeof line, "%d b'\\x%02x' 1\n", ++id, static_cast<unsigned>(b));
    text += line;
  }
  for (const std::string& w : words) text += str(++id, " '", w, "' ", w.size(), "\n");
  return text;
}

/// "aé" then a break of the text: "é" is one token of two bytes, or two tokens of one.
TEST_F(Programs, ModelsCarryTheirVocabulary) {
  const std::string vocabulary = small_vocabulary({"hello", "\u00e9"});
  const WorldTokenizer tokenizer(vocabulary);
  const auto hello = tokenizer.encode("hello"), accent = tokenizer.encode("\u00e9");
  ASSERT_EQ(hello.size(), 1u);
  ASSERT_EQ(accent.size(), 1u);
  // hello, the two bytes of an accented letter, the letter, hello, ...
  const test::TestModel m = test::bigram_model(
      [&](int32_t t) {
        if (t == hello[0]) return 0xC3 + 1;
        if (t == 0xC3 + 1) return 0xA8 + 1;
        if (t == 0xA8 + 1) return accent[0];
        return hello[0];
      },
      270);
  {
    Hdf5File file = Hdf5File::create(path("world.h5"));
    const std::string_view v = tokenizer.vocabulary();
    write_model(file, m.model->config(), m.model->params(), *m.weights,
                {.name = "world", .hash = tokenizer.hash(), .blob = {v.begin(), v.end()}});
    file.close();
  }
  test::write_hdf5_model(path("world_without.h5"), m, false);
  put("right.txt", vocabulary);
  put("wrong.txt", small_vocabulary({"hallo", "\u00e9"}));
  const std::string rest = " --prompt hello --temperature 0 --max-tokens 4";
  const std::string want = "\u00e8\u00e9hello";
  EXPECT_EQ(generate("--model MODEL/world.h5" + rest).out, want);
  EXPECT_EQ(generate("--model MODEL/world.h5 --vocab MODEL/right.txt" + rest).out, want);
  EXPECT_EQ(generate("--model MODEL/world_without.h5 --vocab MODEL/right.txt" + rest).out, want);
  expect_failure(generate("--model MODEL/world.h5 --vocab MODEL/wrong.txt" + rest), 3,
                 "another vocabulary");
  expect_failure(generate("--model MODEL/world.h5 --vocab MODEL/none.txt" + rest), 3, "none.txt");
  // The end of the output cuts a character: one replacement mark, nothing invalid.
  EXPECT_EQ(generate("--model MODEL/world.h5 --prompt hello --temperature 0 --max-tokens 1").out,
            "\uFFFD");
  const Output stop = generate(
      "--model MODEL/world.h5 --prompt hello --temperature 0 "
      "--stop '\u00e9h'");
  EXPECT_EQ(stop.out, "\u00e8");

  // Token files of another tokenizer are refused.
  const auto tokens = [&](const std::string& name, std::shared_ptr<const Tokenizer> t) {
    TokenFileWriter out(path(name), t, "{}");
    auto ids = t->encode("hello hello");
    ids.push_back(kEndOfDocument);
    out.add_document(ids);
    out.finish();
  };
  tokens("world_tokens.h5", std::make_shared<WorldTokenizer>(vocabulary));
  tokens("byte_tokens.h5", std::make_shared<ByteTokenizer>());
  const Output loss = eval("loss --model MODEL/world.h5 MODEL/world_tokens.h5");
  EXPECT_EQ(loss.code, 0) << loss.err;
  // hello, blank, hello, end of document: the three targets hold 6 bytes.
  EXPECT_NE(loss.out.find("3 tokens, 6 bytes"), std::string::npos) << loss.out;
  expect_failure(eval("loss --model MODEL/world.h5 MODEL/byte_tokens.h5"), 3, "was made with");
  // Of a model without a tokenizer the rows count, here 100.
  expect_failure(eval("loss --model MODEL/no_tokenizer.h5 MODEL/world_tokens.h5"), 3, " has 100;");
}

TEST_F(Programs, NeoxModelsCarryTheirTokenizer) {
  if (!has_neox_tokenizer()) GTEST_SKIP() << "built without the tokenizer neox";
  const std::string json = str(RWKV_SOURCE_DIR, "/tests/unit/tiny_neox.json");
  const auto tokenizer = load_tokenizer("neox", {.file = json});
  const int32_t hello = tokenizer->encode("hello")[0], accent = tokenizer->encode("\u00e9")[0];
  // hello, the two bytes of a letter, the letter, two spaces, hello, ...
  const test::TestModel m = test::bigram_model(
      [&](int32_t t) {
        if (t == hello) return 0xC3;  // ids of bytes from C2 on are the bytes
        if (t == 0xC3) return 0xA9 + 2;
        if (t == 0xA9 + 2) return accent;
        return t == accent ? 272 : hello;
      },
      tokenizer->vocab_size());
  const std::string_view v = tokenizer->vocabulary();
  Hdf5File file = Hdf5File::create(path("neox.h5"));
  write_model(file, m.model->config(), m.model->params(), *m.weights,
              {.name = "neox", .hash = tokenizer->hash(), .blob = {v.begin(), v.end()}});
  file.close();
  Hdf5File bare = Hdf5File::create(path("neox_bare.h5"));
  write_model(bare, m.model->config(), m.model->params(), *m.weights, {});
  bare.close();
  for (const std::string& model :
       {std::string("neox.h5"), "neox.h5 --vocab " + json, "neox_bare.h5 --vocab " + json}) {
    const Output o =
        generate("--temperature 0 --prompt hello --max-tokens 5 --model MODEL/" + model);
    EXPECT_EQ(o.code, 0) << o.err;
    EXPECT_EQ(o.out, "\u00e9\u00e9  hello") << model;
  }
  put("world.txt", small_vocabulary({"hello"}));
  expect_failure(generate("--prompt a --model MODEL/neox.h5 --vocab MODEL/world.txt"), 3,
                 "looks like a vocabulary of the tokenizer world");
  put("plain.txt", "hello  hello");
  const Output loss = eval("loss --text --model MODEL/neox.h5 MODEL/plain.txt");
  EXPECT_EQ(loss.code, 0) << loss.err;
  EXPECT_NE(loss.out.find("12 bytes"), std::string::npos) << loss.out;
}

TEST_F(Programs, ACorruptTensorIsFound) {
  std::string bytes = slurp(path("random.h5"));
  // Some byte in the middle of a large tensor: the middle of the file is one.
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 0x11);
  put("corrupt.h5", bytes);
  expect_failure(generate("--model MODEL/corrupt.h5 --prompt a"), 3, "checksum");
}

TEST_F(Programs, ARunFolderMeansItsNewestWholeCheckpoint) {
  fs::create_directories(dir_ / "run");
  const fs::path good = dir_ / "run" / "step_00000001.h5", bad = dir_ / "run" / "step_00000002.h5";
  fs::copy_file(path("alphabet.h5"), good);
  seal_hdf5(good.string());
  fs::copy_file(good, bad);
  fs::resize_file(bad, fs::file_size(bad) / 2);
  const std::string arguments = "--model MODEL/run --prompt xa --temperature 0 --max-tokens 2";
  const Output o = generate(arguments);
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_NE(o.err.find("skipping a damaged checkpoint"), std::string::npos) << o.err;
  EXPECT_NE(o.err.find("step_00000002.h5"), std::string::npos) << o.err;
  fs::remove(good);
  expect_failure(generate(arguments), 3, "is whole");
}

/// Without CUDA in the build, or with no GPU to be seen: a device error either way, one line, and
/// before the model is read.
TEST_F(Programs, WithoutAGpuCudaIsADeviceError) {
  put("text", "abc");
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  for (const char* dtype : {"", " --dtype f32", " --dtype bf16"}) {
    for (const Output& o :
         {generate(str("--model MODEL/missing.h5 --prompt a --device cuda", dtype)),
          eval(str("loss --text --model MODEL/missing.h5 MODEL/text --device cuda", dtype)),
          eval(str("lambada --model MODEL/missing.h5 MODEL/text --device cuda", dtype)),
          eval(str("tasks --model MODEL/missing.h5 MODEL/text --device cuda", dtype)),
          eval(str("logits --model MODEL/missing.h5 MODEL/text --device cuda", dtype))}) {
      expect_failure(o, 4, "--device cpu");
      EXPECT_EQ(std::ranges::count(o.err, '\n'), 1) << o.err;
    }
  }
  unsetenv("CUDA_VISIBLE_DEVICES");
}

TEST_F(Programs, OnAGpu) {
  const std::string model = "--model MODEL/alphabet.h5 ";
  const Output o = generate(model + "--prompt xa --temperature 0 --max-tokens 5 --device cuda");
  if (o.code == 4) GTEST_SKIP() << "no GPU";
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(o.out, "bcdef");
  EXPECT_EQ(
      generate(model + "--prompt xa --temperature 0 --max-tokens 5 --device cuda --dtype f32").out,
      "bcdef");
  put("text", "abcdefghijklmnopqrstuvwxyz");
  const std::string loss = "loss --text " + model + "MODEL/text ";
  EXPECT_EQ(eval(loss + "--device cuda --dtype f32").out, eval(loss).out);
}

TEST_F(Programs, HelpIsNoError) {
  for (const char* program : {"rwkv-generate", "rwkv-eval"}) {
    const Output o = run(program, "--help");
    EXPECT_EQ(o.code, 0);
    EXPECT_NE(o.out.find("Usage: "), std::string::npos);
  }
  EXPECT_NE(eval("tasks --help").out.find("--errors"), std::string::npos);
}

TEST_F(Programs, EvalLogitsAreTheEngines) {
  put("ids", "[1, 2, 3, 250]\n\n[7]\n");
  const Output last = eval("logits --model MODEL/random.h5 --last MODEL/ids");
  const Output all = eval("logits --model MODEL/random.h5 - < MODEL/ids");
  ASSERT_EQ(last.code, 0) << last.err;
  ASSERT_EQ(all.code, 0) << all.err;
  const test::TestModel m = test::random_model(30, 2, 128, 257);
  Engine engine(*m.model, *m.weights, {.fixed_weights = true});  // as the programs read it
  std::string want_last, want_all;
  for (const auto& ids : {std::vector<int32_t>{1, 2, 3, 250}, std::vector<int32_t>{7}}) {
    RnnState state = engine.new_state();
    const auto row = [](const float* x) {
      std::string line;
      for (int i = 0; i < 257; ++i) {
        char text[32];
        line += i == 0 ? '[' : ',';
        line.append(text, std::to_chars(text, text + sizeof text, x[i]).ptr);
      }
      return line + "]";
    };
    want_last += row(engine.prefill(state, ids).f32()) + "\n";
    state.reset();
    engine.all_logits(state, ids, [&](int64_t, const TensorView& logits) {
      for (int64_t t = 0; t < logits.dim(1); ++t)
        want_all += (t == 0 ? "[" : ",") + row(logits.f32() + t * 257);
    });
    want_all += "]\n";
  }
  EXPECT_EQ(last.out, want_last);
  EXPECT_EQ(all.out, want_all);
}

TEST_F(Programs, EvalTasksPrintsATable) {
  put("tasks.jsonl",
      "{\"task\": \"letters\", \"prompt\": \"w\", \"answer\": \"xyz\\n\"}\n"
      "{\"task\": \"letters\", \"prompt\": \"v\", \"answer\": \"wyz\"}\n"
      "{\"task\": \"digits\", \"prompt\": \"7\", \"answer\": \"89\"}\n");
  const Output table = eval("tasks --model MODEL/alphabet.h5 MODEL/tasks.jsonl --errors 1");
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_EQ(table.out,
            "accuracy  correct  problems  task\n"
            " 50.00 %        1         2  letters\n"
            "100.00 %        1         1  digits\n"
            " 66.67 %        2         3  all\n"
            "{\"task\":\"letters\",\"prompt\":\"v\",\"answer\":\"wyz\",\"output\":\"wx\"}\n");
  EXPECT_EQ(table.err, "");
  EXPECT_EQ(eval("tasks --json --limit 1 --model MODEL/alphabet.h5 MODEL/tasks.jsonl").out,
            "{\"tasks\":[{\"task\":\"letters\",\"problems\":1,\"correct\":1,\"accuracy\":1.0},"
            "{\"task\":\"digits\",\"problems\":1,\"correct\":1,\"accuracy\":1.0}],"
            "\"problems\":2,\"correct\":2,\"accuracy\":1.0}\n");
}

TEST_F(Programs, EvalLossAndLambada) {
  // 25 of 26 letters follow from the one before; the loss of the rest decides.
  put("text", "abcdefghijklmnopqrstuvwxyz");
  const Output loss = eval("loss --text --json --model MODEL/alphabet.h5 MODEL/text");
  EXPECT_EQ(loss.code, 0) << loss.err;
  EXPECT_TRUE(loss.out.starts_with("{\"tokens\":26,\"bytes\":26,\"ctx\":1024,\"loss\":"))
      << loss.out;
  EXPECT_TRUE(eval("loss --text --model MODEL/alphabet.h5 --ctx 5 --max-tokens 12 MODEL/text")
                  .out.find("12 tokens, 12 bytes, windows of 5") != std::string::npos);
  // binidx data of the same text: the same ids behind the first, which --text puts there itself.
  const auto bytes = std::make_shared<const ByteTokenizer>();
  TokenFileWriter writer(path("text.h5"), bytes, "{}");
  std::vector<int32_t> ids = {kEndOfDocument};
  bytes->encode_to("abcdefghijklmnopqrstuvwxyz", ids);
  writer.add_document(ids);
  writer.finish();
  write_binidx(*TokenFile::open(path("text.h5")), path("text_ids"));
  EXPECT_EQ(eval("loss --json --model MODEL/alphabet.h5 MODEL/text_ids").out, loss.out);
  put("lambada.jsonl", "{\"text\": \"x ab\"}\n{\"text\": \"y ac\"}\n");
  EXPECT_TRUE(eval("lambada --json --model MODEL/alphabet.h5 MODEL/lambada.jsonl")
                  .out.starts_with("{\"texts\":2,\"correct\":0,\"accuracy\":0.0"));
}

TEST_F(Programs, EvalComparesWkvVariants) {
  put("text", "abcdefghijklmnopqrstuvwxyz");
  const std::string base = "wkv-compare MODEL/text --text --model MODEL/random.h5 ";
  const Output table =
      eval(base + "--ctx 4 8 --json-file MODEL/compare.json --plot MODEL/compare.gp");
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_NE(table.out.find("24 predictions"), std::string::npos) << table.out;
  EXPECT_NE(table.out.find("wkv7.cpu.fp16-dithered"), std::string::npos) << table.out;
  EXPECT_NE(slurp(path("compare.gp")).find("plot"), std::string::npos);
  EXPECT_EQ(eval(base + "--ctx 4 8 --json").out, slurp(path("compare.json")));
  const Output unknown = eval(base + "--ctx 4 --variant nonsense");
  expect_failure(unknown, 2, "nonsense");
  EXPECT_EQ(std::count(unknown.err.begin(), unknown.err.end(), '\n'), 1) << unknown.err;
  // RWKV-4 has no binary16 state: other variants are the usual ones.
  const Output old = eval("wkv-compare MODEL/text --text --ctx 8 --model MODEL/rwkv4.h5");
  EXPECT_EQ(old.code, 0) << old.err;
  EXPECT_NE(old.out.find("wkv4.cpu.scan.f32"), std::string::npos) << old.out;
  // Found before the work: "--ctx 4096" would fail after it.
  expect_failure(eval(base + "--json-file MODEL/none/c.json"), 3, "none does not exist");
  expect_failure(eval(base + "--plot MODEL/none/c.png"), 3, "none does not exist");
  expect_failure(eval(base + "--plot MODEL/c.xyz"), 2, "FILE.gp");
  expect_failure(eval(base), 3, "4096");
}

TEST_F(Programs, EvalExplainsMistakes) {
  expect_failure(eval(""), 2, "subcommand");
  expect_failure(eval("los --model MODEL/alphabet.h5 MODEL/none.h5"), 2, "no command 'los'");
  expect_failure(eval("loss --model MODEL/alphabet.h5"), 2, "FILE");
  expect_failure(eval("loss --model MODEL/alphabet.h5 MODEL/none.h5"), 3, "none.h5");
  expect_failure(eval("loss --model MODEL/alphabet.h5 MODEL/random.h5"), 3, "random.h5");
  expect_failure(eval("loss --model MODEL/alphabet.h5 --ctx 0 MODEL/random.h5"), 2, "--ctx");
  expect_failure(eval("tasks --model MODEL/alphabet.h5 MODEL/none.jsonl"), 3, "none.jsonl");
  put("bad.jsonl", "{\"task\": 1}\n");
  expect_failure(eval("tasks --model MODEL/alphabet.h5 MODEL/bad.jsonl"), 3, "line 1");
  expect_failure(eval("lambada --model MODEL/alphabet.h5 MODEL/bad.jsonl"), 3, "\"text\"");
  put("bad_ids", "[1,2]\n[]\n");
  expect_failure(eval("logits --model MODEL/alphabet.h5 MODEL/bad_ids"), 3, "line 2");
  put("bad_ids", "\n");
  expect_failure(eval("logits --model MODEL/alphabet.h5 MODEL/bad_ids"), 3, "no token ids");
  expect_failure(eval("logits --model MODEL/alphabet.h5 MODEL/"), 3, "read error");
  put("bad_ids", "[300]\n");
  expect_failure(eval("logits --model MODEL/alphabet.h5 MODEL/bad_ids"), 3, "300 is no token id");
}

}  // namespace
}  // namespace rwkv
