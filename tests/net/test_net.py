#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Ranks on several hosts (tests/net/hosts.py): how they find each other, what moves their rows,
what happens when a link or a host goes.

  test_net.py NET_RANK [WORDS]

Prints TAP; WORDS picks the cases whose name holds them. Exits 77 without namespaces, except where
CI is set: there they must be there.
"""
import os
import re
import signal
import sys
import time
import traceback

from hosts import Failure, Net, PoorLink, ask_all, close_all, why_no_hosts

CASES = []
PROGRAM = ''
ROUNDS = 40
DONE = r'done (\d+) digest (\w+) missing (\d+)'
DIGESTS = {}


def case(function):
    """Adds a case; its name is the docstring's first line."""
    CASES.append((function.__doc__.splitlines()[0].rstrip('.'), function))
    return function


def check(good, words):
    if not good:
        raise Failure(words)


def run_rounds(ranks, n):
    """n rounds of all; digests of the sources' outputs by rank, nothing may be missing."""
    done = ask_all(ranks, f'rounds {n}', DONE)
    for rank, match in zip(ranks, done):
        check(match[3] == '0', f'rank {rank.number}: {match[3]} rows are missing')
    return [match[2] for match in done]


def digests(shape, n_rounds):
    """What the outputs must be: those of a run on one host, by shared memory alone."""
    words = [word for word in shape if word not in ('registered', 'exact')]
    key = (n_rounds, *words)
    if key not in DIGESTS:
        n = int(shape[0]) if 'classic' in shape else int(shape[0]) + int(shape[1])
        with Net(2) as net:
            ranks = net.start([0] * n, PROGRAM, words, {'BACKEND': 'self,shm'})
            ask_all(ranks, 'open', 'opened')
            DIGESTS[key] = run_rounds(ranks, n_rounds)
            close_all(ranks)
    return DIGESTS[key]


def whole_run(net, place, shape, options, own=None, n_rounds=ROUNDS):
    """Opens, runs, compares with one host's outputs; the ranks, still open."""
    ranks = net.start(place, PROGRAM, shape, options, own)
    ask_all(ranks, 'open', 'opened')
    found = run_rounds(ranks, n_rounds)
    check(found == digests(shape, n_rounds), f'outputs differ from those of one host: {found}')
    return ranks


@case
def bootstrap_two_hosts():
    """bootstrap: store at rank 0, two hosts."""
    with Net(2, own_pids=False) as net:
        close_all(whole_run(net, [0, 1, 0, 1], ['2', '2'], {}))


@case
def bootstrap_three_hosts():
    """bootstrap: a shared secret, three hosts."""
    with Net(3, own_pids=False) as net:
        close_all(whole_run(net, [0, 1, 2, 0, 1, 2], ['3', '3'], {'SECRET': 'of all three'}))


@case
def bootstrap_wrong_secret():
    """bootstrap: a host with another secret, or none, is refused."""
    for secret in ({'SECRET': 'another'}, {}):
        with Net(2, own_pids=False) as net:
            ranks = net.start([0, 1], PROGRAM, ['1', '1'], {'TIMEOUT': '1s'},
                              lambda rank: {'SECRET': 'ours'} if rank == 0 else secret)
            ranks[0].tell('open')
            ranks[1].ask('open', r'failed -1004: .*secret')
            ranks[0].wait(r'failed -110: ')


def connected(host):
    """The own addresses of the host's TCP connections."""
    lines = host.run('cat', '/proc/net/tcp').splitlines()[1:]
    ends = [line.split()[1].split(':')[0] for line in lines if line.split()[3] == '01']
    return {'.'.join(str(byte) for byte in reversed(bytes.fromhex(end))) for end in ends}


@case
def bootstrap_address():
    """bootstrap: ADDRESS says where peers call."""
    with Net(2, own_pids=False) as net:
        for host in net.hosts:
            host.run('ip', 'addr', 'add', f'10.84.0.{host.number + 1}/24', 'dev', 'eth0')
        ranks = whole_run(net, [0, 1], ['1', '1'], {},
                          lambda rank: {'ADDRESS': f'10.84.0.{rank + 1}'})
        for host in net.hosts:
            check(f'10.84.0.{host.number + 1}' in connected(host),
                  f'host {host.number} is connected by {connected(host)}')
        close_all(ranks)


