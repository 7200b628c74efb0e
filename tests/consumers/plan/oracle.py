# SPDX-License-Identifier: Apache-2.0
"""The planner's equations once more, from the paper, with every b_a tried in turn.

Relies on nothing of the program: shapes and prices are written down again here.
"""
import math

MIB = 1 << 20
CURVE = [(MIB // 64, .025), (MIB // 8, .16), (MIB // 2, .41), (MIB, .57), (2 * MIB, .72),
         (8 * MIB, .9), (64 * MIB, .965)]
# price, GB, GB/s of memory, TFLOPS, GB/s inside a node
GPUS = {'L20': (1.00, 48, 864, 119.5, 32), 'H800': (5.28, 80, 3430.4, 989, 200),
        'A800': (2.26, 80, 2039, 312, 200), 'H20': (1.85, 96, 4096, 148, 450),
        'L40S': (1.08, 48, 864, 362, 32)}
# layers, h, h', E, K, g, vocabulary
MODELS = {'Mixtral-8x22B': (56, 6144, 16384, 8, 2, 6, 32000),
          'DBRX': (40, 6144, 10752, 16, 4, 6, 100352),
          'Scaled-MoE': (48, 8192, 8192, 32, 4, 8, 32000)}


def transfer(n_bytes, curve=CURVE, rate=25e9):
    """Seconds for a GPU's bytes of one round."""
    times = [(b, b / u) for b, u in curve]
    if n_bytes <= times[0][0]:
        return times[0][1] / rate
    for (b0, t0), (b1, t1) in zip(times, times[1:]):
        if n_bytes < b1:
            return (t0 + (t1 - t0) * (n_bytes - b0) / (b1 - b0)) / rate
    return n_bytes / curve[-1][1] / rate


class Case:
    """A model, context, SLO; lines: None for the roofline or (k1, k2, k3, k4) in seconds."""

    def __init__(self, model, context=650.5, slo=.15, straight=False, lines=None, curve=None):
        self.layers, self.h, self.f, self.experts, self.k, self.g, self.vocab = MODELS[model]
        self.context, self.slo, self.straight, self.lines = context, slo, straight, lines
        self.curve = curve or CURVE

    def reduce(self, gpu, tp):
        return 2 * (tp - 1) / tp * self.h * 2 / (GPUS[gpu][4] * 1e9 * .8)

    def attention_layer(self):
        return 2 * self.h ** 2 + 2 * self.h ** 2 / self.g + self.h * self.experts

    def join(self, read, product, rest):
        return read + product + rest if self.straight else max(read, product) + rest

    def t_a(self, gpu, tp, b):
        if self.lines:
            return self.lines[0] * b + self.lines[1]
        _, _, bandwidth, tflops, _ = GPUS[gpu]
        bandwidth, flops = bandwidth * .8e9 * tp, tflops * .7e12 * tp
        cache = max(self.context * 4 * self.h / self.g / bandwidth,
                    4 * self.h * self.context / flops)
        return self.join(2 * self.attention_layer() / bandwidth,
                         2 * self.attention_layer() / flops * b,
                         (cache + self.reduce(gpu, tp)) * b)

    def t_e(self, gpu, tp, b):
        if self.lines:
            return self.lines[2] * b + self.lines[3]
        _, _, bandwidth, tflops, _ = GPUS[gpu]
        weights = 3 * self.h * self.f
        return self.join(2 * weights / (bandwidth * .8e9 * tp),
                         2 * weights / (tflops * .7e12 * tp) * b, self.reduce(gpu, tp) * b)

    def balance(self, gpu_a, gpu_e, tp_a, tp_e):
        slope = [f(g, tp, 2e9) - f(g, tp, 1e9) for f, g, tp in
                 ((self.t_a, gpu_a, tp_a), (self.t_e, gpu_e, tp_e))]
        return slope[0] / slope[1] * self.experts / self.k

    def evaluate(self, gpu_a, gpu_e, tp_a, tp_e, n_a, m, b_a):
        batch = b_a * m * n_a
        b_e = batch * self.k / (m * self.experts)
        t_a, t_e = self.t_a(gpu_a, tp_a, b_a), self.t_e(gpu_e, tp_e, b_e)
        t_f = max(t_a, t_e)
        t_c = max(transfer(b_a * self.h * self.k * 2 / tp_a, self.curve),
                  transfer(b_e * self.h * 2 / tp_e, self.curve))
        overlap = m * t_f >= 2 * (t_f + t_c)
        way = t_a + t_e + 2 * t_c
        # (4) and (5) where the pipeline is full; else each waits for its own way, and the last is
        # as many of the slowest stage behind as there are others.
        slowest = max(t_f, t_c)
        if m * slowest >= way:
            t_iter = m * slowest * self.layers
            t_total = way + slowest * (m * self.layers - 1)
        else:
            t_iter = way * self.layers
            t_total = way * self.layers + (m - 1) * slowest
        cost = (tp_a * n_a * GPUS[gpu_a][0] + tp_e * self.experts * GPUS[gpu_e][0])
        p_a = self.layers * self.attention_layer() + 2 * self.vocab * self.h
        memory = (4 * m * b_a * self.context * self.h * self.layers / self.g + 2 * p_a
                  < tp_a * GPUS[gpu_a][1] * 1e9)
        return {'gpu_a': gpu_a, 'gpu_e': gpu_e, 'tp_a': tp_a, 'tp_e': tp_e, 'n_a': n_a, 'm': m,
                'b_a': b_a, 'b_e': b_e, 'batch': batch, 't_a_us': t_a * 1e6, 't_e_us': t_e * 1e6,
                't_c_us': t_c * 1e6, 'tpot_ms': t_iter * 1e3, 't_total_ms': t_total * 1e3,
                'tokens_per_s_cost': batch / t_total / cost, 'cost': cost,
                'hidden': t_c < t_f and overlap, 'fits': memory and t_iter <= self.slo}

    def weights_fit(self, gpu, tp):
        return (6 * self.h * self.f * self.layers) < tp * GPUS[gpu][1] * 1e9

    def best(self, gpus_a, gpus_e, relaxed=False, tps=(1, 2, 4, 8), max_b=3000):
        """Best point by trying each b_a; the largest that fits counts, as in the paper."""
        found = []
        for ga in gpus_a:
            for ge in gpus_e:
                for ta in tps:
                    for te in tps:
                        if not self.weights_fit(ge, te):
                            continue
                        n_a = self.balance(ga, ge, ta, te)
                        for n in {max(1, math.floor(n_a)), max(1, math.ceil(n_a))}:
                            found += self.largest(ga, ge, ta, te, n, relaxed, max_b)
        return max(found, key=lambda p: p['tokens_per_s_cost'])

    def largest(self, ga, ge, ta, te, n, relaxed, max_b):
        found = []
        for m in (1, 2, 3, 4):
            last = None
            for b in range(1, max_b):
                point = self.evaluate(ga, ge, ta, te, n, m, b)
                if not point['fits']:
                    break
                if relaxed or point['hidden']:
                    last = point
            found += [last] if last else []
        return found
