# SPDX-License-Identifier: Apache-2.0
"""The planner's cost model once more, from the paper and docs/consumers.md.

Relies on nothing of the program: shapes and rates are written down again here, routing is counted
from the rows of a trace, and splits are all tried.
"""
import math

# layers, hidden, expert size, experts, top-k, width of q, width of k, vocabulary
MODELS = {'DeepSeek-MoE': (28, 2048, 1408, 64, 4, 2048, 2048, 102400),
          'GPT-OSS-120B': (36, 2880, 2880, 128, 4, 4096, 512, 201088),
          'Qwen3-235B': (94, 4096, 1536, 128, 8, 8192, 512, 151936)}
PEAK, NIC, LINK, NODE = 989e12, 50e9, 200e9, 8


class Case:
    """What is planned for, with the program's defaults."""

    def __init__(self, model='Qwen3-235B', seq=4096, shape=None, **rest):
        (self.layers, self.h, self.f, self.experts, self.k, self.q, self.kv,
         self.vocab) = shape or MODELS[model]
        self.seq, self.p, self.copies, self.nic_residual = seq, 4, 'node', False
        self.efficiency, self.m2n, self.recompute, self.attention = .5, .965, False, None
        self.peak, self.nic, self.link, self.node = PEAK, NIC, LINK, NODE
        self.rows = None  # of a trace: [layer][token] -> experts
        self.window, self.trace_experts = 2048, 0
        self.__dict__.update(rest)

    def flops(self):
        """Forward, of a token: projections with router, scores, experts, head."""
        projections = 2 * self.h * (2 * self.q + 2 * self.kv + self.experts)
        scores = 2 * 2 * self.q * self.seq / 2
        return projections, scores, 2 * 3 * self.h * self.f * self.k, 2 * self.h * self.vocab

    def places(self, n):
        """Distinct ones of n places that k of the experts, drawn without repetition, lie on."""
        n = min(n, self.experts)
        left = self.experts - self.experts / n
        none = math.prod(max(0, left - i) / (self.experts - i) for i in range(self.k))
        return n * (1 - none)

    def rows_out(self, ranks):
        return {'expert': self.k, 'rank': self.places(ranks),
                'node': self.places(math.ceil(ranks / self.node))}[self.copies]

    def busiest(self, ranks, layer, micro):
        if self.rows is None:
            return math.ceil(self.experts / ranks) * ranks / self.experts
        tokens = self.rows[layer % len(self.rows)]
        load = [0.] * ranks
        for i in range(self.window):
            for expert in tokens[(micro * self.window + i) % len(tokens)]:
                # The expert's piece of 0 to 1 falls on the ranks' pieces.
                for rank in range(ranks):
                    low = max(expert / self.trace_experts, rank / ranks)
                    high = min((expert + 1) / self.trace_experts, (rank + 1) / ranks)
                    load[rank] += max(0, high - low) * self.trace_experts
        return max(load) * ranks / sum(load)

    def mean_busiest(self, ranks, micros=16):
        if self.rows is None:
            return self.busiest(ranks, 0, 0)
        layers = min(self.layers, len(self.rows))
        return sum(self.busiest(ranks, layer, micro) for layer in range(layers)
                   for micro in range(micros)) / layers / micros

    def roofline(self, a, f, nics_a, nics_f):
        tokens = self.seq * a
        projections, scores, experts, head = self.flops()
        rate = self.peak * self.efficiency
        shared = tokens * 3 * head / self.layers
        own_a = tokens * (3 * projections + 3.5 * scores) + shared
        own_f = tokens * 3 * experts
        again = tokens * (projections + scores) if self.recompute else 0
        busiest = self.mean_busiest(f)
        rate_a = self.peak * (self.attention or self.efficiency)
        compute_a = ((own_a - shared + again) / rate_a + shared / rate) / a
        compute_f = (own_f + (tokens * experts if self.recompute else 0)) / rate / f * busiest
        row, out = 2 * self.h, self.rows_out(f)
        residual = 1 if self.nic_residual and self.p > 1 else 0
        network_a = 2 * tokens * row * (out + residual) / (nics_a * self.nic * self.m2n)
        network_f = 2 * tokens * row * out * busiest / (nics_f * self.nic * self.m2n)
        t_a, t_f = max(compute_a, network_a), max(compute_f, network_f)
        return {'tokens': tokens, 'compute_a_us': compute_a * 1e6, 'compute_f_us': compute_f * 1e6,
                'network_a_us': network_a * 1e6, 'network_f_us': network_f * 1e6,
                't_a_us': t_a * 1e6, 't_f_us': t_f * 1e6,
                'bound_a': 'computation' if compute_a >= network_a else 'network',
                'bound_f': 'computation' if compute_f >= network_f else 'network',
                'intensity_a': own_a / (2 * tokens * row * (out + residual)),
                'intensity_f': own_f / (2 * tokens * row * out),
                'turning_a': rate_a * a / (nics_a * self.nic * self.m2n),
                'turning_f': rate * f / (nics_f * self.nic * self.m2n),
                'mfu': (own_a + own_f) / (max(t_a, t_f) * (a + f) * self.peak)}

    def seed(self, splits, slack=.02):
        """Phases 1 and 2 over (a, f, nics_a, nics_f)."""
        roofs = [(s, self.roofline(*s)) for s in splits]
        times = [max(r['t_a_us'], r['t_f_us']) / r['tokens'] for _, r in roofs]
        left = [(r['mfu'], s) for (s, r), t in zip(roofs, times) if t <= min(times) * (1 + slack)]
        return max(left, key=lambda x: x[0])[1]

    def memory(self, a, f, live_a, live_f, own=(2, 4, 12)):
        """Bytes of an attention and of an FFN GPU."""
        weights, grads, optimizer = own
        layers = math.ceil(self.layers / self.p)
        attention = 2 * self.h * (self.q + self.kv) + self.h * self.experts + 2 * self.h
        vocab = (2 * self.h * self.vocab + self.h) / self.p
        expert = layers * 3 * self.h * self.f * math.ceil(self.experts / f)
        kept_a = self.h if self.recompute else 3 * self.h + 2 * self.q + 2 * self.kv
        kept_f = self.h if self.recompute else self.h + 3 * self.f
        return ((layers * attention + vocab) * (weights + grads + optimizer / a)
                + live_a * self.seq * kept_a * 2,
                expert * (weights + grads + optimizer)
                + live_f * self.seq * a / f * self.k * kept_f * 2)
