// What decoding does most, for a few rows of fp32 activations on a CPU: the functions that ``products.py`` calls.
//
// In:  pointers and sizes, which the caller has checked.
// Out: results in memory that the caller owns.
// Left out: torch; the functions know nothing of tensors.

#include "step.h"

extern "C" {

// 0, or 1 where this processor has no kernel for the weights.
int danlu_linear(const float* x, long rows, long depth, const Product* products, long count, int threads) {
  return multiply(x, rows, depth, products, count, threads) ? 0 : 1;
}

void danlu_step(const Shape* shape, const Layer* layers, const Norm* last, const Product* head, const Step* step) {
  Decoder decoder(*shape, *step);
  for (long i = 0; i < shape->layers; ++i) decoder.block(layers[i]);
  decoder.logits(*last, *head);
}

}  // extern "C"
