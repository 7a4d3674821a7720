#include <ATen/ATen.h>

#include "kernels/dispatch.h"
#include "kernels/ops.h"
#include "kernels/ops_expert_rows.h"
#include "kernels/ops_products.h"
#include "kernels/ops_routing.h"
#include "kernels/ops_support.h"

// Experts on the CPU, piece by piece. P: padded rows of all pieces (ops_expert_rows.h).

namespace dagmoe {
namespace ops {
namespace {

at::Tensor part(const at::Tensor& x_PX, const Piece& piece) { return x_PX.narrow(0, piece.first, piece.size); }
at::Tensor first_rows(const at::Tensor& x_PX, const Piece& piece) { return x_PX.narrow(0, 0, piece.size); }

/// The matrices in one list: E of gate, of up, of down, then A and B of each change of gate_up, then those of down.
struct Matrices {
  at::TensorList all;
  std::int64_t num_experts = 0, num_gate_up = 0;
  std::vector<double> scales;  ///< of all changes, those of gate_up first

  std::size_t E() const { return static_cast<std::size_t>(num_experts); }
  std::size_t gate_at(std::size_t e) const { return e; }
  std::size_t up_at(std::size_t e) const { return E() + e; }
  std::size_t down_at(std::size_t e) const { return 2 * E() + e; }
  std::size_t a_at(std::size_t change) const { return 3 * E() + 2 * change; }
  std::size_t b_at(std::size_t change) const { return a_at(change) + 1; }
  std::size_t num_changes() const { return scales.size(); }
  bool is_gate_up(std::size_t change) const { return change < static_cast<std::size_t>(num_gate_up); }

