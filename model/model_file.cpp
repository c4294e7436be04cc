#include "model/model_file.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "data/io/gguf.h"
#include "data/io/hdf5_shards.h"
#include "data/io/seal.h"
#include "model/hf_config.h"
#include "model/rwkv.h"

namespace rwkv {
namespace {

constexpr std::string_view kWeights = "weights/";

bool is_unused(std::string_view name) {
  return name == "blocks.0.att.v0" || name == "blocks.0.att.v1" || name == "blocks.0.att.v2";
}

/// Without the extents of one: files differ in whether a vector is (C), (1, C) or (1, 1, C).
Shape squeezed(const Shape& shape) {
  Shape s;
  for (const int64_t n : shape)
    if (n != 1) s.push_back(n);
  return s;
}

/// Prefixes that training frameworks put before every name.
bool is_wrapper_prefix(std::string_view p) {
  while (!p.empty()) {
    bool found = false;
    for (const std::string_view known : {"_forward_module.", "module.", "_orig_mod.", "model."})
      if (p.starts_with(known)) {
        p.remove_prefix(known.size());
        found = true;
        break;
      }
    if (!found) return false;
  }
  return true;
}

/// A tensor that only one layout and architecture has.
struct Mark {
  std::string_view name;
  Layout layout;
  const char* architecture;
};
constexpr Mark kMarks[] = {
    {"model.layers.0.attn.r_k", Layout::kFla, "rwkv7"},
    {"blocks.0.att.r_k", Layout::kBlinkDl, "rwkv7"},
    {"rwkv.blocks.0.attention.time_decay", Layout::kHf4, "rwkv4"},
    {"blk.0.time_mix_r_k.weight", Layout::kGguf, "rwkv7"},
    {"blocks.0.att.time_decay", Layout::kBlinkDl, "rwkv4"},
};

}  // namespace

/// The steps from a file of tensors to a model.
struct ModelFile::Opening {
  ModelFile& m;
  std::string prefix;
  std::string architecture;
  std::map<std::string, Source, std::less<>> found;  ///< by our name
  std::optional<HfConfig> hf;
  int64_t head_size = 0;

  const TensorFile& file() const { return *m.file_; }
  [[noreturn]] void fail(const std::string& why) const {
    throw IoError(str("opening ", m.path(), ": ", why));
  }

  void refuse_variants() const {
    const auto has = [&](std::string_view part) {
      return std::ranges::any_of(file().tensors(), [&](const TensorInfo& t) {
        return t.name.find(part) != std::string::npos;
      });
    };
    if (has("ffn.s_emb") || has("ffn.s0") || has("ffn.s1"))
      fail("this is a DeepEmbed model (RWKV-7a or 7b), a variant that this version does not run");
    if (has("rosa") || has(".qkv"))
      fail("this is an experimental RWKV-8 model, which this version does not run");
    for (const char* key : {"_strategy", "_version", "_rescale_layer"}) {
      const auto about = [&](const std::string& n) {
        return n.find(str("skipped ", key, ":")) == 0;
      };
      if (has(key) || std::ranges::any_of(file().notes(), about))
        fail(
            "the rwkv package has converted this file for itself (folded and transposed); use the "
            "original");
    }
    if (has("att.time_maa")) fail("this is an RWKV-6 model; this version runs RWKV-7 and RWKV-4");
    if (has("att.ln_x.") && !has("att.r_k"))
      fail("this is an RWKV-5 model; this version runs RWKV-7 and RWKV-4");
    for (const char* key : {"head_q.weight", "head_k.weight", "copy_mask", ".ffnPre."})
      if (has(key)) fail(str("it has ", key, ", an old training option that this version lacks"));
  }

