# SPDX-License-Identifier: Apache-2.0
"""Broken checkpoints: each is refused by name, with file, tensor or member, and nothing crashes.

    test_hostile.py M2N_MODEL

Every case breaks one thing of a good checkpoint and says which words the message must hold. Then a
few thousand cut, flipped and spliced headers must end in success or an error, never a signal.
"""
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile

import oracle

N_RANDOM = 150
FILE = 'model.safetensors'
EMBED = 'model.embed_tokens.weight'
SHARD = 'model-00001-of-00002.safetensors'
INDEX = 'model.safetensors.index.json'


def run(program, folder, *arguments):
    """(exit status, stderr)."""
    done = subprocess.run([program, *(arguments or ['info']), folder], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, check=False, timeout=60)
    return done.returncode, done.stderr.decode(errors='replace')


def change_config(**changes):
    """A case that sets members of config.json; `...` takes one away."""
    def change(folder):
        path = os.path.join(folder, 'config.json')
        with open(path, encoding='utf-8') as file:
            cfg = json.load(file)
        cfg.update(changes)
        cfg = {name: value for name, value in cfg.items() if value is not ...}
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(cfg, file)
    return change


def change_header(edit, name=FILE):
    """A case that edits the parsed header of a file; edit may return a text to put instead."""
    def change(folder):
        path = os.path.join(folder, name)
        with open(path, 'rb') as file:
            length, = struct.unpack('<Q', file.read(8))
            entries = json.loads(file.read(length))
            data = file.read()
        text = edit(entries)
        head = oracle.header_bytes(entries) if text is None else \
            struct.pack('<Q', len(text)) + text.encode()
        with open(path, 'wb') as file:
            file.write(head + data)
    return change


def change_tensor(**changes):
    """A case that sets members of the embedding's entry."""
    return change_header(lambda entries: entries[EMBED].update(changes))


def rename_tensor(entries):
    """A typing error in a name."""
    entries['model.embed_token.weight'] = entries.pop(EMBED)


def repeat_tensor(entries):
    """The same member twice, which a parser may take either way."""
    text = json.dumps(entries)
    entry = json.dumps({EMBED: entries[EMBED]})[1:-1]
    return text[:-1] + ', ' + entry + '}'


def overlap_tensors(entries):
    """One tensor's place for two of the same size."""
    entries['model.layers.0.self_attn.v_proj.weight']['data_offsets'] = \
        entries['model.layers.0.self_attn.k_proj.weight']['data_offsets']


def write_bytes(name, content):
    """A case that replaces a file."""
    def change(folder):
        with open(os.path.join(folder, name), 'wb') as file:
            file.write(content)
    return change


def cut(name, n_bytes):
    """A case that takes bytes from the end of a file."""
    def change(folder):
        path = os.path.join(folder, name)
        os.truncate(path, os.path.getsize(path) - n_bytes)
    return change


def append(name, content):
    """A case that puts bytes behind a file."""
    def change(folder):
        with open(os.path.join(folder, name), 'ab') as file:
            file.write(content)
    return change


def change_index(edit):
    """A case that edits the index."""
    def change(folder):
        path = os.path.join(folder, INDEX)
        with open(path, encoding='utf-8') as file:
            index = json.load(file)
        edit(index)
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(index, file)
    return change


def remove(name):
    """A case without a file."""
    return lambda folder: os.remove(os.path.join(folder, name))


