#pragma once
/// Small models as files.

#include <string>
#include <vector>

#include "data/io/hdf5_file.h"
#include "data/io/tensor_file.h"
#include "data/tokenizer/tokenizer.h"
#include "model/weights.h"
#include "tests/unit/inference_model.h"

namespace rwkv::test {

/// HDF5, with the name and hash of the tokenizer of bytes, or without one.
inline void write_hdf5_model(const std::string& path, const TestModel& m, bool tokenizer = true) {
  TokenizerBlob blob;
  if (tokenizer) blob = {.name = "bytes", .hash = ByteTokenizer().hash()};
  Hdf5File file = Hdf5File::create(path);
  write_model(file, m.model->config(), m.model->params(), *m.weights, blob);
  file.close();
}

/// A .pth with all tensors in one type.
inline void write_pth_model(const std::string& path, const TestModel& m, TensorType type) {
  std::vector<TensorPlan> plan;
  for (const ParamSpec& p : m.model->params().specs())
    plan.push_back({p.name, Shape(p.spec.dim.begin(), p.spec.dim.begin() + p.spec.rank), type});
  const auto out = create_pth(path, plan);
  for (const TensorPlan& t : plan) out->write(m.tensor(t.name));
  out->finish();
}

}  // namespace rwkv::test