  void recognise() {
    if (file().format() == TensorFormat::kHdf5) {
      const std::string path = is_shard_folder(m.path()) ? shard_index_path(m.path()) : m.path();
      Hdf5File h = Hdf5File::open(path);
      if (h.has_attr("", kSealedAttribute) && !has_seal(path))
        fail("the seal at its end is missing: the file is truncated");
      if (path == m.path() && h.exists("shards/index"))
        fail("it is the index of a checkpoint in several files: give the folder that it is in");
      m.config_ = read_model_config(h);
      m.tokenizer_ = read_tokenizer(h);
      architecture = m.config_.architecture;
      prefix = kWeights;
      return;
    }
    refuse_variants();
    for (const Mark& mark : kMarks)
      for (const TensorInfo& t : file().tensors()) {
        if (!t.name.ends_with(mark.name)) continue;
        const std::string before = t.name.substr(0, t.name.size() - mark.name.size());
        if (!is_wrapper_prefix(before)) continue;
        m.layout_ = mark.layout;
        architecture = mark.architecture;
        prefix = before;
        return;
      }
    for (const auto& [key, value] : file().header())
      if (key == "metadata.greylag" && value.starts_with("state"))
        fail("it holds a state (rwkv-generate --state-out), not a model; give it with --state-in");
    fail(str(
        "its ", file().tensors().size(), " tensors",
        file().tensors().empty() ? std::string() : str(" (", file().tensors()[0].name, ", ...)"),
        " are not those of an RWKV-7 or RWKV-4 model; rwkv-convert --inspect lists them"));
  }

  /// Checks what the file says about itself besides tensors.
  void read_header() {
    if (const auto* gguf = dynamic_cast<const GgufFile*>(m.file_.get())) {
      const std::string arch = gguf->text("general.architecture").value_or("(none)");
      if (arch != "rwkv7") fail(str("general.architecture is '", arch, "', expected rwkv7"));
      head_size = gguf->integer("rwkv7.wkv.head_size").value_or(64);
      const double eps = gguf->real("rwkv7.attention.layer_norm_epsilon").value_or(1e-5);
      if (!(std::fabs(eps - 1e-5) < 1e-9))
        fail(str("layer_norm_epsilon is ", eps, ", this version computes with 1e-5"));
    }
    if (file().format() == TensorFormat::kSafetensors) {
      hf = read_hf_config(m.path());
      if (hf) check_hf_config(*hf, architecture, m.path());
      if (hf) head_size = hf->head_size;
      for (const auto& [key, value] : file().header()) {
        if (key == str("metadata.", kTokenizerKey)) m.tokenizer_.name = value;
        if (key == str("metadata.", kTokenizerHashKey)) m.tokenizer_.hash = value;
      }
    }
  }

  void add(std::string name, Source source) {
    const auto [it, fresh] = found.emplace(std::move(name), source);
    if (!fresh) fail(str("two tensors stand for ", it->first));
  }

  void map_names() {
    std::map<std::string, const NameRule*, std::less<>> rules;
    for (const NameRule& r : name_rules(m.layout_)) rules[std::string(r.theirs)] = &r;
    for (size_t i = 0; i < file().tensors().size(); ++i) {
      std::string_view name = file().tensors()[i].name;
      if (name.starts_with(prefix))
        name.remove_prefix(prefix.size());
      else if (file().format() == TensorFormat::kHdf5)
        continue;  // other groups
      const auto split = split_layer(name);
      if (!split) fail(str(name.substr(0, 200), " has no sane layer number"));
      if (m.layout_ == Layout::kBlinkDl) {
        add(std::string(name), {i});
      } else if (split->pattern == stack_name(m.layout_)) {
        const auto names = stacked_names();
        for (size_t p = 0; p < names.size(); ++p)
          add(join_layer(names[p], split->layer),
              {i, Change::kNone, static_cast<int64_t>(p), static_cast<int64_t>(names.size())});
      } else if (const auto rule = rules.find(split->pattern); rule != rules.end()) {
        add(join_layer(rule->second->ours, split->layer), {i, rule->second->change});
      } else {
        fail(str(name.substr(0, 200), " is not a tensor of the ", layout_name(m.layout_),
                 " layout of ", architecture));
      }
    }
    if (hf && hf->tied && !found.contains("head.weight") && found.contains("emb.weight"))
      add("head.weight", found.find("emb.weight")->second);
  }

