#include "trainer/rwkv_lm_preset.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "data/binidx.h"
#include "data/sampler.h"
#include "kernels/core/edit_distance.h"
#include "kernels/core/error.h"
#include "trainer/data_source.h"

namespace rwkv {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMiniEpoch = 40320;  // samples, over all ranks (spec rwkv7 6.3)
constexpr int64_t kMost = int64_t{1} << 53;

/// Hands out the settings, remembers which were asked for, and builds config and report.
class Mapper {
 public:
  explicit Mapper(const std::vector<RwkvLmSetting>& settings) {
    for (const auto& [name, value] : settings) {
      const auto [old, is_new] = given_.emplace(name, value);
      if (!is_new && old->second != value)
        fail(name, "is given twice, as ", old->second, " and as ", value);
    }
  }

  template <class... Parts>
  [[noreturn]] static void fail(std::string_view name, const Parts&... parts) {
    throw ConfigError(str("preset rwkv-lm: ", name, " ", parts...));
  }

  bool has(const std::string& name) {
    known_.insert(name);
    return given_.contains(name);
  }
  std::string text(const std::string& name, const std::string& otherwise) {
    return has(name) ? given_.at(name) : otherwise;
  }
  int64_t integer(const std::string& name, int64_t otherwise, int64_t min, int64_t max = kMost) {
    if (!has(name)) return otherwise;
    const std::string& s = given_.at(name);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
    if (error != std::errc{} || end != s.data() + s.size() || value < min || value > max)
      fail(name, "is ", s, ", expected an integer ",
           max == kMost ? str("of at least ", min) : str("from ", min, " to ", max));
    return value;
  }
  double number(const std::string& name, double otherwise, double min, double max) {
    if (!has(name)) return otherwise;
    const std::string& s = given_.at(name);
    double value = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
    if (error != std::errc{} || end != s.data() + s.size() || !(value >= min && value <= max))
      fail(name, "is ", s, ", expected a number from ", min, " to ", max);
    return value;
  }

  /// `name` becomes config key `key`.
  void becomes(const std::string& name, const std::string& key, const Json& value,
               const std::string& note = "") {
    const size_t dot = key.find('.');
    config_[key.substr(0, dot)][key.substr(dot + 1)] = value;
    row(name, key + " = " + value.dump(), note);
  }
  void row(const std::string& name, const std::string& what, const std::string& note = "") {
    const auto it = given_.find(name);
    rows_.push_back({name, it == given_.end() ? "(default)" : it->second,
                     note.empty() ? what : what + "  (" + note + ")"});
  }
  /// Any value is as good as another here.
  void ignore(const std::string& name, const std::string& why) {
    if (has(name)) row(name, "nothing: " + why);
  }
  /// An option that this trainer does not have: only its neutral value will do.
  void only(const std::string& name, const std::vector<std::string>& neutral,
            const std::string& otherwise) {
    if (!has(name)) return;
    if (std::ranges::find(neutral, given_.at(name)) == neutral.end())
      fail(name, "is ", given_.at(name), ", ", otherwise);
    row(name, "nothing: it is the only value here");
  }
  void alias(const std::string& old_name, const std::string& name) {
    known_.insert(old_name);
    const auto it = given_.find(old_name);
    if (it == given_.end()) return;
    const auto [other, is_new] = given_.emplace(name, it->second);
    if (!is_new && other->second != it->second)
      fail(old_name, "is ", it->second, ", but ", name, ", its newer name, is ", other->second);
    given_.erase(it);
  }

  void refuse_unknown() const {
    for (const auto& [name, value] : given_) {
      if (known_.contains(name)) continue;
      const auto* nearest = &*std::ranges::min_element(
          known_, {}, [&](const std::string& k) { return edit_distance(k, name); });
      const bool close = worth_suggesting(edit_distance(*nearest, name), name);
      fail(name, "is not a setting that is known here",
           close ? str("; did you mean ", *nearest, "?") : std::string("."),
           " Keys of our own are given with --set");
    }
  }

