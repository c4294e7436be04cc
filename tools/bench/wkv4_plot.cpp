// Pictures of rwkv-bench wkv --arch rwkv4.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <sstream>
#include <string_view>
#include <utility>

#include "kernels/core/error.h"
#include "tools/bench/wkv4_report.h"

namespace rwkv::bench {
namespace {

template <class Key, class Of>
std::vector<Key> distinct(const std::vector<const Wkv4Row*>& rows, const Of& of) {
  std::vector<Key> found;
  for (const Wkv4Row* row : rows)
    if (std::ranges::find(found, of(*row)) == found.end()) found.push_back(of(*row));
  return found;
}

std::string line_name(const Wkv4Row& row) {
  return str(row.family, row.rates == Wkv4Rates::kSlow ? " (slow rates)" : "");
}

/// One picture: all rows of one width and type.
void plot_some(const std::string& path, const Wkv4Report& report,
               const std::vector<const Wkv4Row*>& rows) {
  const auto panels = distinct<int64_t>(rows, [](const Wkv4Row& r) { return r.batch; });
  // The same colours whatever the registry's order.
  auto names = distinct<std::string>(rows, line_name);
  std::ranges::stable_sort(names, {}, [](const std::string& name) {
    constexpr std::string_view kOrder[] = {"serial", "scan", "cumsum"};
    return std::ranges::find(kOrder, name) - std::begin(kOrder);
  });
  const bool gpu = report.device == Device::kCuda;
  std::ostringstream data, gp;
  // The terminal without smooth edges makes files of a quarter of the size.
  gp << "set terminal png truecolor enhanced size 900," << 50 + 300 * panels.size() << " font ',9'"
     << "\n"
     << plot_output(path) << "set logscale x 2\nset logscale y 10\n"
     << "set format x '2^{%L}'\nset format y '%g'\nset grid\nset key top left Left reverse samplen "
        "2\n"
     << "set xlabel 'sequence length (tokens)'\nset ylabel 'time (ms)'\n"
     << "set multiplot layout " << panels.size() << ",2 title \"WKV-4, d = " << rows[0]->channels
     << ", "
     << (gpu ? report.env.device : str(report.env.cpu, ", ", report.env.threads, " threads"))
     << "\\nmedian, bars from the fastest to the slowest run; grey: memory traffic alone\"\n";
  size_t block = 0;
  for (const int64_t batch : panels) {
    for (const bool both : {false, true}) {
      gp << "set title '" << (both ? "forward + backward" : "forward") << ", batch " << batch
         << "'\n";
      // What memory traffic alone would take is far below the axis where launches dominate.
      double least = INFINITY;
      for (const Wkv4Row* r : rows)
        if (r->batch == batch) least = std::min(least, 1e3 * (both ? r->both : r->forward).minimum);
      gp << "set yrange [" << 0.3 * least << ":*]\n";
      const char* word = "plot ";
      std::ostringstream bound;
      std::vector<int64_t> bound_lengths;
      for (size_t line = 0; line < names.size(); ++line) {
        std::ostringstream points;
        for (const Wkv4Row* r : rows) {
          if (r->batch != batch) continue;
          const Timing& time = both ? r->both : r->forward;
          const double bytes = both ? r->both_bytes() : r->forward_bytes();
          if (std::ranges::find(bound_lengths, r->tokens) == bound_lengths.end()) {
            bound_lengths.push_back(r->tokens);
            bound << r->tokens << ' ' << 1e3 * bytes / report.copy_bytes_per_s << '\n';
          }
          if (line_name(*r) != names[line]) continue;
          points << r->tokens << ' ' << 1e3 * time.median << ' ' << 1e3 * time.minimum << ' '
                 << 1e3 * time.maximum() << '\n';
        }
        if (points.str().empty()) continue;
        data << "$d" << block << " << EOD\n" << points.str() << "EOD\n";
        // The same colour in every panel: the first has the key.
        gp << word << "$d" << block++ << " using 1:2:3:4 with yerrorlines lw 2 ps 0.6 lt "
           << 1 + line << " title '" << names[line] << "' noenhanced";
        word = ", \\\n  ";
      }
      data << "$d" << block << " << EOD\n" << bound.str() << "EOD\n";
      gp << word << "$d" << block++
         << " using 1:2 with lines lw 2 dt 2 lc rgb '#888888' title 'byte bound'\nunset key\n";
    }
  }
  write_plot(path, data.str() + gp.str() + "unset multiplot\n");
}

}  // namespace

void plot_wkv4(const std::string& path, const Wkv4Report& report) {
  RWKV_CHECK(!report.rows.empty(), ConfigError, "--plot ", path, ": there are no rows to draw");
  std::vector<const Wkv4Row*> every;
  for (const Wkv4Row& row : report.rows) every.push_back(&row);
  using Picture = std::pair<int64_t, DType>;
  const auto of = [](const Wkv4Row& r) { return Picture(r.channels, r.dtype); };
  const auto pictures = distinct<Picture>(every, of);
  const bool widths =
      distinct<int64_t>(every, [](const Wkv4Row& r) { return r.channels; }).size() > 1;
  const bool types = distinct<DType>(every, [](const Wkv4Row& r) { return r.dtype; }).size() > 1;
  const std::filesystem::path file(path);
  for (const auto& [width, type] : pictures) {
    std::vector<const Wkv4Row*> rows;
    std::ranges::copy_if(every, std::back_inserter(rows), [&](const Wkv4Row* r) {
      return r->channels == width && r->dtype == type;
    });
    const std::string name =
        str(file.stem().string(), widths ? str("-d", width) : "",
            types ? str("-", dtype_name(type)) : "", file.extension().string());
    plot_some((file.parent_path() / name).string(), report, rows);
  }
}

}  // namespace rwkv::bench