  /// As it would be in our layout; what cannot be is left for check().
  Shape shape_of(const Source& s) const {
    Shape shape = file().tensors()[s.tensor].shape;
    if (s.change == Change::kTranspose) {
      if (shape.size() != 2)
        fail(str(file().tensors()[s.tensor].name, " has shape ", shape_string(shape),
                 ", expected a matrix"));
      std::swap(shape[0], shape[1]);
    }
    if (s.parts > 1 && !shape.empty()) {
      if (shape[0] != s.parts)
        fail(str(file().tensors()[s.tensor].name, " has shape ", shape_string(shape), ", expected ",
                 s.parts, " in front"));
      shape.erase(shape.begin());
    }
    return shape;
  }
  Shape need(const std::string& name, size_t rank) const {
    const auto it = found.find(name);
    if (it == found.end()) fail(str("there is no ", name, "; is the file complete?"));
    const Shape shape = shape_of(it->second);
    if (shape.size() != rank)
      fail(str(name, " has shape ", shape_string(shape), ", expected ", rank, " dimensions"));
    return shape;
  }

  /// The sizes that the tensors imply.
  void derive_config() {
    ModelConfig c;
    c.architecture = architecture;
    for (const auto& [name, source] : found)
      if (const auto split = split_layer(name); split && name.starts_with("blocks."))
        c.n_layer = std::max(c.n_layer, split->layer + 1);
    // Before a model of that depth is made.
    constexpr size_t kLeastPerLayer = 15;
    if (found.size() / kLeastPerLayer < static_cast<size_t>(c.n_layer))
      fail(str(found.size(), " tensors are too few for ", c.n_layer, " layers"));
    const Shape emb = need("emb.weight", 2);
    c.vocab_size = emb[0];
    c.n_embd = emb[1];
    c.dim_ffn = need("blocks.0.ffn.key.weight", 2)[0];
    if (architecture == "rwkv7") {
      const auto r_k = found.find("blocks.0.att.r_k");
      if (r_k == found.end()) fail("there is no blocks.0.att.r_k; is the file complete?");
      const Shape shape = shape_of(r_k->second);
      // (H, N), or flat: that leaves the head size to the header; 64 is what all published models
      // have. (1, C) is flat if no head is that wide.
      const int64_t n = shape.size() == 2 ? shape[1] : 0;
      const bool flat = shape.size() != 2 || (shape[0] == 1 && n != 32 && n != 64 && n != 128);
      if (!flat)
        head_size = n;
      else if (head_size == 0)
        head_size = 64;
      c.head_size = head_size;
      c.rank_w = need("blocks.0.att.w1", 2)[1];
      c.rank_a = need("blocks.0.att.a1", 2)[1];
      c.rank_v = need("blocks.1.att.v1", 2)[1];
      c.rank_g = need("blocks.0.att.g1", 2)[1];
    }
    for (const int64_t n : {c.dim_ffn, c.rank_w, c.rank_a, c.rank_v, c.rank_g})
      if (n == 0 && (architecture == "rwkv7" || n == c.dim_ffn))
        fail("a tensor has an extent of 0");
    c.finish();
    m.config_ = c;
  }

  void take(const std::string& name, Shape ours, const Source& s) {
    const Shape theirs = shape_of(s);
    const bool flat_r_k = name.ends_with(".att.r_k") && squeezed(theirs) == Shape{m.config_.n_embd};
    if (squeezed(theirs) != squeezed(ours) && !flat_r_k)
      fail(str(name, " has shape ", shape_string(theirs), ", expected ", shape_string(ours)));
    const TensorInfo& info = file().tensors()[s.tensor];
    if (info.type == TensorType::kOther)
      fail(str(info.name, " has type ", info.type_name,
               ", which this version does not read; expected f32, f16, bf16 or q8_0"));
    m.tensors_.push_back({name, std::move(ours), info.type});
    m.sources_.push_back(s);
  }

