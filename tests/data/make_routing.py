#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes routing_small.csv: 2 layers x 64 tokens, 16 experts, top-4, skewed, made up.

Popularity falls with the rank of an expert (zipf 0.8), in another order for each layer; the
experts of a token are drawn without repetition by Gumbel noise, weights are a softmax over the
four. The seed is fixed: the file is the same each time.
"""
import math
import os
import random

LAYERS, TOKENS, EXPERTS, TOP_K, REQUEST = 2, 64, 16, 4, 16


def main():
    rng = random.Random(7)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "routing_small.csv")
    with open(path, "w", newline="\n") as out:
        columns = [f"expert{k}" for k in range(TOP_K)] + [f"weight{k}" for k in range(TOP_K)]
        out.write(",".join(["layer", "token", "rank_hint"] + columns) + "\n")
        for layer in range(LAYERS):
            order = list(range(EXPERTS))
            rng.shuffle(order)
            bias = [0.0] * EXPERTS
            for place, expert in enumerate(order):
                bias[expert] = -0.8 * math.log(1 + place)
            for token in range(TOKENS):
                logits = [b - math.log(-math.log(rng.random())) for b in bias]
                ids = sorted(range(EXPERTS), key=lambda e: -logits[e])[:TOP_K]
                parts = [math.exp(logits[e] - logits[ids[0]]) for e in ids]
                weights = [f"{p / sum(parts):.6f}" for p in parts]
                out.write(",".join([str(layer), str(token), str(token // REQUEST)] +
                                   [str(e) for e in ids] + weights) + "\n")


if __name__ == "__main__":
    main()
