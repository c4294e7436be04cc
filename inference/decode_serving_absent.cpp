#include "inference/serving.h"
#include "kernels/core/error.h"

namespace rwkv {

std::unique_ptr<Serving> make_decode_serving(const Model& /*model*/, const ParamStore& /*weights*/,
                                             const ServingOptions& /*options*/) {
  throw DeviceError("decoding kernels: this build has CPU kernels only");
}

}  // namespace rwkv