  void collect() {
    const auto model = make_model(m.config_);
    uint64_t elements = 0;
    for (const ParamSpec& p : model->params().specs()) {
      const auto it = found.find(p.name);
      if (it == found.end())
        fail(str("there is no ", p.name, "; is the file complete, and is it ", architecture, "?"));
      take(p.name, Shape(p.spec.dim.begin(), p.spec.dim.begin() + p.spec.rank), it->second);
      elements += static_cast<uint64_t>(p.spec.numel());
      found.erase(it);
    }
    // llama.cpp wants them there with any values, so a GGUF's are not worth keeping.
    for (const char* n : {"v0", "v1", "v2"}) {
      const auto it = found.find(str("blocks.0.att.", n));
      if (it == found.end()) continue;
      const int64_t d = m.config_.n_embd, r = m.config_.rank_v;
      const Shape shape = n[1] == '0' ? Shape{1, 1, d} : n[1] == '1' ? Shape{d, r} : Shape{r, d};
      if (m.layout_ != Layout::kGguf && architecture == "rwkv7") {
        take(it->first, shape, it->second);
        elements += static_cast<uint64_t>(m.config_.n_embd * m.config_.rank_v);
        found.erase(it);
      } else if (architecture == "rwkv7") {
        found.erase(it);
      }
    }
    if (!found.empty()) fail(str(found.begin()->first, " is not a tensor of this model"));
    // Numbers that share storage could ask for more memory than any file of this size needs.
    if (elements > 2 * file().file_bytes() + (1 << 20))
      fail(str(elements, " weights in a file of ", file().file_bytes(), " bytes; it is damaged"));
  }
};

ModelFile ModelFile::open(const std::string& path) {
  ModelFile m;
  m.file_ = open_tensor_file(path);
  Opening o{.m = m, .prefix = {}, .architecture = {}, .found = {}, .hf = {}};
  try {
    o.recognise();
    o.read_header();
    o.map_names();
    if (m.format() != TensorFormat::kHdf5) o.derive_config();
    if (o.hf) check_hf_sizes(*o.hf, m.config_, path);
    o.collect();
  } catch (const ConfigError& e) {  // sizes that no model can have
    throw IoError(str("opening ", path, ": ", e.what()));
  }
  return m;
}

void transpose(std::span<const float> in, int64_t a, int64_t b, std::span<float> out) {
  const auto rows = static_cast<size_t>(a), cols = static_cast<size_t>(b);
  for (size_t i = 0; i < rows; ++i)
    for (size_t j = 0; j < cols; ++j) out[j * rows + i] = in[i * cols + j];
}

void ModelFile::read(size_t index, std::span<float> out) const {
  const ModelTensor& t = tensors_.at(index);
  const Source& s = sources_[index];
  RWKV_CHECK(out.size() == checked_numel(t.shape, t.name, path()), ShapeError, "reading ", t.name,
             ": ", out.size(), " values asked for, it has shape ", shape_string(t.shape));
  if (s.change == Change::kTranspose) {
    std::vector<float> theirs(out.size());
    file_->read(s.tensor, theirs);
    transpose(theirs, t.shape[1], t.shape[0], out);
  } else if (s.parts > 1) {
    std::vector<float> all(out.size() * static_cast<size_t>(s.parts));
    file_->read(s.tensor, all);
    std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(out.size()) * s.part, out.size(),
                out.begin());
  } else {
    file_->read(s.tensor, out);
  }
  for (const float x : out)
    RWKV_CHECK(std::isfinite(x), IoError, "loading ", t.name, " from ", path(),
               ": it holds NaN or infinite values");
}

void ModelFile::read_all(const ParamRegistry& params, ParamStore& values) const {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const auto id = params.find(tensors_[i].name);
    if (!id && is_unused(tensors_[i].name)) continue;
    RWKV_ASSERT(id, tensors_[i].name);
    const TensorView v = values[*id];
    read(i, {v.f32(), static_cast<size_t>(v.numel())});
  }
}

OpenedModel open_model(const ModelFile& file) {
  OpenedModel m;
  m.model = make_model(file.config());
  m.weights = std::make_unique<ParamStore>(Device::kCpu, m.model->params(), "weights");
  file.read_all(m.model->params(), *m.weights);
  return m;
}

}  // namespace rwkv
