#include "data/tokenizer/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "data/io/json_depth.h"
#include "data/tokenizer/utf8.h"
#include "kernels/core/error.h"

namespace rwkv {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxId = 1 << 20;  // far above any vocabulary: catches damaged files
/// Of all added tokens: finding them in texts takes a kilobyte for each byte.
constexpr size_t kMaxAddedBytes = 1 << 17;

/// A value for a message, cut short.
std::string show(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

/// Bytes of a string in which every byte is written as one printable character.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    int extra = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool as_is = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      byte_of_[static_cast<size_t>(as_is ? b : extra++)] = b;
    }
  }
  /// nullopt if a character stands for no byte.
  std::optional<std::string> bytes(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      unsigned c = static_cast<unsigned char>(text[i]);
      if (c >= 0xE0 || (c >= 0x80 && i + 1 == text.size())) return std::nullopt;
      if (c >= 0x80) c = (c & 31) << 6 | (static_cast<unsigned char>(text[++i]) & 63);
      if (c >= byte_of_.size() || byte_of_[c] < 0) return std::nullopt;
      out += static_cast<char>(byte_of_[c]);
    }
    return out;
  }

 private:
  std::array<int, 0x144> byte_of_;
};

class Reader {
 public:
  Reader(std::string_view text, std::string origin) : origin_(std::move(origin)) {
    RWKV_CHECK(!json_deeper_than(text), IoError, "reading the tokenizer ", origin_,
               ": its JSON is nested too deep; expected a file like 20B_tokenizer.json");
    try {
      root_ = Json::parse(text);
    } catch (const Json::exception& e) {
      const std::string_view what = e.what();
      const size_t bracket = what.find("] ");
      throw IoError(str("reading the tokenizer ", origin_, ": not JSON: ",
                        bracket == std::string_view::npos ? what : what.substr(bracket + 2),
                        "; expected a file like 20B_tokenizer.json"));
    }
    if (!root_.is_object()) bad("the file", show(root_), "a JSON object");
  }

  BpeVocabulary read() {
    read_steps();
    const Json& model = need(root_, "", "model", Json::value_t::object);
    read_model_options(model);
    read_vocab(need(model, "model.", "vocab", Json::value_t::object));
    read_added();
    read_merges(need(model, "model.", "merges", Json::value_t::array));
    return std::move(v_);
  }

 private:
  [[noreturn]] void bad(const std::string& member, const std::string& found,
                        const std::string& expected) const {
    throw IoError(str("reading the tokenizer ", origin_, ", ", member, ": found ", found,
                      ", expected ", expected));
  }
  static const char* type_text(Json::value_t t) {
    return t == Json::value_t::object   ? "an object"
           : t == Json::value_t::array  ? "an array"
           : t == Json::value_t::string ? "a string"
                                        : "true or false";
  }
  const Json& need(const Json& in, const std::string& path, const char* name,
                   Json::value_t type) const {
    const auto it = in.find(name);
    if (it == in.end()) bad(path + name, "nothing", type_text(type));
    if (it->type() != type) bad(path + name, show(*it), type_text(type));
    return *it;
  }
  std::string type_of(const char* member) const {
    const auto it = root_.find(member);
    if (it == root_.end() || it->is_null()) return "";
    return need(*it, std::string(member) + ".", "type", Json::value_t::string).get<std::string>();
  }
  /// Options that change ids when they are not off.
  void expect_off(const Json& in, const std::string& path, const char* name) const {
    const auto it = in.find(name);
    const bool off = it == in.end() || it->is_null() || *it == false || *it == 0 || *it == "";
    if (!off) bad(path + name, show(*it), "null or false: it is not supported");
  }

  void read_steps() {
    const std::string normalizer = type_of("normalizer");
    if (!normalizer.empty() && normalizer != "NFC")
      bad("normalizer.type", '"' + normalizer + '"', "\"NFC\" or no normalizer");
    v_.nfc = !normalizer.empty();
    for (const char* member : {"pre_tokenizer", "decoder"}) {
      const std::string type = type_of(member);
      if (type != "ByteLevel")
        bad(str(member, ".type"), type.empty() ? "nothing" : '"' + type + '"', "\"ByteLevel\"");
    }
    const Json& pre = root_["pre_tokenizer"];
    expect_off(pre, "pre_tokenizer.", "add_prefix_space");
    if (pre.value("use_regex", Json(true)) != true)
      bad("pre_tokenizer.use_regex", show(pre["use_regex"]), "true");
  }

  void read_model_options(const Json& model) const {
    if (const auto it = model.find("type"); it != model.end() && *it != "BPE")
      bad("model.type", show(*it), "\"BPE\"");
    for (const char* name : {"dropout", "unk_token", "continuing_subword_prefix",
                             "end_of_word_suffix", "byte_fallback", "ignore_merges"})
      expect_off(model, "model.", name);
  }

  int32_t id_of(const Json& value, const std::string& member) const {
    if (!value.is_number_integer() || value < 0 || value > kMaxId)
      bad(member, show(value), str("an id from 0 to ", kMaxId));
    return value.get<int32_t>();
  }
  void grow(int32_t id) {
    if (static_cast<size_t>(id) >= v_.tokens.size()) {
      v_.tokens.resize(static_cast<size_t>(id) + 1);
      text_.resize(v_.tokens.size());
    }
  }