  at::Tensor a(std::size_t change, const Piece& piece) const {
    return all[a_at(change)][static_cast<std::int64_t>(piece.expert)];
  }
  at::Tensor b(std::size_t change, const Piece& piece) const {
    return all[b_at(change)][static_cast<std::int64_t>(piece.expert)];
  }
  std::int64_t rank(std::size_t change) const { return all[a_at(change)].size(1); }
  std::int64_t D() const { return all[0].size(1); }
  std::int64_t F() const { return all[0].size(0); }
};

// The two halves of a matrix's rows: gate and up.
std::pair<at::Tensor, at::Tensor> halves(const at::Tensor& x_2FX) {
  const std::int64_t F = x_2FX.size(0) / 2;
  return {x_2FX.narrow(0, 0, F), x_2FX.narrow(0, F, F)};
}

template <class T>
void activate(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& inner) {
  kernels<T>().swiglu_forward({gate.numel(), input<T>(gate), input<T>(up), output<T>(inner)});
}

// y_(TK)D and, if they are to be kept, gate and up of all padded rows.
template <class T>
void forward_pieces(const at::Tensor& x_TD, std::int64_t K, const PaddedRows& rows, const Matrices& m,
                    const at::Tensor& kept_gate_PF, const at::Tensor& kept_up_PF, const at::Tensor& y_SD) {
  struct Memory {
    at::Tensor x, y, gate, up, inner;
  };
  const auto make_memory = [&] {
    const auto wide = [&] { return at::empty({rows.most_rows, m.F()}, x_TD.options()); };
    const auto narrow = [&] { return at::empty({rows.most_rows, m.D()}, x_TD.options()); };
    const bool keeps = kept_gate_PF.defined();
    return Memory{narrow(), narrow(), keeps ? at::Tensor() : wide(), keeps ? at::Tensor() : wide(), wide()};
  };
  for_each_task(rows.pieces.size(), make_memory, [&](Memory& memory, std::size_t i) {
    const Piece& piece = rows.pieces[i];
    const at::Tensor x = first_rows(memory.x, piece), y = first_rows(memory.y, piece),
                     inner = first_rows(memory.inner, piece);
    const at::Tensor gate = memory.gate.defined() ? first_rows(memory.gate, piece) : part(kept_gate_PF, piece),
                     up = memory.up.defined() ? first_rows(memory.up, piece) : part(kept_up_PF, piece);
    gather(rows, piece, x_TD, K, x);
    multiply_into(gate, x, m.all[m.gate_at(piece.expert)].t());
    multiply_into(up, x, m.all[m.up_at(piece.expert)].t());
    const auto low_rank = [&](std::size_t change, const at::Tensor& in) {
      return at::mm(in, m.a(change, piece).t()).mul_(m.scales[change]);
    };
    for (std::size_t change = 0; change < m.num_changes(); ++change) {
      if (!m.is_gate_up(change)) continue;
      const at::Tensor h = low_rank(change, x);
      const auto [b_gate, b_up] = halves(m.b(change, piece));
      add_product(gate, h, b_gate.t());
      add_product(up, h, b_up.t());
    }
    activate<T>(gate, up, inner);
    multiply_into(y, inner, m.all[m.down_at(piece.expert)].t());
    for (std::size_t change = 0; change < m.num_changes(); ++change) {
      if (!m.is_gate_up(change)) add_product(y, low_rank(change, inner), m.b(change, piece).t());
    }
    scatter(rows, piece, y, y_SD);
  });
}

/// The backward pass. Gradients of inputs come piece by piece; those of weights and factors are sums over all rows of
/// an expert, for which what they are made of is put together first.
template <class T>
class Backward {
 public:
  Backward(const at::Tensor& x_TD, const at::Tensor& gate_PF, const at::Tensor& up_PF, const at::Tensor& grad_SD,
           std::int64_t K, const PaddedRows& rows, const Matrices& m, bool wants_x, std::vector<bool> wants)
      : x_TD_(x_TD),
        gate_PF_(gate_PF),
        up_PF_(up_PF),
        grad_SD_(grad_SD),
        K_(K),
        rows_(rows),
        m_(m),
        wants_x_(wants_x),
        wants_(std::move(wants)) {
    for (std::size_t e = 0; e < m.E(); ++e) {
      in_trains_ = in_trains_ || wants_[m.gate_at(e)] || wants_[m.up_at(e)];
      out_trains_ = out_trains_ || wants_[m.down_at(e)];
    }
    for (std::size_t change = 0; change < m.num_changes(); ++change) {
      bool& trains = m.is_gate_up(change) ? in_trains_ : out_trains_;
      trains = trains || wants_[m.a_at(change)] || wants_[m.b_at(change)];
    }
    const auto rows_of = [&](bool is_needed, std::int64_t width) {
      return is_needed ? at::empty({rows.count(), width}, x_TD.options()) : at::Tensor();
    };
    x_PD_ = rows_of(in_trains_, m.D()), d_gate_PF_ = rows_of(in_trains_, m.F()), d_up_PF_ = rows_of(in_trains_, m.F());
    dy_PD_ = rows_of(out_trains_, m.D()), inner_PF_ = rows_of(out_trains_, m.F());
    dx_PD_ = rows_of(wants_x, m.D());
    for (std::size_t change = 0; change < m.num_changes(); ++change) {
      h_.push_back(rows_of(true, m.rank(change)));
      dh_.push_back(rows_of(true, m.rank(change)));
    }
  }

  // d x_TD (undefined if nobody wants it), then those of the list.
  variable_list run() {
    for_each_task(
        rows_.pieces.size(), [this] { return Memory(*this); },
        [this](Memory& memory, std::size_t i) { go_back(rows_.pieces[i], memory); });
    variable_list gradients(1 + m_.all.size());
    if (wants_x_) gradients[0] = sum_rows_of_token(dx_PD_, rows_.row_of_slot_TK);
    for (std::size_t i = 0; i < m_.all.size(); ++i) {
      const bool is_factor = i >= 3 * m_.E(), has_rows = !is_factor && rows_.whole_E[i % m_.E()].size > 0;
      if (wants_[i]) gradients[1 + i] = has_rows ? at::empty_like(m_.all[i]) : at::zeros_like(m_.all[i]);
    }
    for_each_task(rows_.whole_E.size(), [&](std::size_t e) {
      if (rows_.whole_E[e].size > 0) sum_over_rows(rows_.whole_E[e], gradients);
    });
    return gradients;
  }

