// The one way tests reach Catch2, so that a change of version touches one line.
#pragma once
#include <catch2/catch.hpp>
#include <iostream>
#include <string>

/// Ends a test that cannot run here, with the reason; CTest shows it as skipped, never as passed.
#define DAGMOE_SKIP(reason)                            \
  do {                                                 \
    std::cout << "SKIPPED: " << (reason) << std::endl; \
    return;                                            \
  } while (false)
