#pragma once
/// Initial values of spec rwkv7 1.2 and 1.3, rwkv4 1. Every value is a pure function of the seed,
/// the tensor's name and the element's index: whoever computes a tensor gets the same bits.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/params.h"

namespace rwkv {

/// What gives one tensor its initial values.
struct InitTensor {
  ParamId id;
  double cost;       ///< about as many operations; for sharing the work
  size_t workspace;  ///< bytes that filling it takes beside its values
  std::function<void(std::span<float>)> fill;
};

/// Fills the tensors of `values`, several at a time: single ones that are much of the work by all
/// threads, the others each by one thread, each with its workspace meanwhile.
void fill_tensors(std::span<const InitTensor> tensors, const ParamStore& values);

/// Bytes of these tensors of a model and of the workspaces that fill_tensors has at a time at most,
/// with the threads of now.
size_t fill_bytes(std::span<const InitTensor> tensors, const ParamRegistry& params);

/// The part of the work that one of several ranks does: nearly the same amount for each.
std::vector<InitTensor> init_share(std::span<const InitTensor> tensors, int rank, int ranks);

/// Uniform in [low, high).
void init_uniform(std::span<float> out, double low, double high, uint64_t seed,
                  std::string_view name);

/// gain times an orthonormal matrix (rows, cols): the Q of a QR factorisation with positive
/// diagonal R of a standard normal matrix, transposed first when rows < cols. Columns are
/// orthonormal if rows >= cols, rows otherwise. Computed in double: off by less than 1e-12 from
/// orthonormal before rounding.
void init_orthogonal(std::span<float> out, int64_t rows, int64_t cols, double gain, uint64_t seed,
                     std::string_view name);

/// Collects what the tensors of a model get, by name. Throws InternalError for a name that the
/// model does not have.
class Initializer {
 public:
  Initializer(const ParamRegistry& params, uint64_t seed) : params_(params), seed_(seed) {}

  /// f(index of the element).
  void fill(const std::string& name, const std::function<double(double)>& f);
  void constant(const std::string& name, double value);
  void layer_norm(const std::string& name);  ///< weight 1, bias 0
  void uniform(const std::string& name, double low, double high);
  void orthogonal(const std::string& name, double gain);
  /// The gain rule of the reference: scale, times sqrt(rows / cols) for tall matrices.
  void orthogonal_by_shape(const std::string& name, double scale);

  std::vector<InitTensor> take() { return std::move(tensors_); }

 private:
  /// `cost` and `workspace` (bytes) are per element.
  void add(const std::string& name, double cost, std::function<void(std::span<float>)> fill,
           size_t workspace = 0);
  ParamId id(const std::string& name) const;

  const ParamRegistry& params_;
  uint64_t seed_;
  std::vector<InitTensor> tensors_;
};

}  // namespace rwkv
