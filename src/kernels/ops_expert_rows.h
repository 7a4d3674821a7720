#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/ops_grouped.h"

// Where the rows of experts lie while ops_expert_ffn.cpp, which alone includes this, works on them: by expert, each
// piece of an expert's rows rounded up to a number of rows that products have seen before. P padded rows of all pieces,
// of which those that hold no slot are zero.

namespace dagmoe::ops {
namespace {

/// Padded rows [first, first + size) of one expert.
struct Piece {
  std::size_t expert;
  std::int64_t first, size;
};

struct PaddedRows {
  PaddedRows(const at::Tensor& row_of_slot, const std::vector<std::int64_t>& counts_E) {
    const std::int64_t num_slots = row_of_slot.numel();
    const at::Tensor rows = row_of_slot.contiguous();
    const std::int64_t* row_of = rows.const_data_ptr<std::int64_t>();
    std::vector<std::int64_t> slot_of(static_cast<std::size_t>(num_slots));
    for (std::int64_t slot = 0; slot < num_slots; ++slot) slot_of[static_cast<std::size_t>(row_of[slot])] = slot;
    row_of_slot_TK = at::empty(rows.sizes(), rows.options());
    auto* padded_of = row_of_slot_TK.mutable_data_ptr<std::int64_t>();
    whole_E.resize(counts_E.size());
    for (std::size_t e = 0; e < counts_E.size(); ++e) whole_E[e] = {e, 0, 0};
    for (const ExpertRows& rows_of_piece : expert_rows(counts_E, kExpertRowsPerPiece)) {
      const Piece piece = {rows_of_piece.expert, static_cast<std::int64_t>(slot_of_row.size()),
                           padded_rows(rows_of_piece.count)};
      Piece& whole = whole_E[piece.expert];
      if (whole.size == 0) whole.first = piece.first;
      whole.size += piece.size;
      most_rows = std::max(most_rows, piece.size);
      for (std::int64_t i = 0; i < rows_of_piece.count; ++i) {
        const std::int64_t slot = slot_of[static_cast<std::size_t>(rows_of_piece.first + i)];
        padded_of[slot] = piece.first + i;
        slot_of_row.push_back(slot);
      }
      slot_of_row.resize(static_cast<std::size_t>(piece.first + piece.size), -1);
      pieces.push_back(piece);
    }
  }
  std::int64_t count() const { return static_cast<std::int64_t>(slot_of_row.size()); }

  std::vector<Piece> pieces, whole_E;     ///< whole_E: all rows of each expert
  std::vector<std::int64_t> slot_of_row;  ///< -1: none
  at::Tensor row_of_slot_TK;
  std::int64_t most_rows = 0;  ///< of a piece
};

// to: the rows of `from` that the piece's slots name, `slots_per_row` slots a row of `from`; zeros where there is none.
void gather(const PaddedRows& rows, const Piece& piece, const at::Tensor& from, std::int64_t slots_per_row,
            const at::Tensor& to) {
  const auto bytes = static_cast<std::size_t>(from.size(1) * static_cast<std::int64_t>(from.element_size()));
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  for (std::int64_t i = 0; i < piece.size; ++i, target += bytes) {
    const std::int64_t slot = rows.slot_of_row[static_cast<std::size_t>(piece.first + i)];
    if (slot < 0) {
      std::memset(target, 0, bytes);
    } else {
      std::memcpy(target, source + static_cast<std::size_t>(slot / slots_per_row) * bytes, bytes);
    }
  }
}

// Row i of `from` to the row of `to` that its slot has.
void scatter(const PaddedRows& rows, const Piece& piece, const at::Tensor& from, const at::Tensor& to) {
  const auto bytes = static_cast<std::size_t>(from.size(1) * static_cast<std::int64_t>(from.element_size()));
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  for (std::int64_t i = 0; i < piece.size; ++i, source += bytes) {
    const std::int64_t slot = rows.slot_of_row[static_cast<std::size_t>(piece.first + i)];
    if (slot >= 0) std::memcpy(target + static_cast<std::size_t>(slot) * bytes, source, bytes);
  }
}

}  // namespace
}  // namespace dagmoe::ops