BIG = 2 ** 62
# name: (shards, what is broken, words of the message)
CASES = {
    'no config': (1, remove('config.json'), ['config.json', 'No such file']),
    'config is no JSON': (1, write_bytes('config.json', b'{"a": '), ['config.json', 'line']),
    'config is a list': (1, write_bytes('config.json', b'[]'), ['config.json', 'object']),
    'architecture': (1, change_config(architectures=['LlamaForCausalLM']),
                     ['config.json', 'LlamaForCausalLM', 'MixtralForCausalLM']),
    'model type': (1, change_config(model_type='qwen2_moe'), ['model_type', 'qwen2_moe']),
    'no model type': (1, change_config(model_type=..., architectures=...), ['model_type']),
    'activation': (1, change_config(hidden_act='gelu'), ['hidden_act', 'gelu']),
    'scaled rope': (1, change_config(rope_scaling={'type': 'linear'}), ['rope_scaling']),
    'other rope': (1, change_config(rope_parameters={'rope_type': 'yarn'}), ['rope_type', 'yarn']),
    'bias': (1, change_config(attention_bias=True), ['attention_bias']),
    'dtype': (1, change_config(torch_dtype='int4'), ['int4']),
    'no hidden size': (1, change_config(hidden_size=...), ['hidden_size', 'missing']),
    'huge hidden size': (1, change_config(hidden_size=BIG), ['hidden_size']),
    'hidden size is text': (1, change_config(hidden_size='48'), ['hidden_size']),
    'no layers': (1, change_config(num_hidden_layers=0), ['num_hidden_layers']),
    'many layers': (1, change_config(num_hidden_layers=4096, num_local_experts=65536),
                    ['config.json', 'tensors']),
    'more layers': (1, change_config(num_hidden_layers=3), ['model.layers.2.', 'missing']),
    'fewer layers': (1, change_config(num_hidden_layers=1), [FILE, 'model.layers.1.']),
    'fewer experts': (1, change_config(num_local_experts=3), [FILE, 'model.layers.0.', '[4, 48]']),
    'top-k': (1, change_config(num_experts_per_tok=5), ['num_experts_per_tok', '5']),
    'key heads': (1, change_config(num_key_value_heads=3), ['num_key_value_heads']),
    'heads': (1, change_config(num_attention_heads=5, num_key_value_heads=5), ['head_dim']),
    'odd head_dim': (1, change_config(head_dim=3), ['head_dim']),
    'eps': (1, change_config(rms_norm_eps=0), ['rms_norm_eps']),
    'theta': (1, change_config(rope_theta=-1), ['rope_theta']),
    'vocabulary': (1, change_config(vocab_size=98), [FILE, EMBED, '[97, 48]', '[98, 48]']),
    'no weights': (1, remove(FILE), [FILE, INDEX]),
    'empty file': (1, write_bytes(FILE, b''), [FILE, 'short']),
    'no room for a header': (1, write_bytes(FILE, struct.pack('<Q', 100)), [FILE, 'header']),
    'long header': (1, write_bytes(FILE, struct.pack('<Q', BIG) + b'{}'), [FILE, 'header']),
    'header is no JSON': (1, write_bytes(FILE, struct.pack('<Q', 4) + b'{"a"'), [FILE, 'header']),
    'header is a list': (1, write_bytes(FILE, struct.pack('<Q', 2) + b'[]'), [FILE, 'header']),
    'deep header': (1, change_header(lambda entries: '[' * 100000), [FILE, 'header']),
    'cut': (1, cut(FILE, 4), [FILE, 'cut off']),
    'longer': (1, append(FILE, b'1234'), [FILE, 'at the end']),
    'no such tensor': (1, change_header(rename_tensor), [EMBED, 'missing']),
    'tensor twice': (1, change_header(repeat_tensor), [FILE, 'header', 'uplicate']),
    'overlap': (1, change_header(overlap_tensors), [FILE, 'overlaps', '_proj.weight']),
    'unknown type': (1, change_tensor(dtype='Q4'), [FILE, EMBED, 'Q4', 'convert']),
    'other type': (1, change_tensor(dtype='I32'), [FILE, EMBED, 'convert']),
    'no type': (1, change_tensor(dtype=3), [FILE, EMBED, 'dtype']),
    'wrong shape': (1, change_tensor(shape=[48, 97]), [FILE, EMBED, '[48, 97]', '[97, 48]']),
    'flat shape': (1, change_tensor(shape=[48 * 97]), [FILE, EMBED, '[4656]']),
    'big shape': (1, change_tensor(shape=[BIG, BIG]), [FILE, EMBED]),
    'negative shape': (1, change_tensor(shape=[-97, 48]), [FILE, EMBED, 'shape']),
    'shape that wraps': (1, change_tensor(shape=[BIG, 4, 97 * 48]), [FILE, EMBED]),
    'many sizes': (1, change_tensor(shape=[1] * 1000), [FILE, EMBED, 'shape']),
    'shape is text': (1, change_tensor(shape='97'), [FILE, EMBED, 'shape']),
    'offsets beyond': (1, change_tensor(data_offsets=[BIG, BIG + 4]), [FILE, EMBED]),
    'offsets backwards': (1, change_tensor(data_offsets=[8, 4]), [FILE, EMBED, 'data_offsets']),
    'negative offsets': (1, change_tensor(data_offsets=[-4, 0]), [FILE, EMBED, 'data_offsets']),
    'one offset': (1, change_tensor(data_offsets=[0]), [FILE, EMBED, 'data_offsets']),
    'entry is a number': (1, change_header(lambda entries: entries.update({EMBED: 7})),
                          [FILE, EMBED]),
    'shard is missing': (2, remove(SHARD), [SHARD, 'No such file']),
    'index is no JSON': (2, write_bytes(INDEX, b'{'), [INDEX]),
    'index without a map': (2, write_bytes(INDEX, b'{}'), [INDEX, 'weight_map']),
    'index is empty': (2, write_bytes(INDEX, b'{"weight_map": {}}'), [INDEX, 'weight_map']),
    'index leads out': (2, change_index(lambda index: index['weight_map'].update(
        {EMBED: '../model.safetensors'})), [INDEX, EMBED, 'plain']),
    'index is wrong': (2, change_index(lambda index: index['weight_map'].update(
        {EMBED: 'model-00002-of-00002.safetensors'})), [INDEX, EMBED]),
    'index forgets one': (2, change_index(lambda index: index['weight_map'].pop(EMBED)),
                          [SHARD, EMBED, INDEX]),
    'tensor in two shards': (2, lambda folder: shutil.copy(
        os.path.join(folder, SHARD),
        os.path.join(folder, 'model-00002-of-00002.safetensors')),
                             ['00002.safetensors: tensor', 'too']),
}


