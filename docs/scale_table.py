#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The formulas of docs/scale.md, and its tables made from them.

  scale_table.py            prints the tables
  scale_table.py --write    puts them into docs/scale.md
  scale_table.py --check    exits 1 when docs/scale.md has others

tests/scale/ compares every formula here with the library: with m2n_channel_query_memory() at many
shapes, and with what forked ranks really hold at small ones.
"""
import os
import re
import sys
from dataclasses import dataclass

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'scale.md')
OPTIONS = os.path.join(os.path.dirname(PAGE), '..', 'libm2n', 'util', 'option_list.h')
HEAD = 64
# Bytes from malloc: of a joined process (context 6,600, group with its record 8,760); of each
# exchange; of each connected peer: 6,144 to read frames into, the longest frame sent and a half,
# peer and connection; of each end of a link: sender or receiver, counts of its slots, a key.
JOIN_HEAP, EXCHANGE_HEAP, PEER_HEAP, END_HEAP = 16500, 2300, 7500, 340
# A joined process's pages: its doorbell.
JOIN_PAGES = 4096
# Bytes that caller and listener send on a control connection for two exchanges, by backend.
TOLD = {'shm': (910, 830), 'verbs': (3300, 3200)}
# Pages of the signal table, from the first messaging peer on: option SIGNALS, 8 bytes each.
SIGNAL_PAGES = 65536 * 8


# Gather entries of a write: what the backend asks for at most, and what ConnectX devices have.
MAX_SGE, MLX5_SGE = 32, 30


def option(name):
    """The default of a number among the library's options."""
    with open(OPTIONS, encoding='ascii') as text:
        return int(re.search(rf'X\({name},[^"]*"(\d+)"', text.read()).group(1))


def power(n):
    """n rounded up to a power of two."""
    return 1 << (n - 1).bit_length()


