#include "tools/bench/wkv4_report.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <tuple>

#include "kernels/core/error.h"

namespace rwkv::bench {
namespace {

constexpr const char* kBenchmark = "wkv4";

auto shape_key(const Wkv4Row& r) {
  return std::tuple(r.dtype, r.channels, r.batch);
}

/// Rows of one type, width and batch, in their order; one such list after the other.
std::vector<std::vector<const Wkv4Row*>> groups(const Wkv4Report& report) {
  std::vector<std::vector<const Wkv4Row*>> all;
  for (const Wkv4Row& row : report.rows) {
    const auto same = [&](const auto& g) { return shape_key(*g[0]) == shape_key(row); };
    auto at = std::ranges::find_if(all, same);
    if (at == all.end()) at = all.emplace(all.end());
    at->push_back(&row);
  }
  return all;
}

/// Five digits are more than timings have.
double digits(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4e", x);
  return std::strtod(text, nullptr);
}

Timing timing(const nlohmann::json& item) {
  const double median = item.at(0).get<double>(), minimum = item.at(1).get<double>();
  return {median, minimum, (item.at(2).get<double>() - minimum) / median};
}

/// serial, scan, ... of "wkv4.<device>.<family>.<type>".
std::string part_of(const std::string& variant, int index) {
  size_t begin = 0;
  for (; index > 0; --index) begin = variant.find('.', begin) + 1;
  return variant.substr(begin, variant.find('.', begin) - begin);
}

std::string share(double x) {
  char text[24];
  std::snprintf(text, sizeof text, "%.1f%%", 100 * x);
  return x < 0 ? "" : text;
}

}  // namespace

Wkv4Row wkv4_row(const WkvKernel& kernel, const WkvShape& s, Wkv4Rates rates,
                 const std::vector<double>& forward, const std::vector<double>& backward) {
  std::vector<double> both(forward.size());
  std::ranges::transform(forward, backward, both.begin(), std::plus<>());
  Wkv4Row row;
  row.variant = kernel.name;
  row.family = kernel.family;
  row.dtype = kernel.io;
  row.rates = rates;
  row.batch = s.batch;
  row.tokens = s.tokens;
  row.channels = s.heads * s.head_size;
  row.forward = summarize(forward);
  row.backward = summarize(backward);
  row.both = summarize(std::move(both));
  row.repeats = static_cast<int>(forward.size());
  return row;
}

void print_wkv4_head(const Wkv4Report& report, int repeats) {
  const bool gpu = report.device == Device::kCuda;
  std::printf(
      "%s\ncopy bandwidth %.1f GB/s (read + write); medians of up to %d, variants interleaved, %s\n"
      "GB/s and %% bound: least traffic, 3 vectors of B T C forward, 6 backward; replaced: share "
      "of "
      "the\ntokens that cumsum leaves to the recurrence; *: what auto takes\n",
      to_string(report.env).c_str(), 1e-9 * report.copy_bytes_per_s, repeats,
      gpu ? "GPU events, back to back, caches not flushed" : "caches flushed");
}

void print_wkv4_shape(const Wkv4Report& report, size_t first) {
  if (first == report.rows.size()) return;
  const Wkv4Row& any = report.rows[first];
  std::printf("\nB %lld, T %lld, d %lld\n  %-33s %11s %9s %11s %9s %8s %7s %8s %9s\n",
              static_cast<long long>(any.batch), static_cast<long long>(any.tokens),
              static_cast<long long>(any.channels), "variant", "forward ms", "spread", "fwd+bwd ms",
              "spread", "GB/s", "% bound", "replaced", "saved MiB");
  for (size_t i = first; i < report.rows.size(); ++i) {
    const Wkv4Row& row = report.rows[i];
    const double rate = row.both_bytes() / row.both.median;
    const std::string name =
        str(row.chosen ? "*" : " ", row.variant, row.rates == Wkv4Rates::kSlow ? " (slow)" : "");
    std::printf("  %-33s %11.5f %8.1f%% %11.5f %8.1f%% %8.2f %6.1f%% %8s %9.3f\n", name.c_str(),
                1e3 * row.forward.median, 100 * row.forward.spread, 1e3 * row.both.median,
                100 * row.both.spread, 1e-9 * rate, 100 * rate / report.copy_bytes_per_s,
                share(row.replaced).c_str(), row.saved_bytes / (1 << 20));
  }
}

void print_wkv4_errors(const Wkv4Report& report) {
  std::printf("\nrelative errors against double, 2 x 200 tokens of 40 channels\n%-27s", "");
  for (const char* name : kWkv4ErrorNames) std::printf(" %8s", name);
  std::printf("\n");
  for (const Wkv4VariantErrors& e : report.errors) {
    std::printf("%-27s", e.variant.c_str());
    for (const double error : e.errors) std::printf(" %8.1e", error);
    std::printf("\n");
  }
}

void print_wkv4_summary(const Wkv4Report& report) {
  std::printf("\nforward + backward:\n");
  for (const auto& group : groups(report)) {
    const Wkv4Row& any = *group[0];
    int64_t wins_from = 0, auto_at = 0, best_at = 0;
    double best_ratio = 0, auto_excess = -1;
    std::vector<int64_t> lengths;
    for (const Wkv4Row* row : group)
      if (std::ranges::find(lengths, row->tokens) == lengths.end()) lengths.push_back(row->tokens);
    for (const int64_t t : lengths) {
      double serial = 0, scan = 0, chosen = 0;
      for (const Wkv4Row* row : group) {
        if (row->tokens != t) continue;
        if (row->family == "serial") serial = row->both.median;
        if (row->family == "scan") scan = row->both.median;
        if (row->chosen) chosen = row->both.median;
      }
      if (serial <= 0 || scan <= 0) continue;
      if (scan >= serial)
        wins_from = 0;
      else if (wins_from == 0)
        wins_from = t;
      if (serial / scan > best_ratio) {
        best_ratio = serial / scan;
        best_at = t;
      }
      const double excess = chosen > 0 ? chosen / std::min(serial, scan) - 1 : -1;
      if (excess > auto_excess) {
        auto_excess = excess;
        auto_at = t;
      }
    }
    if (best_ratio == 0) continue;
    const std::string wins =
        wins_from > 0 ? str("from T ", wins_from, " on scan is faster") : "scan does not win";
    const std::string choice = auto_excess < -0.5
                                   ? ""
                                   : str("; auto's time over the better of both, at worst: ",
                                         share(std::max(auto_excess, 0.0)), " (T ", auto_at, ")");
    std::printf("  %s, B %lld, d %lld: %s; serial / scan at most %.2f (T %lld)%s\n",
                std::string(dtype_name(any.dtype)).c_str(), static_cast<long long>(any.batch),
                static_cast<long long>(any.channels), wins.c_str(), best_ratio,
                static_cast<long long>(best_at), choice.c_str());
  }
}

void write_wkv4_json(const std::string& path, const Wkv4Report& report) {
  const bool gpu = report.device == Device::kCuda;
  nlohmann::ordered_json doc{{"benchmark", kBenchmark},
                             {"date", today()},
                             {"commit", report.env.commit},
                             {"kernel_hash", report.env.kernel_hash}};
  if (gpu) {
    doc["device"] = report.env.device;
    doc["timing"] = "GPU events, back to back, caches not flushed, variants interleaved";
  } else {
    doc["cpu"] = report.env.cpu;
    doc["threads"] = report.env.threads;
    doc["timing"] = "caches flushed, variants interleaved";
  }
  doc["backend"] = device_name(report.device);
  doc["times"] = "[median, minimum, maximum], both: forward + backward";
  doc["copy_bytes_per_second"] = report.copy_bytes_per_s;
  doc["limit_s"] = report.limit_s;
  doc["left_out"] = report.left_out;
  doc["failures"] = report.failures;
  doc["relative_errors"] = nlohmann::ordered_json::array();
  for (const Wkv4VariantErrors& e : report.errors) {
    nlohmann::ordered_json item{{"variant", e.variant}};
    for (size_t i = 0; i < kW4Errors; ++i) item[kWkv4ErrorNames[i]] = e.errors[i];
    doc["relative_errors"].push_back(item);
  }
  doc["rows"] = nlohmann::ordered_json::array();
  for (const Wkv4Row& row : report.rows) {
    nlohmann::ordered_json item{{"variant", row.variant},
                                {"rates", wkv4_rates_name(row.rates)},
                                {"batch", row.batch},
                                {"tokens", row.tokens},
                                {"channels", row.channels}};
    if (row.chosen) item["auto"] = true;
    if (row.replaced >= 0) item["replaced_share"] = digits(row.replaced);
    const auto put = [&](const char* phase, const Timing& t) {
      item[phase] = {digits(t.median), digits(t.minimum), digits(t.maximum())};
    };
    put("forward_s", row.forward);
    put("backward_s", row.backward);
    put("both_s", row.both);
    item["repeats"] = row.repeats;
    item["share_of_bound"] = digits(row.both_bytes() / row.both.median / report.copy_bytes_per_s);
    item["saved_bytes"] = row.saved_bytes;
    doc["rows"].push_back(std::move(item));
  }
  write_file(path, record_text(doc.dump()));
}

bool is_wkv4_json(const std::string& text) {
  const auto doc = nlohmann::json::parse(text, nullptr, false);
  return doc.is_object() && doc.value("benchmark", "") == kBenchmark;
}

Wkv4Report parse_wkv4_json(const std::string& text, const std::string& path) {
  try {
    const auto doc = nlohmann::json::parse(text);
    Wkv4Report report;
    report.device = doc.at("backend") == "cuda" ? Device::kCuda : Device::kCpu;
    report.copy_bytes_per_s = doc.at("copy_bytes_per_second").get<double>();
    report.env.commit = doc.value("commit", "unknown");
    report.env.device = doc.value("device", "");
    report.env.cpu = doc.value("cpu", "");
    report.env.threads = doc.value("threads", 1);
    for (const auto& item : doc.at("rows")) {
      Wkv4Row row;
      row.variant = item.at("variant").get<std::string>();
      row.family = part_of(row.variant, 2);
      row.dtype = part_of(row.variant, 3) == "bf16" ? DType::kBF16 : DType::kF32;
      row.rates = item.at("rates") == "slow" ? Wkv4Rates::kSlow : Wkv4Rates::kModel;
      row.batch = item.at("batch").get<int64_t>();
      row.tokens = item.at("tokens").get<int64_t>();
      row.channels = item.at("channels").get<int64_t>();
      row.forward = timing(item.at("forward_s"));
      row.backward = timing(item.at("backward_s"));
      row.both = timing(item.at("both_s"));
      row.chosen = item.value("auto", false);
      report.rows.push_back(std::move(row));
    }
    return report;
  } catch (const nlohmann::json::exception&) {
    throw IoError(str("drawing ", path, ": it is no record that rwkv-bench wkv --json wrote, or ",
                      "damaged"));
  }
}

}  // namespace rwkv::bench