def random_files(program, folder, good):
    """Cut, flipped and spliced files. Returns how many ended by a signal or a sanitizer."""
    rng = random.Random(5)
    bad = 0
    for _ in range(N_RANDOM):
        data = bytearray(good)
        head = 8 + struct.unpack('<Q', good[:8])[0]
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(head)
            kind = rng.randrange(3)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at:at + rng.randint(1, 40)] = data[(start := rng.randrange(head)):start + 20]
            else:
                data[at:at + 1] = rng.choice([b'', b'-', b'9' * 20, b'"', b'\0', b'1e9', b'[['])
        if rng.randrange(4) == 0:
            del data[rng.randrange(len(data)):]
        write_bytes(FILE, bytes(data))(folder)
        status, text = run(program, folder)
        if status not in (0, 1) or (status == 1 and not text.startswith('m2n_model: ')):
            bad += 1
            print(f'# status {status}: {text[:2000]}')
    return bad


def main():
    """Runs all cases."""
    program, failed = sys.argv[1], 0
    cfg = oracle.config()
    weights = oracle.random_weights(cfg, 1, 'F32')
    with tempfile.TemporaryDirectory() as top:
        for name, (n_shards, change, words) in CASES.items():
            folder = os.path.join(top, 'model')
            shutil.rmtree(folder, ignore_errors=True)
            oracle.write_checkpoint(folder, cfg, weights, 'F32', n_shards)
            status, text = run(program, folder)
            assert status == 0, text
            change(folder)
            status, text = run(program, folder)
            bad = status != 1 or any(word not in text for word in words) or text.count('\n') != 1
            failed += bad
            print(f'{"not ok" if bad else "ok"} - {name}' + (f' # {status} {text}' if bad else ''))
        folder = os.path.join(top, 'random')
        oracle.write_checkpoint(folder, cfg, weights, 'F32')
        with open(os.path.join(folder, FILE), 'rb') as file:
            bad = random_files(program, folder, file.read())
        failed += bad
        print(f'{"not ok" if bad else "ok"} - {N_RANDOM} random files')
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
