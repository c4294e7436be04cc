#include "inference/gguf_vocabulary.h"

#include <nlohmann/json.hpp>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

using Keys = std::vector<std::pair<std::string, GgufValue>>;

enum TokenType : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

constexpr char kHex[] = "0123456789abcdef";
constexpr int32_t kBlankLine = 261;  ///< of the World vocabulary: ends a chat turn

std::string padding(int64_t id) {
  return str("[PAD", id, "]");
}

/// What Python prints between the quotes of a bytes literal; quotes themselves stay bare.
std::string escape(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto b = static_cast<unsigned char>(c);
    if (c == '\t')
      out += "\\t";
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\\')
      out += "\\\\";
    else if (b >= 0x20 && b < 0x7f)
      out += c;
    else
      out += {'\\', 'x', kHex[b >> 4], kHex[b & 15]};
  }
  return out;
}

/// The other way round, as llama.cpp does it: backslash and another character is that character.
std::string unescape(std::string_view text, const std::string& path) {
  std::string out;
  const auto digit = [&](size_t i) {
    const size_t d =
        i < text.size() ? std::string_view(kHex).find(text[i]) : std::string_view::npos;
    RWKV_CHECK(d < 16, IoError, "reading the tokens of ", path, ": a bad \\x in a token");
    return static_cast<unsigned>(d);
  };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    const char c = text[++i];
    if (c == 'x') {
      out += static_cast<char>(digit(i + 1) << 4 | digit(i + 2));
      i += 2;
    } else {
      out += c == 't' ? '\t' : c == 'n' ? '\n' : c == 'r' ? '\r' : c;
    }
  }
  return out;
}

/// The vocabulary of a tokenizer.json: strings by id, and what they are.
void neox_keys(const Tokenizer& t, std::vector<std::string>& tokens, std::vector<int32_t>& types,
               Keys& keys) {
  const auto j = nlohmann::json::parse(t.vocabulary());
  const auto put = [&](const std::string& text, int64_t id, int32_t type) {
    if (id < 0 || id >= std::ssize(tokens)) return;
    tokens[static_cast<size_t>(id)] = text;
    types[static_cast<size_t>(id)] = type;
  };
  for (const auto& [text, id] : j.at("model").at("vocab").items())
    put(text, id.get<int64_t>(), kNormal);
  for (const auto& a : j.at("added_tokens"))
    put(a.at("content").get<std::string>(), a.at("id").get<int64_t>(),
        a.at("special").get<bool>() ? kControl : kUserDefined);
  std::vector<std::string> merges;
  for (const auto& m : j.at("model").at("merges"))
    merges.push_back(m.is_array() ? m.at(0).get<std::string>() + " " + m.at(1).get<std::string>()
                                  : m.get<std::string>());
  keys.push_back({"tokenizer.ggml.model", std::string("gpt2")});
  keys.push_back({"tokenizer.ggml.pre", std::string("olmo")});
  keys.push_back({"tokenizer.ggml.merges", std::move(merges)});
}

/// The other way round: a tokenizer.json with the same ids. GGUF does not say that texts are
/// normalised; those of this kind are.
std::shared_ptr<const Tokenizer> neox_of_gguf(const GgufFile& file) {
  const std::string pre = file.text("tokenizer.ggml.pre").value_or("");
  const std::vector<std::string> tokens = file.texts("tokenizer.ggml.tokens");
  const std::vector<int64_t> types = file.integers("tokenizer.ggml.token_type");
  // Names of the GPT-2 expression that split texts; id 0 ends documents everywhere here.
  const bool known = pre == "olmo" || pre == "gpt-2" || pre == "mpt";
  if (!has_neox_tokenizer() || !known || types.size() != tokens.size() || tokens.empty() ||
      types[0] != kControl)
    return nullptr;
  using Json = nlohmann::json;
  Json vocab = Json::object(), added = Json::array();
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (types[id] == kNormal) {
      RWKV_CHECK(vocab.emplace(tokens[id], id).second, IoError, "reading the tokens of ",
                 file.path(), ": two of them are the same");
    } else if (types[id] == kControl || types[id] == kUserDefined) {
      const bool special = types[id] == kControl;
      added.push_back({{"id", id},
                       {"content", tokens[id]},
                       {"special", special},
                       {"normalized", !special},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false}});
    }
  }
  const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  const Json j = {{"added_tokens", std::move(added)},
                  {"normalizer", {{"type", "NFC"}}},
                  {"pre_tokenizer", byte_level},
                  {"decoder", byte_level},
                  {"model",
                   {{"type", "BPE"},
                    {"vocab", std::move(vocab)},
                    {"merges", file.texts("tokenizer.ggml.merges")}}}};
  return make_tokenizer("neox", j.dump(-1, ' ', false, Json::error_handler_t::replace),
                        file.path());
}

}  // namespace