 private:
  struct Memory {
    explicit Memory(const Backward& all)
        : dy(rows(all, all.dy_PD_, all.m_.D())),
          d_inner(rows(all, {}, all.m_.F())),
          d_gate(rows(all, all.d_gate_PF_, all.m_.F())),
          d_up(rows(all, all.d_up_PF_, all.m_.F())) {}
    // A thread's own, where the rows of all pieces are not kept.
    static at::Tensor rows(const Backward& all, const at::Tensor& kept, std::int64_t width) {
      return kept.defined() ? at::Tensor() : at::empty({all.rows_.most_rows, width}, all.x_TD_.options());
    }
    at::Tensor dy, d_inner, d_gate, d_up;
  };
  static at::Tensor place(const at::Tensor& own, const at::Tensor& kept, const Piece& piece) {
    return own.defined() ? first_rows(own, piece) : part(kept, piece);
  }

  void go_back(const Piece& piece, Memory& memory) {
    const at::Tensor dy = place(memory.dy, dy_PD_, piece);
    gather(rows_, piece, grad_SD_, 1, dy);
    const at::Tensor gate = part(gate_PF_, piece), up = part(up_PF_, piece);
    if (out_trains_) activate<T>(gate, up, part(inner_PF_, piece));
    const bool goes_on = wants_x_ || in_trains_;
    const at::Tensor d_inner = first_rows(memory.d_inner, piece);
    if (goes_on) multiply_into(d_inner, dy, m_.all[m_.down_at(piece.expert)]);
    for (std::size_t change = 0; change < m_.num_changes(); ++change) {
      if (m_.is_gate_up(change)) continue;
      const at::Tensor dh = part(dh_[change], piece);
      if (out_trains_) low_rank(change, part(inner_PF_, piece), piece);
      multiply_into(dh, dy, m_.b(change, piece));
      dh.mul_(m_.scales[change]);
      if (goes_on) add_product(d_inner, dh, m_.a(change, piece));
    }
    if (!goes_on) return;
    const at::Tensor d_gate = place(memory.d_gate, d_gate_PF_, piece), d_up = place(memory.d_up, d_up_PF_, piece);
    kernels<T>().swiglu_backward(
        {gate.numel(), input<T>(gate), input<T>(up), input<T>(d_inner), output<T>(d_gate), output<T>(d_up)});
    if (in_trains_) gather(rows_, piece, x_TD_, K_, part(x_PD_, piece));
    for (std::size_t change = 0; change < m_.num_changes(); ++change) {
      if (!m_.is_gate_up(change)) continue;
      const at::Tensor dh = part(dh_[change], piece);
      const auto [b_gate, b_up] = halves(m_.b(change, piece));
      if (in_trains_) low_rank(change, part(x_PD_, piece), piece);
      multiply_into(dh, d_gate, b_gate);
      add_product(dh, d_up, b_up);
      dh.mul_(m_.scales[change]);
    }
    if (wants_x_) add_input_gradient(piece, d_gate, d_up);
  }

  // scale A x, which the gradient of B reads.
  void low_rank(std::size_t change, const at::Tensor& in, const Piece& piece) {
    const at::Tensor h = part(h_[change], piece);
    multiply_into(h, in, m_.a(change, piece).t());
    h.mul_(m_.scales[change]);
  }

  void add_input_gradient(const Piece& piece, const at::Tensor& d_gate, const at::Tensor& d_up) {
    const at::Tensor dx = part(dx_PD_, piece);
    multiply_into(dx, d_gate, m_.all[m_.gate_at(piece.expert)]);
    add_product(dx, d_up, m_.all[m_.up_at(piece.expert)]);
    for (std::size_t change = 0; change < m_.num_changes(); ++change) {
      if (m_.is_gate_up(change)) add_product(dx, part(dh_[change], piece), m_.a(change, piece));
    }
  }

