# SPDX-License-Identifier: Apache-2.0
"""The reference's gradients against finite differences of another implementation.

    test_gradients.py TRAIN_GRADIENTS

The loss is computed again in numpy, in double precision, from the forward of oracle.py and the
published form of the balancing loss (Fedus et al. 2021, equation 4, sequence by sequence). For
every tensor its slope along the gradient, along a random direction, and at the largest and some
other elements must be what the gradient says, to 1e-5 of the gradient's length or largest element.
"""
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
import oracle  # noqa: E402

BOUND, LOGITS_BOUND = 1e-5, 1e-5
STEP = 1e-5
N_SEQS = 2
SMALL = {'vocab_size': 256, 'hidden_size': 16, 'intermediate_size': 12, 'rope_theta': 1e3}

# name: (changes of the config, tokens of a sequence, weight of the balancing loss)
CASES = {
    'plain': ({}, 12, 0.0),
    'balanced': ({}, 12, 0.3),
    'top-1, balanced': ({'num_experts_per_tok': 1}, 9, 0.3),
    'all experts': ({'num_local_experts': 3, 'num_experts_per_tok': 3}, 9, 0.1),
    'one key head': ({'num_key_value_heads': 1}, 9, 0.1),
    'head_dim of its own': ({'head_dim': 6}, 9, 0.1),
    'two blocks of queries': ({'num_hidden_layers': 1}, 70, 0.1),
    'window over blocks': ({'num_hidden_layers': 1, 'sliding_window': 11}, 70, 0.1),
    'one token': ({}, 1, 0.1),
}


def read_file(path):
    """{name: values in double} of a safetensors file."""
    with open(path, 'rb') as file:
        head = json.loads(file.read(struct.unpack('<Q', file.read(8))[0]))
        data = file.read()
    return {name: np.frombuffer(data[entry['data_offsets'][0]:entry['data_offsets'][1]], '<f4')
            .reshape(entry['shape']).astype(np.float64)
            for name, entry in head.items() if name != '__metadata__'}


def balance_of(rows, gate, cfg):
    """Experts times the sum of each one's share of the choices and mean probability."""
    logits = rows @ gate.T
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    chosen = np.argsort(-probs, axis=1, kind='stable')[:, :cfg['num_experts_per_tok']]
    shares = np.bincount(chosen.ravel(), minlength=cfg['num_local_experts']) / chosen.size
    return cfg['num_local_experts'] * shares @ probs.mean(axis=0)


def losses(cfg, weights, ids):
    """Mean cross entropy and mean balancing loss of sequences of one token more than they have."""
    entropy = balance = 0.0
    for sequence in ids:
        x = weights['model.embed_tokens.weight'][sequence[:-1]]
        for layer in range(cfg['num_hidden_layers']):
            def get(name, at=f'model.layers.{layer}.'):
                return weights[f'{at}{name}.weight']
            eps = cfg['rms_norm_eps']
            x = x + oracle.attention(oracle.norm(x, get('input_layernorm'), eps), get, cfg)
            rows = oracle.norm(x, get('post_attention_layernorm'), eps)
            balance += balance_of(rows, get('block_sparse_moe.gate'), cfg)
            x = x + oracle.experts(rows, get, cfg)
        x = oracle.norm(x, weights['model.norm.weight'], cfg['rms_norm_eps'])
        logits = x @ weights['lm_head.weight'].T
        peak = logits.max(axis=1)
        sums = peak + np.log(np.exp(logits - peak[:, None]).sum(axis=1))
        entropy += np.mean(sums - logits[np.arange(len(x)), sequence[1:]])
    return entropy / len(ids), balance / len(ids)


def directions(gradient, rng, least):
    """(direction, what the error is measured by)"""
    length, largest = max(np.linalg.norm(gradient), least), max(np.abs(gradient).max(), least)
    yield gradient / length, length
    other = rng.normal(size=gradient.shape)
    yield other / np.linalg.norm(other), length
    flat = np.abs(gradient).ravel()
    for at in {int(flat.argmax()), *rng.integers(0, flat.size, 2).tolist()}:
        one = np.zeros(flat.size)
        one[at] = 1
        yield one.reshape(gradient.shape), largest


def check_tensor(name, gradient, slope, rng, least):
    """The largest error of a tensor's directions."""
    return max(abs(slope(name, way) - np.sum(gradient * way)) / unit
               for way, unit in directions(gradient, rng, least))


def run_case(program, folder, case, seed):
    """(largest error of a gradient, its tensor, error of logits, error of the losses)"""
    changes, seq_len, alpha = case
    cfg = oracle.config(**{**SMALL, **changes})
    rng = np.random.default_rng(seed)
    stored = oracle.random_weights(cfg, seed, 'F32')
    model, ids_path, out = (os.path.join(folder, name) for name in ('model', 'ids', 'out'))
    oracle.write_checkpoint(model, cfg, stored, 'F32')
    ids = rng.integers(0, 40, (N_SEQS, seq_len + 1)).astype('<u4')
    ids.tofile(ids_path)
    subprocess.run([program, model, ids_path, str(N_SEQS), str(seq_len), str(alpha), out],
                   check=True, timeout=120)
    got = read_file(out)
    weights = {name: values for name, (_, values) in stored.items()}

    def total(name, change):
        entropy, balance = losses(cfg, {**weights, name: weights[name] + change}, ids)
        return entropy + alpha * balance

    def slope(name, way):
        return (total(name, STEP * way) - total(name, -STEP * way)) / (2 * STEP)

    # Of gradients that are 0, as of queries with one key, only rounding is left.
    least = 1e-2 * max(np.linalg.norm(got[name]) for name in weights)
    worst = max((check_tensor(name, got[name], slope, rng, least), name) for name in weights)
    expected = np.concatenate([oracle.logits(cfg, stored, sequence[:-1]) for sequence in ids])
    logits = np.max(np.abs(got['logits'] - expected) / np.abs(expected).max(axis=1, keepdims=True))
    known = np.array(losses(cfg, weights, ids))
    return worst + (logits, np.max(np.abs(got['losses'] / known - 1)))


def main():
    """Runs all cases."""
    failed = 0
    for seed, (name, case) in enumerate(CASES.items()):
        with tempfile.TemporaryDirectory() as folder:
            error, tensor, logits, loss = run_case(sys.argv[1], folder, case, 10 * seed)
        bad = not (error < BOUND and logits < LOGITS_BOUND and loss < BOUND)
        failed += bad
        print(f'{"not ok" if bad else "ok"} - {name}: gradients {error:.1e} ({tensor}), '
              f'logits {logits:.1e}, losses {loss:.1e}')
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
