# SPDX-License-Identifier: Apache-2.0
"""m2n_model against the oracle on random checkpoints: logits of every position, greedy tokens.

    test_parity.py M2N_MODEL

The bound is 1e-4 of the largest logit of a position. A case whose router or greedy choice hangs on
less than that would prove nothing; seeds are fixed, so there is none.
"""
import os
import subprocess
import sys
import tempfile

import numpy as np

import oracle

BOUND = 1e-4
N_PROMPT, N_TOKENS = 37, 6

# name: (changes of the config, dtype, shards, blanks behind the header, further arguments)
CASES = {
    'plain': ({}, 'F32', 1, 0, []),
    'one head a key head': ({'num_key_value_heads': 4}, 'F32', 1, 0, []),
    'one key head': ({'num_key_value_heads': 1}, 'F32', 3, 0, []),
    'top-1': ({'num_experts_per_tok': 1}, 'F32', 1, 0, []),
    'top-4 of 8': ({'num_local_experts': 8, 'num_experts_per_tok': 4}, 'BF16', 1, 0, []),
    'top-k is all': ({'num_local_experts': 3, 'num_experts_per_tok': 3}, 'F16', 1, 0, []),
    'one expert': ({'num_local_experts': 1, 'num_experts_per_tok': 1}, 'F32', 1, 0, []),
    'tied': ({'tie_word_embeddings': True}, 'F32', 1, 0, []),
    'tied bf16 shards': ({'tie_word_embeddings': True}, 'BF16', 4, 0, []),
    'f16': ({}, 'F16', 2, 0, []),
    'unaligned bf16': ({}, 'BF16', 1, 1, []),
    'unaligned f32': ({}, 'F32', 1, 3, []),
    'unaligned f16': ({}, 'F16', 1, 1, []),
    'head_dim of its own': ({'head_dim': 20}, 'F32', 1, 0, []),
    'window': ({'sliding_window': 7}, 'F32', 1, 0, []),
    'window of pages': ({'sliding_window': 16}, 'BF16', 1, 0, ['--chunk', '5']),
    'window of one': ({'sliding_window': 1}, 'F32', 1, 0, []),
    'wide': ({'hidden_size': 320, 'intermediate_size': 600, 'num_attention_heads': 10,
              'num_hidden_layers': 1}, 'F32', 1, 0, []),
    'wide bf16': ({'hidden_size': 320, 'intermediate_size': 600, 'num_attention_heads': 10,
                   'num_hidden_layers': 1}, 'BF16', 2, 0, []),
    'theta and eps': ({'rope_theta': 10000.0, 'rms_norm_eps': 1e-2}, 'F32', 1, 0, []),
    'chunks of 1': ({}, 'F32', 1, 0, ['--chunk', '1']),
    'deep': ({'num_hidden_layers': 6}, 'F32', 1, 0, []),
}


def run_case(program, folder, case, seed):
    """Largest error relative to a position's largest logit; raises when tokens differ."""
    changes, dtype, n_shards, pad, arguments = case
    cfg = oracle.config(**changes)
    weights = oracle.random_weights(cfg, seed, dtype)
    oracle.write_checkpoint(folder, cfg, weights, dtype, n_shards, pad)
    ids = np.random.default_rng(seed + 1).integers(0, cfg['vocab_size'], N_PROMPT).tolist()
    path = os.path.join(folder, 'logits')
    done = subprocess.run(
        [program, 'run', folder, '--prompt-ids', ','.join(map(str, ids)), '--tokens',
         str(N_TOKENS), '--logits', path] + arguments,
        stdout=subprocess.PIPE, check=True, timeout=120)
    tokens = [int(word) for word in done.stdout.decode().split(',')]
    expected = oracle.logits(cfg, weights, ids + tokens[:-1])
    got = np.fromfile(path, '<f4').reshape(-1, cfg['vocab_size'])
    assert got.shape == expected.shape, (got.shape, expected.shape)
    assert tokens == np.argmax(expected[N_PROMPT - 1:], axis=1).tolist(), tokens
    return np.max(np.abs(got - expected) / np.max(np.abs(expected), axis=1, keepdims=True))


def main():
    """Runs all cases."""
    failed = 0
    for seed, (name, case) in enumerate(CASES.items()):
        with tempfile.TemporaryDirectory() as folder:
            error = run_case(sys.argv[1], folder, case, 10 * seed)
        bad = not error < BOUND
        failed += bad
        print(f'{"not ok" if bad else "ok"} - {name}: {error:.1e}')
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