@case
def bootstrap_wrong_address():
    """bootstrap: an ADDRESS that is another host's is refused with the option's name."""
    with Net(2, own_pids=False) as net:
        rank = net.start([0, 1], PROGRAM, ['1', '1'], {'ADDRESS': '10.83.0.2'})[0]
        rank.ask('open', r'failed -\d+: .*10\.83\.0\.2.*option ADDRESS')


UCX = {'UCX_TLS': 'tcp', 'UCX_NET_DEVICES': 'eth0'}
PEER = r'peer (\d+) (\w+) (\S+):'


def backends(rank):
    """The backend of each live peer."""
    before = len(rank.lines)
    rank.ask('peers', 'told')
    told = [re.match(PEER, line) for line in rank.lines[before:]]
    return {int(peer[1]): peer[3] for peer in told if peer and peer[2] == 'live'}


def check_backends(ranks, place, want):
    """want(is_self, is_same_host): the name."""
    for rank in ranks:
        for peer, backend in backends(rank).items():
            expected = want(peer == rank.number, place[peer] == place[rank.number])
            check(backend == expected,
                  f'rank {rank.number} reaches {peer} by {backend}, not {expected}')


def by_place(is_self, is_same_host):
    return 'self' if is_self else 'shm' if is_same_host else 'ucx'


def mixed(n_hosts, place, shape, options, want=by_place, own=None):
    with Net(n_hosts) as net:
        ranks = whole_run(net, place, shape, UCX | options, own)
        check_backends(ranks, place, want)
        return close_all(ranks)


@case
def mixed_auto():
    """mixed: auto takes shm on a host and ucx between two"""
    mixed(2, [0, 1, 0, 1], ['2', '2'], {})


@case
def mixed_registered():
    """mixed: registered memory is not staged"""
    staged = mixed(2, [0, 1, 0, 1], ['2', '2', 'registered'], {})
    check(staged == [0] * 4, f'staged {staged}')


@case
def mixed_exact():
    """mixed: exact placement, three hosts"""
    mixed(3, [0, 1, 2, 0, 1, 2], ['3', '3', 'exact'], {})


@case
def mixed_classic():
    """mixed: every rank has all roles, self as well"""
    mixed(2, [0, 0, 1, 1], ['4', '4', 'classic'], {})


@case
def mixed_list():
    """mixed: a list of backends"""
    mixed(2, [0, 1, 0, 1], ['2', '2'], {'BACKEND': 'shm,ucx'})


@case
def mixed_forced():
    """mixed: BACKEND=ucx for all, the same host and self too"""
    mixed(2, [0, 0, 1, 1], ['4', '4', 'classic'], {'BACKEND': 'ucx'}, lambda *_: 'ucx')


@case
def mixed_host_id():
    """mixed: HOST_ID parts ranks that could share memory"""
    place = [0, 1, 0, 1]
    with Net(2, own_pids=False) as net:
        ranks = whole_run(net, place, ['2', '2'], UCX,
                          lambda rank: {'HOST_ID': f'host{place[rank]}'})
        check_backends(ranks, place, by_place)
        close_all(ranks)


@case
def mixed_no_way():
    """mixed: BACKEND=shm says that it does not reach another host"""
    with Net(2) as net:
        ranks = net.start([0, 1], PROGRAM, ['1', '1'], {'BACKEND': 'shm', 'TIMEOUT': '2s'})
        ask_all(ranks, 'open',
                r"failed -1007: .*no backend of rank \d reaches rank \d \(BACKEND is 'shm'")


LINK_ROUNDS = 1000
KEEPALIVE_S = 2
# Keep-alive looks once a second; the rest is for a busy machine.
LOST_WITHIN_S = KEEPALIVE_S + 2


