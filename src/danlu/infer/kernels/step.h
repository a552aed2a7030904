// One step of a dense decoder: some tokens, each of a row of a cache, through all blocks to logits.
//
// In:  embedded tokens, their rows and places, rotary angles, a cache of keys and values, weights by layer.
// Out: states and logits; keys and values written into the cache.
// Left out: mixtures, latent attention, soft-caps, norms after a block: ``model`` computes those, and is what this is
//     tested against.
#pragma once

#include "products.h"

namespace {

// RMSNorm where there is no bias, LayerNorm where there is one.
struct Norm {
  const float* weight;
  const float* bias;
};

struct Layer {
  Norm before_attention, before_network;
  const float *q_norm, *k_norm;          // (head_dim,) each, or null
  Product q, k, v, o, gate, up, down;    // gate.weight is null in a network without gate
  long window;                           // tokens that are seen; 0 for all
};

enum Activation : long { SILU, GELU_TANH };
enum Rotation : long { NONE, HALF, INTERLEAVED };

struct Shape {
  long layers, width, heads, kv_heads, head_dim, hidden;
  Activation activation;
  Rotation rotation;
  float eps, logit_scale;
};

struct Cache {
  float *keys, *values;
  long layer, row, head, slot;  // strides
};

struct Step {
  long tokens, width;               // of all rows, and of each
  float* x;                         // (tokens, width): embeddings, then states after the last norm
  const int64_t* positions;         // (tokens,)
  const float *cos, *sin;           // by position (head_dim / 2,) each, or null
  Cache cache;
  long threads;
};

void normalise(const float* x, long count, const Norm& norm, float eps, float* to) {
  float mean = 0, square = 0;
  if (norm.bias) {
    for (long k = 0; k < count; ++k) mean += x[k];
    mean /= count;
  }
  for (long k = 0; k < count; ++k) square += (x[k] - mean) * (x[k] - mean);
  float by = 1 / std::sqrt(square / count + eps);
  for (long k = 0; k < count; ++k) to[k] = (x[k] - mean) * by * norm.weight[k] + (norm.bias ? norm.bias[k] : 0);
}

// Turn every pair by its angle; pairs of any layout come out half-split.
void rotate(float* x, long dim, const float* cos, const float* sin, Rotation rotation) {
  float turned[512];
  long half = dim / 2, apart = rotation == HALF ? half : 1, next = rotation == HALF ? 1 : 2;
  for (long i = 0; i < half; ++i) {
    float a = x[i * next], b = x[i * next + apart];
    turned[i] = a * cos[i] - b * sin[i];
    turned[i + half] = b * cos[i] + a * sin[i];
  }
  std::copy_n(turned, dim, x);
}

// Queries of one group of heads over the keys and values of the head that serves them.
void attend(const float* q, long groups, long dim, const float* keys, const float* values, long slot, long count,
            std::vector<float>& scores, float* out) {
  scores.resize(count);
  float scale = 1 / std::sqrt((float)dim);
  for (long g = 0; g < groups; ++g, q += dim, out += dim) {
    float most = -std::numeric_limits<float>::infinity(), sum = 0;
    for (long s = 0; s < count; ++s) most = std::max(most, scores[s] = dot(q, keys + s * slot, dim) * scale);
    map(scores.data(), count, [most](Floats v) { return exponential(v - most); });
    for (long s = 0; s < count; ++s) sum += scores[s];
    mix(scores.data(), values, slot, count, out, dim);
    for (long k = 0; k < dim; ++k) out[k] /= sum;
  }
}

class Decoder {
 public:
  Decoder(const Shape& shape, const Step& step)
      : shape(shape), step(step), cache(step.cache), threads((int)step.threads), normed(step.tokens * shape.width),
        q(step.tokens * shape.heads * shape.head_dim), k(step.tokens * shape.kv_heads * shape.head_dim), v(k.size()),
        mixed(q.size()), gate(step.tokens * shape.hidden), up(gate.size()) {}