def up(n, unit):
    """n rounded up to a multiple of unit."""
    return -(-n // unit) * unit


@dataclass
class Shape:
    """A channel as m2n_channel_params has it; `sinks` 0: the sinks are the sources."""
    m: int
    n: int
    tokens: int = 16
    row: int = 1024
    top_k: int = 2
    experts: int = 4
    scale: int = 0
    out: int = 0
    capacity: int = 0
    depth: int = 3
    sinks: int = 0
    exact: bool = False
    dedup: bool = False
    reduce: bool = False

    def pairs(self):
        """Rows of a source and round at most."""
        return self.tokens * self.top_k

    def max_local(self):
        """Local experts of a rank that there is room for."""
        mean = -(-self.experts // self.n)
        return min(self.experts, 2 * mean + 2)

    def any_rows(self):
        """Travelling rows from a source to one expert rank, whatever the routing."""
        return self.tokens if self.dedup else self.pairs()

    def slot_rows(self):
        """Travelling rows that a dispatch slot holds."""
        return 0 if self.exact else min(self.capacity or self.any_rows(), self.any_rows())

    def meta_bytes(self):
        """Counts, index and weights of a dispatch slot."""
        n_rows = self.pairs() if self.dedup or self.exact else self.slot_rows()
        per_row = up(4 * n_rows, 64)
        return up(4 * self.max_local(), 64) + (self.dedup + self.reduce) * per_row

    def slot_bytes(self):
        """From one dispatch slot to the next."""
        rows = up(self.slot_rows() * self.scale, 64) + self.slot_rows() * self.row
        return up(HEAD + self.meta_bytes() + rows, 128)

    def region_rows(self):
        """Exact placement: rows of a region slot."""
        rows = self.any_rows() * self.m
        return min(self.capacity or rows, rows)

    def dispatch_bytes(self):
        """Of an expert rank."""
        area = self.m * up(self.depth * self.slot_bytes(), 4096)
        if not self.exact:
            return area
        rows = self.region_rows()
        return area + self.depth * (up(rows * self.scale, 64) + rows * self.row)

    def reply_slots(self):
        """Slots of an expert rank at a sink; as many region slots has the sink."""
        return self.depth * (self.m if self.sinks else 1)

    def reply_bytes(self):
        """Of a sink."""
        region = up(self.reply_rows() * (self.out or self.row), 64)
        return self.n * up(self.reply_slots() * 128, 4096) + self.reply_slots() * region

    def grant_bytes(self):
        """Of a source, with exact placement."""
        slot = up(HEAD + 4 * self.max_local(), 128)
        return self.n * up(self.depth * slot, 4096) if self.exact else 0

    def credit_bytes(self, role):
        """Credit words, where the sinks are not the sources."""
        if not self.sinks or role == 'sink':
            return 0
        if role == 'source':
            return self.n * self.depth * 64
        return self.sinks * self.reply_slots() * (64 if self.reply_slots() <= 64 else 8)

    def state_bytes(self, role):
        """Tables of rounds in flight, from malloc."""
        words_n, words_m = -(-self.n // 64), -(-self.m // 64)
        cells = self.max_local() * self.m
        if role == 'source':
            return (self.depth * (176 + 32 * words_n) + 16 * self.n + self.row + self.scale + 320
                    + 48 * self.pairs())
        if role == 'sink':
            return 8 * self.m + self.m * self.depth * 8 * (words_n + 1)
        each = 144 + 80 * self.m + 60 * cells + 4 * self.max_local() + 8 * words_m
        reduce = 8 * self.pairs() + 12 if self.reduce else 0
        return self.depth * each + reduce + 24 * (self.max_local() + 8)

    def peers(self, role, classic=False):
        """Ranks that one in this role has a connection with."""
        if classic:
            return max(self.m, self.n) - 1
        if role == 'expert':
            return self.m + self.sinks
        return self.n

    def ends(self, roles):
        """Ends of links: one for each peer of each direction."""
        total = 0
        if 'source' in roles:
            total += self.n * (1 + self.exact)
        if 'expert' in roles:
            total += self.m * (1 + self.exact) + (self.sinks or self.m)
        if 'sink' in roles or ('source' in roles and not self.sinks):
            total += self.n
        return total

    def roles(self, role, classic=False):
        """All roles of a rank that is here for `role`."""
        if classic:
            return ('source', 'expert')
        return (role,)

    def pages(self, role, classic=False):
        """Bytes of pages that the channel takes, shared with peers."""
        roles = self.roles(role, classic)
        total = 0
        if 'expert' in roles:
            total += self.dispatch_bytes()
        if 'source' in roles:
            total += self.grant_bytes()
        if 'sink' in roles or ('source' in roles and not self.sinks):
            total += self.reply_bytes()
        return total + sum(up(self.credit_bytes(r), 4096) for r in roles)

    def staging_bytes(self, role):
        """Pages that messaging peers take on top; nothing for mapped ones."""
        sinks = self.sinks or self.m
        heads = self.depth * HEAD
        if role == 'source': # a line of zeros besides: padding between parts
            return self.n * up(2 * heads + self.depth * self.meta_bytes(), 4096)
        if role == 'sink':
            return self.n * up(self.reply_slots() * 8, 4096) if self.sinks else 0
        total = sinks * up(self.reply_slots() * HEAD, 4096)
        total += self.m * up(self.depth * 8, 4096) if self.sinks else 0
        grants = up(heads + self.depth * up(4 * self.max_local(), 64), 4096)
        return total + (self.m * grants if self.exact else 0)

    def reply_rows(self):
        """Rows of replies to a source and round at most."""
        if self.reduce and self.n < self.top_k:
            return self.tokens * self.n
        return self.pairs()

    def made_bytes(self, role):
        """Pages for rows that have to be made before they leave; nothing for mapped peers."""
        if role == 'source':
            return up(self.depth * up(self.pairs() * (self.row + self.scale), 64), 4096)
        if role == 'sink':
            return 0
        return up(self.depth * self.m * self.reply_rows() * (self.out or self.row), 4096)

    def control_bytes(self, role, classic=False):
        """control_bytes of m2n_channel_query_memory()."""
        roles = self.roles(role, classic)
        total = 704 + sum(self.state_bytes(r) + self.credit_bytes(r) for r in roles)
        return total + (self.grant_bytes() if 'source' in roles else 0)

    def heap(self, role, classic=False):
        """Bytes from malloc that come with the channel and its connections."""
        roles = self.roles(role, classic)
        state = 704 + sum(self.state_bytes(r) for r in roles)
        return (state + EXCHANGE_HEAP * (2 + self.exact) + END_HEAP * self.ends(roles)
                + PEER_HEAP * self.peers(role, classic))

    def total(self, role, classic=False):
        """All that a process takes for context, group and channel."""
        return (JOIN_HEAP + JOIN_PAGES + self.pages(role, classic) + self.heap(role, classic))

    def connections(self):
        """In the whole job, roles apart."""
        return self.m * self.n + self.sinks * self.n

    def signals(self, role, classic=False):
        """Words of the signal table, with a messaging backend."""
        roles = self.roles(role, classic)
        words = 0
        if 'expert' in roles:
            words += 2 * self.depth * self.m
        if 'source' in roles:
            words += 2 * self.depth * self.n if self.exact else 0
        if 'sink' in roles or ('source' in roles and not self.sinks):
            words += 2 * self.reply_slots() * self.n
        return words


    def spare_bytes(self, role):
        """Of regions: address space for slots in quarantine, which a network pins with the rest."""
        if role == 'expert' and self.exact:
            rows = self.region_rows()
            return self.depth * (up(rows * self.scale, 64) + rows * self.row)
        if role == 'source' and not self.sinks:
            return self.depth * up(self.reply_rows() * (self.out or self.row), 64)
        return 0

    def pinned_bytes(self, role, rails=1):
        """Memory regions of the channel on verbs, without the caller's and made rows."""
        parts = self.pages(role) + self.spare_bytes(role) + self.staging_bytes(role)
        return rails * up(parts, 4096)


@dataclass
class Verbs:
    """Options of backend verbs, as the defaults are."""
    qps: int = option('VERBS_QPS')
    rails: int = 1
    paired: bool = False # VERBS_REPLY_TC or VERBS_REPLY_SL is given
    sq: int = option('VERBS_SQ')
    recvs: int = option('VERBS_RECVS')
    max_cqe: int = 32767 # of the device: Soft-RoCE

    def n_qps(self, peers):
        """Queue pairs of a rank with so many peers on the network."""
        return peers * self.rails * self.qps * (1 + self.paired)

    def n_cqes(self, peers):
        """Completions that each rail must have room for."""
        return self.recvs + self.n_qps(peers) // self.rails * self.sq

    def cq_room(self, peers):
        """Entries that its completion queue has: grown by doubling, one connection at a time."""
        room = power(min(self.recvs + 8 * self.sq, self.max_cqe) + 1) - 1
        for n in range(1, peers + 1):
            if self.n_cqes(n) > room:
                room = power(min(2 * self.n_cqes(n), self.max_cqe) + 1) - 1
        return room

    def rxe_bytes(self, peers):
        """What Soft-RoCE maps of queues, with a header of 384 bytes each: the measured one."""
        send = up(384 + power(self.sq + 1) * power(16 * MAX_SGE + 200), 4096)
        recv = up(384 + power(self.recvs + 1) * 64, 4096)
        done = up(384 + (self.cq_room(peers) + 1) * 128, 4096)
        return self.n_qps(peers) * send + self.rails * (recv + done)

    def mlx5_qp_bytes(self):
        """A send queue of ConnectX: work requests in units of 64, and three tables beside it."""
        request = up(192 + 16 * MLX5_SGE, 64)
        queue = power(self.sq * request)
        return queue + queue // 64 * 16

    def mlx5_bytes(self, peers):
        """Of a rank: send queues, receives of 32 bytes, completions of 64."""
        shared = power(self.recvs + 1) * 32 + power(self.n_cqes(peers) + 1) * 64
        return self.n_qps(peers) * self.mlx5_qp_bytes() + self.rails * shared


JOBS = ((2, 6), (8, 56), (128, 384), (256, 768), (2500, 7500), (40000, 60000))


def job(m, n, **more):
    """The tables' shape: 128 tokens of 14,336 bytes, top-8, 256 experts or one a rank."""
    return Shape(m, n, tokens=128, row=14336, top_k=8, experts=max(256, n), **more)


def size(n):
    """Bytes for readers."""
    for unit in ('KiB', 'MiB', 'GiB', 'TiB'):
        n /= 1024
        if n < 1024:
            break
    return f'{n:.0f} {unit}' if n >= 100 else f'{n:.1f} {unit}'


def memory_table():
    """Per rank, by role and placement."""
    yield '| ranks | M x N | source | expert, any routing | expert, capacity | expert, `exact` |'
    yield '|---|---|---|---|---|---|'
    for m, n in JOBS:
        mean = -(-128 * 8 // n)
        shapes = (job(m, n), job(m, n, capacity=max(16, 4 * mean)),
                  job(m, n, exact=True, capacity=2 * max(m * 128 * 8 // n, 1)))
        cells = [f'{m + n:,}', f'{m:,} x {n:,}', size(shapes[0].total('source'))]
        cells += [size(shape.total('expert')) for shape in shapes]
        yield '| ' + ' | '.join(cells) + ' |'


def link_table():
    """Connections, descriptors, signal words and requests to the store."""
    yield ('| ranks | M x N | connections | sockets, source | sockets, expert | signal words, '
           'source | signal words, expert | store requests | by the busiest rank |')
    yield '|---|---|---|---|---|---|---|---|---|'
    for m, n in JOBS:
        shape = job(m, n)
        ranks = m + n
        cells = [ranks, f'{m:,} x {n:,}', shape.connections(), n + 2, m + 2,
                 shape.signals('source'), shape.signals('expert'),
                 2 * ranks + shape.connections(), 2 + n]
        yield '| ' + ' | '.join(c if isinstance(c, str) else f'{c:,}' for c in cells) + ' |'
    m, n, copies = 8, 56, 1563
    ranks = copies * (m + n)
    yield (f'| {ranks:,} | {copies:,} channels of {m} x {n} | {copies * m * n:,} | {n + 2} | '
           f'{m + 2} | {job(m, n).signals("source"):,} | {job(m, n).signals("expert"):,} | '
           f'{2 * ranks + copies * m * n:,} | {2 + n} |')


def network_table():
    """Queue pairs and their memory, and what the ranks tell each other until links are up."""
    yield ('| ranks | M x N | QPs, source | QPs, expert | QPs, job | queues, source | '
           'queues, expert | completions, source | control bytes, source | control bytes, job |')
    yield '|---|---|---|---|---|---|---|---|---|---|'
    verbs, told = Verbs(), TOLD['verbs']
    rows = [(f'{m + n:,}', f'{m:,} x {n:,}', m, n, 1) for m, n in JOBS]
    rows.append(('100,032', '1,563 channels of 8 x 56', 8, 56, 1563))
    for ranks, shape, m, n, copies in rows:
        yield (f'| {ranks} | {shape} | {verbs.n_qps(n):,} | {verbs.n_qps(m):,} | '
               f'{copies * m * 2 * verbs.n_qps(n):,} | {size(verbs.mlx5_bytes(n))} | '
               f'{size(verbs.mlx5_bytes(m))} | {verbs.n_cqes(n):,} | {size(n * sum(told))} | '
               f'{size(copies * m * n * sum(told))} |')


def put_in(text, name, lines):
    """The page with the block between the markers of `name` replaced."""
    start, end = f'<!-- {name} -->\n', f'<!-- end {name} -->'
    head, rest = text.split(start)
    return head + start + '\n'.join(lines) + '\n' + rest[rest.index(end):]


def main():
    """As the module says."""
    tables = {'memory': list(memory_table()), 'links': list(link_table()),
              'network': list(network_table())}
    if len(sys.argv) == 1:
        print('\n\n'.join('\n'.join(lines) for lines in tables.values()))
        return 0
    with open(PAGE, encoding='utf-8') as page:
        old = text = page.read()
    for name, lines in tables.items():
        text = put_in(text, name, lines)
    if sys.argv[1] == '--check':
        if text != old:
            print('docs/scale.md has other tables: run docs/scale_table.py --write')
        return text != old
    with open(PAGE, 'w', encoding='utf-8') as page:
        page.write(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
