#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The formulas of docs/scale_table.py, which docs/scale.md is made from, against the library.

  test_scale.py query SCALE_RANKS    with m2n_channel_query_memory(), at many shapes and sizes
  test_scale.py ranks SCALE_RANKS    with what forked ranks hold and ask for, at small sizes
  test_scale.py verbs SCALE_RANKS    with what the kernel counts of RDMA devices; needs Soft-RoCE
  test_scale.py page                 the tables of docs/scale.md are those of the formulas
"""
import bisect
import importlib.util
import itertools
import os
import subprocess
import sys

DOCS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'docs')
WITHIN = 0.10
SHAPES = (
    {'m': 1, 'n': 1},
    {'m': 2, 'n': 3, 'tokens': 33, 'row': 1000, 'top_k': 3, 'experts': 7},
    {'m': 5, 'n': 2, 'tokens': 64, 'row': 4096, 'scale': 36, 'out': 8192, 'experts': 64},
    {'m': 8, 'n': 56, 'tokens': 128, 'row': 14336, 'top_k': 8, 'experts': 112, 'capacity': 16},
    {'m': 256, 'n': 768, 'tokens': 128, 'row': 14336, 'top_k': 8, 'experts': 768},
    {'m': 2500, 'n': 7500, 'tokens': 128, 'row': 14336, 'top_k': 8, 'experts': 7500},
)
VARIANTS = ({}, {'exact': True}, {'exact': True, 'capacity': 100}, {'dedup': True},
            {'dedup': True, 'reduce': True}, {'sinks': 3}, {'sinks': 3, 'exact': True},
            {'depth': 1}, {'depth': 64, 'sinks': 2})
BIG = {'tokens': 64, 'row': 4096, 'top_k': 4, 'experts': 8}
RANKS = (
    ({'m': 2, 'n': 4, **BIG}, {}),
    ({'m': 4, 'n': 2, **BIG, 'dedup': True, 'reduce': True}, {}),
    ({'m': 3, 'n': 3, **BIG, 'exact': True}, {}),
    ({'m': 3, 'n': 3, **BIG, 'exact': True, 'capacity': 200}, {}),
    ({'m': 2, 'n': 2, **BIG, 'sinks': 2}, {}),
    ({'m': 4, 'n': 4, **BIG}, {'classic': 1}),
    ({'m': 8, 'n': 24, 'tokens': 8, 'row': 512, 'top_k': 2, 'experts': 24}, {}),
    ({'m': 2, 'n': 4, **BIG}, {'backend': 'fault:shm', 'round': 1}),
    ({'m': 3, 'n': 2, **BIG, 'dedup': True, 'reduce': True},
     {'backend': 'fault:shm', 'round': 1}),
    ({'m': 2, 'n': 3, **BIG, 'exact': True}, {'backend': 'fault:shm', 'round': 1}),
    ({'m': 2, 'n': 2, **BIG, 'sinks': 3}, {'backend': 'fault:shm'}),
)
DEVICES = '/sys/class/infiniband'
VERBS = (
    ({'m': 2, 'n': 2, **BIG, 'exact': True}, {}, {}),
    ({'m': 1, 'n': 2, **BIG, 'sinks': 1}, {}, {}),
    ({'m': 1, 'n': 2}, {'qps': 2}, {'VERBS_QPS': 2}),
    ({'m': 1, 'n': 3}, {'qps': 3, 'rails': 2, 'paired': True, 'sq': 64, 'recvs': 256},
     {'VERBS_DEVICES': 'rxe0,rxe1', 'VERBS_QPS': 3, 'VERBS_REPLY_SL': 1, 'VERBS_SQ': 64,
      'VERBS_RECVS': 256}),
    ({'m': 1, 'n': 6, 'tokens': 8, 'row': 512}, {'sq': 1024}, {'VERBS_SQ': 1024}),
)
FAILURES = []


def load():
    """docs/scale_table.py as a module."""
    spec = importlib.util.spec_from_file_location('scale_table',
                                                  os.path.join(DOCS, 'scale_table.py'))
    module = importlib.util.module_from_spec(spec)
    sys.modules['scale_table'] = module
    spec.loader.exec_module(module)
    return module


def run(program, shape, more, options=()):
    """The lines of scale_ranks as dictionaries."""
    names = {'m': 'M', 'n': 'N'}
    words = [f'{names.get(k, k)}={int(v)}' for k, v in shape.items()]
    words += [f'{k}={v}' for k, v in more.items()]
    env = {**os.environ, **{f'M2N_{name}': str(value) for name, value in dict(options).items()}}
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=100,
                          check=False, env=env)
    if done.returncode == 77:
        print(done.stdout)
        sys.exit(77)
    if done.returncode:
        sys.exit(f'{" ".join(words)}: exit {done.returncode}\n{done.stdout}{done.stderr}')
    return [dict((k, int(v)) for k, v in (word.split('=') for word in line.split()))
            for line in done.stdout.splitlines() if line.startswith('rank=')]


def near(what, predicted, found, within):
    """Notes a failure unless `found` is what was predicted, give or take a share."""
    if abs(found - predicted) > within * max(predicted, 1):
        FAILURES.append(f'{what}: the formula says {predicted:,}, found {found:,}')


def check_query(table, program):
    """Exact where pages are counted, near where structs are: their sizes are rounded here."""
    n = 0
    for base, variant in itertools.product(SHAPES, VARIANTS):
        shape = {**base, **variant}
        formulas = table.Shape(**shape)
        ranks = {'source': 0, 'expert': shape['m']}
        if shape.get('sinks'):
            ranks['sink'] = shape['m'] + shape['n']
        for role, rank in ranks.items():
            found = run(program, shape, {'query': rank})[0]
            sink = role == 'sink' or (role == 'source' and not formulas.sinks)
            dispatch = formulas.dispatch_bytes() if role == 'expert' else 0
            what = f'{shape} {role}: '
            near(what + 'dispatch_bytes', dispatch, found['dispatch'], 0)
            near(what + 'reply_bytes', formulas.reply_bytes() if sink else 0, found['reply'], 0)
            near(what + 'control_bytes', formulas.control_bytes(role), found['control'], WITHIN)
            near(what + 'staging_bytes', formulas.staging_bytes(role), found['staging'], 0)
            near(what + 'made_bytes', formulas.made_bytes(role), found['made'], 0)
            n += 5
    return n


def role_of(shape, rank):
    """The role of a rank of scale_ranks, and how many of its peers have a higher number."""
    if rank < shape['m']:
        return 'source', shape['n']
    if rank < shape['m'] + shape['n']:
        return 'expert', shape.get('sinks', 0)
    return 'sink', 0


def staged_bytes(shape, role, rank):
    """What a round of scale_ranks stages: pair i of a source goes to expert i % experts."""
    pairs = [i % shape['experts'] for i in range(shape['tokens'] * shape['top_k'])]
    share, longer = divmod(shape['experts'], shape['n']) # the first ones own one more
    first = [j * share + min(j, longer) for j in range(shape['n'])]
    owner = [bisect.bisect_right(first, expert) - 1 for expert in pairs]
    tokens = {(i // shape['top_k'], who) for i, who in enumerate(owner)}
    if role == 'source':
        return (len(tokens) if shape.get('dedup') else len(pairs)) * shape['row']
    mine = rank - shape['m']
    rows = owner.count(mine)
    if shape.get('reduce'):
        rows = len([who for _, who in tokens if who == mine])
    return shape['m'] * rows * shape['row']


def check_rank(table, formulas, shape, more, found):
    """One rank's line."""
    role, n_called = role_of(shape, found['rank'])
    classic = bool(more.get('classic'))
    messaging = 'fault' in more.get('backend', '')
    what = f'{shape} {more} rank {found["rank"]} ({role}): '
    if classic:
        n_called = shape['m'] - 1 - found['rank']
    staging = formulas.staging_bytes(role) + table.SIGNAL_PAGES if messaging else 0
    near(what + 'pages', formulas.pages(role, classic) + staging, found['memfd'], WITHIN)
    near(what + 'malloc at join', table.JOIN_HEAP, found['join_heap'], WITHIN)
    if more.get('round'):
        near(what + 'pages for rows to be made', formulas.made_bytes(role), found['private'], 0)
        near(what + 'staged_bytes', staged_bytes(shape, role, found['rank']), found['staged'], 0)
    if not messaging: # else it is also the backend's
        near(what + 'malloc', formulas.heap(role, classic), found['heap'], WITHIN)
        near(what + 'all of it', formulas.total(role, classic),
             sum(found[k] for k in ('memfd', 'heap', 'join_memfd', 'join_heap')), WITHIN)
    signals = formulas.signals(role, classic) if messaging else 0
    for name, predicted in (('sockets', formulas.peers(role, classic)), ('join_sockets', 1),
                            ('signals', signals), ('puts', 1), ('gets', 1),
                            ('channel_gets', n_called)):
        near(what + name, predicted, found[name], 0)


