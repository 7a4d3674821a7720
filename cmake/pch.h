// Read once for every target that sees tensors; see DagmoeTargets.cmake.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <nlohmann/json.hpp>