  void block(const Layer& layer) {
    norm(layer.before_attention);
    product(normed, {layer.q, layer.k, layer.v}, {q.data(), k.data(), v.data()});
#pragma omp parallel for num_threads(threads) if (step.tokens > 1)
    for (long t = 0; t < step.tokens; ++t) remember(layer, t);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) collapse(2)
    for (long t = 0; t < step.tokens; ++t)
      for (long head = 0; head < shape.kv_heads; ++head) look(layer, t, head);
    product(mixed, {layer.o}, {step.x});
    norm(layer.before_network);
    if (layer.gate.weight) {
      product(normed, {layer.gate, layer.up}, {gate.data(), up.data()});
      activate(gate, &up);
    } else {
      product(normed, {layer.up}, {up.data()});
      activate(up, nullptr);
    }
    product(up, {layer.down}, {step.x});
    cache.keys += cache.layer;
    cache.values += cache.layer;
  }

  void logits(const Norm& last, Product head) {
    norm(last);
    for (float& y : normed) y *= shape.logit_scale;
    std::copy(normed.begin(), normed.end(), step.x);
    product(normed, {head}, {head.out});
  }

 private:
  const Shape& shape;
  const Step& step;
  Cache cache;
  int threads;
  std::vector<float> normed, q, k, v, mixed, gate, up;

  void norm(const Norm& norm) {
    for (long t = 0; t < step.tokens; ++t)
      normalise(step.x + t * shape.width, shape.width, norm, shape.eps, &normed[t * shape.width]);
  }

  template <int N>
  void product(const std::vector<float>& x, Product (&&products)[N], float* const (&&out)[N]) {
    for (int i = 0; i < N; ++i) products[i].out = out[i];
    multiply(x.data(), step.tokens, x.size() / step.tokens, products, N, threads);
  }

  // The activation of x, which then multiplies what it gates.
  void activate(std::vector<float>& x, std::vector<float>* gated) {
    const bool silu = shape.activation == SILU;
#pragma omp parallel for num_threads(threads) if (step.tokens > 1)
    for (long t = 0; t < step.tokens; ++t) {
      float* row = &x[t * shape.hidden];
      map(row, shape.hidden, [silu](Floats v) {
        Floats u = silu ? v : 1.5957691216f * (v + 0.044715f * v * v * v);  // the tanh form of GELU is a sigmoid too
        return v / (1.0f + exponential(-u < 88.0f ? -u : Floats{} + 88.0f));
      });
      if (gated)
        for (long k = 0; k < shape.hidden; ++k) (*gated)[t * shape.hidden + k] *= row[k];
    }
  }

  // Norm and turn a token's queries and keys; write keys and values where they are looked for.
  void remember(const Layer& layer, long t) {
    long dim = shape.head_dim;
    for (long head = 0; head < shape.heads; ++head) finish(&q[(t * shape.heads + head) * dim], layer.q_norm, t);
    for (long head = 0; head < shape.kv_heads; ++head) {
      long from = (t * shape.kv_heads + head) * dim;
      finish(&k[from], layer.k_norm, t);
      long to = t / step.width * cache.row + head * cache.head + step.positions[t] * cache.slot;
      std::copy_n(&k[from], dim, cache.keys + to);
      std::copy_n(&v[from], dim, cache.values + to);
    }
  }

  void finish(float* x, const float* weight, long t) {
    long dim = shape.head_dim, half = dim / 2;
    if (weight) normalise(x, dim, {weight, nullptr}, shape.eps, x);
    long at = step.positions[t] * half;
    if (shape.rotation != NONE) rotate(x, dim, step.cos + at, step.sin + at, shape.rotation);
  }

  void look(const Layer& layer, long t, long head) {
    static thread_local std::vector<float> scores;
    long groups = shape.heads / shape.kv_heads, last = step.positions[t];
    long first = layer.window ? std::max(0L, last + 1 - layer.window) : 0;
    long from = t / step.width * cache.row + head * cache.head + first * cache.slot;
    long place = (t * shape.heads + head * groups) * shape.head_dim;
    attend(&q[place], groups, shape.head_dim, cache.keys + from, cache.values + from, cache.slot, last + 1 - first,
           scores, &mixed[place]);
  }
};

}  // namespace