class Job:
    """Ranks of a job over hosts: source h and expert rank n + h live on host h of n."""

    def __init__(self, net, options):
        self.n = len(net.hosts)
        self.net = net
        self.ranks = net.start(list(range(self.n)) * 2, PROGRAM,
                               [str(self.n)] * 2 + ['replicas'], UCX | options)
        ask_all(self.ranks, 'open', 'opened')

    def on(self, host):
        return [self.ranks[host], self.ranks[self.n + host]]

    def apart(self, host):
        """(rank, peer) of all links that lead to or from a host, one for each end."""
        near = [h for h in range(self.n) if h != host]
        links = [(h, self.n + host) for h in near] + [(host, self.n + h) for h in near]
        return [(self.ranks[a], b) for a, b in links] + [(self.ranks[b], a) for a, b in links]

    def begin(self, n_rounds):
        """Rounds are under way when this returns."""
        for rank in self.ranks:
            rank.tell(f'rounds {n_rounds}')
        for rank in self.ranks:
            rank.wait(r'at \d+')

    def end(self, ranks=None):
        """All of the rounds are through; by rank, how many rows were missing so far."""
        return [int(rank.wait(DONE)[3]) for rank in ranks or self.ranks]

    @staticmethod
    def end_patiently(ranks):
        """As end(), for ranks with short deadlines: they try again."""
        left, missing = list(ranks), {}
        for _ in range(20):
            for rank in list(left):
                done = rank.wait(f'{DONE}|timeout.*')
                if done[1]:
                    missing[rank] = int(done[3])
                    left.remove(rank)
                else:
                    rank.tell('go')
            if not left:
                return [missing[rank] for rank in ranks]
        raise Failure(f'rank {left[0].number}: again and again {left[0].lines[-1]}')

    def wait_lost(self, pairs, since, seconds=LOST_WITHIN_S):
        """Each rank names its peer in time; prints how long it took."""
        for rank, peer in pairs:
            rank.see(f'peer {peer} lost')
        took = time.monotonic() - since
        print(f'# all are named after {took:.2f} s')
        check(took < seconds, f'named after {took:.2f} s, not {seconds}')

    def wait_whole(self, sources):
        """After the round that lacked something the next is whole, or the one after."""
        for rank in (self.ranks[source] for source in sources):
            partial = rank.see(r'partial (\d+) \w+: (.*)')
            whole = rank.see(r'whole (\d+)')
            check(int(whole[1]) <= int(partial[1]) + 2,
                  f'rank {rank.number}: partial {partial[1]}, whole not before {whole[1]}')
            check(re.search(r'rank \d+', partial[2]), f'"{partial[2]}" names no rank')

    def wake(self, host):
        """Lets a stopped host go on; the programs that started its ranks have stopped with them."""
        self.net.hosts[host].signal(signal.SIGCONT)
        for rank in self.on(host):
            rank.process.send_signal(signal.SIGCONT)

    def give_up_silent(self, host):
        """Ranks elsewhere whose calls time out on a host drop its ranks and go on to the end."""
        links = {rank: peer for rank, peer in self.apart(host) if rank not in self.on(host)}
        for rank in links:
            match = rank.wait(r'timeout \d+ \w+: -110: .*')
            check(re.search(rf'ranks.* {links[rank]}\b', match[0]),
                  f'"{match[0]}" does not name rank {links[rank]}')
        for rank, peer in links.items():
            rank.ask(f'drop {peer}', 'dropped')
            rank.tell('go')
        return self.end_patiently(list(links))

    def check_survivors(self, host, since, seconds):
        """The ranks elsewhere name those of a host in time, and go on without."""
        gone = self.on(host)
        near = [rank for rank in self.ranks if rank not in gone]
        self.wait_lost([pair for pair in self.apart(host) if pair[0] in near], since, seconds)
        self.end(near)
        self.wait_whole([rank.number for rank in near if rank.number < self.n])
        close_all(near)

    def join_again(self, host, by_experts, missing):
        """Adds the peers of both sides and lets the sources in; rounds are whole again."""
        pairs = self.apart(host)
        for rank, peer in pairs:
            if (rank.number >= self.n) == by_experts:
                rank.ask(f'add {peer}', f'added {peer}')
        for rank, peer in pairs:
            if rank.number >= self.n:
                rank.ask(f'admit {peer}', 'admitted')
        for rank in self.ranks:
            rank.tell(f'rounds {ROUNDS}')
        check(self.end() == missing, 'rows are missing after the return')


@case
def cut_one_of_three():
    """cut: a host of three loses its link during rounds, and comes back"""
    with Net(3) as net:
        job = Job(net, {'KEEPALIVE': f'{KEEPALIVE_S}s'})
        job.begin(LINK_ROUNDS)
        net.hosts[2].link('down')
        job.wait_lost(job.apart(2), time.monotonic())
        missing = job.end()
        job.wait_whole([0, 1])
        net.hosts[2].link('up')
        net.hosts[2].wait_up()
        job.join_again(2, False, missing)
        close_all(job.ranks)