  void sum_over_rows(const Piece& whole, variable_list& gradients) const {
    const auto sum = [&](std::size_t i, const at::Tensor& left_PX, const at::Tensor& right_PX) {
      if (wants_[i]) multiply_into(gradients[1 + i], part(left_PX, whole).t(), part(right_PX, whole));
    };
    sum(m_.gate_at(whole.expert), d_gate_PF_, x_PD_);
    sum(m_.up_at(whole.expert), d_up_PF_, x_PD_);
    sum(m_.down_at(whole.expert), dy_PD_, inner_PF_);
    for (std::size_t change = 0; change < m_.num_changes(); ++change) {
      const auto e = static_cast<std::int64_t>(whole.expert);
      const at::Tensor h = part(h_[change], whole), dh = part(dh_[change], whole);
      const at::Tensor& in = m_.is_gate_up(change) ? x_PD_ : inner_PF_;
      if (wants_[m_.a_at(change)]) multiply_into(gradients[1 + m_.a_at(change)][e], dh.t(), part(in, whole));
      if (!wants_[m_.b_at(change)]) continue;
      const at::Tensor db = gradients[1 + m_.b_at(change)][e];
      if (!m_.is_gate_up(change)) {
        multiply_into(db, part(dy_PD_, whole).t(), h);
        continue;
      }
      const auto [db_gate, db_up] = halves(db);
      multiply_into(db_gate, part(d_gate_PF_, whole).t(), h);
      multiply_into(db_up, part(d_up_PF_, whole).t(), h);
    }
  }

