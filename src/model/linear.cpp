#include "model/linear.h"

#include <ATen/ATen.h>

namespace dagmoe {

at::Tensor linear(const at::Tensor& x_XI, const Linear& layer, const AdapterPass& pass) {
  const auto dtype = x_XI.scalar_type();
  const auto cast = [dtype](const at::Tensor& tensor) {
    return tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
  };
  const at::Tensor y_XO = layer.bias.defined() ? at::linear(x_XI, cast(layer.weight), cast(layer.bias))
                                               : at::linear(x_XI, cast(layer.weight));
  const at::Tensor sum_XO =
      layer.adapters.empty() ? y_XO : add_adapters(y_XO, x_XI, layer.weight, layer.bias, layer.adapters, pass);
  return layer.mixtures.empty() ? sum_XO : add_mixtures(sum_XO, x_XI, layer.mixtures, pass);
}

}  // namespace dagmoe