@case
def cut_two_hosts():
    """cut: between two hosts, and added again by the expert ranks"""
    with Net(2) as net:
        job = Job(net, {'KEEPALIVE': f'{KEEPALIVE_S}s'})
        job.begin(LINK_ROUNDS)
        net.hosts[1].link('down')
        job.wait_lost(job.apart(1), time.monotonic())
        missing = job.end()
        job.wait_whole([])
        net.hosts[1].link('up')
        net.hosts[1].wait_up()
        job.join_again(1, True, missing)
        close_all(job.ranks)


@case
def vanished_stopped():
    """vanished: a host stops; calls time out and name it, it is dropped, wakes and comes back"""
    with Net(3) as net:
        job = Job(net, {'TIMEOUT': '1s'})
        job.begin(LINK_ROUNDS)
        net.hosts[2].signal(signal.SIGSTOP)
        missing = job.give_up_silent(2)
        job.wake(2)
        away = job.end_patiently(job.on(2))
        job.wait_lost(job.apart(2), time.monotonic())
        job.join_again(2, False, missing[:2] + away[:1] + missing[2:] + away[1:])
        close_all(job.ranks)


@case
def vanished_for_good():
    """vanished: a host is cut off and loses power; nobody says goodbye for it"""
    with Net(3) as net:
        job = Job(net, {'KEEPALIVE': f'{KEEPALIVE_S}s'})
        job.begin(LINK_ROUNDS)
        start = time.monotonic()
        net.hosts[2].link('down')
        net.hosts[2].signal(signal.SIGKILL)
        job.check_survivors(2, start, LOST_WITHIN_S)


@case
def vanished_killed():
    """vanished: all processes of a host are killed; it is seen at once"""
    with Net(3) as net:
        job = Job(net, {})
        job.begin(LINK_ROUNDS)
        start = time.monotonic()
        net.hosts[2].signal(signal.SIGKILL)
        job.check_survivors(2, start, 1)


def run_poor_link(by_netem):
    links = []

    def join(net):
        links.append(PoorLink(net, by_netem, 5, 2, 0.02))
        return links[0]

    with Net(2, wire=join) as net:
        start = time.monotonic()
        ranks = whole_run(net, [0, 1, 0, 1], ['2', '2'], UCX | {'BACKEND': 'self,shm,ucx'},
                          n_rounds=20)
        print(f'# {time.monotonic() - start:.1f} s')
        check_backends(ranks, [0, 1, 0, 1], by_place)
        for rank in ranks:
            check(not any(line.startswith('partial') for line in rank.lines), 'somebody was lost')
        close_all(ranks)
        n_lost = links[0].n_lost()
        check(n_lost > 0, 'the link lost nothing')
        print(f'# frames lost: {n_lost}')


@case
def poor_link_wire():
    """poor link: 5 ms of delay, 2 ms more or less, 2 % of the frames lost, by wire.py"""
    run_poor_link(False)


@case
def poor_link_netem():
    """netem: the same by the kernel's netem"""
    run_poor_link(True)


@case
def mixed_no_device():
    """mixed: a device of UCX that does not lead to the other host is an error with a remedy"""
    with Net(2) as net:
        ranks = net.start([0, 1], PROGRAM, ['1', '1'],
                          UCX | {'UCX_NET_DEVICES': 'lo', 'TIMEOUT': '5s'})
        ask_all(ranks, 'open', r'failed -1007: .*UCX_NET_DEVICES')


def main():
    global PROGRAM
    PROGRAM = os.path.abspath(sys.argv[1])
    words = sys.argv[2] if len(sys.argv) > 2 else ''
    chosen = [one for one in CASES if words in one[0]]
    reason = why_no_hosts()
    if reason:
        print(f'1..0 # SKIP {reason}')
        return 1 if os.environ.get('CI') else 77
    print(f'1..{len(chosen)}')
    n_failed = 0
    for number, (name, function) in enumerate(chosen, 1):
        good = True
        try:
            function()
        except Exception: # pylint: disable=broad-except
            good = False
            print('# ' + traceback.format_exc().strip().replace('\n', '\n# '))
        n_failed += not good
        print(f'{"" if good else "not "}ok {number} - {name}', flush=True)
    return 1 if n_failed else 0


if __name__ == '__main__':
    sys.exit(main())
