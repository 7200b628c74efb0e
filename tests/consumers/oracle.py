# SPDX-License-Identifier: Apache-2.0
"""A second implementation of the model, from the published formulas, to compare with.

numpy in double precision over whole sequences: no cache, no pages, no chunks, no code in common
with consumers/common/model. It writes checkpoints of its own too, so that reading is not tested
with what our writer wrote.
RMSNorm: Zhang and Sennrich 2019; rotary embedding: Su et al. 2021, in the
half-split form; grouped-query attention: Ainslie et al. 2023; router and experts: Jiang et al.
2024 (Mixtral), section 2.1.
"""
import json
import os
import struct

import numpy as np

SHAPES = {'F32': 4, 'BF16': 2, 'F16': 2}
TORCH = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16'}


def config(**changes):
    """A small config.json; members by their names in the file."""
    made = {
        'architectures': ['MixtralForCausalLM'], 'model_type': 'mixtral', 'hidden_act': 'silu',
        'vocab_size': 97, 'hidden_size': 48, 'intermediate_size': 72, 'num_hidden_layers': 2,
        'num_attention_heads': 4, 'num_key_value_heads': 2, 'num_local_experts': 4,
        'num_experts_per_tok': 2, 'max_position_embeddings': 512, 'rms_norm_eps': 1e-5,
        'rope_theta': 1e6, 'sliding_window': None, 'tie_word_embeddings': False,
        'bos_token_id': 1, 'transformers_version': '4.36.0', 'output_router_logits': False}
    made.update(changes)
    return made


def head_dim(cfg):
    """Explicit, or the hidden size over the heads."""
    return cfg.get('head_dim') or cfg['hidden_size'] // cfg['num_attention_heads']


def shapes(cfg):
    """{name: shape} of every tensor, in the order in which models are saved."""
    hidden, inner, dim = cfg['hidden_size'], cfg['intermediate_size'], head_dim(cfg)
    queries, keys = cfg['num_attention_heads'] * dim, cfg['num_key_value_heads'] * dim
    made = {'model.embed_tokens.weight': (cfg['vocab_size'], hidden)}
    for layer in range(cfg['num_hidden_layers']):
        at = f'model.layers.{layer}.'
        made.update({
            at + 'self_attn.q_proj.weight': (queries, hidden),
            at + 'self_attn.k_proj.weight': (keys, hidden),
            at + 'self_attn.v_proj.weight': (keys, hidden),
            at + 'self_attn.o_proj.weight': (hidden, queries),
            at + 'block_sparse_moe.gate.weight': (cfg['num_local_experts'], hidden)})
        for expert in range(cfg['num_local_experts']):
            name = at + f'block_sparse_moe.experts.{expert}.'
            made.update({name + 'w1.weight': (inner, hidden), name + 'w2.weight': (hidden, inner),
                         name + 'w3.weight': (inner, hidden)})
        made.update({at + 'input_layernorm.weight': (hidden,),
                     at + 'post_attention_layernorm.weight': (hidden,)})
    made['model.norm.weight'] = (hidden,)
    if not cfg['tie_word_embeddings']:
        made['lm_head.weight'] = (cfg['vocab_size'], hidden)
    return made


def encode(values, dtype):
    """(bytes as stored, values as a reader has them in double precision)."""
    if dtype == 'F16':
        stored = values.astype('<f2')
        return stored.tobytes(), stored.astype(np.float64)
    single = values.astype('<f4')
    if dtype == 'F32':
        return single.tobytes(), single.astype(np.float64)
    # Cut off, not rounded: any bf16 number will do for a weight.
    high = (single.view('<u4') >> 16).astype('<u2')
    widened = (high.astype('<u4') << 16).view('<f4')
    return high.tobytes(), widened.astype(np.float64)