  void read_vocab(const Json& vocab) {
    ids_.reserve(vocab.size());
    for (const auto& [text, value] : vocab.items()) {
      const std::string member = "model.vocab, entry " + show(text);
      const int32_t id = id_of(value, member);
      if (text.empty()) bad(member, "an empty string", "at least one character");
      grow(id);
      std::string& owner = text_[static_cast<size_t>(id)];
      if (!owner.empty())
        bad(member, str("id ", id, ", which ", show(owner), " has too"), "its own");
      owner = text;
      ids_.emplace(text, id);
    }
    if (ids_.empty()) bad("model.vocab", "no entries", "a vocabulary");
  }

  /// Adds the added tokens, then turns the strings of all others into bytes.
  void read_added() {
    std::vector<bool> is_added;
    size_t added_bytes = 0;
    const Json& list = need(root_, "", "added_tokens", Json::value_t::array);
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string path = str("added_tokens[", i, "]");
      if (!list[i].is_object()) bad(path, show(list[i]), "an object");
      const auto flag = [&](const char* name) {
        return need(list[i], path + ".", name, Json::value_t::boolean).get<bool>();
      };
      AddedToken t;
      t.content = need(list[i], path + ".", "content", Json::value_t::string).get<std::string>();
      if (t.content.empty()) bad(path + ".content", "an empty string", "at least one character");
      if (!list[i].contains("id")) bad(path + ".id", "nothing", "an id");
      added_bytes += t.content.size();
      if (added_bytes > kMaxAddedBytes)
        bad(path, str("content that makes ", added_bytes, " bytes with those before it"),
            str("at most ", kMaxAddedBytes));
      t.id = id_of(list[i]["id"], path + ".id");
      t.special = flag("special");
      t.normalized = flag("normalized");
      for (const char* name : {"single_word", "lstrip", "rstrip"})
        expect_off(list[i], path + ".", name);
      grow(t.id);
      is_added.resize(v_.tokens.size());
      const auto at = static_cast<size_t>(t.id);
      if (is_added[at]) bad(path + ".id", str(t.id, ", which occurs twice"), "an id of its own");
      const auto known = ids_.find(t.content);
      if (known != ids_.end() ? known->second != t.id : !text_[at].empty())
        bad(path + ".id", str(t.id, " for ", show(t.content), ", which disagrees with model.vocab"),
            "the same id there, or an unused one");
      is_added[at] = true;
      v_.tokens[at] = t.special ? "" : t.content;
      v_.added.push_back(std::move(t));
    }
    is_added.resize(v_.tokens.size());
    const bool zero = std::any_of(v_.added.begin(), v_.added.end(),
                                  [](const AddedToken& t) { return t.id == 0 && t.special; });
    if (!zero)
      bad("added_tokens", "no special token with id 0",
          "one: id 0 ends documents, as \"<|endoftext|>\" of GPT-NeoX does");
    const ByteAlphabet alphabet;
    v_.byte_ids.fill(-1);
    for (size_t id = 0; id < text_.size(); ++id) {
      if (is_added[id] || text_[id].empty()) continue;
      auto bytes = alphabet.bytes(text_[id]);
      if (!bytes)
        bad("model.vocab, entry " + show(text_[id]), "a character that stands for no byte",
            "the byte-level alphabet of GPT-2");
      if (bytes->size() == 1)
        v_.byte_ids[static_cast<unsigned char>((*bytes)[0])] = static_cast<int32_t>(id);
      v_.tokens[id] = std::move(*bytes);
    }
    for (int b = 0; b < 256; ++b) {
      const bool in_utf8 = b != 0xC0 && b != 0xC1 && b < 0xF5;
      if (in_utf8 && v_.byte_ids[static_cast<size_t>(b)] < 0)
        bad("model.vocab", str("no entry for the single byte ", b),
            "all 243 bytes that UTF-8 uses; some texts could not be encoded");
    }
  }

  void read_merges(const Json& merges) {
    std::unordered_map<std::string, size_t> seen;
    for (size_t i = 0; i < merges.size(); ++i) {
      const std::string member = str("model.merges[", i, "]");
      const Json& m = merges[i];
      std::string left, right;
      if (m.is_string()) {
        const auto& text = m.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
          left = text.substr(0, space);
          right = text.substr(space + 1);
        }
      } else if (m.is_array() && m.size() == 2 && m[0].is_string() && m[1].is_string()) {
        left = m[0].get<std::string>();
        right = m[1].get<std::string>();
      }
      if (left.empty() || right.empty()) bad(member, show(m), "two tokens: \"LEFT RIGHT\"");
      const auto id = [&](const std::string& text) {
        const auto it = ids_.find(text);
        if (it == ids_.end())
          bad(member, show(m) + ", but " + show(text) + " is not in model.vocab",
              "both tokens and their union there");
        return it->second;
      };
      if (!seen.emplace(left + ' ' + right, i).second)
        bad(member, show(m) + ", which occurs twice", "each pair once");
      v_.merges.push_back({id(left), id(right), id(left + right)});
    }
  }

  std::string origin_;
  Json root_;
  BpeVocabulary v_;
  std::vector<std::string> text_;  ///< strings of model.vocab by id
  std::unordered_map<std::string, int32_t> ids_;
};

}  // namespace

BpeVocabulary parse_tokenizer_json(std::string_view json, const std::string& origin) {
  return Reader(json, origin).read();
}

}  // namespace rwkv
