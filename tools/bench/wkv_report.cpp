#include "tools/bench/wkv_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/core/error.h"
#include "kernels/wkv/registry.h"

namespace rwkv::bench {
namespace {

/// Elements per token and head and size of head that have to move, each once.
constexpr double kForwardVectors = 7, kBackwardVectors = 13;

std::string percent(double error) {
  char text[32];
  if (error < 0) return "-";
  std::snprintf(text, sizeof text, error < 1e-4 ? "%.1e" : "%.3f%%",
                error < 1e-4 ? error : 100 * error);
  return text;
}

/// Device and dtype as in records.
Device parse_device(const std::string& name) {
  return name == "cuda" ? Device::kCuda : Device::kCpu;
}
DType parse_dtype(const std::string& name) {
  return name == "bf16" ? DType::kBF16 : DType::kF32;
}

}  // namespace

std::string wkv_shape_name(const WkvShape& s) {
  return str("B", s.batch, " T", s.tokens, " H", s.heads, " N", s.head_size);
}

std::vector<WkvRow> wkv_rows(const WkvKernel& kernel, const WkvShape& s, double saved_bytes,
                             const std::vector<double>& forward,
                             const std::vector<double>& backward) {
  const auto tokens = static_cast<double>(s.batch * s.tokens * s.heads);
  const auto n = static_cast<double>(s.head_size);
  const double vector_bytes = tokens * n * static_cast<double>(dtype_bytes(kernel.io));
  const auto row = [&](const char* phase, const std::vector<double>& times, double flops,
                       double bytes) {
    return WkvRow{.variant = std::string(kernel.name),
                  .phase = phase,
                  .shape = s,
                  .time = summarize(times),
                  .repeats = static_cast<int>(times.size()),
                  .flops = flops,
                  .bound_bytes = bytes,
                  .saved_bytes = saved_bytes};
  };
  const double f_flops = wkv7_forward_flops(s), b_flops = wkv7_backward_flops(s);
  // A decoding step also moves the f32 state in and out.
  if (s.tokens == 1)
    return {row("step", forward, f_flops, kForwardVectors * vector_bytes + tokens * 8 * n * n)};
  std::vector<double> both(forward.size());
  std::transform(forward.begin(), forward.end(), backward.begin(), both.begin(), std::plus<>());
  return {
      row("forward", forward, f_flops, kForwardVectors * vector_bytes),
      row("backward", backward, b_flops, kBackwardVectors * vector_bytes),
      row("both", both, f_flops + b_flops, (kForwardVectors + kBackwardVectors) * vector_bytes)};
}

void print_wkv_head(const WkvReport& report, int repeats) {
  std::printf("%s\n", to_string(report.env).c_str());
  const bool gpu = report.device == Device::kCuda;
  std::printf(
      "copy bandwidth %.1f GB/s (read + write)%s; medians of up to %d, variants interleaved, %s\n"
      "flops count the plain recurrence: 9 N^2 forward, 24 N^2 backward per token and head;\n"
      "GB/s and %% bound: least %s traffic, %.0f N bytes forward, %.0f N backward\n",
      1e-9 * report.copy_bytes_per_s,
      gpu ? str(", product of 8192^3 ", std::lround(1e-12 * report.gemm_flops_per_s), " TFLOP/s")
                .c_str()
          : "",
      repeats, gpu ? "GPU events, back to back, caches not flushed" : "caches flushed",
      std::string(dtype_name(report.dtype)).c_str(),
      kForwardVectors * static_cast<double>(dtype_bytes(report.dtype)),
      kBackwardVectors * static_cast<double>(dtype_bytes(report.dtype)));
}

void print_wkv_rows(const WkvReport& report, size_t first_row, size_t first_error) {
  const bool gpu = report.device == Device::kCuda;
  std::printf("%-24s %-23s %-8s %9s %9s %7s %9s %8s %7s %9s\n", "shape", "variant", "phase",
              "median ms", "min ms", "spread", gpu ? "TFLOP/s" : "GFLOP/s", "GB/s", "% bound",
              "saved MiB");
  for (size_t i = first_row; i < report.rows.size(); ++i) {
    const WkvRow& row = report.rows[i];
    const double t = row.time.median;
    std::printf("%-24s %-23s %-8s %9.4f %9.4f %6.1f%% %9.2f %8.2f %6.1f%% %9.2f\n",
                wkv_shape_name(row.shape).c_str(), row.variant.c_str(), row.phase.c_str(), 1e3 * t,
                1e3 * row.time.minimum, 100 * row.time.spread, (gpu ? 1e-12 : 1e-9) * row.flops / t,
                1e-9 * row.bound_bytes / t, 100 * row.bound_bytes / t / report.copy_bytes_per_s,
                row.saved_bytes / (1 << 20));
  }
  if (first_error == report.errors.size()) return;
  std::printf("relative errors     %-23s", "");
  for (const char* name : kWkvResultNames) std::printf(" %9s", name);
  std::printf(" %9s\n", gpu ? "y, T 4096" : "");
  for (size_t i = first_error; i < report.errors.size(); ++i) {
    const WkvVariantErrors& e = report.errors[i];
    std::printf("%-19s %-23s", "", e.variant.c_str());
    for (const double error : e.errors.result) std::printf(" %9s", percent(error).c_str());
    std::printf(" %9s\n", gpu ? percent(e.errors.y_long).c_str() : "");
  }
}

void write_wkv_json(const std::string& path, const WkvReport& report) {
  const bool gpu = report.device == Device::kCuda;
  nlohmann::ordered_json doc{{"benchmark", "wkv"},
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
  doc["dtype"] = dtype_name(report.dtype);
  doc["copy_bytes_per_second"] = report.copy_bytes_per_s;
  if (gpu) doc["gemm_flop_per_second"] = report.gemm_flops_per_s;
  doc["auto"] = report.choices;
  doc["failures"] = report.failures;
  doc["relative_errors"] = nlohmann::ordered_json::array();
  for (const WkvVariantErrors& e : report.errors) {
    nlohmann::ordered_json item{{"variant", e.variant}};
    item["head_size"] = e.shape.head_size;
    if (!gpu) item["timed_shape"] = wkv_shape_name(e.shape);
    for (size_t i = 0; i < kWkvResults; ++i)
      if (!(e.errors.result[i] < 0)) item[kWkvResultNames[i]] = e.errors.result[i];
    if (!(e.errors.y_long < 0)) item["y_at_4096"] = e.errors.y_long;
    doc["relative_errors"].push_back(item);
  }
  doc["rows"] = nlohmann::ordered_json::array();
  for (const WkvRow& row : report.rows) {
    const double t = row.time.median;
    doc["rows"].push_back({{"variant", row.variant},
                           {"batch", row.shape.batch},
                           {"tokens", row.shape.tokens},
                           {"heads", row.shape.heads},
                           {"head_size", row.shape.head_size},
                           {"phase", row.phase},
                           {"median_s", t},
                           {"min_s", row.time.minimum},
                           {"spread", row.time.spread},
                           {"repeats", row.repeats},
                           {"flop_per_s", row.flops / t},
                           {"bound_bytes_per_s", row.bound_bytes / t},
                           {"share_of_bound", row.bound_bytes / t / report.copy_bytes_per_s},
                           {"saved_bytes", row.saved_bytes}});
  }
  write_file(path, record_text(doc.dump()));
}

WkvReport parse_wkv_json(const std::string& text, const std::string& path) {
  try {
    const auto doc = nlohmann::json::parse(text);
    RWKV_CHECK(doc.at("benchmark") == "wkv", IoError, "drawing ", path,
               ": found a record of benchmark '", doc.at("benchmark").get<std::string>(),
               "', expected wkv");
    WkvReport report;
    report.device = parse_device(doc.value("backend", "cpu"));
    report.dtype = parse_dtype(doc.value("dtype", "f32"));
    report.env.commit = doc.value("commit", "unknown");
    report.env.device = doc.value("device", "");
    report.env.cpu = doc.value("cpu", "");
    report.env.threads = doc.value("threads", 1);
    for (const auto& item : doc.at("rows")) {
      WkvRow row;
      row.variant = item.at("variant").get<std::string>();
      row.phase = item.at("phase").get<std::string>();
      row.shape.batch = item.at("batch").get<int64_t>();
      row.shape.tokens = item.at("tokens").get<int64_t>();
      row.shape.heads = item.at("heads").get<int64_t>();
      row.shape.head_size = item.at("head_size").get<int64_t>();
      row.time = {item.at("median_s").get<double>(), item.at("min_s").get<double>(),
                  item.at("spread").get<double>()};
      report.rows.push_back(std::move(row));
    }
    return report;
  } catch (const nlohmann::json::exception&) {
    throw IoError(str("drawing ", path, ": it is no record that rwkv-bench wkv --json wrote, or ",
                      "damaged"));
  }
}

namespace {

std::vector<std::string> names_of(const std::vector<const WkvRow*>& rows) {
  std::vector<std::string> names;
  for (const WkvRow* row : rows)
    if (std::find(names.begin(), names.end(), row->variant) == names.end())
      names.push_back(row->variant);
  return names;
}

}  // namespace

void plot_wkv(const std::string& path, const WkvReport& report) {
  RWKV_CHECK(!report.rows.empty(), ConfigError, "--plot ", path, ": there are no rows to draw");
  std::vector<WkvShape> groups;  // of equal batch, heads, head size
  const auto same = [](const WkvShape& a, const WkvShape& b) {
    return a.batch == b.batch && a.heads == b.heads && a.head_size == b.head_size;
  };
  for (const WkvRow& row : report.rows)
    if (std::none_of(groups.begin(), groups.end(),
                     [&](const WkvShape& g) { return same(g, row.shape); }))
      groups.push_back(row.shape);
  const bool gpu = report.device == Device::kCuda;
  std::ostringstream gp;
  gp << "set terminal pngcairo size 900," << 40 + 330 * groups.size() << " font ',9'"
     << "\n"
     << plot_output(path) << "set logscale x 2\nset logscale y 10\n"
     << "set format x '%.0f'\nset xtics rotate by -45\nset grid\nset key top left\n"
     << "set xlabel 'sequence length (tokens)'\nset ylabel 'time (ms)'\n"
     << "set style data yerrorlines\nset multiplot layout " << groups.size() << ",2 title \"WKV-7, "
     << dtype_name(report.dtype) << ", "
     << (gpu ? report.env.device : str(report.env.cpu, ", ", report.env.threads, " threads"))
     << ": median, bars from the fastest to the slowest run\"\n";
  std::vector<const WkvRow*> every;
  for (const WkvRow& row : report.rows) every.push_back(&row);
  const std::vector<std::string> all_names = names_of(every);
  size_t block = 0;
  std::ostringstream data, plots;
  for (const WkvShape& group : groups) {
    for (const bool both : {false, true}) {
      std::vector<const WkvRow*> rows;
      for (const WkvRow& row : report.rows)
        if (same(row.shape, group) &&
            (both ? row.phase == "both" : row.phase != "both" && row.phase != "backward"))
          rows.push_back(&row);
      plots << "set title '" << (both ? "forward + backward" : "forward") << ", B " << group.batch
            << ", H " << group.heads << ", N " << group.head_size << "'\n";
      if (rows.empty()) {  // single tokens only
        plots << "set multiplot next\n";
        continue;
      }
      const char* word = "plot ";
      for (const std::string& variant : names_of(rows)) {
        data << "$d" << block << " << EOD\n";
        for (const WkvRow* row : rows)
          if (row->variant == variant)
            data << row->shape.tokens << ' ' << 1e3 * row->time.median << ' '
                 << 1e3 * row->time.minimum << ' ' << 1e3 * row->time.maximum() << '\n';
        data << "EOD\n";
        // The same colour in every picture: the first has the key.
        const auto line =
            std::find(all_names.begin(), all_names.end(), variant) - all_names.begin();
        plots << word << "$d" << block << " using 1:2:3:4 lw 2 lt " << 1 + line << " title '"
              << variant << "' noenhanced";
        word = ", \\\n  ";
        ++block;
      }
      plots << "\nunset key\n";  // one is enough
    }
  }
  write_plot(path, data.str() + gp.str() + plots.str() + "unset multiplot\n");
}

}  // namespace rwkv::bench
