#include "trainer/comm/comm.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "data/io/sha256.h"

namespace rwkv {
namespace {

/// What a rank says about a piece of work.
struct Verdict {
  int32_t code = -1;   ///< -1: it went well
  uint32_t bytes = 0;  ///< of its message
};

/// The messages of all ranks: of most of them there is none, so this is for failures only.
std::vector<std::string> gather_texts(HostGroup& group, const std::string& mine,
                                      std::span<const Verdict> all) {
  const size_t most = std::ranges::max(all, {}, &Verdict::bytes).bytes;
  std::vector<char> padded(most), texts(most * all.size());
  std::ranges::copy(mine, padded.begin());
  if (most > 0) group.all_gather(padded.data(), most, texts.data());
  std::vector<std::string> out;
  for (size_t r = 0; r < all.size(); ++r) out.emplace_back(texts.data() + r * most, all[r].bytes);
  return out;
}

}  // namespace

std::string ranks_text(const std::vector<int>& ranks) {
  constexpr size_t kMost = 8;
  std::string out = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < std::min(ranks.size(), kMost); ++i)
    out += str(i == 0 ? "" : ", ", ranks[i]);
  return ranks.size() > kMost ? str(out, " and ", ranks.size() - kMost, " more") : out;
}

void HostGroup::barrier() {
  const char nothing = 0;
  std::vector<char> all(static_cast<size_t>(size()));
  all_gather(&nothing, 1, all.data());
}

std::string HostGroup::broadcast(const std::string& text) {
  uint64_t bytes = text.size();
  broadcast(&bytes, sizeof bytes);
  std::string out = text;
  out.resize(bytes);
  if (bytes > 0) broadcast(out.data(), bytes);
  return out;
}

void Communicator::reduce_scatter_by_copies(const void*, void*, void*, int64_t, DType) {
  RWKV_ASSERT(false, description(), " uses no copy engines");
}

void agree(HostGroup* group, const std::function<void()>& work) {
  if (group == nullptr) {
    work();
    return;
  }
  Verdict mine;
  std::string message;
  const auto failed = [&](int code, const char* what) {
    constexpr size_t kMost = 16384;  // two paths of any length fit
    mine.code = code;
    message = std::string(what).substr(0, kMost);
    mine.bytes = static_cast<uint32_t>(message.size());
  };
  try {
    work();
  } catch (const Error& e) {
    failed(e.exit_code(), e.what());
  } catch (const std::bad_alloc&) {
    failed(4, "out of memory");
  } catch (const std::exception& e) {
    failed(1, e.what());
  }
  std::vector<Verdict> all(static_cast<size_t>(group->size()));
  group->all_gather(&mine, sizeof mine, all.data());
  const auto first = std::ranges::find_if(all, [](const Verdict& v) { return v.code >= 0; });
  if (first == all.end()) return;
  const std::vector<std::string> texts = gather_texts(*group, message, all);
  const std::string& text = texts[static_cast<size_t>(first - all.begin())];
  std::vector<int> alike;
  for (size_t r = 0; r < all.size(); ++r)
    if (all[r].code == first->code && texts[r] == text) alike.push_back(static_cast<int>(r));
  if (group->rank() != 0) throw ReportedError(text, first->code);
  throw AgreedError(alike.size() == all.size() ? text : str(ranks_text(alike), ": ", text),
                    first->code);
}

void abort_on_error(HostGroup* group, const std::function<void()>& work) {
  if (group == nullptr) {
    work();
    return;
  }
  try {
    work();
  } catch (const AgreedError&) {
    throw;
  } catch (const ReportedError&) {
    throw;
  } catch (const Error& e) {
    group->abort(e.what(), e.exit_code());
  } catch (const std::bad_alloc&) {
    group->abort("out of memory", 4);
  } catch (const std::exception& e) {
    group->abort(e.what(), 1);
  }
}

void require_same(HostGroup& group, std::string_view what, const std::string& value) {
  Sha256 sha;
  sha.update(value);
  const std::string hash = sha.hex();
  std::vector<char> all(hash.size() * static_cast<size_t>(group.size()));
  group.all_gather(hash.data(), hash.size(), all.data());
  std::vector<int> other;
  for (int r = 1; r < group.size(); ++r)
    if (std::memcmp(all.data() + static_cast<size_t>(r) * hash.size(), all.data(), hash.size()) !=
        0)
      other.push_back(r);
  if (other.empty()) return;
  const std::string text =
      str("starting on ", group.size(), " ranks: ", what, " of ", ranks_text(other),
          " differs from that of rank 0; give every rank the same program, flags and files");
  const int code = ConfigError("").exit_code();
  if (group.rank() != 0) throw ReportedError(text, code);
  throw AgreedError(text, code);
}

}  // namespace rwkv