  std::string config() const { return config_.dump(); }
  std::string report() const {
    std::string out = "preset rwkv-lm:\n";
    size_t name_width = 0, value_width = 0;
    for (const auto& r : rows_) {
      name_width = std::max(name_width, r.name.size());
      value_width = std::max(value_width, std::min<size_t>(r.value.size(), 24));
    }
    const auto pad = [&](const std::string& s, size_t width) {
      out += s + std::string(s.size() < width ? width - s.size() : 0, ' ') + "  ";
    };
    for (const auto& r : rows_) {
      out += "  ";
      pad(r.name, name_width);
      pad(r.value, value_width);
      out += r.what + "\n";
    }
    return out;
  }

 private:
  struct Row {
    std::string name, value, what;
  };
  std::map<std::string, std::string> given_;
  std::set<std::string> known_;
  std::vector<Row> rows_;
  Json config_ = Json::object();
};

void map_model(Mapper& m) {
  const std::string testing = m.text("my_testing", "x070");
  if (!testing.starts_with("x070"))
    Mapper::fail("my_testing", "is ", testing, ", expected x070: this preset is for RWKV-7");
  m.becomes("my_testing", "model.architecture", "rwkv7");
  const int64_t vocab = m.integer("vocab_size", 0, 0, 1 << 24);
  if (vocab == 0)
    Mapper::fail("vocab_size",
                 "is missing, expected the rows of the embedding: 65536 for World "
                 "data, 50304 or 50277 for the Pile's");
  m.becomes("n_layer", "model.n_layer", m.integer("n_layer", 6, 1, 10000));
  const int64_t width = m.integer("n_embd", 512, 1, 1 << 20);
  m.becomes("n_embd", "model.n_embd", width);
  m.becomes("vocab_size", "model.vocab_size", vocab);
  m.becomes("head_size", "model.head_size", m.integer("head_size", 64, 1, 1024));
  if (const int64_t att = m.integer("dim_att", 0, 0); att != 0) {
    if (att != width)
      Mapper::fail("dim_att", "is ", att, " and n_embd ", width,
                   "; RWKV-7 has one width: leave dim_att out");
    m.row("dim_att", "nothing: it is n_embd");
  }
  if (const int64_t ffn = m.integer("dim_ffn", 0, 0); ffn != 0) {
    if (ffn != 4 * width)
      Mapper::fail("dim_ffn", "is ", ffn, "; the reference's RWKV-7 does not use it and takes 4 x ",
                   "n_embd = ", 4 * width, ". Leave it out, or use --set model.dim_ffn=", ffn);
    m.becomes("dim_ffn", "model.dim_ffn", ffn);
  }
  m.only("pre_ffn", {"0"}, "RWKV-7 has no such part; leave it out");
  m.only("head_qk", {"0"}, "RWKV-7 has no such part; leave it out");
  m.only("tiny_att_dim", {"0"}, "RWKV-7 has no such part; leave it out");
  m.only("dropout", {"0", "0.0"}, "there is no dropout here; leave it out");
  m.only("layerwise_lr", {"1"}, "the rates of RWKV-7's w0 are twice the others'; leave it out");
}

/// Returns the sequences per optimiser step.
int64_t map_batch(Mapper& m) {
  const int64_t bsz = m.integer("micro_bsz", 12, 1, 1 << 20);
  const int64_t devices = m.integer("devices", 1, 1, 1 << 16);
  const int64_t nodes = m.integer("num_nodes", 1, 1, 1 << 16);
  const int64_t ranks = devices * nodes;
  m.only("accumulate_grad_batches", {"1"},
         "which the reference's schedule does not know of; use devices or micro_bsz, or --set "
         "train.micro_batches");
  const int64_t sequences = bsz * ranks;
  if (kMiniEpoch % ranks != 0)
    Mapper::fail("devices", "times num_nodes is ", ranks,
                 ", which does not divide the mini-epoch of 40320 samples");
  if (kMiniEpoch % sequences != 0) {
    int64_t below = bsz, above = bsz;
    while (kMiniEpoch % (below * ranks) != 0 && below > 1) --below;
    while (kMiniEpoch % (above * ranks) != 0 && above * ranks < kMiniEpoch) ++above;
    Mapper::fail("micro_bsz", "is ", bsz, " on ", ranks, ranks == 1 ? " device" : " devices",
                 ", which does not divide the mini-epoch of 40320 samples; ", below, " and ", above,
                 " come nearest");
  }
  m.becomes("micro_bsz", "train.batch", bsz);
  m.becomes("devices", "train.micro_batches", ranks,
            ranks == 1 ? ""
                       : str("times num_nodes: the samples of ", ranks,
                             " ranks, one micro-batch after the other"));
  if (m.has("num_nodes")) m.row("num_nodes", "see devices");
  return sequences;
}

void map_data(Mapper& m) {
  const std::string file = m.text("data_file", "");
  if (file.empty()) Mapper::fail("data_file", "is missing, expected NAME of NAME.bin and NAME.idx");
  const std::string type = m.text("data_type", "binidx");
  if (type != "binidx")
    Mapper::fail("data_type", "is ", type, ", expected binidx (rwkv-data tokenize reads text and ",
                 "JSON lines)");
  const int64_t context = m.integer("ctx_len", 1024, 1, 1 << 20);
  const int64_t prime = m.integer("magic_prime", 0, 0);
  const int64_t vocab = m.integer("vocab_size", 1, 1);
  m.becomes("data_file", "data.train", file);
  if (m.has("data_type")) m.row("data_type", "nothing: it is the only value here");
  m.becomes("ctx_len", "train.context", context);
  int64_t tokens = 0;
  if (train_data_exists(file)) {
    const auto source = is_binidx(file) ? std::shared_ptr<const TokenSource>(
                                              BinidxFile::open(file, static_cast<int32_t>(vocab)))
                                        : TokenFile::open(file);
    tokens = source->size();
    try {
      const PrimeSampler sampler(tokens, context, prime);
      m.becomes("magic_prime", "data.magic_prime", sampler.prime(),
                prime == 0 ? str("computed from ", tokens, " tokens") : "");
    } catch (const ConfigError& e) {
      throw ConfigError(str("preset rwkv-lm: ", e.what()));
    }
  } else {
    m.becomes("magic_prime", "data.magic_prime", prime,
              prime == 0 ? "computed when the data is there" : "checked when the data is there");
  }
  m.becomes("magic_prime", "data.sampler", "prime");
  const int64_t exit = m.integer("my_exit_tokens", 0, 0);
  if (exit == 0)
    Mapper::fail("my_exit_tokens", "is missing or 0, expected the tokens after which the run ends",
                 tokens > 0 ? str("; one pass over the data is ", tokens) : std::string());
  m.becomes("my_exit_tokens", "train.exit_tokens", exit);
}

void map_optimizer(Mapper& m) {
  m.becomes("lr_init", "optimizer.lr", m.number("lr_init", 6e-4, 1e-30, 10));
  m.becomes("lr_final", "optimizer.lr_final", m.number("lr_final", 1e-5, 0, 10));
  m.becomes("lr_final", "optimizer.schedule", "cosine");
  const int64_t warmup = m.integer("warmup_steps", -1, -1);
  m.becomes("warmup_steps", "optimizer.warmup", std::max<int64_t>(warmup, 0));
  m.becomes("beta1", "optimizer.beta1", m.number("beta1", 0.9, 0, 0.999999));
  m.becomes("beta2", "optimizer.beta2", m.number("beta2", 0.99, 0, 0.99999999));
  m.becomes("adam_eps", "optimizer.eps", m.number("adam_eps", 1e-18, 1e-30, 1));
  const double decay = m.number("weight_decay", 0, 0, 10);
  m.becomes("weight_decay", "optimizer.weight_decay", decay);
  if (m.has("weight_decay_final") && m.number("weight_decay_final", -1, -1, 10) != -1 &&
      m.number("weight_decay_final", -1, -1, 10) != decay)
    Mapper::fail("weight_decay_final", "differs from weight_decay; the decay is constant here");
  m.ignore("weight_decay_final", "it is weight_decay");
  m.becomes("grad_clip", "train.clip", m.number("grad_clip", 1, 0, 1e9));
}

void map_rest(Mapper& m, int64_t sequences, RwkvLmPreset& preset) {
  const int64_t checkpointing = m.integer("grad_cp", 0, 0, 1);
  m.becomes("grad_cp", "train.grad_checkpointing", checkpointing == 1 ? "block" : "none");
  m.becomes("head_chunk", "train.loss_chunk_tokens", m.integer("head_chunk", 0, 0));
  const std::string precision = m.text("precision", "bf16");
  if (precision == "bf16")
    m.becomes("precision", "kernels.dtype", "auto", "bf16 on CUDA, f32 on the CPU");
  else if (precision == "fp32" || precision == "32")
    m.becomes("precision", "kernels.dtype", "f32");
  else
    Mapper::fail("precision", "is ", precision, ", expected bf16 or fp32");

  m.becomes("proj_dir", "checkpoint.dir", m.text("proj_dir", "out"));
  const int64_t every = m.integer("epoch_save", 5, 0, kMost / kMiniEpoch) * kMiniEpoch / sequences;
  m.becomes("epoch_save", "checkpoint.every", every,
            str("steps; a mini-epoch is 40320 samples, ", kMiniEpoch / sequences, " steps"));
  m.becomes("epoch_save", "checkpoint.keep_every", every, "none is removed");
  if (const int64_t seed = m.integer("random_seed", -1, -1); seed >= 0)
    m.becomes("random_seed", "train.seed", seed);

  m.alias("my_pile_stage", "train_stage");
  const int64_t stage = m.integer("train_stage", 0, 0, 3);
  if (stage == 1)
    Mapper::fail("train_stage", "is 1, which only writes initial weights; leave that stage out, a ",
                 "run without checkpoints makes its own");
  preset.resume = stage >= 2;
  const std::string model = m.text("load_model", "");
  const bool named = !model.empty() && model != "0";
  if (preset.resume) {
    m.row("train_stage", "--resume: from the newest checkpoint of proj_dir, if there is one");
    if (m.has("load_model")) m.row("load_model", "nothing: with train_stage 2 and 3 it is unused");
    m.ignore("epoch_begin", "the checkpoint says it");
  } else {
    if (m.has("train_stage")) m.row("train_stage", "a new run");
    m.only("epoch_begin", {"0"}, "a run is continued with train_stage 3, or --resume");
    if (named) preset.init_file = model;
    if (m.has("load_model"))
      m.row("load_model", named ? "--init " + model : "nothing: random initial weights");
  }
  m.only("load_partial", {"0"}, "weights have to be complete here; leave it out");

  const std::string accelerator = m.text("accelerator", "auto");
  if (accelerator == "gpu" || accelerator == "cuda")
    preset.device = "cuda";
  else if (accelerator == "cpu")
    preset.device = "cpu";
  else if (accelerator != "auto")
    Mapper::fail("accelerator", "is ", accelerator, ", expected gpu or cpu");
  if (!preset.device.empty()) m.row("accelerator", "--device " + preset.device);

  m.ignore("epoch_count", "my_exit_tokens ends the run; the reference computes it too");
  m.ignore("epoch_steps", "the reference computes it too");
  m.ignore("wandb", "log.jsonl and TensorBoard events are written to the run folder");
  m.ignore("kernel", "see --wkv");
  m.ignore("strategy", "one process");
  m.ignore("ds_bucket_mb", "one process");
  m.ignore("enable_progress_bar", "--quiet turns it off");
}

}  // namespace

std::vector<RwkvLmSetting> parse_rwkv_lm_words(std::span<const std::string> words) {
  std::vector<RwkvLmSetting> settings;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    RWKV_CHECK(word.starts_with("--") && word.size() > 2, ConfigError, "preset rwkv-lm: found '",
               word, "', expected a setting such as --micro_bsz 16");
    const size_t eq = word.find('=');
    if (eq != std::string::npos) {
      settings.emplace_back(word.substr(2, eq - 2), word.substr(eq + 1));
      continue;
    }
    RWKV_CHECK(i + 1 < words.size() && !words[i + 1].starts_with("--"), ConfigError,
               "preset rwkv-lm: ", word, " has no value");
    settings.emplace_back(word.substr(2), words[++i]);
  }
  return settings;
}

RwkvLmPreset map_rwkv_lm(const std::vector<RwkvLmSetting>& settings) {
  Mapper m(settings);
  RwkvLmPreset preset;
  m.alias("head_size_a", "head_size");
  map_model(m);
  map_data(m);
  const int64_t sequences = map_batch(m);
  map_optimizer(m);
  map_rest(m, sequences, preset);
  m.refuse_unknown();
  preset.config_json = m.config();
  preset.report = m.report();
  return preset;
}

}  // namespace rwkv