  const at::Tensor &x_TD_, &gate_PF_, &up_PF_, &grad_SD_;
  std::int64_t K_;
  const PaddedRows& rows_;
  const Matrices& m_;
  bool wants_x_, in_trains_ = false, out_trains_ = false;  // gate, up and their changes; down and its changes
  std::vector<bool> wants_;                                // which gradients of the list
  at::Tensor x_PD_, dy_PD_, inner_PF_, d_gate_PF_, d_up_PF_, dx_PD_;
  variable_list h_, dh_;  // of each change: scale A x, and the gradient of A x
};

at::Tensor run_forward(const at::Tensor& x_TD, const PaddedRows& rows, const Matrices& m,
                       const at::Tensor& kept_gate_PF, const at::Tensor& kept_up_PF) {
  const std::int64_t T = rows.row_of_slot_TK.size(0), K = rows.row_of_slot_TK.size(1);
  const at::Tensor y_SD = at::empty({T * K, m.D()}, x_TD.options());
  with_cpu_element(x_TD.scalar_type(), [&](auto element) {
    forward_pieces<typename decltype(element)::type>(x_TD, K, rows, m, kept_gate_PF, kept_up_PF, y_SD);
  });
  return y_SD.view({T, K, m.D()});
}

struct ExpertFfnFunction : torch::autograd::Function<ExpertFfnFunction> {
  // saved: x, row_of_slot, gate, up, the list.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TD, const at::Tensor& row_of_slot_TK,
                            at::TensorList all, const std::vector<std::int64_t>& counts_E,
                            const std::vector<double>& scales, std::int64_t num_gate_up) {
    const Matrices m = {all, static_cast<std::int64_t>(counts_E.size()), num_gate_up, scales};
    const PaddedRows rows(row_of_slot_TK, counts_E);
    const at::Tensor gate_PF = at::empty({rows.count(), m.F()}, x_TD.options()), up_PF = at::empty_like(gate_PF);
    variable_list saved = {x_TD, row_of_slot_TK, gate_PF, up_PF};
    saved.insert(saved.end(), all.begin(), all.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["counts"] = counts_E;
    ctx->saved_data["scales"] = scales;
    ctx->saved_data["num_gate_up"] = num_gate_up;
    return run_forward(x_TD, rows, m, gate_PF, up_PF);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<std::int64_t> counts_E = ctx->saved_data["counts"].toIntVector();
    const Matrices m = {at::TensorList(saved).slice(4), static_cast<std::int64_t>(counts_E.size()),
                        ctx->saved_data["num_gate_up"].toInt(), ctx->saved_data["scales"].toDoubleVector()};
    const PaddedRows rows(saved[1], counts_E);
    const at::Tensor grad_SD = grad_outputs[0].contiguous().view({-1, m.D()});
    std::vector<bool> wants(m.all.size());
    for (std::size_t i = 0; i < wants.size(); ++i) wants[i] = ctx->needs_input_grad(2 + i);
    variable_list gradients;
    with_cpu_element(grad_SD.scalar_type(), [&](auto element) {
      using T = typename decltype(element)::type;
      gradients = Backward<T>(saved[0], saved[2], saved[3], grad_SD, saved[1].size(1), rows, m,
                              ctx->needs_input_grad(0), std::move(wants))
                      .run();
    });
    gradients.insert(gradients.begin() + 1, at::Tensor());  // of row_of_slot
    gradients.resize(gradients.size() + 3);                 // of counts, scales and their number
    return gradients;
  }
};

void check_matrices(const at::Tensor& x_TD, const RoutedRows& rows, const ExpertMatrices& experts) {
  const std::size_t E = rows.counts_E.size();
  require(x_TD.dim() == 2 && x_TD.size(0) == rows.row_of_slot_TK.size(0) && E > 0 && experts.gate_FD.size() == E &&
              experts.up_FD.size() == E && experts.down_DF.size() == E,
          "expert_ffn: found x ", shape_text(x_TD.sizes()), ", expected ", rows.row_of_slot_TK.size(0),
          " tokens and three matrices for each of ", E, " experts");
  const std::int64_t D = x_TD.size(1), F = experts.gate_FD[0].size(0);
  for (const auto& [weights, shape] : {std::pair(&experts.gate_FD, std::vector{F, D}),
                                       {&experts.up_FD, std::vector{F, D}},
                                       {&experts.down_DF, std::vector{D, F}}}) {
    for (const at::Tensor& weight : *weights) {
      require(weight.sizes() == at::IntArrayRef(shape) && weight.scalar_type() == x_TD.scalar_type(),
              "expert_ffn: found weight ", shape_text(weight.sizes()), " of ", at::toString(weight.scalar_type()),
              ", expected ", shape_text(shape), " of ", at::toString(x_TD.scalar_type()));
    }
  }
  for (const auto& [changes, I, O] : {std::tuple(&experts.gate_up, D, 2 * F), {&experts.down, F, D}}) {
    for (const ExpertFactors& change : *changes) {
      const std::int64_t R = change.a_ERI.dim() == 3 ? change.a_ERI.size(1) : 0;
      const std::vector<std::int64_t> a = {static_cast<std::int64_t>(E), R, I}, b = {a[0], O, R};
      require(change.a_ERI.sizes() == at::IntArrayRef(a) && change.b_EOR.sizes() == at::IntArrayRef(b) &&
                  change.a_ERI.scalar_type() == x_TD.scalar_type() && change.b_EOR.scalar_type() == x_TD.scalar_type(),
              "expert_ffn: found A ", shape_text(change.a_ERI.sizes()), " and B ", shape_text(change.b_EOR.sizes()),
              " beside ", E, " matrices of ", O, " rows and ", I, " columns");
    }
  }
}

}  // namespace
}  // namespace ops

at::Tensor expert_ffn(const at::Tensor& x_TD, const RoutedRows& rows, const ExpertMatrices& experts) {
  ops::check_matrices(x_TD, rows, experts);
  if (!x_TD.is_cpu() || x_TD.scalar_type() == at::kDouble) return expert_ffn_reference(x_TD, rows, experts);
  std::vector<at::Tensor> all;
  for (const auto* weights : {&experts.gate_FD, &experts.up_FD, &experts.down_DF})
    all.insert(all.end(), weights->begin(), weights->end());
  std::vector<double> scales;
  for (const auto* changes : {&experts.gate_up, &experts.down}) {
    for (const ExpertFactors& change : *changes) {
      all.push_back(change.a_ERI), all.push_back(change.b_EOR);
      scales.push_back(change.scale);
    }
  }
  const auto num_gate_up = static_cast<std::int64_t>(experts.gate_up.size());
  const at::Tensor x = x_TD.contiguous();
  if (!ops::needs_gradient({x}) && !ops::needs_gradient(all)) {
    const ops::Matrices m = {all, static_cast<std::int64_t>(rows.counts_E.size()), num_gate_up, scales};
    return ops::run_forward(x, ops::PaddedRows(rows.row_of_slot_TK, rows.counts_E), m, {}, {});
  }
  return ops::ExpertFfnFunction::apply(x, rows.row_of_slot_TK, at::TensorList(all), rows.counts_E, scales, num_gate_up);
}

}  // namespace dagmoe