def check_told(table, shape, backend, what, found):
    """What control connections sent; the table has it for two exchanges between two ranks."""
    if shape.get('exact') or shape.get('sinks'):
        return
    called, answered = table.TOLD[backend]
    is_source = found['rank'] < shape['m']
    predicted = called * shape['n'] if is_source else answered * shape['m']
    near(what + 'control bytes', predicted, found['told'], WITHIN)


def check_verbs(table, program):
    """Queue pairs, completion queues, pinned memory and queues of each rank: as the kernel says."""
    if not os.path.isdir(DEVICES) or 'rxe0' not in os.listdir(DEVICES):
        print('no Soft-RoCE device rxe0 here')
        sys.exit(77)
    n = 0
    for shape, verbs, options in VERBS:
        formulas, network = table.Shape(**shape), table.Verbs(**verbs)
        for found in run(program, shape, {'backend': 'verbs', 'queues': 1}, options):
            role, _ = role_of(shape, found['rank'])
            peers = formulas.peers(role)
            what = f'{shape} {verbs} rank {found["rank"]} ({role}): '
            for name, predicted in (
                    ('qps', network.n_qps(peers)), ('cqs', network.rails),
                    ('srqs', network.rails), ('cqes', network.rails * network.cq_room(peers)),
                    ('pinned', formulas.pinned_bytes(role, network.rails)),
                    ('queue_bytes', network.rxe_bytes(peers))):
                near(what + name, predicted, found[name], 0)
            check_told(table, shape, 'verbs', what, found)
            n += 7
    return n