Keys gguf_tokenizer_keys(const Tokenizer* tokenizer, int64_t rows) {
  RWKV_CHECK(tokenizer == nullptr || tokenizer->vocab_size() <= rows, ConfigError,
             "writing the tokenizer ", tokenizer->name(), ": it has ", tokenizer->vocab_size(),
             " ids, the model ", rows, " rows");
  std::vector<std::string> tokens(static_cast<size_t>(rows));
  std::vector<int32_t> types(tokens.size(), kUnused);
  Keys keys;
  const bool neox = tokenizer != nullptr && tokenizer->name() == "neox";
  for (int64_t id = 0; id < rows; ++id) tokens[static_cast<size_t>(id)] = padding(id);
  if (neox) {
    neox_keys(*tokenizer, tokens, types, keys);
  } else {
    keys.push_back({"tokenizer.ggml.model", std::string("rwkv")});
    tokens[0] = "<s>";
    types[0] = kControl;
    for (int32_t id = 1; tokenizer != nullptr && id < tokenizer->vocab_size(); ++id) {
      const std::string_view bytes = tokenizer->token_bytes(id);
      if (bytes.empty()) continue;
      tokens[static_cast<size_t>(id)] = escape(bytes);
      types[static_cast<size_t>(id)] = kNormal;
    }
  }
  const bool world = tokenizer != nullptr && tokenizer->name() == "world" &&
                     tokenizer->token_bytes(kBlankLine) == "\n\n";
  keys.push_back({"tokenizer.ggml.tokens", std::move(tokens)});
  keys.push_back({"tokenizer.ggml.token_type", std::move(types)});
  keys.push_back({"tokenizer.ggml.bos_token_id", uint32_t{0}});
  keys.push_back({"tokenizer.ggml.eos_token_id", uint32_t{0}});
  if (world) {
    keys.push_back({"tokenizer.ggml.eot_token_id", static_cast<uint32_t>(kBlankLine)});
    keys.push_back({"tokenizer.chat_template", std::string("rwkv-world")});
  }
  return keys;
}

std::shared_ptr<const Tokenizer> tokenizer_of_gguf(const GgufFile& file) {
  const auto kind = file.text("tokenizer.ggml.model");
  if (kind == "gpt2") return neox_of_gguf(file);
  if (kind != "rwkv") return nullptr;
  const std::vector<std::string> tokens = file.texts("tokenizer.ggml.tokens");
  const std::vector<int64_t> types = file.integers("tokenizer.ggml.token_type");
  std::string vocabulary;
  int64_t count = 0;
  bool bytes_only = true;
  for (size_t id = 1; id < tokens.size(); ++id) {
    const bool normal = types.empty() ? tokens[id] != padding(static_cast<int64_t>(id))
                                      : id < types.size() && types[id] == kNormal;
    if (!normal) continue;
    const std::string bytes = unescape(tokens[id], file.path());
    if (bytes.empty()) continue;
    ++count;
    bytes_only = bytes_only && bytes.size() == 1 &&
                 static_cast<unsigned char>(bytes[0]) == static_cast<unsigned char>(id - 1) &&
                 id <= 256;
    vocabulary += str(id, " b'");
    for (const char c : bytes) {
      const auto b = static_cast<unsigned char>(c);
      vocabulary += {'\\', 'x', kHex[b >> 4], kHex[b & 15]};
    }
    vocabulary += str("' ", bytes.size(), "\n");
  }
  if (count == 0) return nullptr;
  if (bytes_only && count == 256) return std::make_shared<ByteTokenizer>();
  return make_tokenizer("world", std::move(vocabulary), file.path());
}

}  // namespace rwkv
