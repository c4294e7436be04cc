#include "tools/wkv_compare_report.h"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tools/bench/report.h"

namespace rwkv {

Report wkv_compare_report(const WkvComparison& r) {
  const auto format = [](const char* how, auto... x) {
    char text[160];
    std::snprintf(text, sizeof text, how, x...);
    return std::string(text);
  };
  std::string text = str(
      "mean loss, nats per token, ", r.tokens, " predictions; difference from ", r.variants[0],
      " with the standard error of its mean over windows (bad: so many windows are not finite, the "
      "difference is that of the others)\n context  windows");
  for (const std::string& name : r.variants) text += format("  %30s", name.c_str());
  nlohmann::ordered_json json = {{"tokens", r.tokens}, {"variants", r.variants}};
  json["rows"] = nlohmann::ordered_json::array();
  for (const WkvComparison::Row& row : r.rows) {
    text += format("\n%8lld %8lld", static_cast<long long>(row.context),
                   static_cast<long long>(row.windows));
    for (size_t v = 0; v < r.variants.size(); ++v) {
      if (v == 0)
        text += format("  %30.5f", row.loss[0]);
      else if (row.broken[v] > 0)
        text += format("  %4lld bad %+.1e +- %.1e", static_cast<long long>(row.broken[v]),
                       row.difference[v], row.error[v]);
      else
        text += format("  %9.5f %+.1e +- %.1e", row.loss[v], row.difference[v], row.error[v]);
    }
    json["rows"].push_back({{"context", row.context},
                            {"windows", row.windows},
                            {"loss", row.loss},
                            {"difference", row.difference},
                            {"standard_error", row.error},
                            {"windows_not_finite", row.broken}});
  }
  json["positions_per_bin"] = r.bin;
  json["difference_by_position"] = r.by_position;
  return {text, json.dump()};
}

void plot_wkv_comparison(const std::string& path, const WkvComparison& r) {
  std::ostringstream gp;
  gp << "$d << EOD\n";
  for (size_t bin = 0; bin < r.by_position[0].size(); ++bin) {
    gp << (static_cast<double>(bin) + 0.5) * static_cast<double>(r.bin);
    for (const auto& difference : r.by_position) gp << ' ' << difference[bin];
    gp << '\n';
  }
  gp << "EOD\nset terminal pngcairo size 900,420 font ',10'\n"
     << bench::plot_output(path)
     << "set grid\nset key top left noenhanced\nset xlabel 'position in the context'\n"
     << "set ylabel 'difference of the loss (nats per token)'\nset format y '%.0e'\n"
     << "set title \"" << r.tokens << " tokens, difference from " << r.variants[0]
     << "\" noenhanced\nset xzeroaxis lw 2\nplot ";
  for (size_t v = 1; v < r.variants.size(); ++v)
    gp << (v == 1 ? "" : ", \\\n  ") << "$d using 1:" << v + 2 << " with lines lw 2 title '"
       << r.variants[v] << "'";
  if (r.variants.size() == 1) gp << "$d using 1:2 with lines title '" << r.variants[0] << "'";
  bench::write_plot(path, gp.str() + "\n");
}

}  // namespace rwkv