def check_ranks(table, program):
    """What each rank holds; and the shares of resident memory, which add up to the truth."""
    n = 0
    for shape, more in RANKS:
        formulas = table.Shape(**shape)
        lines = run(program, shape, more)
        for found in lines:
            check_rank(table, formulas, shape, more, found)
            if not more:
                check_told(table, shape, 'shm', f'{shape} rank {found["rank"]}: ', found)
            n += 9 + 2 * more.get('round', 0)
        if shape['row'] < 4096 or more: # too small beside a process's own pages, or messaging
            continue
        predicted = sum(formulas.total(role_of(shape, found['rank'])[0]) for found in lines)
        near(f'{shape}: resident memory of all ranks', predicted,
             sum(found['share'] for found in lines), WITHIN)
        n += 1
    return n


def main():
    """As the module says."""
    table = load()
    if sys.argv[1] == 'page':
        return subprocess.run([sys.executable, os.path.join(DOCS, 'scale_table.py'), '--check'],
                              check=False).returncode
    check = {'query': check_query, 'ranks': check_ranks, 'verbs': check_verbs}[sys.argv[1]]
    n = check(table, sys.argv[2])
    print('\n'.join(FAILURES))
    print(f'{n} figures compared, {len(FAILURES)} differ')
    return 1 if FAILURES else 0


if __name__ == '__main__':
    sys.exit(main())