def random_weights(cfg, seed, dtype):
    """{name: (bytes, values)}; norms are random too, so that a forgotten one shows."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes(cfg).items():
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 1 if 'embed' in name else 1.5 / np.sqrt(shape[1]), shape)
        made[name] = encode(values, dtype)
    return made


def header_bytes(entries, pad=0):
    """The head of a safetensors file; pad blanks may break the alignment of the data."""
    text = json.dumps(entries).encode() + b' ' * pad
    return struct.pack('<Q', len(text)) + text


def write_file(path, weights, cfg, dtype, pad=0):
    """One safetensors file with the tensors named."""
    entries, at = {'__metadata__': {'format': 'pt'}}, 0
    for name, (stored, _) in weights.items():
        entries[name] = {'dtype': dtype, 'shape': list(shapes(cfg)[name]),
                         'data_offsets': [at, at + len(stored)]}
        at += len(stored)
    with open(path, 'wb') as file:
        file.write(header_bytes(entries, pad))
        for stored, _ in weights.values():
            file.write(stored)


def write_checkpoint(path, cfg, weights, dtype, n_shards=1, pad=0):
    """config.json and one file, or an index and shards."""
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, 'config.json'), 'w', encoding='utf-8') as file:
        json.dump(dict(cfg, torch_dtype=TORCH[dtype]), file)
    if n_shards == 1:
        write_file(os.path.join(path, 'model.safetensors'), weights, cfg, dtype, pad)
        return
    names, weight_map = list(weights), {}
    for shard in range(n_shards):
        file = f'model-{shard + 1:05}-of-{n_shards:05}.safetensors'
        part = {name: weights[name] for name in names[shard::n_shards]}
        weight_map.update(dict.fromkeys(part, file))
        write_file(os.path.join(path, file), part, cfg, dtype, pad)
    with open(os.path.join(path, 'model.safetensors.index.json'), 'w', encoding='utf-8') as file:
        json.dump({'metadata': {'total_size': sum(len(w[0]) for w in weights.values())},
                   'weight_map': weight_map}, file)


def norm(x, weight, eps):
    """Root-mean-square norm over the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotary(x, theta):
    """x: [tokens, heads, dim]; the complex plane of values (i, i + dim/2) turned by position."""
    n_tokens, _, dim = x.shape
    turn = np.outer(np.arange(n_tokens), theta ** (-np.arange(dim // 2) * 2.0 / dim))
    planes = (x[..., :dim // 2] + 1j * x[..., dim // 2:]) * np.exp(1j * turn)[:, None, :]
    return np.concatenate([planes.real, planes.imag], axis=-1)


def attention(x, get, cfg):
    """Causal, grouped, perhaps through a window: [tokens, hidden] -> [tokens, hidden]."""
    n_tokens, dim = len(x), head_dim(cfg)
    queries = rotary((x @ get('self_attn.q_proj').T).reshape(n_tokens, -1, dim), cfg['rope_theta'])
    keys = rotary((x @ get('self_attn.k_proj').T).reshape(n_tokens, -1, dim), cfg['rope_theta'])
    values = (x @ get('self_attn.v_proj').T).reshape(n_tokens, -1, dim)
    group = queries.shape[1] // keys.shape[1]
    distance = np.arange(n_tokens)[:, None] - np.arange(n_tokens)[None, :]
    hidden = (distance < 0) | (distance >= (cfg['sliding_window'] or n_tokens))
    heads = []
    for head in range(queries.shape[1]):
        scores = queries[:, head] @ keys[:, head // group].T / np.sqrt(dim)
        scores = np.where(hidden, -np.inf, scores)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        heads.append(shares @ values[:, head // group])
    return np.concatenate(heads, axis=1) @ get('self_attn.o_proj').T


def experts(x, get, cfg):
    """The mixture for each token by itself."""
    out = np.zeros_like(x)
    for token, row in enumerate(x):
        logits = get('block_sparse_moe.gate') @ row
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        chosen = np.argsort(-shares, kind='stable')[:cfg['num_experts_per_tok']]
        for expert in chosen:
            part = f'block_sparse_moe.experts.{expert}.'
            gate = get(part + 'w1') @ row
            inner = gate / (1 + np.exp(-gate)) * (get(part + 'w3') @ row)
            out[token] += shares[expert] / shares[chosen].sum() * (get(part + 'w2') @ inner)
    return out


def logits(cfg, weights, ids):
    """[tokens, vocabulary] of a whole sequence."""
    x = weights['model.embed_tokens.weight'][1][np.asarray(ids)]
    for layer in range(cfg['num_hidden_layers']):
        def get(name, at=f'model.layers.{layer}.'):
            return weights[f'{at}{name}.weight'][1]
        x = x + attention(norm(x, get('input_layernorm'), cfg['rms_norm_eps']), get, cfg)
        x = x + experts(norm(x, get('post_attention_layernorm'), cfg['rms_norm_eps']), get, cfg)
    head = 'model.embed_tokens.weight' if cfg['tie_word_embeddings'] else 'lm_head.weight'
    return norm(x, weights['model.norm.weight'][1], cfg['rms_norm_eps']) @ weights[head][1].T
